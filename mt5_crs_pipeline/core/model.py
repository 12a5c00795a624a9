"""Train and predict on frames with native XGBoost: same rows and settings, same bytes."""

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from mt5_crs_pipeline.core.errors import InputError
from mt5_crs_pipeline.core.labels import EVENT_TIMESTAMP, FORWARD_RETURN, LABEL_TIME, SPREAD_SHARE, TARGET
from mt5_crs_pipeline.core.splits import hold_out_latest, walk_forward

MODEL_TYPE = "xgboost.Booster"
VOLATILITY: Final = "realised_volatility_20"
"""The feature that says how wild the market was when a row was predicted."""
# What is kept with a prediction, so that it can be judged without the training set.
_KEPT: Final = ("symbol", EVENT_TIMESTAMP, LABEL_TIME, TARGET, FORWARD_RETURN, SPREAD_SHARE, VOLATILITY)
PREDICTION_COLUMNS: Final = (*_KEPT, "probability")


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides the model besides the rows."""

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


def fit(rows: pd.DataFrame, features: list[str], config: TrainingConfig) -> Any:
    """Return an xgboost.Booster trained on all `rows`, with the number of trees found by early stopping.

    `rows` has the features, target (0.0/1.0), event_timestamp and label_time. Early stopping watches the latest slice
    of these same rows, purged; the final fit then uses every row. Raises InputError when one class is missing.
    """
    import xgboost

    check_trainable(rows, features)
    slice_ = hold_out_latest(rows, config.early_stopping_share)
    rounds = 1
    if len(slice_.train):
        head, tail = rows.iloc[slice_.train], rows.iloc[slice_.test]
        probe = xgboost.train(
            config.booster_parameters(),
            _matrix(head, features),
            num_boost_round=config.max_rounds,
            evals=[(_matrix(tail, features), "latest")],
            early_stopping_rounds=config.early_stopping_rounds,
            verbose_eval=False,
        )
        rounds = probe.best_iteration + 1
    return xgboost.train(config.booster_parameters(), _matrix(rows, features), num_boost_round=rounds)


def predict(booster: Any, rows: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Return the probability of UP per row. Columns are taken by the booster's own names and must be finite."""
    import xgboost

    names = booster.feature_names or []
    values = rows[names]
    finite = np.isfinite(values.to_numpy(dtype=float))
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        value = float(values.iloc[row, column])
        raise InputError(f"feature {names[int(column)]!r} is {value} in row {rows.index[row]}")
    if not len(values):
        return np.zeros(0)
    probability: npt.NDArray[np.float64] = booster.predict(xgboost.DMatrix(values)).astype(np.float64)
    return probability


def out_of_sample_predictions(rows: pd.DataFrame, features: list[str], config: TrainingConfig) -> pd.DataFrame:
    """Predict every row of every walk-forward window with a model that learnt only from before it.

    Returns PREDICTION_COLUMNS, of those that `rows` has, in the order of the windows. Rows without a target, whose
    close stays inside the cost band, are predicted and not learnt from.
    """
    parts = []
    kept = [name for name in _KEPT if name in rows]
    for split in walk_forward(rows, config.first_train_times, config.window_growth):
        booster = fit(rows.iloc[split.train].dropna(subset=[TARGET]), features, config)
        test = rows.iloc[split.test]
        parts.append(test[kept].assign(probability=predict(booster, test)))
    return pd.concat(parts, ignore_index=True)


def importance(booster: Any) -> dict[str, float]:
    """Return each feature's share of the total gain; they sum to 1 unless no tree split."""
    gains = booster.get_score(importance_type="total_gain")
    total = sum(gains.values()) or 1.0
    return {name: float(gains.get(name, 0.0)) / total for name in booster.feature_names or []}


def check_trainable(rows: pd.DataFrame, features: list[str]) -> None:
    """Raise InputError unless `rows` is complete, finite and has both classes."""
    values = rows[features].to_numpy(dtype=float)
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0]
        raise InputError(f"training row {rows.index[row]} has {features[int(column)]} = {values[row, column]}")
    classes = sorted(rows[TARGET].unique().tolist())
    if classes != [0.0, 1.0]:
        raise InputError(
            f"training needs bars that went up and bars that did not; {len(rows)} rows have only {classes}"
        )


def model_version(rows: pd.DataFrame, recipe_hash: str) -> str:
    """Name a model by the date of its newest training row and the hash of everything that decides its bytes."""
    return f"{rows['event_timestamp'].max():%Y%m%d}-{recipe_hash[:12]}"


def _matrix(rows: pd.DataFrame, features: list[str]) -> Any:
    import xgboost

    return xgboost.DMatrix(rows[features], label=rows[TARGET])
