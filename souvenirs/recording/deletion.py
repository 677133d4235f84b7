"""Write the queued visits of users who are about to be deleted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.db import DatabaseError, router

from souvenirs import timestamps
from souvenirs.models import Souvenir
from souvenirs.recording.failures import breaker
from souvenirs.recording.writer import writer
from souvenirs.signals import write_failed
from souvenirs.users import has_constraint, lock_before_deletion


def write_before_deletion(user_pks: Sequence[Any], using: str, **kwargs: Any) -> None:
    """Write the queued visits of users who are about to be deleted, so that the history keeps them,
    and keep the writer from writing more, if users are in the same database. Receiver of the signal
    deleting_users."""
    if has_constraint():
        lock_before_deletion(user_pks, using)
    waiting = writer.queue.of_users(set(user_pks))
    if not waiting:
        return
    # In the deletion's transaction, if that is in the same database. The entries stay queued, in
    # case it fails; if it does not, the writer finds that their users do not exist
    ours = using if has_constraint() else router.db_for_write(Souvenir)
    try:
        Souvenir.objects.using(ours).bulk_create(
            Souvenir(user_id=entry.user_pk, when=timestamps.to_datetime(entry.first))
            for entry in waiting
        )
    except DatabaseError as error:
        if ours == using:
            raise
        breaker.failure(error, opens=False)
        write_failed.send_robust(sender=Souvenir)
