"""The code location as Dagster and its users see it."""

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mt5_crs_pipeline.adapters.lake import EXTRACT, MARKET_DATA, TECHNICAL_FEATURES
from mt5_crs_pipeline.core.bars import BAR_SCHEMA, month_of
from mt5_crs_pipeline.core.features import FeatureConfig
from mt5_crs_pipeline.definitions import defs
from mt5_crs_pipeline.defs.assets.bars import market_data_parquet
from mt5_crs_pipeline.defs.assets.features import technical_features
from mt5_crs_pipeline.defs.partitions import MONTHS, range_tags
from mt5_crs_pipeline.defs.resources import Stores
from mt5_crs_pipeline.defs.timing import FRESHNESS
from mt5_crs_pipeline.settings import Settings
from tests.core.samples import random_bars

ROOT = Path(__file__).parents[1]
# Every asset with what it is made from, in the order of the data.
UPSTREAM = {
    "market_data": [],
    "market_data_parquet": ["market_data"],
    "feast_registry": ["market_data_parquet"],
    "technical_features": ["feast_registry", "market_data_parquet"],
    "feast_online_store": ["technical_features"],
    "training_set": ["feast_online_store"],
    "xgboost_model": ["training_set"],
    "noise_floor": ["xgboost_model"],
    "model_evaluation": ["noise_floor", "xgboost_model"],
    "champion_model": ["model_evaluation"],
    "live_predictions": ["champion_model"],
}
MONTHLY = ["market_data", "market_data_parquet", "technical_features", "feast_online_store"]
CHECKS = {
    "market_data_parquet": ["bars_are_valid_and_unique", "bars_follow_the_market"],
    "technical_features": ["features_are_complete_against_bars", "features_equal_a_fresh_computation"],
    "feast_online_store": ["online_features_equal_a_fresh_computation"],
    "training_set": ["training_rows_are_labelled_and_past", "training_features_were_known_at_the_close"],
}
KEYS = ["symbol", "timeframe", "time"]
VALUES = ["open", "high", "low", "close", "adjusted_close", "volume", "real_volume", "spread"]
FEATURES = list(FeatureConfig.scale_free().features)
COLUMNS = {
    "market_data": [*KEYS, *VALUES, "known_at", "recorded_at"],
    "market_data_parquet": [*KEYS, *VALUES, "known_at", "recorded_at", "event_timestamp"],
    "technical_features": ["symbol", "time", "event_timestamp", "known_at", "recorded_at", "is_complete", *FEATURES],
    "training_set": ["symbol", "event_timestamp", "label_time", "target", "forward_return", "spread_share", *FEATURES],
}


def asset(name: str) -> dg.AssetsDefinition:
    definition = defs.resolve_assets_def(name)
    assert isinstance(definition, dg.AssetsDefinition)
    return definition


def spec(name: str) -> dg.AssetSpec:
    return asset(name).get_asset_spec()


def column_schema(name: str) -> dg.TableSchema:
    schema = spec(name).metadata["dagster/column_schema"]
    assert isinstance(schema, dg.TableSchema)
    return schema


def python(code: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout


def test_the_assets_are_those_of_the_contract_and_flow_one_way() -> None:
    graph = defs.resolve_asset_graph()
    found = {
        key.to_user_string(): sorted(parent.to_user_string() for parent in graph.get(key).parent_keys)
        for key in graph.get_all_asset_keys()
    }
    assert found == UPSTREAM


@pytest.mark.parametrize("name", UPSTREAM)
def test_an_asset_says_what_it_is_and_whose(name: str) -> None:
    described = spec(name)
    assert described.description and described.description.endswith(".")
    assert "\n" not in described.description
    assert described.group_name in {"bars", "features", "model"}
    assert described.owners and all(owner.startswith("team:") for owner in described.owners)
    assert described.kinds


@pytest.mark.parametrize("name", UPSTREAM)
def test_what_is_stored_by_time_has_a_partition_per_month_and_backfills_in_one_run(name: str) -> None:
    definition = asset(name)
    if name not in MONTHLY:
        assert definition.partitions_def is None
        return
    assert isinstance(definition.partitions_def, dg.MonthlyPartitionsDefinition)
    assert definition.partitions_def.fmt == "%Y-%m"
    assert definition.partitions_def == MONTHS
    assert definition.backfill_policy == dg.BackfillPolicy.single_run()


def test_months_run_from_the_start_to_the_one_that_is_running() -> None:
    assert MONTHS.get_partition_keys(datetime(2000, 3, 31, 23, 59, tzinfo=UTC)) == ["2000-01", "2000-02", "2000-03"]
    assert MONTHS.get_partition_keys(datetime(2024, 6, 1, 0, 30, tzinfo=UTC))[-2:] == ["2024-05", "2024-06"]


def test_the_start_is_a_setting() -> None:
    code = "from mt5_crs_pipeline.definitions import defs; from mt5_crs_pipeline.defs.partitions import MONTHS;"
    code += "print(MONTHS.get_first_partition_key(), defs.resolve_asset_graph().get(__import__('dagster')"
    code += ".AssetKey('market_data')).partitions_def.get_first_partition_key())"
    assert python(code, MT5_CRS_START="2015-03").split() == ["2015-03", "2015-03"]


@pytest.mark.parametrize("name", COLUMNS)
def test_a_table_shows_its_columns(name: str) -> None:
    assert [column.name for column in column_schema(name).columns] == COLUMNS[name]
    types = {column.name: column.type for column in column_schema(name).columns}
    kinds = {"symbol": "string", "timeframe": "string", "is_complete": "bool"}
    times = ("time", "known_at", "recorded_at", "event_timestamp", "label_time")
    kinds |= dict.fromkeys(times, "timestamp[us, tz=UTC]")
    assert types == {column: kinds.get(column, "double") for column in types}


def test_the_files_have_the_columns_their_assets_show(settings: Settings) -> None:
    bars = random_bars(length=60)
    bars["known_at"] = bars["recorded_at"] = bars["time"] + timedelta(days=1)
    stores = Stores(settings)
    lake = stores.lake
    for month, part in bars.groupby(month_of(bars["time"])):
        lake.write(EXTRACT, str(month), pa.Table.from_pandas(part, schema=BAR_SCHEMA, preserve_index=False))
    result = dg.materialize(
        [market_data_parquet, technical_features],
        resources={"stores": stores},
        tags=range_tags("2023-01", "2023-03"),
    )
    assert result.success
    assert len(result.get_asset_check_evaluations()) == 4
    stages = {"market_data_parquet": MARKET_DATA, "technical_features": TECHNICAL_FEATURES}
    for name, stage in stages.items():
        files = sorted(lake.stage_folder(stage).iterdir())
        assert [file.stem for file in files] == ["2023-01", "2023-02", "2023-03"]
        assert sum(pq.read_metadata(file).num_rows for file in files) == len(bars)
        for file in files:
            shown = [(c.name, c.type, c.constraints.nullable) for c in column_schema(name).columns]
            assert [(field.name, str(field.type), field.nullable) for field in pq.read_schema(file)] == shown


def test_the_checks_block_what_comes_after_them() -> None:
    found = {name: list(asset(name).check_specs) for name in UPSTREAM if list(asset(name).check_specs)}
    assert {name: [check.name for check in checks] for name, checks in found.items()} == CHECKS
    for checks in found.values():
        assert all(check.description for check in checks)
    # A gap or an outage is to be seen, and stops nothing.
    assert {check.name for checks in found.values() for check in checks if not check.blocking} == {
        "bars_follow_the_market"
    }


def test_jobs_schedule_and_sensor_have_their_names_and_their_assets() -> None:
    repository = defs.get_repository_def()
    assert {job.name for job in repository.get_all_jobs()} - {"__ASSET_JOB"} == {
        "daily_retrain",
        "market_data_backfill",
        "standing_checks",
    }
    scheduled = {schedule.name: schedule.job_name for schedule in repository.schedule_defs}
    assert scheduled == {"daily_retrain_schedule": "daily_retrain", "standing_checks_schedule": "standing_checks"}
    assert [sensor.name for sensor in repository.sensor_defs] == ["market_data_revision_sensor", "run_failure_alerts"]
    assert repository.sensor_defs[0].job_name == "market_data_backfill"
    selected = {
        name: {key.to_user_string() for key in defs.resolve_job_def(name).asset_layer.executable_asset_keys}
        for name in ("daily_retrain", "market_data_backfill")
    }
    assert selected["daily_retrain"] == set(UPSTREAM)
    assert selected["market_data_backfill"] == {*list(UPSTREAM)[:5]} - {"feast_registry"}
    # What holds between runs is looked at by its own job, not by those that change it.
    steps = {name: len(defs.resolve_job_def(name).nodes) for name in (*selected, "standing_checks")}
    assert steps == {"daily_retrain": len(UPSTREAM), "market_data_backfill": 4, "standing_checks": 1}


def test_the_assets_that_a_day_ends_with_share_one_freshness_policy() -> None:
    policies = {name: spec(name).freshness_policy for name in UPSTREAM}
    assert {name for name, policy in policies.items() if policy} == {"market_data_parquet", "champion_model"}
    assert policies["market_data_parquet"] == policies["champion_model"] == FRESHNESS


def test_loading_the_code_location_imports_nothing_slow() -> None:
    code = "import sys, mt5_crs_pipeline.definitions as d; d.defs.get_repository_def();"
    code += "slow = {'exchange_calendars', 'feast', 'matplotlib', 'xgboost', 'MetaTrader5'};"
    code += "print(sorted(slow & set(sys.modules)), 'dagster' in sys.modules)"
    assert python(code).split() == ["[]", "True"]


def validated(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("dagster")
    return subprocess.run(
        [program, "definitions", "validate", "-w", "workspace.yaml"],
        cwd=ROOT,
        env={**os.environ, **environment},
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_dagster_validates_the_workspace_without_a_warning_of_ours(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").touch()
    result = validated({"DAGSTER_HOME": str(tmp_path), "MT5_CRS_HOME": str(tmp_path)})
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    assert "Validation successful for code location mt5_crs_pipeline" in output
    suspicious = (
        "BetaWarning",
        "PreviewWarning",
        "DeprecationWarning",
        "FutureWarning",
        str(ROOT / "mt5_crs_pipeline"),
    )
    assert [line for line in output.splitlines() if any(word in line for word in suspicious)] == []


def test_dagster_validates_the_workspace_of_a_clean_clone(tmp_path: Path) -> None:
    result = validated({"MT5_CRS_HOME": str(tmp_path)})
    assert result.returncode == 0, result.stdout + result.stderr
