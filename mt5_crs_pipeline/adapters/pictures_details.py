"""Pictures beside the main ones: what each feature is worth on unseen rows, and the rank correlation by year."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from mt5_crs_pipeline.adapters.pictures import (
    BLUE,
    GRID,
    ORANGE,
    TOP_FEATURES,
    empty_figure,
    label,
    legend_below,
    png_bytes,
    ticks,
)


def permutation_finding(importance: Mapping[str, float]) -> str:
    """Say which feature is worth most on unseen rows, and how many are worth anything."""
    ranked = _ranked(importance)
    helpful = int((ranked > 0).sum())
    if not helpful:
        return "No feature is worth anything on unseen rows"
    leader = f"{label(ranked.index[0])} is worth most on unseen rows, {ranked.iloc[0]:.2g} nats"
    return f"{leader}; {helpful} of {len(ranked)} help"


def permutation_importance(importance: Mapping[str, float]) -> bytes:
    """Draw the 20 features whose shuffling raises the log-loss most; below zero a feature did harm.

    `importance`: the mean rise of the log-loss in nats per row, by feature.
    """
    figure, axes = empty_figure(permutation_finding(importance))
    shown = _ranked(importance).iloc[:TOP_FEATURES]
    place = np.arange(len(shown))
    axes.barh(place, shown.to_numpy(), color=np.where(shown > 0, BLUE, ORANGE).tolist(), height=0.68)
    axes.invert_yaxis()
    ticks(axes, "y", place, [str(name) for name in shown.index], most=TOP_FEATURES, size=9 if len(shown) < 13 else 7)
    axes.grid(axis="x", color=GRID)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("rise of the log-loss when the feature is shuffled (nats per unseen row)")
    return png_bytes(figure)


def rank_ic_finding(rank_ic: pd.DataFrame) -> str:
    """Say in how many years the whole interval of the rank correlation lies above zero."""
    years = rank_ic[rank_ic["group"] != "all"]
    above = int((years["lower"] > 0).sum())
    return f"The rank correlation is above zero with its whole interval in {above} of {len(years)} years"


def rank_ic(rank_ic: pd.DataFrame) -> bytes:
    """Draw each year's rank correlation with its 95 % interval; a year in which it is not defined stays empty."""
    years = rank_ic[rank_ic["group"] != "all"]
    figure, axes = empty_figure(rank_ic_finding(rank_ic))
    place = np.arange(len(years))
    value = years["rank_ic"].to_numpy(dtype=float)
    ends = np.vstack([value - years["lower"].to_numpy(dtype=float), years["upper"].to_numpy(dtype=float) - value])
    axes.axhline(0.0, color=ORANGE, linewidth=2.0, label="nothing known", zorder=2)
    axes.errorbar(
        place, value, yerr=ends, fmt="o", color=BLUE, markersize=5, elinewidth=1.6, label="rank IC, 95 % interval"
    )
    ticks(axes, "x", place, years["group"].tolist(), most=25)
    axes.set_xlim(-0.7, len(years) - 0.3)
    axes.set_xlabel("year of the bar's close (UTC)")
    axes.set_ylabel("Spearman's correlation")
    legend_below(axes)
    return png_bytes(figure)


def _ranked(importance: Mapping[str, float]) -> "pd.Series[float]":
    values = pd.Series(dict(sorted(importance.items())), dtype="float64")
    return values[np.isfinite(values.to_numpy())].sort_values(ascending=False, kind="stable")
