"""Serves the metrics in a process of its own."""

from __future__ import annotations

import re
import signal
import ssl
import threading
from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from django.conf import settings
from django.core.management.base import CommandError
from django.db import InterfaceError, OperationalError, connections, router
from prometheus_client.exposition import generate_latest

from souvenirs import checks, scopes
from souvenirs.management.base import SouvenirsCommand
from souvenirs.models import Souvenir
from souvenirs_metrics import instruments
from souvenirs_metrics.checks import is_token
from souvenirs_metrics.collector import SouvenirsCollector
from souvenirs_metrics.conf import conf
from souvenirs_metrics.deadline import Deadline, scrape_timeout
from souvenirs_metrics.server import Server

DEFAULT = "127.0.0.1:9790"
ONCE_SECONDS = 60.0  # that --once may take to read everything
CONNECT_SECONDS = 5.0  # that a database may take at the start


class Address(NamedTuple):
    host: str
    port: int


def parse_address(text: str | Address) -> Address:
    """[address:]port, with an IPv6 address in brackets. ArgumentTypeError for anything else."""
    if isinstance(text, Address):
        return text
    match = re.fullmatch(r"(?:(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]]*)):)?([0-9]{1,5})", text)
    if match is None or int(match[3]) > 65_535:
        raise ArgumentTypeError(f"{text!r} is not [address:]port; write it like {DEFAULT} or 9790")
    return Address(match[1] or match[2] or "127.0.0.1", int(match[3]))


class Command(SouvenirsCommand):
    help = (
        "Serves the metrics at /metrics, from a process of its own beside the site, and rolls up"
        " the history. It ends on SIGTERM and on Ctrl-C. The site's counters of visits are on its"
        " page only if PROMETHEUS_MULTIPROC_DIR is that of the site."
    )
    requires_system_checks = (checks.TAG,)

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "address",
            nargs="?",
            type=parse_address,
            default=parse_address(DEFAULT),
            metavar="[address:]port",
            help=f"where to listen (default: {DEFAULT}); port 0 takes a free one and prints it",
        )
        parser.add_argument("--tls-cert", metavar="FILE", help="certificate: serve HTTPS (PEM)")
        parser.add_argument("--tls-key", metavar="FILE", help="its key, if that is another file")
        parser.add_argument(
            "--token-file",
            metavar="FILE",
            help="bearer tokens that /metrics demands, one a line, in place of"
            " SOUVENIRS_METRICS_TOKEN and SOUVENIRS_METRICS_AUTHORIZE",
        )
        parser.add_argument(
            "--once",
            action="store_true",
            help="print the gauges and end, for a textfile collector; exit code 1 if some could not"
            " be read",
        )

    def execute(self, *args: Any, **options: Any) -> str | None:
        if scopes.is_scoped() and not options["once"]:
            raise CommandError(
                "The exporter serves one site, and each of your tenants is one: scrape the tenants'"
                " own /metrics instead, or run this with --once for each tenant"
            )
        return super().execute(*args, **options)

    def handle(self, *args: Any, **options: Any) -> None:
        if options["once"]:
            self.print_page()
            return
        if options["token_file"]:
            settings.SOUVENIRS_METRICS_TOKEN = read_tokens(options["token_file"])
            settings.SOUVENIRS_METRICS_AUTHORIZE = None  # what the command line says wins
            conf.reset()
        address: Address = options["address"]
        try:
            server = Server(*address, tls_context(options["tls_cert"], options["tls_key"]))
        except (OSError, OverflowError) as error:
            raise CommandError(
                f"Cannot listen at {address.host} port {address.port}: {error}"
            ) from None
        instruments.hide_process_counters()
        for number in (signal.SIGTERM, signal.SIGINT):
            # Not by this thread, which `shutdown` waits for
            signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
        host = f"[{address.host}]" if ":" in address.host else address.host
        scheme = "https" if options["tls_cert"] else "http"
        self.stdout.write(f"Serving {scheme}://{host}:{server.server_port}/metrics")
        self.stdout.flush()
        server.run()

    def require_tables(self) -> None:
        using = router.db_for_write(Souvenir)
        if connections[using].in_atomic_block:
            super().require_tables()
            return
        deadline = Deadline(CONNECT_SECONDS)
        try:
            with deadline.connect_within(using):
                super().require_tables()
        except (OperationalError, InterfaceError, TimeoutError):
            pass  # souvenirs_up says so, until the database is back
        finally:
            deadline.close()

    def print_page(self) -> None:
        scrape_timeout.set(ONCE_SECONDS)
        families = list(SouvenirsCollector().collect())
        collected: Any = SimpleNamespace(collect=lambda: families)
        self.stdout.write(generate_latest(collected).decode(), ending="")
        if any(f.name == "souvenirs_up" and f.samples[0].value != 1 for f in families):
            raise CommandError("Some metrics could not be read; the log has the cause.")


def read_tokens(path: str) -> list[str]:
    """The tokens of a file, one a line. Raises CommandError if there are none, or others."""
    try:
        tokens = Path(path).read_text().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"Cannot read --token-file {path}: {error}") from None
    tokens = [token.strip() for token in tokens if token.strip()]
    if not tokens or not all(map(is_token, tokens)):
        raise CommandError(f"--token-file {path} has no tokens, one a line, of visible ASCII")
    return tokens


def tls_context(certificate: str | None, key: str | None) -> ssl.SSLContext | None:
    """TLS with this certificate, None without one. Raises CommandError for files that are none."""
    if certificate is None:
        if key is not None:
            raise CommandError("--tls-key has no certificate: give --tls-cert too")
        return None
    cert_text = read_pem("--tls-cert", certificate)
    if "CERTIFICATE-----" not in cert_text:
        raise CommandError(f"--tls-cert {certificate} has no certificate (PEM)")
    key_option = f"--tls-key {key}" if key else f"--tls-cert {certificate}"
    key_text = read_pem("--tls-key", key) if key else cert_text
    if "PRIVATE KEY-----" not in key_text:
        remedy = "" if key else ": give --tls-key too, the file that has it"
        raise CommandError(f"{key_option} has no private key (PEM){remedy}")
    if "ENCRYPTED" in key_text:
        raise CommandError(f"{key_option} is encrypted: give a key that needs no password")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
            raise CommandError(f"{key_option} is not the key of the certificate") from None
        raise CommandError(f"Cannot use --tls-cert {certificate}: {error}") from None
    return context


def read_pem(option: str, path: str) -> str:
    """Raise CommandError, which names the option, if the file cannot be read."""
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise CommandError(f"Cannot read {option} {path}: {error.strerror}") from None
