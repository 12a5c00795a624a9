"""Stored feature rows: stamped by the close, known with the last bar they read, complete or marked."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mt5_crs_pipeline.core.feature_rows import (
    PIPELINE_FEATURES,
    feature_rows,
    feature_schema,
    known_at_close,
    revised_since,
    row_changes,
    training_schema,
)
from mt5_crs_pipeline.core.features import FeatureConfig
from tests.core.reference import expected_feature
from tests.core.samples import random_bars, real_bars

CONFIG = FeatureConfig(("sma_5", "gap"))
DAY = pd.Timedelta(days=1)


def with_known_at(bars: pd.DataFrame) -> pd.DataFrame:
    closes = bars["time"] + DAY.as_unit("us")
    return bars.assign(known_at=closes, recorded_at=closes)


def test_every_bar_has_one_row_sorted_by_symbol_and_time() -> None:
    bars = with_known_at(random_bars(length=30)).sample(frac=1, random_state=1)
    rows = feature_rows(bars, "D1", CONFIG)
    keys = sorted(bars[["symbol", "time"]].itertuples(index=False, name=None))
    assert list(rows[["symbol", "time"]].itertuples(index=False, name=None)) == keys
    assert rows.columns.tolist() == [
        "symbol",
        "time",
        "event_timestamp",
        "known_at",
        "recorded_at",
        "is_complete",
        "sma_5",
        "gap",
    ]
    assert (rows["event_timestamp"] == rows["time"] + DAY).all()


def test_warm_up_rows_are_kept_and_marked() -> None:
    rows = feature_rows(with_known_at(random_bars(length=12)), "D1", CONFIG)
    age = rows.groupby("symbol").cumcount()
    assert rows["is_complete"].tolist() == (age >= 4).tolist()
    assert rows["sma_5"].isna().tolist() == (age < 4).tolist()
    assert rows["gap"].isna().tolist() == (age < 1).tolist()


def test_features_are_those_of_prices_scaled_by_the_adjusted_close() -> None:
    bars = real_bars(100)
    factor = bars["adjusted_close"] / bars["close"]
    assert factor.min() < 0.6
    scaled = bars.assign(open=bars["open"] * factor, close=bars["adjusted_close"])
    rows = feature_rows(with_known_at(bars), "D1", CONFIG)
    for name in CONFIG.features:
        expected = expected_feature(scaled, name)
        pd.testing.assert_series_equal(rows[name], expected, check_names=False, rtol=1e-9, atol=1e-12)


def test_a_correction_is_known_to_the_rows_it_reaches_from_its_arrival_on() -> None:
    bars = with_known_at(random_bars(("A", "B"), 30)).assign(recorded_at=pd.Timestamp("2024-01-01", tz="UTC"))
    arrival = pd.Timestamp("2024-03-01T12:00:00.000001", tz="UTC")
    bars.loc[10, "known_at"] = arrival
    known = feature_rows(bars, "D1", CONFIG)["known_at"]
    assert np.flatnonzero(known == arrival).tolist() == [10, 11, 12, 13, 14]
    others = known.index.difference(range(10, 15))
    assert (known[others] == bars["time"][others] + DAY).all()


def test_of_every_row_the_newest_version_that_was_known_at_its_close_and_recorded_by_then_is_in_force() -> None:
    close, later = pd.Timestamp("2024-03-01", tz="UTC"), pd.Timestamp("2024-03-05", tz="UTC")
    rows = pd.DataFrame(
        {
            "symbol": ["BOTH", "BOTH", "LATER", "TWICE", "TWICE", "PLAIN"],
            "time": close - DAY,
            "event_timestamp": close,
            "known_at": [close, later, later, close, close, close],
            "recorded_at": [close, later, later, later + DAY, later, close],
        }
    )
    assert known_at_close(rows, close.to_pydatetime()).index.tolist() == [0, 5]
    assert known_at_close(rows, later.to_pydatetime()).index.tolist() == [0, 4, 5]
    assert known_at_close(rows, (later + DAY).to_pydatetime()).index.tolist() == [0, 3, 5]


@pytest.mark.parametrize("length", [0, 1, 60])
def test_rows_fit_their_schema(length: int) -> None:
    bars = with_known_at(random_bars(("A", "B"), max(length, 1))).head(2 * length)
    rows = feature_rows(bars, "D1")
    table = pa.Table.from_pandas(rows, schema=feature_schema(), preserve_index=False)
    assert table.num_rows == 2 * length
    table.validate(full=True)


def test_the_schemas_are_made_of_the_features_in_their_order() -> None:
    stamps = ["symbol", "time", "event_timestamp", "known_at", "recorded_at", "is_complete"]
    assert feature_schema().names == [*stamps, *PIPELINE_FEATURES.features]
    assert training_schema(CONFIG).names == [
        *("symbol", "event_timestamp", "label_time", "target", "forward_return", "spread_share"),
        *("sma_5", "gap"),
    ]
    for schema in (feature_schema(), training_schema()):
        assert all(schema.field(name).type == pa.float64() for name in PIPELINE_FEATURES.features)
        assert schema.field("event_timestamp").type == pa.timestamp("us", tz="UTC")
    assert [field.name for field in training_schema() if field.nullable] == ["target", "spread_share"]
    assert [field.name for field in feature_schema() if field.nullable] == list(PIPELINE_FEATURES.features)


def test_the_pipeline_trains_on_the_scale_free_set() -> None:
    assert FeatureConfig.scale_free() == PIPELINE_FEATURES


def test_changes_of_rows_are_counted_by_what_happened_to_them() -> None:
    times = pd.date_range("2024-01-01", periods=4, tz="UTC").as_unit("us")
    before = pd.DataFrame({"symbol": list("AAAB"), "time": times, "value": [1.0, np.nan, 3.0, 4.0]})
    assert row_changes(before, before, ["symbol", "time"]) == {"rows_added": 0, "rows_changed": 0, "rows_gone": 0}
    after = pd.concat([before.iloc[[2, 1]], before.iloc[[0]].assign(symbol="C")])
    after["value"] = [np.nextafter(3.0, 4.0), np.nan, 1.0]
    assert row_changes(before, after, ["symbol", "time"]) == {"rows_added": 1, "rows_changed": 1, "rows_gone": 2}
    assert row_changes(before.iloc[:0], before, ["symbol", "time"])["rows_added"] == 4


def test_what_was_said_counts_as_revised_when_a_later_version_of_its_row_was_recorded() -> None:
    close, hour = pd.Timestamp("2024-01-02", tz="UTC"), pd.Timedelta("1h")
    said = pd.DataFrame({"symbol": list("ABC"), "event_timestamp": close, "at": close + hour}, index=[5, 6, 7])
    versions = pd.DataFrame(
        {
            "symbol": list("AABBD"),
            "event_timestamp": [close, close, close, close + hour, close],
            "recorded_at": [close, close + 2 * hour, close + hour, close + 2 * hour, close + 2 * hour],
        }
    )
    assert revised_since(said, versions, "at").to_dict() == {5: True, 6: False, 7: False}
