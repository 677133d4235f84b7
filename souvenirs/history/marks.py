"""What Rollups may not know yet, bucket by bucket."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from souvenirs import timestamps
from souvenirs.models import Souvenir, StaleMark
from souvenirs.periods import bucket_containing

# A bucket that has ended so long ago is rolled up. Who takes over half as long to write a souvenir
# of it leaves a mark; so clocks of a site's machines may differ by the other half.
GRACE_SECONDS = 120


def mark_dirty(souvenirs: Iterable[Souvenir], using: str, **kwargs: Any) -> None:
    """Mark the buckets of these souvenirs. It receives the signal souvenirs_written."""
    buckets = {bucket_containing(timestamps.to_seconds(souvenir.when)) for souvenir in souvenirs}
    StaleMark.objects.using(using).bulk_create(
        (StaleMark(bucket=bucket) for bucket in sorted(buckets)), batch_size=5_000
    )
