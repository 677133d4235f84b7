"""The dashboard of active users, for analysts."""

from __future__ import annotations

from grafana.generate.frame import alerts_firing, dashboard, figures_age, parts_read, row
from grafana.generate.panels import (
    LAST_MIN_MAX,
    WEEK,
    fixed,
    mapping,
    override,
    share_gauge,
    sorted_by,
    stat,
    steps,
    table,
    timeline,
    timeseries,
)
from grafana.generate.queries import ALERTS_OVER_TIME, Json, active, figure, now, share, targets


def active_users() -> Json:
    per_period = "job, period"
    began = "souvenirs_calendar_period_start_timestamp_seconds"
    to_date = figure("souvenirs_calendar_active_users", by=per_period)
    previous = figure("souvenirs_previous_calendar_active_users", by=per_period)
    windows = {"1h": "hour", "1d": "day", "7d": "7 days", "30d": "30 days"}
    return dashboard(
        "souvenirs-active-users",
        "Active users",
        "How many users are active now, over time, and by day, week and month.",
        [
            row("Now"),
            *(
                stat(
                    f"Active in the last {words}",
                    f"Users seen in the last {words}. The graph shows this number over the last"
                    " week, and the percentage its change in that week.",
                    targets((active(window), "{{job}}")),
                    size=(4, 5),
                    unit="locale",
                    week=True,
                    defaults={"color": fixed("blue")},
                )
                for window, words in windows.items()
            ),
            figures_age((4, 5)),
            alerts_firing((4, 5)),
            row("Rolling windows"),
            timeseries(
                "Active users by window",
                "Users seen in the rolling window that ends at each point in time.",
                targets((figure("souvenirs_active_users", by="job, window"), "{{job}} {{window}}")),
                size=(24, 9),
                unit="short",
                calcs=LAST_MIN_MAX,
                beside=True,
            ),
            *(
                timeseries(
                    f"Last {windows[window]}, week over week",
                    f"The {window} window over the last 7 days, compared with each of the three"
                    " weeks before.",
                    targets(
                        (active(window), "{{job}} this week"),
                        (active(window, " offset 1w"), "{{job}} 1 week before"),
                        (active(window, " offset 2w"), "{{job}} 2 weeks before"),
                        (active(window, " offset 3w"), "{{job}} 3 weeks before"),
                    ),
                    size=(12, 9),
                    unit="short",
                    custom={"fillOpacity": 0, "lineWidth": 1},
                    overrides=[
                        override("byFrameRefID", "A", custom__lineWidth=2, custom__fillOpacity=12),
                        override("byFrameRefID", "B", color=fixed("semi-dark-orange")),
                        override("byFrameRefID", "C", color=fixed("semi-dark-purple")),
                        override("byFrameRefID", "D", color=fixed("gray")),
                    ],
                    **WEEK,
                )
                for window in ("1h", "1d")
            ),
            row("Calendar periods"),
            table(
                "To date and last complete period",
                "Users seen since each current period began, and in the period before it. There is"
                " no figure for a period that began before the first record, or that is not rolled"
                " up yet.",
                now(
                    (f"1000 * {figure(began, by=per_period)}", ""),
                    (to_date, ""),
                    (previous, ""),
                    (share(to_date, previous), ""),
                    format="table",
                ),
                {
                    "job": "Job",
                    "period": "Period",
                    "Value #A": "Began",
                    "Value #B": "To date",
                    "Value #C": "Last complete",
                    "Value #D": "Of last complete",
                },
                transformations=[sorted_by("Began")],
                size=(24, 7),
                unit="locale",
                overrides=[
                    override("byName", "Began", unit="dateTimeAsIso"),
                    share_gauge("Of last complete"),
                ],
            ),
            *(
                timeseries(
                    f"{period.capitalize()} to date",
                    f"Users seen since the {period} began, compared with the last complete"
                    f" {period}." + (" Always shows the last 7 days." if period == "day" else ""),
                    targets(
                        (
                            figure("souvenirs_calendar_active_users", f'period="{period}"'),
                            "{{job}} to date",
                        ),
                        (
                            figure(
                                "souvenirs_previous_calendar_active_users", f'period="{period}"'
                            ),
                            "{{job}} last complete",
                        ),
                    ),
                    size=(8, 8),
                    unit="short",
                    overrides=[
                        override(
                            "byFrameRefID",
                            "B",
                            custom__lineStyle={"fill": "dash", "dash": [6, 4]},
                            custom__lineWidth=1,
                            custom__fillOpacity=0,
                        )
                    ],
                    **(WEEK if period == "day" else {}),
                )
                for period in ("day", "week", "month")
            ),
            row("Accounts"),
            timeseries(
                "Stickiness",
                "Users of the last day as a share of those of the last 30 days: how many of a"
                " month's users are active on a given day.",
                targets((share(active("1d"), active("30d")), "{{job}}")),
                size=(12, 8),
                unit="percentunit",
            ),
            timeseries(
                "Registered, activated, active",
                "All accounts, accounts that may sign in (is_active), and users seen in the last"
                " 30 days.",
                targets(
                    (figure("souvenirs_registered_users"), "{{job}} registered"),
                    (figure("souvenirs_activated_users"), "{{job}} activated"),
                    (active("30d"), "{{job}} active in 30 days"),
                ),
                size=(12, 8),
                unit="short",
                custom={"fillOpacity": 0},
            ),
            row("Alerts and gaps"),
            timeline(
                "Alerts over time",
                "The times at which each of the Souvenirs alerts fired.",
                targets(
                    (
                        ALERTS_OVER_TIME,
                        "{{alertname}} {{job}}",
                    )
                ),
                size=(24, 5),
                defaults={
                    "noValue": "No alert has fired",
                    **steps((None, "red")),
                    **mapping(_1=("Firing", "red")),
                },
            ),
            parts_read((24, 7), by="job, part"),
        ],
    )
