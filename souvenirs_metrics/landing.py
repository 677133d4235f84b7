"""The exporter's landing page: a few numbers for people, and links to the other pages."""

from __future__ import annotations

from collections.abc import Iterator

from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.views.decorators.http import require_safe

import souvenirs
from souvenirs_metrics import access, deadline, exposition
from souvenirs_metrics.deadline import scrape_timeout
from souvenirs_metrics.families import (
    ACTIVE_USERS,
    CALENDAR_ACTIVE_USERS,
    GROWTH,
    REGISTERED_USERS,
    UP,
)

LINKS = {
    "/metrics": "Metrics",
    "/souvenirs/usage.json": "Usage as JSON",
    "/-/healthy": "Health",
}
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Souvenirs exporter</title>
</head>
<body>
<main>
<h1>Souvenirs exporter</h1>
<p>How active are the users of a Django site? Version {version}.</p>
{numbers}
<ul>{links}</ul>
</main>
</body>
</html>
"""
TABLE = """<table>
<caption>{caption}</caption>
<tbody>{rows}</tbody>
</table>"""
UNKNOWN = "-"

Samples = dict[tuple[str, ...], float]


@require_safe
def landing(request: HttpRequest) -> HttpResponse:
    """The page; it shows numbers only if the request may see the metrics."""
    if access.deny_response(request) is None:
        seconds = deadline.seconds_for(request.headers.get(deadline.HEADER, ""))
        numbers = table(read_samples(seconds))
    else:
        numbers = format_html("<p>{}</p>", "You need access to the metrics to see the numbers.")
    links = format_html_join("\n", '<li><a href="{}">{}</a></li>', LINKS.items())
    page = format_html(PAGE, version=souvenirs.__version__, numbers=numbers, links=links)
    return HttpResponse(page, headers=HEADERS)


def read_samples(seconds: float) -> Samples:
    """The samples of a collection, which scrapes may share, by family name and label values."""
    token = scrape_timeout.set(seconds)
    try:
        return {
            (family.name, *sample.labels.values()): sample.value
            for family in exposition.collector.collect()
            for sample in family.samples
        }
    finally:
        scrape_timeout.reset(token)


def table(samples: Samples) -> SafeString:
    if samples.get((UP.name,)) == 1:
        caption = "All numbers could be read."
    else:
        caption = "Some numbers could not be read. The log has the cause."
    row = '<tr><th scope="row">{}</th><td>{}</td></tr>'
    rows = format_html_join("\n", row, table_rows(samples))
    return format_html(TABLE, caption=caption, rows=rows)


def table_rows(samples: Samples) -> Iterator[tuple[str, str]]:
    windows = [key for key in samples if key[0] == ACTIVE_USERS.name]
    for name, window in windows:
        yield f"Active users, last {window}", format_value(samples, name, window)
    yield "Active users, this month", format_value(samples, CALENDAR_ACTIVE_USERS.name, "month")
    yield "New users, last month", format_value(samples, GROWTH.name, "month", "new")
    yield "Churned users, last month", format_value(samples, GROWTH.name, "month", "churned")
    yield "Registered users", format_value(samples, REGISTERED_USERS.name)


def format_value(samples: Samples, *key: str) -> str:
    return f"{samples[key]:,.0f}" if key in samples else UNKNOWN
