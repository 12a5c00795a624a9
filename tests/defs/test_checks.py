"""Each check passes on what the assets wrote and fails on every kind of fault, put into the files afterwards."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mt5_crs_pipeline.adapters.feature_parity import StoredMonths
from mt5_crs_pipeline.adapters.lake import MARKET_DATA, TECHNICAL_FEATURES, Lake, parquet_bytes
from mt5_crs_pipeline.core.bars import CLOSED_BAR_SCHEMA, close_time
from mt5_crs_pipeline.core.errors import DamagedFileError
from mt5_crs_pipeline.core.feature_rows import PIPELINE_FEATURES, feature_rows, feature_schema, training_schema
from mt5_crs_pipeline.core.features import get_feature_names
from mt5_crs_pipeline.core.labels import LabelConfig, labelled_bars
from mt5_crs_pipeline.defs.checks import check_bars, check_features, check_training_rows
from tests.defs.small_lake import year_of_bars

MONTHS = [f"2012-{month:02d}" for month in range(1, 13)]
# Its first rows have the whole history that features need behind them.
MONTH = "2012-08"
FEATURE = get_feature_names(PIPELINE_FEATURES)[0]
Change = Callable[[pd.DataFrame], pd.DataFrame]


def table(rows: pd.DataFrame, schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pandas(rows, schema=schema, preserve_index=False).replace_schema_metadata()


@pytest.fixture
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A year of valid bars, features and training rows."""
    lake = Lake(tmp_path_factory.mktemp("lake"))
    bars = year_of_bars()
    bars["known_at"] = bars["recorded_at"] = bars["event_timestamp"] = close_time(bars["time"], "D1")
    features = feature_rows(bars, "D1")
    for month in MONTHS:
        for stage, rows, schema in (
            (MARKET_DATA, bars, CLOSED_BAR_SCHEMA),
            (TECHNICAL_FEATURES, features, feature_schema()),
        ):
            lake.write(stage, month, table(rows[rows["time"].dt.strftime("%Y-%m") == month], schema))
    labels = labelled_bars(bars, "D1")
    stamps = ["time", "known_at", "recorded_at", "is_complete"]
    rows = labels.merge(features.drop(columns=stamps), on=["symbol", "event_timestamp"])
    lake.training_set.write_bytes(
        parquet_bytes(table(rows.dropna(subset=get_feature_names(PIPELINE_FEATURES)), training_schema()))
    )
    return lake


def tamper(lake: Lake, stage: str, schema: pa.Schema, change: Change) -> None:
    path = lake.file(stage, MONTH) if stage else lake.training_set
    changed = change(pq.read_table(path).to_pandas())
    # Fields that may not be null may be null in a damaged file.
    loose = pa.schema([pa.field(field.name, field.type) for field in schema])
    pq.write_table(table(changed, loose), path)


def setting(column: str, value: object, row: int = 3) -> Change:
    def change(rows: pd.DataFrame) -> pd.DataFrame:
        rows.loc[row, column] = value
        return rows

    return change


def with_copy_of(row: int) -> Change:
    return lambda rows: pd.concat([rows, rows.iloc[[row]]], ignore_index=True)


def without(row: int) -> Change:
    return lambda rows: rows.drop(index=row)


def moved(column: str, by: timedelta, row: int = 3) -> Change:
    def change(rows: pd.DataFrame) -> pd.DataFrame:
        rows.loc[row, column] += by
        return rows

    return change


def counts(result: object) -> dict[str, int]:
    """The faults that a check found, by name."""
    metadata = result.metadata  # type: ignore[attr-defined]
    return {
        name: value.value
        for name, value in metadata.items()
        if name not in ("bars", "revisions", "rows") and value.value and isinstance(value.value, int)
    }


def test_what_the_assets_write_passes(lake: Lake) -> None:
    bars, features = check_bars(lake, MONTHS, "D1"), check_features(StoredMonths(lake, MONTHS))
    training = check_training_rows(lake, LabelConfig())
    assert bars.passed and features.passed and training.passed
    assert counts(bars) == counts(features) == counts(training) == {}
    assert bars.metadata["bars"].value == features.metadata["bars"].value == len(year_of_bars())
    assert training.metadata["rows"].value == len(year_of_bars()) - 2 * PIPELINE_FEATURES.lookback


def test_a_check_of_one_month_needs_that_month_and_its_history_only(lake: Lake) -> None:
    assert check_bars(lake, [MONTH], "D1").passed
    assert check_features(StoredMonths(lake, [MONTH])).passed
    assert check_bars(lake, ["2001-01"], "D1").passed
    assert check_features(StoredMonths(lake, ["2001-01"])).passed


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        *((setting(column, np.nan), "invalid") for column in ("open", "high", "low", "close", "volume")),
        (setting("close", np.inf), "invalid"),
        (setting("low", -1.0), "invalid"),
        (setting("high", 0.01), "invalid"),
        (setting("symbol", "../x"), "invalid"),
        (setting("timeframe", "H1"), "invalid"),
        (moved("time", timedelta(days=40)), "in the wrong month"),
        (with_copy_of(3), "repeated"),
    ],
)
def test_a_fault_in_the_bars_fails(lake: Lake, change: Change, fault: str) -> None:
    tamper(lake, MARKET_DATA, CLOSED_BAR_SCHEMA, change)
    result = check_bars(lake, MONTHS, "D1")
    assert not result.passed
    assert counts(result)[fault] >= 1


def test_a_bar_of_the_future_fails(lake: Lake) -> None:
    tamper(lake, MARKET_DATA, CLOSED_BAR_SCHEMA, setting("time", pd.Timestamp.now(tz="UTC").floor("D").as_unit("us")))
    assert "invalid" in counts(check_bars(lake, MONTHS, "D1"))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (without(3), "bars without features"),
        (moved("event_timestamp", timedelta(hours=1)), "features without a bar"),
        (setting("is_complete", False), "incomplete in spite of enough history"),
        (with_copy_of(3), "repeated"),
    ],
)
def test_a_fault_in_the_features_fails(lake: Lake, change: Change, fault: str) -> None:
    tamper(lake, TECHNICAL_FEATURES, feature_schema(), change)
    result = check_features(StoredMonths(lake, MONTHS))
    assert not result.passed
    assert counts(result)[fault] >= 1


def test_a_feature_that_is_missing_though_its_row_claims_to_be_complete_fails(lake: Lake) -> None:
    tamper(lake, TECHNICAL_FEATURES, feature_schema(), setting(FEATURE, np.nan))
    assert not check_features(StoredMonths(lake, MONTHS)).passed


def test_features_of_a_month_without_bars_fail(lake: Lake) -> None:
    lake.file(MARKET_DATA, "2012-12").unlink()
    assert counts(check_features(StoredMonths(lake, MONTHS)))["features without a bar"] > 0


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (setting("target", np.nan), "unlabelled"),
        (setting("target", 0.5), "unlabelled"),
        (moved("label_time", timedelta(days=-30)), "label from the future"),
        (
            setting("label_time", pd.Timestamp(datetime.now(UTC) + timedelta(days=1)).as_unit("us")),
            "label from the future",
        ),
        (setting(FEATURE, np.nan), "incomplete"),
        (with_copy_of(3), "repeated"),
    ],
)
def test_a_fault_in_the_training_rows_fails(lake: Lake, change: Change, fault: str) -> None:
    tamper(lake, "", training_schema(), change)
    result = check_training_rows(lake, LabelConfig())
    assert not result.passed
    assert fault in counts(result)


def test_a_damaged_file_is_an_error_of_its_own(lake: Lake) -> None:
    path = lake.file(MARKET_DATA, MONTH)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DamagedFileError, match=MONTH):
        check_bars(lake, MONTHS, "D1")
