"""The parity proof finds one changed bit, and proves nothing where nothing was compared."""

import hashlib
import json

import numpy as np
import pandas as pd
import pytest

from mt5_crs_pipeline.core.feature_rows import feature_rows
from mt5_crs_pipeline.core.features import FeatureConfig, feature_frame
from mt5_crs_pipeline.core.parity import NOTHING_COMPARED, Parity, certificate, compare, sample
from tests.core.samples import random_bars

CONFIG = FeatureConfig(("close_over_ema_5", "volume_change", "rsi_14", "day_of_week"))


@pytest.fixture(scope="module")
def bars() -> pd.DataFrame:
    closes = (bars := random_bars(length=90))["time"] + pd.Timedelta(days=1).as_unit("us")
    return bars.assign(known_at=closes, recorded_at=closes)


@pytest.fixture
def stored(bars: pd.DataFrame) -> pd.DataFrame:
    return bars[["symbol", "time", "recorded_at"]].join(feature_frame(bars, CONFIG))


def test_what_was_computed_at_once_is_equal_row_by_row(bars: pd.DataFrame, stored: pd.DataFrame) -> None:
    parity = compare(stored, bars.sample(frac=1, random_state=1), CONFIG)
    assert parity == Parity(rows=270, values=2 * 270 * 4, different=0, first_difference=None)
    assert parity.holds


@pytest.mark.parametrize("name", CONFIG.features[:3])
def test_one_changed_bit_is_found_and_named(name: str, bars: pd.DataFrame, stored: pd.DataFrame) -> None:
    time = stored.loc[60, "time"]
    computed = float(stored.loc[60, name])
    nudged = np.nextafter(computed, np.inf)
    stored.loc[60, name] = nudged
    parity = compare(stored, bars, CONFIG)
    assert parity.different == 1 and not parity.holds
    said = f"{name} of AAA at {time} is stored as {float(nudged)!r}, computed it is {computed!r}"
    assert parity.first_difference == said


def test_a_value_in_place_of_a_missing_one_and_the_other_way_round_is_different(
    bars: pd.DataFrame, stored: pd.DataFrame
) -> None:
    stored.loc[0, "rsi_14"] = 50.0
    stored.loc[80, "rsi_14"] = np.nan
    assert compare(stored, bars, CONFIG).different == 2


def test_the_sign_of_a_zero_counts_and_the_bits_of_a_nan_do_not(bars: pd.DataFrame, stored: pd.DataFrame) -> None:
    monday = stored.index[stored["day_of_week"] == 0][0]
    stored.loc[monday, "day_of_week"] = -0.0
    assert compare(stored, bars, CONFIG).different == 1
    stored.loc[monday, "day_of_week"] = 0.0
    other_nan = np.array([0x7FF8_0000_0000_1234], dtype=np.int64).view(np.float64)[0]
    stored.loc[0, "rsi_14"] = other_nan
    assert compare(stored, bars, CONFIG).holds


def test_a_bar_that_was_corrected_afterwards_is_different_in_every_row_it_reaches(
    bars: pd.DataFrame, stored: pd.DataFrame
) -> None:
    corrected = bars.copy()
    corrected.loc[40, "close"] *= 1.01
    means = FeatureConfig(("sma_20",))
    parity = compare(bars[["symbol", "time", "recorded_at"]].join(feature_frame(bars, means)), corrected, means)
    # The bar itself and the nineteen after it.
    assert parity.different == 20


@pytest.mark.parametrize("other", ["another time", "no time", "another symbol"])
def test_a_row_without_its_bar_is_different_throughout(other: str, bars: pd.DataFrame, stored: pd.DataFrame) -> None:
    row = stored.iloc[[50]]
    changes = {"time": row["time"] + pd.Timedelta(hours=1)}, {"time": pd.NaT}, {"symbol": "ZZZ"}
    changed = row.assign(**dict(zip(("another time", "no time", "another symbol"), changes, strict=True))[other])
    changed["time"] = pd.to_datetime(changed["time"], utc=True).astype(stored["time"].dtype)
    parity = compare(pd.concat([stored.iloc[[49]], changed]), bars, CONFIG)
    assert (parity.rows, parity.different) == (2, 4)


def test_nothing_compared_proves_nothing(bars: pd.DataFrame, stored: pd.DataFrame) -> None:
    assert compare(stored.iloc[:0], bars, CONFIG) == NOTHING_COMPARED
    assert not NOTHING_COMPARED.holds


def test_a_sample_has_the_newest_row_of_every_symbol_and_others_by_the_seed(stored: pd.DataFrame) -> None:
    shuffled = stored.sample(frac=1, random_state=2)
    chosen = shuffled.take(sample(shuffled, older=20, seed=5))
    assert len(chosen) == 23
    assert not chosen.duplicated(["symbol", "time"]).any()
    newest = stored.groupby("symbol")["time"].max()
    assert chosen.groupby("symbol")["time"].max().equals(newest)
    pd.testing.assert_frame_equal(stored.take(sample(stored, 20, 5)), chosen)
    assert not stored.take(sample(stored, 20, 6))["time"].equals(chosen["time"])
    assert sorted(sample(stored, older=10_000, seed=1)) == list(range(len(stored)))
    assert not len(sample(stored.iloc[:0], 5, 1))


def test_every_version_is_compared_with_the_bars_as_they_were_when_it_was_recorded(bars: pd.DataFrame) -> None:
    arrival = pd.Timestamp("2024-01-01", tz="UTC")
    again = bars.loc[[40, 41]].assign(close=bars["low"], known_at=arrival, recorded_at=arrival)
    late = bars.loc[[60]].assign(recorded_at=arrival + pd.Timedelta(days=1))
    revisions = pd.concat([bars.drop(index=60), again, late], ignore_index=True)
    versions = feature_rows(revisions, "D1", CONFIG)
    assert len(versions) > len(bars) + CONFIG.lookback
    assert compare(versions, revisions.sample(frac=1, random_state=1), CONFIG).holds
    # Old versions are not those of today's bars, nor new ones those of the bars before.
    recorded = versions["recorded_at"]
    assert compare(versions.assign(recorded_at=recorded.max()), revisions, CONFIG).different > 0
    assert compare(
        versions.assign(recorded_at=recorded.where(recorded < arrival, arrival)), revisions, CONFIG
    ).different


def test_a_sample_covers_rows_that_were_revised_in_both_versions(bars: pd.DataFrame) -> None:
    again = bars.loc[[10]].assign(
        close=bars["low"], recorded_at=bars["recorded_at"].max(), known_at=bars["known_at"].max()
    )
    versions = feature_rows(pd.concat([bars, again], ignore_index=True), "D1", CONFIG)
    revised = versions[versions.duplicated(["symbol", "time"], keep=False)].index
    chosen = versions.take(sample(versions, older=7, seed=3))
    assert len(chosen) == 3 + 7 + 7
    assert not chosen.duplicated(["symbol", "time", "recorded_at"]).any()
    assert chosen.index.isin(revised).sum() == 7
    assert {*revised} <= {*sample(versions, older=len(revised), seed=3)}


def test_a_sample_has_no_newest_row_of_a_symbol_that_goes_on_elsewhere(stored: pd.DataFrame) -> None:
    chosen = stored.take(sample(stored, older=0, seed=5, continued=["AAA", "CCC"]))
    assert chosen[["symbol", "time"]].to_numpy().tolist() == [["BBB", stored["time"].max()]]


def test_the_certificate_is_a_hash_of_all_it_says() -> None:
    proof = Parity(rows=2, values=16, different=0, first_difference=None)
    made = certificate(proof, CONFIG, {"numpy": "2.0"})
    content = {key: value for key, value in made.items() if key != "certificate"}
    assert content == {
        "feature_set_hash": CONFIG.feature_set_hash,
        "library_versions": {"numpy": "2.0"},
        "rows": 2,
        "values_compared": 16,
        "values_different": 0,
        "holds": True,
    }
    assert made["certificate"] == hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    others = [certificate(proof, CONFIG, {"numpy": "2.1"}), certificate(proof, FeatureConfig(), {"numpy": "2.0"})]
    assert len({made["certificate"], *(other["certificate"] for other in others)}) == 3
    assert certificate(NOTHING_COMPARED, CONFIG, {})["holds"] is False
