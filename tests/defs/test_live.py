"""The asset `live_predictions`, the report and the doctor: what they say of the champion's live record."""

import shutil
from datetime import UTC, datetime

import pandas as pd
import pytest

from mt5_crs_pipeline.adapters.database import Database
from mt5_crs_pipeline.adapters.live_predictions import live_record
from mt5_crs_pipeline.adapters.model_store import Bundle
from mt5_crs_pipeline.adapters.promotion import promote_on_evidence
from mt5_crs_pipeline.core.live import NO_OUTCOME_YET, LiveRecord
from mt5_crs_pipeline.defs.assets.live import live_predictions
from mt5_crs_pipeline.defs.assets.model import current_version, model_evaluation
from mt5_crs_pipeline.defs.resources import Stores
from mt5_crs_pipeline.doctor import examine
from mt5_crs_pipeline.settings import Settings
from tests.adapters.live_world import bars_until, fill
from tests.adapters.small_model import SYMBOLS, card, model, planted_predictions, training_rows
from tests.defs.small_lake import execute, materialize, metadata


@pytest.fixture
def stores(settings: Settings) -> Stores:
    stores = Stores(settings)
    fill(stores.lake, bars_until(4))
    return stores


def promote(stores: Stores, version: str = "20130301-a") -> Bundle:
    bundle = stores.models.save(card(version), model(), planted_predictions())
    with stores.database.connection() as connection:
        assert promote_on_evidence(connection, stores.models, bundle, datetime(2013, 3, 2, tzinfo=UTC)).promoted
    return bundle


def told(stores: Stores) -> dict[str, object]:
    return metadata(materialize(stores, [live_predictions]), "live_predictions")


def record(settings: Settings, stores: Stores) -> LiveRecord:
    with Database(settings).connection() as connection:
        found = live_record(connection, stores.models, stores.lake)
    assert found is not None
    return found


def doctors_line(settings: Settings) -> tuple[bool, str]:
    (finding,) = (finding for finding in examine(settings) if finding["what"] == "live outcomes")
    return finding["ok"], finding["found"]


def test_the_asset_keeps_predictions_once_and_shows_the_record_when_the_outcome_is_known(
    stores: Stores, settings: Settings
) -> None:
    assert told(stores) == {"champion": "none yet: nothing is predicted live"}
    assert doctors_line(settings) == (True, "no champion: nothing is predicted live")
    bundle, close = promote(stores), bars_until(4)["time"].max() + pd.Timedelta(days=1)
    first = told(stores)
    assert (first["champion"], first["dagster/row_count"], first["stored"]) == (bundle.version, 2, 2)
    assert first["first"] == first["last"] == close.isoformat() and first["left_out"] == {}
    assert first["record"] == NO_OUTCOME_YET and "evidence" not in first
    assert doctors_line(settings) == (True, NO_OUTCOME_YET)
    assert told(stores)["stored"] == 0

    fill(stores.lake, bars_until(3))
    shown, found = told(stores), record(settings, stores)
    assert (shown["stored"], shown["record"], found.rows) == (2, found.sentence, 2)
    assert doctors_line(settings) == (True, found.sentence)
    evidence = found.comparison.evidence
    assert (shown["log_wealth"], shown["threshold"]) == (evidence.log_wealth, evidence.threshold)
    assert (shown["live_rows"], shown["live_instants"]) == (2, 1)
    assert shown["live accuracy estimate"] == found.accuracy.estimate
    assert shown["live base rate"] == found.base_rate
    assert str(shown["evidence"]).startswith("![") and "live begins" in str(shown["evidence"])
    # The bars of this world are recorded in the future, all after the predictions from them.
    assert (first["features_revised_since"], shown["features_revised_since"]) == (2, 4)
    assert execute(settings, "select distinct symbol from model_prediction order by 1") == [(s,) for s in SYMBOLS]


def test_a_deleted_champion_fails_the_asset_in_one_line_and_the_doctor_says_so(
    stores: Stores, settings: Settings
) -> None:
    shutil.rmtree(promote(stores).folder)
    result = materialize(stores, [live_predictions], succeeds=False)
    (failure,) = result.filter_events(lambda event: event.is_step_failure)
    cause = failure.step_failure_data.error.cause
    assert cause.cls_name == "BundleRejectedError" and "names a model that is not there" in cause.message
    ok, said = doctors_line(settings)
    assert not ok and "names a model that is not there as it was promoted" in said and "\n" not in said
    assert execute(settings, "select count(*) from model_prediction") == [(0,)]


def test_the_report_of_a_new_model_shows_how_the_champion_fared(stores: Stores, settings: Settings) -> None:
    promote(stores)
    training_rows().to_parquet(stores.lake.training_set)
    version = current_version(stores)
    stores.models.save(card(version), model(), planted_predictions())

    def page() -> str:
        materialize(stores, [model_evaluation])
        return (settings.reports / f"{version}.html").read_text("utf-8")

    told(stores)
    before = page()
    assert f"<p>N{NO_OUTCOME_YET[1:]}.</p>" in before
    fill(stores.lake, bars_until(3))
    after = page()
    assert record(settings, stores).sentence in after and NO_OUTCOME_YET[1:] not in after
    assert after.count("<img") == before.count("<img") + 1
