"""A month that stays behind the table is reported, one that has just changed is not."""

from datetime import timedelta

import dagster as dg
import pytest

from mt5_crs_pipeline.adapters.lake import EXTRACT
from mt5_crs_pipeline.defs import standing
from mt5_crs_pipeline.defs.assets.bars import market_data
from mt5_crs_pipeline.defs.resources import Stores
from mt5_crs_pipeline.settings import Settings
from tests.defs.small_lake import execute, materialize, store, year_of_bars

CORRECT = """
    insert into market_data (symbol, timeframe, time, open, high, low, close, volume)
    select symbol, timeframe, time, open, high, low, low, volume from market_data_latest
    where symbol = 'AAPL' and time >= '2012-06-10' and time < '2012-06-14'
"""


def look(stores: Stores) -> dg.AssetCheckResult:
    result = standing.every_change_has_arrived(stores=stores)
    assert isinstance(result, dg.AssetCheckResult)
    return result


def said(result: dg.AssetCheckResult) -> dict[str, object]:
    return {name: value.value for name, value in result.metadata.items()}


def test_a_month_that_stays_behind_is_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    store(settings, year_of_bars())
    stores = Stores(settings)
    assert look(stores).passed  # everything has only just arrived
    monkeypatch.setattr(standing, "PATIENCE", timedelta(0))
    assert said(look(stores)) == {
        "months in the table": 12,
        "months behind": 12,
        "revisions missing": len(year_of_bars()),
        "first months behind": ", ".join(f"2012-{month:02d}" for month in range(1, 13)),
    }
    materialize(stores, [market_data])
    assert look(stores).passed
    execute(settings, CORRECT)
    result = look(stores)
    assert not result.passed and said(result)["first months behind"] == "2012-06"
    assert said(result)["revisions missing"] == 3
    materialize(stores, [market_data], "2012-06", "2012-06")
    assert look(stores).passed
    stores.lake.file(EXTRACT, "2012-06").write_bytes(b"damaged")
    assert said(look(stores))["first months behind"] == "2012-06"


def test_other_symbols_timeframes_and_months_before_the_first_do_not_count(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standing, "PATIENCE", timedelta(0))
    bars = year_of_bars()
    store(settings, bars[bars["symbol"] == "IBM"])
    execute(
        settings,
        "insert into market_data (symbol, timeframe, time, open, high, low, close, volume) values"
        " ('IBM', 'H1', '2012-01-03', 1, 1, 1, 1, 1), ('IBM', 'D1', '1999-01-04', 1, 1, 1, 1, 1)",
    )
    stores = Stores(settings)
    materialize(stores, [market_data])
    assert look(stores).passed
    assert look(Stores(settings.model_copy(update={"symbols": ("AAPL",)}))).passed
