"""Two sites share one Redis with default keys, for their caches and their last-seen times."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests import servers
from tests.failing import new_database
from tests.site import serving
from tests.stores import REDIS

pytestmark = pytest.mark.own_site

VISIT = """
import json, sys
import django
django.setup()
from datetime import datetime, timezone
from souvenirs.control import last_seen, souvenez
from souvenirs.lastseen import get_store
from souvenirs.models import Souvenir
store = get_store()
store.resync()  # as the first scrape does
# A past time, so that no hour ends between two visits
hour, *users = map(int, sys.argv[1:])
when = datetime(2024, 5, 14, hour, tzinfo=timezone.utc)
results = [souvenez(pk, when=when) for pk in users]
since = when.timestamp()
print(json.dumps({
    "results": results,
    "rows": Souvenir.objects.count(),
    "seen": [pk for pk in (1, 2) if last_seen(pk) is not None],
    "active": store.count([since], since + 60, "default").since[since],
}))
"""


class Sites(NamedTuple):
    staging: dict[str, str]
    production: dict[str, str]
    other_host: dict[str, str]  # the production site


@pytest.fixture
def sites(postgresql: dict[str, Any]) -> Iterator[Sites]:
    """Two sites, each with users 1 and 2."""
    with servers.redis() as (url, _):
        store = {**REDIS, "LOCATION": url}

        def environ(secret: str, database: dict[str, Any]) -> dict[str, str]:
            found: dict[str, str] = serving.environ(
                database, url, SECRET_KEY=secret, SOUVENIRS_LAST_SEEN_STORE=store
            )
            return found

        first, second = new_database(postgresql), new_database(postgresql)
        found = Sites(
            environ("staging", first),
            environ("production", second),
            environ("production", {**second, "HOST": "localhost"}),
        )
        for site in found[:2]:
            serving.populate(site, 2)
        yield found


def visit(site: dict[str, str], hour: int, *users: int) -> dict[str, Any]:
    """What a new process of the site sees after these users visited it in this hour."""
    arguments = map(str, [hour, *users])
    seen: dict[str, Any] = json.loads(serving.run(["-c", VISIT, *arguments], site))
    return seen


def test_two_sites__record_and_count_only_their_own_users(sites: Sites) -> None:
    # The site already knows the user, so another site's claim would have more effect
    visit(sites.production, 11, 1)
    expected = {"results": ["added"], "rows": 1, "seen": [1], "active": 1}
    assert visit(sites.staging, 12, 1) == expected
    expected = {"results": ["added"], "rows": 2, "seen": [1], "active": 1}
    assert visit(sites.production, 12, 1) == expected
    expected = {"results": ["added"], "rows": 3, "seen": [1, 2], "active": 2}
    assert visit(sites.production, 12, 2) == expected
    assert visit(sites.staging, 12) == {"results": [], "rows": 1, "seen": [1], "active": 1}


def test_one_site__is_the_same_at_any_address_of_its_database(sites: Sites) -> None:
    visit(sites.production, 12, 1)
    expected = {"results": ["rate-limited", "added"], "rows": 2, "seen": [1, 2], "active": 2}
    assert visit(sites.other_host, 12, 1, 2) == expected
