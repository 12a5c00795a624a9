"""Feature sets: names and windows, JSON, and a hash that stands for the computation."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mt5_crs_pipeline.core.errors import ConfigurationError
from mt5_crs_pipeline.core.features import (
    FeatureConfig,
    compute_rsi,
    config,
    declaration,
    feature_frame,
    find_feature,
    formulas,
)
from mt5_crs_pipeline.core.features.expressions import Expression, lag
from mt5_crs_pipeline.core.features.operations import KERNEL_VERSION
from tests.core.reference import DEFAULT_NAMES, family_of

ALL_NAMES = tuple(dict.fromkeys([*DEFAULT_NAMES, *FeatureConfig.scale_free().features]))
# How many bars the smallest window of each family has, where one bar is not enough.
SHORTEST = {
    **dict.fromkeys(("slope_over_close", "age_of_high", "volatility", "bollinger_b", "bollinger_bandwidth"), 2),
    **dict.fromkeys(("volume_zscore", "obv_slope", "volatility_ratio"), 2),
    **dict.fromkeys(("autocorrelation", "skew", "return_volume_correlation"), 3),
    "kurtosis": 4,
}
WITH_WINDOWS = {stem: len(windows) for stem, windows in map(family_of, ALL_NAMES) if windows}

DEFAULT_HASH = "921f64d5f87b358b6a689970b97d744b2520f1b514ad96a24eb1d756fec4a1f5"
SCALE_FREE_HASH = "ef07e221f481440d9327a6332f3818908629a0b691c002b6a88e8184613385f1"
# If these change, raise KERNEL_VERSION: stored features and trained models know their computation by the hash above.
DEFAULT_BITS = "25a65e3e7ecf4f583d753b2c238fc816c655456aac14639365dfd78027ffee2a"
SCALE_FREE_BITS = "5da4bb151bbfa656f685362ec9cb4a07b3c79fd49806fea18b5d4a39096ec6e8"


def fixed_bars() -> pd.DataFrame:
    """Bars of three symbols from whole numbers alone, so that they are the same on every machine.

    A linear congruential sequence moves the prices by cents; at times nothing moves or trades for over 120 bars, which
    is as far as a feature reads.
    """
    state = 20_240_601
    rows: list[tuple[str, int, float, float, float, float, float]] = []

    def draw(below: int) -> int:
        nonlocal state
        state = (state * 6_364_136_223_846_793_005 + 1_442_695_040_888_963_407) % 2**64
        return (state >> 33) % below

    for symbol in ("AAA", "BBB", "CCC"):
        minutes, close = 26_000_000 + draw(1_000_000), 1_000 + draw(100_000)
        for bar in range(1_300):
            minutes += 1 + draw(600)
            if 700 <= bar < 900:
                prices, volume = [close] * 4, 0
            else:
                open_ = max(close + draw(41) - 20, 50)
                close = max(open_ + draw(201) - 100, 50)
                prices = [open_, max(open_, close) + draw(60), min(open_, close) - draw(40), close]
                volume = draw(10) and draw(1_000_000)
            rows.append((symbol, minutes, *(price / 100 for price in prices), float(volume)))
    bars = pd.DataFrame(rows, columns=["symbol", "minutes", "open", "high", "low", "close", "volume"])
    return bars.assign(time=pd.to_datetime(bars.pop("minutes") * 60, unit="s", utc=True))


def bits_hash(values: pd.DataFrame) -> str:
    doubles = values.to_numpy(dtype="<f8")
    # Processors write NaN in different ways.
    return hashlib.sha256(np.where(np.isnan(doubles), np.nan, doubles).astype("<f8").tobytes()).hexdigest()


@pytest.fixture
def forget_formulas() -> Iterator[None]:
    """The formulas of a feature set are looked up once: a test that changes them starts and leaves with none."""
    caches = (config._declared, config._program)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize("features", [FeatureConfig(), FeatureConfig.scale_free(), FeatureConfig(("rsi_3", "gap"))])
def test_a_feature_set_survives_json(features: FeatureConfig) -> None:
    assert json.loads(features.to_json()) == {"features": list(features.features)}
    assert FeatureConfig.from_json(features.to_json()) == features
    assert FeatureConfig.from_json(features.to_json()).feature_set_hash == features.feature_set_hash


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("sma_5", "'sma_5'"),
        ("", "''"),
        ('{"features": ["sma_5"]', "sma_5"),
        ("{}", "{}"),
        ('{"names": ["sma_5"]}', "names"),
        ('["sma_5"]', "sma_5"),
        ('"features"', "features"),
        ("5", "5"),
        ("null", "null"),
        ('{"features": "sma_5"}', "'sma_5'"),
        ('{"features": 5}', "5"),
        ('{"features": null}', "None"),
        ('{"features": {"sma_5": 1}}', "sma_5"),
        ('{"features": [5]}', "feature 5 is unknown"),
        ('{"features": [["sma_5"]]}', r"\['sma_5'\]"),
        ('{"features": []}', "at least one feature"),
        ('{"features": ["sma_0"]}', "sma_0"),
    ],
)
def test_json_that_is_no_feature_set_is_refused_by_what_it_says(text: str, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        FeatureConfig.from_json(text)


def test_a_feature_set_cannot_be_changed_and_is_equal_to_its_like() -> None:
    features = FeatureConfig(("sma_5", "gap"))
    with pytest.raises(FrozenInstanceError):
        features.features = ("gap",)  # type: ignore[misc]
    assert features == FeatureConfig(("sma_5", "gap")) != FeatureConfig(("gap", "sma_5"))
    assert {features: 1}[FeatureConfig(("sma_5", "gap"))] == 1


def test_the_hash_of_a_feature_set_is_stable_and_tells_order_apart() -> None:
    assert FeatureConfig().feature_set_hash == DEFAULT_HASH
    assert FeatureConfig.scale_free().feature_set_hash == SCALE_FREE_HASH
    assert FeatureConfig(("gap", "sma_5")).feature_set_hash != FeatureConfig(("sma_5", "gap")).feature_set_hash


@pytest.mark.parametrize(
    ("features", "expected"),
    [(FeatureConfig(), DEFAULT_BITS), (FeatureConfig.scale_free(), SCALE_FREE_BITS)],
    ids=["default", "scale free"],
)
def test_every_bit_of_the_features_of_fixed_bars_is_as_it_was(features: FeatureConfig, expected: str) -> None:
    values = feature_frame(fixed_bars(), features)
    assert values.dropna().shape[0] == 3 * (1_300 - features.lookback + 1)
    assert bits_hash(values) == expected


def test_a_new_version_of_the_kernel_is_a_new_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    before = FeatureConfig().feature_set_hash
    monkeypatch.setattr(config, "KERNEL_VERSION", KERNEL_VERSION + 1)
    assert FeatureConfig().feature_set_hash != before


@pytest.mark.usefixtures("forget_formulas")
@pytest.mark.parametrize(
    ("name", "formula", "lookback"),
    [
        ("gap", lambda: formulas.open_ / lag(formulas.close, 2) - 1, 3),
        ("gap", lambda: formulas.open_ / lag(formulas.open_, 1) - 1, 2),
        ("gap", lambda: formulas.open_ / lag(formulas.close, 1) - 1.0000000000000002, 2),
        ("sma", lambda n: formulas.close, 1),
    ],
)
def test_another_formula_under_the_same_name_is_a_new_hash(
    name: str, formula: declaration.Formula, lookback: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = "_5" if name == "sma" else ""
    features, untouched = FeatureConfig((f"{name}{windows}",)), FeatureConfig(("price_range",))
    before, others = features.feature_set_hash, untouched.feature_set_hash
    monkeypatch.setitem(declaration.FAMILIES, name, replace(declaration.FAMILIES[name], formula=formula))
    config._declared.cache_clear()
    assert features.feature_set_hash != before
    assert features.lookback == lookback
    assert untouched.feature_set_hash == others


@pytest.mark.usefixtures("forget_formulas")
def test_the_same_formula_in_other_words_keeps_the_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    before = FeatureConfig(("gap",)).feature_set_hash

    def gap() -> Expression:
        """Another description."""
        yesterday = lag(formulas.close, 1)
        return formulas.open_ / yesterday - 1.0

    monkeypatch.setitem(declaration.FAMILIES, "gap", replace(declaration.FAMILIES["gap"], formula=gap, unit="percent"))
    config._declared.cache_clear()
    assert find_feature("gap").description == "Another description."
    assert FeatureConfig(("gap",)).feature_set_hash == before


def test_no_two_features_are_the_same_formula() -> None:
    keys = {find_feature(name).expression.key for name in ALL_NAMES}
    assert len(keys) == len(ALL_NAMES) == 85


def test_a_feature_set_needs_the_bars_of_its_longest_feature() -> None:
    assert FeatureConfig(("price_range", "sma_20", "momentum_5")).lookback == 20
    assert FeatureConfig(("momentum_20",)).lookback == 21
    # The longest of the defaults is ema_10: (9/11)^46 is the first power under 1e-4.
    assert (9 / 11) ** 46 < 1e-4 <= (9 / 11) ** 45
    assert FeatureConfig().lookback == 46
    # The longest of the others is the slower average of MACD, of 26 bars.
    assert (25 / 27) ** 120 < 1e-4 <= (25 / 27) ** 119
    assert FeatureConfig.scale_free().lookback == 120


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
        "macd_over_close",
        "macd_over_close_12",
        "macd_over_close_12_26_9",
        "_ema_5",
        "return__5",
        "hour_of_day_1",
    ],
)
def test_an_unknown_feature_is_refused_by_name_with_the_choices(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"declared are .*close_over_ema.*volume_sma") as caught:
        FeatureConfig(("gap", name))
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", [None, 5, 1.5, b"sma_5", ("sma_5",), ["sma_5"], np.nan])
def test_a_name_that_is_no_text_is_refused_by_value(name: Any) -> None:
    with pytest.raises(ConfigurationError, match="is unknown: declared are") as caught:
        FeatureConfig(("gap", name))
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("features", ["sma_5", ["sma_5"], None, 5])
def test_features_that_are_no_tuple_are_refused_by_value(features: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        FeatureConfig(features)
    assert repr(features) in str(caught.value)


@pytest.mark.parametrize("name", ["sma_0", "sma_-1", "rsi_0", "ema_-20", "lagged_return_0", "macd_over_close_12_0"])
def test_a_window_below_one_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"'{name}' has a window below 1"):
        FeatureConfig((name,))


@pytest.mark.parametrize("stem", sorted(WITH_WINDOWS))
def test_the_shortest_window_is_taken_and_one_bar_less_refused_by_name(stem: str) -> None:
    shortest = SHORTEST.get(stem, 1)
    for place in range(WITH_WINDOWS[stem]):
        windows = [20] * WITH_WINDOWS[stem]
        windows[place] = shortest
        taken = "_".join([stem, *map(str, windows)])
        assert FeatureConfig((taken,)).lookback >= shortest
        windows[place] -= 1
        refused = "_".join([stem, *map(str, windows)])
        with pytest.raises(ConfigurationError, match=f"'{refused}' has a window below {shortest}$"):
            FeatureConfig((refused,))


@pytest.mark.parametrize("stem", sorted(WITH_WINDOWS))
def test_the_longest_window_is_taken_and_one_bar_more_refused_by_name(stem: str) -> None:
    longest = declaration.LONGEST_WINDOW
    for place in range(WITH_WINDOWS[stem]):
        windows = [20] * WITH_WINDOWS[stem]
        windows[place] = longest
        assert FeatureConfig(("_".join([stem, *map(str, windows)]),)).lookback >= longest
        windows[place] += 1
        refused = "_".join([stem, *map(str, windows)])
        with pytest.raises(ConfigurationError, match=f"'{refused}' has a window above {longest}$"):
            FeatureConfig((refused,))


def test_a_window_of_thousands_of_digits_is_refused_by_name() -> None:
    name = f"sma_{'9' * 5_000}"
    with pytest.raises(ConfigurationError, match=name):
        FeatureConfig((name,))


@pytest.mark.parametrize("window", [0, -1])
def test_an_rsi_window_below_one_is_refused_by_value(window: int) -> None:
    with pytest.raises(ConfigurationError, match=f"RSI window {window!r} "):
        compute_rsi(pd.Series([1.0, 2.0]), window)


def test_a_repeated_feature_and_an_empty_set_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="'rsi_7' is listed twice"):
        FeatureConfig(("sma_5", "rsi_7", "rsi_7"))
    with pytest.raises(ConfigurationError, match="at least one feature"):
        FeatureConfig(())


@pytest.mark.parametrize("name", [*ALL_NAMES, "sma_1", "close_rank_1", "stochastic_mean_14_1"])
def test_a_description_is_one_sentence_that_names_its_windows(name: str) -> None:
    feature = find_feature(name)
    assert feature.name == name
    assert feature.description.endswith(".") and feature.description.count(". ") == 0
    assert len(feature.description) < 130
    assert "n bars" not in feature.description and "m bars" not in feature.description
    assert "1 bar'" not in feature.description.replace("1 bar's", "")
    assert feature.unit
    for window in family_of(name)[1]:
        assert f" {window} bar{'' if window == 1 else 's'}" in feature.description
