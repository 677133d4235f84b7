"""Past activity -> souvenirs, under the rate limit."""

from souvenirs.backfill.loading import Summary, load
from souvenirs.backfill.readers import BackfillError, Bad, Entry

__all__ = ["BackfillError", "Bad", "Entry", "Summary", "load"]
