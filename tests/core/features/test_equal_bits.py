"""One computation, however it is asked for: compared by the bits of every double."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt5_crs_pipeline.adapters.mt5 import read_bars
from mt5_crs_pipeline.core.features import FeatureConfig, compute_features, engine, feature_frame
from tests.conftest import SAMPLES
from tests.core.features.comparing import (
    ALL,
    DEFAULT,
    SCALE_FREE,
    Comparison,
    as_symbols,
    assert_same_bits,
    from_stream,
    symbol_rows,
)
from tests.core.samples import INPUTS, bits, real_bars

SETS = {"default": DEFAULT, "scale_free": SCALE_FREE}


def exported(*names: str) -> pd.DataFrame:
    missing = [name for name in names if not (SAMPLES / name).is_file()]
    if missing:
        pytest.skip(f"SAMPLE DATA MISSING: {', '.join(missing)} not in {SAMPLES}, so no real exports were computed")
    bars = pd.concat([read_bars(Path(SAMPLES / name)).bars for name in names], ignore_index=True)
    return bars.assign(volume=bars["volume"].astype(float))


@cache
def bars_of(origin: str) -> pd.DataFrame:
    if origin == "stocks":
        return real_bars()
    if origin == "hourly":
        return exported("EURUSD_H1.csv", "GBPUSD_H1.csv", "SILVER_H1.csv")
    return exported("EURUSD_D1_ohlcv.csv").assign(symbol="EURUSD.D1")


@cache
def whole_of(origin: str, config: FeatureConfig) -> np.ndarray:
    return feature_frame(bars_of(origin), config).to_numpy()


@pytest.fixture(scope="module")
def comparison(request: pytest.FixtureRequest) -> Iterator[Comparison]:
    """Counts what all tests of the sweep compare, and says so at the end."""
    counted = Comparison()
    yield counted
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{counted.values:,} values compared by their bits, of which {counted.numbers:,} are not missing")


@pytest.fixture(params=["stocks", "hourly", "daily"])
def origin(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def bars(origin: str) -> pd.DataFrame:
    return bars_of(origin)


@pytest.fixture(params=list(SETS))
def config(request: pytest.FixtureRequest) -> FeatureConfig:
    return SETS[request.param]


@pytest.fixture
def whole(origin: str, bars: pd.DataFrame, config: FeatureConfig) -> np.ndarray:
    """What everything else is compared with: all symbols at once, in the order in which they are stored."""
    values = whole_of(origin, config)
    assert np.isfinite(values).mean() > 0.9
    return values


def known(rows: np.ndarray, values: np.ndarray, config: FeatureConfig) -> np.ndarray:
    """What slices of a symbol's history at `rows` (a slice per line) must have: NaN before a feature's first bar."""
    lookbacks = np.array([feature.lookback for feature in config.declared])
    early = np.arange(rows.shape[1])[:, None] < lookbacks - 1
    return np.where(early, np.nan, values[rows]).reshape(-1, len(lookbacks))


def test_every_bar_has_its_bits_from_the_lookback_bars_that_end_at_it(
    bars: pd.DataFrame, config: FeatureConfig, whole: np.ndarray, comparison: Comparison
) -> None:
    for positions in symbol_rows(bars).values():
        slices = np.lib.stride_tricks.sliding_window_view(positions, config.lookback)
        for some in np.array_split(slices, -(-len(slices) // 400)):
            values = feature_frame(as_symbols(bars, some), config).to_numpy()
            comparison.same(values, known(some, whole, config), config)


@pytest.mark.parametrize("more", [-1, 0, 1])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("warm", [False, True])
def test_the_borders_of_blocks_change_no_bit(
    bars: pd.DataFrame,
    config: FeatureConfig,
    whole: np.ndarray,
    comparison: Comparison,
    more: int,
    count: int,
    warm: bool,
) -> None:
    engine.kernel()
    from mt5_crs_pipeline.core.features.kernel import BLOCK

    length = count * BLOCK + more + (config.lookback if warm else 0)
    long = [positions for positions in symbol_rows(bars).values() if len(positions) >= length + 70]
    assert long
    for positions in long:
        slices = np.lib.stride_tricks.sliding_window_view(positions, length)[:71]
        values = feature_frame(as_symbols(bars, slices), config).to_numpy()
        comparison.same(values, known(slices, whole, config), config)


def test_every_bar_has_its_bits_when_bars_come_one_at_a_time(
    bars: pd.DataFrame, config: FeatureConfig, whole: np.ndarray, comparison: Comparison
) -> None:
    comparison.same(from_stream(bars, config), whole, config)


@pytest.mark.parametrize("order", ["in time order", "backwards", "shuffled", "shuffled again"])
def test_rows_may_arrive_in_any_order(
    bars: pd.DataFrame, config: FeatureConfig, whole: np.ndarray, comparison: Comparison, order: str
) -> None:
    rows = np.random.default_rng(len(order)).permutation(len(bars))
    if not order.startswith("shuffled"):
        rows = np.argsort(bars["time"].to_numpy(), kind="stable")[:: 1 if order == "in time order" else -1]
    moved = bars.take(rows)
    comparison.same(feature_frame(moved, config).to_numpy(), whole[rows], config)
    complete = rows[~np.isnan(whole[rows]).any(axis=1)]
    features = compute_features(moved, config)
    assert features.index.tolist() == bars.index[complete].tolist()
    comparison.same(features[list(config.features)].to_numpy(), whole[complete], config)


def test_a_symbol_alone_has_the_bits_it_has_among_others(
    bars: pd.DataFrame, config: FeatureConfig, whole: np.ndarray, comparison: Comparison
) -> None:
    for positions in symbol_rows(bars).values():
        alone = bars.iloc[positions]
        comparison.same(feature_frame(alone, config).to_numpy(), whole[positions], config)
        comparison.same(feature_frame(alone.drop(columns="symbol"), config).to_numpy(), whole[positions], config)
        complete = positions[~np.isnan(whole[positions]).any(axis=1)]
        features = compute_features(alone, config)[list(config.features)]
        comparison.same(features.to_numpy(), whole[complete], config)


@pytest.mark.parametrize(("rows_per_task", "threads"), [(10**6, 1), (1, 2), (1, 3), (100, 128), (1, 200), (1025, 16)])
def test_neither_threads_nor_the_borders_of_their_tasks_change_a_bit(
    bars: pd.DataFrame,
    config: FeatureConfig,
    whole: np.ndarray,
    comparison: Comparison,
    rows_per_task: int,
    threads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine, "ROWS_PER_TASK", rows_per_task)
    comparison.same(feature_frame(bars, config, threads=threads).to_numpy(), whole, config)
    complete = ~np.isnan(whole).any(axis=1)
    features = compute_features(bars, config, threads=threads)[list(config.features)]
    comparison.same(features.to_numpy(), whole[complete], config)
    backwards = compute_features(bars[::-1].copy(), config, threads=threads)[list(config.features)]
    comparison.same(backwards.to_numpy(), whole[complete][::-1], config)


# Bars that nobody traded.

SPECIAL = [np.nan, 0.0, -0.0, np.inf, -np.inf, 1e300, -1e300, 1.7e308, 1e-300, 5e-324, 2.0**53, 1.0]


@st.composite
def bar_sets(draw: st.DrawFn) -> pd.DataFrame:
    """Bars of some symbols, of all magnitudes, with flat runs, holes, infinities and bars without volume."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lengths = draw(st.lists(st.integers(1, 150), min_size=1, max_size=4))
    total = sum(lengths)
    scale = 10.0 ** draw(st.sampled_from([0, 0, 0, -300, -30, 30, 150, 300]))
    spread = draw(st.sampled_from([0.01, 1.0, 40.0]))
    with np.errstate(over="ignore", under="ignore"):
        values = scale * np.exp(spread * np.clip(rng.normal(size=(total, len(INPUTS))), -4, 4))
    start, length = draw(st.integers(0, total)), draw(st.integers(0, 60))
    values[start : start + length] = values[start : start + 1]
    odd = st.one_of(st.sampled_from(SPECIAL), st.floats(width=64))
    places = st.tuples(st.integers(0, total - 1), st.integers(0, len(INPUTS) - 1), odd)
    for row, column, value in draw(st.lists(places, max_size=6)):
        values[row, column] = value
    values[rng.random(total) < draw(st.sampled_from([0.0, 0.1, 1.0])), INPUTS.index("volume")] = 0.0
    steps = rng.integers(1, 10**12, total)
    time = pd.DatetimeIndex(np.cumsum(steps).astype("datetime64[us]"), tz="UTC")
    symbols = np.repeat([f"S{number}" for number in range(len(lengths))], lengths)
    return pd.DataFrame(values, columns=INPUTS).assign(symbol=symbols, time=time)


@st.composite
def feature_sets(draw: st.DrawFn) -> FeatureConfig:
    """Some of the features, with windows of their own or others."""
    names = draw(st.lists(st.sampled_from(ALL.features), min_size=1, max_size=12))
    changed = [
        re.sub(r"_\d+", lambda _: f"_{draw(st.integers(4, 45))}", name) if draw(st.booleans()) else name
        for name in names
    ]
    return FeatureConfig(tuple(dict.fromkeys(changed)))


@settings(max_examples=300, deadline=None)
@given(bar_sets(), feature_sets(), st.data())
def test_any_bars_give_the_same_bits_in_whichever_way(
    bars: pd.DataFrame, config: FeatureConfig, data: st.DataObject
) -> None:
    comparison = Comparison()
    whole = feature_frame(bars, config).to_numpy()
    lookbacks = np.array([feature.lookback for feature in config.declared])

    positions = data.draw(st.sampled_from(list(symbol_rows(bars).values())))
    start = data.draw(st.integers(0, len(positions) - 1))
    piece = positions[start : data.draw(st.integers(start + 1, len(positions)))]
    values = feature_frame(bars.iloc[piece], config).to_numpy()
    early = np.arange(len(piece))[:, None] < lookbacks - 1
    assert np.isnan(values[early]).all()
    # A value in warm-up may be a NaN of another sign: only where the bars suffice do bits count.
    comparison.same(np.where(early, np.nan, values), np.where(early, np.nan, whole[piece]), config)

    comparison.same(from_stream(bars, config), whole, config)

    order = np.array(data.draw(st.permutations(range(len(bars)))))
    chosen = data.draw(st.lists(st.sampled_from(sorted(set(bars["symbol"]))), min_size=1, unique=True))
    some = order[bars["symbol"].isin(chosen).to_numpy()[order]]
    comparison.same(feature_frame(bars.iloc[some].copy(), config).to_numpy(), whole[some], config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "ROWS_PER_TASK", data.draw(st.integers(1, 20)))
        threads = data.draw(st.sampled_from([1, 2, 50]))
        comparison.same(feature_frame(bars, config, threads=threads).to_numpy(), whole, config)
        features = compute_features(bars, config, threads=threads)[list(config.features)]
    complete = ~np.isnan(whole).any(axis=1)
    comparison.same(features.to_numpy(), whole[complete], config)
    assert comparison.values >= 2 * whole.size


def test_what_is_missing_has_one_pattern_of_bits_whatever_made_it_so() -> None:
    """Sums that overflow, infinities less infinities and given NaNs of either sign all come out as the one NaN."""
    rng = np.random.default_rng(5)
    with np.errstate(over="ignore"):
        values = 1e305 * np.exp(40 * np.clip(rng.normal(size=(200, len(INPUTS))), -4, 4))
    values[::17, 3], values[5::19, 0] = -np.nan, np.nan
    time = pd.date_range("2024-01-01", periods=200, freq="h", tz="UTC").as_unit("us")
    bars = pd.DataFrame(values, columns=INPUTS).assign(symbol="A", time=time)
    whole = feature_frame(bars, ALL).to_numpy()
    missing = np.isnan(whole)
    assert 1_000 < missing[150:].sum() < missing[150:].size
    assert (bits(whole)[missing] == bits(np.array([np.nan]))[0]).all()
    Comparison().same(from_stream(bars, ALL), whole, ALL)


# Other bits of the input, the same or in proportion.


def test_scale_free_features_keep_their_bits_at_another_price_and_volume_level() -> None:
    bars = bars_of("stocks")
    prices = {name: bars[name] * 1024 for name in ("open", "high", "low", "close")}
    scaled = bars.assign(**prices, volume=bars["volume"] * 2)
    assert_same_bits(feature_frame(scaled, SCALE_FREE), feature_frame(bars, SCALE_FREE))


def test_an_average_follows_the_price_level() -> None:
    bars, config = bars_of("stocks"), FeatureConfig(("sma_5", "ema_10"))
    scaled = feature_frame(bars.assign(close=bars["close"] * 1024), config)
    assert (bits(scaled) == bits(feature_frame(bars, config) * 1024)).all()
