"""THE features: each is declared here once, and names, memory, units, Feast fields, documents and tests follow.

A declaration is a function from windows (bars) to an expression over open, high, low, close, volume and the bar's own
time. A feature is called by the function's name and its windows: `sma` and 5 make `sma_5`. The first line of the
docstring is the public description, in which "n bars" and "m bars" stand for the windows.
To add a feature, write one function here; to train on it, name it in SCALE_FREE_FEATURES of `config`.
"""

from typing import Final

from mt5_crs_pipeline.core.features.declaration import feature
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

LN_2: Final = 0.6931471805599453

open_, high, low, close, volume = map(bar_input, ("open", "high", "low", "close", "volume"))


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


@feature("price", "price")
def price_range() -> Expression:
    """High minus low of the bar."""
    return high - low


@feature("price", "price")
def price_change() -> Expression:
    """Close minus open of the bar."""
    return close - open_


@feature("price", "fraction")
def price_change_pct() -> Expression:
    """Close minus open of the bar, over its open."""
    return (close - open_) / open_


@feature("price", "fraction")
def range_over_close() -> Expression:
    """High minus low of the bar, over its close."""
    return (high - low) / close


@feature("price", "fraction")
def close_location() -> Expression:
    """Where the close lies between low (0) and high (1) of its bar; 0.5 on a flat bar."""
    return ratio(close - low, high - low, flat=0.5)


@feature("price", "fraction")
def upper_shadow() -> Expression:
    """High minus the larger of open and close, over the bar's range; 0 on a flat bar."""
    return ratio(high - larger(open_, close), high - low, flat=0.0)


@feature("price", "fraction")
def lower_shadow() -> Expression:
    """The smaller of open and close minus low, over the bar's range; 0 on a flat bar."""
    return ratio(smaller(open_, close) - low, high - low, flat=0.0)


@feature("price", "fraction")
def gap() -> Expression:
    """Open of the bar over the previous close, minus 1."""
    return open_ / lag(close, 1) - 1


# Moving averages.


@feature("moving_average", "price")
def sma(n: int) -> Expression:
    """Mean close of the last n bars (simple moving average; TA-Lib SMA)."""
    return rolling_mean(close, n)


@feature("moving_average", "price")
def _ema(n: int) -> Expression:
    """Exponential moving average of the close with a span of n bars, over a finite window."""
    return ema(close, n)


@feature("moving_average", "fraction")
def close_over_sma(n: int) -> Expression:
    """Close over its mean of the last n bars, minus 1."""
    return close / rolling_mean(close, n) - 1


@feature("moving_average", "fraction")
def close_over_ema(n: int) -> Expression:
    """Close over its exponential average with a span of n bars, minus 1."""
    return close / ema(close, n) - 1


@feature("moving_average", "fraction")
def macd_over_close(n: int, m: int) -> Expression:
    """Exponential average of n bars minus that of m bars, over the close (Appel's MACD line)."""
    return (ema(close, n) - ema(close, m)) / close


@feature("moving_average", "fraction per bar", shortest=2)
def slope_over_close(n: int) -> Expression:
    """Slope of the least-squares line through the last n bars' closes, over the close (TA-Lib LINEARREG_SLOPE)."""
    return rolling_slope(close, n) / close


# Momentum.


@feature("momentum", "price")
def momentum(n: int) -> Expression:
    """Close minus the close n bars earlier (TA-Lib MOM)."""
    return close - lag(close, n)


@feature("momentum", "fraction")
def return_(n: int) -> Expression:
    """Close over the close n bars earlier, minus 1 (TA-Lib ROCP)."""
    return _returns(n)


@feature("momentum", "log fraction")
def log_return(n: int) -> Expression:
    """Logarithm of the close over the close n bars earlier."""
    return log(close / lag(close, n))


@feature("momentum", "fraction")
def lagged_return(n: int) -> Expression:
    """One-bar return as it was n bars earlier."""
    return lag(_returns(), n)


@feature("momentum", "fraction")
def efficiency_ratio(n: int) -> Expression:
    """Net move over the path walked in n bars (Kaufman 1995); 0 on a flat window."""
    return ratio(abs(close - lag(close, n)), rolling_sum(abs(_change()), n), flat=0.0)


@feature("momentum", "fraction")
def drawdown(n: int) -> Expression:
    """Close over the highest high of the last n bars, minus 1."""
    return close / rolling_max(high, n) - 1


@feature("momentum", "fraction", shortest=2)
def age_of_high(n: int) -> Expression:
    """Bars since the highest high of the last n bars, over the most there can be; 0 when it is this bar (Aroon)."""
    return age_of_max(high, n) / (n - 1)


@feature("momentum", "fraction")
def close_rank(n: int) -> Expression:
    """Share of the last n bars' closes that are not above this one; equal ones count half (percentile rank)."""
    return rolling_rank(close, n)


@feature("momentum", "correlation", shortest=3)
def autocorrelation(n: int) -> Expression:
    """Correlation of the last n bars' returns with the returns one bar earlier; 0 on a flat window."""
    return rolling_corr(_returns(), lag(_returns(), 1), n)


# Volatility and shape of the returns.


@feature("volatility", "fraction", shortest=2)
def volatility(n: int) -> Expression:
    """Sample standard deviation of the last n bars' returns; 0 on a flat window."""
    return rolling_std(_returns(), n)


@feature("volatility", "ratio", shortest=2)
def volatility_ratio(n: int, m: int) -> Expression:
    """Standard deviation of the last n bars' returns over that of the last m bars; 1 where the longer is flat."""
    return ratio(rolling_std(_returns(), n), rolling_std(_returns(), m), flat=1.0)


@feature("volatility", "log fraction")
def realised_volatility(n: int) -> Expression:
    """Root of the mean squared log return of the last n bars (Andersen and Bollerslev 1998)."""
    one_bar = log(close / lag(close, 1))
    return sqrt(rolling_mean(one_bar * one_bar, n))


@feature("volatility", "log fraction")
def parkinson_volatility(n: int) -> Expression:
    """Volatility from the high-low ranges of the last n bars (Parkinson 1980)."""
    height = log(high / low)
    return sqrt(rolling_mean(height * height, n) / (4 * LN_2))


@feature("volatility", "log fraction")
def garman_klass_volatility(n: int) -> Expression:
    """Volatility from open, high, low and close of the last n bars (Garman and Klass 1980)."""
    height, body = log(high / low), log(close / open_)
    return sqrt(rolling_mean(0.5 * height * height - (2 * LN_2 - 1) * body * body, n))


@feature("volatility", "fraction")
def atr_over_close(n: int) -> Expression:
    """Mean true range of the last n bars over the close (Wilder 1978, simple mean)."""
    return rolling_mean(_true_range(), n) / close


@feature("volatility", "skewness", shortest=3)
def skew(n: int) -> Expression:
    """Sample skewness of the last n bars' returns (as pandas has it); 0 on a flat window."""
    return rolling_skew(_returns(), n)


@feature("volatility", "excess kurtosis", shortest=4)
def kurtosis(n: int) -> Expression:
    """Sample excess kurtosis of the last n bars' returns (as pandas has it); 0 on a flat window."""
    return rolling_kurt(_returns(), n)


# Oscillators.


@feature("technical", "0 to 100")
def rsi(n: int) -> Expression:
    """Relative strength index of n bars with plain sums (Cutler): 100 without losses, 50 on a flat window."""
    gain, loss = rolling_sum(larger(_change(), 0.0), n), rolling_sum(larger(0.0 - _change(), 0.0), n)
    return 100.0 * ratio(gain, gain + loss, flat=0.5)


@feature("technical", "fraction")
def stochastic(n: int) -> Expression:
    """Where the close lies in the high-low range of the last n bars (Lane's %K over 100); 0.5 on a flat window."""
    lowest = rolling_min(low, n)
    return ratio(close - lowest, rolling_max(high, n) - lowest, flat=0.5)


@feature("technical", "fraction")
def stochastic_mean(n: int, m: int) -> Expression:
    """Mean of the last m bars' stochastic of n bars (Lane's %D over 100)."""
    return rolling_mean(stochastic(n), m)


@feature("technical", "-100 to 0")
def williams_r(n: int) -> Expression:
    """Where the close lies below the highest high of the last n bars (Williams %R); -50 on a flat window."""
    highest = rolling_max(high, n)
    return 100.0 * ratio(close - highest, highest - rolling_min(low, n), flat=-0.5)


@feature("technical", "mean deviations over 0.015")
def cci(n: int) -> Expression:
    """Typical price against its mean of the last n bars, in mean deviations (Lambert's CCI); 0 on a flat window."""
    typical = (high + low + close) / 3
    return ratio(typical - rolling_mean(typical, n), 0.015 * rolling_mean_deviation(typical, n), flat=0.0)


@feature("technical", "fraction", shortest=2)
def bollinger_b(n: int) -> Expression:
    """Where the close lies between the Bollinger bands of n bars, two deviations wide (%b); 0.5 on a flat window."""
    return 0.5 + ratio(close - rolling_mean(close, n), 4.0 * rolling_std(close, n, ddof=0), flat=0.0)


@feature("technical", "fraction", shortest=2)
def bollinger_bandwidth(n: int) -> Expression:
    """Distance of the Bollinger bands of n bars, two deviations wide, over their middle."""
    return 4.0 * rolling_std(close, n, ddof=0) / rolling_mean(close, n)


# Volume.


@feature("volume", "volume")
def volume_sma(n: int) -> Expression:
    """Mean volume of the last n bars."""
    return rolling_mean(volume, n)


@feature("volume", "fraction")
def volume_change() -> Expression:
    """Volume over the previous bar's, minus 1; from no volume it is 1 to some, 0 to none."""
    change = volume - lag(volume, 1)
    return ratio(change, lag(volume, 1), flat=sign(change))


@feature("volume", "ratio")
def volume_ratio(n: int) -> Expression:
    """Volume over its mean of the last n bars; 1 on a window without volume."""
    return ratio(volume, rolling_mean(volume, n), flat=1.0)


@feature("volume", "standard deviations", shortest=2)
def volume_zscore(n: int) -> Expression:
    """Volume minus its mean of the last n bars, in standard deviations; 0 on a flat window."""
    return ratio(volume - rolling_mean(volume, n), rolling_std(volume, n), flat=0.0)


@feature("volume", "mean volumes per bar", shortest=2)
def obv_slope(n: int) -> Expression:
    """Slope of the last n bars' on-balance volume (Granville 1963) over their mean volume; 0 without volume."""
    return ratio(rolling_slope_of_total(_signed_volume(), n), rolling_mean(volume, n), flat=0.0)


@feature("volume", "fraction")
def signed_volume_share(n: int) -> Expression:
    """Volume of rising minus that of falling bars, over all volume of the last n bars; 0 without volume."""
    return ratio(rolling_sum(_signed_volume(), n), rolling_sum(volume, n), flat=0.0)


@feature("volume", "correlation", shortest=3)
def return_volume_correlation(n: int) -> Expression:
    """Correlation of the last n bars' returns with their volumes; 0 where one of them is flat."""
    return rolling_corr(_returns(), volume, n)


# The bar's own time: its open, in UTC.


@feature("calendar", "hours")
def hour_of_day() -> Expression:
    """Hour of the bar's open in UTC, 0 to 24, with minutes as a fraction."""
    return calendar(Calendar.HOUR_OF_DAY)


@feature("calendar", "days")
def day_of_week() -> Expression:
    """Day of the week of the bar's open in UTC: 0 on Monday, 6 on Sunday."""
    return calendar(Calendar.DAY_OF_WEEK)


@feature("calendar", "days")
def day_of_month() -> Expression:
    """Day of the month of the bar's open in UTC, from 1."""
    return calendar(Calendar.DAY_OF_MONTH)


@feature("calendar", "months")
def month_of_year() -> Expression:
    """Month of the bar's open in UTC, from 1."""
    return calendar(Calendar.MONTH_OF_YEAR)
