"""Every asset for real: a real database, a real lake, a real Dagster instance."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
from pydantic import SecretStr

from mt5_crs_pipeline.adapters import feature_parity, promotion
from mt5_crs_pipeline.adapters.feature_parity import StoredMonths, parity_of_lake
from mt5_crs_pipeline.adapters.lake import MARKET_DATA, Lake
from mt5_crs_pipeline.core.backfill import months_between
from mt5_crs_pipeline.core.feature_rows import PIPELINE_FEATURES
from mt5_crs_pipeline.core.features import get_feature_names
from mt5_crs_pipeline.core.model import PREDICTION_COLUMNS
from mt5_crs_pipeline.defs import steps
from mt5_crs_pipeline.defs.assets.bars import market_data, market_data_parquet
from mt5_crs_pipeline.defs.assets.features import feast_online_store, feast_registry, technical_features
from mt5_crs_pipeline.defs.assets.model import (
    champion_model,
    current_version,
    model_evaluation,
    noise_floor,
    training_set,
    xgboost_model,
)
from mt5_crs_pipeline.defs.checks import BARS_CHECK
from mt5_crs_pipeline.defs.resources import Stores
from mt5_crs_pipeline.settings import Settings
from tests.adapters.small_model import card, model, planted_predictions, predictions
from tests.commands import hashes
from tests.conftest import REDIS_PASSWORD
from tests.defs.small_lake import FIRST, LAST, SYMBOLS, execute, materialize, metadata, store, year_of_bars
from tests.receiver import receiving

BARS = [market_data, market_data_parquet]
FEATURES = [*BARS, feast_registry, technical_features]
ALL_FEATURES = [*FEATURES, feast_online_store]
MODEL = [training_set, xgboost_model, noise_floor, model_evaluation, champion_model]
LOOKBACK = PIPELINE_FEATURES.lookback


@pytest.fixture
def stores(settings: Settings) -> Stores:
    assert store(settings, year_of_bars())["inserted"] == len(year_of_bars())
    return Stores(settings)


def insert(settings: Settings, time: str, prices: tuple[float, float, float, float], symbol: str = "AAPL") -> None:
    """Insert a bar as a program does that knows nothing of revisions."""
    sql = "insert into market_data (symbol, timeframe, time, open, high, low, close, volume) values"
    execute(settings, f"{sql} (%s, 'D1', %s, %s, %s, %s, %s, 1000)", symbol, time, *prices)


def bars_of(symbol: str, start: str, end: str) -> pd.DataFrame:
    bars = year_of_bars()
    inside = (bars["time"] >= pd.Timestamp(start, tz="UTC")) & (bars["time"] < pd.Timestamp(end, tz="UTC"))
    return bars[inside & (bars["symbol"] == symbol)].reset_index(drop=True)


def of(folder: Path, *stages: str) -> dict[str, tuple[int, str]]:
    """Time of the last change and hash of every file of `stages`."""
    return {
        f"{stage}/{name}": ((folder / stage / name).stat().st_mtime_ns, sha)
        for stage in stages
        for name, sha in hashes(folder / stage).items()
    }


def changed(before: dict[str, tuple[int, str]], after: dict[str, tuple[int, str]]) -> set[str]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def test_bars_become_a_judged_model_and_a_second_run_touches_no_file(stores: Stores, settings: Settings) -> None:
    result = materialize(stores, [*ALL_FEATURES, *MODEL])
    rows, bars = len(year_of_bars()), year_of_bars()

    exported = pd.read_parquet(stores.lake.stage_folder(MARKET_DATA))
    merged = exported.merge(bars, on=["symbol", "time"], suffixes=("", "_in"))
    assert len(merged) == len(exported) == rows
    assert (merged["close"] == merged["close_in"]).all() and (merged["volume"] == merged["volume_in"]).all()
    assert metadata(result, "market_data")["dagster/row_count"] == rows
    assert metadata(result, "market_data")["symbols"] == list(SYMBOLS)
    assert metadata(result, "market_data_parquet")["quarantined"] == 0
    assert metadata(result, "technical_features")["warm_up_rows"] == (LOOKBACK - 1) * len(SYMBOLS)

    newest = bars.groupby("symbol")["time"].max() + pd.Timedelta(days=1)
    assert metadata(result, "feast_online_store")["newest"] == [f"{s} {t.isoformat()}" for s, t in newest.items()]
    with stores.feast() as feast:
        online = feast.online_rows(list(SYMBOLS)).set_index("symbol")
    stored = pd.read_parquet(stores.lake.stage_folder("technical_features")).set_index("symbol")
    for symbol in SYMBOLS:
        last = stored.loc[symbol].sort_values("event_timestamp").iloc[-1]
        names = get_feature_names(PIPELINE_FEATURES)
        assert online.loc[symbol, names].astype(float).tolist() == last[names].astype(float).tolist()

    # Of each symbol's bars the warm-up has no features, and the newest bar no label.
    assert metadata(result, "training_set")["dagster/row_count"] == rows - LOOKBACK * len(SYMBOLS)
    version = current_version(stores)
    verdict = stores.models.verdict(version)
    assert verdict is not None
    assert metadata(result, "model_evaluation")["verdict"] == verdict["reason"]
    assert verdict["reason"] in (settings.reports / f"{version}.html").read_text("utf-8")
    worth = stores.models.load(version).metadata["permutation_importance"]
    assert list(worth) == get_feature_names(PIPELINE_FEATURES) and any(worth.values())
    if not verdict["promoted"]:  # real bars: an edge on one year of days would be news
        assert metadata(result, "champion_model")["champion"].startswith("none yet")
        assert stores.models.champion() is None
    passed = {check.check_name for check in result.get_asset_check_evaluations() if check.passed}
    assert passed == {
        "bars_are_valid_and_unique",
        "bars_follow_the_market",
        "features_are_complete_against_bars",
        "features_equal_a_fresh_computation",
        "online_features_equal_a_fresh_computation",
        "training_rows_are_labelled_and_past",
        "training_features_were_known_at_the_close",
    }

    before = {path: path.stat().st_mtime_ns for path in settings.home.rglob("*") if path.is_file()}
    again = materialize(stores, [*ALL_FEATURES, *MODEL])
    assert {path: path.stat().st_mtime_ns for path in settings.home.rglob("*") if path.is_file()} == before
    assert metadata(again, "market_data_parquet")["files_changed"] == 0


def test_months_that_are_only_reached_by_a_change_keep_their_bars(stores: Stores) -> None:
    materialize(stores, FEATURES)
    run = materialize(stores, FEATURES, changed=[])
    for name in ("market_data", "market_data_parquet"):
        assert (metadata(run, name)["dagster/row_count"], metadata(run, name)["files_changed"]) == (0, 0)
    assert metadata(run, "technical_features")["dagster/row_count"] == len(year_of_bars())
    assert all(check.passed for check in run.get_asset_check_evaluations())


def test_a_backfill_of_some_months_draws_nothing_in_place_of_the_pictures_of_all(stores: Stores) -> None:
    year, may = months_between(FIRST, LAST), ["2012-05"]
    for months, changed, drawn in ((year, year, True), (may, may, False), (may, None, True)):
        run = materialize(stores, BARS, months[0], months[-1], changed=changed)
        (check,) = [one for one in run.get_asset_check_evaluations() if one.check_name == BARS_CHECK.name]
        assert check.passed and {"closes", "coverage"}.issubset(check.metadata) == drawn


def test_months_go_online_in_any_order_and_the_newest_row_stays(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    materialize(stores, FEATURES)
    may, june, year = (
        metadata(materialize(stores, [feast_online_store], first, last), "feast_online_store")
        for first, last in (("2012-05", "2012-05"), ("2012-06", "2012-06"), (FIRST, LAST))
    )
    for told, until in ((may, "2012-06-01"), (june, "2012-07-01"), (year, "2013-01-01")):
        expected = {
            symbol: bars_of(symbol, "2012-01-01", until)["time"].max() + pd.Timedelta(days=1) for symbol in SYMBOLS
        }
        assert told["newest"] == [f"{symbol} {time.isoformat()}" for symbol, time in sorted(expected.items())]
        assert (told["dagster/row_count"], told["left_alone"]) == (len(SYMBOLS), 0)
    monkeypatch.setattr(feature_parity, "OTHERS_SERVED", 2)
    # Of what is left alone in the last month a sample is compared; in earlier ones nothing is to be served.
    for month, compared in ((LAST, 2), ("2012-05", 0)):
        run = materialize(stores, [feast_online_store], month, month)
        (served,) = run.get_asset_check_evaluations()
        assert served.passed and served.metadata["rows"].value == compared
        again = metadata(run, "feast_online_store")
        assert (again["dagster/row_count"], again["left_alone"], again["newest"]) == (0, len(SYMBOLS), [])
    nothing = metadata(materialize(stores, [feast_online_store], "2001-01", "2001-01"), "feast_online_store")
    assert (nothing["dagster/row_count"], nothing["left_alone"]) == (0, 0)


def test_the_newest_rows_are_proved_where_the_symbols_do_not_go_on(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    materialize(stores, FEATURES)
    monkeypatch.setattr(feature_parity, "OLDER_ROWS", 0)
    for month, compared in ((LAST, len(SYMBOLS)), ("2012-05", 0)):
        assert parity_of_lake(StoredMonths(stores.lake, [month])).rows == compared


def test_with_a_redis_url_the_online_rows_are_there_and_the_password_is_nowhere(
    stores: Stores, settings: Settings, redis_url: str
) -> None:
    import redis

    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
        with_redis = Stores(settings.model_copy(update={"redis_url": SecretStr(redis_url)}))
        result = materialize(with_redis, ALL_FEATURES)
        assert client.dbsize() == metadata(result, "feast_online_store")["dagster/row_count"] == len(SYMBOLS)
    assert execute(settings, "select to_regclass('feast.mt5_crs_d1_technical_features')") == [(None,)]
    told = "\n".join(str(event) for event in result.all_events)
    assert "feast_online_store" in told and REDIS_PASSWORD not in told and redis_url not in told


def test_a_redis_that_does_not_answer_fails_its_asset_in_one_line(
    stores: Stores, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The client tries several times itself, for seconds.
    monkeypatch.setattr(steps, "RETRIES", 0)
    nobody = Stores(settings.model_copy(update={"redis_url": SecretStr("redis://:t0p-s3cret@127.0.0.1:1")}))
    result = materialize(nobody, ALL_FEATURES, succeeds=False)
    (failure,) = result.filter_events(lambda event: event.is_step_failure)
    assert failure.step_key == "feast_online_store"
    assert failure.step_failure_data.error.cause.cls_name == "DatabaseUnavailableError"
    assert "t0p-s3cret" not in "\n".join(str(event) for event in result.all_events)


def test_every_month_is_told_its_own_rows(stores: Stores) -> None:
    result = materialize(stores, BARS, "2012-02", "2012-03")
    told = {e.partition: e.metadata for e in result.asset_materializations_for_node("market_data_parquet")}
    per_month = year_of_bars().groupby(year_of_bars()["time"].dt.strftime("%Y-%m")).size()
    assert {month: values["dagster/partition_row_count"].value for month, values in told.items()} == {
        "2012-02": per_month["2012-02"],
        "2012-03": per_month["2012-03"],
    }
    assert stores.lake.months(MARKET_DATA) == ["2012-02", "2012-03"]


def test_bad_rows_by_plain_sql_go_to_quarantine_once_with_their_reasons(stores: Stores, settings: Settings) -> None:
    bad = {"2012-06-09": (10, 9, 8, 8.5), "2012-06-16": (10, float("nan"), 8, 9), "2012-06-23": (-1, 2, -3, 1)}
    for saturday, prices in bad.items():
        insert(settings, saturday, prices)
    for _ in range(2):
        told = metadata(materialize(stores, BARS), "market_data_parquet")
        assert told["quarantined"] == sum(told["reasons"].values()) == len(bad)
        assert told["dagster/row_count"] == len(year_of_bars())
    kept = execute(settings, "select symbol, time::date::text, source from market_data_quarantine order by time")
    assert kept == [("AAPL", saturday, "table market_data") for saturday in bad]
    reasons = {reason for (reason,) in execute(settings, "select reason from market_data_quarantine")}
    assert reasons == set(told["reasons"]) and len(reasons) == len(bad)
    exported = pd.read_parquet(stores.lake.stage_folder(MARKET_DATA))
    assert not set(exported["time"].dt.strftime("%Y-%m-%d")) & set(bad)


def test_a_bar_that_is_still_forming_waits_without_being_quarantined(stores: Stores, settings: Settings) -> None:
    today = pd.Timestamp.now(tz="UTC").normalize()
    insert(settings, today.isoformat(), (10, 11, 9, 10))
    month = f"{today:%Y-%m}"
    told = metadata(materialize(stores, BARS, month, month), "market_data_parquet")
    assert (told["still_forming"], told["quarantined"], told["dagster/row_count"]) == (1, 0, 0)
    assert execute(settings, "select * from market_data_quarantine") == []
    assert not stores.lake.file(MARKET_DATA, month).exists()


def test_a_late_bar_changes_its_own_month_and_those_its_features_reach(stores: Stores, settings: Settings) -> None:
    materialize(stores, FEATURES)
    before = of(stores.lake.folder, "extract", "market_data", "technical_features")
    insert(settings, "2012-05-05", (80, 81, 79, 80.5))  # a Saturday: nothing was there
    materialize(stores, FEATURES)
    following = bars_of("AAPL", "2012-05-06", "2013-01-01")["time"]
    reached = {f"{time:%Y-%m}" for time in following.iloc[: LOOKBACK - 1]} | {"2012-05"}
    assert 1 < len(reached) < 8
    assert changed(before, of(stores.lake.folder, "extract", "market_data", "technical_features")) == {
        "extract/2012-05.parquet",
        "market_data/2012-05.parquet",
        *(f"technical_features/{month}.parquet" for month in reached),
    }


def test_a_correction_is_exported_beside_the_version_before_it(stores: Stores, settings: Settings) -> None:
    materialize(stores, BARS)
    (old,) = bars_of("AAPL", "2012-05-15", "2012-05-16").to_dict("records")
    insert(settings, "2012-05-15", (old["open"], old["high"], old["low"], old["low"]))
    told = materialize(stores, BARS, "2012-05", "2012-05")
    month = pd.read_parquet(stores.lake.file(MARKET_DATA, "2012-05"))
    first, second = month[(month["symbol"] == "AAPL") & (month["time"] == old["time"])].to_dict("records")
    assert (first["close"], second["close"]) == (old["close"], old["low"])
    assert first["known_at"] == first["event_timestamp"] < first["recorded_at"] < second["recorded_at"]
    assert second["recorded_at"] <= second["known_at"]
    for asset in ("market_data", "market_data_parquet"):
        assert metadata(told, asset)["dagster/row_count"] == metadata(told, asset)["bars"] + 1 == len(month)
    versions = execute(
        settings, "select close from market_data where symbol = 'AAPL' and time = '2012-05-15' order by known_at"
    )
    assert versions == [(old["close"],), (old["low"],)]


def test_months_computed_side_by_side_equal_months_computed_together(stores: Stores, settings: Settings) -> None:
    materialize(stores, FEATURES)
    together = hashes(stores.lake.folder)
    apart = Stores(settings.model_copy(update={"home": settings.home.parent / "apart"}))
    materialize(apart, BARS)

    def compute(month: str) -> None:
        materialize(apart, [technical_features], month, month)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(compute, reversed(stores.lake.months(MARKET_DATA))))
    assert hashes(apart.lake.folder) == together


def test_two_identical_backfills_at_once_leave_what_one_leaves(stores: Stores, settings: Settings) -> None:
    alone = Stores(settings.model_copy(update={"home": settings.home.parent / "alone"}))
    materialize(alone, ALL_FEATURES)
    with ThreadPoolExecutor(2) as pool:
        for run in [pool.submit(materialize, Stores(settings), ALL_FEATURES) for _ in range(2)]:
            assert metadata(run.result(), "feast_online_store")["dagster/row_count"] in (0, len(SYMBOLS))
    assert hashes(settings.lake) == hashes(alone.lake.folder)


def test_a_month_that_was_left_out_is_named_before_features_pass_over_it(stores: Stores, settings: Settings) -> None:
    materialize(stores, FEATURES, "2012-01", "2012-06")
    whole = hashes(stores.lake.folder)
    gappy = Stores(settings.model_copy(update={"home": settings.home.parent / "gappy"}))
    materialize(gappy, FEATURES, "2012-01", "2012-02")
    result = materialize(gappy, FEATURES, "2012-05", "2012-06", succeeds=False)
    (failure,) = result.filter_events(lambda event: event.is_step_failure)
    assert failure.step_key == "technical_features"
    assert failure.step_failure_data.error.cause.message.strip().endswith(
        "features of 2012-06 need the bars of 2012-03 to 2012-04, which are in market_data and not in the lake:"
        " materialize 2012-03 to 2012-06 in one run, or let all begin later with MT5_CRS_START"
    )
    materialize(gappy, FEATURES, "2012-03", "2012-06")
    assert hashes(gappy.lake.folder) == whole


def test_the_latest_month_does_not_come_first_with_features_that_lack_their_history(
    stores: Stores, settings: Settings
) -> None:
    result = materialize(stores, FEATURES, "2012-06", "2012-06", succeeds=False)
    (failure,) = result.filter_events(lambda event: event.is_step_failure)
    assert "features of 2012-06 need the bars of 2012-01 to 2012-05" in failure.step_failure_data.error.cause.message
    assert not stores.lake.months("technical_features")


def test_only_the_chosen_symbols_are_read(stores: Stores, settings: Settings) -> None:
    only = Stores(settings.model_copy(update={"symbols": ("IBM",)}))
    assert metadata(materialize(only, BARS), "market_data")["symbols"] == ["IBM"]


def test_a_failed_check_stops_everything_downstream(stores: Stores) -> None:
    class Forgetful(Lake):
        """Stands for a disk or a bug that loses the last row of each file."""

        def write(self, stage: str, month: str, table: object) -> bool:
            return super().write(stage, month, table[:-1] if stage == "technical_features" else table)  # type: ignore[index]

    stores.lake = Forgetful(stores.lake.folder)
    result = materialize(stores, [*ALL_FEATURES, *MODEL], succeeds=False)
    (failed,) = (check for check in result.get_asset_check_evaluations() if not check.passed)
    assert failed.check_name == "features_are_complete_against_bars"
    assert failed.metadata["bars without features"].value == 12
    done = {event.asset_key.to_user_string() for event in result.get_asset_materialization_events() if event.asset_key}
    assert done == {"market_data", "market_data_parquet", "feast_registry", "technical_features"}
    assert not stores.lake.training_set.exists()


def test_too_short_a_history_is_refused_with_both_numbers(settings: Settings) -> None:
    short = bars_of("AAPL", "2012-01-01", "2012-01-20")
    store(settings, short)
    result = materialize(Stores(settings), [*ALL_FEATURES, training_set], succeeds=False)
    (failure,) = result.filter_events(lambda event: event.is_step_failure)
    cause = failure.step_failure_data.error.cause
    assert cause.cls_name == "InputError"
    assert f"needs {LOOKBACK} bars" in cause.message and f"has {len(short)} bars" in cause.message


def test_too_few_bar_times_to_walk_forward_are_refused_with_both_numbers(settings: Settings) -> None:
    store(settings, bars_of("AAPL", "2012-01-01", "2012-06-30"))
    result = materialize(Stores(settings), [*ALL_FEATURES, training_set, xgboost_model], last="2012-06", succeeds=False)
    (failure,) = result.filter_events(lambda event: event.is_step_failure)
    cause = failure.step_failure_data.error.cause
    assert (failure.step_key, cause.cls_name) == ("xgboost_model", "InputError")
    rows = metadata(result, "training_set")["dagster/row_count"]
    assert 0 < rows < 100 and f"{rows} bar times are too few: the first 100 are learnt from" in cause.message


@pytest.mark.parametrize("edge", [True, False], ids=["planted edge", "no edge"])
def test_a_model_is_promoted_on_evidence_only_and_the_verdict_is_kept_either_way(
    stores: Stores, settings: Settings, edge: bool
) -> None:
    materialize(stores, [*ALL_FEATURES, training_set])
    champion = stores.models.save(card("20110101-champion0000"), model(), predictions())
    stores.models.promote(champion, "2011-01-01T00:00:00+00:00")
    version = current_version(stores)
    rows = pd.read_parquet(stores.lake.training_set)
    # Right on four of five rows, or always the same answer.
    wrong = pd.Series(range(len(rows))) % 5 == 0
    probability = (rows["target"] - wrong).abs() * 0.2 + 0.4 if edge else pd.Series(0.6, index=rows.index)
    stores.models.save(card(version), model(), rows.assign(probability=probability)[list(PREDICTION_COLUMNS)])

    with receiving() as receiver:
        alerting = Stores(settings.model_copy(update={"alert_urls": SecretStr(receiver.url)}))
        told = metadata(materialize(alerting, [model_evaluation, champion_model]), "champion_model")
        materialize(alerting, [champion_model])
    assert receiver.titles() == [f"{version} is the champion"] * edge
    pointer = stores.models.champion()
    assert pointer is not None
    assert pointer["model_version"] == told["champion"] == (version if edge else champion.version)
    assert (told["promoted"], told["verdict kind"]) == (edge, "promoted" if edge else "not enough data")
    assert execute(settings, "select model_version, promoted from model_verdict") == [(version, edge)]
    changes = [(champion.version, "promoted"), *[(version, "promoted")] * edge]
    assert execute(settings, "select model_version, how from model_champion_change order by number") == changes
    kept = json.loads((stores.models.folder / "verdicts" / f"{version}.json").read_text())
    assert (kept["promoted"], kept["model_version"]) == (edge, version)
    assert kept["reason"].startswith("An edge was shown" if edge else "Not enough data: ")
    assert kept["kind"] == ("promoted" if edge else "not enough data")
    assert kept["evidence"]["against_chance"]["rows"] == len(rows)


def test_two_runs_of_champion_model_at_once_move_the_champion_once(stores: Stores, settings: Settings) -> None:
    materialize(stores, [*ALL_FEATURES, training_set])
    version = current_version(stores)
    stores.models.save(card(version), model(), planted_predictions())
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(materialize, Stores(settings), [champion_model]) for _ in range(2)]
    assert [metadata(run.result(), "champion_model")["champion"] for run in runs] == [version, version]
    assert execute(settings, "select model_version, how from model_champion_change") == [(version, "promoted")]
    assert execute(settings, "select promoted from model_verdict") == [(True,)]


@pytest.mark.parametrize("after", ["record_verdict", "record_champion_change"])
def test_a_server_that_drops_all_connections_during_a_promotion_ends_with_one_champion_and_one_verdict(
    stores: Stores, settings: Settings, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    materialize(stores, [*ALL_FEATURES, training_set])
    version = current_version(stores)
    stores.models.save(card(version), model(), planted_predictions())
    record, dropped = getattr(promotion, after), []

    def and_drop(*arguments: object) -> None:
        record(*arguments)
        if not dropped:
            sql = "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid()"
            dropped.extend(execute(settings, f"{sql} and application_name = 'mt5_crs'"))

    monkeypatch.setattr(promotion, after, and_drop)
    monkeypatch.setattr(steps, "_FIRST_PAUSE_S", 0.01)
    told = metadata(materialize(stores, [champion_model]), "champion_model")
    assert dropped and (told["champion"], told["promoted"]) == (version, True)
    assert execute(settings, "select model_version, how from model_champion_change") == [(version, "promoted")]
    assert execute(settings, "select model_version, promoted from model_verdict") == [(version, True)]


def test_the_ends_of_the_year_are_first_and_last(stores: Stores) -> None:
    told = metadata(materialize(stores, [market_data]), "market_data")
    assert told["first"][:7] == FIRST and told["last"][:7] == LAST
    assert told["first"] == year_of_bars()["time"].min().isoformat()
    empty = metadata(materialize(stores, [market_data], "2001-01", "2001-02"), "market_data")
    assert (empty["dagster/row_count"], empty["first"]) == (0, "none")
