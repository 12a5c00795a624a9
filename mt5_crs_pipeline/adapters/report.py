"""The evaluation as one self-contained HTML page: the verdict in words first, then the numbers behind it."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from mt5_crs_pipeline.adapters import pictures, pictures_details, pictures_economics, pictures_noise
from mt5_crs_pipeline.core.economics import Economics
from mt5_crs_pipeline.core.evaluation import Evaluation
from mt5_crs_pipeline.core.live import NO_OUTCOME_YET, LiveRecord
from mt5_crs_pipeline.core.noise_floor import Place
from mt5_crs_pipeline.core.promotion import Verdict

TEMPLATE = "report.html.jinja"
_MEANINGS = {
    "accuracy": "base rate: always guessing the majority",
    "balanced accuracy": "the mean of both classes' recall; a coin",
    "precision of UP": "how often UP came when UP was said; always saying UP",
    "recall of UP": "how much of UP was foreseen; always guessing the majority",
    "F1 of UP": "precision and recall in one; always guessing the majority",
    "AUC": "a coin; higher is better",
    "log-loss": "always answering the share of UP; lower is better",
    "Brier score": "always answering the share of UP; lower is better",
    "information coefficient": "correlation of probability and outcome; nothing known",
}


def render_report(
    evaluation: Evaluation,
    model_metadata: Mapping[str, Any],
    verdict: Verdict,
    earned: Economics,
    live: LiveRecord | None = None,
    bundle_hash: str = "",
    noise: Place | None = None,
) -> bytes:
    """Return the report as UTF-8 HTML that loads nothing from elsewhere; equal input gives equal bytes.

    `model_metadata` is the bundle's `model_metadata.json`; a missing or empty key leaves its line out.
    `verdict` is the one on its promotion, `earned` what a simple rule made of the predictions, `live` the champion's
    record, where any outcome is known, `bundle_hash` the SHA-256 of the bundle's checksums, `noise` where the model
    lies among runs on data of which nothing can be known.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(share=_share, loss=_loss, decimals=_metric, count=_count, moment=_moment)
    page = environment.get_template(TEMPLATE).render(
        evaluation=evaluation,
        verdict=verdict,
        chance=verdict.evidence["against_chance"],
        meanings=_MEANINGS,
        pictures=_pictures(evaluation, verdict.evidence["against_chance"], model_metadata),
        noise=_noise(noise),
        live=_live(live),
        groups=[
            ("By symbol", "Symbol", evaluation.by_symbol.to_dict(orient="records")),
            ("By year", "Year (UTC)", evaluation.by_year.to_dict(orient="records")),
            ("By volatility", "Third of a symbol's bars", evaluation.by_regime.to_dict(orient="records")),
        ],
        rank_ic=evaluation.rank_ic.to_dict(orient="records"),
        earned=_economics_lines(earned),
        earned_picture=_picture(
            "Illustration", pictures_economics.wealth(earned), pictures_economics.economics_finding(earned)
        ),
        model=_model_lines(model_metadata, bundle_hash),
        features=[str(name) for name in _items(model_metadata.get("features"))],
        params=_pairs(model_metadata.get("params")),
    )
    return page.encode("utf-8")


def _noise(place: Place | None) -> dict[str, str]:
    """Return where the model lies among runs on noise: a sentence, where there is a floor what it is made of, and how
    it looks."""
    if place is None:
        return {"sentence": "No noise floor was made for this recipe: MT5_CRS_NOISE_RUNS says of how many runs."}
    floor = place.floor
    made = (
        f"{len(floor.permuted)} runs on permuted labels, {len(floor.walks)} on random walks, shaped like"
        f" {_count(floor.rows)} rows from {_moment(floor.first)} to {_moment(floor.last)}; made on"
        f" {_moment(floor.renewed_at)}, and anew when the recipe changes or the walk-forward gains a window."
    )
    if floor.refused:
        made += f" {len(floor.refused)} more could not be trained, the first because: {floor.refused[0]}."
    said = {"sentence": place.sentence, "made": made}
    if not floor.runs:
        return said
    return said | {"uri": pictures.data_uri(pictures_noise.noise_floor(place)), "alt": pictures_noise.finding(place)}


def _live(record: LiveRecord | None) -> dict[str, str]:
    """Return the champion's live record: a sentence, and where there is one its picture."""
    if record is None:
        return {"sentence": f"{NO_OUTCOME_YET[0].upper()}{NO_OUTCOME_YET[1:]}."}
    png = pictures.evidence(record.to_dict())
    return {"sentence": record.sentence, "uri": pictures.data_uri(png), "alt": f"Live: {record.sentence}"}


def _pictures(evaluation: Evaluation, chance: Mapping[str, Any], metadata: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the pictures: heading, data URI, and the finding that stands for it where it is not seen."""
    drawn = [("Evidence against chance", pictures.evidence(chance), pictures.evidence_finding(chance))]
    drawn += [
        (heading, draw(evaluation), finding(evaluation))
        for heading, draw, finding in (
            ("Accuracy by year", pictures.accuracy_by_year, pictures.year_finding),
            ("Reliability of the probabilities", pictures.reliability, pictures.reliability_finding),
            ("Feature importance", pictures.feature_importance, pictures.importance_finding),
            ("Confusion", pictures.confusion, pictures.confusion_finding),
        )
    ]
    if len(evaluation.rank_ic):
        ranks = evaluation.rank_ic
        drawn.append(("Rank IC by year", pictures_details.rank_ic(ranks), pictures_details.rank_ic_finding(ranks)))
    if worth := metadata.get("permutation_importance"):
        png, finding = pictures_details.permutation_importance(worth), pictures_details.permutation_finding(worth)
        gain = next(place for place, (heading, *_) in enumerate(drawn) if heading == "Feature importance")
        drawn.insert(gain + 1, ("Permutation importance", png, finding))
    return [_picture(*one) for one in drawn]


def _picture(heading: str, png: bytes, finding: str) -> dict[str, str]:
    return {"heading": heading, "uri": pictures.data_uri(png), "alt": f"{heading}: {finding}."}


def _economics_lines(earned: Economics) -> dict[str, Any]:
    """Return what the rule earned: a table with a column per curve, and (name, text) lines about the rule."""
    made = (earned.net, earned.gross, earned.held)
    cost = "the recorded spread" if earned.trading_cost is None else "configured"
    known = f"{earned.mean_cost:.4%} of the price on average per round trip, {cost}"
    if earned.costs_known == 0:
        known = "unknown: no spread is recorded, so they count as zero; set MT5_CRS_TRADING_COST"
    elif earned.costs_known < 1:
        known += f"; recorded for {earned.costs_known:.1%} of the rows and zero for the others"
    turnover = f"{earned.turnover:.1f} times the wealth" if math.isfinite(earned.turnover) else "not defined"
    eaten = f"{_percent(earned.break_even, 4)} of the price per round trip"
    if earned.break_even <= 0:
        eaten = "none: it earned nothing before costs"
    luck = "0" if earned.recipes == 1 else f"what the luckiest of {earned.recipes:,} recipes reaches without skill"
    return {
        "columns": ["After costs" if earned.costs_known else "After costs (none is known)", "Before costs", "Held"],
        "table": [
            ("Whole return", [_percent(one.total_return) for one in made]),
            ("Return per year", [_percent(one.annual_return) for one in made]),
            ("Volatility per year", [_percent(one.annual_volatility) for one in made]),
            ("Sharpe ratio", [_share(one.sharpe) for one in made]),
            ("Largest drawdown", [_percent(one.max_drawdown) for one in made]),
            ("from", [_day(one.peak) for one in made]),
            ("to", [_day(one.trough) for one in made]),
        ],
        "lines": [
            ("Costs", known),
            (
                "Sharpe ratio after costs",
                f"95 % interval {_share(earned.sharpe_lower)} to {_share(earned.sharpe_upper)}",
            ),
            (
                "Deflated Sharpe ratio",
                f"{_share(earned.deflated_sharpe)}: the probability that the true ratio is above {luck}",
            ),
            ("Turnover per year", turnover),
            ("Cost that eats it", eaten),
            ("Rows with a position", _percent(earned.invested)),
        ],
    }


def _model_lines(metadata: Mapping[str, Any], bundle_hash: str) -> list[tuple[str, str]]:
    """Return what the model is, as (name, text) lines; a line without a value is left out."""
    window = metadata.get("data_window")
    ends = [_moment(window[end]) for end in ("start", "end") if window.get(end)] if isinstance(window, Mapping) else []
    features, lookback = _items(metadata.get("features")), metadata.get("lookback")
    lines = [
        ("Version", metadata.get("model_version")),
        ("Type", metadata.get("model_type")),
        ("Symbols", ", ".join(str(name) for name in _items(metadata.get("symbols")))),
        ("Data window", " to ".join(ends)),
        ("Rows", ", ".join(f"{name} {value}" for name, value in _pairs(metadata.get("row_counts")))),
        ("Features", str(len(features)) if features else ""),
        ("Lookback", f"{lookback} bars" if lookback else ""),
        ("Label", _sentence(metadata.get("label"))),
        ("Trained", _moment(metadata.get("train_date") or "")),
        ("Data fingerprint", metadata.get("data_fingerprint")),
        ("Feature-set hash", metadata.get("feature_set_hash")),
        ("Bundle hash", bundle_hash),
        ("Code commit", metadata.get("code_commit")),
        ("Model file", metadata.get("model_file")),
    ]
    return [(name, str(text)) for name, text in lines if text]


def _items(value: object) -> list[object]:
    """Return a list as it is, one value as a list of one, and nothing as an empty list."""
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _pairs(value: object) -> list[tuple[str, str]]:
    """Return a mapping as lines of text, sorted by name; anything else has none."""
    if not isinstance(value, Mapping):
        return []
    return sorted((str(name), _count(item) if isinstance(item, int) else str(item)) for name, item in value.items())


def _sentence(value: object) -> str:
    """Return a label definition in one line, be it a text or named parts."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {item}" for name, item in value.items())
    return "" if value is None else str(value)


def _share(value: float) -> str:
    """Write a share with three decimals."""
    return f"{value:.3f}" if math.isfinite(value) else "not defined"


def _percent(value: float, decimals: int = 1) -> str:
    """Write a fraction as a percentage."""
    return f"{value:.{decimals}%}" if math.isfinite(value) else "not defined"


def _day(value: pd.Timestamp | None) -> str:
    """Write the day of a moment in UTC; none where nothing fell."""
    return "none" if value is None else f"{value.tz_convert('UTC'):%Y-%m-%d}"


def _loss(value: float) -> str:
    """Write a log-loss with four decimals: models differ in the third and fourth."""
    return f"{value:.4f}" if math.isfinite(value) else "not defined"


def _metric(value: float, name: str) -> str:
    """Write a metric as losses or shares are written."""
    return _loss(value) if name in ("log-loss", "Brier score") else _share(value)


def _count(value: int) -> str:
    """Write a count with thousands separated; True and False as words."""
    return f"{value:,}" if not isinstance(value, bool) else str(value)


def _moment(value: object) -> str:
    """Write a moment to the minute in UTC; a text that is no moment stays as it is."""
    if isinstance(value, str):
        try:
            value = pd.Timestamp(value)
        except ValueError:
            return str(value)
    if not isinstance(value, pd.Timestamp):
        return "" if value is None or value is pd.NaT else str(value)
    utc = value.tz_convert("UTC") if value.tzinfo else value.tz_localize("UTC")
    return f"{utc:%Y-%m-%d %H:%M} UTC"
