"""The results of recording visits, and the signals that report them."""

from __future__ import annotations

from typing import Any

from souvenirs.models import Souvenir
from souvenirs.recording.memory import drain_hits
from souvenirs.signals import souvenir_recorded, visits_queued

ADDED = "added"
RATE_LIMITED = "rate-limited"
DUPLICATED = "duplicated"
SKIPPED = "skipped"
FAILED = "failed"


def send_recorded(result: str, user_pk: Any = None, count: int = 1) -> None:
    souvenir_recorded.send_robust(sender=Souvenir, result=result, user_pk=user_pk, count=count)


def send_queued(count: int) -> None:
    visits_queued.send_robust(sender=Souvenir, count=count)


def flush_hits() -> None:
    """Send the signal for the visits that process memory has answered since the last call."""
    if hits := drain_hits():
        send_recorded(RATE_LIMITED, count=hits)
