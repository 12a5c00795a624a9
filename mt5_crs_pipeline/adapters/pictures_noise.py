"""The picture of where a model lies among runs on data of which nothing can be known."""

import numpy as np

from mt5_crs_pipeline.adapters.pictures import BLUE, GRID, ORANGE, empty_figure, legend_below, png_bytes
from mt5_crs_pipeline.core.noise_floor import Place


def finding(place: Place) -> str:
    """Say in one sentence above how many runs the model lies."""
    runs = len(place.floor.runs)
    wealth = f"Log-wealth {place.model.log_wealth:.2f}"
    return f"{wealth} is above {place.above} of {runs} runs on noise: p = {place.p_value:.2g}"


def noise_floor(place: Place) -> bytes:
    """Draw the log-wealth of every run as a dot, one line for each kind of noise, and the model's as a line."""
    figure, axes = empty_figure(finding(place))
    kinds = {"permuted labels": place.floor.permuted, "random walks": place.floor.walks}
    for line, runs in enumerate(kinds.values()):
        wealth = [run.log_wealth for run in runs]
        # Stacked a little, so that equal runs can be counted.
        height = line + 0.3 * (np.arange(len(wealth)) % 5 - 2) / 2
        axes.plot(
            wealth, height, "o", color=ORANGE, alpha=0.6, label=None if line else "runs where nothing can be known"
        )
    axes.axvline(place.model.log_wealth, color=BLUE, linewidth=2.0, label="the model")
    axes.set_yticks(range(len(kinds)), list(kinds))
    axes.set_ylim(len(kinds) - 0.5, -0.5)
    axes.grid(axis="x", color=GRID)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("log-wealth (nats)")
    legend_below(axes)
    return png_bytes(figure)
