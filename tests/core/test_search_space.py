"""The search space: every point in it is a config that can be trained, and nothing outside it is one."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt5_crs_pipeline.core.errors import ConfigurationError
from mt5_crs_pipeline.core.model import TrainingConfig, fit, predict
from mt5_crs_pipeline.core.search_space import SEARCHED, Range, settings_at
from tests.core.test_model import FEATURES, QUICK, training_rows

BASE = TrainingConfig(first_train_times=77, window_growth=0.5, seed=3, pooled=False)
MIDDLE = {"max_depth": 3, "learning_rate": 0.1, "min_child_weight": 5.0, "subsample": 0.7, "colsample_bytree": 0.5}


def values(range_: Range) -> st.SearchStrategy[float]:
    if range_.whole:
        return st.integers(int(range_.low), int(range_.high))
    return st.floats(range_.low, range_.high)


@given(st.fixed_dictionaries({name: values(range_) for name, range_ in SEARCHED.items()}))
def test_every_point_is_a_config_near_it_inside_the_bounds_that_keeps_all_else(point: dict[str, float]) -> None:
    config = settings_at(BASE, point).to_dict()
    for name, range_ in SEARCHED.items():
        assert range_.low <= config[name] <= range_.high
        assert config[name] == pytest.approx(point[name], rel=0.05)
    assert {name: value for name, value in config.items() if name not in SEARCHED} == {
        name: value for name, value in BASE.to_dict().items() if name not in SEARCHED
    }


def test_every_corner_can_be_trained() -> None:
    rows = training_rows(signal=1.0)
    for corner in itertools.product(*((range_.low, range_.high) for range_ in SEARCHED.values())):
        config = settings_at(replace(QUICK, max_rounds=2), dict(zip(SEARCHED, corner, strict=True)))
        assert ((probability := predict(fit(rows, FEATURES, config), rows)) > 0).all() and (probability < 1).all()


def test_fractions_are_short_and_whole_numbers_stay_whole() -> None:
    config = settings_at(BASE, {**MIDDLE, "learning_rate": 0.0123456, "min_child_weight": 98.76})
    assert (config.learning_rate, config.min_child_weight, config.max_depth) == (0.012, 99.0, 3)
    assert type(config.max_depth) is int


def test_what_decides_which_rows_are_predicted_is_not_searched() -> None:
    assert not {"first_train_times", "window_growth", "pooled", "seed"} & set(SEARCHED)


@pytest.mark.parametrize(
    ("point", "words"),
    [
        ({**MIDDLE, "max_depth": 7}, ["max_depth", "7", "1 to 6"]),
        ({**MIDDLE, "learning_rate": float("nan")}, ["learning_rate", "nan"]),
        ({**MIDDLE, "pooled": 1}, ["pooled"]),
        ({"max_depth": 3}, ["learning_rate", "this one has max_depth"]),
        ({}, ["nothing"]),
    ],
)
def test_what_is_no_point_is_refused_by_name(point: dict[str, float], words: list[str]) -> None:
    with pytest.raises(ConfigurationError) as refused:
        settings_at(BASE, point)
    assert all(word in str(refused.value) for word in words), refused.value
