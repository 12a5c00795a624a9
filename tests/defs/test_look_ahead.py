"""Tomorrow's return among the features: wherever it slips in, a check says so and nothing is trained."""

from collections.abc import Callable

import dagster as dg
import pandas as pd
import pytest

from mt5_crs_pipeline.adapters.feast_store import FeastStore
from mt5_crs_pipeline.core.feature_rows import PIPELINE_FEATURES, feature_rows
from mt5_crs_pipeline.defs.assets import features
from mt5_crs_pipeline.defs.assets.bars import market_data, market_data_parquet
from mt5_crs_pipeline.defs.assets.model import training_set, xgboost_model
from mt5_crs_pipeline.defs.resources import Stores
from mt5_crs_pipeline.settings import Settings
from tests.defs.small_lake import SYMBOLS, materialize, store, year_of_bars

Leak = Callable[[pd.DataFrame], pd.DataFrame]
ALL = [
    market_data,
    market_data_parquet,
    features.feast_registry,
    features.technical_features,
    features.feast_online_store,
    training_set,
    xgboost_model,
]


def next_rows(rows: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Every symbol's `names` as they are one bar later; its last bar has what it had."""
    later = rows.groupby("symbol")[names].shift(-1)
    return rows.assign(**{name: later[name].fillna(rows[name]) for name in names})


def failed_check(result: dg.ExecuteInProcessResult) -> dg.AssetCheckEvaluation:
    (failed,) = (check for check in result.get_asset_check_evaluations() if not check.passed)
    return failed


def value(check: dg.AssetCheckEvaluation, of: str) -> int:
    found = check.metadata[f"values {of}"].value
    assert isinstance(found, int)
    return found


def test_a_declared_feature_that_looks_ahead_is_caught_when_it_is_computed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(settings, year_of_bars())
    monkeypatch.setattr(
        features, "feature_rows", lambda *given, **more: next_rows(feature_rows(*given, **more), ["return_1"])
    )
    stores = Stores(settings)
    failed = failed_check(materialize(stores, ALL, succeeds=False))
    assert failed.check_name == "features_equal_a_fresh_computation"
    assert str(failed.metadata["first difference"].value).startswith("return_1 of AAPL at 2012-")
    assert not stores.lake.training_set.exists() and not stores.models.versions()


@pytest.mark.parametrize(
    ("leak", "share"),
    [
        (lambda rows: rows.assign(return_1=rows["forward_return"]), 1 / len(PIPELINE_FEATURES.features)),
        # The hour and the month are mostly the next bar's too.
        (lambda rows: next_rows(rows, list(PIPELINE_FEATURES.features)), 0.9),
    ],
    ids=["the forward return as a feature", "a join with the next bar"],
)
def test_a_leak_between_the_store_and_the_training_set_is_caught_before_training(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, leak: Leak, share: float
) -> None:
    store(settings, year_of_bars())
    read = FeastStore.training_rows
    monkeypatch.setattr(FeastStore, "training_rows", lambda *given: leak(read(*given)))
    stores = Stores(settings)
    failed = failed_check(materialize(stores, ALL, succeeds=False))
    assert failed.check_name == "training_features_were_known_at_the_close"
    assert value(failed, "different") >= share * value(failed, "compared") / 2 - len(SYMBOLS)
    assert not stores.models.versions()


def test_a_late_leak_in_one_symbol_alone_is_caught_at_its_newest_row(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(settings, year_of_bars())
    read = FeastStore.training_rows

    def leak(rows: pd.DataFrame) -> pd.DataFrame:
        last = (rows["symbol"] == "IBM") & (rows["event_timestamp"] == rows["event_timestamp"].max())
        return rows.assign(return_1=rows["return_1"].mask(last, rows["forward_return"]))

    monkeypatch.setattr(FeastStore, "training_rows", lambda *given: leak(read(*given)))
    failed = failed_check(materialize(Stores(settings), ALL, succeeds=False))
    assert value(failed, "different") == 1
    assert str(failed.metadata["first difference"].value).startswith("return_1 of IBM at 2012-12-")
