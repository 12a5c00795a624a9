"""Backfills of exactly the months that changes reach lead to the bytes of a full rebuild, and the check can tell."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr

from mt5_crs_pipeline.adapters.files import temporary_prefix
from mt5_crs_pipeline.adapters.lake import EXTRACT, MARKET_DATA, TECHNICAL_FEATURES
from mt5_crs_pipeline.core.errors import InputError
from mt5_crs_pipeline.core.feature_rows import PIPELINE_FEATURES
from mt5_crs_pipeline.defs.assets.bars import market_data, market_data_parquet
from mt5_crs_pipeline.defs.assets.features import feast_online_store, feast_registry, technical_features
from mt5_crs_pipeline.defs.assets.model import training_set
from mt5_crs_pipeline.defs.automation import RUN_KEY_TAG, market_data_backfill, market_data_revision_sensor
from mt5_crs_pipeline.defs.resources import Stores
from mt5_crs_pipeline.defs.standing import every_change_has_arrived
from mt5_crs_pipeline.doctor import examine
from mt5_crs_pipeline.rebuild import Rebuild, rebuild_check
from mt5_crs_pipeline.settings import Settings
from tests.commands import hashes
from tests.defs.small_lake import execute, materialize, metadata, store, year_of_bars
from tests.receiver import receiving

CORRECT = """
    insert into market_data (symbol, timeframe, time, open, high, low, close, volume)
    select symbol, timeframe, time, open, high, low, low + (high - low) * %s, volume from market_data_latest
    where symbol = %s and time = %s
"""


class Automation:
    """The sensor and its job on one instance, as the daemon runs them: a look, then every run it asked for."""

    def __init__(self, stores: Stores, instance: dg.DagsterInstance) -> None:
        assets = [market_data, market_data_parquet, feast_registry, technical_features, feast_online_store]
        checks = [every_change_has_arrived]
        defs = dg.Definitions(assets, asset_checks=checks, jobs=[market_data_backfill], resources={"stores": stores})
        self.job = defs.resolve_job_def(market_data_backfill.name)
        self.stores, self.instance, self.cursor = stores, instance, None

    def catch_up(self) -> list[dg.ExecuteInProcessResult]:
        """Look until nothing is asked for; return the runs."""
        made: list[dg.ExecuteInProcessResult] = []
        while True:
            context = dg.build_sensor_context(self.instance, self.cursor, resources={"stores": self.stores})
            tick = market_data_revision_sensor.evaluate_tick(context)
            self.cursor = tick.cursor
            if not tick.run_requests:
                return made
            for request in tick.run_requests:
                tags = {**request.tags, RUN_KEY_TAG: str(request.run_key)}
                made.append(self.job.execute_in_process(instance=self.instance, tags=tags))


@pytest.fixture
def automation(settings: Settings) -> Iterator[Automation]:
    bars = year_of_bars()
    # One symbol's first half comes late.
    store(settings, bars[(bars["symbol"] == "AAPL") | (bars["time"].dt.month > 6)])
    with dg.DagsterInstance.ephemeral() as instance:
        yield Automation(Stores(settings), instance)


def correct(settings: Settings, seed: int, count: int) -> None:
    for number, bar in enumerate(year_of_bars().sample(count, random_state=seed).itertuples()):
        execute(settings, CORRECT, (number + 1) / (count + 2), bar.symbol, bar.time)


def test_late_and_corrected_bars_lead_to_what_a_full_rebuild_makes(automation: Automation, settings: Settings) -> None:
    automation.catch_up()
    for seed in range(2):
        correct(settings, seed, 5)
        assert all(run.success for run in automation.catch_up())
    late = year_of_bars().query("symbol == 'IBM' and time.dt.month <= 6")
    assert store(settings, late)["inserted"] == len(late)
    automation.catch_up()
    assert rebuild_check(settings) == Rebuild(equal=36, waiting=(), different=())


def test_one_corrected_bar_recomputes_its_months_alone_and_says_how_many_rows(
    automation: Automation, settings: Settings
) -> None:
    automation.catch_up()
    first = metadata(materialize(automation.stores, [training_set]), "training_set")
    changes = ("rows_added", "rows_changed", "rows_gone")
    assert [first[name] for name in changes] == [first["dagster/row_count"], 0, 0]
    before = hashes(settings.lake)
    time = year_of_bars().query("symbol == 'AAPL'")["time"].sort_values().iloc[125]
    execute(settings, CORRECT, 0.4, "AAPL", time)
    (run,) = automation.catch_up()
    # What the table's primary key orders by, the declared memory reaches: this bar and the lookback - 1 after it.
    changed = {name for name, sha in hashes(settings.lake).items() if before.get(name) != sha}
    months = sorted({name.split("/")[-1][:7] for name in changed if TECHNICAL_FEATURES in name})
    assert run.dagster_run.tags["dagster/asset_partition_range_start"] == months[0] == f"{time:%Y-%m}"
    assert run.dagster_run.tags["dagster/asset_partition_range_end"] == months[-1]
    assert metadata(run, "market_data_parquet")["rows_added"] == 1
    # Of the months that are only reached no bar is read again.
    stored = automation.stores.lake.row_count(EXTRACT, months[0])
    assert metadata(run, "market_data")["dagster/row_count"] == stored and len(months) > 1
    assert metadata(run, "technical_features")["rows_added"] == PIPELINE_FEATURES.lookback
    assert metadata(run, "technical_features")["dagster/row_count"] > PIPELINE_FEATURES.lookback
    # What a row was trained on stays as it was known at its close; its label, and the one before, read the new close.
    again = metadata(materialize(automation.stores, [training_set]), "training_set")
    assert {name: again[name] for name in changes} == {"rows_added": 0, "rows_changed": 2, "rows_gone": 0}


def test_a_month_that_is_only_reached_is_read_where_the_lake_has_lost_it(
    automation: Automation, settings: Settings
) -> None:
    automation.catch_up()
    lake, before = automation.stores.lake, hashes(settings.lake)
    lake.file(EXTRACT, "2012-04").unlink()
    lake.file(MARKET_DATA, "2012-05").unlink()
    time = year_of_bars().query("symbol == 'AAPL' and time.dt.month == 3")["time"].max()
    execute(settings, CORRECT, 0.4, "AAPL", time)
    automation.catch_up()
    assert hashes(settings.lake).keys() == before.keys()
    assert rebuild_check(settings) == Rebuild(equal=36, waiting=(), different=())


def test_the_check_tells_a_month_that_waits_from_one_that_is_wrong(automation: Automation, settings: Settings) -> None:
    automation.catch_up()
    lake = automation.stores.lake
    table = pq.read_table(lake.file(TECHNICAL_FEATURES, "2012-03"))
    at = table.schema.get_field_index("rsi_14")
    nudged = pa.array(np.nextafter(table.column(at).to_numpy(), np.inf), pa.float64())
    lake.write(TECHNICAL_FEATURES, "2012-03", table.set_column(at, table.schema.field(at), nudged))
    found = rebuild_check(settings)
    assert found == Rebuild(equal=35, waiting=(), different=("technical_features/2012-03",))

    execute(settings, CORRECT, 0.4, "AAPL", year_of_bars().query("symbol == 'AAPL'")["time"].max())
    found = rebuild_check(settings)
    assert found.different == ("technical_features/2012-03",)
    assert found.waiting == ("extract/2012-12", "market_data/2012-12", "technical_features/2012-12")
    (finding,) = (one for one in examine(settings, rebuild=True) if one["what"] == "rebuild")
    assert not finding["ok"]
    assert "1 files (technical_features/2012-03) are not what the bars give: delete them" in finding["found"]


def test_a_check_tells_nobody_and_what_is_left_of_a_killed_one_is_known_as_such(
    automation: Automation, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    automation.catch_up()
    left: list[str] = []
    materialize = dg.materialize

    def kept(*assets: Any, **arguments: Any) -> Any:
        result = materialize(*assets, **arguments)
        arguments["resources"]["stores"].alert("outage", "an outage", "of AAPL")
        left.extend(path.name for path in (settings.home / "lake").iterdir())
        return result

    monkeypatch.setattr(dg, "materialize", kept)
    with receiving() as receiver:
        assert not rebuild_check(settings.model_copy(update={"alert_urls": SecretStr(receiver.url)})).different
    assert sorted(name.startswith(temporary_prefix()) for name in left) == [False, True]
    assert receiver.titles() == []


def test_without_bars_there_is_nothing_to_rebuild(settings: Settings) -> None:
    with pytest.raises(InputError, match="no D1 bars are stored"):
        rebuild_check(settings)
