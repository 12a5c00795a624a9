"""Bars from files and tables into the database, with a report per source."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mt5_crs_pipeline.core.errors import ConfigurationError, DatabaseUnavailableError, InputError, PipelineError
from mt5_crs_pipeline.ingest import ingest_files, ingest_table
from mt5_crs_pipeline.settings import Settings
from tests.adapters.made_up_bars import query

COUNTS = "select count(*), count(distinct (symbol, timeframe, time)) from market_data"


def load(
    settings: Settings,
    *files: Path,
    symbol: str | None = None,
    timeframe: str | None = None,
    timezone: str | None = None,
) -> list[dict[str, Any]]:
    return list(ingest_files(settings, list(files), symbol, timeframe, timezone))


def counts(inserted: int = 0, unchanged: int = 0, revised: int = 0, quarantined: int = 0) -> dict[str, int]:
    return {"inserted": inserted, "unchanged": unchanged, "revised": revised, "quarantined": quarantined}


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(("Date,Open,High,Low,Close,Volume", *lines)) + "\n")
    return path


GOOD = ("2024-01-02,1,2,0.5,1.5,10", "2024-01-03,1,2,0.5,1.25,20")


# --- The sample exports ----------------------------------------------------------------------------------------------


def test_a_terminal_export_goes_in_once_and_a_correction_beside_it(
    settings: Settings, database_url: str, samples: Path, tmp_path: Path
) -> None:
    export = samples / "EURUSD_H1.csv"
    [report] = load(settings, export)
    assert report == {
        "source": "EURUSD_H1.csv",
        "symbols": "EURUSD",
        "timeframe": "H1",
        "timezone": "mt5-server (New York + 7 h)",
        "counts": counts(inserted=3608),
        "first": "2025-06-22T21:00:00Z",
        "last": report["last"],
        "reasons": {},
    }
    newest = query(database_url, "select max(time), min(known_at) from market_data")[0]
    assert report["last"] == f"{newest[0]:%Y-%m-%dT%H:%M:%SZ}"
    assert newest[1] == datetime(2025, 6, 22, 22, tzinfo=UTC)
    assert load(settings, export)[0]["counts"] == counts(unchanged=3608)

    lines = export.read_text().splitlines()
    cells = lines[100].split("\t")
    old, new = cells[5], cells[4]
    assert old != new
    cells[5] = new
    edited = tmp_path / "EURUSD_H1.csv"
    edited.write_text("\n".join([*lines[:100], "\t".join(cells), *lines[101:]]) + "\n")
    before = datetime.now(UTC)
    assert load(settings, edited)[0]["counts"] == counts(unchanged=3607, revised=1)
    assert query(database_url, COUNTS) == [(3609, 3608)]
    both = query(
        database_url,
        "select close, known_at from market_data where (symbol, timeframe, time) in (select symbol, timeframe, time"
        " from market_data group by 1, 2, 3 having count(*) = 2) order by known_at",
    )
    assert [close for close, _ in both] == [float(old), float(new)]
    assert both[0][1] < before <= both[1][1]
    assert load(settings, edited)[0]["counts"] == counts(unchanged=3608)


def test_several_files_give_a_report_each_and_lose_no_row(settings: Settings, database_url: str, samples: Path) -> None:
    files = [samples / f"{symbol}_H1.csv" for symbol in ("EURUSD", "GBPUSD", "SILVER")]
    reports = load(settings, *files)
    assert [report["source"] for report in reports] == [file.name for file in files]
    assert [report["symbols"] for report in reports] == ["EURUSD", "GBPUSD", "SILVER"]
    for file, report in zip(files, reports, strict=True):
        rows = len(file.read_text().splitlines()) - 1
        assert sum(report["counts"].values()) == rows
        assert sum(report["reasons"].values()) == report["counts"]["quarantined"]
    inserted = sum(report["counts"]["inserted"] for report in reports)
    quarantined = sum(report["counts"]["quarantined"] for report in reports)
    assert query(database_url, COUNTS) == [(inserted, inserted)]
    assert query(database_url, "select count(*) from market_data_quarantine") == [(quarantined,)]


def test_a_plain_file_of_daily_bars_goes_in(settings: Settings, database_url: str, samples: Path) -> None:
    [report] = load(settings, samples / "EURUSD_D1_ohlcv.csv", symbol="EURUSD", timeframe="D1")
    rows = len((samples / "EURUSD_D1_ohlcv.csv").read_text().splitlines()) - 1
    assert sum(report["counts"].values()) == rows and report["counts"]["inserted"] > 0.9 * rows
    assert query(database_url, COUNTS) == [(report["counts"]["inserted"],) * 2]


# --- Bad files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("absent.csv", None),
        ("EURUSD_D1.csv", b""),
        ("EURUSD_D1.csv", bytes(range(256)) * 4),
        ("EURUSD_D1.csv", b"Date,Open,High,Low,Close,Volume\n"),
        ("EURUSD_D1.csv", b"alpha,beta\n1,2\n"),
        ("EURUSD_D1.parquet", b"PAR1 not really PAR1"),
        ("nameless.csv", b"Date,Open,High,Low,Close,Volume\n2024-01-02,1,2,0.5,1.5,10\n"),
        ("x_D1.csv", b"Symbol,Date,Open,High,Low,Close,Volume\nA,2024-01-02,1,2,1,1,1\nB,2024-01-02,1,2,1,1,1\n"),
    ],
)
def test_a_bad_second_file_leaves_the_database_as_it_was(
    settings: Settings, database_url: str, tmp_path: Path, name: str, content: bytes | None
) -> None:
    good = write(tmp_path / "GBPUSD_D1.csv", *GOOD)
    load(settings, write(tmp_path / "AUDUSD_D1.csv", *GOOD))
    bad = tmp_path / name
    if content is not None:
        bad.write_bytes(content)
    with pytest.raises(PipelineError) as error:
        load(settings, good, bad)
    assert isinstance(error.value, InputError | ConfigurationError)
    assert name in str(error.value) and "\n" not in str(error.value)
    assert query(database_url, COUNTS) == [(2, 2)]
    assert query(database_url, "select count(*) from market_data_quarantine") == [(0,)]


def test_an_unreachable_database_is_said_after_the_files_were_read(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", database_url="postgresql://u:secret@127.0.0.1:1/d")  # type: ignore[arg-type]
    with pytest.raises(InputError):
        load(settings, tmp_path / "absent.csv")
    with pytest.raises(DatabaseUnavailableError) as error:
        load(settings, write(tmp_path / "EURUSD_D1.csv", *GOOD))
    assert "secret" not in str(error.value)


def test_every_bad_row_is_kept_with_its_reason(settings: Settings, database_url: str, tmp_path: Path) -> None:
    path = write(
        tmp_path / "EURUSD_D1.csv",
        *GOOD,
        "2024-01-04,1,0.1,0.5,1.5,10",  # high below low
        "2024-01-05,0,2,0.5,1.5,10",  # no price
        "2024-01-08,-1,2,0.5,1.5,10",
        "2024-01-09,nan,2,0.5,1.5,10",
        "2024-01-10,1,inf,0.5,1.5,10",
        "2024-01-11,abc,2,0.5,1.5,10",
        "2024-01-12,1,2,0.5,1.5,9007199254740993",
        "2024-01-15,1,2,0.5,1.5,-3",
        "2024-01-16,9,2,0.5,1.5,10",
        "2199-01-01,1,2,0.5,1.5,10",
        "2024-13-45,1,2,0.5,1.5,10",
        "2024-01-17,1,2,0.5,1.5,10",
        "2024-01-17,1,2,0.5,1.5,10",  # once more
        "2024-01-18,1,2,0.5,1.5,10",
        "2024-01-18,1,2,0.5,1.6,10",  # another close
        "2024-01-19,1,2",
    )
    [report] = load(settings, path)
    assert report["counts"] == counts(inserted=3, quarantined=15)
    assert sum(report["reasons"].values()) == 15
    kept = dict(query(database_url, "select reason, count(*) from market_data_quarantine group by 1"))
    assert report["reasons"]["contradicting_duplicate"] == 2
    for reason in ("high_below_low", "price_not_positive", "duplicate", "from_the_future", "open_outside_range"):
        assert report["reasons"][reason] >= 1 and kept[reason] >= 1
    assert sum(kept.values()) == 15
    again = load(settings, path)[0]
    assert again["counts"] == counts(unchanged=3, quarantined=15) and again["reasons"] == report["reasons"]
    assert query(database_url, "select count(*) from market_data_quarantine") == [(15,)]
    [(raw,)] = query(
        database_url, "select row_content ->> 'raw' from market_data_quarantine where row_content::text like '%%abc%%'"
    )
    assert "abc" in raw


def test_a_file_without_a_valid_bar_is_reported_as_such(settings: Settings, tmp_path: Path) -> None:
    [report] = load(settings, write(tmp_path / "EURUSD_D1.csv", "2024-01-04,1,0.1,0.5,1.5,10"))
    assert report["counts"] == counts(quarantined=1)
    assert (report["symbols"], report["timeframe"], report["first"]) == ("no valid bars", "D1", None)


# --- Options ---------------------------------------------------------------------------------------------------------


def test_symbol_timeframe_and_zone_can_be_given(settings: Settings, database_url: str, tmp_path: Path) -> None:
    path = write(tmp_path / "export_D1.csv", "2024-01-02 10:00,1,2,0.5,1.5,10")
    [report] = load(settings, path, symbol="US30.cash", timeframe="H4", timezone="Europe/Athens")
    assert (report["symbols"], report["timeframe"], report["timezone"]) == ("US30.cash", "H4", "Europe/Athens")
    assert query(database_url, "select symbol, timeframe, time, known_at from market_data") == [
        ("US30.cash", "H4", datetime(2024, 1, 2, 8, tzinfo=UTC), datetime(2024, 1, 2, 12, tzinfo=UTC))
    ]


@pytest.mark.parametrize(
    "options", [{"symbol": "../x"}, {"symbol": "'; drop table"}, {"timeframe": "H7"}, {"timezone": "Mars/Base"}]
)
def test_a_senseless_option_is_refused_with_its_value(
    settings: Settings, tmp_path: Path, options: dict[str, str]
) -> None:
    path = write(tmp_path / "EURUSD_D1.csv", *GOOD)
    with pytest.raises(ConfigurationError) as error:
        load(settings, path, **options)
    assert next(iter(options.values())) in str(error.value) and "\n" not in str(error.value)


# --- Tables ----------------------------------------------------------------------------------------------------------


def test_a_table_is_taken_over_end_to_end(settings: Settings, database_url: str, samples: Path) -> None:
    load(settings, samples / "EURUSD_H1.csv")
    query(
        database_url,
        "create table legacy as select time at time zone 'America/New_York' + interval '7 hours' as ts,"
        " open::numeric as o, high as h, low as l, close as c, volume::bigint as v from market_data",
    )
    mapping = {"time": "ts", "open": "o", "high": "h", "low": "l", "close": "c", "volume": "v"}
    options = {"source_url": None, "symbol": "COPY", "timeframe": "H1", "timezone": "mt5-server"}
    [report] = ingest_table(settings, "public.legacy", mapping, **options)  # type: ignore[arg-type]
    assert report["counts"] == counts(inserted=3608)
    assert report["source"] == "table public.legacy" and report["first"] == "2025-06-22T21:00:00Z"
    difference = (
        "select time, open, high, low, close, volume, known_at from market_data where symbol = 'EURUSD'"
        " except select time, open, high, low, close, volume, known_at from market_data where symbol = 'COPY'"
    )
    assert query(database_url, difference) == []
    query(database_url, "update legacy set c = o where ts = (select max(ts) from legacy)")
    [again] = ingest_table(settings, "legacy", mapping, **options)  # type: ignore[arg-type]
    assert again["counts"] == counts(unchanged=3607, revised=1)


def test_bars_of_a_program_of_ones_own_are_unchanged_for_us(
    settings: Settings, database_url: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "EURUSD_D1.csv", *GOOD)
    load(settings, path)
    query(
        database_url,
        "insert into market_data (symbol, timeframe, time, open, high, low, close, volume)"
        " values ('EURUSD', 'D1', '2024-01-03 00:00+00', 1, 2, 0.5, 1.75, 20)",
    )
    assert load(settings, path)[0]["counts"] == counts(unchanged=1, revised=1)
    closes = [
        row[0] for row in query(database_url, "select close from market_data where volume = 20 order by known_at")
    ]
    assert closes == [1.25, 1.75, 1.25]


def test_copy_rates_saved_as_parquet_go_in(settings: Settings, database_url: str, tmp_path: Path) -> None:
    rates = pd.DataFrame(
        {
            "time": [1704153600, 1704157200],
            "open": [1.0, 1.0],
            "high": [2.0, 2.0],
            "low": [0.5, 0.5],
            "close": [1.5, 1.25],
            "tick_volume": [10, 20],
            "spread": [3, 4],
            "real_volume": [0, 0],
        }
    )
    rates.to_parquet(tmp_path / "EURUSD_H1.parquet")
    [report] = load(settings, tmp_path / "EURUSD_H1.parquet")
    assert report["counts"] == counts(inserted=2)
    assert report["timezone"] == "mt5-server (New York + 7 h)"
    assert query(database_url, "select spread, volume from market_data order by time") == [(3.0, 10.0), (4.0, 20.0)]
