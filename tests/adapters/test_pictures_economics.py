"""The illustration: what is drawn and said is what was earned, and never a number that is not there."""

import numpy as np
import pandas as pd
import pytest

from mt5_crs_pipeline.adapters.pictures import POINTS_PER_LINE
from mt5_crs_pipeline.adapters.pictures_economics import economics_finding, wealth
from mt5_crs_pipeline.adapters.report import render_report
from mt5_crs_pipeline.core.economics import Economics, economics
from tests.adapters.test_report import METADATA, NOT_PROMOTED, Page, sample, size
from tests.core.test_economics import predictions

RUIN = predictions(400, 1, probability=0.1, forward_return=np.where(np.arange(400) == 200, 2.5, 0.001))


def section(earned: Economics) -> str:
    """The text of the illustration in the report."""
    text = Page(render_report(sample(), METADATA, NOT_PROMOTED, earned)).text
    return text[text.index("Illustration: what a simple rule") : text.index("What the model is")]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "rows",
    [
        predictions(),
        predictions(1, 1),
        predictions(probability=0.5),
        predictions(spread_share=np.nan),
        RUIN,
        predictions(POINTS_PER_LINE + 500, 1),
    ],
)
def test_whatever_was_earned_can_be_drawn_and_is_the_same_again(rows: pd.DataFrame) -> None:
    earned = economics(rows, 1)
    png = wealth(earned)
    assert size(png) == (800, 350)
    assert png == wealth(earned)


def test_the_picture_follows_every_curve() -> None:
    earned = economics(predictions(), 1)
    drawn = {wealth(earned)}
    for name in ("net", "gross", "held"):
        changed = earned.curve.assign(**{name: earned.curve[name] * np.linspace(1, 1.2, len(earned.curve))})
        drawn.add(wealth(Economics(**{**vars(earned), "curve": changed})))
    assert len(drawn) == 4


def test_the_finding_says_what_one_unit_became() -> None:
    earned = economics(predictions(), 1)
    net, held = (f"{earned.curve[name].iloc[-1]:.3g}" for name in ("net", "held"))
    assert economics_finding(earned) == f"Illustration: one unit became {net} after costs, and {held} when simply held"
    assert "before any cost (none is known)" in economics_finding(economics(predictions(spread_share=np.nan), 1))
    assert "one unit became 0 after" in economics_finding(economics(RUIN, 1))


def test_the_page_has_the_numbers_of_all_three_curves() -> None:
    earned = economics(predictions(500), 3)
    page = section(earned)
    for made in (earned.net, earned.gross, earned.held):
        assert made.peak is not None and made.trough is not None
        for text in (
            f"{made.total_return:.1%}",
            f"{made.annual_return:.1%}",
            f"{made.annual_volatility:.1%}",
            f"{made.sharpe:.3f}",
            f"{made.max_drawdown:.1%}",
            f"{made.peak:%Y-%m-%d}",
            f"{made.trough:%Y-%m-%d}",
        ):
            assert text in page
    assert f"{earned.sharpe_lower:.3f} to {earned.sharpe_upper:.3f}" in page
    assert f"{earned.deflated_sharpe:.3f}: the probability" in page and "luckiest of 3 recipes reaches" in page
    assert f"{earned.break_even:.4%} of the price per round trip" in page and f"{earned.invested:.1%}" in page


def test_the_page_says_where_the_costs_come_from() -> None:
    rows = predictions()
    recorded, configured = economics(rows, 1), economics(rows, 1, trading_cost=0.0123)
    assert f"{recorded.mean_cost:.4%} of the price on average per round trip, the recorded spread" in section(recorded)
    assert "1.2300% of the price on average per round trip, configured" in section(configured)
    unknown = section(economics(rows.assign(spread_share=np.nan), 1))
    assert "unknown: no spread is recorded" in unknown and "MT5_CRS_TRADING_COST" in unknown
    assert "After costs (none is known)" in unknown
    some = section(economics(rows.assign(spread_share=np.where(np.arange(900) % 4, np.nan, 0.001)), 1))
    assert "recorded for 25.0% of the rows and zero for the others" in some


def test_the_page_says_what_is_not_defined() -> None:
    page = section(economics(predictions(1, 1), 1))
    assert page.count("not defined") == 3 * 3 + 2 + 1 + 1  # three curves; the interval; deflated; turnover
    assert "nan" not in page and "inf" not in page


def test_the_page_says_which_cost_would_eat_it_and_what_one_recipe_is_held_against() -> None:
    page = section(economics(predictions(forward_return=-0.001, probability=0.9), 1))
    assert "none: it earned nothing before costs" in page
    assert "the true ratio is above 0\n" in page
