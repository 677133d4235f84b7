from __future__ import annotations

import platform

import django
from django.db import connections

import souvenirs
from souvenirs.lastseen import get_store
from souvenirs.models import Souvenir
from souvenirs_metrics.conf import conf
from souvenirs_metrics.families import BUILD
from souvenirs_metrics.readers.base import Families, ReadContext, Reader


class Build(Reader):
    """Versions. Runs no queries."""

    name = "build"
    order = 10
    families = (BUILD,)

    def read(self, now: float, context: ReadContext) -> Families:
        return [
            BUILD.family(
                {
                    "version": souvenirs.__version__,
                    "python": platform.python_version(),
                    "django": django.get_version(),
                    "database": connections[conf.database(Souvenir)].vendor,
                    "last_seen_store": get_store().name,
                }
            )
        ]
