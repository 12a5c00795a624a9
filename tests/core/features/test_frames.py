"""What the public calls take, return and refuse."""

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mt5_crs_pipeline.core import features as f
from mt5_crs_pipeline.core.errors import ConfigurationError, InputError
from mt5_crs_pipeline.core.features import FeatureConfig, compute_features, feature_frame, get_feature_names
from tests.core.reference import DEFAULT_NAMES, expected_feature
from tests.core.samples import INPUTS, random_bars, real_bars

GROUPS: list[tuple[Callable[..., pd.DataFrame], list[str], list[str]]] = [
    (f.compute_price_features, DEFAULT_NAMES[:3], ["price_change_pct", "range_over_close", "close_location", "gap"]),
    (f.compute_moving_averages, DEFAULT_NAMES[3:8], [f"close_over_sma_{n}" for n in (5, 10, 20, 50)]),
    (f.compute_momentum_features, ["momentum_5", "momentum_10"], ["return_1", "lagged_return_3", "drawdown_20"]),
    (f.compute_volatility_features, ["volatility_5", "volatility_10"], ["volatility_20", "atr_over_close_14"]),
    (f.compute_technical_indicators, ["rsi_14"], ["rsi_7", "rsi_14", "stochastic_14", "bollinger_score_20"]),
    (f.compute_volume_features, ["volume_sma_5", "volume_change"], ["volume_ratio_5", "volume_ratio_20"]),
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
            pd.testing.assert_series_equal(result[name], expected, check_names=False, rtol=1e-9, atol=1e-9)


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


@pytest.mark.parametrize("config", [FeatureConfig(), FeatureConfig.scale_free(), FeatureConfig(("rsi_3", "gap"))])
def test_a_feature_set_survives_json(config: FeatureConfig) -> None:
    assert json.loads(config.to_json()) == {"features": list(config.features)}
    assert FeatureConfig.from_json(config.to_json()) == config
    assert FeatureConfig.from_json(config.to_json()).feature_set_hash == config.feature_set_hash


def test_the_hash_of_a_feature_set_is_stable_and_tells_order_apart() -> None:
    assert FeatureConfig().feature_set_hash == "2b550349ce223e60c524b2f3b928b4d591dbabe9c9c5ff630b073f973b85446a"
    assert (
        FeatureConfig.scale_free().feature_set_hash
        == "5a9d2d5774f863b0b97d7db4d08c02f05d08b38d21336ce2050444a6a9449f3e"
    )
    assert FeatureConfig(("gap", "sma_5")).feature_set_hash != FeatureConfig(("sma_5", "gap")).feature_set_hash


def test_a_new_definitions_version_is_a_new_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    before = FeatureConfig().feature_set_hash
    monkeypatch.setattr(f, "DEFINITIONS_VERSION", f.DEFINITIONS_VERSION + 1)
    assert FeatureConfig().feature_set_hash != before


def test_a_feature_set_needs_the_bars_of_its_longest_feature() -> None:
    assert FeatureConfig(("price_range", "sma_20", "momentum_5")).lookback == 20
    assert FeatureConfig(("momentum_20",)).lookback == 21
    # The longest of the defaults is ema_10: (9/11)^46 is the first power under 1e-4.
    assert (9 / 11) ** 46 < 1e-4 <= (9 / 11) ** 45
    assert FeatureConfig().lookback == 46
    assert FeatureConfig.scale_free().lookback == 50


@pytest.mark.parametrize(
    "name",
    [
        "",
        "sma",
        "sma_",
        "sma_5_5",
        "sma_05",
        "sma_٥",
        "__class__",
        "target",
        "price_range_5",
        "SMA_5",
        "sma_5 ",
        "sma_5\n",
        "sma_x",
        "sma_1.5",
        "macd_12",
    ],
)
def test_an_unknown_feature_is_refused_by_name_with_the_choices(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"declared are .*close_over_ema.*volume_sma") as caught:
        FeatureConfig(("gap", name))
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["sma_0", "sma_-1", "rsi_0", "ema_-20", "lagged_return_0"])
def test_a_window_below_one_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"'{name}' has a window below 1"):
        FeatureConfig((name,))


@pytest.mark.parametrize("window", [0, -1])
def test_an_rsi_window_below_one_is_refused_by_value(window: int) -> None:
    with pytest.raises(ConfigurationError, match=f"RSI window {window} "):
        f.compute_rsi(pd.Series([1.0, 2.0]), window)


def test_a_repeated_feature_and_an_empty_set_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="'rsi_7' is listed twice"):
        FeatureConfig(("sma_5", "rsi_7", "rsi_7"))
    with pytest.raises(ConfigurationError, match="at least one feature"):
        FeatureConfig(())


@pytest.mark.parametrize("name", [*DEFAULT_NAMES, *FeatureConfig.scale_free().features])
def test_a_description_is_one_sentence_that_names_its_window(name: str) -> None:
    feature = f.find_feature(name)
    assert feature.description.endswith(".") and len(feature.description) < 130
    assert "n bars" not in feature.description
    assert feature.unit
    number = name.rpartition("_")[2]
    if number.isdigit():
        assert f" {number} bar{'' if number == '1' else 's'}" in feature.description


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
    assert set(INPUTS) == set(f.FEATURE_INPUTS)
