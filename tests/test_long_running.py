"""Code that records outside of requests: a bot, a socket server. Nobody tidies up after it."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import DatabaseError, transaction

from souvenirs.control import asouvenez, souvenez
from souvenirs.models import Souvenir
from souvenirs.testing import forget
from tests.people import User, ours, run, with_databases

pytestmark = [with_databases, pytest.mark.where(ours().vendor != "sqlite")]


def session_id() -> int:
    functions = {"postgresql": "pg_backend_pid", "mysql": "connection_id"}
    with ours().cursor() as cursor:
        cursor.execute(f"SELECT {functions[ours().vendor]}()")
        number: int = cursor.fetchone()[0]
    return number


def end_session(number: int) -> None:
    """From another connection, as a restart of the server does to all of them."""

    def end() -> None:
        statements = {"postgresql": "SELECT pg_terminate_backend(%s)", "mysql": "KILL %s"}
        with ours().cursor() as cursor:
            cursor.execute(statements[ours().vendor], [number])
        ours().close()

    thread = threading.Thread(target=end)
    thread.start()
    thread.join()


@pytest.fixture
def user() -> Any:
    return User.objects.create(username="ada")


def test_asouvenez__gets_over_a_restart_of_the_database(user: Any) -> None:
    async def bot() -> None:
        end_session(await sync_to_async(session_id)())
        with pytest.raises(DatabaseError):
            await asouvenez(user.pk)
        forget()  # the rate limit
        assert await asouvenez(user.pk) == "added"

    run(bot())
    assert Souvenir.objects.count() == 1


def test_souvenez__leaves_a_transaction_of_the_callers_to_the_caller(user: Any) -> None:
    broken = None
    with suppress(DatabaseError), transaction.atomic(using=ours().alias):
        end_session(session_id())
        with pytest.raises(DatabaseError):
            souvenez(user.pk)
        broken = ours().connection
    assert broken is not None
    ours().close()
    forget()
    assert souvenez(user.pk) == "added"
