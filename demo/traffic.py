"""Simulated people with browsers: they join, sign in over HTTP and read pages. Independent of
Django."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from random import Random
from typing import Any

import requests

from demo.rhythm import activity

# Weighted by how often they are requested; the first does not load the user
PAGES = {"/": 2, "/articles/": 3, "/articles/tides/": 2, "/articles/maps/": 1, "/account/": 1}
SIGN_OUT_SHARE = 0.03
TIMEOUT = 30


@dataclass(frozen=True)
class Visit:
    """A response of the site to a signed-in user, at a unix time."""

    username: str
    t: float


class Visitor:
    """A person with a browser. `visits` gets an entry for each response while they are signed
    in."""

    def __init__(self, url: str, username: str, password: str, visits: list[Visit]) -> None:
        self.url, self.username, self.password, self.visits = url, username, password, visits
        self.is_signed_in = False
        self.session = requests.Session()
        self.session.trust_env = False  # no proxy for loopback
        self.session.hooks["response"].append(self.note)

    def note(self, response: requests.Response, **kwargs: Any) -> None:
        """Called with every response, including redirects."""
        sent = response.request.headers.get("Cookie", "")
        if "sessionid=" in sent or "sessionid" in response.cookies:
            self.visits.append(Visit(self.username, time.time()))

    def get(self, path: str) -> requests.Response:
        response = self.session.get(self.url + path, timeout=TIMEOUT)
        response.raise_for_status()
        return response

    def post(self, path: str, **data: str) -> requests.Response:
        response = self.session.post(
            self.url + path,
            data={"csrfmiddlewaretoken": self.session.cookies["csrftoken"], **data},
            timeout=TIMEOUT,
        )
        response.raise_for_status()
        return response

    def join(self) -> None:
        """Create an account, and read the page that follows. Raise RuntimeError if refused."""
        self.get("/join/")
        names = {"username": self.username, "password1": self.password, "password2": self.password}
        response = self.post("/join/", **names)
        if "sessionid" not in self.session.cookies:
            raise RuntimeError(f"{self.username} could not join at {response.url}")
        self.is_signed_in = True

    def sign_in(self) -> None:
        """Sign in, and read the page that this leads to. Raise RuntimeError if refused."""
        self.get("/login/")
        response = self.post("/login/", username=self.username, password=self.password)
        if "sessionid" not in self.session.cookies:
            raise RuntimeError(f"{self.username} could not sign in at {response.url}")
        self.is_signed_in = True

    def sign_out(self) -> None:
        self.get("/account/")
        self.post("/logout/")
        self.is_signed_in = False


class Traffic:
    """The visitors of the site at `url`, and all their `visits`. `usernames` have an account; other
    visitors join first."""

    def __init__(
        self, url: str, usernames: Sequence[str], password: str, *, seed: int | None = None
    ) -> None:
        self.visits: list[Visit] = []
        self.visitors: dict[str, Visitor] = {}
        self.known = set(usernames)
        self.url, self.password = url, password
        self.random = Random(seed)
        self.errors = 0

    def __enter__(self) -> Traffic:
        return self

    def __exit__(self, *exc: object) -> None:
        for visitor in self.visitors.values():
            visitor.session.close()

    def visitor(self, name: str) -> Visitor:
        if name not in self.visitors:
            self.visitors[name] = Visitor(self.url, name, self.password, self.visits)
        return self.visitors[name]

    def sign_in(self, usernames: Iterable[str]) -> None:
        """Sign in these users, some at a time."""
        with ThreadPoolExecutor(4) as pool:
            for _ in pool.map(Visitor.sign_in, map(self.visitor, usernames)):
                pass

    def step(self, usernames: Sequence[str]) -> None:
        """A random one of these users joins, signs in, reads a page, or leaves."""
        visitor = self.visitor(self.random.choice(usernames))
        if visitor.username not in self.known:
            visitor.join()
            self.known.add(visitor.username)
        elif not visitor.is_signed_in:
            visitor.sign_in()
        elif self.random.random() < SIGN_OUT_SHARE:
            visitor.sign_out()
        else:
            visitor.get(*self.random.choices(list(PAGES), list(PAGES.values())))

    def run(
        self, stop: threading.Event, per_minute: float, about: Callable[[float], Sequence[str]]
    ) -> None:
        """Run until `stop` is set, with `per_minute` steps at the busiest hour of the week, by the
        users who are `about` at a unix time."""
        while not stop.wait(60 / per_minute):
            now = time.time()
            usernames = about(now)
            if usernames and self.random.random() < activity(now):
                try:
                    self.step(usernames)
                except (requests.RequestException, RuntimeError):
                    self.errors += 1
