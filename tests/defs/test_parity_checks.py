"""A stored or served value that is not what the bars give stops everything after it, and no model is made of it."""

from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mt5_crs_pipeline.adapters.feast_store import FeastStore
from mt5_crs_pipeline.adapters.feature_parity import proof_for_training
from mt5_crs_pipeline.adapters.lake import Lake
from mt5_crs_pipeline.core.errors import InputError
from mt5_crs_pipeline.core.feature_rows import PIPELINE_FEATURES
from mt5_crs_pipeline.defs.assets.bars import market_data, market_data_parquet
from mt5_crs_pipeline.defs.assets.features import feast_online_store, feast_registry, technical_features
from mt5_crs_pipeline.defs.assets.model import current_version, training_set, xgboost_model
from mt5_crs_pipeline.defs.resources import Stores
from mt5_crs_pipeline.settings import Settings
from tests.defs.small_lake import SYMBOLS, materialize, metadata, store, year_of_bars

FEATURES = [market_data, market_data_parquet, feast_registry, technical_features, feast_online_store]
COUNT = len(PIPELINE_FEATURES.features)


class Imprecise(Lake):
    """Stands for a bug, a damaged disk or another library: the last bit of one feature is another."""

    def write(self, stage: str, month: str, table: pa.Table) -> bool:
        if stage == "technical_features":
            at = table.schema.get_field_index("rsi_14")
            nudged = pa.array(np.nextafter(table.column(at).to_numpy(), np.inf), pa.float64())
            table = table.set_column(at, table.schema.field(at), nudged)
        return super().write(stage, month, table)


@pytest.fixture
def stores(settings: Settings) -> Stores:
    store(settings, year_of_bars())
    return Stores(settings)


def evaluation(result: dg.ExecuteInProcessResult, name: str) -> Any:
    (found,) = (check for check in result.get_asset_check_evaluations() if check.check_name == name)
    return found


def test_the_newest_rows_and_a_sample_are_compared_and_certified(stores: Stores) -> None:
    result = materialize(stores, [*FEATURES, training_set, xgboost_model])
    stored = evaluation(result, "features_equal_a_fresh_computation")
    served = evaluation(result, "online_features_equal_a_fresh_computation")
    assert stored.passed and served.passed
    # Twice every value of the newest rows and of two hundred others: from slices and from a stream.
    assert stored.metadata["values compared"].value == 2 * COUNT * (len(SYMBOLS) + 200)
    assert served.metadata["values compared"].value == 2 * COUNT * len(SYMBOLS)
    assert stored.metadata["first difference"].value == "none"

    bundle = stores.models.load(current_version(stores))
    assert bundle.metadata["parity"] == stored.metadata["certificate"].value
    assert bundle.metadata["parity"]["feature_set_hash"] == PIPELINE_FEATURES.feature_set_hash
    assert bundle.metadata["parity"]["holds"] is True


def test_one_bit_in_the_files_stops_everything_downstream(stores: Stores) -> None:
    stores.lake = Imprecise(stores.lake.folder)
    result = materialize(stores, [*FEATURES, training_set], succeeds=False)
    (failed,) = (check for check in result.get_asset_check_evaluations() if not check.passed)
    assert failed.check_name == "features_equal_a_fresh_computation"
    assert failed.metadata["first difference"].value.startswith("rsi_14 of AAPL at 2012-")
    assert failed.metadata["certificate"].value["holds"] is False
    done = {event.asset_key.to_user_string() for event in result.get_asset_materialization_events() if event.asset_key}
    assert not done & {"feast_online_store", "training_set"}


def test_one_bit_in_what_is_served_stops_the_training(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    read = FeastStore.online_rows

    def imprecise(self: FeastStore, symbols: list[str]) -> pd.DataFrame:
        rows = read(self, symbols)
        return rows.assign(rsi_14=np.nextafter(rows["rsi_14"], np.inf))

    monkeypatch.setattr(FeastStore, "online_rows", imprecise)
    result = materialize(stores, [*FEATURES, training_set], succeeds=False)
    assert evaluation(result, "features_equal_a_fresh_computation").passed
    served = evaluation(result, "online_features_equal_a_fresh_computation")
    assert not served.passed and served.metadata["values different"].value == len(SYMBOLS)
    assert not stores.lake.training_set.exists()


def test_a_row_that_is_not_served_or_is_of_an_older_bar_is_different_throughout(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = FeastStore.online_rows

    def behind(self: FeastStore, symbols: list[str]) -> pd.DataFrame:
        rows = read(self, symbols)
        rows.loc[0, "event_timestamp"] -= pd.Timedelta(days=1)
        rows.loc[1, "event_timestamp"] = pd.NaT
        return rows

    monkeypatch.setattr(FeastStore, "online_rows", behind)
    served = evaluation(materialize(stores, FEATURES, succeeds=False), "online_features_equal_a_fresh_computation")
    assert served.metadata["values different"].value == COUNT * len(SYMBOLS)


def test_no_model_is_trained_on_features_that_the_bars_do_not_give(stores: Stores) -> None:
    materialize(stores, [*FEATURES, training_set])
    honest, imprecise = stores.lake, Imprecise(stores.lake.folder)
    for month in honest.months("technical_features"):
        imprecise.write("technical_features", month, pa.parquet.read_table(honest.file("technical_features", month)))
    result = materialize(stores, [xgboost_model], succeeds=False)
    (failure,) = result.filter_events(lambda event: event.is_step_failure)
    cause = failure.step_failure_data.error.cause
    assert cause.cls_name == "InputError"
    assert "differ from a fresh computation, the first is rsi_14 of AAPL at 2012-" in cause.message
    assert not stores.models.versions()


def test_months_without_bars_have_nothing_to_prove(stores: Stores) -> None:
    result = materialize(stores, FEATURES, "2001-01", "2001-02")
    assert evaluation(result, "features_equal_a_fresh_computation").metadata["rows"].value == 0
    assert metadata(result, "technical_features")["dagster/row_count"] == 0


def test_without_stored_features_there_is_no_proof(stores: Stores) -> None:
    with pytest.raises(InputError, match=r"no features are stored below .*: materialize technical_features first"):
        proof_for_training(stores.lake)
