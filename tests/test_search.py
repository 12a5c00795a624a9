"""The search on a real training set: every trial is counted first, and counted as what a retraining counts."""

import json
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mt5_crs_pipeline.adapters.embedded_postgres import running_server
from mt5_crs_pipeline.adapters.lake import TECHNICAL_FEATURES
from mt5_crs_pipeline.adapters.recipe_file import read_recipe, write_recipe
from mt5_crs_pipeline.core.errors import ConfigurationError, InputError
from mt5_crs_pipeline.core.evidence import against_chance, threshold
from mt5_crs_pipeline.core.feature_rows import PIPELINE_FEATURES, feature_schema
from mt5_crs_pipeline.core.features import get_feature_names
from mt5_crs_pipeline.core.labels import LabelConfig
from mt5_crs_pipeline.core.model import TrainingConfig
from mt5_crs_pipeline.core.recipe import Recipe
from mt5_crs_pipeline.core.search_space import SEARCHED, settings_at
from mt5_crs_pipeline.defs.assets.model import current_version, xgboost_model
from mt5_crs_pipeline.defs.resources import Stores
from mt5_crs_pipeline.search import SHOWN, Outcome, Trial, draw, search, summary
from mt5_crs_pipeline.settings import Settings
from tests.commands import read_until, run, started, succeed
from tests.defs.small_lake import execute, materialize, metadata, store, year_of_bars
from tests.defs.test_assets import ALL_FEATURES, MODEL

QUICK = TrainingConfig(max_rounds=5, window_growth=1.0)
LABEL = LabelConfig(2, 0.001)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder, without its database, in which a year of bars of two symbols was trained on."""
    folder = tmp_path_factory.mktemp("trained")
    with running_server(folder / "postgres") as url:
        settings = Settings(home=folder / "home", database_url=url)
        write_recipe(settings.recipe, Recipe(LABEL, QUICK))
        store(settings, year_of_bars())
        materialize(Stores(settings), [*ALL_FEATURES, *MODEL[:2]])
    return folder / "home"


@pytest.fixture
def home(trained: Path, settings: Settings) -> Settings:
    """Settings of a copy of it, with an empty ledger."""
    shutil.copytree(trained, settings.home)
    return settings


def address(settings: Settings) -> dict[str, str]:
    return {"DATABASE_URL": settings.database_url.get_secret_value()}


def counted(settings: Settings) -> int:
    """Recipes in the ledger; none where nobody has made it yet."""
    there = execute(settings, "select to_regclass('model_trial') is not null") == [(True,)]
    return int(execute(settings, "select count(*) from model_trial")[0][0]) if there else 0


def quietly(_: str) -> None:
    return


def refused(settings: Settings, *words: str, kind: type[Exception] = InputError) -> None:
    with pytest.raises(kind) as raised:
        search(settings, 2, False, quietly)
    assert "\n" not in str(raised.value) and all(word in str(raised.value) for word in words), raised.value


def test_a_trial_is_in_the_ledger_before_it_is_judged_and_the_same_search_adds_none(home: Settings) -> None:
    began: list[tuple[str, int]] = []

    def watch(text: str) -> None:
        if text.endswith(" ..."):
            began.append((text, counted(home)))

    outcome = search(home, 3, False, watch)
    assert [count for _, count in began] == [1, 2, 3, 4]
    assert [text.split(":")[0] for text, _ in began] == ["  0/3", "  1/3", "  2/3", "  3/3"]
    assert (outcome.recipes_before, outcome.recipes, outcome.to_dict()["threshold"]) == (0, 4, threshold(4))
    longer = search(home, 4, False, quietly)
    assert longer.trials[:4] == outcome.trials and (longer.recipes_before, longer.recipes) == (4, 5)


def test_each_trial_is_worth_what_a_model_trained_by_it_is_worth_and_counts_as_the_same_recipe(home: Settings) -> None:
    outcome = search(home, 2, False, quietly)
    for trial, point in zip(outcome.trials[1:], draw(2), strict=True):
        write_recipe(home.recipe, Recipe(LABEL, settings_at(QUICK, point)))
        stores = Stores(home)
        told = metadata(materialize(stores, [xgboost_model]), "xgboost_model")
        assert told["recipes tried"] == 3
        bundle = stores.models.load(current_version(stores))
        evidence = against_chance(bundle.predictions(), 3, LABEL.horizon_bars)
        assert trial.log_wealth == evidence.log_wealth
        assert trial.settings.items() <= bundle.metadata["params"].items()
    assert outcome.trials[1].log_wealth != outcome.trials[2].log_wealth
    assert outcome.best.log_wealth == max(trial.log_wealth or 0.0 for trial in outcome.trials)


def test_write_replaces_the_training_settings_alone_and_nothing_is_written_without_it(home: Settings) -> None:
    before = home.recipe.read_bytes()
    told = json.loads(succeed(home.home, "search", "--trials", 4, "--json", **address(home)).stdout)
    best = told["best"]["number"]
    assert best > 0 and told["written"] is None and home.recipe.read_bytes() == before
    done = succeed(home.home, "search", "--trials", 4, "--write", **address(home))
    chosen = Recipe(LABEL, settings_at(QUICK, draw(4)[best - 1]))
    assert read_recipe(home.recipe) == chosen
    assert re.search(rf"^{re.escape(str(home.recipe))}: label kept, training settings replaced", done.stdout, re.M)
    assert len([line for line in done.stderr.splitlines() if re.match(r"  \d/4: .* log-wealth -?\d", line)]) == 5
    content = home.recipe.read_bytes()
    again = search(home, 4, True, quietly)
    assert (again.best.number, again.written, again.recipes) == (0, None, 5) and home.recipe.read_bytes() == content
    assert summary(again)[-1] == "Nothing was written: the recipe as it is (trial 0) is the best."


def test_a_recipe_whose_label_changed_during_the_search_is_left_alone(home: Settings) -> None:
    changed = '{"label": {"horizon_bars": 3}}'

    def meanwhile(text: str) -> None:
        if text.startswith("  1/2"):
            home.recipe.write_text(changed, "utf-8")

    with pytest.raises(ConfigurationError, match="another label"):
        search(home, 2, True, meanwhile)
    assert home.recipe.read_text("utf-8") == changed


def test_settings_that_a_symbol_cannot_be_trained_with_are_a_failed_trial_that_counts(home: Settings) -> None:
    alone = TrainingConfig(max_rounds=5, window_growth=1.0, min_child_weight=1.0, pooled=False)
    write_recipe(home.recipe, Recipe(LABEL, alone))
    labelled = pd.read_parquet(Stores(home).lake.training_set).dropna(subset=["target"])
    fewest = labelled["symbol"].value_counts().min()
    tried = [alone, *(settings_at(alone, point) for point in draw(6))]
    outcome = search(home, 6, False, quietly)
    # A split needs eight times min_child_weight of a symbol's rows.
    too_few = [8 * training.min_child_weight > fewest for training in tried]
    assert ["cannot have a model of its own" in str(trial.failure) for trial in outcome.trials] == too_few
    assert any(too_few) and all((trial.failure is None) is (trial.log_wealth is not None) for trial in outcome.trials)
    assert outcome.trials[0].failure is None and outcome.best.failure is None
    assert outcome.recipes == counted(home) == 7


def test_where_nothing_can_be_trained_that_is_said(home: Settings) -> None:
    late = TrainingConfig(first_train_times=100_000)
    write_recipe(home.recipe, Recipe(LABEL, late))
    refused(home, "none of 3 settings can be trained", "bar times are too few")


def test_without_a_training_set_of_the_recipe_s_label_nothing_is_tried(home: Settings) -> None:
    home.recipe.write_text('{"label": {"horizon_bars": 3}}', "utf-8")
    refused(home, "no model was trained on", "close 3 bars later", "mt5-crs retrain")
    home.recipe.write_text("{", "utf-8")
    refused(home, str(home.recipe), "no JSON", kind=ConfigurationError)
    home.recipe.unlink()
    Stores(home).lake.training_set.unlink()
    refused(home, "no training set", "mt5-crs retrain")
    assert counted(home) == 0


def test_features_that_are_not_proved_equal_are_not_searched_on(home: Settings) -> None:
    lake = Stores(home).lake
    table = lake.read(TECHNICAL_FEATURES, ["2012-12"], feature_schema())
    name = get_feature_names(PIPELINE_FEATURES)[0]
    values = pa.array(np.nextafter(table[name].to_numpy(), np.inf))
    lake.write(TECHNICAL_FEATURES, "2012-12", table.set_column(table.schema.get_field_index(name), name, values))
    refused(home, "stored feature values differ")
    assert counted(home) == 0


def test_without_optuna_one_line_says_what_to_install(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    refused(home, "optuna", "pip install 'mt5-crs-pipeline[search]'", kind=ConfigurationError)
    assert counted(home) == 0


def test_ctrl_c_says_in_one_line_what_stays_counted(home: Settings) -> None:
    with started(home.home, "search", "--trials", 1000, "--write", **address(home)) as process:
        read_until(process.stderr, "2/1000")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 130
    line = said.decode().splitlines()[-1]
    tried = counted(home)
    assert re.fullmatch(
        rf"mt5-crs: interrupted after \d+ of 1001 trials: what was tried stays counted, {tried} .*", line
    )
    assert 3 <= tried < 1001 and read_recipe(home.recipe) == Recipe(LABEL, QUICK)


def test_a_search_without_bars_is_one_line(settings: Settings) -> None:
    done = run(settings.home, "search", "--trials", 2, **address(settings))
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("mt5-crs: there is no training set") and "mt5-crs retrain" in line


def test_recipes_are_drawn_before_anything_is_judged_inside_the_bounds_and_spread() -> None:
    points = draw(200)
    assert draw(7) == points[:7]
    for name, range_ in SEARCHED.items():
        drawn = [point[name] for point in points]
        assert range_.low <= min(drawn) and max(drawn) <= range_.high
        middle = (range_.low * range_.high) ** 0.5 if range_.log else (range_.low + range_.high) / 2
        assert 70 < sum(value < middle for value in drawn) < 130


@pytest.mark.parametrize(("log_wealth", "shown"), [(5.4, True), (5.3, False)])
def test_the_end_tells_the_best_few_the_verdict_and_the_price(log_wealth: float, shown: bool) -> None:
    outcome = outcome_of(lambda number: log_wealth if number == 3 else -float(number))
    lines = summary(outcome)
    # ln(11 / 0.05) = 5.394
    assert outcome.edge_shown is outcome.to_dict()["edge_shown"] is shown
    verdict = next(line for line in lines if "edge is shown" in line)
    assert verdict.startswith("An edge" if shown else "No edge")
    assert f"{log_wealth:.2f} of trial 3" in verdict and "threshold 5.39 for 11 recipes" in verdict
    assert ("is not above" in verdict) is not shown
    assert [int(line.split()[0]) for line in lines[1 : SHOWN + 1]] == [3, 0, 1, 2, 4]
    assert any("ln N" in line and "was 3.00 and is 5.39" in line for line in lines)
    assert lines[-1] == "Nothing was written: --write puts the settings of trial 3 into the recipe file."


def outcome_of(log_wealth: Callable[[int], float]) -> Outcome:
    trials = [Trial(number, {"max_depth": number}, log_wealth(number), None) for number in range(11)]
    return Outcome(trials, trials[3], 1, 11, None)
