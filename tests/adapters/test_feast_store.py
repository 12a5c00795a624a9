"""The real Feast on a real server, over a lake of real bars."""

import contextlib
import re
import struct
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import pandas as pd
import psycopg2
import pyarrow as pa
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import feature_repo
from mt5_crs_pipeline.adapters.feast_store import FeastStore, feast_environment
from mt5_crs_pipeline.adapters.lake import MARKET_DATA, TECHNICAL_FEATURES, Lake
from mt5_crs_pipeline.adapters.online_store import newest_in_lake
from mt5_crs_pipeline.adapters.postgres import FEAST_SCHEMA, prepare_database
from mt5_crs_pipeline.core.bars import CLOSED_BAR_SCHEMA, adjusted, close_time, month_of
from mt5_crs_pipeline.core.errors import ConfigurationError, FeaturesNotStoredError
from mt5_crs_pipeline.core.feature_rows import PIPELINE_FEATURES, feature_rows, feature_schema
from mt5_crs_pipeline.core.features import get_feature_names
from mt5_crs_pipeline.core.labels import EVENT_TIMESTAMP, labelled_bars
from tests.adapters.made_up_bars import query
from tests.adapters.small_model import SYMBOLS, real_bars

NAMES = get_feature_names(PIPELINE_FEATURES)
# IBM ends a month before AAPL, so that the newest rows of the symbols lie in different files.
BARS = real_bars(200)
BARS = BARS[(BARS["symbol"] == "AAPL") | (BARS["time"] < "2013-02-01")].reset_index(drop=True)
ROWS = feature_rows(BARS, "D1")


def write_months(lake: Lake, stage: str, frame: pd.DataFrame, schema: pa.Schema) -> None:
    for month, part in frame.groupby(month_of(frame["time"])):
        lake.write(stage, str(month), pa.Table.from_pandas(part, schema=schema, preserve_index=False))


@pytest.fixture(scope="module")
def url(server: str) -> Iterator[str]:
    admin = psycopg2.connect(re.sub(r"//[^@]*@/[^?]*", "//postgres@/postgres", server))
    admin.autocommit = True
    with admin.cursor() as cursor:
        cursor.execute("create database feast_test owner mt5_crs")
        yield re.sub(r"@/[^?]*", "@/feast_test", server)
        cursor.execute("drop database feast_test with (force)")
    admin.close()


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    lake = Lake(tmp_path_factory.mktemp("lake"))
    write_months(lake, MARKET_DATA, BARS.assign(event_timestamp=close_time(BARS["time"], "D1")), CLOSED_BAR_SCHEMA)
    write_months(lake, TECHNICAL_FEATURES, ROWS, feature_schema())
    return lake


@pytest.fixture(scope="module")
def feast(url: str, lake: Lake) -> Iterator[FeastStore]:
    prepare_database(url)
    store = FeastStore(url, "D1", lake.folder)
    assert store.registered_feature_set() is None
    store.apply()
    yield store
    store.close()


def newest(rows: pd.DataFrame) -> pd.DataFrame:
    """The newest row of each symbol, by sorting and nothing cleverer."""
    return rows.sort_values(["symbol", "time"]).groupby("symbol").tail(1).set_index("symbol")


def bits(values: Any) -> list[bytes]:
    return [struct.pack("<d", float(value)) for value in values]


def assert_online_equals(feast: FeastStore, expected: pd.DataFrame) -> None:
    online = feast.online_rows(list(SYMBOLS)).set_index("symbol")
    assert sorted(online.index) == sorted(expected.index)
    for symbol in expected.index:
        assert bits(online.loc[symbol, NAMES]) == bits(expected.loc[symbol, NAMES]), symbol
        assert online.loc[symbol, EVENT_TIMESTAMP] == expected.loc[symbol, EVENT_TIMESTAMP]


# --- The registry ----------------------------------------------------------------------------------------------------


def test_applying_twice_changes_nothing(feast: FeastStore, url: str) -> None:
    def registry() -> list[Any]:
        tables = query(url, "select tablename::text from pg_tables where schemaname = 'feast' order by 1")
        counts = [(name, query(url, f'select count(*) from feast."{name}"')) for (name,) in tables]
        specs = query(url, "select feature_view_name, md5(feature_view_proto) from feast.feature_views order by 1")
        return [counts, [name for name, _ in specs]]

    first, before = feast.apply(), registry()
    assert feast.apply() == first
    assert registry() == before
    assert first == {"entities": 1, "feature views": 2, "feature services": 1, "features": len(NAMES)}
    assert feast.registered_feature_set() == PIPELINE_FEATURES.feature_set_hash


def test_everything_feast_keeps_lies_in_its_own_schema(feast: FeastStore, url: str) -> None:
    tables = query(
        url,
        "select schemaname::text, count(*) from pg_tables"
        " where tablename ~ 'feature|feast' and tableowner = 'mt5_crs' group by 1",
    )
    assert [schema for schema, _ in tables] == [FEAST_SCHEMA]


def test_views_have_the_features_of_the_module_as_doubles(feast: FeastStore) -> None:
    views = {view.name: view for view in feast.store.list_feature_views()}
    assert sorted(field.name for field in views["technical_features"].features) == sorted(NAMES)
    assert {str(field.dtype) for field in views["technical_features"].features} == {"Float64"}
    assert views["technical_features"].online and not views["market_data_features"].online
    assert views["market_data_features"].ttl == timedelta(days=30)


# --- Online ----------------------------------------------------------------------------------------------------------


def test_the_online_store_holds_the_newest_row_of_every_symbol_to_the_bit(feast: FeastStore, lake: Lake) -> None:
    months = lake.months(TECHNICAL_FEATURES)
    assert feast.write_online(lambda: newest_in_lake(lake, months)).left_alone == {}
    expected = newest(ROWS)
    assert expected[EVENT_TIMESTAMP].nunique() == 2
    assert_online_equals(feast, expected)
    # An old month again, as a backfill does: nothing older wins.
    assert feast.write_online(lambda: newest_in_lake(lake, months[3:4])).written == {}
    assert_online_equals(feast, expected)


def test_a_later_row_replaces_the_online_one_of_its_own_timeframe(url: str, feast: FeastStore, tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    store = FeastStore(url, "H1", lake.folder)
    known = ROWS[ROWS["time"] < "2013-01-15"]
    for rows in (known, ROWS):
        write_months(lake, TECHNICAL_FEATURES, rows, feature_schema())
        write_months(lake, MARKET_DATA, BARS.assign(event_timestamp=BARS["known_at"]), CLOSED_BAR_SCHEMA)
        store.apply()
        store.write_online(lambda: newest_in_lake(lake, lake.months(TECHNICAL_FEATURES)))
        assert_online_equals(store, newest(rows))
    store.close()
    assert len(query(url, "select 1 from pg_tables where tablename ~ 'technical_features$'")) == 2


def test_online_rows_are_written_whatever_was_applied_before(lake: Lake, url: str) -> None:
    with contextlib.closing(FeastStore(url, "H4", lake.folder)) as store:
        with pytest.raises(FeaturesNotStoredError):
            store.online_rows(["AAPL"])
        # Nothing; another feature set; this one, by a process that died before Feast made the table.
        for before in (lambda: None, lambda: register_another(store), lambda: query(url, f"drop table {H4_TABLE}")):
            before()
            store.write_online(lambda: newest_in_lake(lake, lake.months(TECHNICAL_FEATURES)))
            assert store.registered_feature_set() == PIPELINE_FEATURES.feature_set_hash
            assert_online_equals(store, newest(ROWS))


H4_TABLE = "feast.mt5_crs_h4_technical_features"


def register_another(store: FeastStore) -> None:
    view = store.store.get_feature_view(TECHNICAL_FEATURES)
    view.tags = {"feature_set_hash": "another"}
    store.store.apply(view)
    assert store.registered_feature_set() == "another"


def test_a_closed_store_has_no_connection_left_and_opens_again(feast: FeastStore, url: str) -> None:
    feast.online_rows(["AAPL"])
    feast.close()
    feast.close()
    others = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    deadline = time.monotonic() + 10
    while query(url, others) != [(0,)]:
        assert time.monotonic() < deadline
    assert feast.registered_feature_set() == PIPELINE_FEATURES.feature_set_hash


def test_a_symbol_nobody_materialized_has_no_values(feast: FeastStore) -> None:
    online = feast.online_rows(["NOPE"])
    assert online["symbol"].tolist() == ["NOPE"]
    assert online.drop(columns="symbol").isna().all(axis=None)


# --- Training rows ---------------------------------------------------------------------------------------------------


def test_training_rows_are_the_features_at_each_labels_bar_close(feast: FeastStore) -> None:
    labels = labelled_bars(adjusted(BARS), "D1")
    joined = feast.training_rows(labels)
    assert len(joined) == len(labels) > 300
    features = {(row["symbol"], row[EVENT_TIMESTAMP]): row for row in ROWS.to_dict("records")}
    for row in joined.to_dict("records"):
        expected = features[row["symbol"], row[EVENT_TIMESTAMP].tz_convert("UTC")]
        assert bits(row[name] for name in NAMES) == bits(expected[name] for name in NAMES)
    key = ["symbol", EVENT_TIMESTAMP]
    left, right = (frame.sort_values(key)["target"].tolist() for frame in (joined, labels))
    assert left == right
    assert list(joined.columns) == [*labels.columns, *NAMES]


def test_a_label_between_bars_gets_the_bar_before_and_none_before_the_first(feast: FeastStore) -> None:
    closes = ROWS.loc[ROWS["symbol"] == "AAPL", EVENT_TIMESTAMP].sort_values(ignore_index=True)
    asked = [closes[0] - pd.Timedelta(hours=1), closes[150] - pd.Timedelta(microseconds=1), closes[150]]
    late = closes.iloc[-1] + pd.Timedelta(days=31)
    labels = pd.DataFrame({"symbol": "AAPL", EVENT_TIMESTAMP: [*asked, late], "target": 1.0})
    joined = feast.training_rows(labels).sort_values(EVENT_TIMESTAMP, ignore_index=True)
    rows = ROWS[ROWS["symbol"] == "AAPL"].set_index(EVENT_TIMESTAMP)
    assert joined.loc[0, NAMES].isna().all()
    assert bits(joined.loc[1, NAMES]) == bits(rows.loc[closes[149], NAMES])
    assert bits(joined.loc[2, NAMES]) == bits(rows.loc[closes[150], NAMES])
    assert joined.loc[3, NAMES].isna().all()  # a row older than the time to live


# --- The environment -------------------------------------------------------------------------------------------------


def environment(url: str, timeframe: str = "D1", redis_url: str = "") -> dict[str, Any]:
    found = feast_environment(url, timeframe, redis_url)
    assert all(value.isascii() and "\n" not in value for value in found.values())
    return {name.removeprefix("MT5_CRS_FEAST_"): yaml.safe_load(value) for name, value in found.items()}


def test_a_socket_url_becomes_host_port_database_and_user() -> None:
    found = environment("postgresql://mt5_crs@/mt5_crs?host=%2Ftmp%2FSome%20Folder%2Frun&port=5433", "H1")
    registry = found.pop("REGISTRY")
    assert found == {
        "PROJECT": "mt5_crs_h1",
        "ONLINE_STORE": {
            "type": "postgres",
            "host": "/tmp/Some Folder/run",
            "port": "5433",
            "database": "mt5_crs",
            "db_schema": "feast",
            "user": "mt5_crs",
            "password": "",
            "sslmode": "prefer",
        },
    }
    assert registry.startswith("postgresql+psycopg2://mt5_crs@/mt5_crs?") and "search_path" in registry


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u:p@db.example/d", ("db.example", "5432", "d", "u", "p", "prefer")),
        ("postgres://u@10.0.0.1:6000/d?sslmode=require", ("10.0.0.1", "6000", "d", "u", "", "require")),
        ("postgresql+psycopg2://u:p@[::1]:6000/d", ("::1", "6000", "d", "u", "p", "prefer")),
        ("postgresql:///d?user=u&password=a%2Bb+c&host=h", ("h", "5432", "d", "u", "a+b+c", "prefer")),
        ("postgresql://%2FTmp%2FSock/my%20db", ("/Tmp/Sock", "5432", "my db", "postgres", "", "prefer")),
    ],
)
def test_every_form_of_url_is_read_as_libpq_reads_it(url: str, expected: tuple[str, ...]) -> None:
    found = environment(url)["ONLINE_STORE"]
    assert tuple(found[key] for key in ("host", "port", "database", "user", "password", "sslmode")) == expected


@given(st.text(st.characters(min_codepoint=1, max_codepoint=0x2FFF, exclude_categories=["Cs"]), min_size=1))
def test_any_password_passes_unchanged(password: str) -> None:
    assert environment(f"postgresql://u:{quote(password, safe='')}@h:1/d")["ONLINE_STORE"]["password"] == password


def test_a_url_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError):
        environment("mysql://u:p@h/d")


@pytest.mark.parametrize("in_redis", [False, True])
def test_a_password_cannot_change_the_configuration(monkeypatch: pytest.MonkeyPatch, in_redis: bool) -> None:
    """YAML and template characters in a value stay characters, for the package and for Feast's command line."""
    password = '"}\n  evil: ${HOME} #$$,x=1'
    url, redis_url = f"postgresql://u:{quote(password, safe='')}@127.0.0.1:1/d", ""
    if in_redis:
        redis_url = f"redis://:{quote(password, safe='')}@127.0.0.1:1"
    for name, value in feast_environment(url, "D1", redis_url).items():
        monkeypatch.setenv(name, value)
    from feast.repo_config import load_repo_config

    folder = Path(feature_repo.__file__).parent
    configuration = load_repo_config(folder, folder / "feature_store.yaml")
    assert unquote(configuration.registry.path).startswith(f"postgresql+psycopg2://u:{password}@127.0.0.1:1/d")
    if in_redis:
        from feast.infra.online_stores.redis import RedisOnlineStore

        (server,), options = RedisOnlineStore._parse_connection_string(configuration.online_store.connection_string)
        assert (server, options["password"]) == ({"host": "127.0.0.1", "port": "1"}, password)
    else:
        assert configuration.online_store.password == password


def test_made_up_lake_is_not_empty(lake: Lake) -> None:
    assert len(lake.months(TECHNICAL_FEATURES)) > 8 and np.isfinite(newest(ROWS)[NAMES].to_numpy(dtype=float)).all()
