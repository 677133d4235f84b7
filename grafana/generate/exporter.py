"""The dashboard of scrapes, collections and recording, for operators."""

from __future__ import annotations

from grafana.generate.frame import alerts_firing, dashboard, figures_age, parts_read, row
from grafana.generate.panels import (
    LAST_MEAN_MAX,
    fixed,
    mapping,
    override,
    stat,
    steps,
    table,
    timeline,
    timeseries,
)
from grafana.generate.queries import Json, age, figure, now, select, share, targets, visits


def exporter() -> Json:
    instances = "{{job}} {{instance}}"
    per_instance = "job, instance"
    duration, lag = "souvenirs_collection_duration_seconds", "souvenirs_rollup_lag_seconds"
    failed = select("souvenirs_records_total", 'result="failed"', suffix="[1h]")
    limited = visits('result="rate_limited"')
    results = {
        "rate_limited": "blue",
        "added": "green",
        "duplicated": "yellow",
        "skipped": "purple",
        "failed": "red",
    }
    scraped = select("up", suffix="[$__rate_interval]")
    complete = select("souvenirs_up", suffix="[$__rate_interval]")
    slowest = select(duration, suffix="[$__rate_interval]")
    part = select("souvenirs_collection_part_duration_seconds", suffix="[$__rate_interval]")
    return dashboard(
        "souvenirs-exporter",
        "Souvenirs exporter",
        "Whether the figures are complete and up to date, and what collecting them costs.",
        [
            row("Now"),
            stat(
                "Collection",
                "Complete if the last collection could read every figure. If it is incomplete, the"
                " log of the site or the exporter has the cause.",
                now((figure("souvenirs_up"), "{{job}}")),
                size=(4, 5),
                unit="none",
                defaults={
                    "noValue": "Not scraped",
                    **steps((None, "red"), (1, "green")),
                    **mapping(_0=("Incomplete", "red"), _1=("Complete", "green")),
                },
            ),
            figures_age((4, 5)),
            stat(
                "Collection time",
                "How long the last collection took, which is about what a scrape costs the"
                " database.",
                now((figure(duration), "{{job}}")),
                size=(4, 5),
                unit="s",
                defaults=steps((None, "green"), (1, "orange"), (5, "red")),
            ),
            stat(
                "Roll-up lag",
                "Time since the end of the oldest quarter of an hour that is due to be rolled up."
                " If it keeps growing, run manage.py rollup_souvenirs.",
                now((figure(lag), "{{job}}")),
                size=(4, 5),
                unit="s",
                defaults={
                    "decimals": 0,
                    **steps((None, "green"), (3_600, "orange"), (7_200, "red")),
                },
            ),
            stat(
                "Failures in the last hour",
                "Visits of signed-in users that could not be recorded.",
                now((f"sum by (job) (increase({failed}))", "{{job}}")),
                size=(4, 5),
                unit="short",
                defaults={"decimals": 0, **steps((None, "green"), (1, "red"))},
            ),
            alerts_firing((4, 5)),
            row("Collections"),
            timeline(
                "Scrapes and collections",
                "Whether each instance answered Prometheus, and whether its collections could read"
                " every figure. A short interruption colours the graph's whole step.",
                targets(
                    (f"max by ({per_instance}) (min_over_time({scraped}))", f"{instances} scrape"),
                    (
                        f"max by ({per_instance}) (min_over_time({complete}))",
                        f"{instances} collection",
                    ),
                ),
                size=(24, 6),
                defaults={
                    **steps((None, "red"), (1, "green")),
                    **mapping(_0=("Failed", "red"), _1=("Complete", "green")),
                },
            ),
            timeseries(
                "Collection time by instance",
                "How long the slowest collection in each step of the graph took.",
                targets((f"max by ({per_instance}) (max_over_time({slowest}))", instances)),
                size=(12, 9),
                unit="s",
                custom={"lineWidth": 1},
                calcs=LAST_MEAN_MAX,
            ),
            timeseries(
                "Age of the figures by instance",
                "The age of the collection in the last scrape. It grows while collections are"
                " reused (SOUVENIRS_METRICS_MAX_AGE_SECONDS), or while scrapes fail.",
                targets(
                    (age("souvenirs_collection_timestamp_seconds", by=per_instance), instances)
                ),
                size=(12, 9),
                unit="s",
                custom={"lineWidth": 1},
                calcs=LAST_MEAN_MAX,
            ),
            parts_read((12, 9), by="job, instance, part"),
            timeseries(
                "Collection time by part",
                "How long the slowest reading of each part took in each step of the graph. A part"
                " that is cut off uses up all the time that is left.",
                targets((f"max by (job, part) (max_over_time({part}))", "{{job}} {{part}}")),
                size=(12, 9),
                unit="s",
                custom={"lineWidth": 1},
                calcs=LAST_MEAN_MAX,
            ),
            row("Recording"),
            timeseries(
                "Visits by result",
                "Visits of signed-in users per second, by result. Nearly all are rate-limited.",
                targets((visits(by="job, result"), "{{job}} {{result}}")),
                size=(24, 9),
                unit="reqps",
                custom={
                    "lineWidth": 0,
                    "fillOpacity": 70,
                    "stacking": {"mode": "normal", "group": "A"},
                },
                overrides=[
                    override("byRegexp", f"/ {result}$/", color=fixed(color))
                    for result, color in results.items()
                ],
                calcs=LAST_MEAN_MAX,
                beside=True,
            ),
            timeseries(
                "Rate-limited share",
                "The share of visits whose user had already been recorded within the rate limit."
                " They cost the site next to nothing.",
                targets((share(limited, visits()), "{{job}}")),
                size=(12, 8),
                unit="percentunit",
                custom={"fillOpacity": 0},
                defaults={"max": 1},
            ),
            timeseries(
                "Failures per hour",
                "Visits that could not be recorded in the hour before each point in time, by"
                " instance. The log of the site has the cause.",
                targets((f"sum by ({per_instance}) (increase({failed}))", instances)),
                size=(12, 8),
                unit="short",
                custom={"fillOpacity": 30, "lineWidth": 1},
            ),
            row("History"),
            timeseries(
                "Roll-up lag over time",
                "How far behind rolling up is: the time since the end of the oldest quarter of an"
                " hour that is due.",
                targets((figure(lag), "{{job}}")),
                size=(12, 7),
                unit="s",
            ),
            timeseries(
                "Time since the last visit",
                "The time since any user was last seen. If it is longer than usual for the time of"
                " day, visits are not being recorded, or nobody visits the site.",
                targets((age("souvenirs_last_seen_timestamp_seconds"), "{{job}}")),
                size=(12, 7),
                unit="s",
            ),
            row("Versions"),
            table(
                "Running versions",
                "The versions that each instance runs, its database, and the store of its last-seen"
                " times.",
                now(
                    (
                        figure(
                            "souvenirs_build_info",
                            by="job, instance, version, python, django, database, last_seen_store",
                        ),
                        "",
                    ),
                    format="table",
                ),
                {
                    "job": "Job",
                    "instance": "Instance",
                    "version": "django-souvenirs",
                    "python": "Python",
                    "django": "Django",
                    "database": "Database",
                    "last_seen_store": "Last-seen store",
                },
                size=(24, 5),
                unit="none",
            ),
        ],
    )
