"""Every reason to refuse a bar, once; and that nothing is refused without one."""

import math
from datetime import timedelta
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt5_crs_pipeline.core.bars import (
    BAR_COLUMNS,
    REVISION_KEY,
    TIMEFRAMES,
    adjusted,
    check_symbol,
    check_timeframe,
    close_time,
    closed_revisions,
    instant,
    is_valid_symbol,
    latest_revisions,
    month_of,
    reject_reasons,
    spread_share,
)
from mt5_crs_pipeline.core.errors import ConfigurationError
from tests.core.samples import NOW, bars_of, real_bars

NAN, INF = math.nan, math.inf


def reasons_of(*changes: dict[str, Any]) -> list[str | None]:
    return reject_reasons(bars_of(*changes), "D1", NOW).tolist()


def utc(*texts: str | None) -> pd.Series:
    return pd.Series([pd.NaT if text is None else pd.Timestamp(text, tz="UTC") for text in texts]).astype(
        "datetime64[us, UTC]"
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"symbol": "a b"}, "invalid_symbol"),
        ({"symbol": None}, "invalid_symbol"),
        ({"timeframe": "H1"}, "wrong_timeframe"),
        ({"timeframe": None}, "wrong_timeframe"),
        ({"time": None}, "missing_time"),
        *(({name: NAN}, "price_not_finite") for name in ("open", "high", "low", "close")),
        ({"close": INF, "high": INF}, "price_not_finite"),
        ({"low": -INF}, "price_not_finite"),
        ({"open": 0.0, "high": 0.0, "low": 0.0, "close": 0.0}, "price_not_positive"),
        ({"low": 0.0}, "price_not_positive"),
        ({"low": -0.1}, "price_not_positive"),
        ({"high": 0.9}, "high_below_low"),
        ({"open": 1.31}, "open_outside_range"),
        ({"open": 0.99}, "open_outside_range"),
        ({"close": 1.31}, "close_outside_range"),
        ({"close": 0.99}, "close_outside_range"),
        ({"open": 1.3, "close": 1.0}, None),
        ({"open": 1.2, "high": 1.2, "low": 1.2, "close": 1.2}, None),
        ({"volume": NAN}, "volume_not_finite"),
        ({"volume": INF}, "volume_not_finite"),
        ({"volume": -1.0}, "volume_negative"),
        ({"volume": 0.0}, None),
        ({"volume": 2.0**53}, "volume_not_exact"),
        ({"volume": 2.0**53 - 1}, None),
        ({"spread": -1.0}, "optional_value_invalid"),
        ({"real_volume": INF}, "optional_value_invalid"),
        ({"adjusted_close": -1.0}, "optional_value_invalid"),
        ({"adjusted_close": INF}, "optional_value_invalid"),
        ({"adjusted_close": 0.0}, "adjusted_close_not_positive"),
        ({"adjusted_close": 0.6, "real_volume": 0.0, "spread": 0.0}, None),
        ({"time": pd.Timestamp("2024-05-31", tz="UTC")}, None),
        ({"time": pd.Timestamp("2024-05-31T00:00:00.000001", tz="UTC")}, "not_closed_yet"),
        ({"time": pd.Timestamp(NOW)}, "not_closed_yet"),
        ({"time": pd.Timestamp(NOW) + pd.Timedelta(microseconds=1)}, "from_the_future"),
        ({"time": pd.Timestamp("9999-12-31", tz="UTC").as_unit("us")}, "from_the_future"),
    ],
)
def test_one_bar_gets_the_reason_it_deserves(change: dict[str, Any], reason: str | None) -> None:
    assert reasons_of(change) == [reason]


def test_a_bar_that_breaks_many_rules_is_named_by_the_first() -> None:
    everything = {"symbol": "", "timeframe": "H1", "time": None, "open": NAN, "high": -1.0, "volume": -1.0}
    order = ["invalid_symbol", "wrong_timeframe", "missing_time", "price_not_finite", "price_not_positive"]
    for change, reason in zip(
        [
            everything,
            everything | {"symbol": "X"},
            everything | {"symbol": "X", "timeframe": "D1"},
            everything | {"symbol": "X", "timeframe": "D1", "time": pd.Timestamp("2024-05-01", tz="UTC")},
            {"high": -1.0, "volume": -1.0},
        ],
        order,
        strict=True,
    ):
        assert reasons_of(change) == [reason]


def test_of_identical_rows_the_first_is_kept() -> None:
    same = {"time": pd.Timestamp("2024-05-01", tz="UTC"), "spread": NAN}
    assert reasons_of(same, {}, same, same) == [None, None, "duplicate", "duplicate"]


def test_of_contradicting_rows_none_is_kept() -> None:
    time = pd.Timestamp("2024-05-01", tz="UTC")
    assert reasons_of({"time": time}, {}, {"time": time, "spread": 2.0}, {"time": time}) == [
        "contradicting_duplicate",
        None,
        "contradicting_duplicate",
        "duplicate",
    ]


def test_the_same_time_of_another_symbol_is_no_duplicate() -> None:
    time = pd.Timestamp("2024-05-01", tz="UTC")
    assert reasons_of({"time": time}, {"time": time, "symbol": "GBPUSD"}) == [None, None]


def test_reasons_keep_a_frame_index_that_repeats_labels() -> None:
    time = pd.Timestamp("2024-05-01", tz="UTC")
    bars = bars_of({"time": time}, {"time": time}, {"high": 0.5}).set_axis([7, 7, 7])
    reasons = reject_reasons(bars, "D1", NOW)
    assert reasons.index.tolist() == [7, 7, 7]
    assert reasons.tolist() == [None, "duplicate", "high_below_low"]


def test_real_bars_have_nothing_to_refuse_but_what_a_loop_refuses_too() -> None:
    bars = real_bars()
    reasons = reject_reasons(bars, "D1", NOW)
    outside = [
        not (row.low <= row.open <= row.high and row.low <= row.close <= row.high)
        for row in bars.itertuples(index=False)
    ]
    assert reasons.notna().tolist() == outside


def test_no_bars_get_no_reasons() -> None:
    assert reject_reasons(bars_of({}).iloc[:0], "D1", NOW).tolist() == []


def test_the_frame_is_left_as_it_was() -> None:
    bars = bars_of({}, {"close": NAN})
    before = bars.copy(deep=True)
    reject_reasons(bars, "D1", NOW)
    pd.testing.assert_frame_equal(bars, before)


price = st.sampled_from([1.0, 1.1, 1.2, 1.3, 0.0, -1.0, NAN, INF, 5e-324, 1e308])
volume = st.sampled_from([0.0, 1.0, -1.0, NAN, INF, 2.0**53, 2.0**53 - 1, 2.0**60])
optional = st.sampled_from([NAN, 0.0, 1.0, -1.0, INF])
row = st.fixed_dictionaries(
    {
        "symbol": st.sampled_from(["EURUSD", "US30.cash", "", "x'; drop", None]),
        "timeframe": st.sampled_from(["D1", "D1", "D1", "H1"]),
        "time": st.sampled_from([NOW + timedelta(hours=hours) for hours in (-48, -25, -24, -23, 0, 1)] + [None]),
        **dict.fromkeys(("open", "high", "low", "close"), price),
        "volume": volume,
        **dict.fromkeys(("adjusted_close", "real_volume", "spread"), optional),
    }
)
good = st.just({"open": 1.1, "high": 1.3, "low": 1.0, "close": 1.2, "volume": 1.0, "adjusted_close": 1.0})


def is_sound(bar: dict[str, Any]) -> bool:
    """All rules about one bar alone, in plain Python."""
    if bar["symbol"] not in ("EURUSD", "US30.cash") or bar["timeframe"] != "D1" or bar["time"] is None:
        return False
    prices = [bar[name] for name in ("open", "high", "low", "close")]
    if not all(math.isfinite(value) and value > 0 for value in prices):
        return False
    if max(prices) != bar["high"] or min(prices) != bar["low"]:
        return False
    if not (math.isfinite(bar["volume"]) and 0 <= bar["volume"] <= 2**53 - 1):
        return False
    for name in ("adjusted_close", "real_volume", "spread"):
        if not math.isnan(bar[name]) and not (math.isfinite(bar[name]) and bar[name] >= 0):
            return False
    if bar["adjusted_close"] == 0:
        return False
    return bool(bar["time"] + timedelta(days=1) <= NOW)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(row, st.one_of(good, st.just({}))).map(lambda pair: pair[0] | pair[1]), max_size=12))
def test_every_row_gets_one_verdict_and_what_is_valid_keeps_every_rule(rows: list[dict[str, Any]]) -> None:
    bars = pd.DataFrame(rows, columns=list(BAR_COLUMNS))
    bars["time"] = pd.Series([row["time"] for row in rows], dtype="datetime64[us, UTC]")
    reasons = reject_reasons(bars, "D1", NOW)
    assert len(reasons) == len(rows)
    assert all(reason is None or isinstance(reason, str) for reason in reasons)

    def content(bar: dict[str, Any]) -> tuple[str, ...]:
        return tuple(str(bar[name]) for name in BAR_COLUMNS)

    seen: list[tuple[str, ...]] = []
    for bar, reason in zip(rows, reasons, strict=True):
        same_key = [other for other in rows if content(other)[:3] == content(bar)[:3]]
        contradicted = any(content(other) != content(bar) for other in same_key)
        assert (reason is None) == (is_sound(bar) and not contradicted and content(bar) not in seen)
        seen.append(content(bar))


@pytest.mark.parametrize("symbol", ["EURUSD", "US30.cash", "#AAPL", "BRK-B", "a", "GBP_USD", "X" * 32, "A.."])
def test_symbols_brokers_use_are_allowed(symbol: str) -> None:
    assert is_valid_symbol(symbol)
    assert check_symbol(symbol) == symbol


@pytest.mark.parametrize(
    "symbol",
    [
        *("", " ", "EUR USD", "EURUSD\n", "'", '"', "../x", "..", ".hidden", "-rf", "_x", "a/b", "a\\b", "a\0b"),
        *("x'; drop table market_data; --", "ÄÖÜ", "ЕURUSD", "\u202eDSURUE", "EUR\u200bUSD", "１２", "€", "X" * 33),
        *(None, 5, 1.5, b"EURUSD", ["EURUSD"]),
    ],
)
def test_symbols_that_are_none_are_refused_by_value(symbol: Any) -> None:
    assert not is_valid_symbol(symbol)
    with pytest.raises(ConfigurationError, match=r"symbol .* is not allowed") as caught:
        check_symbol(symbol)
    assert repr(symbol) in str(caught.value)


@pytest.mark.parametrize("timeframe", ["", "D", "d1", "M7", "H24", "MN", "D1 "])
def test_an_unknown_timeframe_is_refused_by_value_with_the_choices(timeframe: str) -> None:
    for refused in (lambda: check_timeframe(timeframe), lambda: close_time(utc("2024-01-01"), timeframe)):
        with pytest.raises(ConfigurationError, match=r"M1, M2, .*D1, W1, MN1") as caught:
            refused()
        assert repr(timeframe) in str(caught.value)


def test_the_timeframes_are_those_of_metatrader() -> None:
    expected = "M1 M2 M3 M4 M5 M6 M10 M12 M15 M20 M30 H1 H2 H3 H4 H6 H8 H12 D1 W1 MN1"
    assert sorted(TIMEFRAMES) == sorted(expected.split())


@pytest.mark.parametrize(
    ("timeframe", "length"),
    [
        *((f"M{n}", timedelta(minutes=n)) for n in (1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30)),
        *((f"H{n}", timedelta(hours=n)) for n in (1, 2, 3, 4, 6, 8, 12)),
        *(("D1", timedelta(days=1)), ("W1", timedelta(weeks=1))),
    ],
)
def test_a_bar_closes_its_length_after_it_opens(timeframe: str, length: timedelta) -> None:
    opens = utc("2024-02-28T23:59", None, "2023-12-31", "2024-03-31T01:00")
    closes = close_time(opens, timeframe)
    assert closes.dtype == "datetime64[us, UTC]"
    assert closes.isna().tolist() == [False, True, False, False]
    assert [t.to_pydatetime() for t in closes.dropna()] == [t.to_pydatetime() + length for t in opens.dropna()]


@pytest.mark.parametrize(
    ("opened", "closed"),
    [
        ("2024-01-01", "2024-02-01"),
        ("2024-02-01", "2024-03-01"),
        ("2023-02-01", "2023-03-01"),
        ("2024-12-01", "2025-01-01"),
        # The first of the month by a broker's clock two or three hours ahead of UTC.
        ("2024-01-31T22:00", "2024-02-29T22:00"),
        ("2023-01-31T22:00", "2023-02-28T22:00"),
        ("2024-02-29T22:00", "2024-03-31T22:00"),
        ("2023-02-28T22:00", "2023-03-31T22:00"),
        ("2024-04-30T21:00", "2024-05-31T21:00"),
        ("2024-12-31T22:00", "2025-01-31T22:00"),
        # And by one five hours behind.
        ("2024-02-01T05:00", "2024-03-01T05:00"),
    ],
)
def test_a_month_bar_closes_when_the_next_month_begins(opened: str, closed: str) -> None:
    assert close_time(utc(opened, None), "MN1").tolist() == [pd.Timestamp(closed, tz="UTC"), pd.NaT]


def test_prices_are_scaled_by_the_adjusted_close_where_there_is_one() -> None:
    bars = bars_of({"adjusted_close": 0.6}, {}, {"adjusted_close": 1.2})
    result = adjusted(bars)
    assert result["close"].tolist() == pytest.approx([0.6, 1.2, 1.2], rel=1e-15)
    assert result["high"].tolist() == pytest.approx([0.65, 1.3, 1.3], rel=1e-15)
    assert result["open"].tolist() == pytest.approx([0.55, 1.1, 1.1], rel=1e-15)
    assert result["low"].tolist() == pytest.approx([0.5, 1.0, 1.0], rel=1e-15)
    assert result["volume"].tolist() == [100.0] * 3
    assert bars["close"].tolist() == [1.2] * 3


def test_without_an_adjusted_close_prices_stay() -> None:
    bars = bars_of({}).drop(columns="adjusted_close")
    pd.testing.assert_frame_equal(adjusted(bars), bars)


def test_the_month_is_that_of_utc() -> None:
    times = utc("2024-05-01", "2024-05-31T23:59:59.999999", "2024-06-01", "1999-12-31")
    assert month_of(times).tolist() == ["2024-05", "2024-05", "2024-06", "1999-12"]
    assert month_of(times.iloc[:0]).tolist() == []
    assert month_of(times.where(times.dt.day > 1)).isna().tolist() == [True, False, True, False]


# --- Revisions -------------------------------------------------------------------------------------------------------


def revisions(*rows: tuple[str, str, float]) -> pd.DataFrame:
    """Versions of EURUSD's bar of 1 May 2024, which closes at midnight: (recorded_at, known_at, close)."""
    frame = bars_of(*({"time": pd.Timestamp("2024-05-01", tz="UTC"), "close": close} for _, _, close in rows))
    return frame.assign(known_at=utc(*(row[1] for row in rows)), recorded_at=utc(*(row[0] for row in rows)))


def test_the_latest_revision_is_the_last_known_of_those_recorded_by_then() -> None:
    bars = revisions(
        ("2024-05-05", "2024-05-02", 1.1), ("2024-05-06", "2024-05-06", 1.2), ("2024-05-07", "2024-05-03", 1.3)
    )
    other = bars.assign(symbol="AUDUSD", recorded_at=utc("2024-05-09", "2024-05-08", "2024-05-10"))
    both = pd.concat([bars, other], ignore_index=True).sample(frac=1, random_state=3)
    assert latest_revisions(both)[["symbol", "close"]].to_numpy().tolist() == [["AUDUSD", 1.2], ["EURUSD", 1.2]]

    def known(day: str) -> list[list[object]]:
        as_of = pd.Timestamp(day, tz="America/New_York").to_pydatetime()
        return latest_revisions(both, as_of)[["symbol", "close"]].to_numpy().tolist()

    assert known("2024-05-04T19:59:59") == []
    assert known("2024-05-04T20:00") == [["EURUSD", 1.1]]
    assert known("2024-05-05T20:00") == known("2024-05-06T20:00") == [["EURUSD", 1.2]]
    assert known("2024-05-08T20:00") == [["AUDUSD", 1.2], ["EURUSD", 1.2]]


def test_what_was_recorded_while_a_bar_formed_is_its_first_version_recorded_and_known_at_its_close() -> None:
    bars = revisions(
        ("2024-05-03", "2024-05-03", 1.25),
        ("2024-05-01T20:00", "2024-05-02T00:00:00.000001", 1.2),
        ("2024-05-01T12:00", "2024-05-02", 1.1),
    )
    kept = closed_revisions(bars, "D1")
    assert kept["close"].tolist() == [1.2, 1.25]
    assert kept["known_at"].tolist() == kept["recorded_at"].tolist() == utc("2024-05-02", "2024-05-03").tolist()
    assert (kept["event_timestamp"] == utc("2024-05-02")[0]).all()
    assert closed_revisions(bars.iloc[:0], "D1").empty


def test_a_bar_that_was_recorded_long_after_its_close_counts_as_known_at_its_close() -> None:
    kept = closed_revisions(revisions(("2024-05-05", "2024-05-02", 1.2)), "D1")
    assert kept["known_at"].tolist() == utc("2024-05-02").tolist()
    assert kept["recorded_at"].tolist() == utc("2024-05-05").tolist()


def test_revisions_of_a_bar_are_no_repetition_where_known_at_is_part_of_the_key() -> None:
    bars = revisions(
        ("2024-05-02", "2024-05-02", 1.1), ("2024-05-03", "2024-05-03", 1.2), ("2024-05-03", "2024-05-03", 1.15)
    )
    assert reject_reasons(bars, "D1", NOW).tolist() == ["contradicting_duplicate"] * 3
    assert reject_reasons(bars, "D1", NOW, REVISION_KEY).tolist() == [None, *["contradicting_duplicate"] * 2]


@pytest.mark.parametrize(
    ("text", "utc_text"),
    [
        ("2026-01-31T18:00:00+00:00", "2026-01-31T18:00:00+00:00"),
        ("2026-01-31T18:00:00.000001Z", "2026-01-31T18:00:00.000001+00:00"),
        ("2026-02-01 02:30+08:30", "2026-01-31T18:00:00+00:00"),
    ],
)
def test_an_instant_is_read_in_utc(text: str, utc_text: str) -> None:
    assert instant(text).isoformat() == utc_text


@pytest.mark.parametrize("text", ["", "2026-01-31", "2026-01-31T18:00:00", "now", "0001-01-01T00:00+01:00", "٢٠٢٦"])
def test_what_is_no_instant_is_refused_by_value(text: str) -> None:
    with pytest.raises(ConfigurationError, match="is no instant: write a time with its offset") as caught:
        instant(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("decimals", range(9))
@pytest.mark.parametrize("price", [1.0, 85.0, 20_000.0])
def test_a_point_is_the_last_decimal_that_the_prices_of_a_symbol_need(decimals: int, price: float) -> None:
    point = float(f"1e-{decimals}")
    # A price has the nearest double to its decimals, as a reader gives it; the first bar alone would not show them.
    longest = float(f"{price + 7 * point:.{decimals}f}")
    bars = bars_of(
        {**dict.fromkeys(("open", "high", "low", "close"), price), "spread": 12.0},
        {**dict.fromkeys(("open", "low", "close"), price), "high": longest, "spread": NAN},
        {**dict.fromkeys(("open", "high", "low", "close"), price), "spread": 0.0},
    )
    others = bars_of({"symbol": "OTHER", "close": 1.25, "spread": 4.0})
    shares = spread_share(pd.concat([bars, others], ignore_index=True))
    assert shares.tolist() == pytest.approx([12 * point / price, NAN, 0.0, 4 * 0.1**2 / 1.25], nan_ok=True, rel=1e-12)


def test_prices_that_were_computed_tell_no_point() -> None:
    bars = bars_of({"close": 1.2 / 1.1, "spread": 3.0}, {"spread": 3.0}, {"symbol": "B", "close": NAN, "spread": 3.0})
    assert spread_share(bars).isna().all()
    assert spread_share(bars.iloc[:0]).empty


def test_an_adjustment_changes_no_spread() -> None:
    bars = bars_of({"adjusted_close": 0.4, "spread": 3.0}, {"close": 1.12345, "adjusted_close": NAN, "spread": 3.0})
    kept = adjusted(bars.assign(spread_share=spread_share(bars)))
    assert kept["spread_share"].tolist() == pytest.approx([3e-5 / 1.2, 3e-5 / 1.12345], rel=1e-12)
    assert kept["close"].tolist() == [1.2 * (0.4 / 1.2), 1.12345]
