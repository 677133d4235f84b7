"""Create clients of a Redis, of one behind Sentinels, or of a Cluster, from the setting."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import redis
from redis import Redis, RedisCluster
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError

from souvenirs.conf import conf

untyped: Any = redis

# Seconds that a client waits for a connection, and for a response
TIMEOUT = 0.5
DEFAULTS: dict[str, Any] = {
    "socket_connect_timeout": TIMEOUT,
    "socket_timeout": TIMEOUT,
    "protocol": 2,  # fewer round trips for a new connection
}
ONCE = Retry(NoBackoff(), 0)  # no retries: there is a breaker
# Options that souvenirs sets, or that belong in LOCATION
RESERVED_OPTIONS = {"retry", "host", "port", "unix_socket_path", "startup_nodes", "connection_pool"}


def parse_params(
    *,
    LOCATION: Any = None,
    OPTIONS: Mapping[str, Any] | None = None,
    KEY_PREFIX: Any = ...,
    CLUSTER: bool = False,
    SENTINEL: str | None = None,
    WITH_TABLE: bool = False,
) -> tuple[Callable[[], Any], str, bool]:
    """Parse SOUVENIRS_LAST_SEEN_STORE, without BACKEND. Return a function that creates a client,
    the prefix of keys (by default the site's), and whether each update goes to the table too."""
    if LOCATION is None:
        raise ValueError('LOCATION is missing: add a URL such as "redis://127.0.0.1:6379/1"')
    prefix = conf.site_prefix if KEY_PREFIX is ... else KEY_PREFIX
    if not isinstance(prefix, str) or "{" in prefix:
        raise ValueError(f"KEY_PREFIX must be a string without a hash tag, not {prefix!r}")
    for name, value in {"CLUSTER": CLUSTER, "WITH_TABLE": WITH_TABLE}.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, not {value!r}")
    make_client = client_factory(LOCATION, OPTIONS or {}, cluster=CLUSTER, sentinel=SENTINEL)
    return make_client, prefix, WITH_TABLE


def client_factory(
    locations: str | Sequence[str],
    options: Mapping[str, Any],
    *,
    cluster: bool = False,
    sentinel: str | None = None,
) -> Callable[[], Any]:
    """Return a function that creates a client. Only a Cluster's connects to a server for that.

    locations: URLs (redis://, rediss:// or unix://) of the server, or of some nodes of the Cluster,
        or of the Sentinels. Password, TLS and the rest of the first URL apply to all servers.
    options: for redis-py's clients; they override the URL, which overrides DEFAULTS.
    sentinel: the name of the service that the Sentinels monitor.

    Raises ValueError if these do not go together, and redis-py's errors for unknown options.
    """
    urls = [locations] if isinstance(locations, str) else list(locations)
    if not urls or not all(isinstance(url, str) for url in urls):
        raise ValueError("LOCATION must be a URL or a list of URLs")
    if wrong := [name for name in options if not isinstance(name, str) or name in RESERVED_OPTIONS]:
        raise ValueError(f"OPTIONS must not have {wrong!r}, which souvenirs or LOCATION sets")
    if sentinel is not None and not (isinstance(sentinel, str) and sentinel):
        raise ValueError(f"SENTINEL must be the name of a service, not {sentinel!r}")
    parsed = [url_options(url) for url in urls]
    servers = [(each.get("host", "localhost"), each.get("port", 6379)) for each in parsed]
    kwargs = {**DEFAULTS, **parsed[0], **options, "decode_responses": False}
    if not cluster and sentinel is None:
        if len(urls) > 1:
            raise ValueError("LOCATION has several URLs, which only a CLUSTER or SENTINEL may have")
        validate_options(kwargs)
        return lambda: Redis(retry=ONCE, **kwargs)
    if cluster and sentinel is not None:
        raise ValueError("CLUSTER and SENTINEL exclude each other")
    if "unix_socket_path" in kwargs:
        raise ValueError("a CLUSTER or SENTINEL cannot be reached by unix://")
    for name in ("host", "port"):
        kwargs.pop(name, None)
    if cluster:
        if kwargs.pop("db", 0):
            raise ValueError("a CLUSTER has no database except 0")
        return lambda: make_cluster(servers, kwargs)
    own = {name: kwargs[name] for name in kwargs if name in DEFAULTS or name.startswith("ssl")}
    own.update(kwargs.pop("sentinel_kwargs", {}))
    validate_options(kwargs)
    validate_options(own)
    manager = Sentinels(servers, sentinel_kwargs={**own, "retry": ONCE}, retry=ONCE, **kwargs)
    return lambda: manager.master_for(sentinel)


class Sentinels(untyped.Sentinel):  # type: ignore[misc]
    def discover_master(self, service_name: str) -> Any:
        try:
            return super().discover_master(service_name)
        except MasterNotFoundError:  # its message contains passwords in some versions
            message = f"no Sentinel that responds knows a master {service_name!r}"
            raise MasterNotFoundError(message) from None


def validate_options(kwargs: Mapping[str, Any]) -> None:
    """Raise the error that a client with these options would raise on use. Does not connect."""
    Redis(**kwargs).connection_pool.make_connection()


def url_options(url: str) -> dict[str, Any]:
    """Return the client options in a URL. Raises ValueError if it is not a URL; the message does
    not contain a password."""
    try:
        options: dict[str, Any] = dict(untyped.connection.parse_url(url))
    except ValueError:
        raise ValueError(
            "a URL of LOCATION is not valid: it must begin with redis://, rediss:// or unix://, and"
            " special characters in a user or password must be percent-encoded"
        ) from None
    if wrong := RESERVED_OPTIONS.intersection(options) - {"host", "port"}:
        raise ValueError(f"a URL of LOCATION must not have {sorted(wrong)!r}, which souvenirs sets")
    if options.pop("connection_class", None) is not None and "path" not in options:
        options["ssl"] = True
    if "path" in options:
        options["unix_socket_path"] = options.pop("path")
    return options


def make_cluster(servers: Sequence[tuple[str, int]], kwargs: Mapping[str, Any]) -> RedisCluster:
    # In random order: the first one, which is asked for the list of nodes, may be down
    nodes: list[ClusterNode] = [
        untyped.cluster.ClusterNode(*server) for server in random.sample(servers, len(servers))
    ]
    return RedisCluster(startup_nodes=nodes, require_full_coverage=False, retry=ONCE, **kwargs)


def group_by_node(client: Any, keys: Iterable[str]) -> Iterator[tuple[Redis, list[str]]]:
    """Yield a client for each server that has some of these keys, with the keys that it has."""
    if not isinstance(client, RedisCluster):
        yield client, list(keys)
        return
    cluster: Any = client
    nodes: dict[str, tuple[Any, list[str]]] = {}
    for key in keys:
        node = cluster.get_node_from_key(key)
        nodes.setdefault(node.name, (node, []))[1].append(key)
    for node, of_node in nodes.values():
        yield cluster.get_redis_connection(node), of_node
