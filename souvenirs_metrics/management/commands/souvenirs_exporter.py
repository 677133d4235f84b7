"""Serves the metrics from a separate process."""

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
ONCE_SECONDS = 60.0  # how long --once may take to read everything
CONNECT_SECONDS = 5.0  # how long checking the tables may take at start-up


class Address(NamedTuple):
    host: str
    port: int


def parse_address(text: str | Address) -> Address:
    """Parse [address:]port, with an IPv6 address in brackets.

    Raise ArgumentTypeError for anything else.
    """
    if isinstance(text, Address):
        return text
    match = re.fullmatch(r"(?:(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]]*)):)?([0-9]{1,5})", text)
    if match is None or int(match[3]) > 65_535:
        raise ArgumentTypeError(f"must be [address:]port, like {DEFAULT} or 9790, not {text!r}")
    return Address(match[1] or match[2] or "127.0.0.1", int(match[3]))


class Command(SouvenirsCommand):
    help = (
        "Serves the metrics at /metrics from a separate process beside the site, and rolls up the"
        " history. It stops on SIGTERM and Ctrl-C. Its page has the site's counters of visits only"
        " if both have the same PROMETHEUS_MULTIPROC_DIR."
    )
    requires_system_checks = (checks.TAG,)

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "address",
            nargs="?",
            type=parse_address,
            default=parse_address(DEFAULT),
            metavar="[address:]port",
            help=f"where to listen (default: {DEFAULT}); with port 0, on a free port, which is"
            " printed",
        )
        parser.add_argument(
            "--tls-cert", metavar="FILE", help="serve HTTPS with this certificate (PEM)"
        )
        parser.add_argument(
            "--tls-key", metavar="FILE", help="private key, if it is not in the certificate's file"
        )
        parser.add_argument(
            "--token-file",
            metavar="FILE",
            help="bearer tokens that /metrics requires, one per line, in place of"
            " SOUVENIRS_METRICS_TOKEN and SOUVENIRS_METRICS_AUTHORIZE",
        )
        parser.add_argument(
            "--once",
            action="store_true",
            help="print the gauges and exit, for a textfile collector; the exit code is 1 if some"
            " could not be read",
        )

    def execute(self, *args: Any, **options: Any) -> str | None:
        if scopes.is_scoped() and not options["once"]:
            raise CommandError(
                "The exporter serves a single site, but each of your tenants is a site: scrape the"
                " /metrics of each tenant instead, or run this command with --once for each tenant"
            )
        return super().execute(*args, **options)

    def handle(self, *args: Any, **options: Any) -> None:
        if options["once"]:
            self.print_page()
            return
        if options["token_file"]:
            settings.SOUVENIRS_METRICS_TOKEN = read_tokens(options["token_file"])
            settings.SOUVENIRS_METRICS_AUTHORIZE = None  # the command line takes precedence
            conf.reset()
        address: Address = options["address"]
        try:
            server = Server(*address, tls_context(options["tls_cert"], options["tls_key"]))
        except (OSError, OverflowError) as error:
            raise CommandError(
                f"Cannot listen on {address.host} port {address.port}: {error}"
            ) from None
        instruments.hide_process_counters()
        for number in (signal.SIGTERM, signal.SIGINT):
            # In another thread, because `shutdown` waits for this one
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
            pass  # souvenirs_up is 0 until the database is back
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
    """Read the tokens of a file, one per line. Raise CommandError if there are none, or if one is
    invalid."""
    try:
        tokens = Path(path).read_text().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"Cannot read --token-file {path}: {error}") from None
    tokens = [token.strip() for token in tokens if token.strip()]
    if not tokens or not all(map(is_token, tokens)):
        raise CommandError(
            f"--token-file {path} must contain tokens of visible ASCII characters, one per line"
        )
    return tokens


def tls_context(certificate: str | None, key: str | None) -> ssl.SSLContext | None:
    """Return a TLS context with this certificate, or None without one.

    Raise CommandError for files that cannot be used.
    """
    if certificate is None:
        if key is not None:
            raise CommandError("--tls-key needs a certificate: add --tls-cert")
        return None
    cert_text = read_pem("--tls-cert", certificate)
    if "CERTIFICATE-----" not in cert_text:
        raise CommandError(f"--tls-cert {certificate} does not contain a certificate (PEM)")
    key_option = f"--tls-key {key}" if key else f"--tls-cert {certificate}"
    key_text = read_pem("--tls-key", key) if key else cert_text
    if "PRIVATE KEY-----" not in key_text:
        remedy = "" if key else ": name the file that does with --tls-key"
        raise CommandError(f"{key_option} does not contain a private key (PEM){remedy}")
    if "ENCRYPTED" in key_text:
        raise CommandError(f"{key_option} has an encrypted key: use one without a password")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
            raise CommandError(f"{key_option} does not match the certificate") from None
        raise CommandError(f"Cannot use --tls-cert {certificate}: {error}") from None
    return context


def read_pem(option: str, path: str) -> str:
    """Read a PEM file. Raise CommandError, naming the option, if it cannot be read."""
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise CommandError(f"Cannot read {option} {path}: {error.strerror}") from None
