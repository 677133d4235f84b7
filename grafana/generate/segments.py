"""The dashboard of segments and accounts, for analysts."""

from __future__ import annotations

from grafana.generate.frame import dashboard, row, variable
from grafana.generate.panels import (
    LAST_MIN_MAX,
    fixed,
    override,
    share_gauge,
    sorted_by,
    table,
    timeseries,
)
from grafana.generate.queries import Json, active, figure, now, share, targets

USERS, TO_DATE = "souvenirs_segment_active_users", "souvenirs_calendar_segment_active_users"
ACCOUNTS, ACCOUNTS_TO_DATE = "souvenirs_active_accounts", "souvenirs_calendar_active_accounts"
SEGMENT, WINDOW = 'segment="$segment"', 'window="$window"'


def segments() -> Json:
    per_value = "job, value"
    users = figure(USERS, SEGMENT, WINDOW, by=per_value)
    of_all = f"{users} / on (job) group_left () ({active('$window')} > 0)"
    return dashboard(
        "souvenirs-segments",
        "Segments of active users",
        "Active users by plan, role, or whatever SOUVENIRS_METRICS_SEGMENTS declares.",
        [
            row("Segment $segment, window $window"),
            table(
                "Now by value",
                "Users seen in the window who now have each value, their share of all users seen,"
                " and those seen in the current calendar periods. Users without a value count as"
                " none, those with an undeclared value as other.",
                now(
                    (users, ""),
                    (of_all, ""),
                    *(
                        (figure(TO_DATE, SEGMENT, f'period="{period}"', by=per_value), "")
                        for period in ("day", "week", "month", "year")
                    ),
                    format="table",
                ),
                {
                    "job": "Job",
                    "value": "Value",
                    "Value #A": "In the window",
                    "Value #B": "Share",
                    "Value #C": "Today",
                    "Value #D": "This week",
                    "Value #E": "This month",
                    "Value #F": "This year",
                },
                transformations=[sorted_by("In the window")],
                size=(24, 8),
                unit="locale",
                overrides=[
                    share_gauge("Share"),
                ],
            ),
            timeseries(
                "Active users by value",
                "Users seen in the window, stacked by the value that they had at the time. The"
                " dashed line is all users seen: if the stack is higher, some users have several"
                " values.",
                targets((users, "{{job}} {{value}}"), (active("$window"), "{{job}} all users")),
                size=(24, 9),
                unit="short",
                custom={
                    "stacking": {"mode": "normal", "group": "A"},
                    "fillOpacity": 40,
                    "lineWidth": 1,
                },
                overrides=[
                    override(
                        "byFrameRefID",
                        "B",
                        color=fixed("text"),
                        custom__stacking={"mode": "none", "group": "A"},
                        custom__fillOpacity=0,
                        custom__lineStyle={"fill": "dash", "dash": [6, 4]},
                    )
                ],
                calcs=LAST_MIN_MAX,
                beside=True,
            ),
            timeseries(
                "Share of all active users",
                "The share of users seen in the window who have each value. If users have several"
                " values, the shares add up to more than 100 %.",
                targets((of_all, "{{job}} {{value}}")),
                size=(12, 9),
                unit="percentunit",
                custom={"fillOpacity": 0},
            ),
            timeseries(
                "This month to date by value",
                "Users seen since the month began, by the value that they had at the time.",
                targets(
                    (
                        figure(TO_DATE, SEGMENT, 'period="month"', by=per_value),
                        "{{job}} {{value}}",
                    )
                ),
                size=(12, 9),
                unit="short",
                custom={"fillOpacity": 0},
            ),
            row("Accounts"),
            timeseries(
                "Active accounts by window",
                "Accounts (SOUVENIRS_METRICS_ACCOUNTS) with at least one user seen in the window.",
                targets((figure(ACCOUNTS, by="job, window"), "{{job}} {{window}}")),
                size=(8, 9),
                unit="short",
                custom={"fillOpacity": 0},
            ),
            timeseries(
                "Active accounts to date",
                "Accounts with at least one user seen since each calendar period began.",
                targets(
                    (
                        figure(ACCOUNTS_TO_DATE, 'period=~"day|week|month"', by="job, period"),
                        "{{job}} {{period}}",
                    )
                ),
                size=(8, 9),
                unit="short",
                custom={"fillOpacity": 0},
            ),
            timeseries(
                "Active users per active account",
                "The average number of users seen in the window per account with at least one."
                " Users without an account are counted too.",
                targets((share(active("$window"), figure(ACCOUNTS, WINDOW)), "{{job}}")),
                size=(8, 9),
                unit="short",
                defaults={"decimals": 1},
            ),
        ],
        [
            variable("segment", "Segment", f'label_values({USERS}{{job=~"$job"}}, segment)'),
            variable(
                "window", "Window", f'label_values({USERS}{{job=~"$job"}}, window)', current="30d"
            ),
        ],
    )
