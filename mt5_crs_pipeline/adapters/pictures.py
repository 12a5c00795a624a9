"""Pictures of bars and evaluations as PNG bytes: equal data gives equal bytes, and no global matplotlib state.

Every picture takes matplotlib in when it is drawn, so that importing this module stays cheap.
"""

import base64
import io
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mt5_crs_pipeline.core.evaluation import DIRECTIONS, Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET, GRID = "#1f2933", "#616e7c", "#e4e7eb"
BLUE, ORANGE = "#2368b0", "#d9730d"
SERIES = (BLUE, ORANGE, "#2a9d6f", "#9b4dca", "#c23b5e", "#0f8b8d", "#8d6b1f", "#6b7280", "#5a67d8", "#a0522d")
SIZE_INCHES, DOTS_PER_INCH = (8.0, 3.5), 100
TOP_FEATURES = 20
POINTS_PER_LINE = 2000


def as_markdown(png: bytes, alt: str) -> str:
    """Return a picture as one Markdown image that carries its own bytes, for Dagster metadata."""
    text = re.sub(r"([\\\[\]<>&`*])", r"\\\1", " ".join(alt.split()))
    return f"![{text}]({data_uri(png)})"


def data_uri(png: bytes) -> str:
    """Return PNG bytes as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def year_finding(evaluation: Evaluation) -> str:
    """Say in how many years the whole accuracy interval lies above the base rate."""
    years = evaluation.by_year
    above = int((years["lower"] > years["base_rate"]).sum())
    return f"Accuracy clears the base rate with its whole interval in {above} of {_count(len(years), 'year')}"


def reliability_finding(evaluation: Evaluation) -> str:
    """Say in how many bins the predicted probability is compatible with what happened."""
    bins = evaluation.reliability
    good = int(bins["mean_probability"].between(bins["lower"], bins["upper"]).sum())
    return f"The predicted probability fits the share of UP in {good} of {_count(len(bins), 'bin')}"


def importance_finding(evaluation: Evaluation) -> str:
    """Say which feature the model leans on most."""
    ranked, unit = _shown_importance(evaluation.importance)
    if ranked.empty:
        return "No feature carries importance"
    leader = f"{ranked.iloc[0]:.1f} %" if unit == "%" else f"{ranked.iloc[0]:.3g}"
    return f"{label(ranked.index[0])} matters most: {leader} of the model's importance"


def confusion_finding(evaluation: Evaluation) -> str:
    """Say what share of the UP and of the DOWN bars was predicted right."""
    counts = evaluation.confusion.to_numpy()
    shares = [
        f"{100 * counts[place, place] / counts[place].sum():.1f} % of {name} bars"
        for place, name in ((1, "UP"), (0, "DOWN"))
        if counts[place].sum()
    ]
    return f"{' and '.join(shares)} are called right"


def evidence_finding(comparison: Mapping[str, Any]) -> str:
    """Say whether the log-wealth is above the threshold, and when it first was."""
    wealth, needed = comparison["log_wealth"], comparison["threshold"]
    if comparison["shown"]:
        return f"Log-wealth {wealth:.1f} is above {needed:.1f}, first on {comparison['reached_at'][:10]}"
    return f"Log-wealth {wealth:.1f} is not above the {needed:.1f} that show an edge"


def evidence(comparison: Mapping[str, Any]) -> bytes:
    """Draw the log-wealth of a bettor who believes the model, and the threshold.

    `comparison` is a verdict's evidence: log_wealth, threshold, shown, reached_at, and curve as [ISO time, nats] pairs;
    where it has live_since (ISO time), a line shows where live outcomes begin.
    """
    figure, axes = empty_figure(evidence_finding(comparison))
    times = (
        pd.to_datetime([time for time, _ in comparison["curve"]], utc=True, format="ISO8601")
        .tz_localize(None)
        .to_numpy()
    )
    wealth = [nats for _, nats in comparison["curve"]]
    axes.axhline(0.0, color=QUIET, linewidth=0.8, zorder=1)
    axes.axhline(comparison["threshold"], color=ORANGE, linewidth=2.0, label="an edge is shown above", zorder=2)
    axes.plot(times, wealth, color=BLUE, linewidth=1.8, label="log-wealth", zorder=3)
    if since := comparison.get("live_since"):
        moment = [pd.Timestamp(since).tz_convert("UTC").tz_localize(None).to_datetime64()] * 2
        whole_height = axes.get_xaxis_transform()
        axes.plot(moment, [0, 1], transform=whole_height, color=QUIET, linestyle="--", label="live from here", zorder=2)
    axes.set_xlabel("bar's close (UTC)")
    axes.set_ylabel("nats")
    legend_below(axes)
    return png_bytes(figure)


def accuracy_by_year(evaluation: Evaluation) -> bytes:
    """Draw each year's accuracy with its 95 % interval beside that year's base rate."""
    years = evaluation.by_year
    figure, axes = empty_figure(year_finding(evaluation))
    place = np.arange(len(years))
    below = (years["accuracy"] - years["lower"]).to_numpy()
    above = (years["upper"] - years["accuracy"]).to_numpy()
    axes.hlines(
        years["base_rate"].to_numpy(),
        place - 0.3,
        place + 0.3,
        color=ORANGE,
        linewidth=2.5,
        label="base rate",
        zorder=2,
    )
    axes.errorbar(
        place,
        years["accuracy"].to_numpy(),
        yerr=np.vstack([below, above]),
        fmt="o",
        color=BLUE,
        markersize=5,
        elinewidth=1.6,
        label="accuracy, 95 % interval",
        zorder=3,
    )
    ticks(axes, "x", place, years["group"].tolist(), most=25)
    axes.set_xlim(-0.7, len(years) - 0.3)
    axes.set_xlabel("year of the bar's close (UTC)")
    axes.set_ylabel("share of rows")
    legend_below(axes)
    return png_bytes(figure)


def reliability(evaluation: Evaluation) -> bytes:
    """Draw the share of UP that followed against the predicted probability, with intervals and rows per bin."""
    bins = evaluation.reliability
    figure, axes = empty_figure(reliability_finding(evaluation))
    left, right = float(bins["bin_lower"].min()), float(bins["bin_upper"].max())
    axes.plot([0, 1], [0, 1], color=ORANGE, linewidth=1.5, label="perfect", zorder=1)
    below = (bins["share_up"] - bins["lower"]).to_numpy()
    above = (bins["upper"] - bins["share_up"]).to_numpy()
    axes.errorbar(
        bins["mean_probability"].to_numpy(),
        bins["share_up"].to_numpy(),
        yerr=np.vstack([below, above]),
        fmt="o",
        color=BLUE,
        markersize=5,
        elinewidth=1.6,
        label="what followed, 95 % interval",
        zorder=3,
    )
    low, high = min(left, float(bins["lower"].min())), max(right, float(bins["upper"].max()))
    pad = 0.06 * (high - low)
    axes.set_xlim(left, right)
    axes.set_ylim(low - 3 * pad, high + pad)
    for bin_ in bins.itertuples():
        middle = (float(str(bin_.bin_lower)) + float(str(bin_.bin_upper))) / 2
        axes.text(middle, low - 2.6 * pad, f"{bin_.rows:,} rows", color=QUIET, fontsize=8, ha="center")
    axes.set_xticks(np.unique(bins[["bin_lower", "bin_upper"]].to_numpy()))
    axes.set_xlabel("predicted probability of UP, ten equal bins")
    axes.set_ylabel("share of UP that followed")
    legend_below(axes)
    return png_bytes(figure)


def feature_importance(evaluation: Evaluation) -> bytes:
    """Draw the 20 most important features as bars."""
    figure, axes = empty_figure(importance_finding(evaluation))
    values, unit = _shown_importance(evaluation.importance)
    shown = values.iloc[:TOP_FEATURES]
    place = np.arange(len(shown))
    axes.barh(place, shown.to_numpy(), color=BLUE, height=0.68)
    axes.invert_yaxis()
    ticks(axes, "y", place, [str(name) for name in shown.index], most=TOP_FEATURES, size=9 if len(shown) < 13 else 7)
    axes.grid(axis="x", color=GRID)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("share of total importance (%)" if unit == "%" else "importance (the model's own unit)")
    return png_bytes(figure)


def confusion(evaluation: Evaluation) -> bytes:
    """Draw the counts of actual against predicted directions, with each cell's share of its actual direction."""
    figure, axes = empty_figure(confusion_finding(evaluation))
    counts = evaluation.confusion.to_numpy()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.25, aspect="auto")
    for row in range(2):
        for column in range(2):
            ink = "white" if shares[row, column] > 0.75 else INK
            axes.text(column, row - 0.1, f"{counts[row, column]:,}", ha="center", va="center", fontsize=14, color=ink)
            share = f"{100 * shares[row, column]:.1f} % of actual {DIRECTIONS[row]}"
            axes.text(column, row + 0.18, share, ha="center", va="center", fontsize=9, color=ink)
    axes.set_xticks([0, 1], [f"predicted {name}" for name in DIRECTIONS])
    axes.set_yticks([0, 1], [f"actual {name}" for name in DIRECTIONS])
    axes.grid(visible=False)
    axes.set_xlabel("rows, out of sample")
    return png_bytes(figure)


def closes(bars: pd.DataFrame) -> bytes:
    """Draw each symbol's close over time, divided by its first close, on a log axis.

    `bars`: symbol, time, close. Closes that are not positive are left out; beyond ten symbols only the ten that
    end highest are coloured and named.
    """
    from matplotlib.collections import LineCollection
    from matplotlib.dates import date2num

    usable = bars.loc[bars["close"] > 0, ["symbol", "time", "close"]]
    names, row = _by_name(usable["symbol"])
    # As numbers at once: the times of a Series with a time zone would be converted one by one.
    opened: Any = date2num(usable["time"].to_numpy(dtype="datetime64[us]"))  # type: ignore[no-untyped-call]
    order = np.lexsort((opened, row))
    bounds = pairwise(np.searchsorted(row[order], np.arange(len(names) + 1)))
    opened, close = opened[order], usable["close"].to_numpy()[order]
    lines = [
        (name, opened[start:end], close[start:end] / close[start])
        for name, (start, end) in zip(names, bounds, strict=True)
    ]
    lines.sort(key=lambda line: (-float(line[2][-1]), line[0]))
    if not lines:
        return png_bytes(empty_figure("No closes to draw")[0])
    ends = f"{label(lines[0][0])} ends highest, at {float(lines[0][2][-1]):.3g} times its first close"
    figure, axes = empty_figure(f"{_count(len(lines), 'symbol')}: {ends}")
    others = []
    for rank, (name, time, ratio) in enumerate(lines):
        if len(ratio) > POINTS_PER_LINE:
            # The last point always stays: the title speaks of it.
            kept = np.linspace(0, len(ratio) - 1, POINTS_PER_LINE).astype(int)
            time, ratio = time[kept], ratio[kept]
        if rank < len(SERIES):
            axes.plot(time, ratio, color=SERIES[rank], linewidth=1.3, zorder=3, label=f" {label(name)}")
        else:
            others.append(np.column_stack([time, ratio]))
    # As one artist: a thousand lines would take a thousand times as long as ten.
    axes.add_collection(LineCollection(others, colors="#cbd2d9", linewidths=0.7, zorder=1))
    axes.xaxis_date()
    axes.set_yscale("log")
    plain_log_ticks(axes)
    axes.set_xlabel("time (UTC)")
    axes.set_ylabel("close / first close (log)")
    legend_below(axes, beside=True)
    return png_bytes(figure)


def coverage(bars: pd.DataFrame) -> bytes:
    """Draw the number of bars of each symbol (rows) in each month (columns); empty cells stay white.

    `bars`: symbol, time (UTC).
    """
    if bars.empty:
        return png_bytes(empty_figure("No bars to count")[0])
    months = (bars["time"].dt.year * 12 + bars["time"].dt.month - 1).to_numpy()
    names, row = _by_name(bars["symbol"])
    start, width = int(months.min()), int(months.max() - months.min()) + 1
    cells = np.zeros((len(names), width))
    np.add.at(cells, (row, months - start), 1)
    empty = int((cells == 0).sum())
    state = "no month is empty" if empty == 0 else f"{empty:,} of {_count(cells.size, 'symbol-month')} hold no bar"
    figure, axes = empty_figure(f"{_count(len(bars), 'bar')}, {_count(len(names), 'symbol')}: {state}")
    axes.imshow(
        np.ma.masked_equal(cells, 0), cmap="Blues", vmin=0, vmax=cells.max() * 1.15, aspect="auto", interpolation="none"
    )
    month_names = [f"{month // 12}-{month % 12 + 1:02d}" for month in range(start, start + width)]
    ticks(axes, "x", np.arange(width), month_names, most=10)
    ticks(axes, "y", np.arange(len(names)), names, most=20)
    axes.grid(visible=False)
    axes.set_xlabel(f"month (UTC); the darkest has {_count(int(cells.max()), 'bar')}")
    return png_bytes(figure)


def empty_figure(title: str) -> "tuple[Figure, Axes]":
    """Return an empty picture in the house style, with the finding as its title."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    margins = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08)
    figure = Figure(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, facecolor="white", layout=margins)
    axes = figure.add_subplot()
    heading = figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK, fontweight="bold")
    heading.set_parse_math(False)
    plain(axes)
    return figure, axes


def plain(axes: "Axes") -> None:
    """Give axes the house style: horizontal lines behind the data, quiet words, no frame."""
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=GRID)
    axes.tick_params(which="both", colors=QUIET, labelsize=9, length=0)
    axes.xaxis.label.set_color(QUIET)
    axes.yaxis.label.set_color(QUIET)
    for side in axes.spines.values():
        side.set_visible(False)


def png_bytes(figure: "Figure") -> bytes:
    """Return the picture's bytes, without the version stamp that would change them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    # savefig draws twice where margins are computed, and gives the same bytes.
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def legend_below(axes: "Axes", *, beside: bool = False) -> None:
    """Place the legend outside the data: below on the right, level with the axis label, or beside."""
    place: dict[str, Any] = (
        {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
        if beside
        else {"loc": "upper right", "bbox_to_anchor": (1.0, -0.09), "ncols": 3}
    )
    legend = axes.legend(frameon=False, fontsize=9, labelcolor=QUIET, borderaxespad=0.0, **place)
    for text in legend.get_texts():
        text.set_parse_math(False)
    if not beside:
        axes.xaxis.set_label_coords(0.0, -0.105)
        axes.xaxis.label.set(horizontalalignment="left")


def ticks(
    axes: "Axes", side: str, places: npt.NDArray[np.int64], names: list[str], *, most: int, size: float = 9
) -> None:
    """Name the places along one axis, every n-th only when there are more than `most`."""
    step = max(1, -(-len(names) // most))
    axis = axes.xaxis if side == "x" else axes.yaxis
    axis.set_ticks(places[::step], [label(name) for name in names[::step]], fontsize=size)
    for text in axis.get_ticklabels():
        text.set_parse_math(False)


def plain_log_ticks(axes: "Axes") -> None:
    """Write the numbers of a log axis as plain decimals, and enough of them whatever its range."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(MaxNLocator(6) if high < 8 * low else LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _by_name(symbols: pd.Series) -> tuple[list[str], npt.NDArray[np.intp]]:
    """Return the symbols, sorted, and the place of each row's symbol among them."""
    row, names = pd.factorize(symbols, sort=True)
    return [str(name) for name in names], row


def _shown_importance(importance: "pd.Series[float]") -> "tuple[pd.Series[float], str]":
    """Return the finite importances, as shares in % where none is negative and some are positive."""
    finite = importance[np.isfinite(importance.to_numpy())]
    if finite.empty or not finite.any():
        return finite.iloc[:0], "%"
    return (finite / finite.sum() * 100, "%") if (finite >= 0).all() else (finite, "")


def label(text: object) -> str:
    """Return a name that any font can draw in one short line; other characters are written as escapes."""
    drawn = "".join(c if c.isprintable() and ord(c) < 0x250 else c.encode("unicode_escape").decode() for c in str(text))
    return drawn if len(drawn) <= 24 else f"{drawn[:23]}…"


def _count(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural where it belongs."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
