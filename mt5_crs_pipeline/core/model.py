"""Train and predict on frames with native XGBoost: same rows and settings, same bytes."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from mt5_crs_pipeline.core.errors import ConfigurationError, InputError, UnknownSymbolError
from mt5_crs_pipeline.core.labels import EVENT_TIMESTAMP, FORWARD_RETURN, LABEL_TIME, SPREAD_SHARE, TARGET
from mt5_crs_pipeline.core.splits import Rows, hold_out_latest, latest_times, walk_forward
from mt5_crs_pipeline.core.weights import WEIGHT, weighed

MODEL_TYPE = "xgboost.Booster"
VOLATILITY: Final = "realised_volatility_20"
"""The feature that says how wild the market was when a row was predicted."""
# What is kept with a prediction, so that it can be judged without the training set.
_KEPT: Final = ("symbol", EVENT_TIMESTAMP, LABEL_TIME, TARGET, FORWARD_RETURN, SPREAD_SHARE, VOLATILITY)
PREDICTION_COLUMNS: Final = (*_KEPT, "probability")
# XGBoost computes in 32 bits: a larger value would be infinite there.
_LARGEST: Final = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides the model besides the rows.

    `max_train_times` bounds how many bar times back a model learns from; 0 is all history. `pooled` trains one model on
    the rows of all symbols; without it each symbol has a model of its own, of its rows alone. Raises ConfigurationError
    naming a setting whose value makes no sense.
    """

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
    max_train_times: int = 0
    seed: int = 7
    pooled: bool = True

    def __post_init__(self) -> None:
        for setting in fields(self):
            value, allowed = getattr(self, setting.name), _ALLOWED[setting.name]
            if setting.type is float and type(value) is int:
                # Settings are compared and hashed as they are written: 1 and 1.0 are one setting.
                value = float(value)
                object.__setattr__(self, setting.name, value)
            if type(value) is not setting.type or not allowed.holds(value):
                raise ConfigurationError(f"{setting.name} is {value!r}: it must be {allowed.words}")

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


class _Allowed(NamedTuple):
    words: str
    holds: Callable[[Any], bool]


_COUNT: Final = _Allowed("a whole number of at least 1", lambda value: value >= 1)
_SHARE: Final = _Allowed("above 0 and at most 1", lambda value: 0 < value <= 1)
_ALLOWED: Final = {
    # A tree doubles with every level: deeper than 16 has more leaves than there are rows.
    "max_depth": _Allowed("a whole number from 1 to 16", lambda value: 1 <= value <= 16),
    "learning_rate": _SHARE,
    "min_child_weight": _Allowed("a number of at least 0", lambda value: 0 <= value < math.inf),
    "subsample": _SHARE,
    "colsample_bytree": _SHARE,
    "max_rounds": _COUNT,
    "early_stopping_rounds": _COUNT,
    "early_stopping_share": _Allowed("above 0 and below 1", lambda value: 0 < value < 1),
    "first_train_times": _COUNT,
    "window_growth": _Allowed("a number above 0", lambda value: 0 < value < math.inf),
    "max_train_times": _Allowed("a whole number of at least 2, or 0 for all", lambda value: value == 0 or value >= 2),
    "seed": _Allowed("a whole number from 0 to 2147483647", lambda value: 0 <= value < 2**31),
    "pooled": _Allowed("true or false", lambda value: True),
}


@dataclass(frozen=True, eq=False)
class Model:
    """What was trained: xgboost.Booster by symbol, or under None the one of all symbols."""

    boosters: Mapping[str | None, Any]

    @property
    def pooled(self) -> bool:
        """True when one booster answers for every symbol."""
        return None in self.boosters

    @property
    def feature_names(self) -> list[str]:
        """The features every booster takes, in its order."""
        return next(iter(self.boosters.values())).feature_names or []

    @property
    def trees(self) -> int:
        """The number of trees, over all boosters."""
        return sum(booster.num_boosted_rounds() for booster in self.boosters.values())

    def parts(self, symbols: pd.Series) -> Iterator[tuple[Any, Rows]]:
        """Yield every booster that answers for some of the rows, with their positions.

        Raises UnknownSymbolError for a symbol that has no booster.
        """
        if self.pooled:
            if len(symbols):
                yield self.boosters[None], np.arange(len(symbols))
            return
        for symbol in symbols.unique():
            if symbol not in self.boosters:
                known = ", ".join(map(str, self.boosters))
                raise UnknownSymbolError(f"there is no model of {symbol!r}, only of {known}")
            yield self.boosters[symbol], np.flatnonzero((symbols == symbol).to_numpy())


def fit(rows: pd.DataFrame, features: list[str], config: TrainingConfig) -> Model:
    """Return a model trained on all `rows`, with the number of trees found by early stopping.

    `rows` has the features, symbol, target (0.0/1.0), event_timestamp, label_time and, where rows do not count alike,
    weight. Early stopping watches the latest slice of these same rows, purged; the final fit then uses every row. The
    same rows and settings give the same bytes; with this release of XGBoost on any number of threads, though it does
    not promise so. Raises InputError when one class is missing, and naming the symbol that cannot have its own model.
    """
    check_trainable(rows, features)
    if config.pooled:
        return Model({None: _booster(rows, features, config)})
    boosters: dict[str | None, Any] = {}
    for symbol, own in rows.groupby("symbol", observed=True):
        lack = _lack(own, config)
        if lack:
            raise InputError(
                f"{symbol} cannot have a model of its own: {lack}; leave it out with MT5_CRS_SYMBOLS, or train one"
                " model of all symbols (pooled)"
            )
        boosters[str(symbol)] = _booster(own, features, config)
    return Model(boosters)


def fit_final(rows: pd.DataFrame, features: list[str], config: TrainingConfig) -> Model:
    """Return the model that will answer: as `fit`, on all rows with a target that a window ending now would learn from.

    Overlapping labels count less, as in `out_of_sample_predictions`.
    """
    return fit(weighed(latest_times(rows, config.max_train_times).dropna(subset=[TARGET])), features, config)


def predict(model: Model, rows: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Return the probability of UP per row. Columns are taken by the model's own names and must be finite.

    The column symbol is read only where each symbol has a model of its own; UnknownSymbolError where it has none.
    """
    names = model.feature_names
    values = rows[names].to_numpy(dtype=float)
    if not _is_usable(values).all():
        row, name, value = _unusable(rows, names)
        raise InputError(f"feature {name!r} is {value} in row {row}")
    if not len(values):
        return np.zeros(0)
    if model.pooled:
        probability: npt.NDArray[np.float64] = model.boosters[None].inplace_predict(values).astype(np.float64)
        return probability
    probability = np.empty(len(values))
    for booster, at in model.parts(rows["symbol"]):
        probability[at] = booster.inplace_predict(values[at])
    return probability


def out_of_sample_predictions(
    rows: pd.DataFrame,
    features: list[str],
    config: TrainingConfig,
    each_window: Callable[[Model, pd.DataFrame], object] | None = None,
) -> pd.DataFrame:
    """Predict every row of every walk-forward window with a model that learnt only from before it.

    Returns PREDICTION_COLUMNS, of those that `rows` has, in the order of the windows. Rows without a target, whose
    close stays inside the cost band, are predicted and not learnt from. Where each symbol has a model of its own, the
    rows of a symbol are not predicted in a window before which it has too little history for one. `each_window` is
    called with the model and the rows it predicted.
    """
    parts = []
    kept = [name for name in _KEPT if name in rows]
    labelled = rows[TARGET].notna().to_numpy()
    for split in walk_forward(rows, config.first_train_times, config.window_growth, config.max_train_times):
        train, test = _taken(rows, split.train[labelled[split.train]]), _taken(rows, split.test)
        if not config.pooled:
            own = train.groupby("symbol", observed=True)
            able = [symbol for symbol, rows_of_one in own if not _lack(rows_of_one, config)]
            train, test = train[train["symbol"].isin(able)], test[test["symbol"].isin(able)]
            if test.empty:
                continue
        model = fit(weighed(train), features, config)
        parts.append(test[kept].assign(probability=predict(model, test)))
        if each_window:
            each_window(model, test)
    if not parts:
        raise InputError(
            "no symbol has history enough for a model of its own before it ends: train one of all (pooled)"
        )
    return pd.concat(parts, ignore_index=True)


def importance(model: Model) -> dict[str, float]:
    """Return each feature's share of the total gain, the mean over the boosters; they sum to 1 if all have splits."""
    shares = dict.fromkeys(model.feature_names, 0.0)
    for booster in model.boosters.values():
        gains = booster.get_score(importance_type="total_gain")
        for name, gain in gains.items():
            shares[name] += float(gain) / sum(gains.values()) / len(model.boosters)
    return shares


def check_trainable(rows: pd.DataFrame, features: list[str]) -> None:
    """Raise InputError unless `rows` is complete, finite and has both classes, and weights are positive."""
    # Column by column: all at once would be a second copy of the features.
    if not all(_is_usable(rows[name].to_numpy(dtype=float)).all() for name in features):
        row, name, value = _unusable(rows, features)
        raise InputError(f"training row {row} has {name} = {value}")
    classes = sorted(rows[TARGET].unique().tolist())
    if classes != [0.0, 1.0]:
        raise InputError(
            f"training needs bars that went up and bars that did not; {len(rows)} rows have only {classes}"
        )
    if WEIGHT in rows:
        weights = rows[WEIGHT].to_numpy(dtype=float)
        bad = np.flatnonzero(~(_is_usable(weights) & (weights > 0)))
        if len(bad):
            raise InputError(
                f"training row {rows.index[bad[0]]} has weight {weights[bad[0]]}: give a positive one, or leave the row"
                " out"
            )


def model_version(rows: pd.DataFrame, recipe_hash: str) -> str:
    """Name a model by the date of its newest training row and the hash of everything that decides its bytes."""
    return f"{rows['event_timestamp'].max():%Y%m%d}-{recipe_hash[:12]}"


def _booster(rows: pd.DataFrame, features: list[str], config: TrainingConfig) -> Any:
    import xgboost

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


def _lack(rows: pd.DataFrame, config: TrainingConfig) -> str | None:
    """Return what one symbol's rows lack for a model of their own, in words."""
    classes = sorted(rows[TARGET].unique().tolist())
    if classes != [0.0, 1.0]:
        return f"its {len(rows)} rows have only {classes}"
    # A row's second derivative of the log-loss is at most 1/4, and each side of a split needs min_child_weight of it.
    needed = math.ceil(8 * config.min_child_weight)
    if len(rows) < needed:
        return (
            f"it has {len(rows)} rows, and a single split needs {needed} (min_child_weight {config.min_child_weight})"
        )
    return None


def _matrix(rows: pd.DataFrame, features: list[str], binned_as: Any = None) -> Any:
    """Return the rows as XGBoost learns from them: one byte per value, in the bins of `binned_as` where given."""
    import xgboost

    # rows[features] would copy; columns of their own do not, and XGBoost bins them where they are.
    columns = pd.DataFrame({name: rows[name] for name in features}, copy=False)
    # With a mean of 1 a weighted row counts on average as one without, against min_child_weight and regularisation.
    weights = rows[WEIGHT] / rows[WEIGHT].mean() if WEIGHT in rows else None
    return xgboost.QuantileDMatrix(columns, label=rows[TARGET], weight=weights, ref=binned_as)


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
