"""What was built as of an instant is built again, byte for byte, whatever arrived since."""

import pandas as pd
import pytest

from mt5_crs_pipeline.adapters.lake import MARKET_DATA, TECHNICAL_FEATURES
from mt5_crs_pipeline.core.bars import latest_revisions
from mt5_crs_pipeline.core.feature_rows import PIPELINE_FEATURES, feature_schema
from mt5_crs_pipeline.core.features import get_feature_names
from mt5_crs_pipeline.defs.assets.bars import market_data, market_data_parquet
from mt5_crs_pipeline.defs.assets.features import feast_online_store, feast_registry, technical_features
from mt5_crs_pipeline.defs.assets.model import training_set
from mt5_crs_pipeline.defs.resources import Stores
from mt5_crs_pipeline.settings import Settings
from tests.commands import hashes
from tests.core.samples import bits
from tests.defs.small_lake import execute, materialize, metadata, store, year_of_bars

ASSETS = [market_data, market_data_parquet, feast_registry, technical_features, feast_online_store]
FEATURES = ASSETS[:-1]
NAMES = get_feature_names(PIPELINE_FEATURES)
LOOKBACK = PIPELINE_FEATURES.lookback
VERSION = ["symbol", "time", "recorded_at"]
INSERT = "insert into market_data (symbol, timeframe, time, open, high, low, close, volume)"


def between(bars: pd.DataFrame, start: str, end: str) -> pd.DataFrame:
    inside = (bars["time"] >= pd.Timestamp(start, tz="UTC")) & (bars["time"] < pd.Timestamp(end, tz="UTC"))
    return bars[inside].reset_index(drop=True)


def with_other_closes(bars: pd.DataFrame) -> pd.DataFrame:
    return bars.assign(close=bars["low"], adjusted_close=bars["adjusted_close"] * bars["low"] / bars["close"])


def feature_versions(stores: Stores) -> pd.DataFrame:
    months = stores.lake.months(TECHNICAL_FEATURES)
    return stores.lake.read(TECHNICAL_FEATURES, months, feature_schema()).to_pandas()


def trained_on(stores: Stores, as_of: str | None = None) -> tuple[bytes, dict[str, object]]:
    told = metadata(materialize(stores, [training_set], as_of=as_of), "training_set")
    # Which rows changed depends on the training set that was there before.
    of_rows = {name: value for name, value in told.items() if name not in ("rows_added", "rows_changed", "rows_gone")}
    return stores.lake.training_set.read_bytes(), of_rows


def test_a_training_set_as_of_an_instant_is_the_one_that_was_built_then(settings: Settings) -> None:
    year = year_of_bars()
    late = year[(year["symbol"] == "IBM") & year["time"].dt.strftime("%m-%d").isin(["08-14", "09-05", "09-06"])]
    half = between(year, "2012-02-15", "2012-10-15").merge(late[["symbol", "time"]], how="left", indicator=True)
    half = half[half.pop("_merge") == "left_only"]
    stores = Stores(settings)
    store(settings, half)
    materialize(stores, ASSETS)
    first, told = trained_on(stores)
    before = feature_versions(stores)
    as_of = str(told["as_of"])
    [(newest,)] = execute(settings, "select max(recorded_at) from market_data")
    assert pd.Timestamp(as_of) == newest

    # Corrections of old bars, late bars, older bars, new bars, and a correction of what was corrected already.
    store(settings, with_other_closes(between(half[half["symbol"] == "AAPL"], "2012-05-07", "2012-05-10")))
    store(settings, late)
    store(settings, between(year, "2012-01-01", "2012-02-15"))
    store(settings, between(year, "2012-10-15", "2013-01-01"))
    store(settings, between(half[half["symbol"] == "AAPL"], "2012-05-08", "2012-05-09"))
    (day,) = late["time"][:1]
    execute(settings, f"{INSERT} values ('IBM', 'D1', %s, 190, 191, 189, 190, 5)", day)
    materialize(stores, ASSETS)

    again, told_again = trained_on(stores, as_of)
    assert again == first
    assert told_again == told
    newer, told_newer = trained_on(stores)
    assert newer != first and told_newer["dagster/row_count"] > told["dagster/row_count"]  # type: ignore[operator]
    assert told_newer["data_fingerprint"] != told["data_fingerprint"]
    assert trained_on(stores, str(told_newer["as_of"]))[0] == newer
    # Between two arrivals nothing changes.
    assert trained_on(stores, (pd.Timestamp(as_of) + pd.Timedelta(microseconds=1)).isoformat())[0] == first

    after = feature_versions(stores)
    kept = after.merge(before[VERSION], on=VERSION)
    pd.testing.assert_frame_equal(kept.drop(columns=NAMES), before.drop(columns=NAMES))
    assert (bits(kept[NAMES]) == bits(before[NAMES])).all()


def test_history_that_came_after_a_correction_in_its_windows_is_not_trained_on_with_older_features(
    settings: Settings,
) -> None:
    year = year_of_bars()
    year = year[year["symbol"] == "IBM"]
    stores = Stores(settings)
    store(settings, between(year, "2012-01-01", "2012-07-02"))
    store(settings, with_other_closes(between(year, "2012-06-28", "2012-06-29")))
    store(settings, between(year, "2012-07-02", "2013-01-01"))
    materialize(stores, ASSETS)
    _, told = trained_on(stores)
    # Of the bars after the correction, those whose window holds it had no features at their close.
    after = (year["time"] >= pd.Timestamp("2012-07-02", tz="UTC")).sum()
    reached = LOOKBACK - 1 - (between(year, "2012-06-29", "2012-07-02")["time"].size)
    assert told["rows_left_out_as_known_later"] == min(reached, after - 1)


def test_a_correction_adds_versions_of_exactly_the_rows_it_reaches(settings: Settings) -> None:
    year = year_of_bars()
    stores = Stores(settings)
    store(settings, year)
    materialize(stores, FEATURES)
    before = feature_versions(stores)
    own = between(year[year["symbol"] == "AAPL"], "2012-04-02", "2013-01-01")
    store(settings, with_other_closes(own[:1]))
    materialize(stores, FEATURES)
    after = feature_versions(stores)
    added = after[after["recorded_at"] > before["recorded_at"].max()]
    assert added["symbol"].unique().tolist() == ["AAPL"]
    assert added["time"].tolist() == own["time"][:LOOKBACK].tolist()
    assert len(after) == len(before) + LOOKBACK
    assert (added["known_at"] >= added["recorded_at"]).all()
    kept = after.merge(before[VERSION], on=VERSION)
    assert (bits(kept[NAMES]) == bits(before[NAMES])).all()


def test_any_partition_run_again_gives_the_same_bytes(settings: Settings) -> None:
    year = year_of_bars()
    stores = Stores(settings)
    store(settings, between(year, "2012-02-15", "2012-11-01"))
    store(settings, with_other_closes(between(year, "2012-06-01", "2012-06-08")))
    store(settings, year)
    materialize(stores, FEATURES)
    together = hashes(stores.lake.folder)
    apart = Stores(settings.model_copy(update={"home": settings.home.parent / "apart"}))
    materialize(apart, FEATURES[:2])
    for month in ("2012-07", "2012-02", "2012-12", "2012-10", "2012-07"):
        materialize(apart, [technical_features], month, month)
    for name, sha in hashes(apart.lake.folder).items():
        assert sha == together[name], name


def test_what_was_recorded_while_a_bar_formed_is_one_version_known_at_its_close(settings: Settings) -> None:
    stores = Stores(settings)
    time = pd.Timestamp.now(tz="UTC").floor("min") - pd.Timedelta(minutes=5)
    minutes = Stores(settings.model_copy(update={"timeframe": "M1"}))
    # The clock of the database cannot be turned back, but a row may say when it was recorded.
    for close, seconds, known in ((1.1, 10, 60), (1.2, 30, 60.000001), (1.3, 50, 60.000002), (1.4, 130, 130.5)):
        with stores.database.url():
            execute(
                settings,
                f"{INSERT[:-1]}, known_at, recorded_at) values ('EURUSD', 'M1', %s, 1, 2, 0.5, %s, 7, %s, %s)",
                *(time, close, time + pd.Timedelta(seconds=known), time + pd.Timedelta(seconds=seconds)),
            )
    month = f"{time:%Y-%m}"
    told = metadata(materialize(minutes, FEATURES[:2], month, month), "market_data_parquet")
    assert (told["dagster/row_count"], told["bars"]) == (2, 1)
    kept = pd.read_parquet(minutes.lake.file(MARKET_DATA, month))
    closes = time + pd.Timedelta(minutes=1)
    assert kept["close"].tolist() == [1.3, 1.4]
    assert kept["known_at"].tolist() == [closes, time + pd.Timedelta(seconds=130.5)]
    assert kept["recorded_at"].tolist() == [closes, time + pd.Timedelta(seconds=130)]


def test_an_invalid_correction_is_quarantined_and_the_version_before_stays(settings: Settings) -> None:
    stores = Stores(settings)
    store(settings, year_of_bars())
    execute(settings, f"{INSERT} values ('IBM', 'D1', '2012-05-08', 190, 180, 189, 190, 5)")
    told = metadata(materialize(stores, FEATURES[:2]), "market_data_parquet")
    assert told["reasons"] == {"high_below_low": 1}
    assert told["dagster/row_count"] == told["bars"] == len(year_of_bars())
    month = latest_revisions(pd.read_parquet(stores.lake.file(MARKET_DATA, "2012-05")))
    (stayed,) = month.loc[(month["symbol"] == "IBM") & (month["time"] == "2012-05-08"), "close"]
    wanted = year_of_bars()
    assert stayed == wanted.loc[(wanted["symbol"] == "IBM") & (wanted["time"] == "2012-05-08"), "close"].item()


@pytest.mark.parametrize(
    ("as_of", "kind", "words"),
    [
        ("2026-01-31T18:00:00", "ConfigurationError", "is no instant"),
        ("yesterday", "ConfigurationError", "'yesterday' is no instant"),
        ("", "ConfigurationError", "is no instant"),
        ("0001-01-01T00:00:00+14:00", "ConfigurationError", "is no instant"),
        ("2012-01-01T00:00:00Z", "InputError", "no bars are in the lake as of 2012-01-01T00:00:00Z: the first was"),
    ],
)
def test_a_time_that_is_no_instant_or_before_everything_is_refused(
    settings: Settings, as_of: str, kind: str, words: str
) -> None:
    stores = Stores(settings)
    store(settings, year_of_bars()[:5])
    materialize(stores, FEATURES[:2])
    result = materialize(stores, [training_set], as_of=as_of, succeeds=False)
    (failure,) = result.filter_events(lambda event: event.is_step_failure)
    cause = failure.step_failure_data.error.cause
    assert cause.cls_name == kind and words in cause.message and cause.message.count("\n") <= 1
    assert not stores.lake.training_set.exists()
