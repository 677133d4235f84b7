"""The command-line options of `python -m demo`, and its help."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from demo.population import Crowd

DESCRIPTION = """\
Serves a small Django site on 127.0.0.1 with gunicorn (two workers), simulates people
who join, sign in and read it, and shows the gauges that Prometheus would scrape.
If Prometheus is installed, it scrapes the site, is filled with the site's past, and
evaluates the shipped rules. Press Ctrl-C to stop."""

EPILOG = """\
The site is stored in demo/var, or in the directory in the environment variable
DEMO_DIR. A second start continues it: users are kept, the time in between is filled
with generated activity, and the admin gets a new password. --fresh starts over. The
past and the live visits follow the same schedule: people join, stay for days or
months, leave, and some come back. The hour matters (Europe/Paris): the site is
busiest on weekday evenings, and calm at night.

  python -m demo                      start, on port 8000
  python -m demo --port 0 --fresh     start over, on any free port
  python -m demo --once >page.txt     a check: sign in 12 users, read their number back"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m demo",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--port", type=int, help="0 for a free port (default: 8000; with --once, 0)"
    )
    parser.add_argument(
        "--prometheus-port", type=int, help="0 for a free port (default: 9090; with --port=0, 0)"
    )
    parser.add_argument(
        "--users", type=positive, default=600, help="accounts in a new database (default: 600)"
    )
    parser.add_argument(
        "--weeks",
        type=positive,
        default=20,
        help="weeks of history in a new database (default: 20)",
    )
    parser.add_argument(
        "--rate", type=positive, default=150,
        help="pages per minute at the busiest hour (default: 150)",
    )  # fmt: skip
    parser.add_argument("--fresh", action="store_true", help="delete the database and start over")
    parser.add_argument(
        "--once", action="store_true",
        help="in a new, temporary database: sign users in, browse, print the metrics page to"
        " standard output, and exit with 0 if its number of active users of the last hour equals"
        " the number that signed in, else with 1",
    )  # fmt: skip
    parser.add_argument(
        "--sign-in", type=positive, default=12, metavar="N",
        help="number of users for --once (default: 12)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if args.port is None:
        args.port = 0 if args.once else 8000
    if args.prometheus_port is None:
        args.prometheus_port = 9090 if args.port else 0
    for name in ("port", "prometheus_port"):
        port = getattr(args, name)
        if not 0 <= port <= 65535:
            option = name.replace("_", "-")
            parser.error(f"--{option} is {port}: give a port from 1 to 65535, or 0 for a free one")
    if args.once and args.sign_in > len(may_sign_in(args.users)):
        parser.error(
            f"--sign-in is {args.sign_in}: of {args.users} users"
            f" {len(may_sign_in(args.users))} may sign in; give fewer, or more --users"
        )
    return args


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 up")
    return number


def may_sign_in(users: int) -> list[str]:
    crowd = Crowd(opened=0, weeks=1, accounts=users)
    return [person.username for person in crowd.people() if person.is_active]
