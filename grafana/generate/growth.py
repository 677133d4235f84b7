"""The dashboard of growth and retention, for analysts."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from grafana.generate.frame import dashboard, row, row_of_each_job
from grafana.generate.panels import (
    bar_gauge,
    bars,
    curve,
    fixed,
    override,
    stat,
    steps,
    timeseries,
)
from grafana.generate.queries import Json, figure, now, per_month, per_week, share, targets

GROWTH = "souvenirs_previous_calendar_growth_users"
COHORT, RETAINED = "souvenirs_retention_cohort_users", "souvenirs_retention_retained_users"
ACTIVE_DAYS = "souvenirs_active_days"
COLORS = {"new": "green", "resurrected": "purple", "retained": "blue", "churned": "red"}
# The highest number of days in each bar: the histogram's le
DAYS = ("1.0", "2.0", "3.0", "5.0", "7.0", "10.0", "14.0", "21.0", "28.0")
# What panels of weeks and months show, unless an absolute time is chosen
WEEKS: Json = {"timeFrom": "26w", "interval": "1w"}
MONTHS: Json = {"timeFrom": "1y", "interval": "1d"}
Query = Callable[..., str]  # figure, per_week or per_month


def change(name: str, period: str = "week", query: Query = figure) -> str:
    return query(GROWTH, f'period="{period}"', f'change="{name}"')


def net_growth(period: str = "week", query: Query = figure) -> str:
    new, resurrected, churned = (
        change(name, period, query) for name in ("new", "resurrected", "churned")
    )
    return f"{new} + {resurrected} - {churned}"


def quick_ratio(period: str = "week", query: Query = figure) -> str:
    # In parentheses, because queries of months contain `and`
    new, resurrected, churned = (
        f"({change(name, period, query)})" for name in ("new", "resurrected", "churned")
    )
    return share(f"({new} + {resurrected})", churned)


def retention(period: str, ages: str, cohorts: str = "") -> str:
    """The share of each newest cohort of these ages that was active in the last period.

    cohorts: the range of a subquery, to combine several cohorts, which reduces random variation.
    """
    matchers = f'period="{period}"', f'age=~"{ages}"'
    retained, cohort = (figure(name, *matchers, by="job, age") for name in (RETAINED, COHORT))
    if cohorts:
        retained, cohort = (f"sum_over_time({each}{cohorts})" for each in (retained, cohort))
    return share(retained, cohort)


def up_to(days: str) -> str:
    return figure(f"{ACTIVE_DAYS}_bucket", f'le="{days}"')


def days_active() -> list[tuple[str, str]]:
    """Pairs of a query for the users in each bar of the distribution, and the bar's name."""
    queries = [(up_to(DAYS[0]), "1 day")]
    for before, last in pairwise(DAYS):
        first, end = int(float(before)) + 1, int(float(last))
        name = f"{end} days" if first == end else f"{first}-{end} days"
        queries.append((f"{up_to(last)} - {up_to(before)}", name))
    return queries


def average_days() -> str:
    return share(figure(f"{ACTIVE_DAYS}_gsum"), figure(f"{ACTIVE_DAYS}_gcount"))


def daily_share() -> str:
    users = figure(f"{ACTIVE_DAYS}_gcount")
    return share(f"({users} - {up_to('21.0')})", users)


def growth_bars(period: str, query: Query, time_range: Json, appears: str) -> Json:
    """Users of the period are stacked above the axis, those who churned below it."""
    up = ("retained", "resurrected", "new")
    return bars(
        f"Growth by {period}",
        f"Users of each {period}: new, active in the {period} before too (retained), or back after"
        f" a longer absence (resurrected). Below 0: users of the {period} before who did not come"
        f" back (churned). The bar of a {period} is drawn at its middle, and appears {appears}.",
        targets(
            *((change(name, period, query), name) for name in up),
            (f"-({change('churned', period, query)})", "churned"),
            interval=time_range["interval"],
        ),
        size=(12, 9),
        custom={"stacking": {"mode": "normal", "group": "A"}},
        overrides=[override("byName", name, color=fixed(color)) for name, color in COLORS.items()],
        defaults={"min": None},
        timeFrom=time_range["timeFrom"],
    )


def growth() -> Json:
    return dashboard(
        "souvenirs-growth",
        "Growth and retention",
        "Which users are new, stay, leave and come back, by complete days, weeks and months.",
        [
            row("Last complete week"),
            stat(
                "New users",
                "Users who were active for the first time in the last complete week.",
                now((change("new"), "{{job}}")),
                size=(4, 5),
                unit="locale",
                defaults={"color": fixed("green")},
            ),
            stat(
                "Net growth",
                "How many more users the last complete week had than the week before: new and"
                " resurrected users minus churned users.",
                now((net_growth(), "{{job}}")),
                size=(4, 5),
                unit="locale",
                defaults={"min": None, **steps((None, "red"), (0, "green"))},
            ),
            stat(
                "Quick ratio",
                "Users won (new and resurrected) per user lost (churned) in the last complete week."
                " Below 1, the site is shrinking.",
                now((quick_ratio(), "{{job}}")),
                size=(4, 5),
                unit="none",
                defaults={"decimals": 2, **steps((None, "red"), (1, "green"))},
            ),
            stat(
                "Back in the next week",
                "The share of users who were new in the week before the last complete one and came"
                " back in the last one.",
                now((retention("week", "1"), "{{job}}")),
                size=(4, 5),
                unit="percentunit",
                defaults={"decimals": 0, "color": fixed("blue")},
            ),
            stat(
                "Average active days",
                "On how many of the last 28 complete days users were active, on average over users"
                " who were active at all.",
                now((average_days(), "{{job}}")),
                size=(4, 5),
                unit="none",
                defaults={"decimals": 1, "color": fixed("blue")},
            ),
            stat(
                "Daily users",
                "The share of users of the last 28 complete days who were active on at least 22 of"
                " these days.",
                now((daily_share(), "{{job}}")),
                size=(4, 5),
                unit="percentunit",
                defaults={"decimals": 0, "color": fixed("blue")},
            ),
            row_of_each_job("Growth"),
            growth_bars("week", per_week, WEEKS, "on the Tuesday after it"),
            growth_bars("month", per_month, MONTHS, "on the second day after it"),
            bars(
                "Net growth by week",
                "How many more users each week had than the week before. Negative if it had fewer.",
                targets((net_growth(query=per_week), "net growth"), interval=WEEKS["interval"]),
                size=(8, 8),
                defaults={"min": None, **steps((None, "red"), (0, "green"))},
                custom={"gradientMode": "scheme"},
                timeFrom=WEEKS["timeFrom"],
            ),
            timeseries(
                "Quick ratio by week",
                "Users won (new and resurrected) per user lost (churned). Below 1, the site is"
                " shrinking.",
                targets((quick_ratio(query=per_week), "quick ratio"), interval=WEEKS["interval"]),
                size=(8, 8),
                unit="none",
                custom={
                    "showPoints": "always",
                    "fillOpacity": 0,
                    "thresholdsStyle": {"mode": "line"},
                },
                defaults={
                    "decimals": 2,
                    **steps((None, "transparent"), (1, "red")),
                    "color": fixed("blue"),
                },
                timeFrom=WEEKS["timeFrom"],
            ),
            bars(
                "New users and new accounts by week",
                "Users who were active for the first time, and the increase in accounts since the"
                " week before. If there are far fewer new users than new accounts, people sign up"
                " but never use the site. Deleted accounts are subtracted from new ones.",
                targets(
                    (change("new", query=per_week), "new users"),
                    (
                        per_week("souvenirs_registered_users", offset="-4d")
                        + " - "
                        + per_week("souvenirs_registered_users", offset="3d"),
                        "new accounts",
                    ),
                    interval=WEEKS["interval"],
                ),
                size=(8, 8),
                defaults={"min": None},
                overrides=[
                    override("byName", "new users", color=fixed("green")),
                    override(
                        "byName",
                        "new accounts",
                        color=fixed("gray"),
                        custom__drawStyle="line",
                        custom__fillOpacity=0,
                        custom__lineWidth=2,
                        custom__showPoints="always",
                    ),
                ],
                timeFrom=WEEKS["timeFrom"],
            ),
            row_of_each_job("Retention"),
            curve(
                "Weekly retention curve",
                "The share of users who were active again a given number of weeks after the week in"
                " which they were new. Each line combines four complete weeks: the last four, and"
                " those that ended 4 and 12 weeks ago. Each point is about different users. If the"
                " curve flattens out, some users stay.",
                now(
                    *(
                        (retention("week", ".+", f"[4w:1w]{offset}"), "")
                        for offset in ("", " offset 4w", " offset 12w")
                    ),
                    format="table",
                ),
                x="age",
                size=(12, 9),
                unit="percentunit",
                custom={"showPoints": "always", "fillOpacity": 0},
                overrides=[
                    override("byName", "age", unit="none", decimals=0, displayName="weeks"),
                    override(
                        "byRegexp",
                        "/^Value( #A)?$/",
                        displayName="now",
                        color=fixed("blue"),
                        custom__fillOpacity=10,
                    ),
                    override(
                        "byName",
                        "Value #B",
                        displayName="4 weeks ago",
                        color=fixed("semi-dark-orange"),
                        custom__lineWidth=1,
                    ),
                    override(
                        "byName",
                        "Value #C",
                        displayName="12 weeks ago",
                        color=fixed("gray"),
                        custom__lineWidth=1,
                    ),
                ],
            ),
            timeseries(
                "Weekly retention over time",
                "The shares of users who were active 1, 2, 4, 8 and 12 weeks after the week in"
                " which they were new. Each point combines the last four complete weeks at the"
                " time.",
                targets(
                    *(
                        (retention("week", age, "[4w:1w]"), f"week {age}")
                        for age in ("1", "2", "4", "8", "12")
                    ),
                    interval=WEEKS["interval"],
                ),
                size=(12, 9),
                unit="percentunit",
                custom={"fillOpacity": 0},
                timeFrom=WEEKS["timeFrom"],
            ),
            timeseries(
                "Daily retention over time",
                "The shares of users who were active 1, 7 and 28 days after the day on which they"
                " were new. Each point combines the last seven complete days at the time.",
                targets(
                    *((retention("day", age, "[7d:1d]"), f"day {age}") for age in ("1", "7", "28")),
                    interval="1d",
                ),
                size=(12, 8),
                unit="percentunit",
                custom={"fillOpacity": 0},
                timeFrom=WEEKS["timeFrom"],
            ),
            timeseries(
                "Monthly retention over time",
                "The shares of users who were active 1, 2, 3, 6 and 12 months after the month in"
                " which they were new, as of the last complete month at the time.",
                targets((retention("month", "1|2|3|6|12"), "month {{age}}")),
                size=(12, 8),
                unit="percentunit",
                custom={"lineInterpolation": "stepAfter", "fillOpacity": 0},
                timeFrom=MONTHS["timeFrom"],
            ),
            row_of_each_job("Active days"),
            bar_gauge(
                "Users by active days",
                "Users of the last 28 complete days, by the number of days on which they were"
                " active. Users who come on every working day have 20.",
                now(*days_active()),
                size=(8, 9),
                unit="short",
                defaults={"color": fixed("blue")},
            ),
            timeseries(
                "Average active days over time",
                "On how many of 28 days users were active, on average over users who were active at"
                " all. Divided by 28, this is the stickiness: an average day's users as a share of"
                " the users of four weeks.",
                targets((average_days(), "average")),
                size=(8, 9),
                unit="none",
                custom={"lineInterpolation": "stepAfter"},
                timeFrom=WEEKS["timeFrom"],
            ),
            timeseries(
                "Daily users over time",
                "The share of users of 28 days who were active on at least 22 of these days.",
                targets((daily_share(), "daily users")),
                size=(8, 9),
                unit="percentunit",
                custom={"lineInterpolation": "stepAfter"},
                timeFrom=WEEKS["timeFrom"],
            ),
        ],
        since="now-26w",
    )
