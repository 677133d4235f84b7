"""Signals: one for the rest of a site, and internal ones."""

from django.dispatch import Signal

# Sent when the outcome of a visit is known, with
#   result: "added", "rate-limited", "duplicated", "failed", or "skipped" (SOUVENIRS_SHOULD_RECORD
#       said so, or the user does not exist)
#   user_pk: the user's primary key; None for a tally, and if the visit failed before it was known
#   count: the number of visits. Visits answered from process memory do not send a signal each: they
#       are tallied, and sent together as one "rate-limited" with that count.
# Exceptions in receivers are logged and have no other effect.
souvenir_recorded = Signal()

# Internal: visits were queued for the writer (count); the writer could not write a batch.
visits_queued = Signal()
write_failed = Signal()

# Internal: Souvenir rows were written. Sent in their transaction, with
#   souvenirs: the rows
#   using: the alias of their database
# Last-seen times and the history are updated by receivers; an exception rolls the transaction back.
souvenirs_written = Signal()

# Internal: users are about to be deleted, and their souvenirs with them. Sent once for all users of
# a deletion, in its transaction, before any of their rows are deleted, with
#   user_pks: their primary keys
#   using: the alias of the users' database
# An exception rolls the transaction back.
deleting_users = Signal()
