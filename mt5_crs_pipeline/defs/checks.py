"""What must hold before anything downstream may use an asset: each check reads what was written; all but one block."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from mt5_crs_pipeline.adapters import pictures
from mt5_crs_pipeline.adapters.feature_parity import StoredMonths
from mt5_crs_pipeline.adapters.lake import MARKET_DATA, Lake, read_parquet
from mt5_crs_pipeline.core.bars import CLOSED_BAR_SCHEMA, REVISION_KEY, latest_revisions, month_of, reject_reasons
from mt5_crs_pipeline.core.feature_rows import (
    IS_COMPLETE,
    KNOWN_AT,
    PIPELINE_FEATURES,
    RECORDED_AT,
    training_schema,
)
from mt5_crs_pipeline.core.features import get_feature_names
from mt5_crs_pipeline.core.labels import EVENT_TIMESTAMP, FORWARD_RETURN, LABEL_TIME, TARGET, LabelConfig
from mt5_crs_pipeline.core.market_time import Attendance
from mt5_crs_pipeline.core.parity import Parity
from mt5_crs_pipeline.defs.metadata import MOST_LISTED, picture

BARS_CHECK = dg.AssetCheckSpec(
    "bars_are_valid_and_unique",
    asset="market_data_parquet",
    blocking=True,
    description="Every exported revision is of a valid closed bar, in its own month's file, once.",
)
MARKET_CHECK = dg.AssetCheckSpec(
    "bars_follow_the_market",
    asset="market_data_parquet",
    description="Between a symbol's bars none is missing that its market's calendar owes (a gap warns), and the newest"
    " have come (an outage is an error). Holidays, of the calendar or of the broker, are neither.",
)
FEATURES_CHECK = dg.AssetCheckSpec(
    "features_are_complete_against_bars",
    asset="technical_features",
    blocking=True,
    description="Every bar has feature rows, each version once; in the latest a feature is missing only where the"
    " symbol's history is too short.",
)
PARITY_CHECK = dg.AssetCheckSpec(
    "features_equal_a_fresh_computation",
    asset="technical_features",
    blocking=True,
    description="The newest row of every symbol, unless it goes on in the last month there is, and a sample of older"
    " and of revised ones equal, to the last bit, what the bars behind them give when computed alone and when fed one"
    " at a time.",
)
ONLINE_CHECK = dg.AssetCheckSpec(
    "online_features_equal_a_fresh_computation",
    asset="feast_online_store",
    blocking=True,
    description="What is served for every symbol that was written, and for a sample of those that had the same row or a"
    " newer one, is its newest bar's features, equal to the last bit. A symbol that was left alone and goes on in the"
    " last month there is, is not in the sample.",
)
TRAINING_CHECK = dg.AssetCheckSpec(
    "training_rows_are_labelled_and_past",
    asset="training_set",
    blocking=True,
    description="Every training row is complete, labelled 0 or 1 by a bar that has closed (or by none, inside"
    " the cost band), and there once.",
)

LOOK_AHEAD_CHECK = dg.AssetCheckSpec(
    "training_features_were_known_at_the_close",
    asset="training_set",
    blocking=True,
    description="What would be trained on equals, to the last bit, what the bars known at each row's close give alone:"
    " nothing looks ahead. Compared are the newest row of every symbol and a sample of older ones.",
)

_MINUTE = "%Y-%m-%d %H:%M"


def check_bars(lake: Lake, months: Sequence[str], timeframe: str, *, pictured: bool = True) -> dg.AssetCheckResult:
    """Result of BARS_CHECK on the files of `months`, with pictures of their bars if it is to be `pictured`."""
    revisions = lake.read(MARKET_DATA, months, CLOSED_BAR_SCHEMA).to_pandas()
    revisions["file"] = np.repeat(np.array(months, dtype=object), [lake.row_count(MARKET_DATA, one) for one in months])
    latest = latest_revisions(revisions)
    # Pictures hang on the check, which is one event, not on the materialization, which is one per month.
    seen: dict[str, Any] = {"bars": len(latest), "revisions": len(revisions)}
    if len(latest) and pictured:
        seen["closes"] = picture(pictures.closes(latest), "closes of every symbol")
        seen["coverage"] = picture(pictures.coverage(latest), "bars per symbol and month")
    return _result(
        BARS_CHECK,
        seen,
        {
            "invalid": reject_reasons(revisions, timeframe, datetime.now(UTC), REVISION_KEY).notna(),
            "in the wrong month": month_of(revisions["time"]) != revisions["file"],
            "repeated": revisions.duplicated(list(REVISION_KEY)),
        },
    )


def check_market_time(found: Sequence[Attendance], window: tuple[datetime, datetime]) -> dg.AssetCheckResult:
    """Result of MARKET_CHECK on what was found of the symbols; gaps count where they begin in `window`."""
    inside = [one.within(*window) for one in found]
    outages = [one.symbol for one in inside if one.state == "outage"]
    gaps = [gap for one in inside for gap in one.gaps]
    # What is well comes last, and is left out where there is more than anybody reads.
    shown = sorted(inside, key=lambda one: one.outage is None and not one.gaps)[:MOST_LISTED]
    records = [
        dg.TableRecord(
            {
                "symbol": one.symbol,
                "calendar": one.calendar.name + (" (guessed)" if one.calendar.is_guess else ""),
                "state": f"{one.state}, last bar {one.last:{_MINUTE}}",
                "gaps": len(one.gaps),
                "bars missing": sum(gap.bars for gap in one.gaps) + (one.outage.bars if one.outage else 0),
                "longest gap": max((gap.bars for gap in one.gaps), default=0),
                "first missing": ", ".join(f"{gap.first:{_MINUTE}}" for gap in (*one.gaps[:5], one.outage) if gap),
            }
        )
        for one in shown
    ]
    return dg.AssetCheckResult(
        check_name=MARKET_CHECK.name,
        passed=not gaps and not outages,
        severity=dg.AssetCheckSeverity.ERROR if outages else dg.AssetCheckSeverity.WARN,
        metadata={
            "outages": len(outages),
            "without new bars": ", ".join(outages) or "none",
            "gaps": len(gaps),
            "bars missing in gaps": sum(gap.bars for gap in gaps),
            "bars missing for the broker's holidays": sum(one.holiday_bars for one in inside),
            "ended": ", ".join(one.symbol for one in inside if one.state == "ended") or "none",
            **({"symbols": dg.MetadataValue.table(records)} if records else {}),
        },
    )


def check_features(stored: StoredMonths) -> dg.AssetCheckResult:
    """Result of FEATURES_CHECK on the features of the months and the bars they stand for."""
    key = ["symbol", EVENT_TIMESTAMP]
    bars = latest_revisions(stored.bars[[*key, "time", KNOWN_AT, RECORDED_AT]])
    versions = stored.features.select([*key, KNOWN_AT, RECORDED_AT, IS_COMPLETE]).to_pandas()
    # A file at a time, where a column is not copied to be looked at.
    is_whole = [_is_whole(batch) for batch in stored.features.to_batches()]
    rows = versions.assign(is_whole=np.concatenate([np.empty(0, dtype=np.bool_), *is_whole]))
    rows = rows.sort_values(RECORDED_AT, kind="stable")
    rows = rows.drop_duplicates(key, keep="last")
    history = bars.groupby("symbol").cumcount() + 1
    bars = bars.assign(has_history=history >= PIPELINE_FEATURES.lookback)[month_of(bars["time"]).isin(stored.months)]
    joined = bars[[*key, "has_history"]].merge(rows[[*key, "is_whole"]], on=key, how="outer", indicator=True)
    both = joined[joined["_merge"] == "both"]
    return _result(
        FEATURES_CHECK,
        {"bars": len(bars)},
        {
            "bars without features": joined["_merge"] == "left_only",
            "features without a bar": joined["_merge"] == "right_only",
            "incomplete in spite of enough history": both["has_history"].astype(bool) & ~both["is_whole"].astype(bool),
            "repeated": versions.duplicated([*key, KNOWN_AT, RECORDED_AT]),
        },
    )


def _is_whole(rows: pa.RecordBatch) -> npt.NDArray[np.bool_]:
    """Return for each row whether it says that it is complete, and is."""
    whole: npt.NDArray[np.bool_] = rows[IS_COMPLETE].to_numpy(zero_copy_only=False).astype(np.bool_)
    for name in get_feature_names(PIPELINE_FEATURES):
        whole &= ~np.isnan(rows[name].to_numpy(zero_copy_only=False))
    return whole


def check_parity(spec: dg.AssetCheckSpec, parity: Parity, certificate: dict[str, Any]) -> dg.AssetCheckResult:
    """Result of a check that features equal a fresh computation, with its certificate; there may be none to compare."""
    return dg.AssetCheckResult(
        check_name=spec.name,
        passed=parity.different == 0,
        metadata={
            "rows": parity.rows,
            "values compared": parity.values,
            "values different": parity.different,
            "first difference": parity.first_difference or "none",
            "certificate": dg.MetadataValue.json(certificate),
        },
    )


def check_training_rows(lake: Lake, label: LabelConfig) -> dg.AssetCheckResult:
    """Result of TRAINING_CHECK on the stored training set."""
    rows = read_parquet(lake.training_set, training_schema().names).to_pandas()
    now = pd.Timestamp(datetime.now(UTC))
    inside_band = rows[TARGET].isna() & (label.cost_band > 0) & (rows[FORWARD_RETURN].abs() <= label.cost_band)
    return _result(
        TRAINING_CHECK,
        {"rows": len(rows), "inside the cost band": int(inside_band.sum())},
        {
            "unlabelled": ~rows[TARGET].isin([0.0, 1.0]) & ~inside_band,
            "label from the future": (rows[LABEL_TIME] <= rows[EVENT_TIMESTAMP]) | (rows[LABEL_TIME] > now),
            "incomplete": rows[get_feature_names(PIPELINE_FEATURES)].isna().any(axis=1),
            "repeated": rows.duplicated(["symbol", EVENT_TIMESTAMP]),
        },
    )


def _result(spec: dg.AssetCheckSpec, seen: dict[str, Any], faults: dict[str, pd.Series]) -> dg.AssetCheckResult:
    counts = {name: int(rows.sum()) for name, rows in faults.items()}
    return dg.AssetCheckResult(check_name=spec.name, passed=not any(counts.values()), metadata={**seen, **counts})
