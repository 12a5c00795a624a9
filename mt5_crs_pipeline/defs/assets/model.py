"""The model: training rows, training, evaluation out of sample, promotion on evidence."""

import hashlib
import os
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import pandas as pd
import pyarrow as pa
from pydantic import Field

from mt5_crs_pipeline.adapters import pictures, pictures_economics, pictures_noise
from mt5_crs_pipeline.adapters.feature_parity import certify, parity_of_training_rows, proof_for_training
from mt5_crs_pipeline.adapters.files import commit_bytes, sha256
from mt5_crs_pipeline.adapters.lake import MARKET_DATA, TECHNICAL_FEATURES, parquet_bytes, read_parquet
from mt5_crs_pipeline.adapters.live_predictions import live_record
from mt5_crs_pipeline.adapters.model_store import Bundle
from mt5_crs_pipeline.adapters.noise_floor_file import read_noise_floor, write_noise_floor
from mt5_crs_pipeline.adapters.promotion import judge, promote_on_evidence
from mt5_crs_pipeline.adapters.report import render_report
from mt5_crs_pipeline.adapters.trial_ledger import record_trial
from mt5_crs_pipeline.adapters.versions import code_commit, library_versions
from mt5_crs_pipeline.core.bars import CLOSED_BAR_SCHEMA, adjusted, instant, latest_revisions, spread_share
from mt5_crs_pipeline.core.economics import economics
from mt5_crs_pipeline.core.errors import DamagedFileError, InputError
from mt5_crs_pipeline.core.evaluation import Evaluation, evaluate
from mt5_crs_pipeline.core.feature_rows import (
    KNOWN_AT,
    PIPELINE_FEATURES,
    RECORDED_AT,
    feature_schema,
    known_at_close,
    row_changes,
    training_schema,
)
from mt5_crs_pipeline.core.features import get_feature_names
from mt5_crs_pipeline.core.importance import MeanImportance
from mt5_crs_pipeline.core.labels import EVENT_TIMESTAMP, labelled_bars
from mt5_crs_pipeline.core.model import fit_final, importance, model_version, out_of_sample_predictions
from mt5_crs_pipeline.core.model_card import model_card
from mt5_crs_pipeline.core.noise_floor import Place, place, shape
from mt5_crs_pipeline.core.noise_floor import noise_floor as noise_floor_of
from mt5_crs_pipeline.core.promotion import recipe as counted_recipe
from mt5_crs_pipeline.defs.alerts import alert_promotion
from mt5_crs_pipeline.defs.assets.features import feast_online_store
from mt5_crs_pipeline.defs.checks import LOOK_AHEAD_CHECK, TRAINING_CHECK, check_parity, check_training_rows
from mt5_crs_pipeline.defs.metadata import column_schema, picture, row_metadata
from mt5_crs_pipeline.defs.resources import Stores
from mt5_crs_pipeline.defs.steps import step
from mt5_crs_pipeline.defs.timing import FRESHNESS


class TrainingSetConfig(dg.Config):
    """What may be chosen for one run."""

    as_of: str | None = Field(
        None, description="Build it from what was recorded by then (ISO 8601 with offset); empty: from everything."
    )


@dg.asset(
    group_name="model",
    kinds={"feast", "parquet"},
    owners=["team:research"],
    deps=[feast_online_store],
    check_specs=[TRAINING_CHECK, LOOK_AHEAD_CHECK],
    metadata=column_schema(training_schema()),
)
@step
def training_set(config: TrainingSetConfig, stores: dg.ResourceParam[Stores]) -> dg.MaterializeResult:
    """Every closed label joined by Feast with the features known at its bar's close; rows in warm-up are left out."""
    bars = _bars_as_of(stores, config.as_of)
    # Not the clock: as of this instant the same rows come out whenever they are asked for.
    as_of = bars["recorded_at"].max().to_pydatetime()
    labels = labelled_bars(
        adjusted(bars.assign(spread_share=spread_share(bars))), stores.timeframe, stores.recipe.label
    )
    stamps = ["symbol", "time", EVENT_TIMESTAMP, KNOWN_AT, RECORDED_AT]
    months = stores.lake.months(TECHNICAL_FEATURES)
    features = stores.lake.read(TECHNICAL_FEATURES, months, feature_schema(), stamps).to_pandas()
    in_force = known_at_close(features, as_of)[["symbol", "time", EVENT_TIMESTAMP, RECORDED_AT]]
    answerable = labels.merge(in_force[["symbol", EVENT_TIMESTAMP]])
    with stores.feast() as feast:
        rows = feast.training_rows(answerable, as_of)
    complete = rows.dropna(subset=get_feature_names(PIPELINE_FEATURES))
    if complete.empty:
        longest = bars["symbol"].value_counts().max()
        raise InputError(
            f"no training rows: a row needs {PIPELINE_FEATURES.lookback} bars and the one after, the longest history"
            f" has {longest} bars; ingest more"
        )
    complete = complete.sort_values([EVENT_TIMESTAMP, "symbol"], ignore_index=True)
    table = pa.Table.from_pandas(complete, schema=training_schema(), preserve_index=False)
    changes = row_changes(_training_rows_before(stores), table.to_pandas(), ["symbol", EVENT_TIMESTAMP])
    commit_bytes(stores.lake.training_set, parquet_bytes(table.replace_schema_metadata()))
    parity = parity_of_training_rows(stores.lake, complete, in_force)
    return dg.MaterializeResult(
        metadata=row_metadata(
            len(complete),
            complete[EVENT_TIMESTAMP],
            **changes,
            as_of=as_of.isoformat(),
            data_fingerprint=sha256(stores.lake.training_set),
            rows_left_out_in_warm_up=len(rows) - len(complete),
            rows_left_out_as_known_later=len(labels) - len(answerable),
        ),
        check_results=[
            check_training_rows(stores.lake, stores.recipe.label),
            check_parity(LOOK_AHEAD_CHECK, parity, certify(parity)),
        ],
    )


@dg.asset(group_name="model", kinds={"xgboost"}, owners=["team:research"], deps=[training_set])
@step
def xgboost_model(stores: dg.ResourceParam[Stores]) -> dg.MaterializeResult:
    """A model of all training rows, with the out-of-sample predictions of its walk-forward siblings, as one bundle."""
    rows = _training_rows(stores)
    version = current_version(stores)
    features = get_feature_names(PIPELINE_FEATURES)
    if not stores.models.has(version):
        # First: what cannot be proved is not trained on.
        parity, recipe = proof_for_training(stores.lake), stores.recipe
        permuted = MeanImportance(recipe.training.seed)
        predictions = out_of_sample_predictions(rows, features, recipe.training, permuted.add)
        model = fit_final(rows, features, recipe.training)
        card = model_card(
            rows=rows,
            version=version,
            timeframe=stores.timeframe,
            config=PIPELINE_FEATURES,
            recipe=recipe,
            importance=importance(model),
            permutation_importance=permuted.mean(),
            metrics=evaluate(predictions, importance(model), recipe.label.cost_band).to_dict(),
            data_fingerprint=sha256(stores.lake.training_set),
            parity=parity,
            train_date=datetime.now(UTC),
            code_commit=code_commit(),
            library_versions=library_versions(),
        )
        stores.models.save(card, model, predictions)
    bundle = stores.models.load(version)
    with stores.database.connection() as connection:
        recipes = record_trial(connection, stores.timeframe, counted_recipe(bundle.metadata))
    return dg.MaterializeResult(
        metadata={
            "model version": version,
            "recipes tried": recipes,
            "path": dg.MetadataValue.path(bundle.folder),
            "trees": bundle.model().trees,
            "importance": picture(pictures.feature_importance(_evaluation(bundle)), "importance of the features"),
        }
    )


@dg.asset(group_name="model", kinds={"xgboost"}, owners=["team:research"], deps=[xgboost_model])
@step
def noise_floor(stores: dg.ResourceParam[Stores]) -> dg.MaterializeResult:
    """How the recipe fares where nothing can be known, on permuted labels and random walks; it decides nothing."""
    if not stores.noise_runs:
        return dg.MaterializeResult(metadata={"noise floor": "none: MT5_CRS_NOISE_RUNS is 0"})
    wanted = _noise_shape(stores)
    floor = read_noise_floor(stores.reports)
    is_kept = floor is not None and floor.shape == wanted
    if not is_kept:
        rows, now = _training_rows(stores), datetime.now(UTC).isoformat(timespec="seconds")
        bars = adjusted(_bars_as_of(stores, None))
        made = noise_floor_of(
            rows, bars, stores.timeframe, stores.recipe, PIPELINE_FEATURES, stores.noise_runs, now, os.cpu_count() or 1
        )
        write_noise_floor(stores.reports, made)
    bundle = stores.models.load(current_version(stores))
    return dg.MaterializeResult(metadata={"renewed": not is_kept, **_noise_metadata(_noise_place(stores, bundle))})


@dg.asset(group_name="model", kinds={"html"}, owners=["team:research"], deps=[xgboost_model, noise_floor])
@step
def model_evaluation(stores: dg.ResourceParam[Stores]) -> dg.MaterializeResult:
    """What the model is worth on rows it never saw, as a report that says in words whether an edge was shown."""
    bundle = stores.models.load(current_version(stores))
    evaluation = _evaluation(bundle)
    with stores.database.connection() as connection:
        verdict = judge(connection, stores.models, bundle)
        live = live_record(connection, stores.models, stores.lake)
    chance = verdict.evidence["against_chance"]
    report = stores.reports / f"{bundle.version}.html"
    earned = economics(bundle.predictions(), chance["recipes"], bundle.label.horizon_bars, stores.trading_cost)
    noise = _noise_place(stores, bundle)
    commit_bytes(report, render_report(evaluation, bundle.metadata, verdict, earned, live, bundle.checksum, noise))
    return dg.MaterializeResult(
        metadata={
            "verdict": verdict.reason,
            "verdict kind": verdict.kind,
            "report": dg.MetadataValue.path(report),
            "log-wealth": chance["log_wealth"],
            "log-wealth needed": chance["threshold"],
            "recipes tried": chance["recipes"],
            "evidence": picture(pictures.evidence(chance), "log-wealth and the threshold"),
            "accuracy": evaluation.accuracy.estimate,
            "accuracy lower": evaluation.accuracy.lower,
            "accuracy upper": evaluation.accuracy.upper,
            "base rate": evaluation.base_rate,
            "log loss": evaluation.log_loss,
            "AUC": evaluation.auc,
            "out-of-sample rows": evaluation.rows,
            "accuracy by year": picture(pictures.accuracy_by_year(evaluation), "accuracy by year with intervals"),
            "reliability": picture(pictures.reliability(evaluation), "reliability of the probabilities"),
            "illustration": picture(pictures_economics.wealth(earned), "what a simple rule would have earned"),
            "illustration in numbers": earned.to_dict(),
            "confusion": picture(pictures.confusion(evaluation), "confusion matrix"),
        }
    )


@dg.asset(
    group_name="model",
    kinds={"json"},
    owners=["team:research"],
    deps=[model_evaluation],
    freshness_policy=FRESHNESS,
)
@step
def champion_model(context: dg.AssetExecutionContext, stores: dg.ResourceParam[Stores]) -> dg.MaterializeResult:
    """The model that predicts: replaced only on evidence against chance and the champion; every verdict is kept."""
    bundle = stores.models.load(current_version(stores))
    before = stores.models.champion()
    with stores.database.connection() as connection:
        verdict = promote_on_evidence(connection, stores.models, bundle, datetime.now(UTC))
    champion = stores.models.champion()
    if champion and champion != before:
        alert_promotion(stores, champion["model_version"], verdict.reason, context.run.run_id)
    return dg.MaterializeResult(
        metadata={
            "promoted": verdict.promoted,
            "verdict kind": verdict.kind,
            "reason": verdict.reason,
            "champion": champion["model_version"]
            if champion
            else "none yet: the newest model answers, marked unproven",
        }
    )


def _bars_as_of(stores: Stores, as_of: str | None) -> pd.DataFrame:
    revisions = stores.lake.read(MARKET_DATA, stores.lake.months(MARKET_DATA), CLOSED_BAR_SCHEMA).to_pandas()
    bars = latest_revisions(revisions, None if as_of is None else instant(as_of))
    if bars.empty:
        since = f" as of {as_of}: the first was recorded at {revisions['recorded_at'].min()}" if len(revisions) else ""
        raise InputError(f"no training rows: no bars are in the lake{since}")
    return bars


def _training_rows(stores: Stores) -> pd.DataFrame:
    rows: pd.DataFrame = read_parquet(stores.lake.training_set, training_schema().names).to_pandas()
    return rows


def _training_rows_before(stores: Stores) -> pd.DataFrame:
    """Return the rows of the training set that is about to be replaced; none where it is absent or cannot be read."""
    try:
        return _training_rows(stores)
    except (FileNotFoundError, DamagedFileError):
        return pd.DataFrame({"symbol": pd.Series(dtype=str), EVENT_TIMESTAMP: pd.Series(dtype="datetime64[us, UTC]")})


def current_version(stores: Stores) -> str:
    """Return the model version that the stored training set, this code's settings and libraries lead to."""
    decisive = [sha256(stores.lake.training_set), stores.timeframe, PIPELINE_FEATURES.feature_set_hash]
    decisive += [repr(stores.recipe), library_versions()["xgboost"]]
    digest = hashlib.sha256("\n".join(decisive).encode()).hexdigest()
    return model_version(_training_rows(stores), digest)


def _noise_shape(stores: Stores) -> str:
    return shape(_training_rows(stores), stores.timeframe, stores.recipe, PIPELINE_FEATURES, stores.noise_runs)


def _noise_place(stores: Stores, bundle: Bundle) -> Place | None:
    """Return where a bundle lies in the noise floor, or None where none was made for its recipe."""
    floor = read_noise_floor(stores.reports)
    if floor is None or floor.shape != _noise_shape(stores):
        return None
    return place(floor, bundle.predictions(), bundle.label.horizon_bars)


def _noise_metadata(found: Place | None) -> dict[str, Any]:
    if found is None:
        return {}
    floor = found.floor
    told = {
        "noise floor": found.sentence,
        "runs": len(floor.runs),
        "runs below in log-wealth": found.above,
        "runs below in accuracy": found.above_in_accuracy,
        "renewed at": floor.renewed_at,
        "shaped like rows": floor.rows,
        "first": floor.first,
        "last": floor.last,
        "runs that could not be trained": list(floor.refused),
    }
    if floor.runs:
        told["picture"] = picture(pictures_noise.noise_floor(found), "log-wealth where nothing can be known")
    return told


def _evaluation(bundle: Bundle) -> Evaluation:
    return evaluate(bundle.predictions(), bundle.metadata["importance"], bundle.label.cost_band)
