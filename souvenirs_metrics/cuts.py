"""When the windows and periods of the page begin, in unix seconds."""

from __future__ import annotations

from souvenirs import periods
from souvenirs.conf import conf as souvenirs_conf
from souvenirs.lastseen import get_store, table
from souvenirs_metrics.conf import conf


def period_starts(now: float) -> dict[str, float]:
    """When the current calendar periods began."""
    return {
        name: periods.calendar_period(name, now, souvenirs_conf.zone).start
        for name in periods.NAMES
    }


def window_starts(now: float) -> dict[str, float]:
    """When the rolling windows begin. None is short: they are floored to the resolution of
    last-seen times."""
    return {name: table.resolution_start(now - s) for name, s in conf.windows.items()}


def window_starts_in_table(now: float) -> dict[str, float]:
    """The same, of the windows that the LastSeen table can answer. Where the store is another, the
    table knows times to the rate limit's slot: then windows begin with one, and those that are
    shorter than two are left out."""
    starts = window_starts(now)
    if get_store().in_table:
        return starts
    least = 2 * souvenirs_conf.ratelimit_seconds
    return {
        name: table.earliest(start) for name, start in starts.items() if conf.windows[name] >= least
    }
