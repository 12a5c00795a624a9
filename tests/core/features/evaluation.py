"""Expressions evaluated by the kernel."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from mt5_crs_pipeline.core.features.engine import evaluate
from mt5_crs_pipeline.core.features.expressions import Expression
from mt5_crs_pipeline.core.features.operations import INPUTS
from mt5_crs_pipeline.core.features.program import assemble
from mt5_crs_pipeline.core.panel import Panel

Array = npt.NDArray[np.float64]


def evaluated(expressions: Sequence[Expression], **columns: Sequence[float] | Array) -> Array:
    """A row per expression, a column per bar; inputs that are not given are 1."""
    length = len(next(iter(columns.values())))
    bars = pd.DataFrame({name: np.asarray(columns.get(name, np.ones(length)), dtype=float) for name in INPUTS})
    bars["time"] = pd.date_range("2024-01-01", periods=length, freq="h", tz="UTC")
    out = np.full((len(expressions), length), -777.0)
    evaluate(assemble(expressions), Panel(bars, INPUTS), out)
    return out
