"""Differences between SQLite, PostgreSQL, MySQL and MariaDB that Django does not hide.

The rest of souvenirs calls this module, so that what each database needs can be read in one place.
(Migration 0003 decides for itself, as migrations should.)
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

UNION_LIMIT = 400  # SQLite allows 500 SELECTs in a UNION, and 500 UNIONs nested in one
MIN_CONNECT_SECONDS = 2  # libpq's minimum
SQLITE_STEPS = 10_000  # virtual machine instructions between two checks of the clock

SetLimit = Callable[[int], object]


# Transactions


def set_isolation_level(using: str, level: str) -> None:
    """Set the isolation level of a transaction that has just begun; SQLite has only one level.

    On PostgreSQL, also turn off jit compilation in it: our statements are long, but quickly done.
    """
    connection = connections[using]
    if connection.vendor == "sqlite":
        return
    jit = "; SET LOCAL jit = off" if connection.vendor == "postgresql" else ""
    with connection.cursor() as cursor:
        cursor.execute(f"SET TRANSACTION ISOLATION LEVEL {level}{jit}")


def locks_on_read(using: str) -> bool:
    """Return True if transactions that only read block others: SQLite with a transaction_mode."""
    return getattr(connections[using], "transaction_mode", None) in ("IMMEDIATE", "EXCLUSIVE")


def in_transaction(using: str) -> bool:
    """Return True if this thread is in a transaction, or has autocommit off. Does not connect."""
    connection = connections[using]
    is_connected = connection.connection is not None
    return connection.in_atomic_block or (is_connected and not connection.autocommit)


def takes_writers(using: str) -> bool:
    """Return True if an additional thread may write: not on SQLite, where a second writer makes the
    transactions of the first one fail, and not if Django does not autocommit."""
    entry = connections.settings[using]
    return bool(entry["AUTOCOMMIT"]) and _vendor(entry["ENGINE"]) != "sqlite"


@cache
def _vendor(engine: str) -> str:
    return str(load_backend(engine).DatabaseWrapper.vendor)


# Locks


def can_skip_locked(using: str) -> bool:
    """Return True if locked rows can be skipped: not before MariaDB 10.6 and MySQL 8."""
    return bool(connections[using].features.has_select_for_update_skip_locked)


@contextmanager
def failing_at_locks(using: str) -> Iterator[None]:
    """Within the block, make statements fail immediately instead of waiting for a locked row, if
    locked rows cannot be skipped: on MariaDB before 10.6."""
    connection = connections[using]
    if connection.vendor != "mysql" or can_skip_locked(using):
        yield
        return
    (before,) = execute(connection, "SELECT @@SESSION.innodb_lock_wait_timeout")
    execute(connection, "SET SESSION innodb_lock_wait_timeout = 0")
    try:
        yield
    finally:
        with suppress(DatabaseError):  # the connection may be lost
            execute(connection, f"SET SESSION innodb_lock_wait_timeout = {before}")


def lock_keys(
    model: type[models.Model],
    keys: Collection[Any],
    using: str,
    *,
    shared: bool,
    wait: bool = False,
) -> set[Any]:
    """Lock the rows with these primary keys, and return their keys.

    shared: take a shared lock, which prevents only deletion (on MySQL: any change), and which other
        transactions may take too.
    wait: for rows that others have locked, in the order of the keys. Otherwise they are skipped, if
        `can_skip_locked`.
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
        index = "FORCE INDEX (PRIMARY)"  # otherwise it may read, and lock, the whole table
        if shared:
            lock = "LOCK IN SHARE MODE" if connection.mysql_is_mariadb else "FOR SHARE"
    elif shared:
        lock = "FOR KEY SHARE"
    if wait:
        condition += f" ORDER BY {column}"  # so that two who lock several rows cannot deadlock
    elif can_skip_locked(using):
        lock += " SKIP LOCKED"
    convert = converter(key, using)
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT {column} FROM {table} {index} WHERE {condition} {lock}",  # noqa: S608
            params,
        )
        return {convert(value) for (value,) in cursor.fetchall()}


def share_name_locks(name: str, numbers: Iterable[int], using: str) -> None:
    """Hold shared locks on these numbers until the transaction ends, so that `try_name_locks` of
    other transactions fails on them. PostgreSQL only."""
    if connections[using].vendor == "postgresql":
        select = (
            "SELECT pg_advisory_xact_lock_shared(hashtext(%s), n)"
            " FROM unnest(CAST(%s AS int[])) AS n"
        )
        with connections[using].cursor() as cursor:
            cursor.execute(select, [name, sorted(numbers)])


def try_name_locks(name: str, numbers: Iterable[int], using: str) -> set[int]:
    """Try to lock these numbers until the transaction ends. Return those that were free. Databases
    other than PostgreSQL have no such locks: return all of them."""
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
    """Return True if foreign keys are checked, and referenced rows locked, only at the commit."""
    return connections[using].vendor == "postgresql"


# Many values in one statement. On PostgreSQL they are arrays of keys and numbers: with a parameter
# for each value, and times as text, the client takes three times as long.


def is_one_of(field: Any, values: Iterable[Any], using: str) -> tuple[str, list[Any]]:
    """Return a condition that the field's column has one of these values, and its parameters."""
    connection = connections[using]
    name = connection.ops.quote_name(field.column)
    params = [field.get_db_prep_value(value, connection) for value in values]
    if connection.vendor == "postgresql":
        place, array = _array(field, params, connection)
        return f"{name} = ANY({place})", [array]
    return f"{name} IN ({', '.join(['%s'] * len(params))})", params


def _array(field: Any, params: list[Any], connection: Any) -> tuple[str, list[Any]]:
    """Return a placeholder for an array of the field's type, for PostgreSQL, and its parameter. Its
    elements are wide enough for keys that do not fit the column: a truncated key would find another
    user."""
    kind = field.db_type(connection)
    if kind in ("smallint", "integer", "bigint"):
        return "CAST(%s AS bigint[])", [int(value) for value in params]  # Django's are int2, int4
    return f"CAST(%s AS {'varchar' if kind.startswith('varchar') else kind}[])", params


def insert_times(
    model: type[models.Model], names: tuple[str, str], rows: Sequence[tuple[Any, float]], using: str
) -> None:
    """Insert rows of two fields, a key and a datetime given as Unix time, in one statement."""
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
    """Set a datetime column in the rows with these ids, each to its Unix time. One statement, cheap
    for each row."""
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
        texts = {t: to_parameter(t, using) for t in set(times.values())}  # usually few
        pairs = [(id, texts[t]) for id, t in times.items()]
        if connection.vendor == "mysql" and can_skip_locked(using):
            # Start the join from the values: otherwise it may read, and lock, the whole table
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
    """Return the right side of an `__in` filter for any number of integers: a single parameter if
    the database limits the number of parameters."""
    vendor = connections[using].vendor
    if vendor == "postgresql":
        return RawSQL("SELECT unnest(CAST(%s AS bigint[]))", [list(numbers)])
    if vendor == "sqlite":
        return RawSQL("SELECT value FROM json_each(%s)", [json.dumps(list(numbers))])
    return list(numbers)


def joins_intervals(using: str) -> bool:
    """Return True if a query over many intervals should join `intervals_table` rather than be a
    UNION with a SELECT for each.

    PostgreSQL plans and compiles each SELECT of a UNION: a minute for a thousand of them. MariaDB
    would read the whole index for each interval of a join.
    """
    return connections[using].vendor == "postgresql"


def intervals_table(intervals: int) -> str:
    """Return a table i (number, first, after) of so many intervals, with three parameters each."""
    row = "(%s, CAST(%s AS timestamptz), CAST(%s AS timestamptz))"
    return f"(VALUES {', '.join([row] * intervals)}) AS i (number, first, after)"


def union_all(selects: Sequence[str]) -> str:
    """Combine any number of SELECTs in one query."""
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
    """Return True if slices of an index should be counted in one pass rather than with a range scan
    for each.

    For an index whose rows change all the time, PostgreSQL has to visit the rows of most entries.
    The other databases count from the index alone.
    """
    return connections[using].vendor == "postgresql"


def count_where(condition: str, column: str, using: str, distinct: bool = False) -> str:
    """Return an aggregate that counts the rows in which the condition holds, or the distinct values
    of the column in them. The column must not be null."""
    if connections[using].features.supports_aggregate_filter_clause:
        return f"COUNT({f'DISTINCT {column}' if distinct else '*'}) FILTER (WHERE {condition})"
    return f"COUNT({'DISTINCT ' if distinct else ''}CASE WHEN {condition} THEN {column} END)"


def deletes_beyond_snapshot(using: str) -> bool:
    """Return True if a transaction may delete rows that its SELECTs do not show: on MySQL, unless
    Django sets the isolation level to READ COMMITTED, its default. Django knows the level once it
    has connected."""
    connection = connections[using]
    level = getattr(connection, "isolation_level", None)
    return connection.vendor == "mysql" and level != "read committed"


# Rows by their keys. Given a list of keys, MySQL may read, and lock, the whole table or the index
# on another column. So these statements join from the keys, one row each. MariaDB before 10.6 has
# no JSON_TABLE, and a deadlock remains possible there.


def locks_beyond_keys(using: str) -> bool:
    """Return True if `lock_rows` is needed before rows are deleted through another index."""
    connection: Any = connections[using]
    if connection.vendor != "mysql":
        return False
    return not connection.mysql_is_mariadb or connection.mysql_version >= (10, 6)


def lock_rows(model: type[models.Model], keys: Sequence[int], using: str) -> None:
    """Lock the rows with these keys and no others. Only for databases that `locks_beyond_keys`."""
    with connections[using].cursor() as cursor:
        select = f"SELECT s.id FROM {_rows_by_key(model)} FOR UPDATE"  # noqa: S608
        cursor.execute(select, [json.dumps(keys)])
        cursor.fetchall()


def delete_rows(model: type[models.Model], keys: Sequence[int], using: str) -> None:
    """Delete the rows with these keys, without waiting for locks on other rows."""
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


# Datetimes. SQLite and MySQL store the wall time of one zone: the site's if USE_TZ is False. If
# that is not UTC, the hour that clocks repeat is a single hour in their columns.


def to_column(seconds: float, using: str) -> datetime:
    """Convert a Unix time to the datetime to pass to a DateTimeField."""
    if connections[using].features.supports_timezones:
        return timestamps.to_utc(seconds)  # PostgreSQL would ignore the fold of a naive one
    return timestamps.to_datetime(seconds)


def to_parameter(seconds: float, using: str) -> Any:
    """Convert a Unix time to the parameter of a raw statement."""
    return connections[using].ops.adapt_datetimefield_value(to_column(seconds, using))


def from_result(value: Any, field: Any, using: str) -> float | None:
    """Convert a DateTimeField's value, as a raw statement returned it, to a Unix time."""
    value = converter(field, using)(value)
    return None if value is None else timestamps.to_seconds(value)


def whole_seconds(field: Any, using: str) -> tuple[str, Callable[[Any], int | None]]:
    """Return an expression to select for a DateTimeField's floored Unix time, and a function that
    converts the result to it."""
    name = connections[using].ops.quote_name(field.column)
    if connections[using].vendor == "postgresql":
        return f"CAST(FLOOR(EXTRACT(EPOCH FROM {name})) AS bigint)", lambda seconds: seconds
    convert = converter(field, using)

    def floored(value: Any) -> int | None:
        return None if value is None else math.floor(timestamps.to_seconds(convert(value)))

    return name, floored


def converter(field: Any, using: str) -> Callable[[Any], Any]:
    """Return a function that converts a field's value, as a raw statement returned it, to what the
    ORM would return."""
    connection = connections[using]
    column = field.get_col(field.model._meta.db_table)
    steps = connection.ops.get_db_converters(column) + column.get_db_converters(connection)

    def convert(value: Any) -> Any:
        for step in steps:
            value = step(value, column, connection)
        return value

    return convert


def shown_from(t: float, using: str) -> float:
    """Return the earliest time that a column may show for an event at or after `t`."""
    hour = _repeated_hour(t, using)
    return hour.start if hour and t < hour.turn else t


def shown_until(t: float, using: str) -> float:
    """Return a time such that a column shows all events before `t` as earlier than it."""
    hour = _repeated_hour(t, using)
    return hour.end if hour and t >= hour.turn else t


def _repeated_hour(t: float, using: str) -> RepeatedHour | None:
    connection = connections[using]
    if connection.features.supports_timezones:
        return None
    return repeated_hour(t, connection.timezone or conf.zone)


def typed_datetime(using: str) -> str:
    """Return a placeholder for `to_parameter` where the database might take it for a string."""
    types = {"postgresql": "timestamptz", "mysql": "datetime(6)"}
    name = types.get(connections[using].vendor)
    return f"CAST(%s AS {name})" if name else "%s"


# Ids


def skip_ids(model: type[models.Model], until: int, using: str) -> bool:
    """Make the table assign only ids above `until` from now on. Return False where, inside a
    transaction, only inserting a row with such an id would do that: on SQLite and MySQL."""
    connection = connections[using]
    if connection.vendor != "postgresql":
        return False
    table = model._meta.db_table
    with transaction.atomic(using=using), connection.cursor() as cursor:
        # Two transactions that move the sequence at once could move it back. Rolling back to the
        # savepoint releases the lock but keeps the move, so nobody waits for a long transaction
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [table])
        cursor.execute(
            "SELECT setval(s, %s) FROM (SELECT CAST(pg_get_serial_sequence(%s, 'id') AS regclass))"
            " AS sequence (s) WHERE COALESCE(pg_sequence_last_value(s), 0) < %s",
            [until, table, until],
        )
        transaction.set_rollback(True, using=using)
    return True


# Time limits


def connect_options(connection: Any, seconds: float) -> dict[str, Any]:
    """Return the OPTIONS for a connection that must be established within `seconds`: those in
    DATABASES, with the driver's time-out if it has one. A shorter time-out in DATABASES is kept."""
    options: dict[str, Any] = connection.settings_dict["OPTIONS"]
    if connection.vendor not in ("postgresql", "mysql") or options.get("pool"):
        return options
    timeout = max(MIN_CONNECT_SECONDS, math.ceil(seconds))
    own = int(options.get("connect_timeout") or timeout)  # 0 means no time-out
    return {**options, "connect_timeout": min(own, timeout)}


@contextmanager
def statement_limit(connection: Any) -> Iterator[SetLimit]:
    """Yield a function that sets how many milliseconds each following statement may take.

    Afterwards the connection's limit is restored. On PostgreSQL it must be in a transaction.
    """
    if connection.vendor == "postgresql":
        # The limit ends with the transaction, even if a pooler then reuses the session
        yield lambda ms: execute(connection, f"SET LOCAL statement_timeout = {ms}")
    elif connection.vendor == "mysql":
        name = "max_statement_time" if connection.mysql_is_mariadb else "max_execution_time"
        unit = "/ 1000" if connection.mysql_is_mariadb else ""  # MariaDB's is in seconds
        (before,) = execute(connection, f"SELECT @@SESSION.{name}")
        try:
            yield lambda ms: execute(connection, f"SET SESSION {name} = {ms} {unit}")
        finally:
            if connection.connection is not None:
                with suppress(DatabaseError, InterfaceError):  # the connection may be lost
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
    """Run a statement without Django's execution wrappers. Return its first row if it has any."""
    with connection.wrap_database_errors, connection.connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone() if cursor.description else None
