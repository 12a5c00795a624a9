"""The as-of store's answers beside those of the stock stores, which join in another way."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psycopg2
import pytest
from feast import FeatureStore, FeatureView
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from tests.adapters.made_up_views import (
    ASOF,
    ENTITIES,
    MadeCase,
    connection_settings,
    feature_store,
    made_cases,
)

_folders = itertools.count(1)
# Not shrunk: a failing case is small already, and each try asks two stores.
few = settings(
    max_examples=15,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("asof")


@pytest.fixture(scope="module")
def url(server: str) -> Iterator[str]:
    admin = psycopg2.connect(re.sub(r"//[^@]*@/[^?]*", "//postgres@/postgres", server))
    admin.autocommit = True
    with admin.cursor() as cursor:
        cursor.execute("create database asof_equal owner mt5_crs")
        yield re.sub(r"@/[^?]*", "@/asof_equal", server)
        cursor.execute("drop database asof_equal with (force)")
    admin.close()


def applied(store: FeatureStore, views: list[FeatureView]) -> FeatureStore:
    store.apply([*ENTITIES.values(), *views])
    return store


def ask(store: FeatureStore, case: MadeCase, **arguments: Any) -> pd.DataFrame:
    job = store.get_historical_features(
        entity_df=case.entities.copy(),
        features=case.references,
        full_feature_names=case.full_feature_names,
        **arguments,
    )
    return job.to_df()


def assert_equal_to_stock(ours: pd.DataFrame, stock: pd.DataFrame, case: MadeCase) -> None:
    """The same columns, types and values; ours in the order of the entity rows, which stock does not promise."""
    assert ours["row"].tolist() == case.entities["row"].tolist()
    stock = stock.sort_values("row", ignore_index=True)
    if stock["event_timestamp"].dt.tz is None:  # stock PostgreSQL drops the zone on the way back
        stock["event_timestamp"] = stock["event_timestamp"].dt.tz_localize("UTC")
    assert_frame_equal(ours, stock, check_exact=True)


@few
@given(made_cases(unknown_arrival=True), st.sampled_from(["file", "folder", "hive", "glob"]))
def test_files_are_answered_as_by_the_duckdb_store(root: Path, case: MadeCase, layout: str) -> None:
    folder = root / str(next(_folders))
    stock = applied(feature_store(root, {"type": "duckdb"}), [view.on_files(folder) for view in case.views])
    views = [view.on_files(folder / "ours", layout) for view in case.views]
    plain = applied(feature_store(root, {"type": ASOF, "as_known": False}), views)
    as_known = applied(feature_store(root, {"type": ASOF}), views)
    assert_equal_to_stock(ask(plain, case), ask(stock, case), case)
    known = ask(as_known, case)
    assert_equal_to_stock(known, ask(stock, case, filter_by_created_timestamp=True), case)
    assert_frame_equal(known, ask(plain, case, filter_by_created_timestamp=True), check_exact=True)


@few
@given(made_cases(unknown_arrival=False), st.sampled_from(["table", "query"]), st.booleans())
def test_tables_are_answered_as_by_the_postgresql_store(
    root: Path, url: str, case: MadeCase, kind: str, qualified: bool
) -> None:
    """Not asked here: rows of unknown arrival, whose order stock takes from where NULL sorts, before all others."""
    assume(case.entities["symbol"].notna().any())  # stock cannot upload a column of nothing
    schema = "elsewhere." if qualified else ""
    views = [view.on_postgres(url, f"{schema}{view.name}_{next(_folders)}", kind) for view in case.views]
    connection = connection_settings(url)
    stock = applied(feature_store(root, {"type": "postgres"} | connection), views)
    plain = applied(feature_store(root, {"type": ASOF, "as_known": False} | connection), views)
    as_known = applied(feature_store(root, {"type": ASOF} | connection), views)
    assert_equal_to_stock(ask(plain, case), ask(stock, case), case)
    known = ask(as_known, case)
    assert_equal_to_stock(known, ask(stock, case, filter_by_created_timestamp=True), case)
    assert_frame_equal(known, ask(plain, case, filter_by_created_timestamp=True), check_exact=True)
