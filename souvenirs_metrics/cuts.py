"""The times at which the page's windows and periods begin, in unix seconds."""

from __future__ import annotations

from souvenirs import periods
from souvenirs.conf import conf as souvenirs_conf
from souvenirs.lastseen import get_store, table
from souvenirs_metrics.conf import conf


def period_starts(now: float) -> dict[str, float]:
    """The start of each current calendar period, by name."""
    return {
        name: periods.calendar_period(name, now, souvenirs_conf.zone).start
        for name in periods.NAMES
    }


def window_starts(now: float) -> dict[str, float]:
    """The start of each rolling window, by label, floored to the resolution of last-seen times:
    no window is too short."""
    return {name: table.resolution_start(now - s) for name, s in conf.windows.items()}


def window_starts_in_table(now: float) -> dict[str, float]:
    """The same, for the windows that the LastSeen table can answer.

    If last-seen times are in another store, the table's times are only as exact as the rate limit's
    slots. Windows are then floored to a slot, and those shorter than two slots are left out.
    """
    starts = window_starts(now)
    if get_store().in_table:
        return starts
    shortest = 2 * souvenirs_conf.ratelimit_seconds
    return {
        name: table.earliest(start)
        for name, start in starts.items()
        if conf.windows[name] >= shortest
    }
