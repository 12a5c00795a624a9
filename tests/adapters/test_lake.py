"""The lake: one sorted, checksummed Parquet file per stage and month."""

import random
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mt5_crs_pipeline.adapters.lake import MARKET_DATA, Lake, parquet_bytes, read_parquet
from mt5_crs_pipeline.core.bars import CLOSED_BAR_SCHEMA, close_time, month_of
from mt5_crs_pipeline.core.errors import DamagedFileError
from mt5_crs_pipeline.core.features import FeatureConfig, feature_frame
from tests.adapters.made_up_bars import made_up_bars

FLIPS = 60


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


def closed(bars: pd.DataFrame) -> pd.DataFrame:
    closes = close_time(bars["time"], "D1")
    return bars.assign(known_at=closes, recorded_at=closes, event_timestamp=closes)


def table_of(bars: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(closed(bars), schema=CLOSED_BAR_SCHEMA, preserve_index=False).replace_schema_metadata()


def fill(lake: Lake, bars: pd.DataFrame) -> None:
    for month, part in bars.groupby(month_of(bars["time"])):
        lake.write(MARKET_DATA, str(month), table_of(part.sort_values(["symbol", "time"])))


def test_rows_come_back_as_they_went_in_and_rewriting_them_touches_nothing(lake: Lake) -> None:
    table = table_of(made_up_bars(20, first="2024-01-02"))
    assert lake.write(MARKET_DATA, "2024-01", table) is True
    path = lake.file(MARKET_DATA, "2024-01")
    before, status = path.read_bytes(), path.stat()
    assert lake.write(MARKET_DATA, "2024-01", table) is False
    assert path.stat().st_mtime_ns == status.st_mtime_ns and path.stat().st_ino == status.st_ino
    path.unlink()
    pieces = pa.concat_tables([table.slice(0, 7), table.slice(7)])
    assert lake.write(MARKET_DATA, "2024-01", pieces) is True
    assert path.read_bytes() == before
    read = lake.read(MARKET_DATA, ["2024-01"], CLOSED_BAR_SCHEMA)
    assert read.equals(table) and read.schema == CLOSED_BAR_SCHEMA


def test_times_are_microseconds_and_pages_have_checksums(lake: Lake) -> None:
    lake.write(MARKET_DATA, "2024-01", table_of(made_up_bars(20)))
    path = lake.file(MARKET_DATA, "2024-01")
    assert pq.read_schema(path).field("time").type == pa.timestamp("us", tz="UTC")
    raw = bytearray(path.read_bytes())
    column = pq.read_metadata(path).row_group(0).column(CLOSED_BAR_SCHEMA.get_field_index("close"))
    raw[column.data_page_offset + column.total_compressed_size - 1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DamagedFileError, match=r"(?i)crc|checksum"):
        read_parquet(path)


def test_a_month_that_loses_its_rows_loses_its_file(lake: Lake) -> None:
    table = table_of(made_up_bars(3))
    assert lake.write(MARKET_DATA, "2024-02", table.slice(0, 0)) is False
    lake.write(MARKET_DATA, "2024-01", table)
    assert lake.months(MARKET_DATA) == ["2024-01"]
    assert lake.write(MARKET_DATA, "2024-01", table.slice(0, 0)) is True
    assert lake.months(MARKET_DATA) == []
    assert lake.read(MARKET_DATA, ["2024-01", "2024-02"], CLOSED_BAR_SCHEMA).equals(CLOSED_BAR_SCHEMA.empty_table())


def test_months_are_read_in_the_order_asked_for_and_columns_as_asked_for(lake: Lake) -> None:
    bars = made_up_bars(60, first="2024-01-01")
    fill(lake, bars)
    assert lake.months(MARKET_DATA) == ["2024-01", "2024-02"]
    read = lake.read(MARKET_DATA, ["2024-01", "2024-02"], CLOSED_BAR_SCHEMA, ["close", "symbol"])
    assert read.column_names == ["close", "symbol"]
    assert read["close"].to_pylist() == bars["close"].tolist()


def test_the_greatest_of_a_column_is_told_without_reading_it(lake: Lake) -> None:
    assert lake.greatest(MARKET_DATA, "recorded_at") is None
    bars = made_up_bars(60, first="2024-01-01")
    fill(lake, bars)
    assert lake.greatest(MARKET_DATA, "recorded_at") == closed(bars)["recorded_at"].max()
    path = lake.file(MARKET_DATA, "2024-01")
    whole = path.read_bytes()
    unmeasured = pq.read_table(path)
    pq.write_table(unmeasured, path, write_statistics=False)
    with pytest.raises(DamagedFileError, match=r"2024-01\.parquet is damaged"):
        lake.greatest(MARKET_DATA, "recorded_at")
    for damaged in (whole[:-4], b""):
        path.write_bytes(damaged)
        with pytest.raises(DamagedFileError, match=r"2024-01\.parquet is damaged"):
            lake.greatest(MARKET_DATA, "recorded_at")
    path.write_bytes(whole)
    with pytest.raises(DamagedFileError, match=r"2024-01\.parquet is damaged"):
        lake.greatest(MARKET_DATA, "absent")


def test_symbols_of_the_last_month_go_on_after_all_others(lake: Lake) -> None:
    fill(lake, pd.concat([made_up_bars(90, "A", first="2024-01-01"), made_up_bars(60, "B", first="2024-01-01")]))
    assert lake.continued(MARKET_DATA, ["2024-02", "2024-01"]) == ["A"]
    assert lake.continued(MARKET_DATA, ["2024-01", "2024-03"]) == lake.continued(MARKET_DATA, ["2024-04"]) == []
    assert lake.continued("another", ["2024-01"]) == []


def test_leftovers_and_other_files_are_no_months(lake: Lake) -> None:
    fill(lake, made_up_bars(3))
    for name in (".partial-x.parquet", "notes.txt", "x.parquet"):
        (lake.stage_folder(MARKET_DATA) / name).write_bytes(b"x")
    assert lake.months(MARKET_DATA) == ["2024-01", "2024-02"]


@pytest.mark.parametrize("seed", [1, 2])
def test_a_flipped_bit_is_refused_or_changes_nothing(lake: Lake, seed: int) -> None:
    table = table_of(made_up_bars(20, first="2024-01-02"))
    lake.write(MARKET_DATA, "2024-01", table)
    path = lake.file(MARKET_DATA, "2024-01")
    sound = path.read_bytes()
    chosen = random.Random(seed)
    refused = 0
    for _ in range(FLIPS):
        position, bit = chosen.randrange(len(sound)), chosen.randrange(8)
        damaged = bytearray(sound)
        damaged[position] ^= 1 << bit
        path.write_bytes(damaged)
        try:
            read = lake.read(MARKET_DATA, ["2024-01"], CLOSED_BAR_SCHEMA)
        except DamagedFileError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error) and "materialize" in str(error)
        else:
            assert read.equals(table), (position, bit)
    assert refused > FLIPS / 3


def test_a_flipped_bit_in_a_row_count_of_the_footer_loses_no_rows(lake: Lake) -> None:
    table = table_of(made_up_bars(20, first="2024-01-02"))
    lake.write(MARKET_DATA, "2024-01", table)
    path = lake.file(MARKET_DATA, "2024-01")
    sound = path.read_bytes()
    footer = len(sound) - 8 - int.from_bytes(sound[-8:-4], "little")
    # How Thrift writes a count of 20: the type of the field, then twice the number.
    places = [place + 1 for place in range(footer, len(sound) - 8) if sound[place : place + 2] == b"\x16\x28"]
    assert len(places) > 10
    for place in places:
        for bit in range(7):
            damaged = bytearray(sound)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                read = lake.read(MARKET_DATA, ["2024-01"], CLOSED_BAR_SCHEMA)
            except DamagedFileError:
                continue
            assert read.equals(table), (place, bit)


@pytest.mark.parametrize("keep", [0, 1, 4, 11, 12, 100, -1, -8, -9, -500])
def test_a_truncated_file_is_refused(lake: Lake, keep: int) -> None:
    lake.write(MARKET_DATA, "2024-01", table_of(made_up_bars(20)))
    path = lake.file(MARKET_DATA, "2024-01")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DamagedFileError, match="is damaged") as error:
        lake.read(MARKET_DATA, ["2024-01"], CLOSED_BAR_SCHEMA)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.drop_columns(["close"]),
        lambda table: table.set_column(2, "time", table["time"].cast(pa.timestamp("ns", tz="UTC"))),
        lambda table: table.set_column(3, "open", table["open"].cast(pa.float32(), safe=False)),
        lambda table: table.set_column(3, "open", table["open"].cast(pa.string())),
    ],
)
def test_a_file_with_other_columns_or_types_is_refused(lake: Lake, change: object) -> None:
    lake.write(MARKET_DATA, "2024-01", change(table_of(made_up_bars(20))))  # type: ignore[operator]
    with pytest.raises(DamagedFileError, match=r"no column close|other types"):
        lake.read(MARKET_DATA, ["2024-01"], CLOSED_BAR_SCHEMA)


def test_a_file_that_is_not_there_is_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_parquet(tmp_path / "absent.parquet")


def test_a_parquet_of_any_size_reads_back(tmp_path: Path) -> None:
    table = pa.table({"x": np.arange(3_000_000)})
    (tmp_path / "big.parquet").write_bytes(parquet_bytes(table))
    assert pq.read_metadata(tmp_path / "big.parquet").num_row_groups > 1
    assert read_parquet(tmp_path / "big.parquet").equals(table)
    assert read_parquet(tmp_path / "big.parquet", ["x"]).num_rows == 3_000_000


# --- History ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def uneven(lake: Lake) -> pd.DataFrame:
    """Four symbols: daily, one with a year's pause, one that begins in the month asked for, one that ended before."""
    daily = made_up_bars(400, symbol="DAILY", first="2023-01-01")
    paused = made_up_bars(400, symbol="PAUSED", first="2023-01-01", seed=2)
    paused = paused[(paused["time"] < "2023-02-10") | (paused["time"] >= "2024-01-15")]
    young = made_up_bars(10, symbol="YOUNG", first="2024-01-20", seed=3)
    ended = made_up_bars(30, symbol="ENDED", first="2023-06-01", seed=4)
    bars = pd.concat([daily, paused, young, ended], ignore_index=True)
    fill(lake, bars)
    return bars


def test_every_symbol_of_the_months_comes_with_the_history_it_needs(lake: Lake, uneven: pd.DataFrame) -> None:
    config = FeatureConfig(("sma_20", "momentum_10"))
    read = lake.read_with_history(MARKET_DATA, ["2024-01"], config.lookback - 1, CLOSED_BAR_SCHEMA)
    wanted = month_of(read["time"]) == "2024-01"
    assert set(read[wanted]["symbol"]) == {"DAILY", "PAUSED", "YOUNG"}
    assert (read[~wanted].groupby("symbol").size() >= config.lookback - 1)[["DAILY", "PAUSED"]].all()
    key = ["symbol", "time"]
    whole = uneven.join(feature_frame(uneven, config))
    part = read.join(feature_frame(read, config))
    part = part[wanted].sort_values(key, ignore_index=True)
    whole = whole[month_of(whole["time"]) == "2024-01"].sort_values(key, ignore_index=True)
    columns = [*key, *config.features]
    pd.testing.assert_frame_equal(part[columns], whole[columns], check_exact=True)


def test_no_file_is_read_that_is_not_needed(lake: Lake, uneven: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = Lake.read

    def read(self: Lake, stage: str, months: list[str], *rest: object) -> pa.Table:
        asked.extend(months)
        return real(self, stage, months, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Lake, "read", read)
    lake.read_with_history(MARKET_DATA, ["2023-11", "2023-12"], 31, CLOSED_BAR_SCHEMA)
    assert asked == ["2023-11", "2023-12", "2023-10"]
    asked.clear()
    lake.read_with_history(MARKET_DATA, ["2023-12"], 31, CLOSED_BAR_SCHEMA)
    assert asked == ["2023-12", "2023-11", "2023-10"]


def test_history_of_the_first_month_and_of_no_rows_is_what_there_is(lake: Lake, uneven: pd.DataFrame) -> None:
    first = lake.read_with_history(MARKET_DATA, ["2023-01"], 49, CLOSED_BAR_SCHEMA)
    assert len(first) == 62 and set(month_of(first["time"])) == {"2023-01"}
    assert lake.read_with_history(MARKET_DATA, ["2030-01"], 49, CLOSED_BAR_SCHEMA).empty
    assert len(uneven) > len(first)


def test_history_is_enough_for_every_state_since_the_first_of_the_wanted_bars_arrived(lake: Lake) -> None:
    bars = made_up_bars(180, first="2023-09-01", symbol="A")
    months = month_of(bars["time"])
    # What lies between came late, and some of what lies before was revised: neither counts twice.
    recorded = close_time(bars["time"], "D1").mask(
        months.isin(["2023-11", "2023-12"]), pd.Timestamp("2024-06-01", tz="UTC")
    )
    versions = pd.concat([closed(bars).assign(recorded_at=recorded)] * 2, ignore_index=True)
    versions.loc[180:, "known_at"] += pd.Timedelta(days=40)
    versions.loc[180:, "recorded_at"] += pd.Timedelta(days=40)
    for month, part in versions.groupby(month_of(versions["time"])):
        table = pa.Table.from_pandas(part, schema=CLOSED_BAR_SCHEMA, preserve_index=False)
        lake.write(MARKET_DATA, str(month), table.replace_schema_metadata())
    for bars_before, first in ((20, "2023-10"), (31, "2023-10"), (32, "2023-09"), (500, "2023-09")):
        read = lake.read_with_history(MARKET_DATA, ["2024-01"], bars_before, CLOSED_BAR_SCHEMA)
        assert month_of(read["time"]).min() == first
        assert len(read) == 2 * ((months >= first) & (months <= "2024-01")).sum()
