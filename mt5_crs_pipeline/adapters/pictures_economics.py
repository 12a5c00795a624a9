"""The picture of what a simple rule would have earned."""

import numpy as np
import pandas as pd

from mt5_crs_pipeline.adapters.pictures import (
    BLUE,
    ORANGE,
    POINTS_PER_LINE,
    QUIET,
    empty_figure,
    legend_below,
    plain,
    plain_log_ticks,
    png_bytes,
)
from mt5_crs_pipeline.core.economics import Economics

_LINES = (("held", "held", ORANGE, 1.2), ("gross", "before costs", QUIET, 1.0), ("net", "after costs", BLUE, 1.8))


def economics_finding(result: Economics) -> str:
    """Say in one sentence what the rule made of one unit, and what keeping the symbols made of it."""
    net, held = (1 + one.total_return for one in (result.net, result.held))
    costs = "after costs" if result.costs_known else "before any cost (none is known)"
    return f"Illustration: one unit became {net:.3g} {costs}, and {held:.3g} when simply held"


def wealth(result: Economics) -> bytes:
    """Draw the wealth of the rule net and gross of costs, and of holding, on a log axis; below, the net drawdown.

    A wealth of 0 is not drawn. Costs of which nothing is known make no line of their own.
    """
    figure, axes = empty_figure(economics_finding(result))
    grid = figure.add_gridspec(2, 1, height_ratios=(3, 1))
    axes.set_subplotspec(grid[0])
    below = figure.add_subplot(grid[1], sharex=axes)
    plain(below)
    curve = result.curve
    # The lowest point always stays: the table speaks of it.
    kept = np.unique(np.linspace(0, len(curve) - 1, min(len(curve), POINTS_PER_LINE)).astype(int))
    if result.net.trough is not None:
        kept = np.union1d(kept, curve.index.get_indexer(pd.DatetimeIndex([result.net.trough])))
    times = pd.DatetimeIndex(curve.index[kept]).tz_convert("UTC").tz_localize(None).to_numpy()
    axes.axhline(1.0, color=QUIET, linewidth=0.8, zorder=1)
    for name, label, color, width in _LINES if result.costs_known else (_LINES[0], _LINES[2]):
        line = curve[name].to_numpy()[kept]
        axes.plot(times, np.where(line > 0, line, np.nan), color=color, linewidth=width, label=label)
    axes.set_yscale("log")
    plain_log_ticks(axes)
    axes.set_ylabel("wealth (log)")
    axes.tick_params(labelbottom=False)
    net = curve["net"].to_numpy()
    fallen = 100 * (net / np.maximum.accumulate(net) - 1)
    below.fill_between(times, fallen[kept], 0.0, color=BLUE, alpha=0.35, linewidth=0)
    below.set_ylim(min(1.1 * float(fallen.min()), -1.0), 0.0)
    below.set_ylabel("drawdown, %")
    below.set_xlabel("time (UTC)")
    below.tick_params(axis="x", labelsize=8)
    figure.align_ylabels()
    legend_below(axes)
    return png_bytes(figure)
