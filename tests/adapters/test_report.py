"""The pictures and the page: valid, the same for the same data, safe with hostile names, and needing no network."""

import base64
import html
import io
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mt5_crs_pipeline.adapters import pictures, pictures_details, pictures_economics
from mt5_crs_pipeline.adapters.pictures_economics import wealth
from mt5_crs_pipeline.adapters.report import render_report
from mt5_crs_pipeline.core.economics import economics
from mt5_crs_pipeline.core.evaluation import Evaluation, evaluate
from mt5_crs_pipeline.core.promotion import Verdict
from tests.core.test_economics import predictions as made_up_predictions

HOSTILE = ("<script>alert(1)</script>", "US$ $x^{", "_hidden", '"><img src=x>', "株式\n", "long" * 20)
METADATA: dict[str, Any] = {
    "model_type": "xgboost.Booster",
    "model_version": "v-2024-03-26",
    "symbols": list(HOSTILE),
    "lookback": 61,
    "features": ["rsi_14", "momentum_5"],
    "train_date": "2024-03-26T01:02:03Z",
    "params": {"max_depth": 3},
    "metrics": {},
    "model_file": "model.ubj",
    "data_window": {"start": "2020-01-01T00:00:00Z", "end": "2024-03-26T00:00:00Z"},
    "row_counts": {"training": 12345},
    "data_fingerprint": "sha256:abc",
    "feature_set_hash": "0123fe",
    "code_commit": "89abcd",
    "label": "close of the next bar above this close",
}
CHANCE = {
    "shown": False,
    "log_wealth": -1.25,
    "threshold": 4.0943,
    "recipes": 3,
    "reached_at": None,
    "curve": [["2022-06-01T00:00:00+00:00", 0.0], ["2022-06-02T12:30:00.5+00:00", -1.25]],
}
SHOWN = {**CHANCE, "shown": True, "log_wealth": 5.0, "reached_at": "2022-06-02T12:30:00.5+00:00"}
NOT_PROMOTED = Verdict("no edge shown", "No edge was shown: log-wealth -1.25.", {"against_chance": CHANCE})
PROMOTED = Verdict("promoted", "An edge was shown: log-wealth 5.", {"against_chance": SHOWN})
EARNED = economics(made_up_predictions(), 7)
EVALUATION_PICTURES = [
    pictures.accuracy_by_year,
    pictures.reliability,
    pictures.feature_importance,
    pictures.confusion,
]


@cache
def sample(seed: int = 1, symbols: tuple[str, ...] = HOSTILE, days: int = 500) -> Evaluation:
    rng = np.random.default_rng(seed)
    times = pd.date_range("2022-06-01", periods=days, freq="D", tz="UTC").as_unit("us")
    frame = pd.concat([pd.DataFrame({"symbol": name, "event_timestamp": times}) for name in symbols])
    frame["target"] = (rng.random(len(frame)) < 0.52).astype(float)
    frame["probability"] = np.clip(rng.normal(0.52, 0.1, len(frame)), 0, 1)
    return evaluate(frame, {f"feature_{number}": float(rng.random()) for number in range(30)} | {"$a$": 2.0})


def bars(seed: int = 1, symbols: tuple[str, ...] = HOSTILE, days: int = 400) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    times = pd.date_range("2022-06-01", periods=days, freq="D", tz="UTC").as_unit("us")
    walks = [
        pd.DataFrame({"symbol": name, "time": times, "close": 50 * np.exp(np.cumsum(rng.normal(0, 0.02, days)))})
        for name in symbols
    ]
    return pd.concat(walks).sample(frac=1, random_state=seed)


def size(png: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(png)) as image:
        image.verify()
        assert image.format == "PNG"
        return image.size


class Page(HTMLParser):
    """Every tag with its attributes, and the text between the tags."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self.feed(page.decode("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("draw", EVALUATION_PICTURES)
def test_evaluation_pictures_are_pngs_that_follow_the_data(draw: Callable[[Evaluation], bytes]) -> None:
    first, again, other = draw(sample(1)), draw(sample(1)), draw(sample(2))
    assert size(first) == (800, 350)
    assert 4_000 < len(first) < 120_000
    assert first == again
    assert first != other


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("draw", EVALUATION_PICTURES)
def test_evaluation_pictures_can_be_drawn_of_one_row(draw: Callable[[Evaluation], bytes]) -> None:
    row = {"symbol": "A", "event_timestamp": [pd.Timestamp("2024-01-02", tz="UTC")], "target": 1.0, "probability": 1.0}
    for importance in ({}, {"a": 0.0}, {"a": float("nan"), "b": -1.0}):
        assert size(draw(evaluate(pd.DataFrame(row), importance))) == (800, 350)


@pytest.mark.filterwarnings("error")
def test_the_evidence_is_drawn_as_it_is() -> None:
    assert size(pictures.evidence(CHANCE)) == (800, 350)
    assert pictures.evidence(CHANCE) == pictures.evidence(dict(CHANCE)) != pictures.evidence(SHOWN)
    assert pictures.evidence_finding(CHANCE) == "Log-wealth -1.2 is not above the 4.1 that show an edge"
    assert pictures.evidence_finding(SHOWN) == "Log-wealth 5.0 is above 4.1, first on 2022-06-02"
    assert size(pictures.evidence({**CHANCE, "curve": []})) == (800, 350)


@pytest.mark.filterwarnings("error")
def test_where_live_begins_is_drawn() -> None:
    first, second = (pictures.evidence({**CHANCE, "live_since": time}) for time, _ in CHANCE["curve"])  # type: ignore[attr-defined]
    assert size(first) == size(second) == (800, 350)
    assert len({first, second, pictures.evidence(CHANCE)}) == 3


def test_closes_follow_the_closes_only_and_not_the_order_of_rows() -> None:
    frame = bars()
    before = frame.copy(deep=True)
    first = pictures.closes(frame)
    assert size(first) == (800, 350)
    assert pictures.closes(frame.sort_values("time")) == first
    assert pictures.closes(frame.assign(close=frame["close"] * 3)) == first
    assert pictures.closes(bars(seed=2)) != first
    pd.testing.assert_frame_equal(frame, before)


def test_a_symbol_that_starts_with_an_underscore_is_named_in_the_legend() -> None:
    falling = bars(symbols=("A", "_B")).assign(
        close=lambda frame: np.where(frame["symbol"] == "A", 1.0, frame["close"])
    )
    renamed = falling.assign(symbol=falling["symbol"].replace("_B", "_C"))
    assert pictures.closes(falling) != pictures.closes(renamed)


@pytest.mark.filterwarnings("error")
def test_coverage_follows_the_bars_that_are_there() -> None:
    frame = bars()
    first = pictures.coverage(frame)
    assert size(first) == (800, 350)
    assert pictures.coverage(frame.sort_values("time")) == first
    assert pictures.coverage(frame[frame["time"].dt.month != 9]) != first


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("draw", [pictures.closes, pictures.coverage])
def test_bar_pictures_bear_no_bars_one_bar_many_symbols_and_bad_closes(draw: Callable[[pd.DataFrame], bytes]) -> None:
    many = bars(symbols=tuple(f"S{number}" for number in range(60)), days=40)
    broken = bars(days=5).assign(close=[np.nan, 0.0, -1.0, 2.0, 3.0] * len(HOSTILE))
    flat = bars(days=9).assign(close=7.0)
    wild = bars(days=300).assign(close=lambda frame: frame["close"] ** 8)
    for frame in (bars().iloc[:0], bars().iloc[:1], many, broken, flat, wild):
        assert size(draw(frame)) == (800, 350)
    assert draw(many.sample(frac=1, random_state=1)) == draw(many)


def test_drawing_changes_no_global_state_and_importing_loads_no_matplotlib() -> None:
    code = (
        "import sys, pandas as pd\n"
        "from mt5_crs_pipeline.adapters import pictures, report\n"
        "assert not any(name.startswith('matplotlib') for name in sys.modules), 'loaded at import'\n"
        "import matplotlib; before = matplotlib.rcParams.copy()\n"
        "time = pd.date_range('2024-01-01', periods=3, tz='UTC')\n"
        "pictures.closes(pd.DataFrame({'symbol': 'A', 'time': time, 'close': [1.0, 2.0, 3.0]}))\n"
        "assert 'matplotlib.pyplot' not in sys.modules, 'pyplot loaded'\n"
        "assert matplotlib.rcParams.copy() == before, 'settings changed'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_markdown_carries_the_picture_and_no_markup_from_the_text() -> None:
    png = pictures.confusion(sample())
    text = pictures.as_markdown(png, "a](http://x) <b>\nline")
    match = re.fullmatch(r"!\[(?P<alt>[^\n]*)\]\(data:image/png;base64,(?P<data>[A-Za-z0-9+/=]+)\)", text)
    assert match is not None
    assert base64.b64decode(match["data"]) == png
    assert match["alt"] == r"a\](http://x) \<b\> line"


def test_findings_say_the_number_in_the_data() -> None:
    found = sample()
    above = sum(line.lower > line.base_rate for line in found.by_year.itertuples())
    assert f"{above} of 2 years" in pictures.year_finding(found)
    ups = found.confusion.loc["UP"]
    assert f"{100 * ups['UP'] / ups.sum():.1f} % of UP bars" in pictures.confusion_finding(found)
    assert f"of {len(found.reliability)} bins" in pictures.reliability_finding(found)
    assert pictures.importance_finding(found).startswith("$a$ matters most")


def test_the_page_says_the_verdict_first_and_then_the_numbers() -> None:
    found = sample()
    page = Page(render_report(found, METADATA, NOT_PROMOTED, EARNED))
    assert page.text.index(NOT_PROMOTED.reason) < page.text.index("The numbers that decide")
    assert "not promoted" in page.text
    assert "-1.250" in page.text and "4.094" in page.text and "3 recipes tried" in page.text
    interval = f"{found.accuracy.lower:.3f} to {found.accuracy.upper:.3f}"
    for expected in (
        interval,
        f"{found.base_rate:.3f}",
        f"{found.base_log_loss:.4f}",
        f"{found.auc:.3f}",
        f"{found.rows:,}",
    ):
        assert expected in page.text
    for expected in ("v-2024-03-26", "2020-01-01 00:00 UTC to 2024-03-26 00:00 UTC", "sha256:abc", "61 bars", "12,345"):
        assert expected in page.text
    assert "Illustration" in page.text and "commission, slippage and financing are not in it" in page.text
    assert page.text.index("By symbol") < page.text.index("Illustration") < page.text.index("What the model is")
    assert f"{EARNED.turnover:.1f} times the wealth" in page.text and "luckiest of 7 recipes" in page.text
    assert "No live predictions have met their outcome yet." in page.text
    promoted = Page(render_report(found, METADATA, PROMOTED, EARNED)).text
    assert "was promoted to champion" in promoted and PROMOTED.reason in promoted and "unproven" not in promoted


def test_hostile_names_stay_text() -> None:
    raw = render_report(sample(), METADATA, NOT_PROMOTED, EARNED)
    page = Page(raw)
    assert b"<script" not in raw
    assert html.escape(HOSTILE[0]).encode() in raw
    assert "script" not in {tag for tag, _ in page.tags}
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 6
    for name in HOSTILE:
        assert name in page.text


def test_the_page_loads_nothing_and_each_picture_has_an_alternative_text() -> None:
    raw = render_report(sample(), METADATA, NOT_PROMOTED, EARNED)
    page = Page(raw)
    assert not re.search(rb"https?://|url\(|@import|<link|<iframe|javascript:", raw)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    drawn = [pictures.evidence(CHANCE), *(draw(sample()) for draw in EVALUATION_PICTURES), wealth(EARNED)]
    for attributes, png in zip(images, drawn, strict=True):
        header, _, data = str(attributes["src"]).partition(",")
        assert header == "data:image/png;base64"
        assert base64.b64decode(data) == png
        assert len(str(attributes["alt"])) > 20
    assert all("src" not in attributes for tag, attributes in page.tags if tag != "img")
    policies = [attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_the_page_is_the_same_for_the_same_input_and_another_for_other_data() -> None:
    first = render_report(sample(1), METADATA, NOT_PROMOTED, EARNED)
    assert render_report(sample(1), dict(METADATA), NOT_PROMOTED, EARNED) == first
    assert render_report(sample(2), METADATA, NOT_PROMOTED, EARNED) != first


@pytest.mark.parametrize(
    ("key", "heading"),
    [
        ("model_type", "Type"),
        ("model_version", "Version"),
        ("symbols", "Symbols"),
        ("lookback", "Lookback"),
        ("features", "Features"),
        ("train_date", "Trained"),
        ("params", "The training parameters"),
        ("metrics", None),
        ("model_file", "Model file"),
        ("data_window", "Data window"),
        ("row_counts", "Rows"),
        ("data_fingerprint", "Data fingerprint"),
        ("feature_set_hash", "Feature-set hash"),
        ("code_commit", "Code commit"),
        ("permutation_importance", None),
        ("label", "Label"),
    ],
)
def test_a_missing_or_empty_key_leaves_out_its_lines_only(
    key: str, heading: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for draw in EVALUATION_PICTURES:
        monkeypatch.setattr(pictures, draw.__name__, lambda _: b"")
    monkeypatch.setattr(pictures, "evidence", lambda _: b"")
    monkeypatch.setattr(pictures_economics, "wealth", lambda _: b"")
    found, metadata = sample(), METADATA | {"symbols": ["AAPL"]}
    whole = Page(render_report(found, metadata, NOT_PROMOTED, EARNED)).pieces
    absent = render_report(
        found, {name: value for name, value in metadata.items() if name != key}, NOT_PROMOTED, EARNED
    )
    assert render_report(found, metadata | {key: None}, NOT_PROMOTED, EARNED) == absent
    left_out = Counter(whole) - Counter(Page(absent).pieces)
    assert not Counter(Page(absent).pieces) - Counter(whole)
    assert heading in left_out if heading else not left_out
    assert len([piece for piece in left_out if piece.strip()]) <= 4


def test_the_page_of_one_row_without_metadata_says_what_is_not_defined() -> None:
    row = {"symbol": "A", "event_timestamp": [pd.Timestamp("2024-01-02", tz="UTC")], "target": 1.0, "probability": 1.0}
    page = Page(render_report(evaluate(pd.DataFrame(row), {}), {}, NOT_PROMOTED, EARNED))
    assert "not defined" in page.text
    assert "What the model is" not in page.text


WORTH = {"rsi_14": 0.004, "momentum_5": -0.001, "$a$": 0.0, "gap": float("nan"), "_low": 0.002, "_also": 0.002}


def with_returns(symbols: tuple[str, ...] = ("A", "B", "C")) -> Evaluation:
    """The evaluation of a label with a cost band, with everything that is kept beside a prediction."""
    rng = np.random.default_rng(5)
    times = pd.date_range("2022-06-01", periods=400, freq="D", tz="UTC").as_unit("us")
    frame = pd.concat([pd.DataFrame({"symbol": name, "event_timestamp": times}) for name in symbols])
    moved = rng.normal(0, 0.01, len(frame))
    return evaluate(
        frame.assign(
            probability=np.clip(0.5 + 5 * moved + rng.normal(0, 0.05, len(frame)), 0, 1),
            forward_return=moved,
            target=np.where(np.abs(moved) <= 0.001, np.nan, (moved > 0) * 1.0),
            realised_volatility_20=rng.uniform(0.005, 0.02, len(frame)),
        ),
        {"rsi_14": 1.0},
        0.001,
    )


@pytest.mark.filterwarnings("error")
def test_permutation_importance_is_drawn_beside_gain_where_the_bundle_has_it() -> None:
    found = sample()
    without = Page(render_report(found, METADATA, NOT_PROMOTED, EARNED))
    page = Page(render_report(found, METADATA | {"permutation_importance": WORTH}, NOT_PROMOTED, EARNED))
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    headings = [str(attributes["alt"]).partition(":")[0] for attributes in images]
    assert headings.index("Permutation importance") == headings.index("Feature importance") + 1
    assert len(images) == len([tag for tag, _ in without.tags if tag == "img"]) + 1
    drawn = pictures_details.permutation_importance(WORTH)
    assert str(images[headings.index("Permutation importance")]["src"]) == pictures.data_uri(drawn)
    assert size(drawn) == (800, 350)
    assert drawn == pictures_details.permutation_importance(dict(reversed(WORTH.items())))
    assert drawn != pictures_details.permutation_importance(WORTH | {"_low": 0.003})
    assert pictures_details.permutation_finding(WORTH) == (
        "rsi_14 is worth most on unseen rows, 0.004 nats; 3 of 5 help"
    )
    for useless in ({"a": 0.0, "b": -1.0}, {"a": float("nan")}):
        assert pictures_details.permutation_finding(useless) == "No feature is worth anything on unseen rows"
        assert size(pictures_details.permutation_importance(useless)) == (800, 350)


@pytest.mark.filterwarnings("error")
def test_rank_correlations_and_regimes_have_a_table_and_say_what_they_are() -> None:
    for symbols, kind in ((("A", "B", "C"), "400 bar times, across symbols"), (("A",), "400 rows, over time")):
        found = with_returns(symbols)
        raw = render_report(found, METADATA, NOT_PROMOTED, EARNED)
        page = Page(raw)
        every = found.rank_ic.set_index("group").loc["all"]
        assert kind in page.text and f"{every.lower:.3f} to {every.upper:.3f}" in page.text
        above = f"{every.above_zero:.3f}" if len(symbols) == 3 else ""
        assert f"{every.upper:.3f}</td><td>{above}</td></tr>".encode() in raw
        assert "calm" in page.text and "cut over the whole sample, in hindsight" in page.text
        assert f"{found.rows_in_cost_band} more stayed inside the cost band" in page.text
        alts = [str(attributes["alt"]) for tag, attributes in page.tags if tag == "img"]
        assert "Rank IC by year: The rank correlation is above zero with its whole interval in 2 of 2 years." in alts
        assert size(pictures_details.rank_ic(found.rank_ic)) == (800, 350)
    plain = Page(render_report(sample(), METADATA, NOT_PROMOTED, EARNED)).text
    assert "Rank information coefficient" not in plain and "By volatility" not in plain and "cost band" not in plain


@pytest.mark.filterwarnings("error")
def test_a_rank_correlation_that_is_not_defined_is_drawn_as_nothing() -> None:
    lines = with_returns(("A",)).rank_ic.assign(rank_ic=np.nan, lower=np.nan, upper=np.nan)
    assert size(pictures_details.rank_ic(lines)) == (800, 350)
    assert "in 0 of 2 years" in pictures_details.rank_ic_finding(lines)


def test_the_page_has_what_one_needs_to_make_it_again() -> None:
    raw = render_report(sample(), METADATA, NOT_PROMOTED, EARNED, bundle_hash="feedbeef")
    page = Page(raw)
    lines = dict(zip(page.pieces, page.pieces[1:], strict=False))
    for name, value in (
        ("Data fingerprint", "sha256:abc"),
        ("Feature-set hash", "0123fe"),
        ("Bundle hash", "feedbeef"),
        ("Code commit", "89abcd"),
        ("Recipes tried", "3"),
    ):
        assert lines[name] == value
    assert "max_depth = 3" in page.text
    assert "Bundle hash" not in Page(render_report(sample(), METADATA, NOT_PROMOTED, EARNED)).pieces


@pytest.mark.parametrize("kind", ["not enough data", "parity does not hold"])
def test_the_title_is_the_kind_of_the_verdict_and_its_sentence_the_only_main_heading(kind: Any) -> None:
    verdict = Verdict(kind, "As it is, and why.", {"against_chance": SHOWN})
    raw = render_report(sample(), METADATA, verdict, EARNED).decode()
    assert f"<title>{kind.capitalize()}: model evaluation</title>" in raw
    assert re.findall(r"<h1>(.*?)</h1>", raw) == ["As it is, and why."]


def test_every_table_can_be_scrolled_on_a_phone_and_is_whole_in_print() -> None:
    raw = render_report(with_returns(), METADATA, NOT_PROMOTED, EARNED).decode()
    assert raw.count("<table") == raw.count('<div class="scroll"><table') >= 7
    assert raw.count("<details open>") == raw.count("<details") == 2, "closed ones would not be printed"
    phone, printed = (
        re.search(r"@media \(max-width: 640px\) {(.*?)\n}", raw, re.S),
        re.search(r"@media print {(.*?)\n}", raw, re.S),
    )
    assert phone and printed
    assert ".scroll { overflow: visible; }" in printed[1] and "break-inside: avoid" in printed[1]
