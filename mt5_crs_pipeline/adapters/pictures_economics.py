"""The picture of what a simple rule would have earned."""

import math

import pandas as pd

from mt5_crs_pipeline.adapters.pictures import BLUE, INK, ORANGE, QUIET, empty_figure, legend_below, png_bytes
from mt5_crs_pipeline.core.economics import Economics


def economics_finding(result: Economics) -> str:
    """Say in one sentence what the rule made of one unit, and what keeping the symbols made of it."""
    net, held = (float(result.curve[name].iloc[-1]) for name in ("net", "held"))
    costs = "after costs" if result.costs_known else "before any cost (none is known)"
    return f"One unit became {net:.3g} {costs}, {held:.3g} when simply held; illustration, not evidence"


def wealth(result: Economics) -> bytes:
    """Draw the wealth of the rule net and gross of costs, and of holding, on a log axis where none is lost whole."""
    figure, axes = empty_figure(economics_finding(result))
    times = pd.DatetimeIndex(result.curve.index).tz_localize(None).to_numpy()
    axes.axhline(1.0, color=QUIET, linewidth=0.8, zorder=1)
    for name, label, color, width in (
        ("held", "held", ORANGE, 1.2),
        ("gross", "before costs", QUIET, 1.0),
        ("net", "after costs", BLUE, 1.8),
    ):
        axes.plot(times, result.curve[name].to_numpy(), color=color, linewidth=width, label=label)
    lowest, highest = float(result.curve.min().min()), float(result.curve.max().max())
    if lowest > 0 and math.isfinite(highest):
        axes.set_yscale("log")
        ticks = [value for value in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if lowest / 1.5 <= value <= highest * 1.5]
        axes.set_yticks(ticks, [f"{value:g}" for value in ticks])
        axes.minorticks_off()
    axes.set_xlabel("time (UTC)", color=INK)
    axes.set_ylabel("wealth from 1")
    legend_below(axes)
    return png_bytes(figure)
