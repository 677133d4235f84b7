"""What differs between SQLite, PostgreSQL, MySQL and MariaDB, where Django does not hide it.

Every other module of souvenirs asks this one, so what a database needs can be read here.
(Migration 0003 decides for itself, as migrations do.)
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cache
from typing import Any, cast

from django.db import DatabaseError, InterfaceError, connections, models, transaction
from django.db.models.expressions import RawSQL
from django.db.utils import load_backend

from souvenirs import timestamps
from souvenirs.conf import conf
from souvenirs.periods import RepeatedHour, repeated_hour

UNION_LIMIT = 400  # SQLite takes 500 SELECTs in a UNION, but as many UNIONs inside of one
MIN_CONNECT_SECONDS = 2  # libpq's minimum
SQLITE_STEPS = 10_000  # instructions of SQLite's machine between two looks at the clock

SetLimit = Callable[[int], object]


# Transactions


def set_isolation_level(using: str, level: str) -> None:
    """Set the isolation level of a transaction that has just begun; SQLite has one level only.

    Also keep PostgreSQL from compiling (jit) in it: our statements are long, and soon done.
    """
    connection = connections[using]
    if connection.vendor == "sqlite":
        return
    jit = "; SET LOCAL jit = off" if connection.vendor == "postgresql" else ""
    with connection.cursor() as cursor:
        cursor.execute(f"SET TRANSACTION ISOLATION LEVEL {level}{jit}")


def locks_on_read(using: str) -> bool:
    """Whether a transaction that only reads locks others out: SQLite with a transaction_mode."""
    return getattr(connections[using], "transaction_mode", None) in ("IMMEDIATE", "EXCLUSIVE")


def in_transaction(using: str) -> bool:
    """Whether this thread is in a transaction, or commits by itself. It connects to nothing."""
    connection = connections[using]
    is_connected = connection.connection is not None
    return connection.in_atomic_block or (is_connected and not connection.autocommit)


def takes_writers(using: str) -> bool:
    """Whether a thread beside the site's may write: not to SQLite, where a second writer makes the
    transactions of the first fail, nor where Django does not commit."""
    entry = connections.settings[using]
    return bool(entry["AUTOCOMMIT"]) and _vendor(entry["ENGINE"]) != "sqlite"


@cache
def _vendor(engine: str) -> str:
    return str(load_backend(engine).DatabaseWrapper.vendor)


# Locks


def can_skip_locked(using: str) -> bool:
    """Whether rows that somebody holds can be skipped: not before MariaDB 10.6 and MySQL 8."""
    return bool(connections[using].features.has_select_for_update_skip_locked)


@contextmanager
def failing_at_locks(using: str) -> Iterator[None]:
    """In the block, a statement that would wait for a row fails at once, where rows that somebody
    holds cannot be skipped: in MariaDB before 10.6."""
    connection = connections[using]
    if connection.vendor != "mysql" or can_skip_locked(using):
        yield
        return
    (before,) = execute(connection, "SELECT @@SESSION.innodb_lock_wait_timeout")
    execute(connection, "SET SESSION innodb_lock_wait_timeout = 0")
    try:
        yield
    finally:
        with suppress(DatabaseError):  # of a connection that is lost
            execute(connection, f"SET SESSION innodb_lock_wait_timeout = {before}")


def lock_keys(
    model: type[models.Model], keys: Collection[Any], using: str, *, shared: bool
) -> set[Any]:
    """Lock the rows with these primary keys, and return their keys. Rows that somebody holds are
    skipped where that can be done.

    shared: against deletion only (on MySQL: against any change), and beside others who do so.
    """
    if not keys:
        return set()
    connection: Any = connections[using]
    key: Any = model._meta.pk
    quote = connection.ops.quote_name
    table, column = quote(model._meta.db_table), quote(key.column)
    condition, params = is_one_of(key, keys, using)
    lock, index = "FOR UPDATE", ""
    if connection.vendor == "mysql":
        index = "FORCE INDEX (PRIMARY)"  # else it may read, and lock, the whole table
        if shared:
            lock = "LOCK IN SHARE MODE" if connection.mysql_is_mariadb else "FOR SHARE"
    elif shared:
        lock = "FOR KEY SHARE"
    skip = "SKIP LOCKED" if can_skip_locked(using) else ""
    convert = converter(key, using)
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT {column} FROM {table} {index} WHERE {condition} {lock} {skip}",  # noqa: S608
            params,
        )
        return {convert(value) for (value,) in cursor.fetchall()}


def share_name_locks(name: str, numbers: Iterable[int], using: str) -> None:
    """Until the transaction ends, keep others from `try_name_locks` of these. PostgreSQL only."""
    if connections[using].vendor == "postgresql":
        select = (
            "SELECT pg_advisory_xact_lock_shared(hashtext(%s), n)"
            " FROM unnest(CAST(%s AS int[])) AS n"
        )
        with connections[using].cursor() as cursor:
            cursor.execute(select, [name, sorted(numbers)])


def try_name_locks(name: str, numbers: Iterable[int], using: str) -> set[int]:
    """Those of the locks that nobody had, and that this transaction now has. All of them where
    there are none: not on PostgreSQL."""
    if connections[using].vendor != "postgresql":
        return set(numbers)
    select = (
        "SELECT n FROM unnest(CAST(%s AS int[])) AS n"
        " WHERE pg_try_advisory_xact_lock(hashtext(%s), n)"
    )
    with connections[using].cursor() as cursor:
        cursor.execute(select, [sorted(numbers), name])
        return {number for (number,) in cursor.fetchall()}


def checks_keys_late(using: str) -> bool:
    """Whether foreign keys are checked, and what they refer to is locked, at the commit only."""
    return connections[using].vendor == "postgresql"


# Many values in one statement. On PostgreSQL they are arrays of keys and numbers: where each value
# is a parameter, and each time a text, the client spends three times as much on them.


def is_one_of(field: Any, values: Iterable[Any], using: str) -> tuple[str, list[Any]]:
    """A condition, that the field's column has one of these values, and its parameters."""
    connection = connections[using]
    name = connection.ops.quote_name(field.column)
    params = [field.get_db_prep_value(value, connection) for value in values]
    if connection.vendor == "postgresql":
        place, array = _array(field, params, connection)
        return f"{name} = ANY({place})", [array]
    return f"{name} IN ({', '.join(['%s'] * len(params))})", params


def _array(field: Any, params: list[Any], connection: Any) -> tuple[str, list[Any]]:
    """A placeholder of an array of the field's type, for PostgreSQL, and its parameter. It is wide
    enough for keys that the column cannot hold: to cut one would find somebody else."""
    kind = field.db_type(connection)
    if kind in ("smallint", "integer", "bigint"):
        return "CAST(%s AS bigint[])", [int(value) for value in params]  # Django's are int2, int4
    return f"CAST(%s AS {'varchar' if kind.startswith('varchar') else kind}[])", params


def insert_times(
    model: type[models.Model], names: tuple[str, str], rows: Sequence[tuple[Any, float]], using: str
) -> None:
    """Insert rows of two fields, a key and a datetime given as unix time, in one statement."""
    if not rows:
        return
    connection = connections[using]
    quote = connection.ops.quote_name
    fields = [cast(Any, model._meta.get_field(name)) for name in names]
    key = fields[0]
    keys = [key.get_db_prep_save(value, connection) for value, _ in rows]
    if connection.vendor == "postgresql":
        place, array = _array(key, keys, connection)
        source = (
            "SELECT v.key, to_timestamp(v.t)"  # noqa: S608
            f" FROM unnest({place}, CAST(%s AS float8[])) AS v (key, t)"
        )
        params: list[Any] = [array, [t for _, t in rows]]
    else:
        source = f"VALUES {', '.join(['(%s, %s)'] * len(rows))}"
        times = (to_parameter(t, using) for _, t in rows)
        params = [value for pair in zip(keys, times) for value in pair]
    table, columns = quote(model._meta.db_table), ", ".join(quote(each.column) for each in fields)
    with connection.cursor() as cursor:
        cursor.execute(f"INSERT INTO {table} ({columns}) {source}", params)


def update_times(
    model: type[models.Model], column: str, times: Mapping[int, float], using: str
) -> None:
    """Set a column of datetimes in the rows with these ids, each to a unix time: one statement, in
    which each row costs little."""
    connection: Any = connections[using]
    quote = connection.ops.quote_name
    table, name = quote(model._meta.db_table), quote(column)
    params: list[Any]
    if connection.vendor == "postgresql":
        statement = (
            f"UPDATE {table} AS t SET {name} = to_timestamp(v.t)"  # noqa: S608
            " FROM unnest(CAST(%s AS bigint[]), CAST(%s AS float8[])) AS v (id, t)"
            " WHERE t.id = v.id"
        )
        params = [list(times), list(times.values())]
    else:
        texts = {t: to_parameter(t, using) for t in set(times.values())}  # few, as a rule
        pairs = [(id, texts[t]) for id, t in times.items()]
        if connection.vendor == "mysql" and can_skip_locked(using):
            # Driven from the values, or it may read, and lock, the whole table
            statement = (
                "UPDATE JSON_TABLE(%s, '$[*]' COLUMNS (id BIGINT PATH '$[0]', value DATETIME(6)"  # noqa: S608
                f" PATH '$[1]')) v STRAIGHT_JOIN {table} t FORCE INDEX (PRIMARY) ON t.id = v.id"
                f" SET t.{name} = v.value"
            )
            params = [json.dumps(pairs)]
        else:
            case = f"CASE id {'WHEN %s THEN %s ' * len(pairs)}END"
            places = ", ".join(["%s"] * len(pairs))
            statement = f"UPDATE {table} SET {name} = {case} WHERE id IN ({places})"  # noqa: S608
            params = [*(value for pair in pairs for value in pair), *times]
    with connection.cursor() as cursor:
        cursor.execute(statement, params)


def as_in_list(numbers: Iterable[int], using: str) -> Any:
    """The right side of an `__in` filter for any number of integers: one parameter where the number
    of parameters is limited."""
    vendor = connections[using].vendor
    if vendor == "postgresql":
        return RawSQL("SELECT unnest(CAST(%s AS bigint[]))", [list(numbers)])
    if vendor == "sqlite":
        return RawSQL("SELECT value FROM json_each(%s)", [json.dumps(list(numbers))])
    return list(numbers)


def joins_intervals(using: str) -> bool:
    """Whether a query over many intervals should join `intervals_table`, rather than be a UNION of
    one SELECT for each.

    PostgreSQL plans, and compiles, each SELECT of a UNION: a minute for a thousand of them. MariaDB
    would read the whole index for each interval of a join.
    """
    return connections[using].vendor == "postgresql"


def intervals_table(intervals: int) -> str:
    """The table i (number, first, after) of so many intervals, each of three parameters."""
    row = "(%s, CAST(%s AS timestamptz), CAST(%s AS timestamptz))"
    return f"(VALUES {', '.join([row] * intervals)}) AS i (number, first, after)"


def union_all(selects: Sequence[str]) -> str:
    """One query of any number of SELECTs."""
    groups = [
        " UNION ALL ".join(selects[at : at + UNION_LIMIT])
        for at in range(0, len(selects), UNION_LIMIT)
    ]
    if len(groups) == 1:
        return groups[0]
    return " UNION ALL ".join(
        f"SELECT * FROM ({group}) AS g{number}"  # noqa: S608
        for number, group in enumerate(groups)
    )


def counts_in_one_pass(using: str) -> bool:
    """Whether to count slices of an index in one pass, not by a range scan for each.

    PostgreSQL visits the row of most entries of an index whose rows change all the time. The others
    count from the index alone.
    """
    return connections[using].vendor == "postgresql"


def count_where(condition: str, column: str, using: str, distinct: bool = False) -> str:
    """An aggregate: in how many rows the condition holds, or how many values the column has in
    them. The column must not be null."""
    if connections[using].features.supports_aggregate_filter_clause:
        return f"COUNT({f'DISTINCT {column}' if distinct else '*'}) FILTER (WHERE {condition})"
    return f"COUNT({'DISTINCT ' if distinct else ''}CASE WHEN {condition} THEN {column} END)"


# Rows by their keys. Given a list of keys, MySQL may read, and lock, the whole table or the index
# on another column: so these drive from the keys, one row each. MariaDB before 10.6 has no
# JSON_TABLE, and a deadlock remains possible there.


def locks_beyond_keys(using: str) -> bool:
    """Whether `lock_rows` is needed before rows are deleted through another index."""
    connection: Any = connections[using]
    if connection.vendor != "mysql":
        return False
    return not connection.mysql_is_mariadb or connection.mysql_version >= (10, 6)


def lock_rows(model: type[models.Model], keys: Sequence[int], using: str) -> None:
    """Lock the rows with these keys and no others, where `locks_beyond_keys`."""
    with connections[using].cursor() as cursor:
        select = f"SELECT s.id FROM {_rows_by_key(model)} FOR UPDATE"  # noqa: S608
        cursor.execute(select, [json.dumps(keys)])
        cursor.fetchall()


def delete_rows(model: type[models.Model], keys: Sequence[int], using: str) -> None:
    """Delete the rows with these keys, and wait for no others."""
    if not locks_beyond_keys(using):
        rows = model._base_manager.using(using)
        rows.filter(pk__in=as_in_list(keys, using)).delete()
        return
    with connections[using].cursor() as cursor:
        cursor.execute(f"DELETE s FROM {_rows_by_key(model)}", [json.dumps(keys)])


def _rows_by_key(model: type[models.Model]) -> str:
    return (
        "JSON_TABLE(%s, '$[*]' COLUMNS (id BIGINT PATH '$')) k"
        f" STRAIGHT_JOIN {model._meta.db_table} s ON s.id = k.id"
    )


# Datetimes. SQLite and MySQL keep what clocks show in one zone: the site's where USE_TZ is False.
# Where that is not UTC, the hour lived twice is one hour in their columns.


def to_column(seconds: float, using: str) -> datetime:
    """The datetime of a unix time that a DateTimeField is to be given."""
    if connections[using].features.supports_timezones:
        return timestamps.to_utc(seconds)  # PostgreSQL would not see the fold of a naive one
    return timestamps.to_datetime(seconds)


def to_parameter(seconds: float, using: str) -> Any:
    """The parameter of a raw statement that stands for a unix time."""
    return connections[using].ops.adapt_datetimefield_value(to_column(seconds, using))


def from_result(value: Any, field: Any, using: str) -> float | None:
    """The unix time of what a raw statement returned of a DateTimeField."""
    value = converter(field, using)(value)
    return None if value is None else timestamps.to_seconds(value)


def whole_seconds(field: Any, using: str) -> tuple[str, Callable[[Any], int | None]]:
    """What to select of a DateTimeField for its unix time, floored; and a function that makes it of
    the result."""
    name = connections[using].ops.quote_name(field.column)
    if connections[using].vendor == "postgresql":
        return f"CAST(FLOOR(EXTRACT(EPOCH FROM {name})) AS bigint)", lambda seconds: seconds
    convert = converter(field, using)

    def floored(value: Any) -> int | None:
        return None if value is None else math.floor(timestamps.to_seconds(convert(value)))

    return name, floored


def converter(field: Any, using: str) -> Callable[[Any], Any]:
    """A function from what a raw statement returned of a field to what the ORM returns."""
    connection = connections[using]
    column = field.get_col(field.model._meta.db_table)
    steps = connection.ops.get_db_converters(column) + column.get_db_converters(connection)

    def convert(value: Any) -> Any:
        for step in steps:
            value = step(value, column, connection)
        return value

    return convert


def shown_from(t: float, using: str) -> float:
    """The earliest time that a column may show of something at or after `t`."""
    hour = _repeated_hour(t, using)
    return hour.start if hour and t < hour.turn else t


def shown_until(t: float, using: str) -> float:
    """What is before `t` is shown as before this time."""
    hour = _repeated_hour(t, using)
    return hour.end if hour and t >= hour.turn else t


def _repeated_hour(t: float, using: str) -> RepeatedHour | None:
    connection = connections[using]
    if connection.features.supports_timezones:
        return None
    return repeated_hour(t, connection.timezone or conf.zone)


def typed_datetime(using: str) -> str:
    """A placeholder of `to_parameter` for where the database could take it for a string."""
    types = {"postgresql": "timestamptz", "mysql": "datetime(6)"}
    name = types.get(connections[using].vendor)
    return f"CAST(%s AS {name})" if name else "%s"


# Ids


def skip_ids(model: type[models.Model], until: int, using: str) -> bool:
    """Have the table give ids above `until` from now on. Return False where nothing but a row with
    such an id does that in a transaction: SQLite, MySQL."""
    connection = connections[using]
    if connection.vendor != "postgresql":
        return False
    table = model._meta.db_table
    with transaction.atomic(using=using), connection.cursor() as cursor:
        # Two that move the sequence at once could move it back. The lock ends with the savepoint,
        # unlike the move: so nobody waits for it until a long transaction is over
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [table])
        cursor.execute(
            "SELECT setval(s, %s) FROM (SELECT CAST(pg_get_serial_sequence(%s, 'id') AS regclass))"
            " AS sequence (s) WHERE COALESCE(pg_sequence_last_value(s), 0) < %s",
            [until, table, until],
        )
        transaction.set_rollback(True, using=using)
    return True


# Limits of time


def connect_options(connection: Any, seconds: float) -> dict[str, Any]:
    """The OPTIONS of a connection that is to be made within `seconds`: those of DATABASES, with the
    driver's time-out where it has one. A shorter one of DATABASES stays."""
    options: dict[str, Any] = connection.settings_dict["OPTIONS"]
    if connection.vendor not in ("postgresql", "mysql") or options.get("pool"):
        return options
    timeout = max(MIN_CONNECT_SECONDS, math.ceil(seconds))
    own = int(options.get("connect_timeout") or timeout)  # 0 is none
    return {**options, "connect_timeout": min(own, timeout)}


@contextmanager
def statement_limit(connection: Any) -> Iterator[SetLimit]:
    """Yield a function that sets how many milliseconds each following statement may take.

    Afterwards the connection is as it was. On PostgreSQL it must be in a transaction.
    """
    if connection.vendor == "postgresql":
        # It ends with the transaction, also where a pooler hands the session on
        yield lambda ms: execute(connection, f"SET LOCAL statement_timeout = {ms}")
    elif connection.vendor == "mysql":
        name = "max_statement_time" if connection.mysql_is_mariadb else "max_execution_time"
        unit = "/ 1000" if connection.mysql_is_mariadb else ""  # MariaDB's is in seconds
        (before,) = execute(connection, f"SELECT @@SESSION.{name}")
        try:
            yield lambda ms: execute(connection, f"SET SESSION {name} = {ms} {unit}")
        finally:
            if connection.connection is not None:
                with suppress(DatabaseError, InterfaceError):  # of a connection that is lost
                    execute(connection, f"SET SESSION {name} = {before}")
    else:

        def limit(ms: int) -> None:
            end = time.monotonic() + ms / 1000
            connection.connection.set_progress_handler(lambda: time.monotonic() > end, SQLITE_STEPS)

        try:
            yield limit
        finally:
            if connection.connection is not None:
                connection.connection.set_progress_handler(None, 0)


def execute(connection: Any, sql: str) -> Any:
    """Run a statement past Django's wrappers. Return its first row if it has some."""
    with connection.wrap_database_errors, connection.connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone() if cursor.description else None
