"""The address of a Redis server: read from a URL, told to Feast, and shown without its password."""

import contextlib
import inspect
import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

from mt5_crs_pipeline.core.errors import ConfigurationError, DatabaseRefusedError, DatabaseUnavailableError

_FORM = (
    "write redis://user:password@host:6379/0, rediss:// for TLS or unix:///path/to/redis.sock, and special characters"
    " in the password in percent code, for example %40 for @"
)
# A server that does not answer must not hold a run for ever; the URL may say otherwise.
_TIMEOUTS_S = {"socket_connect_timeout": 10, "socket_timeout": 30}


def feast_connection_string(url: str) -> str:
    """Return `url` as Feast's Redis store takes it: host:port,name=value,...

    Raises ConfigurationError naming the form when it is no Redis URL; the message shows nothing of the URL.
    """
    import redis

    options = _options(url)
    host, port = options.pop("host", "localhost"), options.pop("port", 6379)
    kind = options.pop("connection_class", None)
    if "path" in options:
        options["unix_socket_path"] = options.pop("path")
    if kind is redis.SSLConnection:
        options["ssl"] = True
    unknown = sorted(set(options) - set(inspect.signature(redis.Redis).parameters))
    if unknown:
        raise ConfigurationError(f"MT5_CRS_REDIS_URL has an option {unknown[0]!r} that the Redis client does not know")
    # Feast splits at commas, and reads each value as JSON where it is some: as JSON every character survives.
    values = {name: json.dumps(value).replace(",", "\\u002c") for name, value in (_TIMEOUTS_S | options).items()}
    return ",".join([f"{host}:{port}", *(f"{name}={value}" for name, value in values.items())])


def describe_redis(url: str) -> str:
    """Return host, port and database of `url` without user and password, for messages."""
    options = _options(url)
    place = options.get("path") or f"{options.get('host')}:{options.get('port', 6379)}"
    return f"{place}, database {options.get('db', 0)}"


@contextlib.contextmanager
def one_line_redis_errors(url: str) -> Iterator[None]:
    """Turn what the Redis client raises into DatabaseUnavailableError or DatabaseRefusedError, without the password."""
    from redis import exceptions

    try:
        yield
    except exceptions.RedisError as error:
        said = (str(error).splitlines() or [type(error).__name__])[0].rpartition("caused error: ")[2]
        where = f"Redis at {describe_redis(url)}"
        if isinstance(error, exceptions.AuthenticationError | exceptions.AuthorizationError | exceptions.ResponseError):
            raise DatabaseRefusedError(
                f"{where} refused: {said}; check user, password and rights in MT5_CRS_REDIS_URL"
            ) from error
        raise DatabaseUnavailableError(
            f"{where} did not answer: {said}; is the server up, and is MT5_CRS_REDIS_URL right?"
        ) from error


def _options(url: str) -> dict[str, Any]:
    """Return the client's arguments that `url` stands for."""
    from redis.connection import parse_url

    try:
        options: dict[str, Any] = dict(parse_url(url))  # type: ignore[no-untyped-call]
        parts = urlsplit(url)
    except ValueError:
        raise ConfigurationError(f"MT5_CRS_REDIS_URL is no valid URL: {_FORM}") from None
    path = unquote(parts.path)
    # What the client would silently take for another server or database, such as a password with a # in it.
    good = path.startswith("/") if parts.scheme == "unix" else options.get("host") and re.fullmatch(r"(/\d*)?", path)
    if not good or parts.fragment:
        raise ConfigurationError(f"MT5_CRS_REDIS_URL is no valid URL: {_FORM}")
    if not re.fullmatch(r"[\w.-]+", options.get("host", "localhost")):
        raise ConfigurationError("MT5_CRS_REDIS_URL names its host by what Feast cannot take: write a name or an IPv4")
    return options
