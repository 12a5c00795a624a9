"""Train and predict on frames with native XGBoost: same rows and settings, same bytes."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from mt5_crs_pipeline.core.errors import ConfigurationError, InputError
from mt5_crs_pipeline.core.labels import EVENT_TIMESTAMP, FORWARD_RETURN, LABEL_TIME, SPREAD_SHARE, TARGET
from mt5_crs_pipeline.core.splits import Rows, hold_out_latest, walk_forward

MODEL_TYPE = "xgboost.Booster"
VOLATILITY: Final = "realised_volatility_20"
"""The feature that says how wild the market was when a row was predicted."""
# What is kept with a prediction, so that it can be judged without the training set.
_KEPT: Final = ("symbol", EVENT_TIMESTAMP, LABEL_TIME, TARGET, FORWARD_RETURN, SPREAD_SHARE, VOLATILITY)
PREDICTION_COLUMNS: Final = (*_KEPT, "probability")
# XGBoost computes in 32 bits: a larger value would be infinite there.
_LARGEST: Final = float(np.finfo(np.float32).max)


_SMALLEST_WHOLE: Final = {
    "max_depth": 1,
    "max_rounds": 1,
    "early_stopping_rounds": 1,
    "first_train_times": 1,
    "seed": 0,
}
_SHARES: Final = ("learning_rate", "subsample", "colsample_bytree")


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides the model besides the rows; ConfigurationError names a setting that makes no sense."""

    max_depth: int = 3
    learning_rate: float = 0.05
    min_child_weight: float = 20.0
    subsample: float = 0.8
    colsample_bytree: float = 0.6
    max_rounds: int = 300
    early_stopping_rounds: int = 20
    early_stopping_share: float = 0.2
    first_train_times: int = 100
    window_growth: float = 0.25
    seed: int = 7

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            _check_setting(name, value)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings by name."""
        return asdict(self)

    def booster_parameters(self) -> dict[str, Any]:
        """Return the settings XGBoost's learner takes."""
        return {
            "objective": "binary:logistic",
            "eval_metric": "logloss",
            "tree_method": "hist",
            "max_depth": self.max_depth,
            "learning_rate": self.learning_rate,
            "min_child_weight": self.min_child_weight,
            "subsample": self.subsample,
            "colsample_bytree": self.colsample_bytree,
            "seed": self.seed,
        }


def _check_setting(name: str, value: object) -> None:
    whole = name in _SMALLEST_WHOLE
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise ConfigurationError(f"{name} is {value!r}: give a {'whole number' if whole else 'number'}")
    if whole and value < _SMALLEST_WHOLE[name]:
        raise ConfigurationError(f"{name} is {value}: give a whole number of at least {_SMALLEST_WHOLE[name]}")
    if name in _SHARES and not 0 < value <= 1:
        raise ConfigurationError(f"{name} is {value}: give a number above 0, at most 1")
    if name == "early_stopping_share" and not 0 < value < 1:
        raise ConfigurationError(f"{name} is {value}: give a number between 0 and 1")
    if name == "window_growth" and not 0 < value < math.inf:
        raise ConfigurationError(f"{name} is {value}: give a number above 0")
    if name == "min_child_weight" and not 0 <= value < math.inf:
        raise ConfigurationError(f"{name} is {value}: give a number of at least 0")


def fit(rows: pd.DataFrame, features: list[str], config: TrainingConfig) -> Any:
    """Return an xgboost.Booster trained on all `rows`, with the number of trees found by early stopping.

    `rows` has the features, target (0.0/1.0), event_timestamp and label_time. Early stopping watches the latest slice
    of these same rows, purged; the final fit then uses every row. Raises InputError when one class is missing.
    """
    import xgboost

    check_trainable(rows, features)
    parameters = config.booster_parameters()
    whole = _matrix(rows, features)
    slice_ = hold_out_latest(rows, config.early_stopping_share)
    rounds = 1
    if len(slice_.train):
        # Finding the bins costs more than all else about a matrix, so it is done once, of every row's features; which
        # bin a row is in says nothing about targets.
        head = _matrix(_taken(rows, slice_.train), features, whole)
        probe = xgboost.train(
            parameters,
            head,
            num_boost_round=config.max_rounds,
            evals=[(_matrix(_taken(rows, slice_.test), features, head), "latest")],
            early_stopping_rounds=config.early_stopping_rounds,
            verbose_eval=False,
        )
        rounds = probe.best_iteration + 1
        del head, probe
    return xgboost.train(parameters, whole, num_boost_round=rounds)


def predict(booster: Any, rows: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Return the probability of UP per row. Columns are taken by the booster's own names and must be finite."""
    names = booster.feature_names or []
    values = rows[names].to_numpy(dtype=float)
    if not _is_usable(values).all():
        row, name, value = _unusable(rows, names)
        raise InputError(f"feature {name!r} is {value} in row {row}")
    if not len(values):
        return np.zeros(0)
    probability: npt.NDArray[np.float64] = booster.inplace_predict(values).astype(np.float64)
    return probability


def out_of_sample_predictions(rows: pd.DataFrame, features: list[str], config: TrainingConfig) -> pd.DataFrame:
    """Predict every row of every walk-forward window with a model that learnt only from before it.

    Returns PREDICTION_COLUMNS, of those that `rows` has, in the order of the windows. Rows without a target, whose
    close stays inside the cost band, are predicted and not learnt from.
    """
    parts = []
    kept = [name for name in _KEPT if name in rows]
    labelled = rows[TARGET].notna().to_numpy()
    for split in walk_forward(rows, config.first_train_times, config.window_growth):
        train = split.train[labelled[split.train]]
        booster = fit(_taken(rows, train), features, config)
        test = _taken(rows, split.test)
        parts.append(test[kept].assign(probability=predict(booster, test)))
    return pd.concat(parts, ignore_index=True)


def importance(booster: Any) -> dict[str, float]:
    """Return each feature's share of the total gain; they sum to 1 unless no tree split."""
    gains = booster.get_score(importance_type="total_gain")
    total = sum(gains.values()) or 1.0
    return {name: float(gains.get(name, 0.0)) / total for name in booster.feature_names or []}


def check_trainable(rows: pd.DataFrame, features: list[str]) -> None:
    """Raise InputError unless `rows` is complete, finite and has both classes."""
    # Column by column: all at once would be a second copy of the features.
    if not all(_is_usable(rows[name].to_numpy(dtype=float)).all() for name in features):
        row, name, value = _unusable(rows, features)
        raise InputError(f"training row {row} has {name} = {value}")
    classes = sorted(rows[TARGET].unique().tolist())
    if classes != [0.0, 1.0]:
        raise InputError(
            f"training needs bars that went up and bars that did not; {len(rows)} rows have only {classes}"
        )


def model_version(rows: pd.DataFrame, recipe_hash: str) -> str:
    """Name a model by the date of its newest training row and the hash of everything that decides its bytes."""
    return f"{rows['event_timestamp'].max():%Y%m%d}-{recipe_hash[:12]}"


def _matrix(rows: pd.DataFrame, features: list[str], binned_as: Any = None) -> Any:
    """Return the rows as XGBoost learns from them: one byte per value, with the bins of `binned_as` where given."""
    import xgboost

    # rows[features] would copy; columns of their own do not, and XGBoost bins them where they are.
    columns = pd.DataFrame({name: rows[name] for name in features}, copy=False)
    return xgboost.QuantileDMatrix(columns, label=rows[TARGET], ref=binned_as)


def _taken(rows: pd.DataFrame, positions: Rows) -> pd.DataFrame:
    """Return the rows at ascending `positions`, without a copy where they follow each other."""
    if len(positions) and positions[-1] - positions[0] == len(positions) - 1:
        return rows.iloc[positions[0] : positions[-1] + 1]
    return rows.iloc[positions]


def _is_usable(values: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    return np.abs(values) <= _LARGEST


def _unusable(rows: pd.DataFrame, features: list[str]) -> tuple[Any, str, float]:
    """Return the label of the first row with an unusable value, the first feature it is in, and the value."""
    values = rows[features].to_numpy(dtype=float)
    row, column = np.argwhere(~_is_usable(values))[0]
    return rows.index[row], features[int(column)], float(values[row, column])
