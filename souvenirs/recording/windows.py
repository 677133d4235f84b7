"""The window of time in which one record of a user is enough, computed once for all users."""

from __future__ import annotations

from typing import Any, NamedTuple

from django.core.signals import setting_changed

from souvenirs.conf import conf
from souvenirs.periods import Interval, slot_containing
from souvenirs.recording.memory import RecentlyRecorded


class Window(NamedTuple):
    """The overlap, from `start` until `end`, of the current minute and the current rate-limit slot.

    with_row, without_row: what process memory remembers about users recorded in it, depending on
        whether their souvenir of the slot is known to be written.
    """

    start: float
    end: float
    slot: Interval
    with_row: RecentlyRecorded
    without_row: RecentlyRecorded


_window: Window | None = None


def containing(now: float) -> Window:
    """Return the window that contains `now`. There must be a rate limit."""
    global _window
    window = _window
    if window is None or not window.start <= now < window.end:
        window = _window = _make(now)
    return window


def _make(now: float) -> Window:
    minute = slot_containing(now, conf.last_seen_seconds, conf.zone)
    slot = slot_containing(now, conf.ratelimit_seconds, conf.zone)
    start, end = max(minute.start, slot.start), min(minute.end, slot.end)
    return Window(
        start,
        end,
        slot,
        RecentlyRecorded(start, end, slot.start, slot.end),
        RecentlyRecorded(start, end, slot.start, slot.start),
    )


def _on_setting_changed(**kwargs: Any) -> None:
    global _window
    _window = None


setting_changed.connect(_on_setting_changed)
