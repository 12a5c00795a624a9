"""What the public calls take, return and refuse."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mt5_crs_pipeline.core import features as f
from mt5_crs_pipeline.core.errors import InputError
from mt5_crs_pipeline.core.features import FeatureConfig, compute_features, feature_frame, get_feature_names
from tests.core.reference import DEFAULT_NAMES, expected_feature
from tests.core.samples import random_bars, real_bars

GROUPS: list[tuple[Callable[..., pd.DataFrame], list[str], list[str]]] = [
    (f.compute_price_features, DEFAULT_NAMES[:3], ["price_change_pct", "range_over_close", "close_location", "gap"]),
    (f.compute_moving_averages, DEFAULT_NAMES[3:8], [f"close_over_sma_{n}" for n in (5, 10, 20, 50)]),
    (f.compute_momentum_features, ["momentum_5", "momentum_10"], ["return_1", "drawdown_20", "close_rank_20"]),
    (f.compute_volatility_features, ["volatility_5", "volatility_10"], ["volatility_ratio_5_20", "skew_20"]),
    (f.compute_technical_indicators, ["rsi_14"], ["rsi_7", "stochastic_mean_14_3", "bollinger_b_20"]),
    (f.compute_volume_features, ["volume_sma_5", "volume_change"], ["volume_ratio_5", "obv_slope_20"]),
    (f.compute_calendar_features, [], ["hour_of_day", "day_of_week", "day_of_month", "month_of_year"]),
]


@pytest.fixture
def bars() -> pd.DataFrame:
    """Shuffled bars with labels of their own and a column nobody knows."""
    return random_bars(length=60).sample(frac=1, random_state=3).assign(note="kept").set_index(np.arange(1000, 1180))


def test_the_result_is_the_input_plus_the_features_of_complete_rows(bars: pd.DataFrame) -> None:
    result = compute_features(bars)
    age = bars.groupby("symbol")["time"].rank().sub(1)
    assert result.columns.tolist() == [*bars.columns, *DEFAULT_NAMES]
    assert result.index.tolist() == bars.index[age >= FeatureConfig().lookback - 1].tolist()
    pd.testing.assert_frame_equal(result[bars.columns], bars.loc[result.index])
    sma = expected_feature(bars, "sma_20")
    pd.testing.assert_series_equal(result["sma_20"], sma[result.index], check_names=False)


def test_with_the_target_rows_whose_next_bar_is_missing_are_left_out(bars: pd.DataFrame) -> None:
    with_target, without = compute_features(bars, include_target=True), compute_features(bars)
    last = bars.loc[bars.groupby("symbol")["time"].idxmax()].index
    assert with_target.columns.tolist() == [*without.columns, "target"]
    assert set(without.index) - set(with_target.index) == set(last)
    for symbol, part in bars.sort_values("time").groupby("symbol"):
        rises = (part["close"].diff().shift(-1) > 0).astype(float)
        own = with_target[with_target["symbol"] == symbol]["target"]
        assert own.tolist() == rises[own.index].tolist()


def test_repeated_index_labels_neither_multiply_rows_nor_mix_symbols(bars: pd.DataFrame) -> None:
    ordered = bars.sort_values(["symbol", "time"], ignore_index=True)
    stacked = ordered.set_index(ordered.groupby("symbol").cumcount().to_numpy())
    for compute in (compute_features, f.compute_price_features, f.compute_moving_averages):
        result, expected = compute(stacked), compute(ordered)
        assert result.index.tolist() == stacked.index[expected.index].tolist()
        pd.testing.assert_frame_equal(result.reset_index(drop=True), expected.reset_index(drop=True))


@pytest.mark.parametrize("include_target", [False, True])
def test_long_symbols_in_order_come_out_as_shuffled_ones_do(*, include_target: bool) -> None:
    ordered = random_bars(length=400).sort_values(["symbol", "time"]).set_index(np.arange(5000, 6200))
    ordered.insert(3, "ticks", np.arange(len(ordered)))
    result = compute_features(ordered, include_target=include_target)
    shuffled = compute_features(ordered.sample(frac=1, random_state=3), include_target=include_target)
    assert len(result) == 3 * (400 - FeatureConfig().lookback + 1 - include_target)
    pd.testing.assert_frame_equal(result, shuffled.sort_index())
    pd.testing.assert_frame_equal(result[ordered.columns], ordered.loc[result.index])


def test_computing_twice_replaces_the_features(bars: pd.DataFrame) -> None:
    once = f.compute_moving_averages(bars)
    pd.testing.assert_frame_equal(f.compute_moving_averages(once), once)


@pytest.mark.parametrize(("compute", "default", "chosen"), GROUPS)
def test_a_group_adds_its_own_features_to_every_row(
    compute: Callable[..., pd.DataFrame], default: list[str], chosen: list[str], bars: pd.DataFrame
) -> None:
    for config, names in ((None, default), (FeatureConfig(tuple(chosen)), chosen)):
        result = compute(bars, config)
        assert result.columns.tolist() == [*bars.columns, *names]
        assert result.index.tolist() == bars.index.tolist()
        for name in names:
            expected = expected_feature(bars, name)
            pd.testing.assert_series_equal(result[name], expected, check_names=False, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("config", [FeatureConfig(), FeatureConfig.scale_free()])
def test_the_groups_together_are_all_features(config: FeatureConfig, bars: pd.DataFrame) -> None:
    added = [set(compute(bars, config).columns) - set(bars.columns) for compute, _, _ in GROUPS]
    assert sum(map(len, added)) == len(config.features)
    assert set().union(*added) == set(config.features)


def test_a_group_without_features_returns_a_copy(bars: pd.DataFrame) -> None:
    result = f.compute_volume_features(bars, FeatureConfig(("sma_5",)))
    pd.testing.assert_frame_equal(result, bars)
    assert result is not bars


def test_the_input_is_left_as_it_was(bars: pd.DataFrame) -> None:
    before = bars.copy(deep=True)
    compute_features(bars, include_target=True)
    feature_frame(bars, FeatureConfig.scale_free())
    for compute, _, _ in GROUPS:
        compute(bars)
    close = bars["close"].copy()
    f.compute_rsi(close)
    pd.testing.assert_frame_equal(bars, before)
    pd.testing.assert_series_equal(close, before["close"])


def test_too_few_bars_leave_no_row_and_all_columns() -> None:
    short = real_bars(FeatureConfig().lookback - 1)
    assert compute_features(short).empty
    assert compute_features(short.iloc[:0], include_target=True).columns.tolist() == [
        *short.columns,
        *DEFAULT_NAMES,
        "target",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"close": None}, "column 'close' is missing"),
        ({"time": None}, "column 'time' is missing"),
        ({"volume": lambda b: b["volume"].astype(str)}, "column 'volume' is object.* row 1000 holds '"),
        ({"open": lambda b: b["open"].map(Decimal)}, r"column 'open' is object.* row 1000 holds Decimal\("),
        ({"high": lambda b: b["high"] > 0}, "column 'high' is bool"),
        ({"low": lambda b: b["time"]}, "column 'low' is datetime64"),
        ({"time": lambda b: b["time"].dt.tz_localize(None)}, "column 'time' is datetime64.us.: make it aware"),
        ({"time": lambda b: b["time"].astype(str)}, "column 'time' is object: make it aware"),
        ({"time": lambda b: b["time"].mask(b.index == 1004)}, "column 'time' is missing in row 1004$"),
        ({"symbol": lambda b: b["symbol"].mask(b.index == 1007)}, "column 'symbol' is missing in row 1007$"),
        ({"volume": lambda b: pd.Series(range(2**53 - 2, 2**53 + 178), b.index)}, "'volume' holds 9007199254740992 in"),
        (
            {"volume": lambda b: pd.Series([1, -(2**63)] * 90, b.index)},
            "'volume' holds -9223372036854775808 in row 1001:",
        ),
        (
            {"volume": lambda b: pd.Series([1, 2**64 - 1] * 90, b.index, dtype="uint64")},
            "8446744073709551615 in row 1001",
        ),
        ({"volume": lambda b: pd.Series([None, 2**53] * 90, b.index, dtype="Int64")}, "9007199254740992 in row 1001:"),
    ],
)
def test_a_frame_that_is_no_bars_is_refused_by_column_and_row(
    change: dict[str, Any], message: str, bars: pd.DataFrame
) -> None:
    removed = [name for name, value in change.items() if value is None]
    broken = bars.drop(columns=removed).assign(**{name: v for name, v in change.items() if v is not None})
    for compute in (compute_features, feature_frame):
        with pytest.raises(InputError, match=message) as caught:
            compute(broken)
        assert "\n" not in str(caught.value)


def test_the_same_time_twice_is_refused_by_symbol_and_time(bars: pd.DataFrame) -> None:
    twice = pd.concat([bars, bars.loc[[1042]]])
    time, symbol = bars.loc[1042, "time"], bars.loc[1042, "symbol"]
    with pytest.raises(InputError, match="two rows for symbol") as caught:
        feature_frame(twice)
    assert repr(symbol) in str(caught.value) and str(time) in str(caught.value)


def test_the_largest_exact_integer_and_missing_integers_are_numbers(bars: pd.DataFrame) -> None:
    volume = pd.Series([2**53 - 1, None] * 90, bars.index, dtype="Int64")
    values = feature_frame(bars.assign(volume=volume), FeatureConfig(("volume_sma_1",)))["volume_sma_1"]
    assert values.dropna().eq(2.0**53 - 1).all()
    assert values.isna().sum() == 90


def test_names_are_a_new_list_each_time() -> None:
    get_feature_names().append("mine")
    assert get_feature_names() == DEFAULT_NAMES
