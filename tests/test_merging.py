"""Merging two accounts into one, as described in docs/recording.md."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command

from souvenirs.control import last_seen
from souvenirs.history import maintenance
from souvenirs.models import Souvenir
from tests import stores
from tests.history import DAY, HOUR, assert_counts, at, people, record, unix
from tests.people import with_databases

store = stores.store

DOCS = Path(__file__).parent.parent / "docs" / "recording.md"
T = unix(2024, 5, 14, 22)  # Paris: midnight of the 15th

pytestmark = with_databases


def merge(user: Any, other: Any) -> None:
    """Follow the recipe, whose commands are meant for a shell."""
    text = DOCS.read_text().split("## Merging two accounts")[1].split("\n## ")[0]
    code = textwrap.dedent("\n".join(re.findall(r"(?m)^    .*$", text)))
    for step in re.split(r"(python manage\.py .+\n)", code):
        if step.startswith("python"):
            call_command(*step.split()[2:], verbosity=0)
        else:
            exec(step, {"user": user, "other": other})


@pytest.mark.parametrize("is_rolled_up", [True, False])
def test_merging__turns_two_people_into_one(store: Any, is_rolled_up: bool) -> None:
    user, other, third = people(3)
    facts = [(0, T), (0, T + DAY), (1, T + 5), (1, T + HOUR), (1, T + DAY + HOUR), (2, T + HOUR)]
    for who, t in facts:
        record([user, other, third][who], t)
    with at(T + 2 * DAY):
        if is_rolled_up:
            maintenance.roll_up()
        newest = last_seen(other)
        merge(user, other)
        merged = [(0 if who == 1 else who, t) for who, t in facts]
        assert_counts(merged)
        assert last_seen(user) == newest
        maintenance.roll_up()
        assert_counts(merged)
    assert set(Souvenir.objects.values_list("user_id", flat=True)) == {user.pk, third.pk}
