"""What a URL of Redis says: one server, a Sentinel's service or a cluster; and the client that follows it.

A route must be read and written where the primary is now. Each new connection looks the name up again, asks the
Sentinels or the cluster again; so what follows a failover is to drop the connections, and `is_stale` says which
answers call for it.
"""

import inspect
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import redis
import redis.asyncio
from redis import exceptions
from redis.asyncio.cluster import ClusterNode as AsyncClusterNode
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.connection import Connection, ConnectionPool, SSLConnection, UnixDomainSocketConnection
from redis.connection import parse_url as parse_plain_url
from redis.retry import Retry

from holdfast.login import is_loopback

REDIS_URL = (
    "the Redis URL cannot be used: write redis://[[user]:password@]host[:port][/db] (rediss:// for"
    " TLS), redis+sentinel://host:port,host:port/service[/db] or redis+cluster://host:port,host:port (rediss+… for"
    " TLS), with special characters of the password percent-encoded"
)
SENTINEL_PORT = 26379
SENTINEL_TIMEOUT = 0.25
"""Seconds to open a connection to one Sentinel, and for its answer: the next one may be asked in the same call."""

Client = redis.Redis | redis.RedisCluster
AsyncClient = redis.asyncio.Redis | redis.asyncio.RedisCluster


class Kind(StrEnum):
    """How the server is found."""

    SERVER = "server"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


@dataclass(frozen=True)
class Place:
    """A URL of Redis, taken apart."""

    url: str = field(repr=False)
    kind: Kind
    nodes: tuple[tuple[str, int], ...]
    """Host and port of the server, of the Sentinels, or of some nodes of the cluster."""
    service: str
    """The name that the Sentinels know the primary by; '' without them."""
    tls: bool
    options: dict[str, Any] = field(repr=False)
    """Of each connection to a server that holds data: login, database, TLS, and `path` of a Unix socket."""
    sentinel_login: dict[str, str] = field(repr=False)

    @property
    def address(self) -> str:
        """Where Redis is, in words and without the login."""
        if path := self.options.get("path"):
            return str(path)
        nodes = ", ".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.nodes)
        return f"the service {self.service!r} of the Sentinels {nodes}" if self.kind is Kind.SENTINEL else nodes


def parse_redis_url(url: str) -> Place:
    """Take the URL apart. Raises ValueError, which quotes no part of it, for one that cannot be used."""
    try:
        return _parse(url)
    except (ValueError, TypeError):
        # The cause may quote a part of the URL, and so of the password.
        raise ValueError(REDIS_URL) from None


def _parse(url: str) -> Place:
    parts = urlsplit(url)
    base, _, suffix = parts.scheme.partition("+")
    if base not in ("redis", "rediss", "unix") or suffix not in ("", "sentinel", "cluster") or parts.fragment:
        raise ValueError(url)
    kind = Kind(suffix) if suffix else Kind.SERVER
    login, at, hosts = parts.netloc.rpartition("@")
    path, service = parts.path, ""
    if kind is Kind.SENTINEL:
        service, _, database = path.strip("/").partition("/")
        service, path = unquote(service), f"/{database}"
        if not service:
            raise ValueError(url)
    if kind is Kind.SERVER and "," in hosts:
        raise ValueError(url)
    if path.strip("/") and base != "unix":
        int(path.strip("/"))
    nodes, options = [], {}
    for host in hosts.split(","):
        if kind is not Kind.SERVER and not host:
            raise ValueError(url)
        one = url if kind is Kind.SERVER else urlunsplit((base, f"{login}{at}{host}", path, parts.query, ""))
        options = parse_plain_url(one)  # type: ignore[no-untyped-call]
        nodes.append(
            (options.pop("host", "localhost"), options.pop("port", SENTINEL_PORT if kind is Kind.SENTINEL else 6379))
        )
    options.pop("connection_class", None)
    sentinel_login = {
        name: options.pop(f"sentinel_{name}") for name in ("username", "password") if f"sentinel_{name}" in options
    }
    if (sentinel_login and kind is not Kind.SENTINEL) or (options.get("db") and kind is Kind.CLUSTER):
        raise ValueError(url)
    place = Place(url, kind, tuple(nodes), service, base == "rediss", options, sentinel_login)
    # No I/O: finds options that do not exist.
    classes: dict[str, Any] = {"unix": UnixDomainSocketConnection, "rediss": SSLConnection}
    ConnectionPool(classes.get(base, Connection), **options).make_connection()
    if kind is Kind.CLUSTER and not options.keys() <= inspect.signature(redis.asyncio.RedisCluster).parameters.keys():
        raise ValueError(url)
    return place


def check_redis_url(url: str, *, allow_password_without_tls: bool = False) -> None:
    """Raises ValueError for a URL that cannot be used, or would send a password where others can read it.

    TLS that does not verify the server protects no password, and lets anybody on the way say what serves: it is refused
    without a password too. Sentinels and clusters say themselves where the servers are, so there only TLS protects it.
    """
    place = parse_redis_url(url)
    verified = (
        place.tls
        and str(place.options.get("ssl_cert_reqs", "required")).lower() == "required"
        and place.options.get("ssl_check_hostname", True)
    )
    local = place.kind is Kind.SERVER and ("path" in place.options or is_loopback(place.nodes[0][0]))
    has_password = place.options.get("password") or place.sentinel_login.get("password")
    if has_password and not verified and not local and not allow_password_without_tls:
        goal = {
            Kind.SERVER: place.nodes[0][0],
            Kind.SENTINEL: "the servers that the Sentinels name",
            Kind.CLUSTER: "the nodes that the cluster names",
        }[place.kind]
        scheme = "rediss" if place.kind is Kind.SERVER else f"rediss+{place.kind}"
        raise ValueError(
            f"the password for Redis would go to {goal} without verified TLS; use a {scheme}:// URL, or set "
            "allow_password_without_tls = true where the network is trusted"
        )
    if place.tls and not verified and not local and not allow_password_without_tls:
        raise ValueError(
            "the URL of Redis turns off that TLS verifies the server (ssl_cert_reqs or ssl_check_hostname), so anybody "
            "on the way could say what serves; leave that out and give the CA as ssl_ca_certs, or set "
            "allow_password_without_tls = true where the network is trusted"
        )


def connect(place: Place, *, connect_timeout: float, answer_timeout: float) -> Client:
    """Make a client without retries, for the place of `parse_redis_url`.

    One of a cluster is connected at once: raises redis.RedisError or RedisClusterException where it is away.
    """
    common = _common(connect_timeout, answer_timeout)
    options = common | place.options
    retry = Retry(NoBackoff(), 0)
    if place.kind is Kind.CLUSTER:
        return redis.RedisCluster(
            startup_nodes=[ClusterNode(*node) for node in place.nodes],  # type: ignore[no-untyped-call]
            ssl=place.tls,
            retry=retry,
            dynamic_startup_nodes=False,
            **options,
        )
    if place.kind is Kind.SENTINEL:
        asked = _sentinel_options(place) | {"retry": retry}
        sentinel = redis.Sentinel(list(place.nodes), sentinel_kwargs=asked)  # type: ignore[no-untyped-call]
        client: redis.Redis = sentinel.master_for(place.service, ssl=place.tls, retry=retry, **options)  # type: ignore[no-untyped-call]
        return client
    return redis.Redis.from_url(place.url, retry=retry, **common)


def connect_async(place: Place, *, connect_timeout: float, answer_timeout: float) -> AsyncClient:
    """Make an asyncio client without retries, for the place of `parse_redis_url`. It opens nothing yet."""
    common = _common(connect_timeout, answer_timeout)
    options = common | place.options
    retry = AsyncRetry(NoBackoff(), 0)
    if place.kind is Kind.CLUSTER:
        return redis.asyncio.RedisCluster(
            startup_nodes=[AsyncClusterNode(*node) for node in place.nodes],
            ssl=place.tls,
            retry=retry,
            dynamic_startup_nodes=False,
            **options,
        )
    if place.kind is Kind.SENTINEL:
        asked = _sentinel_options(place) | {"retry": retry}
        sentinel = redis.asyncio.Sentinel(place.nodes, sentinel_kwargs=asked)  # type: ignore[no-untyped-call]
        client: redis.asyncio.Redis = sentinel.master_for(place.service, ssl=place.tls, retry=retry, **options)
        return client
    return redis.asyncio.Redis.from_url(place.url, retry=retry, **common)


def sentinels(client: Any) -> list[Any]:
    """The clients of the Sentinels behind a client, which are closed apart from it."""
    manager = getattr(getattr(client, "connection_pool", None), "sentinel_manager", None)
    return list(manager.sentinels) if manager is not None else []


def is_stale(error: Exception) -> bool:
    """Whether the answer says that this is not, or not now, the server that holds the routes.

    After it the connections are dropped, so that the name is looked up again.
    """
    kinds = (
        exceptions.ReadOnlyError,
        exceptions.BusyLoadingError,
        exceptions.ClusterError,  # CLUSTERDOWN, MASTERDOWN
        exceptions.AskError,  # MOVED too
        exceptions.TryAgainError,
        exceptions.RedisClusterException,
    )
    # Before Redis 7 a script's error has the code inside its text.
    return isinstance(error, kinds) or any(code in str(error) for code in ("-READONLY", "UNBLOCKED", "NOREPLICAS"))


def _common(connect_timeout: float, answer_timeout: float) -> dict[str, Any]:
    return {
        "socket_connect_timeout": connect_timeout,
        "socket_timeout": answer_timeout,
        "protocol": 2,  # One round trip less to connect, and understood by every proxy.
    }


def _sentinel_options(place: Place) -> dict[str, Any]:
    tls = {name: value for name, value in place.options.items() if name.startswith("ssl_")}
    return {
        **_common(SENTINEL_TIMEOUT, SENTINEL_TIMEOUT),
        "ssl": place.tls,
        **tls,
        **place.sentinel_login,
    }
