"""`with_last_seen` adds a column like `last_login`, which is the oracle here: both have the same
times, and every operation of Django gives the same result with both."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from django.conf import settings
from django.db.models import (
    Avg,
    Case,
    Count,
    DateTimeField,
    DurationField,
    ExpressionWrapper,
    F,
    Max,
    Min,
    OuterRef,
    Q,
    QuerySet,
    Subquery,
    Value,
    When,
)
from django.db.models.functions import Coalesce, ExtractYear, Greatest, Now, TruncHour, TruncMonth
from django.utils import timezone as django_timezone

from souvenirs.control import souvenez, with_last_seen
from souvenirs.models import LastSeen
from tests.people import User, ours, site, with_databases

pytestmark = [
    with_databases,
    pytest.mark.where("routed" not in settings.SHAPE),
    pytest.mark.where(any(field.name == "last_login" for field in User._meta.get_fields())),
]

YEAR = timedelta(days=365)
AGES = {"ada": 500, "bob": 400, "eve": 2, "joe": 1}  # days ago; "zoe" was never seen


@pytest.fixture
def now() -> datetime:
    """Real time, because the database's Now() is real, and ages count from there."""
    return datetime.now(timezone.utc).replace(microsecond=0)


@pytest.fixture
def users(now: datetime) -> QuerySet[Any]:
    for name, days in {**AGES, "zoe": None}.items():
        seen = None if days is None else site(now - timedelta(days=days))
        user = User.objects.create(username=name, last_login=seen)
        if seen is not None:
            souvenez(user, when=seen)
    # An annotation for both, because negated, annotations treat NULL differently from columns
    people = User.objects.annotate(login=F("last_login"))
    return with_last_seen(people.order_by("username"))


def test_with_last_seen__inactive_accounts_can_be_deleted(users: QuerySet[Any]) -> None:
    users.filter(last_seen__lt=Now() - YEAR).delete()
    assert list(User.objects.order_by("username").values_list("username", flat=True)) == [
        "eve",
        "joe",
        "zoe",
    ]


def test_with_last_seen__inactive_accounts_can_be_updated(users: QuerySet[Any]) -> None:
    assert users.filter(last_seen__lt=Now() - YEAR).update(password="!") == 2
    assert users.filter(password="!").count() == 2


FILTERS: dict[str, Callable[[str, datetime], Any]] = {
    "lt expression": lambda name, now: Q(**{f"{name}__lt": Now() - YEAR}),
    "gte expression": lambda name, now: Q(**{f"{name}__gte": Now() - timedelta(days=1, hours=12)}),
    "gt datetime": lambda name, now: Q(**{f"{name}__gt": site(now - timedelta(days=400))}),
    "exact": lambda name, now: Q(**{name: site(now - timedelta(days=2))}),
    "in": lambda name, now: Q(**{f"{name}__in": [site(now - timedelta(days=d)) for d in (1, 2)]}),
    "range": lambda name, now: Q(**{f"{name}__range": (site(now - 2 * YEAR), site(now - YEAR))}),
    "range of expressions": lambda name, now: Q(**{f"{name}__range": (Now() - 2 * YEAR, Now())}),
    "isnull": lambda name, now: Q(**{f"{name}__isnull": True}),
    "date": lambda name, now: Q(**{f"{name}__date": (now - timedelta(days=2)).date()}),
    "year": lambda name, now: Q(**{f"{name}__year": (now - timedelta(days=500)).year}),
    "hour": lambda name, now: Q(**{f"{name}__hour__gte": 0}),
    "compared with a column": lambda name, now: Q(**{"date_joined__gt": F(name)}),
    "a column compared": lambda name, now: Q(**{f"{name}__lt": F("date_joined") - YEAR}),
    "negated": lambda name, now: ~Q(**{f"{name}__lt": Now() - YEAR}),
}


@pytest.mark.parametrize("condition", FILTERS.values(), ids=FILTERS)
@pytest.mark.where(any(field.name == "date_joined" for field in User._meta.get_fields()))
def test_with_last_seen__is_filtered_like_last_login(
    users: QuerySet[Any], now: datetime, condition: Callable[[str, datetime], Any]
) -> None:
    with django_timezone.override(timezone.utc):
        found = [
            list(users.filter(condition(name, now)).values_list("username", flat=True))
            for name in ("login", "last_seen")
        ]
        excluded = [
            list(users.exclude(condition(name, now)).values_list("username", flat=True))
            for name in ("login", "last_seen")
        ]
    assert found[0] == found[1]
    assert excluded[0] == excluded[1]
    assert found[0] + excluded[0], "the oracle would prove nothing"


EXPRESSIONS: dict[str, Callable[[str], Any]] = {
    "itself": F,
    "sum": lambda name: ExpressionWrapper(F(name) + YEAR, DateTimeField()),
    "age": lambda name: ExpressionWrapper(Value(site(OLD)) - F(name), DurationField()),
    "coalesced": lambda name: Coalesce(name, Now()),
    "greatest": lambda name: Greatest(name, Value(site(OLD), DateTimeField())),
    "month": TruncMonth,
    "hour": TruncHour,
    "year": ExtractYear,
    "case": lambda name: Case(
        When(**{f"{name}__lt": Now() - YEAR}, then=Value("gone")), default=Value("here")
    ),
}
OLD = datetime(2020, 2, 29, 12, tzinfo=timezone.utc)


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_with_last_seen__is_computed_with_like_last_login(
    users: QuerySet[Any], expression: Callable[[str], Any]
) -> None:
    # MySQL needs time zone tables for these, even with NULL
    if expression in (TruncMonth, TruncHour):
        users = users.exclude(last_seen=None)
    with django_timezone.override(timezone.utc):
        pairs = users.annotate(a=expression("last_login"), b=expression("last_seen"))
        values = list(pairs.values_list("a", "b"))
    assert [a for a, _ in values] == [b for _, b in values]
    assert len({a for a, _ in values}) > 1


@pytest.mark.parametrize("aggregate", [Min, Max, Count, Avg])
def test_with_last_seen__is_aggregated_like_last_login(
    users: QuerySet[Any], aggregate: Any
) -> None:
    if aggregate is Avg:
        ages = users.annotate(
            a=ExpressionWrapper(Value(site(OLD)) - F("last_login"), DurationField()),
            b=ExpressionWrapper(Value(site(OLD)) - F("last_seen"), DurationField()),
        )
        assert ages.aggregate(x=Avg("a"))["x"] == ages.aggregate(x=Avg("b"))["x"]
        return
    totals = users.aggregate(a=aggregate("last_login"), b=aggregate("last_seen"))
    assert totals["a"] == totals["b"]
    assert totals["a"] is not None


@pytest.mark.parametrize("order", ["{}", "-{}", "nulls first", "nulls last"])
def test_with_last_seen__orders_like_last_login(users: QuerySet[Any], order: str) -> None:
    def names(column: str) -> list[str]:
        by: Any = order.format(column)
        if order.startswith("nulls"):
            by = F(column).asc(**{order.replace(" ", "_"): True})
        return list(users.order_by(by).values_list("username", flat=True))

    assert names("last_seen") == names("last_login")


def test_with_last_seen__groups_and_nests_like_last_login(users: QuerySet[Any]) -> None:
    with django_timezone.override(timezone.utc):
        a, b = (
            list(
                users.order_by()
                .annotate(year=ExtractYear(column))
                .values("year")
                .annotate(number=Count("pk"))
                .order_by("year")
                .values_list("year", "number")
            )
            for column in ("last_login", "last_seen")
        )
    assert a == b
    inner = users.filter(pk=OuterRef("pk"), last_seen__lt=Now() - YEAR).values("last_seen")[:1]
    rows = User.objects.annotate(x=Subquery(inner)).exclude(x=None)
    assert set(rows.values_list("username", flat=True)) == {"ada", "bob"}
    assert users.exclude(last_seen=None).latest("last_seen").username == "joe"
    assert users.exclude(last_seen=None).earliest("last_seen").username == "ada"


def test_with_last_seen__reads_the_index(now: datetime) -> None:
    people = User.objects.bulk_create(User(username=f"u{n}", last_login=None) for n in range(3_000))
    people = User.objects.order_by("username")
    LastSeen.objects.bulk_create(
        LastSeen(user_id=user.pk, seen=site(now - timedelta(hours=n)))
        for n, user in enumerate(people)
    )
    rows = with_last_seen(User.objects.all()).filter(last_seen__gte=Now() - timedelta(hours=5))
    tables = ", ".join((User._meta.db_table, LastSeen._meta.db_table))
    with ours().cursor() as cursor:
        if ours().vendor == "mysql":
            cursor.execute(f"ANALYZE TABLE {tables}")
            cursor.fetchall()
        else:
            cursor.execute(f"ANALYZE {tables}" if ours().vendor == "postgresql" else "ANALYZE")
    plan = rows.explain()
    index = next(i for i in constraints() if "_seen" in i and "uniq" not in i)
    assert index in plan, plan


def constraints() -> dict[str, Any]:
    with ours().cursor() as cursor:
        found = ours().introspection.get_constraints(cursor, LastSeen._meta.db_table)
    return {name: each for name, each in found.items() if each["columns"] == ["seen"]}
