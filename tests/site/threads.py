"""Many threads of one process record the same users at the same time.

Prints JSON: the results of all calls, the errors, the rows that exist afterwards, when it began,
and how many hours of the clock it spanned.
"""

from __future__ import annotations

import json
import threading
import time
from datetime import datetime, timedelta, timezone

import django

THREADS = 12
USERS = 40
DAYS = 4


def main() -> None:
    django.setup()
    from django.db import connections

    from souvenirs import timestamps
    from souvenirs.control import souvenez
    from souvenirs.models import LastSeen, Souvenir

    results: list[str] = []
    errors: list[str] = []
    barrier = threading.Barrier(THREADS)
    now = datetime.now(timezone.utc)
    begin = now.timestamp()

    def compete(number: int) -> None:
        # Some record the present, each of the others a different past day, so several of them write
        # a user's first row and last-seen row at the same time
        day = number % DAYS
        when = None if day == 0 else now - timedelta(days=day)
        for pk in range(1, USERS + 1):
            barrier.wait()
            try:
                results.append(souvenez(pk, when=when))
            except Exception as error:
                errors.append(repr(error))
        connections.close_all()

    threads = [threading.Thread(target=compete, args=[number]) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = [
        [pk, timestamps.to_seconds(when)]
        for pk, when in Souvenir.objects.values_list("user", "when")
    ]
    seen = [
        [pk, timestamps.to_seconds(seen)]
        for pk, seen in LastSeen.objects.values_list("user_id", "seen")
    ]
    hours = len({begin // 3600, time.time() // 3600})
    told = {"results": results, "errors": errors, "rows": rows, "seen": seen}
    print(json.dumps({**told, "begin": begin, "hours": hours}))


if __name__ == "__main__":
    main()
