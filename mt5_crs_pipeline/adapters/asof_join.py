"""Which row was the newest known one, for many questions at once: polars' as-of join on keys and times alone.

Two times matter for a row: what it is about (event), and when it could be known. Seen from a moment t, the answer is
the newest row (latest event, of its versions the last recorded) among those with event <= t and known <= t. A row
*takes over* at the later of its two times; sorted by that, a row that is older than one that has taken over before it
is never an answer, and what is left needs a single inequality: the last row that took over at or before t.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

Indices = npt.NDArray[np.int64]

EVENT, KNOWN, RECORDED = "event", "known", "recorded"
# Which of two rows is the newer: compared in this order, and by their place in the source where all are equal.
_NEWER = (EVENT, RECORDED, KNOWN)
_TIME, _ROW, _TAKES_OVER = "time", "row", "takes_over"
# Of which is asked whether they are in order: little memory, and hardly more time than all together.
_ROWS_AT_ONCE = 2**18


def newest_known(
    questions: pl.DataFrame, rows: pl.DataFrame, keys: Sequence[str], ttl: int | None, *, live: bool
) -> pl.Series:
    """Return for each question the position of its row in `rows`, null where there is none.

    `questions` has `keys` and the column `time`; `rows` has `keys`, `event` and optionally `known` and `recorded`
    (int64 microseconds since 1970). With `live` a row counts from its `known` on, and one without `known` never;
    otherwise `known` and `recorded` only tell versions of equal event apart, a missing one being the oldest. A row
    whose event is more than `ttl` microseconds before the question is no answer. Null keys and times match nothing.
    """
    questions, rows = _with_numbers_for_texts(questions, rows, keys)
    timeline = _timeline(rows, keys, live=live)
    asked = questions.with_row_index("question").drop_nulls([_TIME, *keys])
    if not _in_order(asked, keys, pl.col(_TIME).diff() >= 0):
        asked = _sorted(asked, keys)
    found = asked.join_asof(
        timeline,
        left_on=_TIME,
        right_on=_TAKES_OVER,
        by=list(keys) or None,
        strategy="backward",
        check_sortedness=False,
    ).drop_nulls(_ROW)
    if ttl is not None:
        found = found.filter(pl.col(_TIME) - pl.col(EVENT) <= ttl)
    # In polars' own index type, which it gathers by at once.
    positions = np.zeros(len(questions), dtype=np.uint32)
    positions[found["question"].to_numpy()] = found[_ROW].to_numpy()
    answer = pl.Series(positions)
    if len(found) == len(questions):
        return answer
    unanswered = np.ones(len(questions), dtype=np.bool_)
    unanswered[found["question"].to_numpy()] = False
    return answer.set(pl.Series(unanswered), None)


def _sorted(asked: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """Return the questions with those of each key in the order of time.

    Key after key where key and time fit into one number: that sorts as fast, and the join reads what lies together.
    """
    if len(keys) == 1 and asked.schema[keys[0]].is_integer():
        pair = asked.select(keys[0], _TIME)
        (first, begin), (last, end) = pair.min().row(0), pair.max().row(0)
        times = end - begin + 1
        if (last - first + 1) * times < 2**63:
            place: pl.Series = (pair[keys[0]] - first).cast(pl.Int64) * times + (pair[_TIME] - begin)
            return asked[place.arg_sort()]
    return asked.sort(_TIME)


def newest(rows: pl.DataFrame, keys: Sequence[str]) -> Indices:
    """Return the positions, ascending, of the newest row of every key; columns as for `newest_known`."""
    ordered = _oldest_first(rows.with_row_index(_ROW).drop_nulls([EVENT, *keys]))
    last = ordered.unique(list(keys), keep="last") if keys else ordered.tail(1)
    return np.sort(last[_ROW].to_numpy()).astype(np.int64)


def _with_numbers_for_texts(
    questions: pl.DataFrame, rows: pl.DataFrame, keys: Sequence[str]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return both with each text key numbered: numbers sort and join in half the time. Unknown texts become null."""
    texts = [key for key in keys if rows.schema[key] == pl.String]
    for key in texts:
        known = pl.Enum(rows[key].unique().drop_nulls())
        number = pl.col(key).cast(known, strict=False).to_physical()
        questions, rows = questions.with_columns(number), rows.with_columns(number)
    return questions, rows


def _timeline(rows: pl.DataFrame, keys: Sequence[str], *, live: bool) -> pl.DataFrame:
    """Return keys, takes_over, event and row (the position in `rows`) of the rows that ever are an answer."""
    live = live and KNOWN in rows.columns
    takes_over = pl.max_horizontal(EVENT, KNOWN) if live else pl.col(EVENT)
    frame = (
        rows.lazy()
        .with_row_index(_ROW)
        .drop_nulls([EVENT, *keys, *([KNOWN] if live else [])])
        .with_columns(takes_over.alias(_TAKES_OVER))
        .collect()
    )
    wanted = [*keys, _TAKES_OVER, EVENT, _ROW]
    if _in_order(frame, keys, pl.all_horizontal(pl.col(EVENT, _TAKES_OVER).diff() > 0)):
        return frame.select(wanted)
    ordered = _oldest_first(frame).with_row_index("rank").sort(_TAKES_OVER, "rank")
    newest_yet = pl.col("rank").cum_max()
    return ordered.filter(pl.col("rank") == (newest_yet.over(keys) if keys else newest_yet)).select(wanted)


def _oldest_first(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.sort([name for name in _NEWER if name in rows.columns], maintain_order=True)


def _in_order(frame: pl.DataFrame, keys: Sequence[str], follows: pl.Expr) -> bool:
    """True when each key's rows are together and each `follows` the one before: the usual case, and sorting is most."""
    same = pl.all_horizontal([pl.col(key) == pl.col(key).shift() for key in keys]) if keys else pl.lit(value=True)
    runs = min(len(frame), 1)
    # What is not in order shows in the first rows.
    for first in range(0, len(frame), _ROWS_AT_ONCE):
        later = frame.slice(first, _ROWS_AT_ONCE + 1).select(same=same, follows=follows).slice(1)
        if not (later["follows"] | ~later["same"]).all():
            return False
        runs += int((~later["same"]).sum()) if keys else 0
    return not keys or frame.select(keys).n_unique() == runs
