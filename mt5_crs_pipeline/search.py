"""A bounded search for training settings, whose every trial is a recipe in the ledger.

The recipes are drawn by Optuna's RandomSampler with a fixed seed, all of them before the first is judged. The threshold
ln(K / 0.05) is exact for K recipes that were fixed before the data were looked at. A sampler that learns from outcomes,
such as TPE, would make the K-th recipe depend on the bars it is then judged on: K would no longer say how many were
tried. And the same search draws the same recipes again (with the same release of Optuna), which adds nothing to K.
"""

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import pandas as pd

from mt5_crs_pipeline.adapters.feature_parity import proof_for_training
from mt5_crs_pipeline.adapters.files import sha256
from mt5_crs_pipeline.adapters.lake import read_parquet
from mt5_crs_pipeline.adapters.postgres import connected
from mt5_crs_pipeline.adapters.recipe_file import write_recipe
from mt5_crs_pipeline.adapters.trial_ledger import recipes_tried, record_trial
from mt5_crs_pipeline.core.errors import BundleRejectedError, ConfigurationError, InputError
from mt5_crs_pipeline.core.evidence import ALPHA, against_chance, threshold
from mt5_crs_pipeline.core.feature_rows import PIPELINE_FEATURES, training_schema
from mt5_crs_pipeline.core.features import get_feature_names
from mt5_crs_pipeline.core.model import TrainingConfig, fit_final, out_of_sample_predictions
from mt5_crs_pipeline.core.promotion import recipe as counted_recipe
from mt5_crs_pipeline.core.recipe import Recipe
from mt5_crs_pipeline.core.search_space import SEARCHED, settings_at
from mt5_crs_pipeline.defs.resources import Stores
from mt5_crs_pipeline.settings import Settings

SHOWN: Final = 5
# Another one would be another search, with other recipes to count.
_SEED: Final = 20


@dataclass(frozen=True)
class Trial:
    """Settings that were tried: their log-wealth against chance (nats), or why they cannot be trained."""

    number: int
    settings: dict[str, Any]
    log_wealth: float | None
    failure: str | None


@dataclass(frozen=True)
class Outcome:
    """What a search found. Trial 0 is the recipe as it was; `written` is the recipe file, None where it was left."""

    trials: list[Trial]
    best: Trial
    recipes_before: int
    recipes: int
    written: str | None

    @property
    def edge_shown(self) -> bool:
        """True when the best log-wealth is above the threshold for all recipes tried."""
        return _log_wealth(self.best) > threshold(self.recipes)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values, with the threshold and whether the best is above it."""
        return {**asdict(self), "threshold": threshold(self.recipes), "edge_shown": self.edge_shown}


def search(settings: Settings, trials: int, write: bool, say: Callable[[str], object]) -> Outcome:
    """Judge the recipe as it is and `trials` others on the stored training set; `write` keeps the best in its file.

    Every recipe is in the ledger before it is judged, so that a killed search is counted too. `say` is told the
    progress, in parts of lines. Raises ConfigurationError without Optuna or with a damaged recipe file, InputError
    where nothing was trained yet or nothing can be, and KeyboardInterrupt saying what stays counted.
    """
    stores = Stores(settings)
    recipe = stores.recipe
    others = [settings_at(recipe.training, point) for point in draw(trials)]
    rows = _training_rows(stores, recipe)
    # First: what cannot be proved is not trained on.
    proof_for_training(stores.lake)
    candidates = [replace(recipe, training=training) for training in [recipe.training, *others]]
    done: list[Trial] = []
    with stores.database.url() as url:
        with connected(url) as connection:
            before = recipes = recipes_tried(connection, stores.timeframe)
        try:
            for number, candidate in enumerate(candidates):
                with connected(url) as connection:
                    recipes = record_trial(connection, stores.timeframe, as_counted(candidate))
                say(f"  {number}/{trials}: {_in_words(candidate.training)} ...")
                started = time.monotonic()
                done.append(_tried(number, candidate, rows))
                say(f" {_result(done[-1])}, {time.monotonic() - started:.1f} s\n")
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted after {len(done)} of {len(candidates)} trials: what was tried stays counted, {recipes} of"
                " this timeframe in all; the same search counts none of it twice"
            ) from None
    best = _best(done)
    written = None
    if write and best.number:
        write_recipe(settings.recipe, candidates[best.number])
        written = str(settings.recipe)
    return Outcome(done, best, before, recipes, written)


def draw(trials: int) -> list[dict[str, float]]:
    """Return that many points of the search space; the first of more are the same ones."""
    try:
        import optuna
    except ImportError as error:
        raise ConfigurationError(
            "the package optuna is not installed: run pip install 'mt5-crs-pipeline[search]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    whole, fraction = optuna.distributions.IntDistribution, optuna.distributions.FloatDistribution
    space: dict[str, Any] = {
        name: whole(int(range_.low), int(range_.high))
        if range_.whole
        else fraction(range_.low, range_.high, range_.log)
        for name, range_ in SEARCHED.items()
    }
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=_SEED))
    return [study.ask(space).params for _ in range(trials)]


def as_counted(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as the ledger counts it: what the model card of a model trained by it says."""
    return counted_recipe(
        {
            "feature_set_hash": PIPELINE_FEATURES.feature_set_hash,
            "label": recipe.label.definition,
            "params": recipe.training.to_dict(),
        }
    )


def summary(outcome: Outcome) -> list[str]:
    """Return what a person is told at the end, line by line: the best few, the verdict, the price, what was written."""
    ranked = sorted((trial for trial in outcome.trials if trial.failure is None), key=_log_wealth, reverse=True)
    needed, best = threshold(outcome.recipes), outcome.best
    above = "An edge is shown" if outcome.edge_shown else "No edge is shown"
    lines = [" trial  log-wealth  settings that differ from the defaults"]
    lines += [f"{trial.number:6}  {_log_wealth(trial):10.2f}  {_words(trial.settings)}" for trial in ranked[:SHOWN]]
    lines += [
        "",
        f"{above}: the best log-wealth against the best constant rates, {_log_wealth(best):.2f} of trial {best.number},"
        f" is {'above' if outcome.edge_shown else 'not above'} the threshold {needed:.2f} for"
        f" {outcome.recipes} recipes tried at {ALPHA:.0%} error.",
        f"The price of N trials is ln N: the threshold was {threshold(outcome.recipes_before):.2f} and is"
        f" {needed:.2f} for every model of this timeframe from now on.",
    ]
    if outcome.written:
        lines.append(
            f"{outcome.written}: label kept, training settings replaced by those of trial {best.number};"
            " `mt5-crs retrain` trains them."
        )
    elif best.number:
        lines.append(f"Nothing was written: --write puts the settings of trial {best.number} into the recipe file.")
    else:
        lines.append("Nothing was written: the recipe as it is (trial 0) is the best.")
    return lines


def _training_rows(stores: Stores, recipe: Recipe) -> pd.DataFrame:
    """Return the stored training set; raise InputError unless a model of the recipe's label was trained on it.

    A recipe file that was changed since names a label that these rows do not have.
    """
    path = stores.lake.training_set
    if not path.exists():
        raise InputError(f"there is no training set at {path}: run `mt5-crs retrain` first")
    fingerprint = sha256(path)
    for version in reversed(stores.models.versions()):
        with contextlib.suppress(BundleRejectedError):
            bundle = stores.models.load(version)
            if bundle.metadata["data_fingerprint"] == fingerprint and bundle.label == recipe.label:
                rows: pd.DataFrame = read_parquet(path, training_schema().names).to_pandas()
                return rows
    raise InputError(
        f"no model was trained on {path} with the recipe's label ({recipe.label.definition}): run `mt5-crs retrain`"
        " first"
    )


def _tried(number: int, candidate: Recipe, rows: pd.DataFrame) -> Trial:
    features, settings = get_feature_names(PIPELINE_FEATURES), _differing(candidate.training)
    try:
        if not candidate.training.pooled:
            # What a retraining ends with: the windows pass over a symbol that cannot have a model, this does not.
            fit_final(rows, features, candidate.training)
        predictions = out_of_sample_predictions(rows, features, candidate.training)
    except InputError as error:
        return Trial(number, settings, None, str(error))
    # How many recipes there are moves the threshold, not the wealth.
    return Trial(number, settings, against_chance(predictions, 1, candidate.label.horizon_bars).log_wealth, None)


def _best(trials: Sequence[Trial]) -> Trial:
    """Return the first of the highest log-wealth; InputError when none could be trained."""
    worked = [trial for trial in trials if trial.failure is None]
    if not worked:
        raise InputError(f"none of {len(trials)} settings can be trained, the last because {trials[-1].failure}")
    return max(worked, key=_log_wealth)


def _log_wealth(trial: Trial) -> float:
    return -float("inf") if trial.log_wealth is None else trial.log_wealth


def _result(trial: Trial) -> str:
    return f"log-wealth {trial.log_wealth:.2f}" if trial.failure is None else f"cannot be trained: {trial.failure}"


def _differing(training: TrainingConfig) -> dict[str, Any]:
    defaults = TrainingConfig().to_dict()
    return {name: value for name, value in training.to_dict().items() if value != defaults[name]}


def _in_words(training: TrainingConfig) -> str:
    return _words(_differing(training))


def _words(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} {json.dumps(value)}" for name, value in settings.items()) or "the defaults"
