"""SOUVENIRS_LAST_SEEN_STORE -> clients of a Redis, of one behind Sentinels, or of a Cluster."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import redis
from redis import Redis, RedisCluster
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.retry import Retry

untyped: Any = redis

# Seconds that a client waits for a connection, and for an answer
TIMEOUT = 0.5
DEFAULTS: dict[str, Any] = {
    "socket_connect_timeout": TIMEOUT,
    "socket_timeout": TIMEOUT,
    "protocol": 2,  # a new connection takes fewer round trips
}
ONCE = Retry(NoBackoff(), 0)  # to try again is a breaker's care


def maker(
    locations: str | Sequence[str],
    options: Mapping[str, Any],
    *,
    cluster: bool = False,
    sentinel: str | None = None,
) -> Callable[[], Any]:
    """A function that makes a client. It asks no server; but that of a Cluster does.

    locations: URLs (redis://, rediss:// or unix://) of the server, or of some nodes of the Cluster,
        or of the Sentinels. Password, TLS and the rest of the first URL are for all servers.
    options: of redis-py's clients; they win over the URL, and that over DEFAULTS.
    sentinel: the name of the service that the Sentinels watch.

    Raises ValueError if these do not go together.
    """
    urls = [locations] if isinstance(locations, str) else list(locations)
    if not urls:
        raise ValueError("LOCATION is empty")
    parsed = [url_options(url) for url in urls]
    servers = [(each.get("host", "localhost"), each.get("port", 6379)) for each in parsed]
    kwargs = {**DEFAULTS, **parsed[0], **options, "decode_responses": False}
    if not cluster and sentinel is None:
        if len(urls) > 1:
            raise ValueError("LOCATION has several URLs, which are a CLUSTER's or SENTINEL's")
        return lambda: Redis(retry=ONCE, **kwargs)
    if cluster and sentinel is not None:
        raise ValueError("CLUSTER and SENTINEL exclude each other")
    if "unix_socket_path" in kwargs:
        raise ValueError("neither a CLUSTER nor SENTINEL is reached by unix://")
    for name in ("host", "port"):
        kwargs.pop(name, None)
    if cluster:
        if kwargs.pop("db", 0):
            raise ValueError("a CLUSTER has no database but 0")
        return lambda: make_cluster(servers, kwargs)
    own = {name: kwargs[name] for name in (*DEFAULTS, "ssl") if name in kwargs}
    own.update(kwargs.pop("sentinel_kwargs", {}))
    manager = untyped.Sentinel(
        servers, sentinel_kwargs={**own, "retry": ONCE}, retry=ONCE, **kwargs
    )
    return lambda: manager.master_for(sentinel)


def url_options(url: str) -> dict[str, Any]:
    """The options of a client that a URL tells. Raises ValueError if it is none."""
    options: dict[str, Any] = dict(untyped.connection.parse_url(url))
    if options.pop("connection_class", None) is not None and "path" not in options:
        options["ssl"] = True
    if "path" in options:
        options["unix_socket_path"] = options.pop("path")
    return options


def make_cluster(servers: Sequence[tuple[str, int]], kwargs: Mapping[str, Any]) -> RedisCluster:
    # In any order: the first one that is asked which nodes there are may be down
    nodes: list[ClusterNode] = [
        untyped.cluster.ClusterNode(*server) for server in random.sample(servers, len(servers))
    ]
    return RedisCluster(startup_nodes=nodes, require_full_coverage=False, retry=ONCE, **kwargs)


def by_server(client: Any, keys: Iterable[str]) -> Iterator[tuple[Redis, list[str]]]:
    """Clients of the servers that have these keys, and which of them each has."""
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
