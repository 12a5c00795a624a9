"""THE features: each is declared here once, and names, memory, units, Feast fields, documents and tests follow.

A declaration is a function from windows (bars) to an expression over open, high, low, close, volume and the bar's own
time. A feature is called by the function's name and its windows: `sma` and 5 make `sma_5`. The first line of the
docstring is the public description, in which "n bars" and "m bars" stand for the windows.
To add a feature, write one function here; to train on it, name it in SCALE_FREE_FEATURES.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from mt5_crs_pipeline.core.errors import ConfigurationError
from mt5_crs_pipeline.core.features.expressions import (
    Expression,
    age_of_max,
    bar_input,
    calendar,
    ema,
    lag,
    larger,
    log,
    ratio,
    rolling_corr,
    rolling_kurt,
    rolling_max,
    rolling_mean,
    rolling_mean_deviation,
    rolling_min,
    rolling_rank,
    rolling_skew,
    rolling_slope,
    rolling_slope_of_total,
    rolling_std,
    rolling_sum,
    sign,
    smaller,
    sqrt,
)
from mt5_crs_pipeline.core.features.operations import Calendar

LONGEST_WINDOW: Final = 2_000
LN_2: Final = 0.6931471805599453

Formula = Callable[..., Expression]

open_, high, low, close, volume = map(bar_input, ("open", "high", "low", "close", "volume"))


@dataclass(frozen=True)
class Feature:
    """One declared feature: `lookback` counts the bars its value reads, its own included."""

    name: str
    group: str
    unit: str
    description: str
    expression: Expression

    @property
    def lookback(self) -> int:
        """Bars the value reads, its own included; follows from the formula."""
        return self.expression.reach + 1


@dataclass(frozen=True)
class _Family:
    group: str
    unit: str
    shortest: int
    formula: Formula

    @property
    def windows(self) -> int:
        return self.formula.__code__.co_argcount


_FAMILIES: dict[str, _Family] = {}


def _feature(group: str, unit: str, shortest: int = 1) -> Callable[[Formula], Formula]:
    """Declare a family of features whose windows are at least `shortest` bars."""

    def declare(formula: Formula) -> Formula:
        _FAMILIES[formula.__name__.strip("_")] = _Family(group, unit, shortest, formula)
        return formula

    return declare


def find_feature(name: str) -> Feature:
    """Return the declared feature called `name`; raise ConfigurationError for an unknown name or a senseless window."""
    match = re.fullmatch(r"(.*?)((?:_-?\d+)*)", name) if isinstance(name, str) else None
    stem, numbers = (match[1], match[2]) if match else (str(name), "")
    family = _FAMILIES.get(stem)
    windows = tuple(int(number) for number in numbers.split("_")[1:])
    # One feature has one name: sma_05 is no second sma_5.
    if family is None or family.windows != len(windows) or name != "_".join([stem, *map(str, windows)]):
        raise ConfigurationError(f"feature {name!r} is unknown: declared are {', '.join(sorted(_FAMILIES))}")
    if any(window < family.shortest for window in windows):
        raise ConfigurationError(f"feature {name!r} has a window below {family.shortest}")
    if any(window > LONGEST_WINDOW for window in windows):
        raise ConfigurationError(f"feature {name!r} has a window above {LONGEST_WINDOW}")
    description = (family.formula.__doc__ or "").split("\n")[0]
    for placeholder, window in zip(("n bars", "m bars"), windows, strict=False):
        description = description.replace(placeholder, f"{window} bar{'s' if window > 1 else ''}")
    return Feature(name, family.group, family.unit, description, family.formula(*windows))


# Shared parts.


def _change() -> Expression:
    return close - lag(close, 1)


def _returns(n: int = 1) -> Expression:
    return close / lag(close, n) - 1


def _true_range() -> Expression:
    return larger(high, lag(close, 1)) - smaller(low, lag(close, 1))


def _signed_volume() -> Expression:
    return sign(_change()) * volume


# The bar itself.


@_feature("price", "price")
def price_range() -> Expression:
    """High minus low of the bar."""
    return high - low


@_feature("price", "price")
def price_change() -> Expression:
    """Close minus open of the bar."""
    return close - open_


@_feature("price", "fraction")
def price_change_pct() -> Expression:
    """Close minus open of the bar, over its open."""
    return (close - open_) / open_


@_feature("price", "fraction")
def range_over_close() -> Expression:
    """High minus low of the bar, over its close."""
    return (high - low) / close


@_feature("price", "fraction")
def close_location() -> Expression:
    """Where the close lies between low (0) and high (1) of its bar; 0.5 on a flat bar."""
    return ratio(close - low, high - low, flat=0.5)


@_feature("price", "fraction")
def upper_shadow() -> Expression:
    """High minus the larger of open and close, over the bar's range; 0 on a flat bar."""
    return ratio(high - larger(open_, close), high - low, flat=0.0)


@_feature("price", "fraction")
def lower_shadow() -> Expression:
    """The smaller of open and close minus low, over the bar's range; 0 on a flat bar."""
    return ratio(smaller(open_, close) - low, high - low, flat=0.0)


@_feature("price", "fraction")
def gap() -> Expression:
    """Open of the bar over the previous close, minus 1."""
    return open_ / lag(close, 1) - 1


# Moving averages.


@_feature("moving_average", "price")
def sma(n: int) -> Expression:
    """Mean close of the last n bars (simple moving average; TA-Lib SMA)."""
    return rolling_mean(close, n)


@_feature("moving_average", "price")
def _ema(n: int) -> Expression:
    """Exponential moving average of the close with a span of n bars, over a finite window."""
    return ema(close, n)


@_feature("moving_average", "fraction")
def close_over_sma(n: int) -> Expression:
    """Close over its mean of the last n bars, minus 1."""
    return close / rolling_mean(close, n) - 1


@_feature("moving_average", "fraction")
def close_over_ema(n: int) -> Expression:
    """Close over its exponential average with a span of n bars, minus 1."""
    return close / ema(close, n) - 1


@_feature("moving_average", "fraction")
def macd_over_close(n: int, m: int) -> Expression:
    """Exponential average of n bars minus that of m bars, over the close (Appel's MACD line)."""
    return (ema(close, n) - ema(close, m)) / close


@_feature("moving_average", "fraction per bar", shortest=2)
def slope_over_close(n: int) -> Expression:
    """Slope of the least-squares line through the last n bars' closes, over the close (TA-Lib LINEARREG_SLOPE)."""
    return rolling_slope(close, n) / close


# Momentum.


@_feature("momentum", "price")
def momentum(n: int) -> Expression:
    """Close minus the close n bars earlier (TA-Lib MOM)."""
    return close - lag(close, n)


@_feature("momentum", "fraction")
def return_(n: int) -> Expression:
    """Close over the close n bars earlier, minus 1 (TA-Lib ROCP)."""
    return _returns(n)


@_feature("momentum", "log fraction")
def log_return(n: int) -> Expression:
    """Logarithm of the close over the close n bars earlier."""
    return log(close / lag(close, n))


@_feature("momentum", "fraction")
def lagged_return(n: int) -> Expression:
    """One-bar return as it was n bars earlier."""
    return lag(_returns(), n)


@_feature("momentum", "fraction")
def efficiency_ratio(n: int) -> Expression:
    """Net move over the path walked in n bars (Kaufman 1995); 0 on a flat window."""
    return ratio(abs(close - lag(close, n)), rolling_sum(abs(_change()), n), flat=0.0)


@_feature("momentum", "fraction")
def drawdown(n: int) -> Expression:
    """Close over the highest high of the last n bars, minus 1."""
    return close / rolling_max(high, n) - 1


@_feature("momentum", "fraction", shortest=2)
def age_of_high(n: int) -> Expression:
    """Bars since the highest high of the last n bars, over the most there can be; 0 when it is this bar (Aroon)."""
    return age_of_max(high, n) / (n - 1)


@_feature("momentum", "fraction")
def close_rank(n: int) -> Expression:
    """Share of the last n bars' closes that are not above this one; equal ones count half (percentile rank)."""
    return rolling_rank(close, n)


@_feature("momentum", "correlation", shortest=3)
def autocorrelation(n: int) -> Expression:
    """Correlation of the last n bars' returns with the returns one bar earlier; 0 on a flat window."""
    return rolling_corr(_returns(), lag(_returns(), 1), n)


# Volatility and shape of the returns.


@_feature("volatility", "fraction", shortest=2)
def volatility(n: int) -> Expression:
    """Sample standard deviation of the last n bars' returns; 0 on a flat window."""
    return rolling_std(_returns(), n)


@_feature("volatility", "ratio", shortest=2)
def volatility_ratio(n: int, m: int) -> Expression:
    """Standard deviation of the last n bars' returns over that of the last m bars; 1 where the longer is flat."""
    return ratio(rolling_std(_returns(), n), rolling_std(_returns(), m), flat=1.0)


@_feature("volatility", "log fraction")
def realised_volatility(n: int) -> Expression:
    """Root of the mean squared log return of the last n bars (Andersen and Bollerslev 1998)."""
    one_bar = log(close / lag(close, 1))
    return sqrt(rolling_mean(one_bar * one_bar, n))


@_feature("volatility", "log fraction")
def parkinson_volatility(n: int) -> Expression:
    """Volatility from the high-low ranges of the last n bars (Parkinson 1980)."""
    height = log(high / low)
    return sqrt(rolling_mean(height * height, n) / (4 * LN_2))


@_feature("volatility", "log fraction")
def garman_klass_volatility(n: int) -> Expression:
    """Volatility from open, high, low and close of the last n bars (Garman and Klass 1980)."""
    height, body = log(high / low), log(close / open_)
    return sqrt(rolling_mean(0.5 * height * height - (2 * LN_2 - 1) * body * body, n))


@_feature("volatility", "fraction")
def atr_over_close(n: int) -> Expression:
    """Mean true range of the last n bars over the close (Wilder 1978, simple mean)."""
    return rolling_mean(_true_range(), n) / close


@_feature("volatility", "skewness", shortest=3)
def skew(n: int) -> Expression:
    """Sample skewness of the last n bars' returns (as pandas has it); 0 on a flat window."""
    return rolling_skew(_returns(), n)


@_feature("volatility", "excess kurtosis", shortest=4)
def kurtosis(n: int) -> Expression:
    """Sample excess kurtosis of the last n bars' returns (as pandas has it); 0 on a flat window."""
    return rolling_kurt(_returns(), n)


# Oscillators.


@_feature("technical", "0 to 100")
def rsi(n: int) -> Expression:
    """Relative strength index of n bars with plain sums (Cutler): 100 without losses, 50 on a flat window."""
    gain, loss = rolling_sum(larger(_change(), 0.0), n), rolling_sum(larger(0.0 - _change(), 0.0), n)
    return 100.0 * ratio(gain, gain + loss, flat=0.5)


@_feature("technical", "fraction")
def stochastic(n: int) -> Expression:
    """Where the close lies in the high-low range of the last n bars (Lane's %K over 100); 0.5 on a flat window."""
    lowest = rolling_min(low, n)
    return ratio(close - lowest, rolling_max(high, n) - lowest, flat=0.5)


@_feature("technical", "fraction")
def stochastic_mean(n: int, m: int) -> Expression:
    """Mean of the last m bars' stochastic of n bars (Lane's %D over 100)."""
    return rolling_mean(stochastic(n), m)


@_feature("technical", "-100 to 0")
def williams_r(n: int) -> Expression:
    """Where the close lies below the highest high of the last n bars (Williams %R); -50 on a flat window."""
    highest = rolling_max(high, n)
    return 100.0 * ratio(close - highest, highest - rolling_min(low, n), flat=-0.5)


@_feature("technical", "mean deviations over 0.015")
def cci(n: int) -> Expression:
    """Typical price against its mean of the last n bars, in mean deviations (Lambert's CCI); 0 on a flat window."""
    typical = (high + low + close) / 3
    return ratio(typical - rolling_mean(typical, n), 0.015 * rolling_mean_deviation(typical, n), flat=0.0)


@_feature("technical", "fraction", shortest=2)
def bollinger_b(n: int) -> Expression:
    """Where the close lies between the Bollinger bands of n bars, two deviations wide (%b); 0.5 on a flat window."""
    return 0.5 + ratio(close - rolling_mean(close, n), 4.0 * rolling_std(close, n, ddof=0), flat=0.0)


@_feature("technical", "fraction", shortest=2)
def bollinger_bandwidth(n: int) -> Expression:
    """Distance of the Bollinger bands of n bars, two deviations wide, over their middle."""
    return 4.0 * rolling_std(close, n, ddof=0) / rolling_mean(close, n)


# Volume.


@_feature("volume", "volume")
def volume_sma(n: int) -> Expression:
    """Mean volume of the last n bars."""
    return rolling_mean(volume, n)


@_feature("volume", "fraction")
def volume_change() -> Expression:
    """Volume over the previous bar's, minus 1; from no volume it is 1 to some, 0 to none."""
    change = volume - lag(volume, 1)
    return ratio(change, lag(volume, 1), flat=sign(change))


@_feature("volume", "ratio")
def volume_ratio(n: int) -> Expression:
    """Volume over its mean of the last n bars; 1 on a window without volume."""
    return ratio(volume, rolling_mean(volume, n), flat=1.0)


@_feature("volume", "standard deviations", shortest=2)
def volume_zscore(n: int) -> Expression:
    """Volume minus its mean of the last n bars, in standard deviations; 0 on a flat window."""
    return ratio(volume - rolling_mean(volume, n), rolling_std(volume, n), flat=0.0)


@_feature("volume", "mean volumes per bar", shortest=2)
def obv_slope(n: int) -> Expression:
    """Slope of the last n bars' on-balance volume (Granville 1963) over their mean volume; 0 without volume."""
    return ratio(rolling_slope_of_total(_signed_volume(), n), rolling_mean(volume, n), flat=0.0)


@_feature("volume", "fraction")
def signed_volume_share(n: int) -> Expression:
    """Volume of rising minus that of falling bars, over all volume of the last n bars; 0 without volume."""
    return ratio(rolling_sum(_signed_volume(), n), rolling_sum(volume, n), flat=0.0)


@_feature("volume", "correlation", shortest=3)
def return_volume_correlation(n: int) -> Expression:
    """Correlation of the last n bars' returns with their volumes; 0 where one of them is flat."""
    return rolling_corr(_returns(), volume, n)


# The bar's own time: its open, in UTC.


@_feature("calendar", "hours")
def hour_of_day() -> Expression:
    """Hour of the bar's open in UTC, 0 to 24, with minutes as a fraction."""
    return calendar(Calendar.HOUR_OF_DAY)


@_feature("calendar", "days")
def day_of_week() -> Expression:
    """Day of the week of the bar's open in UTC: 0 on Monday, 6 on Sunday."""
    return calendar(Calendar.DAY_OF_WEEK)


@_feature("calendar", "days")
def day_of_month() -> Expression:
    """Day of the month of the bar's open in UTC, from 1."""
    return calendar(Calendar.DAY_OF_MONTH)


@_feature("calendar", "months")
def month_of_year() -> Expression:
    """Month of the bar's open in UTC, from 1."""
    return calendar(Calendar.MONTH_OF_YEAR)


DEFAULT_FEATURES: Final = (
    *("price_range", "price_change", "price_change_pct", "sma_5", "sma_10", "sma_20", "ema_5", "ema_10"),
    *("momentum_5", "momentum_10", "volatility_5", "volatility_10", "rsi_14", "volume_sma_5", "volume_change"),
)
SCALE_FREE_FEATURES: Final = (
    *("price_change_pct", "range_over_close", "close_location", "upper_shadow", "lower_shadow", "gap"),
    *("return_1", "return_2", "return_3", "return_5", "return_10", "return_20", "return_60"),
    *("log_return_1", "log_return_5", "log_return_20"),
    *("lagged_return_1", "lagged_return_2", "lagged_return_3", "lagged_return_5"),
    *("close_over_sma_5", "close_over_sma_10", "close_over_sma_20", "close_over_sma_50"),
    *("close_over_ema_5", "close_over_ema_10", "close_over_ema_20", "macd_over_close_12_26"),
    *("slope_over_close_10", "slope_over_close_20", "efficiency_ratio_10", "efficiency_ratio_20"),
    *("drawdown_20", "drawdown_60", "age_of_high_20", "close_rank_20", "close_rank_60", "autocorrelation_20"),
    *("volatility_5", "volatility_10", "volatility_20", "volatility_60", "volatility_ratio_5_20"),
    *("realised_volatility_10", "realised_volatility_20", "parkinson_volatility_10", "parkinson_volatility_20"),
    *("garman_klass_volatility_10", "garman_klass_volatility_20", "atr_over_close_14", "atr_over_close_50"),
    *("skew_20", "kurtosis_20"),
    *("rsi_7", "rsi_14", "rsi_28", "stochastic_14", "stochastic_mean_14_3", "williams_r_28", "cci_20"),
    *("bollinger_b_20", "bollinger_bandwidth_20"),
    *("volume_change", "volume_ratio_5", "volume_ratio_20", "volume_zscore_20", "obv_slope_10", "obv_slope_20"),
    *("signed_volume_share_10", "signed_volume_share_20", "return_volume_correlation_20"),
    *("hour_of_day", "day_of_week", "day_of_month", "month_of_year"),
)
