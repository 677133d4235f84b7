"""What souvenirs announces to the rest of a site, and to its own parts."""

from django.dispatch import Signal

# Sent when it was decided what becomes of a visit, with
#   result: "added", "rate-limited", "duplicated", "failed", or "skipped" (SOUVENIRS_SHOULD_RECORD
#       said so, or the user does not exist)
#   user_pk: the user's primary key; None for a tally, and where a failure came before it was known
#   count: the number of visits. Visits that process memory answers send no signal one by one: they
#       are tallied, and sent together as one "rate-limited" with that count.
# Receivers that raise are logged and do no harm.
souvenir_recorded = Signal()

# Internal: visits were queued for the writer (count); the writer could not write what was queued.
visits_queued = Signal()
write_failed = Signal()

# Internal: Souvenir rows were written. It is sent in their transaction, with
#   souvenirs: the rows
#   using: the alias of their database
# Last-seen times and the history listen; an exception rolls the transaction back.
souvenirs_written = Signal()

# Internal: users are about to be deleted, and their souvenirs with them. It is sent once for all
# users of a deletion, in its transaction, before any of their rows go, with
#   user_pks: their primary keys
#   using: the alias of the users' database
# An exception rolls the transaction back.
deleting_users = Signal()
