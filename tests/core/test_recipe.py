"""A recipe goes to JSON and back, and refuses what it does not know or cannot use, by name."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt5_crs_pipeline.core.errors import ConfigurationError
from mt5_crs_pipeline.core.labels import LabelConfig
from mt5_crs_pipeline.core.model import TrainingConfig
from mt5_crs_pipeline.core.recipe import Recipe


@given(
    st.builds(LabelConfig, st.integers(1, 500), st.floats(0, 0.99)),
    st.builds(
        TrainingConfig,
        max_depth=st.integers(1, 16),
        learning_rate=st.floats(0.001, 1),
        early_stopping_share=st.floats(0.01, 0.9),
        seed=st.integers(0, 2**31 - 1),
    ),
)
def test_a_recipe_goes_to_json_and_back(label: LabelConfig, training: TrainingConfig) -> None:
    recipe = Recipe(label, training)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_what_is_left_out_has_its_default() -> None:
    assert Recipe.from_dict({}) == Recipe()
    changed = Recipe.from_dict({"label": {"horizon_bars": 5}, "training": {"max_depth": 2}})
    assert changed.label == LabelConfig(5, 0.0) and changed.training == TrainingConfig(max_depth=2)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([], ["recipe", "[]"]),
        ({"labels": {}}, ["'labels'", "label, training"]),
        ({"label": 5}, ["label", "5", "horizon_bars"]),
        ({"label": {"horizon": 5}}, ["'horizon'", "horizon_bars"]),
        ({"label": {"horizon_bars": 0}}, ["horizon_bars", "0"]),
        ({"label": {"cost_band": "1 %"}}, ["cost_band", "1 %"]),
        ({"training": {"depth": 3}}, ["'depth'", "max_depth"]),
        ({"training": {"max_depth": 0}}, ["max_depth", "0", "from 1 to 16"]),
        ({"training": {"max_depth": 2.5}}, ["max_depth", "2.5", "whole"]),
        ({"training": {"max_rounds": True}}, ["max_rounds", "True"]),
        ({"training": {"seed": -1}}, ["seed", "-1"]),
        ({"training": {"learning_rate": 0}}, ["learning_rate", "0"]),
        ({"training": {"subsample": 1.01}}, ["subsample", "1.01"]),
        ({"training": {"colsample_bytree": float("nan")}}, ["colsample_bytree", "nan"]),
        ({"training": {"early_stopping_share": 1}}, ["early_stopping_share", "1"]),
        ({"training": {"window_growth": 0.0}}, ["window_growth", "0.0"]),
        ({"training": {"min_child_weight": -1}}, ["min_child_weight", "-1"]),
        ({"training": {"min_child_weight": "many"}}, ["min_child_weight", "many"]),
    ],
)
def test_nonsense_is_refused_naming_the_setting_and_the_value(values: Any, words: list[str]) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Recipe.from_dict(values)
    text = str(refused.value)
    assert "\n" not in text and all(word in text for word in words), text
