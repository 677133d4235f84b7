from __future__ import annotations

from souvenirs.history import progress
from souvenirs.models import Rollup
from souvenirs_metrics.conf import conf
from souvenirs_metrics.families import ROLLUP_LAG
from souvenirs_metrics.readers.base import Families, ReadContext, Reader


class RollupLag(Reader):
    """How far behind rolling up the history is."""

    name = "rollup_lag"
    order = 30
    families = (ROLLUP_LAG,)

    def read(self, now: float, context: ReadContext) -> Families:
        using = conf.database(Rollup)
        with context(using):
            return [ROLLUP_LAG.family(progress.lag(now, using))]
