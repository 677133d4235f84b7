"""Whether the figures are there: for operators."""

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
        "Whether the figures of Active users are there, fresh and complete, and what they cost.",
        [
            row("Now"),
            stat(
                "Collection",
                "Complete if the last collection read every figure. If it did not, the log of the"
                " site or of the exporter has the cause.",
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
                "How long the last collection took: what a scrape costs the database.",
                now((figure(duration), "{{job}}")),
                size=(4, 5),
                unit="s",
                defaults=steps((None, "green"), (1, "orange"), (5, "red")),
            ),
            stat(
                "Roll-up lag",
                "How long ago the oldest quarter of an hour ended that is due to be rolled up and"
                " is not. If it grows, run manage.py rollup_souvenirs.",
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
                "Whether each instance answered Prometheus, and whether its collections read every"
                " figure. A short interruption shows in the whole step of the graph.",
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
                "How long the slowest collection of each step of the graph took.",
                targets((f"max by ({per_instance}) (max_over_time({slowest}))", instances)),
                size=(12, 9),
                unit="s",
                custom={"lineWidth": 1},
                calcs=LAST_MEAN_MAX,
            ),
            timeseries(
                "Age of the figures by instance",
                "How old the collection was that the last scrape had. It grows where collections"
                " are reused (SOUVENIRS_METRICS_MAX_AGE_SECONDS), or where scrapes fail.",
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
                " that is cut off took all the time that was left.",
                targets((f"max by (job, part) (max_over_time({part}))", "{{job}} {{part}}")),
                size=(12, 9),
                unit="s",
                custom={"lineWidth": 1},
                calcs=LAST_MEAN_MAX,
            ),
            row("Recording"),
            timeseries(
                "Visits by result",
                "Visits of signed-in users in a second, by what became of them. Nearly all are"
                " rate-limited.",
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
                "Visits of users who had been recorded within the rate limit already, as a share"
                " of all. They cost the site next to nothing.",
                targets((share(limited, visits()), "{{job}}")),
                size=(12, 8),
                unit="percentunit",
                custom={"fillOpacity": 0},
                defaults={"max": 1},
            ),
            timeseries(
                "Failures in an hour",
                "Visits that could not be recorded in the hour before each instant, by instance;"
                " the log of the site has the cause.",
                targets((f"sum by ({per_instance}) (increase({failed}))", instances)),
                size=(12, 8),
                unit="short",
                custom={"fillOpacity": 30, "lineWidth": 1},
            ),
            row("History"),
            timeseries(
                "Roll-up lag over time",
                "How far the history is behind: the age of the oldest quarter of an hour that is"
                " due to be rolled up and is not.",
                targets((figure(lag), "{{job}}")),
                size=(12, 7),
                unit="s",
            ),
            timeseries(
                "Time since the last visit",
                "How long ago any user was last seen. Longer than usual for the time of day:"
                " nothing is recorded, or nobody comes.",
                targets((age("souvenirs_last_seen_timestamp_seconds"), "{{job}}")),
                size=(12, 7),
                unit="s",
            ),
            row("Versions"),
            table(
                "What runs",
                "Versions, and where the figures are kept, of each instance.",
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
