"""THE feature module: every feature is declared here once, and everything else derives from the declaration.

A feature has finite memory: it reads the bar it belongs to and at most `lookback - 1` earlier ones, adding them up in
an order that does not depend on where the history starts. So a whole history, a slice of it and the last `lookback`
bars alone give equal bits. NaN in a window gives NaN; a flat or empty-volume window has a defined value.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Final, Self

import numpy as np
import pandas as pd

from mt5_crs_pipeline.core.errors import ConfigurationError
from mt5_crs_pipeline.core.labels import TARGET, direction_target
from mt5_crs_pipeline.core.panel import Array, Panel, lagged

# Part of the feature-set hash: raise it whenever a formula below changes its values.
DEFINITIONS_VERSION: Final = 1
EMA_TAIL: Final = 1e-4
FEATURE_INPUTS: Final = ("open", "high", "low", "close", "volume")

Compute = Callable[..., Array]


@dataclass(frozen=True)
class Feature:
    """One declared feature: `lookback` counts the bars its value reads, its own included."""

    name: str
    group: str
    unit: str
    lookback: int
    description: str
    windows: tuple[int, ...]
    compute: Compute

    def values(self, panel: Panel) -> Array:
        """Return the feature for every row of `panel`; NaN where the symbol has fewer than `lookback` bars."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            values = self.compute(panel, *self.windows)
        values[panel.age < self.lookback - 1] = np.nan
        return values


@dataclass(frozen=True)
class _Family:
    group: str
    unit: str
    lookback: Callable[..., int]
    compute: Compute


_FAMILIES: dict[str, _Family] = {}


def _feature(family: str, group: str, unit: str, lookback: Callable[..., int]) -> Callable[[Compute], Compute]:
    """Declare a family of features named `family`, followed by one `_<window>` per argument of the function."""

    def declare(compute: Compute) -> Compute:
        _FAMILIES[family] = _Family(group, unit, lookback, compute)
        return compute

    return declare


def find_feature(name: str) -> Feature:
    """Return the declared feature called `name`; raise ConfigurationError for an unknown name or a window below 1."""
    match = re.fullmatch(r"(.*?)((?:_-?\d+)*)", name)
    stem, numbers = (match[1], match[2]) if match else (name, "")
    family = _FAMILIES.get(stem)
    windows = tuple(int(number) for number in numbers.split("_")[1:])
    # One feature has one name: sma_05 is no second sma_5.
    canonical = "_".join([stem, *map(str, windows)])
    if family is None or family.compute.__code__.co_argcount != 1 + len(windows) or name != canonical:
        raise ConfigurationError(f"feature {name!r} is unknown: declared are {', '.join(sorted(_FAMILIES))}")
    if any(window < 1 for window in windows):
        raise ConfigurationError(f"feature {name!r} has a window below 1")
    bars = f"{windows[0]} bar{'s' if windows[0] > 1 else ''}" if windows else ""
    description = (family.compute.__doc__ or "").split("\n")[0].replace("n bars", bars)
    return Feature(name, family.group, family.unit, family.lookback(*windows), description, windows, family.compute)


# ---------------------------------------------------------------------------------------------------------------------
# Window arithmetic. Each adds lag after lag across the whole array: a fixed order for every row.


def rolling_sum(values: Array, window: int) -> Array:
    """Sum of the last `window` values, newest first."""
    total = values.copy()
    for lag in range(1, window):
        total += lagged(values, lag)
    return total


def rolling_mean(values: Array, window: int) -> Array:
    """Mean of the last `window` values."""
    return rolling_sum(values, window) / window


def rolling_std(values: Array, window: int) -> Array:
    """Sample standard deviation (divisor window - 1) of the last `window` values; 0 for equal values."""
    mean = rolling_mean(values, window)
    squares = (values - mean) ** 2
    for lag in range(1, window):
        squares += (lagged(values, lag) - mean) ** 2
    return np.where(
        rolling_max(values, window) == rolling_min(values, window), 0.0 * squares, np.sqrt(squares / (window - 1))
    )


def rolling_max(values: Array, window: int) -> Array:
    """Largest of the last `window` values; NaN if one of them is."""
    result = values.copy()
    for lag in range(1, window):
        np.maximum(result, lagged(values, lag), out=result)
    return result


def rolling_min(values: Array, window: int) -> Array:
    """Smallest of the last `window` values; NaN if one of them is."""
    return -rolling_max(-values, window)


def ema_lookback(span: int) -> int:
    """Bars after which the weight left out of an exponential average of `span` is under EMA_TAIL."""
    return 1 if span == 1 else math.ceil(math.log(EMA_TAIL) / math.log1p(-2 / (span + 1)))


def rolling_ema(values: Array, span: int) -> Array:
    """Exponential moving average over a finite window: weights (1 - 2 / (span + 1))^lag, scaled to sum to 1."""
    weights = (1 - 2 / (span + 1)) ** np.arange(ema_lookback(span))
    weights /= weights.sum()
    total: Array = values * weights[0]
    for lag in range(1, len(weights)):
        total += lagged(values, lag) * weights[lag]
    return total


def _ratio(numerator: Array, denominator: Array, flat: float) -> Array:
    """Quotient, with `flat` where the denominator is 0; NaN stays NaN."""
    return np.where(denominator == 0, flat + 0.0 * numerator, numerator / denominator)


def _returns(panel: Panel, window: int = 1) -> Array:
    return panel["close"] / lagged(panel["close"], window) - 1


def _rsi(close: Array, window: int) -> Array:
    change = close - lagged(close, 1)
    gain = rolling_sum(np.maximum(change, 0.0), window)
    loss = rolling_sum(np.maximum(-change, 0.0), window)
    return 100.0 * _ratio(gain, gain + loss, flat=0.5)


# ---------------------------------------------------------------------------------------------------------------------
# The declarations. The first docstring line is the feature's public description; "n bars" stands for its window.


@_feature("price_range", "price", "price", lambda: 1)
def _price_range(panel: Panel) -> Array:
    """High minus low of the bar."""
    return panel["high"] - panel["low"]


@_feature("price_change", "price", "price", lambda: 1)
def _price_change(panel: Panel) -> Array:
    """Close minus open of the bar."""
    return panel["close"] - panel["open"]


@_feature("price_change_pct", "price", "fraction", lambda: 1)
def _price_change_pct(panel: Panel) -> Array:
    """Close minus open of the bar, over its open."""
    return (panel["close"] - panel["open"]) / panel["open"]


@_feature("range_over_close", "price", "fraction", lambda: 1)
def _range_over_close(panel: Panel) -> Array:
    """High minus low of the bar, over its close."""
    return (panel["high"] - panel["low"]) / panel["close"]


@_feature("close_location", "price", "fraction", lambda: 1)
def _close_location(panel: Panel) -> Array:
    """Where the close lies between low (0) and high (1) of its bar; 0.5 on a flat bar."""
    return _ratio(panel["close"] - panel["low"], panel["high"] - panel["low"], flat=0.5)


@_feature("gap", "price", "fraction", lambda: 2)
def _gap(panel: Panel) -> Array:
    """Open of the bar over the previous close, minus 1."""
    return panel["open"] / lagged(panel["close"], 1) - 1


@_feature("sma", "moving_average", "price", lambda window: window)
def _sma(panel: Panel, window: int) -> Array:
    """Mean close of the last n bars (simple moving average)."""
    return rolling_mean(panel["close"], window)


@_feature("ema", "moving_average", "price", ema_lookback)
def _ema(panel: Panel, span: int) -> Array:
    """Exponential moving average of the close with a span of n bars, over a finite window."""
    return rolling_ema(panel["close"], span)


@_feature("close_over_sma", "moving_average", "fraction", lambda window: window)
def _close_over_sma(panel: Panel, window: int) -> Array:
    """Close over its mean of the last n bars, minus 1."""
    return panel["close"] / rolling_mean(panel["close"], window) - 1


@_feature("close_over_ema", "moving_average", "fraction", ema_lookback)
def _close_over_ema(panel: Panel, span: int) -> Array:
    """Close over its exponential average with a span of n bars, minus 1."""
    return panel["close"] / rolling_ema(panel["close"], span) - 1


@_feature("momentum", "momentum", "price", lambda window: window + 1)
def _momentum(panel: Panel, window: int) -> Array:
    """Close minus the close n bars earlier (TA-Lib MOM)."""
    return panel["close"] - lagged(panel["close"], window)


@_feature("return", "momentum", "fraction", lambda window: window + 1)
def _return(panel: Panel, window: int) -> Array:
    """Close over the close n bars earlier, minus 1 (TA-Lib ROCP)."""
    return _returns(panel, window)


@_feature("lagged_return", "momentum", "fraction", lambda lag: lag + 2)
def _lagged_return(panel: Panel, lag: int) -> Array:
    """One-bar return as it was n bars earlier."""
    return lagged(_returns(panel), lag)


@_feature("efficiency_ratio", "momentum", "fraction", lambda window: window + 1)
def _efficiency_ratio(panel: Panel, window: int) -> Array:
    """Net move over the path walked in n bars (Kaufman 1995); 0 on a flat window."""
    path = rolling_sum(np.abs(panel["close"] - lagged(panel["close"], 1)), window)
    return _ratio(np.abs(panel["close"] - lagged(panel["close"], window)), path, flat=0.0)


@_feature("drawdown", "momentum", "fraction", lambda window: window)
def _drawdown(panel: Panel, window: int) -> Array:
    """Close over the highest high of the last n bars, minus 1."""
    return panel["close"] / rolling_max(panel["high"], window) - 1


@_feature("volatility", "volatility", "fraction", lambda window: window + 1)
def _volatility(panel: Panel, window: int) -> Array:
    """Sample standard deviation of the last n bars' returns; 0 on a flat window."""
    return rolling_std(_returns(panel), window)


@_feature("parkinson_volatility", "volatility", "fraction", lambda window: window)
def _parkinson_volatility(panel: Panel, window: int) -> Array:
    """Volatility from the high-low ranges of the last n bars (Parkinson 1980)."""
    return np.sqrt(rolling_mean(np.log(panel["high"] / panel["low"]) ** 2, window) / (4 * math.log(2)))


@_feature("atr_over_close", "volatility", "fraction", lambda window: window + 1)
def _atr_over_close(panel: Panel, window: int) -> Array:
    """Mean true range of the last n bars over the close (Wilder 1978, simple mean)."""
    previous = lagged(panel["close"], 1)
    true_range = np.maximum(panel["high"], previous) - np.minimum(panel["low"], previous)
    return rolling_mean(true_range, window) / panel["close"]


@_feature("rsi", "technical", "0 to 100", lambda window: window + 1)
def _relative_strength(panel: Panel, window: int) -> Array:
    """Relative strength index of n bars with plain sums (Cutler): 100 without losses, 50 on a flat window."""
    return _rsi(panel["close"], window)


@_feature("stochastic", "technical", "fraction", lambda window: window)
def _stochastic(panel: Panel, window: int) -> Array:
    """Where the close lies in the high-low range of the last n bars (Lane's %K over 100); 0.5 on a flat window."""
    low = rolling_min(panel["low"], window)
    return _ratio(panel["close"] - low, rolling_max(panel["high"], window) - low, flat=0.5)


@_feature("bollinger_score", "technical", "standard deviations", lambda window: window)
def _bollinger_score(panel: Panel, window: int) -> Array:
    """Close minus its mean of the last n bars, in standard deviations (Bollinger); 0 on a flat window."""
    close = panel["close"]
    return _ratio(close - rolling_mean(close, window), rolling_std(close, window), flat=0.0)


@_feature("volume_sma", "volume", "volume", lambda window: window)
def _volume_sma(panel: Panel, window: int) -> Array:
    """Mean volume of the last n bars."""
    return rolling_mean(panel["volume"], window)


@_feature("volume_change", "volume", "fraction", lambda: 2)
def _volume_change(panel: Panel) -> Array:
    """Volume over the previous bar's, minus 1; from no volume it is 1 to some, 0 to none."""
    previous = lagged(panel["volume"], 1)
    change = panel["volume"] - previous
    return np.where(previous == 0, np.sign(change), change / previous)


@_feature("volume_ratio", "volume", "ratio", lambda window: window)
def _volume_ratio(panel: Panel, window: int) -> Array:
    """Volume over its mean of the last n bars; 1 on a window without volume."""
    return _ratio(panel["volume"], rolling_mean(panel["volume"], window), flat=1.0)


# ---------------------------------------------------------------------------------------------------------------------
# Feature sets and the public calls.

DEFAULT_FEATURES: Final = (
    *("price_range", "price_change", "price_change_pct", "sma_5", "sma_10", "sma_20", "ema_5", "ema_10"),
    *("momentum_5", "momentum_10", "volatility_5", "volatility_10", "rsi_14", "volume_sma_5", "volume_change"),
)
SCALE_FREE_FEATURES: Final = (
    *("price_change_pct", "range_over_close", "close_location", "gap"),
    *("return_1", "return_2", "return_3", "return_5", "return_10", "return_20"),
    *("lagged_return_1", "lagged_return_2", "lagged_return_3"),
    *("close_over_sma_5", "close_over_sma_10", "close_over_sma_20", "close_over_sma_50"),
    *("close_over_ema_5", "close_over_ema_10", "efficiency_ratio_10", "drawdown_20"),
    *("volatility_5", "volatility_10", "volatility_20", "parkinson_volatility_10", "atr_over_close_14"),
    *("rsi_7", "rsi_14", "stochastic_14", "bollinger_score_20"),
    *("volume_change", "volume_ratio_5", "volume_ratio_20"),
)


@dataclass(frozen=True)
class FeatureConfig:
    """An ordered set of features by name; the windows are in the names.

    Raises ConfigurationError naming the value for an unknown or repeated name and a window below 1.
    """

    features: tuple[str, ...] = DEFAULT_FEATURES

    def __post_init__(self) -> None:
        for name in self.features:
            find_feature(name)
        repeated = [name for name in self.features if self.features.count(name) > 1]
        if repeated:
            raise ConfigurationError(f"feature {repeated[0]!r} is listed twice")
        if not self.features:
            raise ConfigurationError("a feature set needs at least one feature")

    @classmethod
    def scale_free(cls) -> Self:
        """The set the pipeline trains on: no feature depends on the level of price or volume."""
        return cls(SCALE_FREE_FEATURES)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Inverse of `to_json`."""
        return cls(tuple(json.loads(text)["features"]))

    def to_json(self) -> str:
        """Serialise as one line of JSON."""
        return json.dumps(asdict(self))

    @property
    def declared(self) -> tuple[Feature, ...]:
        """The features in order."""
        return tuple(find_feature(name) for name in self.features)

    @property
    def lookback(self) -> int:
        """Bars that one complete row of features reads, its own included."""
        return max(feature.lookback for feature in self.declared)

    @property
    def feature_set_hash(self) -> str:
        """Hex SHA-256 of names and definitions version; equal hashes mean equal computation."""
        return hashlib.sha256(f"{DEFINITIONS_VERSION}:{self.to_json()}".encode()).hexdigest()


def get_feature_names(config: FeatureConfig | None = None) -> list[str]:
    """Return the feature columns in the order they are computed, stored and trained on."""
    return list((config or FeatureConfig()).features)


def feature_frame(bars: pd.DataFrame, config: FeatureConfig | None = None) -> pd.DataFrame:
    """Return the features alone for every bar, in the frame's own row order and index; warm-up rows are NaN.

    `bars` has columns time (open, aware UTC), open, high, low, close, volume, and symbol unless there is only one; rows
    may come in any order. The input is untouched. Raises InputError as Panel does.
    """
    panel = Panel(bars, FEATURE_INPUTS)
    columns = {
        feature.name: panel.in_frame_order(feature.values(panel)) for feature in (config or FeatureConfig()).declared
    }
    return pd.DataFrame(columns, index=bars.index)


def compute_features(
    df: pd.DataFrame, config: FeatureConfig | None = None, include_target: bool = False
) -> pd.DataFrame:
    """Return the input's columns plus the features, without the rows whose features are incomplete.

    With `include_target` also the column `target` (1.0 when the next close is higher, else 0.0), without the rows whose
    next bar is missing. Columns as in `feature_frame`.
    """
    result = _with_columns(df, feature_frame(df, config))
    wanted = get_feature_names(config)
    if include_target:
        result[TARGET] = direction_target(df)
        wanted.append(TARGET)
    return result.dropna(subset=wanted)


def _with_columns(df: pd.DataFrame, columns: pd.DataFrame) -> pd.DataFrame:
    # By position: a join would multiply the rows of a frame that repeats index labels.
    return df.assign(**{str(name): columns[name].to_numpy() for name in columns})


def _with_group(df: pd.DataFrame, config: FeatureConfig | None, group: str) -> pd.DataFrame:
    names = [feature.name for feature in (config or FeatureConfig()).declared if feature.group == group]
    return _with_columns(df, feature_frame(df, FeatureConfig(tuple(names)))) if names else df.copy()


def compute_price_features(df: pd.DataFrame, config: FeatureConfig | None = None) -> pd.DataFrame:
    """Return the input's columns plus the price features; every row is kept, warm-up is NaN."""
    return _with_group(df, config, "price")


def compute_moving_averages(df: pd.DataFrame, config: FeatureConfig | None = None) -> pd.DataFrame:
    """Return the input's columns plus the moving averages; every row is kept, warm-up is NaN."""
    return _with_group(df, config, "moving_average")


def compute_momentum_features(df: pd.DataFrame, config: FeatureConfig | None = None) -> pd.DataFrame:
    """Return the input's columns plus the momentum features; every row is kept, warm-up is NaN."""
    return _with_group(df, config, "momentum")


def compute_volatility_features(df: pd.DataFrame, config: FeatureConfig | None = None) -> pd.DataFrame:
    """Return the input's columns plus the volatility features; every row is kept, warm-up is NaN."""
    return _with_group(df, config, "volatility")


def compute_technical_indicators(df: pd.DataFrame, config: FeatureConfig | None = None) -> pd.DataFrame:
    """Return the input's columns plus the oscillators (RSI and its kin); every row is kept, warm-up is NaN."""
    return _with_group(df, config, "technical")


def compute_volume_features(df: pd.DataFrame, config: FeatureConfig | None = None) -> pd.DataFrame:
    """Return the input's columns plus the volume features; every row is kept, warm-up is NaN."""
    return _with_group(df, config, "volume")


def compute_rsi(close: pd.Series, window: int = 14) -> pd.Series:
    """Return the relative strength index of one symbol's closes in time order; NaN for the first `window` rows."""
    if window < 1:
        raise ConfigurationError(f"RSI window {window} is below 1")
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        values = _rsi(close.to_numpy(dtype=float), window)
    return pd.Series(values, index=close.index, name=f"rsi_{window}")
