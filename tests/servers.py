"""Real servers for the tests: on free ports of loopback, in temporary directories, stopped by
pid."""

from __future__ import annotations

import atexit
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

START_SECONDS = 60

MEMORY = Path("/dev/shm")  # a file system in memory, on most Linux systems
ROOM_BYTES = 4 * 2**30  # more than everything needs that is there at a time

# The programs that the tests need, and their Debian packages
PACKAGES = {
    "chromium": "chromium",
    "faketime": "faketime",
    "gcc": "build-essential",  # needed to build mysqlclient, like the next three
    "mariadb_config": "libmariadb-dev",
    "mariadbd": "mariadb-server",
    "pkg-config": "pkg-config",
    "pg_basebackup": "postgresql",
    "pg_isready": "postgresql",
    "postgres": "postgresql",
    "prometheus": "prometheus",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "promtool": "prometheus",
    "redis-cli": "redis-server",
    "redis-server": "redis-server",
}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def find_program(name: str) -> str | None:
    """The path of a program, including programs that Debian does not put on the PATH."""
    for directory in [
        *os.environ.get("PATH", "").split(os.pathsep),
        "/usr/sbin",
        *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)),
    ]:
        found = shutil.which(name, path=directory)
        if found:
            return found
    return None


def program(name: str, package: str) -> str:
    """The path of a server's program. A missing one is an error: tests are never skipped."""
    found = find_program(name)
    if found is None:
        raise RuntimeError(f"{name} is not installed: apt-get install {package} (make servers)")
    return found


def wait_for(is_ready: Callable[[], bool], process: subprocess.Popen[Any], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not is_ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{process.args!r} did not start:\n{log.read_text()[-4000:]}")
        time.sleep(0.05)


def accepts(port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex(("127.0.0.1", port)) == 0


def answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=1) as response:
            return bool(response.status == 200)
    except (URLError, OSError):
        return False


def data_root() -> Path | None:
    """The parent of temporary directories: in memory for tests, if it has room. None is the
    system's place for temporary files, which benchmarks use so that they measure it."""
    if "PYTEST_VERSION" not in os.environ or not os.access(MEMORY, os.W_OK):
        return None
    return MEMORY if shutil.disk_usage(MEMORY).free > ROOM_BYTES else None


@contextmanager
def directory(prefix: str) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix=f"souvenirs-{prefix}-", dir=data_root()))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def unshifted() -> dict[str, str]:
    """The environment without faketime's library (tests/dates.py): Redis does not run with it, and
    PostgreSQL's timeouts do not fire."""
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


@contextmanager
def running(
    command: Sequence[str], is_ready: Callable[[], bool], log: Path, **options: Any
) -> Iterator[subprocess.Popen[Any]]:
    """Run a program until the block ends; enter the block when `is_ready`."""
    options = {"env": unshifted(), **options}
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, **options)
    try:
        wait_for(is_ready, process, log)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def unprivileged(name: str, path: Path) -> dict[str, Any]:
    """Popen's options to run as the system user `name`, the owner of `path`, if we are root."""
    if os.geteuid() != 0:
        return {}
    user = pwd.getpwnam(name)
    os.chown(path, user.pw_uid, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [], "cwd": path}


@contextmanager
def postgresql() -> Iterator[dict[str, Any]]:
    """Run a PostgreSQL server; yield its entry for DATABASES."""
    with directory("postgresql") as path:
        make_postgresql(path)
        with postgresql_in(path, free_port()) as entry:
            yield entry


def make_postgresql(path: Path) -> None:
    """Create the data directory of a PostgreSQL server, for `postgresql_in`."""
    subprocess.run(
        [program("initdb", "postgresql"), "--pgdata", path / "data", "--auth=trust",
         "--no-sync", "--username=souvenirs", "--encoding=UTF8", "--locale=C.UTF-8"],
        check=True, capture_output=True, **unprivileged("postgres", path),
    )  # fmt: skip


def copy_postgresql(primary: dict[str, Any], path: Path) -> None:
    """Create the data directory of a streaming replica of a PostgreSQL server, for
    `postgresql_in`."""
    subprocess.run(
        [program("pg_basebackup", "postgresql"), "--pgdata", path / "data", "--host",
         primary["HOST"], "--port", primary["PORT"], "--username", primary["USER"],
         "--write-recovery-conf", "--checkpoint=fast", "--no-sync"],
        check=True, capture_output=True, **unprivileged("postgres", path),
    )  # fmt: skip


@contextmanager
def postgresql_in(path: Path, port: int) -> Iterator[dict[str, Any]]:
    """Run a PostgreSQL server on a data directory; yield its entry for DATABASES. At the end it
    terminates all sessions."""
    command = [
        program("postgres", "postgresql"), "-D", str(path / "data"), "-p", str(port),
        "-k", str(path), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off",
        "-c", "max_connections=200",
    ]  # fmt: skip
    # It listens before it accepts sessions
    pg_isready = [program("pg_isready", "postgresql"), "-q", "-h", "127.0.0.1", "-p", str(port)]
    is_ready = partial(subprocess.call, pg_isready)
    options = unprivileged("postgres", path)
    with running(command, lambda: is_ready() == 0, path / "log", **options) as process:
        yield {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": "postgres",
            "USER": "souvenirs",
            "HOST": "127.0.0.1",
            "PORT": str(port),
        }
        process.send_signal(signal.SIGINT)


@contextmanager
def mariadb() -> Iterator[dict[str, Any]]:
    """Run a MariaDB server; yield its entry for DATABASES."""
    with directory("mariadb") as path:
        make_mariadb(path)
        with mariadb_in(path, free_port()) as entry:
            yield entry


def make_mariadb(path: Path) -> None:
    """Create the data directory of a MariaDB server, for `mariadb_in`."""
    subprocess.run(
        [program("mariadb-install-db", "mariadb-server"), "--no-defaults",
         f"--datadir={path / 'data'}", "--auth-root-authentication-method=normal",
         "--skip-test-db"],
        check=True, capture_output=True, **unprivileged("mysql", path),
    )  # fmt: skip


@contextmanager
def mariadb_in(path: Path, port: int) -> Iterator[dict[str, Any]]:
    """Run a MariaDB server on a data directory; yield its entry for DATABASES."""
    command = [
        program("mariadbd", "mariadb-server"), "--no-defaults", f"--datadir={path / 'data'}",
        f"--socket={path / 'socket'}", f"--pid-file={path / 'pid'}", f"--port={port}",
        "--bind-address=127.0.0.1", "--innodb-flush-log-at-trx-commit=0",
        "--character-set-server=utf8mb4", "--max-connections=200",
    ]  # fmt: skip
    log = path / "log"
    log.write_text("")  # the log of an earlier server does not count
    options = unprivileged("mysql", path)
    # It listens before it can be stopped
    with running(command, lambda: "ready for connections" in log.read_text(), log, **options):
        yield {
            "ENGINE": "django.db.backends.mysql",
            "NAME": "mysql",
            "USER": "root",
            "HOST": "127.0.0.1",
            "PORT": str(port),
        }


class Restartable:
    """A database server that can be stopped, and started again with the same data and port."""

    def __init__(self, engine: str, path: Path) -> None:
        make, self._server_in = {
            "postgresql": (make_postgresql, postgresql_in),
            "mariadb": (make_mariadb, mariadb_in),
        }[engine]
        make(path)
        self._path, self._port = path, free_port()
        self._running = ExitStack()
        self.start()

    def start(self) -> None:
        self.entry = self._running.enter_context(self._server_in(self._path, self._port))

    def stop(self) -> None:
        self._running.close()

    def restart(self) -> None:
        self.stop()
        self.start()


@contextmanager
def restartable(engine: str) -> Iterator[Restartable]:
    with directory(engine) as path:
        server = Restartable(engine, path)
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def redis(
    port: int | None = None, *options: str, path: Path | None = None
) -> Iterator[tuple[str, subprocess.Popen[Any]]]:
    """Run a Redis server that stores nothing on disk; yield its URL and its process. `path` is
    where it and its replicas store what they know about each other."""
    port = port or free_port()
    with directory("redis") as own:
        path = path or own
        command = [
            program("redis-server", "redis-server"), "--port", str(port), "--bind", "127.0.0.1",
            "--save", "", "--appendonly", "no", "--dir", str(path),
            "--repl-diskless-sync-delay", "0", *options,
        ]  # fmt: skip
        with running(command, lambda: accepts(port), path / "log") as process:
            yield f"redis://127.0.0.1:{port}/0", process


def port_of(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None
    return port


def certificate(path: Path) -> None:
    """Write the files "cert" and "key" of a server on loopback to that directory."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
         "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key", "-out",
         "cert"],
        cwd=path, check=True, capture_output=True,
    )  # fmt: skip


class RedisNodes:
    """Servers by port, which can be stopped and started again."""

    def __init__(self, stack: ExitStack, path: Path, options: Sequence[str] = ()) -> None:
        self._stack, self._path, self._options = stack, path, options
        self.processes: dict[int, subprocess.Popen[Any]] = {}

    @property
    def urls(self) -> list[str]:
        return [f"redis://127.0.0.1:{port}" for port in self.processes]

    def start(self, port: int, *options: str) -> None:
        path = self._path / str(port)
        path.mkdir(exist_ok=True)
        server = redis(port, *self._options, *options, path=path)
        _, self.processes[port] = self._stack.enter_context(server)

    def kill(self, port: int) -> None:
        self.processes[port].kill()
        self.processes[port].wait()

    def cli(self, port: int, *command: str) -> str:
        return redis_cli("-p", str(port), *command)


def redis_cli(*arguments: str) -> str:
    command = [program("redis-cli", "redis-server"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=unshifted())
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout


def wait_until(is_so: Callable[[], bool], seconds: float = START_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


NODE_MILLISECONDS = 4000  # after which servers that do not answer consider each other dead


@contextmanager
def redis_cluster(replicas: int = 0) -> Iterator[RedisNodes]:
    """Run a Redis Cluster of three masters with this many replicas each; the masters come first."""

    def free_port_of_cluster() -> int:  # the cluster bus uses the port 10,000 above
        while (port := free_port()) > 55_000 or accepts(port + 10_000):
            pass
        return port

    options = ["--cluster-enabled", "yes", "--cluster-node-timeout", str(NODE_MILLISECONDS)]
    with directory("cluster") as path, ExitStack() as stack:
        nodes = RedisNodes(stack, path, options)
        for _ in range(3 * (1 + replicas)):
            nodes.start(free_port_of_cluster())
        ports = list(nodes.processes)
        redis_cli(
            "--cluster", "create", *[f"127.0.0.1:{port}" for port in ports],
            "--cluster-replicas", str(replicas), "--cluster-yes",
        )  # fmt: skip
        for port in ports:
            wait_until(lambda: "cluster_state:ok" in nodes.cli(port, "cluster", "info"))  # noqa: B023
        for port in ports[3:]:
            wait_until(lambda: is_in_sync(nodes, port))  # noqa: B023
        yield nodes


def is_in_sync(nodes: RedisNodes, replica: int) -> bool:
    return "master_link_status:up" in nodes.cli(replica, "info", "replication")


@contextmanager
def redis_sentinel() -> Iterator[tuple[str, RedisNodes]]:
    """Run a master called "souvenirs", its replica, and a Sentinel, whose URL comes first."""
    with directory("sentinel") as path, ExitStack() as stack:
        nodes = RedisNodes(stack, path)
        master, replica, port = free_port(), free_port(), free_port()
        nodes.start(master)
        nodes.start(replica, "--replicaof", "127.0.0.1", str(master))
        config = path / "sentinel.conf"
        config.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {path}\n"
            f"sentinel monitor souvenirs 127.0.0.1 {master} 1\n"
            f"sentinel down-after-milliseconds souvenirs {NODE_MILLISECONDS}\n"
            "sentinel failover-timeout souvenirs 5000\n"
        )
        command = [program("redis-server", "redis-server"), str(config), "--sentinel"]
        log = path / "log"
        stack.enter_context(running(command, lambda: accepts(port), log))
        wait_until(lambda: is_in_sync(nodes, replica))
        wait_until(lambda: "num-slaves\n1\n" in nodes.cli(port, "sentinel", "masters"))
        yield f"redis://127.0.0.1:{port}", nodes


@contextmanager
def prometheus(
    config: str = "",
    *,
    data: Path | None = None,
    port: int | None = None,
    flags: Sequence[str] = (),
) -> Iterator[str]:
    """Run a Prometheus server with this configuration file, on these blocks; yield its URL."""
    with directory("prometheus") as path:
        (path / "prometheus.yml").write_text(config)
        url = f"http://127.0.0.1:{port or free_port()}"
        command = [
            program("prometheus", "prometheus"),
            f"--config.file={path / 'prometheus.yml'}",
            f"--storage.tsdb.path={data or path / 'data'}",
            "--storage.tsdb.retention.time=100y",
            f"--web.listen-address={url.removeprefix('http://')}",
            *flags,
        ]
        with running(command, lambda: answers(f"{url}/-/ready"), path / "log"):
            yield url


def database(engine: str) -> dict[str, Any]:
    """The DATABASES entry for an engine. Starts a server that stops with the process; child
    processes (pytest-xdist's workers) share their parent's through the environment."""
    if engine == "sqlite":
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
    servers = {"postgresql": postgresql, "mariadb": mariadb}
    if engine not in servers:
        raise ValueError(f"DATABASE is {engine!r}; use sqlite, {' or '.join(servers)}")
    if "SOUVENIRS_TESTS_DATABASE" not in os.environ:
        server = servers[engine]()
        os.environ["SOUVENIRS_TESTS_DATABASE"] = json.dumps(server.__enter__())
        atexit.register(server.__exit__, None, None, None)
    entry: dict[str, Any] = json.loads(os.environ["SOUVENIRS_TESTS_DATABASE"])
    return entry


def missing_packages() -> set[str]:
    """The Debian packages that the tests need and this machine lacks."""
    missing = {package for name, package in PACKAGES.items() if not find_program(name)}
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        missing.add("python3-dev")  # needed to build mysqlclient
    return missing


if __name__ == "__main__":
    print(*sorted(missing_packages()))
