"""Queries Prometheus for what the panels of a dashboard show."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

DAY = 86_400
CHOSEN = {"$segment": "plan", "$window": "30d"}

Json = dict[str, Any]


class PanelClient:
    """Queries Prometheus as Grafana does, with a step of two hours or the target's interval. The
    instants are multiples of the step (as in a browser in UTC)."""

    def __init__(self, url: str, now: int, rate_interval: str = "2h") -> None:
        self.url, self.now, self.rate_interval = url, now, rate_interval

    def get(self, path: str, **parameters: Any) -> Any:
        try:
            with urlopen(f"{self.url}/api/v1/{path}?{urlencode(parameters)}") as response:
                return json.load(response)["data"]
        except HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None

    def query(self, target: Json, job: str = ".+", days: float = 30) -> list[Json]:
        """The series of a target; those of an instant query have one value."""
        values = {"$job": job, "$__rate_interval": self.rate_interval, **CHOSEN}
        query = re.sub(r"\$\w+", lambda match: values[match[0]], target["expr"])
        if target.get("instant"):
            series = self.get("query", query=query, time=self.now)["result"]
            return [{**each, "values": [each["value"]]} for each in series]
        start, end, step = self.now - days * DAY, self.now, 7_200
        if "interval" in target:
            step = seconds(target["interval"])
            start, end = start // step * step, end // step * step
        span = {"start": start, "end": end, "step": step}
        result: list[Json] = self.get("query_range", query=query, **span)["result"]
        return result

    def query_panel(self, panel: Json, job: str = ".+") -> Iterator[tuple[Json, Json]]:
        """The targets of a panel, each with its series."""
        for target in panel["targets"]:
            for series in self.query(target, job, days_shown(panel)):
                yield target, series


def seconds(duration: str) -> int:
    return int(duration[:-1]) * {"d": 1, "w": 7, "y": 365}[duration[-1]] * DAY


def days_shown(panel: Json) -> int:
    return seconds(panel.get("timeFrom", "30d")) // DAY
