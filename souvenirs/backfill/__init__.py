"""Load past activity as souvenirs, subject to the rate limit."""

from souvenirs.backfill.entries import BackfillError, Entry, RejectedLine
from souvenirs.backfill.loading import Summary, load

__all__ = ["BackfillError", "Entry", "RejectedLine", "Summary", "load"]
