"""Several processes and threads record the same users at the same time, and are killed meanwhile.

The guarantees: one row per user and slot; no error, no deadlock; a last-seen time that only moves
forward and is at most its resolution behind; and after a crash, no row is lost that was reported as
added, and no user is blocked for longer than a claim lasts.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests

from tests import servers
from tests.failing import new_database
from tests.site import serving, threads
from tests.site.serving import Site

pytestmark = pytest.mark.own_site

USERS = 30
CLIENTS = 8
SECONDS = 2.5
# Slots are short, so that all clients claim new ones again and again
LIMIT = 2
RESOLUTION = 1
CLAIM_SECONDS = 2

# The errors of a client whose server process is killed before or during the response
CUT_OFF = (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)


class Answer(NamedTuple):
    """A response, and the unix times between which it was made."""

    pk: int
    start: float
    end: float
    status: int
    text: str


@pytest.fixture
def site(request: Any, redis_url: str, tmp_path: Path) -> Iterator[Site]:
    """A site with a short rate limit, on the database that the test names (default: PostgreSQL)."""
    engine = getattr(request, "param", "postgresql")
    environment = serving.environ(
        database(request, engine, tmp_path),
        redis_url,
        SOUVENIRS_RATELIMIT_SECONDS=LIMIT,
        SOUVENIRS_LAST_SEEN_SECONDS=RESOLUTION,
        SOUVENIRS_CACHE_PREFIX=tmp_path.name,
        SOUVENIRS_FLUSH_SECONDS=0.1,
    )
    serving.populate(environment, USERS)
    with serving.serve(environment, tmp_path) as served:
        yield served


@pytest.fixture
def fragile_site(request: Any, redis_url: str, tmp_path: Path) -> Iterator[Site]:
    """A site with the usual rate limit, whose claims last only CLAIM_SECONDS."""
    environment = serving.environ(
        database(request, "postgresql", tmp_path),
        redis_url,
        SOUVENIRS_LAST_SEEN_SECONDS=RESOLUTION,
        SOUVENIRS_CACHE_PREFIX=tmp_path.name,
    )
    environment["SITE_CLAIM_SECONDS"] = str(CLAIM_SECONDS)
    serving.populate(environment, USERS)
    with serving.serve(environment, tmp_path) as served:
        yield served


def database(request: Any, engine: str, directory: Path) -> dict[str, Any]:
    """A DATABASES entry for an unused database of the named engine."""
    if engine != "sqlite":
        return new_database(request.getfixturevalue(engine))
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(directory / "site.sqlite3"),
        "OPTIONS": {
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
        },
    }


def crowd(
    site: Site,
    page: Callable[[int, int], str | None],
    seconds: float,
    cookies: Mapping[int, str] | None = None,
    rounds: int = 0,
) -> list[Answer]:
    """CLIENTS clients at once request `page(number of the round, pk)` for each user, unless it is
    None. All use the same order, so that they meet at every user. They continue until the time is
    over and all have done this many `rounds`. Leaves out requests that a killed process did not
    answer.
    """
    answers: list[Answer] = []
    deadline = time.monotonic() + seconds

    def ask() -> None:
        with serving.client() as session:
            for number in range(1_000_000):
                for pk in random.Random(number).sample(range(1, USERS + 1), USERS):
                    if time.monotonic() > deadline and number >= rounds:
                        return
                    path = page(number, pk)
                    if path is None:
                        continue
                    start = time.time()
                    headers = {"Cookie": cookies[pk]} if cookies else {}
                    try:
                        response = session.get(f"{site.url}{path}", headers=headers, timeout=30)
                    except CUT_OFF:
                        continue
                    result = response.status_code, response.text
                    answers.append(Answer(pk, start, time.time(), *result))

    clients = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    return answers


def rows(site: Site) -> list[tuple[int, float]]:
    return [(pk, when) for pk, when in site.get("/rows/").json()]


def slots(pairs: list[tuple[int, float]]) -> Counter[tuple[int, int]]:
    """The number of rows for each user and slot of LIMIT seconds."""
    return Counter((pk, int(when // LIMIT)) for pk, when in pairs)


def is_written(site: Site, answers: list[Answer]) -> bool:
    """Whether the writers have written the queued visits."""
    seen = dict(site.get("/seen/").json())
    return all(seen.get(answer.pk, 0) > answer.start - RESOLUTION for answer in answers)


def assert_last_seen_is_not_behind(site: Site, answers: list[Answer]) -> None:
    seen = dict(site.get("/seen/").json())
    for answer in answers:
        assert seen[answer.pk] > answer.start - RESOLUTION, answer


# Under load


@pytest.mark.parametrize("seconds", [SECONDS, pytest.param(5 * SECONDS, marks=pytest.mark.soak)])
@pytest.mark.parametrize("site", ["postgresql", "sqlite"], indirect=True)
def test_processes__record_the_same_users_at_the_same_time(site: Site, seconds: float) -> None:
    cookies = {pk: site.sign_in(pk) for pk in range(1, USERS + 1)}
    samples: list[dict[int, int]] = []
    is_over = threading.Event()

    def sample() -> None:
        while not is_over.wait(0.1):
            samples.append(dict(site.get("/seen/").json()))

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        # a page whose view loads the user, and one whose view does not
        pages = ["/plain/", "/who/"]
        answers = crowd(
            site, lambda number, pk: pages[(number + pk) % 2], seconds, cookies, rounds=2
        )
    finally:
        is_over.set()
        sampler.join()

    assert {(answer.status, answer.text) for answer in answers} == {
        (200, "plain"),
        *((200, f"user{pk}") for pk in range(1, USERS + 1)),
    }
    servers.wait_until(lambda: is_written(site, answers))
    written = slots(rows(site))
    assert {key: count for key, count in written.items() if count != 1} == {}
    for answer in answers:
        if answer.start // LIMIT == answer.end // LIMIT:
            assert (answer.pk, answer.start // LIMIT) in written

    assert len(samples) > 2
    for before, after in pairwise(samples):
        assert {pk for pk, seen in before.items() if after[pk] < seen} == set()
    assert_last_seen_is_not_behind(site, answers)
    assert len(site.get("/seen/").json()) == USERS
    assert site.errors() == []


@pytest.mark.parametrize("engine", ["postgresql", "mariadb"])
def test_threads__record_the_same_users_at_the_same_time(
    engine: str, request: Any, tmp_path: Path
) -> None:
    environment = serving.environ(database(request, engine, tmp_path))
    serving.populate(environment, threads.USERS)
    output = json.loads(serving.run(["-m", "tests.site.threads"], environment))
    assert output["errors"] == []
    expected = threads.USERS * threads.DAYS
    # otherwise the hour has changed meanwhile, and the present has two slots
    if output["hours"] == 1:
        assert len(output["rows"]) == expected
    assert Counter(output["results"])["added"] == len(output["rows"])
    keys = [(pk, int(when // 3600)) for pk, when in output["rows"]]
    assert len(set(keys)) == len(keys)
    assert sorted(pk for pk, _ in output["seen"]) == list(range(1, threads.USERS + 1))
    assert all(seen > output["begin"] - 60 for _, seen in output["seen"])


# Killed


def test_killed__before_the_commit_blocks_the_user_only_until_the_claim_expires(
    fragile_site: Site,
) -> None:
    with pytest.raises(CUT_OFF):
        fragile_site.get("/killed/1/")
    killed_at = time.monotonic()
    results = []
    while not results or results[-1] != "added":
        assert time.monotonic() < killed_at + CLAIM_SECONDS + servers.START_SECONDS, results
        results.append(fragile_site.get("/record/1/").text)
        time.sleep(0.1)
    assert set(results[:-1]) <= {"rate-limited"}
    assert [pk for pk, _ in rows(fragile_site)] == [1]


@pytest.mark.parametrize(
    ("kills", "arriving"), [(2, 1.5), pytest.param(5, 4, marks=pytest.mark.soak)]
)
def test_killed__under_load_no_row_is_lost_and_no_user_blocked(
    fragile_site: Site, kills: int, arriving: float
) -> None:
    begin = time.monotonic()

    def page(number: int, pk: int) -> str | None:
        # Users arrive one after the other, so that claims are made while processes are killed
        has_arrived = pk <= 1 + (time.monotonic() - begin) * USERS / arriving
        return f"/record/{pk}/" if has_arrived else None

    def kill() -> None:
        for _ in range(kills):
            time.sleep(0.9 * arriving / kills)
            with suppress(*CUT_OFF):
                fragile_site.get("/killed/")

    killer = threading.Thread(target=kill)
    killer.start()
    answers = crowd(fragile_site, page, arriving)
    killer.join()
    time.sleep(CLAIM_SECONDS)  # the claims of killed processes have expired
    answers += crowd(fragile_site, lambda number, pk: f"/record/{pk}/", 0, rounds=1)

    assert {(answer.status, answer.text) for answer in answers} == {
        (200, "added"),
        (200, "rate-limited"),
    }
    written = rows(fragile_site)
    assert {pk for pk, _ in written} == set(range(1, USERS + 1))
    for answer in answers:
        if answer.text == "added":
            assert any(
                pk == answer.pk and answer.start <= when <= answer.end for pk, when in written
            ), answer
    assert_last_seen_is_not_behind(fragile_site, answers)
    assert fragile_site.log.read_text().count("SIGKILL") == kills
    assert fragile_site.errors() == []
