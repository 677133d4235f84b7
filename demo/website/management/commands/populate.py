from __future__ import annotations

import os
import time
from argparse import ArgumentParser
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Any

from django.contrib.auth.hashers import make_password
from django.contrib.auth.models import User
from django.core.management import BaseCommand, call_command
from django.db import transaction

from demo.population import ADMIN, DAY, PASSWORD, Person, past_visits, people
from souvenirs.management.progress import Progress
from souvenirs.models import Souvenir

# The past ends so long before now: what is in the window of one hour is live
PAUSE_SECONDS = 2.5 * 3600


def utc(t: float) -> datetime:
    return datetime.fromtimestamp(t, timezone.utc)


class Command(BaseCommand):
    help = (
        "Makes the database, users, and their past up to 2.5 hours ago; or continues those that"
        " are there. DEMO_ADMIN_PASSWORD in the environment becomes the admin's password."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--users", type=int, default=300, help="how many (default: 300)")
        parser.add_argument("--weeks", type=int, default=10, help="of past (default: 10)")

    def handle(self, *, users: int, weeks: int, **options: Any) -> None:
        call_command("migrate", verbosity=0)
        end = time.time() - PAUSE_SECONDS
        start = end - weeks * 7 * DAY
        newest = Souvenir.objects.order_by("when").last()
        if newest is not None:
            start = newest.when.timestamp() + 1
        with transaction.atomic():
            make_admin(os.environ.get("DEMO_ADMIN_PASSWORD"))
            crowd = people(users)
            make_users(crowd, start, end)
            make_past(
                Progress(self.stderr, crowd, desc="Making up the past", unit="users"), start, end
            )
        call_command("rollup_souvenirs", verbosity=0)


def make_admin(password: str | None) -> None:
    admin, _ = User.objects.get_or_create(
        username=ADMIN, defaults={"is_staff": True, "is_superuser": True}
    )
    admin.set_password(password)
    admin.save()


def make_users(crowd: list[Person], start: float, end: float) -> None:
    """Makes those that are not there yet."""
    known = set(User.objects.values_list("username", flat=True))
    password = make_password(PASSWORD)  # one for all: each would take a quarter of a second
    User.objects.bulk_create(
        User(
            username=person.username,
            password=password,
            is_active=person.is_active,
            date_joined=utc(person.joined(start, end)),
        )
        for person in crowd
        if person.username not in known
    )


def make_past(crowd: Iterable[Person], start: float, end: float) -> None:
    """What they did from `start` to `end` (unix seconds), after they had joined."""
    accounts = User.objects.in_bulk(field_name="username")
    for person in crowd:
        user = accounts[person.username]
        visits = past_visits(person, max(start, user.date_joined.timestamp()), end)
        Souvenir.objects.bulk_create(Souvenir(user=user, when=utc(t)) for t in visits)
