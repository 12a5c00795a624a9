import gzip
import os
import subprocess
import sys
import time
import types
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mt5_crs_pipeline.adapters.mt5 import BarFile, connect_terminal, read_bars, read_terminal
from mt5_crs_pipeline.adapters.mt5_time import SERVER_ZONE, zone_to_utc
from mt5_crs_pipeline.core.bars import BAR_COLUMNS, VALUE_COLUMNS, spread_share
from mt5_crs_pipeline.core.errors import ConfigurationError, InputError, PermanentError, TransientError

SAMPLES = Path(__file__).parents[2].parent / "shared" / "data"
EXPORT_HEADER = "<DATE>\t<TIME>\t<OPEN>\t<HIGH>\t<LOW>\t<CLOSE>\t<TICKVOL>\t<VOL>\t<SPREAD>"
EXPORT = (
    EXPORT_HEADER + "\r\n2025.06.23\t00:00:00\t1.14565\t1.14745\t1.14565\t1.14721\t644\t3\t7\r\n"
    "2025.06.23\t01:00:00\t1.14721\t1.14943\t1.14721\t1.14885\t3043\t0\t7\r\n"
)
RATES_HEADER = "time,open,high,low,close,tick_volume,spread,real_volume"
PLAIN_HEADER = "Date,Open,High,Low,Close,Volume"
# 2025-06-23 00:00 on the broker's clock, counted as if UTC; the broker is three hours ahead in June.
SERVER_MIDNIGHT = 1_750_636_800
MIDNIGHT_UTC = "2025-06-22T21:00:00Z"


def sample(name: str) -> Path:
    path = SAMPLES / name
    if not path.is_file():
        pytest.skip(f"SAMPLE DATA MISSING: {path} is not there, so real bars were not read")
    return path


def write(folder: Path, text: str, name: str = "EURUSD_H1.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def plain(folder: Path, *rows: str, header: str = PLAIN_HEADER, name: str = "EURUSD_H1.csv") -> Path:
    return write(folder, "\n".join([header, *rows]) + "\n", name)


def stamps(found: BarFile) -> list[str]:
    return [stamp.strftime("%Y-%m-%dT%H:%M:%SZ") for stamp in found.bars["time"]]


def refusal(kind: type[PermanentError], path: Path, **options: str) -> str:
    with pytest.raises(kind) as caught:
        read_bars(path, **options)
    message = str(caught.value)
    assert type(caught.value) is kind
    assert "\n" not in message
    return message


def rates_array(*seconds: int) -> np.ndarray:
    fields = [("time", "<i8"), ("open", "<f8"), ("high", "<f8"), ("low", "<f8"), ("close", "<f8")]
    fields += [("tick_volume", "<u8"), ("spread", "<i4"), ("real_volume", "<u8")]
    return np.array([(at, 1.1, 1.3, 1.0, 1.2, 50, 7, 9) for at in seconds], dtype=fields)


# Real bars


@pytest.mark.parametrize(
    ("name", "count", "symbol", "timeframe", "timezone", "first", "last"),
    [
        ("EURUSD_H1.csv", 3608, "EURUSD", "H1", "mt5-server", "2025-06-22T21:00:00Z", "2026-01-21T08:00:00Z"),
        ("GBPUSD_H1.csv", 3608, "GBPUSD", "H1", "mt5-server", "2025-06-22T21:00:00Z", "2026-01-21T08:00:00Z"),
        ("SILVER_H1.csv", 3444, "SILVER", "H1", "mt5-server", "2025-06-22T22:00:00Z", "2026-01-21T08:00:00Z"),
        ("EURUSD_D1_ohlcv.csv", 7927, "EURUSD", "D1", "UTC", "2002-05-06T00:00:00Z", "2025-12-29T00:00:00Z"),
    ],
)
def test_every_row_of_the_real_files_is_a_bar_at_its_utc_time(
    name: str, count: int, symbol: str, timeframe: str, timezone: str, first: str, last: str
) -> None:
    found = read_bars(sample(name))
    assert (len(found.bars), len(found.rejected)) == (count, 0)
    assert (found.symbol, found.timeframe, found.timezone) == (symbol, timeframe, timezone)
    assert (stamps(found)[0], stamps(found)[-1]) == (first, last)


def test_the_daily_file_keeps_its_adjusted_close_and_the_export_its_spread() -> None:
    daily = read_bars(sample("EURUSD_D1_ohlcv.csv")).bars.iloc[-1]
    assert daily[["open", "high", "low", "close", "adjusted_close", "volume"]].tolist() == [
        1.177, 1.1775, 1.1763, 1.1772, 1.1772, 2741474.0,
    ]  # fmt: skip
    hourly = read_bars(sample("EURUSD_H1.csv")).bars.iloc[1]
    assert hourly[["open", "high", "low", "close", "volume", "real_volume", "spread"]].tolist() == [
        1.14721, 1.14943, 1.14721, 1.14885, 3043.0, 0.0, 7.0,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "row", "share"),
    [("EURUSD_H1.csv", 0, 7e-5 / 1.14721), ("GBPUSD_H1.csv", 1, 8e-5 / 1.34274), ("SILVER_H1.csv", 1, 0.020 / 36.070)],
)
def test_the_spread_of_a_real_export_is_a_share_of_its_price(name: str, row: int, share: float) -> None:
    shares = spread_share(read_bars(sample(name)).bars)
    assert shares.iloc[row] == pytest.approx(share, rel=1e-12)
    # Of a liquid market: something, and far less than a percent.
    assert shares.between(0, 0.01).all() and 1e-6 < shares.median() < 1e-3


def test_the_real_hourly_file_is_read_in_under_a_tenth_of_a_second() -> None:
    path = sample("EURUSD_H1.csv")
    took = []
    for _ in range(5):
        begun = time.perf_counter()
        read_bars(path)
        took.append(time.perf_counter() - begun)
    assert min(took) < 0.1


def test_a_million_rows_are_read_in_a_few_seconds(tmp_path: Path) -> None:
    minutes = np.datetime_as_string(np.arange(1_000_000).astype("datetime64[m]") + 23_668_000, unit="m")
    plain(tmp_path, *(f"{minute},1.1,1.3,1.0,1.2,5" for minute in minutes), name="EURUSD_M1.csv")
    begun = time.perf_counter()
    found = read_bars(tmp_path / "EURUSD_M1.csv", timezone=SERVER_ZONE)
    assert time.perf_counter() - begun < 15
    assert len(found.bars) + len(found.rejected) == 1_000_000


# Layouts


def test_bars_have_exactly_the_bar_columns_with_fixed_types(tmp_path: Path) -> None:
    found = read_bars(write(tmp_path, EXPORT))
    assert tuple(found.bars.columns) == BAR_COLUMNS
    assert str(found.bars["time"].dtype) == "datetime64[us, UTC]"
    assert {str(found.bars[name].dtype) for name in VALUE_COLUMNS} == {"float64"}
    assert tuple(found.rejected.columns) == (*BAR_COLUMNS, "reason", "raw")
    assert str(found.rejected["time"].dtype) == "datetime64[us, UTC]"


@pytest.mark.parametrize("newline", ["\r\n", "\n", "\r"])
@pytest.mark.parametrize(
    ("codec", "mark"),
    [
        ("utf-8", b""),
        ("utf-8", b"\xef\xbb\xbf"),
        ("utf-16-le", b""),
        ("utf-16-le", b"\xff\xfe"),
        ("utf-16-be", b""),
        ("utf-16-be", b"\xfe\xff"),
    ],
)
def test_an_export_reads_the_same_in_every_encoding(tmp_path: Path, codec: str, mark: bytes, newline: str) -> None:
    path = tmp_path / "EURUSD_H1_202506230000_202601211000.csv"
    path.write_bytes(mark + EXPORT.replace("\r\n", newline).encode(codec))
    found = read_bars(path)
    assert (found.symbol, found.timeframe, found.layout) == ("EURUSD", "H1", "mt5_export")
    assert stamps(found) == [MIDNIGHT_UTC, "2025-06-22T22:00:00Z"]
    values = found.bars[["open", "high", "low", "close", "volume", "real_volume", "spread"]]
    assert values.iloc[0].tolist() == [1.14565, 1.14745, 1.14565, 1.14721, 644.0, 3.0, 7.0]
    assert found.bars["adjusted_close"].isna().all()


def test_a_daily_export_has_no_time_column_and_begins_at_server_midnight(tmp_path: Path) -> None:
    header = EXPORT_HEADER.replace("<TIME>\t", "")
    rows = "2025.01.15\t1.1\t1.3\t1.0\t1.2\t5\t0\t7\n2025.07.15\t1.1\t1.3\t1.0\t1.2\t5\t0\t7\n"
    found = read_bars(write(tmp_path, f"{header}\n{rows}", "EURUSD_Daily_202501150000_202507150000.csv"))
    assert found.timeframe == "D1"
    assert stamps(found) == ["2025-01-14T22:00:00Z", "2025-07-14T21:00:00Z"]


def test_an_export_is_read_in_the_zone_that_is_asked_for(tmp_path: Path) -> None:
    found = read_bars(write(tmp_path, EXPORT), timezone="Asia/Tokyo")
    assert found.timezone == "Asia/Tokyo"
    assert stamps(found)[0] == "2025-06-22T15:00:00Z"


@pytest.mark.parametrize("moment", [str(SERVER_MIDNIGHT), f"{SERVER_MIDNIGHT}.0", "2025-06-23 00:00:00", "2025-06-23"])
def test_saved_rates_count_server_time(tmp_path: Path, moment: str) -> None:
    found = read_bars(write(tmp_path, f",{RATES_HEADER}\n0,{moment},1.1,1.3,1.0,1.2,50,7,9\n"))
    assert (found.layout, found.timezone) == ("copy_rates", "mt5-server")
    assert stamps(found) == [MIDNIGHT_UTC]
    assert found.bars[["volume", "spread", "real_volume"]].iloc[0].tolist() == [50.0, 7.0, 9.0]


@pytest.mark.parametrize("with_unit", [False, True])
@pytest.mark.parametrize("indexed", [False, True])
def test_saved_rates_in_parquet_count_server_time(tmp_path: Path, with_unit: bool, indexed: bool) -> None:
    rates = pd.DataFrame(rates_array(SERVER_MIDNIGHT, SERVER_MIDNIGHT + 3600))
    if with_unit:
        rates["time"] = pd.to_datetime(rates["time"], unit="s")
    path = tmp_path / "EURUSD_H1.parquet"
    (rates.set_index("time") if indexed else rates).to_parquet(path)
    found = read_bars(path)
    assert (found.layout, found.timezone) == ("copy_rates", "mt5-server")
    assert stamps(found) == [MIDNIGHT_UTC, "2025-06-22T22:00:00Z"]
    assert found.bars["volume"].tolist() == [50.0, 50.0]


def test_saved_rates_marked_utc_are_refused_until_the_zone_is_said(tmp_path: Path) -> None:
    rates = pd.DataFrame(rates_array(SERVER_MIDNIGHT))
    rates["time"] = pd.to_datetime(rates["time"], unit="s", utc=True)
    path = tmp_path / "EURUSD_H1.parquet"
    rates.to_parquet(path)
    assert "--timezone mt5-server" in refusal(ConfigurationError, path)
    assert stamps(read_bars(path, timezone=SERVER_ZONE)) == [MIDNIGHT_UTC]
    assert stamps(read_bars(path, timezone="UTC")) == ["2025-06-23T00:00:00Z"]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize(
    ("time_name", "adjusted_name"),
    [("Date", "Adj Close"), ("datetime", "AdjClose"), ("TIME", "adjusted_close"), ("Timestamp", "ADJ CLOSE")],
)
def test_plain_columns_are_found_in_any_case_and_separator(
    tmp_path: Path, separator: str, time_name: str, adjusted_name: str
) -> None:
    header = separator.join([time_name, "OPEN", "High", "low", "Close", adjusted_name, "volume", "Dividends"])
    row = separator.join(["2025-06-23 01:30:00", "1.1", "1.3", "1.0", "1.2", "1.15", "12", "0"])
    found = read_bars(plain(tmp_path, row, header=header))
    assert (found.layout, found.timezone) == ("ohlcv", "UTC")
    assert stamps(found) == ["2025-06-23T01:30:00Z"]
    assert found.bars[list(VALUE_COLUMNS)].iloc[0].tolist()[:6] == [1.1, 1.3, 1.0, 1.2, 1.15, 12.0]
    assert found.bars[["real_volume", "spread"]].isna().all(axis=None)


def test_quoted_cells_and_a_date_and_time_written_apart_are_read(tmp_path: Path) -> None:
    header = '"Date","Time","Open","High","Low","Close","Volume"'
    found = read_bars(plain(tmp_path, '"2025.06.23","01:30","1.1","1.3","1.0","1.2","12"', header=header))
    assert stamps(found) == ["2025-06-23T01:30:00Z"]
    assert found.bars["close"].tolist() == [1.2]


@pytest.mark.parametrize("zone", [None, "America/New_York"])
@pytest.mark.parametrize("index_name", ["Date", None])
def test_parquet_with_a_date_index_is_read(tmp_path: Path, zone: str | None, index_name: str | None) -> None:
    days = pd.DatetimeIndex(["2025-01-15", "2025-07-15"], name=index_name).tz_localize(zone)
    path = tmp_path / "AAPL_D1.parquet"
    pd.DataFrame({"Open": 1.1, "High": 1.3, "Low": 1.0, "Close": 1.2, "Volume": [5, 6]}, index=days).to_parquet(path)
    found = read_bars(path)
    expected = ["2025-01-15T05:00:00Z", "2025-07-15T04:00:00Z"] if zone else [f"2025-0{n}-15T00:00:00Z" for n in (1, 7)]
    assert stamps(found) == expected
    assert found.timezone == ("UTC (offsets in the file)" if zone else "UTC")
    assert found.bars["volume"].tolist() == [5.0, 6.0]


def test_offsets_in_the_file_win_over_the_time_zone_option(tmp_path: Path) -> None:
    rows = [
        f"{moment},1.1,1.3,1.0,1.2,5"
        for moment in (
            "2025-01-15 00:00:00-05:00",
            "2025-07-15T00:00:00-0400",
            "2025-07-15T12:00:00Z",
            "2025-07-15 12:00:00+05:30",
        )
    ]
    found = read_bars(plain(tmp_path, *rows, "2025-07-16,1.1,1.3,1.0,1.2,5"), timezone="Asia/Tokyo")
    assert found.timezone == "UTC (offsets in the file)"
    assert stamps(found) == [
        "2025-01-15T05:00:00Z",
        "2025-07-15T04:00:00Z",
        "2025-07-15T12:00:00Z",
        "2025-07-15T06:30:00Z",
    ]
    assert found.rejected["reason"].tolist() == ["missing_offset"]


# Symbol and timeframe


@pytest.mark.parametrize(
    ("name", "symbol", "timeframe"),
    [
        ("EURUSD_H1.csv", "EURUSD", "H1"),
        ("EURUSD_H1_202506230000_202601211000.csv", "EURUSD", "H1"),
        ("EURUSD_D1_ohlcv.csv", "EURUSD", "D1"),
        ("EURUSD_Daily_202001010000.csv", "EURUSD", "D1"),
        ("EURUSD_weekly.txt", "EURUSD", "W1"),
        ("EURUSD_Monthly_2020.csv", "EURUSD", "MN1"),
        ("EURUSD_mn1.csv", "EURUSD", "MN1"),
        ("EURUSD.r_M5.csv", "EURUSD.r", "M5"),
        ("US_30_m15.csv", "US_30", "M15"),
        ("eurusd_h12.csv", "eurusd", "H12"),
    ],
)
def test_the_file_name_says_symbol_and_timeframe(tmp_path: Path, name: str, symbol: str, timeframe: str) -> None:
    found = read_bars(plain(tmp_path, "2025-06-23,1.1,1.3,1.0,1.2,5", name=name))
    assert (found.symbol, found.timeframe) == (symbol, timeframe)
    assert found.bars[["symbol", "timeframe"]].iloc[0].tolist() == [symbol, timeframe]


def test_arguments_win_over_the_file_name(tmp_path: Path) -> None:
    found = read_bars(write(tmp_path, EXPORT), symbol="EURUSD.pro", timeframe="M30")
    assert (found.symbol, found.timeframe) == ("EURUSD.pro", "M30")


def test_a_column_wins_over_the_file_name(tmp_path: Path) -> None:
    path = plain(
        tmp_path, "2025-06-23,GBPUSD,m5,1.1,1.3,1.0,1.2,5", header="Date,Ticker,Timeframe,Open,High,Low,Close,Volume"
    )
    found = read_bars(path)
    assert (found.symbol, found.timeframe) == ("GBPUSD", "M5")
    message = refusal(ConfigurationError, path, symbol="EURUSD")
    assert "'GBPUSD'" in message
    assert "'EURUSD'" in message


def test_an_argument_names_bars_whose_ticker_is_no_symbol(tmp_path: Path) -> None:
    path = plain(tmp_path, "2025-06-23,EURUSD=X,1.1,1.3,1.0,1.2,5", header="Date,Ticker,Open,High,Low,Close,Volume")
    assert "'EURUSD=X'" in refusal(ConfigurationError, path)
    assert read_bars(path, symbol="EURUSD").symbol == "EURUSD"


@pytest.mark.parametrize(
    ("option", "column", "first", "second"),
    [("symbol", "Symbol", "EURUSD", "GBPUSD"), ("timeframe", "Timeframe", "H1", "M5")],
)
def test_two_symbols_or_timeframes_in_one_file_are_refused(
    tmp_path: Path, option: str, column: str, first: str, second: str
) -> None:
    rows = [f"2025-06-23,{value},1.1,1.3,1.0,1.2,5" for value in (first, second)]
    message = refusal(InputError, plain(tmp_path, *rows, header=f"Date,{column},Open,High,Low,Close,Volume"))
    assert f"{option}: '{first}', '{second}'" in message


def test_a_row_without_its_symbol_is_set_aside(tmp_path: Path) -> None:
    rows = ["2025-06-23,EURUSD,1.1,1.3,1.0,1.2,5", "2025-06-24,,1.1,1.3,1.0,1.2,5"]
    found = read_bars(plain(tmp_path, *rows, header="Date,Symbol,Open,High,Low,Close,Volume"))
    assert (len(found.bars), found.rejected["reason"].tolist()) == (1, ["missing_symbol"])


def test_a_file_that_nothing_names_asks_for_the_option(tmp_path: Path) -> None:
    path = write(tmp_path, EXPORT, "bars.csv")
    message = refusal(ConfigurationError, path)
    assert str(path) in message
    assert "--symbol" in message
    assert "--timeframe" in refusal(ConfigurationError, path, symbol="EURUSD")
    assert len(read_bars(path, symbol="EURUSD", timeframe="H1").bars) == 2


def test_options_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, EXPORT)
    assert "'EUR USD'" in refusal(ConfigurationError, path, symbol="EUR USD")
    assert "'H7'" in refusal(ConfigurationError, path, timeframe="H7")
    assert "--symbol" in refusal(ConfigurationError, write(tmp_path, EXPORT, "my file (1)_H1.csv"))


@pytest.mark.parametrize("name", ["Nowhere/Atlantis", "", "../etc/passwd", "Europe", "x" * 5000])
def test_an_unknown_time_zone_is_refused_with_both_kinds_of_name(tmp_path: Path, name: str) -> None:
    message = refusal(ConfigurationError, write(tmp_path, EXPORT), timezone=name)
    assert repr(name) in message
    assert "mt5-server" in message
    assert "Europe/Athens" in message


# Daylight saving


@pytest.mark.parametrize(
    ("wall", "utc"),
    [
        ("2025-01-15 12:00", "2025-01-15 10:00"),
        ("2025-07-15 12:00", "2025-07-15 09:00"),
        # New York changes at 02:00, which is 09:00 for the server, three weeks before Europe does.
        ("2025-03-09 08:59", "2025-03-09 06:59"),
        ("2025-03-09 10:00", "2025-03-09 07:00"),
        ("2025-11-02 07:59", "2025-11-02 04:59"),
        ("2025-11-02 09:00", "2025-11-02 07:00"),
    ],
)
def test_server_time_is_two_or_three_hours_ahead_on_american_dates(wall: str, utc: str) -> None:
    assert zone_to_utc(pd.Series([pd.Timestamp(wall)]), SERVER_ZONE)[0] == pd.Timestamp(utc, tz="UTC")


def test_zone_to_utc_keeps_index_and_marks_what_has_no_place() -> None:
    walls = ["2025-03-30 03:30", "2025-10-26 03:30", "2025-10-26 04:00", None]
    naive = pd.Series(pd.to_datetime(walls), index=[4, 2, 9, 7])
    times = zone_to_utc(naive, "Europe/Athens")
    assert times.index.tolist() == [4, 2, 9, 7]
    assert str(times.dtype) == "datetime64[us, UTC]"
    assert times.isna().tolist() == [True, True, False, True]
    assert times[9] == pd.Timestamp("2025-10-26 02:00", tz="UTC")


def test_a_time_the_clock_skipped_is_rejected(tmp_path: Path) -> None:
    rows = [f"2025-03-09 {hour},1.1,1.3,1.0,1.2,5" for hour in ("08:00", "09:00", "09:30", "10:00")]
    found = read_bars(plain(tmp_path, *rows), timezone=SERVER_ZONE)
    assert stamps(found) == ["2025-03-09T06:00:00Z", "2025-03-09T07:00:00Z"]
    assert found.rejected["reason"].tolist() == ["nonexistent_time"] * 2
    assert found.rejected["time"].isna().all()
    assert found.rejected["close"].tolist() == [1.2, 1.2]
    assert found.rejected["raw"].tolist() == rows[1:3]


def test_a_repeated_hour_is_daylight_time_first_and_standard_time_second(tmp_path: Path) -> None:
    walls = ["07:30", "08:00", "08:30", "08:00", "08:30", "09:00"]
    found = read_bars(plain(tmp_path, *(f"2025-11-02 {at},1.1,1.3,1.0,1.2,5" for at in walls)), timezone=SERVER_ZONE)
    assert stamps(found) == [f"2025-11-02T{at}:00Z" for at in ("04:30", "05:00", "05:30", "06:00", "06:30", "07:00")]
    assert found.rejected.empty


@pytest.mark.parametrize(
    ("walls", "kept"),
    [
        (["08:00"], 0),
        (["08:00", "08:00", "08:00"], 0),
        # 08:30 may be either, 08:00 is both.
        (["08:00", "08:30", "08:00"], 2),
        # Rows written twice, and rows written newest first: nothing tells the hours apart.
        (["08:00", "08:00", "08:30", "08:30"], 0),
        (["08:30", "08:00", "08:30", "08:00"], 0),
    ],
)
def test_a_repeated_hour_that_cannot_be_told_apart_is_rejected(tmp_path: Path, walls: list[str], kept: int) -> None:
    rows = [f"2025-11-02 {at},1.1,1.3,1.0,1.2,5" for at in walls]
    found = read_bars(plain(tmp_path, *rows), timezone=SERVER_ZONE)
    assert len(found.bars) == kept
    assert found.rejected["reason"].tolist() == ["ambiguous_time"] * (len(walls) - kept)


def test_one_bad_fold_leaves_the_fold_of_another_year_alone(tmp_path: Path) -> None:
    walls = ["2024-11-03 08:00", "2024-11-03 08:00", "2025-11-02 08:00"]
    found = read_bars(plain(tmp_path, *(f"{at},1.1,1.3,1.0,1.2,5" for at in walls)), timezone=SERVER_ZONE)
    assert stamps(found) == ["2024-11-03T05:00:00Z", "2024-11-03T06:00:00Z"]
    assert found.rejected["raw"].str[:16].tolist() == ["2025-11-02 08:00"]


# Rows that cannot be read


@pytest.mark.parametrize("cell", ["abc", "1.2.3", "1,2", "0x10", "1_000", "--1", "12 000", "True", "€5"])
def test_text_among_the_numbers_rejects_that_row_only(tmp_path: Path, cell: str) -> None:
    rows = ["2025-06-23;1.1;1.3;1.0;1.2;5", f"2025-06-24;1.1;1.3;1.0;{cell};6", "2025-06-25;1.1;1.3;1.0;1.2;7"]
    found = read_bars(plain(tmp_path, *rows, header=PLAIN_HEADER.replace(",", ";")))
    assert found.bars["volume"].tolist() == [5.0, 7.0]
    assert found.rejected["reason"].tolist() == ["unreadable_number"]
    assert found.rejected["raw"].tolist() == [rows[1]]
    assert found.rejected["time"].tolist() == [pd.Timestamp("2025-06-24", tz="UTC")]
    assert found.rejected["open"].tolist() == [1.1]
    assert found.rejected["close"].isna().all()


def test_nan_infinity_and_empty_cells_pass_through_for_the_value_rules(tmp_path: Path) -> None:
    found = read_bars(plain(tmp_path, "2025-06-23,nan,inf,-Infinity,,5", "2025-06-24, 1.1 ,+1.3,1e0,.5,NaN"))
    assert found.rejected.empty
    np.testing.assert_array_equal(
        found.bars[["open", "high", "low", "close", "volume"]].iloc[0], [np.nan, np.inf, -np.inf, np.nan, 5]
    )
    np.testing.assert_array_equal(
        found.bars[["open", "high", "low", "close", "volume"]].iloc[1], [1.1, 1.3, 1.0, 0.5, np.nan]
    )


@pytest.mark.parametrize(
    "moment",
    [
        "",
        "soon",
        "23/06/2025",
        "2025-13-01",
        "2025-02-30",
        "2025-06-23 24:00",
        "2025",
        "1",
        "0001-01-01",
        "20250623120000",
    ],
)
def test_an_unreadable_time_rejects_that_row_only(tmp_path: Path, moment: str) -> None:
    found = read_bars(plain(tmp_path, f"{moment},1.1,1.3,1.0,1.2,5", "2025-06-23,1.1,1.3,1.0,1.2,6"))
    assert stamps(found) == ["2025-06-23T00:00:00Z"]
    assert found.rejected["reason"].tolist() == ["unreadable_time"]
    assert found.rejected["close"].tolist() == [1.2]


def test_a_cut_last_line_is_rejected_and_keeps_its_text(tmp_path: Path) -> None:
    found = read_bars(write(tmp_path, EXPORT[:-20]))
    assert len(found.bars) == 1
    assert found.rejected["reason"].tolist() == ["unreadable_row"]
    assert found.rejected["raw"].tolist() == [EXPORT[:-20].splitlines()[-1]]
    assert found.rejected["symbol"].tolist() == ["EURUSD"]
    assert found.rejected[["time", "close"]].isna().all(axis=None)


def test_rejected_rows_of_every_kind_stay_in_file_order_and_none_is_lost(tmp_path: Path) -> None:
    good = "2025-06-23 0{}:00,1.1,1.3,1.0,1.2,5"
    rows = [
        "2025-06-23 00:00,1.1",
        good.format(1),
        "never,1.1,1.3,1.0,1.2,5",
        "",
        '2025-06-23 02:00,"1.1,1.3,1.0,1.2,5',
        good.format(3),
        "2025-06-23 04:00,1.1,1.3,1.0,1.2,many",
        "2025-06-23 05:00,1.1,1.3,1.0,1.2,5,6,7",
        "   ",
        good.format(6),
    ]
    found = read_bars(plain(tmp_path, *rows))
    assert stamps(found) == [f"2025-06-23T0{hour}:00:00Z" for hour in (1, 3, 6)]
    assert found.rejected["reason"].tolist() == [
        "unreadable_row", "unreadable_time", "unreadable_row", "unreadable_number", "unreadable_row",
    ]  # fmt: skip
    assert found.rejected["raw"].tolist() == [rows[0], rows[2], rows[4], rows[6], rows[7]]
    assert found.rejected.index.tolist() == [0, 1, 2, 3, 4]


def test_a_file_of_unreadable_rows_gives_no_bars_and_every_row_back(tmp_path: Path) -> None:
    found = read_bars(plain(tmp_path, "a", "b"))
    assert (len(found.bars), found.rejected["raw"].tolist()) == (0, ["a", "b"])
    assert str(found.bars["time"].dtype) == "datetime64[us, UTC]"


def test_a_damaged_byte_rejects_its_row(tmp_path: Path) -> None:
    path = tmp_path / "EURUSD_H1.csv"
    path.write_bytes(
        f"{PLAIN_HEADER}\n2025-06-23,1.1,1.3,1.0,1.2,5\n2025-06-24,1.1,1.3,1.0,1.".encode() + b"\xff\x00,5\n"
    )
    found = read_bars(path)
    assert (len(found.bars), found.rejected["reason"].tolist()) == (1, ["unreadable_number"])


def test_rejected_parquet_rows_show_their_cells(tmp_path: Path) -> None:
    path = tmp_path / "EURUSD_H1.parquet"
    columns = {
        "Date": ["2025-06-23", "x"],
        "Open": [1.1, 1.1],
        "High": [1.3, 1.3],
        "Low": [1.0, None],
        "Close": [1.2, 1.2],
    }
    pq.write_table(pa.table({**columns, "Volume": ["5", "6"]}), path)
    found = read_bars(path)
    assert found.bars["volume"].tolist() == [5.0]
    assert found.rejected["raw"].tolist() == ["x,1.1,1.3,,1.2,6"]


@pytest.mark.parametrize("volume", [2**53, 2**53 + 1, 2**63 - 1])
def test_a_volume_beyond_exact_doubles_is_never_rounded_below_the_limit(tmp_path: Path, volume: int) -> None:
    limit = 9_007_199_254_740_992
    text = plain(tmp_path, f"2025-06-23,1.1,1.3,1.0,1.2,{volume}", f"2025-06-24,1.1,1.3,1.0,1.2,{limit - 1}")
    table = tmp_path / "EURUSD_H1.parquet"
    columns = {"Date": ["2025-06-23", "2025-06-24"], "Open": 1.1, "High": 1.3, "Low": 1.0, "Close": 1.2}
    pd.DataFrame({**columns, "Volume": [volume, limit - 1]}).to_parquet(table)
    for path in (text, table):
        volumes = read_bars(path).bars["volume"]
        assert volumes[0] >= limit
        assert volumes[1] == limit - 1


# Files that are refused


def test_a_path_that_is_no_readable_file_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "EURUSD_H1.csv"
    assert f"{missing}: there is no such file" in refusal(InputError, missing)
    assert f"{tmp_path}: this is a folder" in refusal(InputError, tmp_path)
    assert "cannot be read" in refusal(InputError, write(tmp_path, EXPORT) / "below.csv")
    assert "\\n" in refusal(InputError, tmp_path / "two\nlines.csv")
    assert "cannot be read" in refusal(InputError, tmp_path / ("x" * 5000))
    assert "cannot be read" in refusal(InputError, tmp_path / "zero\0byte.csv")
    assert "no regular file" in refusal(InputError, Path(os.devnull))


@pytest.mark.skipif(os.name == "nt", reason="POSIX file rights")
def test_a_file_without_read_permission_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, EXPORT)
    path.chmod(0)
    if os.geteuid() == 0:
        # Root reads everything, so another user tries, in a process of its own.
        program = (
            "import os, sys; from pathlib import Path; from mt5_crs_pipeline.adapters.mt5 import read_bars\n"
            "from mt5_crs_pipeline.core.errors import InputError\n"
            "os.setgid(65534); os.setuid(65534)\n"
            "try: read_bars(Path(sys.argv[1]))\nexcept InputError as error: print(error)"
        )
        child = subprocess.run(
            [sys.executable, "-c", program, str(path)],
            capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        message = child.stdout.strip()
    else:
        message = refusal(InputError, path)
    assert f"{path}: no permission to read" in message


@pytest.mark.parametrize("content", [b"", b"\n \r\n", b"\xef\xbb\xbf", b"\xff\xfe"])
def test_an_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "EURUSD_H1.csv"
    path.write_bytes(content)
    assert f"{path}: the file is empty" in refusal(InputError, path)


def test_a_header_alone_has_no_rows(tmp_path: Path) -> None:
    assert "has no rows" in refusal(InputError, write(tmp_path, EXPORT_HEADER + "\r\n"))
    table = tmp_path / "EURUSD_H1.parquet"
    pd.DataFrame(rates_array()).to_parquet(table)
    assert "has no rows" in refusal(InputError, table)


@pytest.mark.parametrize(
    "content",
    [
        np.random.default_rng(7).bytes(5000),
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(200),
        b"PK\x03\x04" + bytes(range(256)),
        gzip.compress(EXPORT.encode()),
        bytes(5000),
    ],
    ids=["random", "png", "zip", "gzip", "zeros"],
)
@pytest.mark.parametrize("name", ["EURUSD_H1.csv", "EURUSD_H1.parquet"])
def test_a_binary_file_is_refused(tmp_path: Path, content: bytes, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert f"{path}: this is a binary file" in refusal(InputError, path)


def test_a_cut_or_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "EURUSD_H1.parquet"
    pd.DataFrame(rates_array(*range(SERVER_MIDNIGHT, SERVER_MIDNIGHT + 360_000, 3600))).to_parquet(path)
    whole = path.read_bytes()
    for content in (whole[:4], whole[: len(whole) // 2], whole[:-8], whole[:40] + bytes(60) + whole[100:]):
        path.write_bytes(content)
        assert f"{path}: the Parquet file is damaged or cut short" in refusal(InputError, path)


def test_missing_columns_are_named_with_the_layouts_that_are_accepted(tmp_path: Path) -> None:
    path = plain(tmp_path, "2025-06-23,1.1,1.3,1.0,1.2", header="Date,Open,High,Low,Close")
    message = refusal(InputError, path)
    assert f"{path}: missing column volume" in message
    for layout in ("<DATE> <TIME> <OPEN>", "tick_volume", "Date, Open, High, Low, Close, Volume"):
        assert layout in message
    ticks = refusal(InputError, write(tmp_path, "<DATE>\t<TIME>\t<BID>\t<ASK>\n2025.06.23\t00:00:00\t1\t1\n"))
    assert "missing column <OPEN>, <HIGH>, <LOW>, <CLOSE>, <TICKVOL>" in ticks
    foreign = refusal(InputError, plain(tmp_path, "1,2", header="apples,pears"))
    assert "'apples', 'pears'" in foreign


def test_two_columns_for_one_value_are_refused(tmp_path: Path) -> None:
    row, header = "2025-06-23,1.1,1.3,1.0,1.2,1.3,5", "Date,Open,High,Low,Close,close,Volume"
    assert "'Close' and 'close'" in refusal(InputError, plain(tmp_path, row, header=header))


@pytest.mark.parametrize("cells", [pa.array([{"at": 1.0}]), pa.array([True]), pa.array([b"1"])])
def test_parquet_columns_of_another_kind_are_refused(tmp_path: Path, cells: pa.Array) -> None:
    path = tmp_path / "EURUSD_H1.parquet"
    columns = {"Date": ["2025-06-23"], "Open": [1.1], "High": [1.3], "Low": [1.0], "Volume": [5]}
    pq.write_table(pa.table({**columns, "Close": cells}), path)
    assert f"{path}: column close holds {cells.type}" in refusal(InputError, path)


def test_quotes_that_swallow_lines_are_refused_instead_of_losing_rows(tmp_path: Path) -> None:
    path = plain(tmp_path, '2025-06-23,1.1,1",",1.2,5', "2025-06-24,1.1,1.3,1.0,1.2,5", "2025-06-25,1.1,1.3,1.0,1.2,5")
    with pytest.raises(InputError, match="stray quotes"):
        read_bars(path)


# A live terminal


class FakeTerminal(types.SimpleNamespace):
    """Stands in for the MetaTrader5 module, which only exists on Windows."""

    TIMEFRAME_H1 = 16385

    def copy_rates_range(self, symbol: str, timeframe: int, start: datetime, end: datetime) -> np.ndarray | None:
        self.asked = (symbol, timeframe, start, end)
        answer: np.ndarray | None = self.answer
        return answer

    def last_error(self) -> tuple[int, str]:
        return self.error


DAY = (datetime(2025, 6, 22, 21, tzinfo=UTC), datetime(2025, 6, 23, 21, tzinfo=UTC))


def test_terminal_bars_equal_the_same_rates_saved_to_a_file(tmp_path: Path) -> None:
    rates = rates_array(SERVER_MIDNIGHT, SERVER_MIDNIGHT + 3600)
    found = read_terminal(FakeTerminal(answer=rates), "EURUSD", "H1", *DAY)
    assert stamps(found) == [MIDNIGHT_UTC, "2025-06-22T22:00:00Z"]
    assert found.bars[["open", "volume", "real_volume", "spread"]].iloc[0].tolist() == [1.1, 50.0, 9.0, 7.0]
    path = tmp_path / "EURUSD_H1.csv"
    pd.DataFrame(rates).to_csv(path)
    saved = read_bars(path)
    pd.testing.assert_frame_equal(found.bars, saved.bars)
    assert (found.timezone, found.layout) == (saved.timezone, saved.layout) == ("mt5-server", "copy_rates")


def test_the_terminal_is_asked_in_server_time_up_to_but_not_at_the_end() -> None:
    terminal = FakeTerminal(answer=rates_array(SERVER_MIDNIGHT))
    read_terminal(terminal, "EURUSD", "H1", *DAY)
    start, end = datetime(2025, 6, 23, tzinfo=UTC), datetime(2025, 6, 23, 23, 59, 59, tzinfo=UTC)
    assert terminal.asked == ("EURUSD", 16385, start, end)


def test_a_terminal_without_bars_in_the_window_gives_none() -> None:
    found = read_terminal(FakeTerminal(answer=rates_array()), "EURUSD", "H1", *DAY)
    assert (len(found.bars), len(found.rejected)) == (0, 0)
    assert tuple(found.bars.columns) == BAR_COLUMNS


@pytest.mark.parametrize(
    ("code", "kind"), [(-1, InputError), (-4, InputError), (-10004, TransientError), (-10005, TransientError)]
)
def test_a_terminal_that_gives_no_answer_is_an_error_with_its_own_words(code: int, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=rf"EURUSD H1: no answer, error {code} 'No IPC connection'"):
        read_terminal(FakeTerminal(answer=None, error=(code, "No IPC connection")), "EURUSD", "H1", *DAY)


def test_a_terminal_is_not_asked_about_nonsense() -> None:
    with pytest.raises(ConfigurationError, match="'H7'"):
        read_terminal(FakeTerminal(answer=None), "EURUSD", "H7", *DAY)
    with pytest.raises(ConfigurationError, match="no time zone"):
        read_terminal(FakeTerminal(answer=None), "EURUSD", "H1", datetime(2025, 1, 1), datetime(2025, 1, 2))


def test_connecting_without_the_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "MetaTrader5", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'mt5-crs-pipeline\[mt5\]'.*Windows"):
        connect_terminal()


@pytest.mark.parametrize("starts", [True, False])
def test_connecting_initialises_the_terminal(monkeypatch: pytest.MonkeyPatch, starts: bool) -> None:
    module = FakeTerminal(initialize=lambda: starts, error=(-10003, "IPC initialize failed"))
    monkeypatch.setitem(sys.modules, "MetaTrader5", module)
    if starts:
        assert connect_terminal() is module
    else:
        with pytest.raises(TransientError, match="IPC initialize failed"):
            connect_terminal()
