"""Past activity -> souvenirs, under the rate limit."""

from souvenirs.backfill.entries import BackfillError, Bad, Entry
from souvenirs.backfill.loading import Summary, load

__all__ = ["BackfillError", "Bad", "Entry", "Summary", "load"]
