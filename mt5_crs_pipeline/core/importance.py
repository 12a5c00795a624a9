"""Permutation importance: what each feature is worth on rows the model never saw."""

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mt5_crs_pipeline.core.labels import TARGET
from mt5_crs_pipeline.core.metrics import log_loss
from mt5_crs_pipeline.core.model import Model


def permutation_importance(model: Model, test_rows: pd.DataFrame, seed: int) -> dict[str, float]:
    """Return by how much the log-loss rises, in nats per row, when a feature's values change places among the rows.

    `test_rows` has the model's features, finite, symbol and target; rows without a target are left out. Where each
    symbol has a model of its own, values change places within the symbol. A feature that no tree asks for has 0.0; one
    below 0 did harm. Features that say the same stand in for each other, and all of them look less important. 0.0
    everywhere when no row has a target. After Breiman (2001), "Random Forests".
    """
    labelled = test_rows[test_rows[TARGET].notna()]
    rises = dict.fromkeys(model.feature_names, 0.0)
    for booster, at in model.parts(labelled["symbol"]):
        rows = labelled.iloc[at]
        target = rows[TARGET].to_numpy(dtype=float)
        values = rows[model.feature_names].to_numpy(dtype=np.float32)  # in 32 bits, in which XGBoost compares
        margin = booster.inplace_predict(values, predict_type="margin").astype(float)
        loss = log_loss(target, _probability(margin))
        order = pd.Series(range(len(rows))).sample(frac=1, random_state=seed).to_numpy()
        # A shallow tree asks for few features: only its own answers change, which is far cheaper than all trees anew.
        trees = _trees(booster)
        answers = [tree.answers(values) for tree in trees]
        for column, name in enumerate(model.feature_names):
            kept, moved = values[:, column].copy(), margin.copy()
            values[:, column] = kept[order]
            for tree, answer in zip(trees, answers, strict=True):
                if tree.asks_for(column):
                    moved += tree.answers(values) - answer
            values[:, column] = kept
            rises[name] += (log_loss(target, _probability(moved)) - loss) * len(rows) / len(labelled)
    return rises


class MeanImportance:
    """The permutation importance over windows, in which every row counts alike."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._windows: list[tuple[int, dict[str, float]]] = []

    def add(self, model: Model, test_rows: pd.DataFrame) -> None:
        """Take in a window: the `each_window` of out_of_sample_predictions."""
        rows = int(test_rows[TARGET].count())
        self._windows.append((rows, permutation_importance(model, test_rows, self._seed)))

    def mean(self) -> dict[str, float]:
        """Return the rise of the log-loss by feature, in nats per row; empty when there was no row with a target."""
        total = sum(rows for rows, _ in self._windows)
        names = self._windows[0][1] if total else {}
        return {name: sum(rows * rises[name] for rows, rises in self._windows) / total for name in names}


class _Tree:
    """One tree in XGBoost's JSON model schema: at a leaf no children, and as condition what it adds to the margin."""

    def __init__(self, tree: dict[str, Any]) -> None:
        self.left, self.right = np.array(tree["left_children"]), np.array(tree["right_children"])
        self.column = np.array(tree["split_indices"])
        self.condition = np.array(tree["split_conditions"], dtype=np.float32)
        self._asked = set(self.column[self.left >= 0].tolist())

    def asks_for(self, column: int) -> bool:
        return column in self._asked

    def answers(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """What the tree adds to the margin of every row of finite `values`."""
        node = np.zeros(len(values), dtype=np.intp)
        row = np.arange(len(values))
        while (inner := self.left[node] >= 0).any():
            is_left = values[row, self.column[node]] < self.condition[node]
            node = np.where(inner, np.where(is_left, self.left[node], self.right[node]), node)
        return self.condition[node]


def _trees(booster: Any) -> list[_Tree]:
    model = json.loads(booster.save_raw("json"))["learner"]["gradient_booster"]["model"]
    return [_Tree(tree) for tree in model["trees"]]


def _probability(margin: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return 1.0 / (1.0 + np.exp(-margin))
