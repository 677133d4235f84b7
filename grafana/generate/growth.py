"""Who comes, stays, leaves and returns: for analysts."""

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
from grafana.generate.queries import Json, figure, now, of_months, of_weeks, share, targets

GROWTH = "souvenirs_previous_calendar_growth_users"
COHORT, RETAINED = "souvenirs_retention_cohort_users", "souvenirs_retention_retained_users"
ACTIVE_DAYS = "souvenirs_active_days"
COLORS = {"new": "green", "resurrected": "purple", "retained": "blue", "churned": "red"}
# The last of the days of each bar; le of the histogram
DAYS = ("1.0", "2.0", "3.0", "5.0", "7.0", "10.0", "14.0", "21.0", "28.0")
# What panels of weeks and months show, unless an absolute time is chosen
WEEKS: Json = {"timeFrom": "26w", "interval": "1w"}
MONTHS: Json = {"timeFrom": "1y", "interval": "1d"}
Of = Callable[..., str]


def change(name: str, period: str = "week", of: Of = figure) -> str:
    return of(GROWTH, f'period="{period}"', f'change="{name}"')


def net_growth(period: str = "week", of: Of = figure) -> str:
    new, resurrected, churned = (
        change(name, period, of) for name in ("new", "resurrected", "churned")
    )
    return f"{new} + {resurrected} - {churned}"


def quick_ratio(period: str = "week", of: Of = figure) -> str:
    """Parentheses, as months have a condition."""
    new, resurrected, churned = (
        f"({change(name, period, of)})" for name in ("new", "resurrected", "churned")
    )
    return share(f"({new} + {resurrected})", churned)


def retention(period: str, ages: str, cohorts: str = "") -> str:
    """Of the newest cohorts of these ages, the shares that were active in the last period; or with
    a subquery's range, of several `cohorts` together, which are less at the mercy of chance."""
    matchers = f'period="{period}"', f'age=~"{ages}"'
    retained, cohort = (figure(name, *matchers, by="job, age") for name in (RETAINED, COHORT))
    if cohorts:
        retained, cohort = (f"sum_over_time({each}{cohorts})" for each in (retained, cohort))
    return share(retained, cohort)


def up_to(days: str) -> str:
    return figure(f"{ACTIVE_DAYS}_bucket", f'le="{days}"')


def days_active() -> list[tuple[str, str]]:
    """The users of each bar of the distribution, and its name."""
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


def growth_bars(period: str, of: Of, when: Json, appears: str) -> Json:
    """Up go the users of the period, down those who came in the one before, and not in it."""
    up = ("retained", "resurrected", "new")
    return bars(
        f"Growth by {period}",
        f"Users of each {period}: new ones, those who were there in the {period} before too"
        " (retained), and those who came back after a longer time (resurrected). Below 0, those of"
        f" the {period} before who did not come (churned). The bar of a {period} stands in its"
        f" middle, and appears {appears}.",
        targets(
            *((change(name, period, of), name) for name in up),
            (f"-({change('churned', period, of)})", "churned"),
            interval=when["interval"],
        ),
        size=(12, 9),
        custom={"stacking": {"mode": "normal", "group": "A"}},
        overrides=[override("byName", name, color=fixed(color)) for name, color in COLORS.items()],
        defaults={"min": None},
        timeFrom=when["timeFrom"],
    )


def growth() -> Json:
    return dashboard(
        "souvenirs-growth",
        "Growth and retention",
        "Who comes for the first time, stays, leaves and returns: complete days, weeks and months.",
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
                "By how many users the last complete week had more than the one before: new and"
                " resurrected users, less those who churned.",
                now((net_growth(), "{{job}}")),
                size=(4, 5),
                unit="locale",
                defaults={"min": None, **steps((None, "red"), (0, "green"))},
            ),
            stat(
                "Quick ratio",
                "Users won (new and resurrected) for each user lost (churned) in the last complete"
                " week. Below 1, the site shrinks.",
                now((quick_ratio(), "{{job}}")),
                size=(4, 5),
                unit="none",
                defaults={"decimals": 2, **steps((None, "red"), (1, "green"))},
            ),
            stat(
                "Back in the next week",
                "Of the users who were new in the week before the last complete one, the share that"
                " came in the last one too.",
                now((retention("week", "1"), "{{job}}")),
                size=(4, 5),
                unit="percentunit",
                defaults={"decimals": 0, "color": fixed("blue")},
            ),
            stat(
                "Average active days",
                "On how many of the last 28 complete days a user was active, of those who were"
                " active at all.",
                now((average_days(), "{{job}}")),
                size=(4, 5),
                unit="none",
                defaults={"decimals": 1, "color": fixed("blue")},
            ),
            stat(
                "Daily users",
                "The share of the users of the last 28 complete days who were active on 22 of them"
                " or more.",
                now((daily_share(), "{{job}}")),
                size=(4, 5),
                unit="percentunit",
                defaults={"decimals": 0, "color": fixed("blue")},
            ),
            row_of_each_job("Growth"),
            growth_bars("week", of_weeks, WEEKS, "on the Tuesday after it"),
            growth_bars("month", of_months, MONTHS, "on the second day after it"),
            bars(
                "Net growth by week",
                "By how many users each week had more than the one before, or fewer.",
                targets((net_growth(of=of_weeks), "net growth"), interval=WEEKS["interval"]),
                size=(8, 8),
                defaults={"min": None, **steps((None, "red"), (0, "green"))},
                custom={"gradientMode": "scheme"},
                timeFrom=WEEKS["timeFrom"],
            ),
            timeseries(
                "Quick ratio by week",
                "Users won (new and resurrected) for each user lost (churned). Below 1, the site"
                " shrinks.",
                targets((quick_ratio(of=of_weeks), "quick ratio"), interval=WEEKS["interval"]),
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
                "Users who were active for the first time, and by how many accounts there are more"
                " than a week before. Far fewer users than accounts: who signs up does not stay to"
                " look. Deleted accounts count against new ones.",
                targets(
                    (change("new", of=of_weeks), "new users"),
                    (
                        of_weeks("souvenirs_registered_users", offset="-4d")
                        + " - "
                        + of_weeks("souvenirs_registered_users", offset="3d"),
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
                "Retention by weeks since the first",
                "Of the users who were new so many weeks before a complete one, the share that was"
                " active in it; of the last four weeks together, and of the four weeks that ended 4"
                " and 12 weeks ago. Each point is of other users. A curve that becomes flat has"
                " users who stay.",
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
                "Of the users who were new 1, 2, 4, 8 and 12 weeks before a complete one, the"
                " shares that were active in it; of the four weeks before each time together.",
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
                "Of the users who were new 1, 7 and 28 days before a complete one, the shares that"
                " were active on it; of the seven days before each time together.",
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
                "Of the users who were new 1, 2, 3, 6 and 12 months before, the shares that were"
                " active in the last complete month of each time.",
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
                " active. People who come on every working day have 20.",
                now(*days_active()),
                size=(8, 9),
                unit="short",
                defaults={"color": fixed("blue")},
            ),
            timeseries(
                "Average active days over time",
                "On how many of 28 days a user was active, of those who were active at all. Divided"
                " by 28 it is the stickiness: a day's users as a share of four weeks' ones.",
                targets((average_days(), "average")),
                size=(8, 9),
                unit="none",
                custom={"lineInterpolation": "stepAfter"},
                timeFrom=WEEKS["timeFrom"],
            ),
            timeseries(
                "Daily users over time",
                "The share of the users of 28 days who were active on 22 of them or more.",
                targets((daily_share(), "daily users")),
                size=(8, 9),
                unit="percentunit",
                custom={"lineInterpolation": "stepAfter"},
                timeFrom=WEEKS["timeFrom"],
            ),
        ],
        since="now-26w",
    )
