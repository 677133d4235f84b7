from __future__ import annotations

import os
import time
from argparse import ArgumentParser
from collections.abc import Iterable
from datetime import datetime, timezone
from itertools import islice
from typing import Any

from django.contrib.auth.hashers import make_password
from django.contrib.auth.models import User
from django.core.management import BaseCommand, call_command
from django.db import transaction

from demo.population import ADMIN, DAY, PASSWORD, Crowd, Person, past_visits
from demo.website.settings import DIRECTORY
from souvenirs.management.progress import Progress
from souvenirs.models import Souvenir

CROWD = DIRECTORY / "crowd.json"
BATCH = 5_000


def utc(t: float) -> datetime:
    return datetime.fromtimestamp(t, timezone.utc)


class Command(BaseCommand):
    help = (
        "Creates the database, users, and their past up to now, or continues existing ones."
        " DEMO_ADMIN_PASSWORD in the environment becomes the admin's password."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--users", type=int, required=True, help="number of users in a new database"
        )
        parser.add_argument(
            "--weeks", type=int, required=True, help="weeks of history in a new database"
        )
        parser.add_argument(
            "--idle-hours",
            type=float,
            default=0,
            help="hours without visits before now (default: 0)",
        )

    def handle(self, *, users: int, weeks: int, idle_hours: float, **options: Any) -> None:
        call_command("migrate", verbosity=0)
        end = time.time() - idle_hours * 3600
        newest = Souvenir.objects.order_by("when").last()
        if newest is None or not CROWD.exists():
            Crowd(opened=end - weeks * 7 * DAY, weeks=weeks, accounts=users).save(CROWD)
        crowd = Crowd.load(CROWD)
        start = crowd.opened if newest is None else newest.when.timestamp() + 1
        people = crowd.people(until=end)
        with transaction.atomic():
            make_admin(os.environ.get("DEMO_ADMIN_PASSWORD"))
            make_users(people)
            make_past(
                Progress(self.stderr, people, desc="Generating the past", unit="users"), start, end
            )
        call_command("rollup_souvenirs", verbosity=0)


def make_admin(password: str | None) -> None:
    admin, _ = User.objects.get_or_create(
        username=ADMIN, defaults={"is_staff": True, "is_superuser": True}
    )
    admin.set_password(password)
    admin.save()


def make_users(people: list[Person]) -> None:
    """Create those that do not exist yet."""
    known = set(User.objects.values_list("username", flat=True))
    password = make_password(PASSWORD)  # one hash for all: each takes a quarter of a second
    User.objects.bulk_create(
        User(
            username=person.username,
            password=password,
            is_active=person.is_active,
            date_joined=utc(person.joined),
        )
        for person in people
        if person.username not in known
    )


def make_past(people: Iterable[Person], start: float, end: float) -> None:
    """Record what they did from `start` to `end` (unix seconds)."""
    keys = dict(User.objects.values_list("username", "pk"))
    rows = (
        Souvenir(user_id=keys[person.username], when=utc(t))
        for person in people
        for t in past_visits(person, start, end)
    )
    while batch := list(islice(rows, BATCH)):
        Souvenir.objects.bulk_create(batch)
