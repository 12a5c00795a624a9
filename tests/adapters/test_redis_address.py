"""Every Redis URL reaches Feast's client as it was meant, or is refused in a line that shows nothing of it."""

from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt5_crs_pipeline.adapters.feast_import import import_feast
from mt5_crs_pipeline.adapters.redis_address import describe_redis, feast_connection_string, one_line_redis_errors
from mt5_crs_pipeline.core.errors import ConfigurationError, DatabaseRefusedError, DatabaseUnavailableError


def understood(url: str) -> dict[str, Any]:
    """What Feast's own client would connect to, without the time-outs."""
    import_feast()
    from feast.infra.online_stores.redis import RedisOnlineStore

    (server,), options = RedisOnlineStore._parse_connection_string(feast_connection_string(url))
    assert (options.pop("socket_connect_timeout"), options.pop("socket_timeout")) == (10, 30)
    return {**server, **options}


@pytest.mark.parametrize(
    ("url", "expected", "shown"),
    [
        ("redis://cache", {"host": "cache", "port": "6379"}, "cache:6379, database 0"),
        ("redis://10.0.0.1:7000/3", {"host": "10.0.0.1", "port": "7000", "db": 3}, "10.0.0.1:7000, database 3"),
        (
            "rediss://me:12345@c.example:7000/",
            {"host": "c.example", "port": "7000", "username": "me", "password": "12345", "ssl": True},
            "c.example:7000, database 0",
        ),
        (
            "unix://:pw@/run/my%20cache.sock?db=2",
            {"host": "localhost", "port": "6379", "unix_socket_path": "/run/my cache.sock", "password": "pw", "db": 2},
            "/run/my cache.sock, database 2",
        ),
        ("redis://c?health_check_interval=5", {"host": "c", "port": "6379", "health_check_interval": 5}, "c:6379"),
    ],
)
def test_a_url_is_read_as_the_redis_client_reads_it(url: str, expected: dict[str, Any], shown: str) -> None:
    assert understood(url) == expected
    assert describe_redis(url).startswith(shown)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_password_passes_unchanged(password: str) -> None:
    assert understood(f"redis://:{quote(password, safe='')}@h")["password"] == password


@pytest.mark.parametrize(
    "url",
    [
        "s3cret@host:6379",
        "http://:s3cret@host",
        "redis://",
        "redis://:s3cret@",
        "redis://:s3cret@/0",
        "redis://:12#s3cret@host",
        "redis://:12?s3cret@host",
        "redis://:12/s3cret@host",
        "redis://:s3cret@host:port",
        "redis://:s3cret@host/name",
        "redis://:s3cret@[::1]:6379",
        "redis://:s3cret@a,b",
        "redis://:s3cret@host?db=x",
        "redis://:s3cret@host?no_such_option=s3cret",
        "unix://:s3cret@",
    ],
)
def test_any_other_url_is_refused_in_one_line_without_the_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        feast_connection_string(url)
    text = str(error.value)
    assert "MT5_CRS_REDIS_URL" in text and "s3cret" not in text and "\n" not in text
    assert error.value.__cause__ is None


def test_a_server_that_refuses_is_told_from_one_that_does_not_answer(redis_url: str) -> None:
    import redis

    def said(kind: type[Exception], url: str) -> str:
        with redis.Redis.from_url(url) as client, pytest.raises(kind) as error, one_line_redis_errors(url):
            client.pipeline().set("text", "1").hset("text", "field", "1").execute()
        text = str(error.value)
        assert "MT5_CRS_REDIS_URL" in text and "s3cret" not in text and "\n" not in text
        return text

    assert "invalid username-password" in said(DatabaseRefusedError, redis_url.replace("t0p", "no"))
    assert "WRONGTYPE" in said(DatabaseRefusedError, redis_url)
    assert "127.0.0.1:1, database 4" in said(DatabaseUnavailableError, "redis://:s3cret@127.0.0.1:1/4")
