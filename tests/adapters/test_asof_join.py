"""Every answer of the as-of join against plain loops, over rows made to collide."""

from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mt5_crs_pipeline.adapters import asof_join
from mt5_crs_pipeline.adapters.asof_join import newest, newest_known

INT = pl.Int64
TEXT = ["", "a", "b", "a\x00", "ab"]
NUMBERS = [-(2**63), -1, 0, 1, 2**63 - 1]
# Few times, so that most of them tie; two far ones, so that differences are large.
TIMES = st.one_of(st.integers(-3, 6), st.sampled_from([-(10**17), 10**17]))


@dataclass(frozen=True)
class Case:
    questions: pl.DataFrame
    rows: pl.DataFrame
    keys: list[str]


def later(left: Any, right: Any) -> bool:
    """`left` is the later one; a missing one is the oldest."""
    return left is not None and (right is None or left > right)


def version_of(row: dict[str, Any]) -> list[Any]:
    return [row["event"], row.get("recorded"), row.get("known")]


def is_newer(row: dict[str, Any], other: dict[str, Any]) -> bool:
    """True when `row`, which comes after `other` in the source, replaces it."""
    for mine, theirs in zip(version_of(row), version_of(other), strict=True):
        if mine != theirs:
            return later(mine, theirs)
    return True


def known_at(row: dict[str, Any], time: int, *, live: bool) -> bool:
    if row["event"] is None or row["event"] > time:
        return False
    return not live or "known" not in row or (row["known"] is not None and row["known"] <= time)


def same_key(row: dict[str, Any], question: dict[str, Any], keys: list[str]) -> bool:
    return all(row[key] is not None and row[key] == question[key] for key in keys)


def brute_newest_known(case: Case, ttl: int | None, *, live: bool) -> list[int | None]:
    answers: list[int | None] = []
    rows = case.rows.to_dicts()
    for question in case.questions.to_dicts():
        best: int | None = None
        for position, row in enumerate(rows):
            if question["time"] is None or not same_key(row, question, case.keys):
                continue
            if known_at(row, question["time"], live=live) and (best is None or is_newer(row, rows[best])):
                best = position
        if best is not None and ttl is not None and question["time"] - rows[best]["event"] > ttl:
            best = None
        answers.append(best)
    return answers


def brute_newest(rows: pl.DataFrame, keys: list[str]) -> list[int]:
    best: dict[tuple[Any, ...], int] = {}
    records = rows.to_dicts()
    for position, row in enumerate(records):
        key = tuple(row[name] for name in keys)
        if row["event"] is None or None in key:
            continue
        if key not in best or is_newer(row, records[best[key]]):
            best[key] = position
    return sorted(best.values())


@st.composite
def cases(draw: st.DrawFn) -> Case:
    keys = {f"key{number}": draw(st.sampled_from([TEXT, NUMBERS])) for number in range(draw(st.integers(0, 2)))}
    key_types = {name: pl.String if values is TEXT else INT for name, values in keys.items()}
    columns = ["event", *draw(st.sampled_from([[], ["known"], ["known", "recorded"], ["recorded"]]))]

    def frame(times: list[str], most: int) -> pl.DataFrame:
        fields = {name: st.none() | st.sampled_from(values) for name, values in keys.items()}
        # Nulls rarely: a row without an event never counts.
        fields |= {name: st.one_of(*[TIMES] * 5, st.none()) for name in times}
        records = draw(st.lists(st.fixed_dictionaries(fields), max_size=most))
        return pl.DataFrame(records, schema=key_types | dict.fromkeys(times, INT))

    return Case(frame(["time"], 12), frame(columns, 25), list(keys))


TTLS = st.none() | st.integers(0, 8) | st.just(2 * 10**17)


@settings(max_examples=400, deadline=None)
@given(cases(), TTLS, st.booleans(), st.sampled_from([1, 2, 2**18]))
def test_answers_are_those_of_a_plain_loop(case: Case, ttl: int | None, live: bool, at_once: int) -> None:
    with patch.object(asof_join, "_ROWS_AT_ONCE", at_once):
        answers = newest_known(case.questions, case.rows, case.keys, ttl, live=live)
    assert answers.to_list() == brute_newest_known(case, ttl, live=live)


def test_a_key_and_a_time_that_fit_into_no_number_are_answered() -> None:
    """Side by side, the second key's time 0 would have the number 2^63 - 1, and its time 1 one beyond."""
    far = (2**63 - 1) // 7
    asked = [(far, time) for time in (5, 0, 3, 1, 6, 2, 4)] + [(0, 6), (0, 0)]
    questions = pl.DataFrame(asked, schema={"key0": INT, "time": INT}, orient="row")
    rows = pl.DataFrame({"key0": [far] * 3 + [0], "event": [0, 2, 5, 1]})
    case = Case(questions, rows, ["key0"])
    assert newest_known(questions, rows, ["key0"], None, live=True).to_list() == brute_newest_known(
        case, None, live=True
    )


@settings(max_examples=200, deadline=None)
@given(cases(), TTLS, st.booleans())
def test_rows_already_in_order_are_answered_alike(case: Case, ttl: int | None, live: bool) -> None:
    """The shortcut for sorted rows: keys together, and times rising where they are unique."""
    rows = case.rows.unique([*case.keys, "event"], keep="first", maintain_order=True).sort([*case.keys, "event"])
    if "known" in rows.columns:
        rows = rows.with_columns(known=pl.col("event"))
    ordered = Case(case.questions, rows, case.keys)
    answers = newest_known(case.questions, rows, case.keys, ttl, live=live)
    assert answers.to_list() == brute_newest_known(ordered, ttl, live=live)


@settings(max_examples=200, deadline=None)
@given(cases())
def test_the_newest_rows_are_those_of_a_plain_loop(case: Case) -> None:
    found = newest(case.rows, case.keys)
    assert found.dtype == np.int64
    assert found.tolist() == brute_newest(case.rows, case.keys)


@settings(max_examples=100, deadline=None)
@given(cases(), st.booleans())
@example(Case(pl.DataFrame({"time": [3]}), pl.DataFrame({"event": [1, 2]}), []), True)
def test_neither_side_is_changed(case: Case, live: bool) -> None:
    questions, rows = case.questions.clone(), case.rows.clone()
    newest_known(case.questions, case.rows, case.keys, None, live=live)
    newest(case.rows, case.keys)
    assert case.questions.equals(questions) and case.rows.equals(rows)


def answers(
    times: list[int | None], rows: dict[str, list[int | None]], ttl: int | None = None, *, live: bool = True
) -> list[int | None]:
    frame = pl.DataFrame(rows, schema=dict.fromkeys(rows, INT))
    return newest_known(pl.DataFrame({"time": times}, schema={"time": INT}), frame, [], ttl, live=live).to_list()


def test_a_correction_counts_from_its_arrival() -> None:
    rows: dict[str, list[int | None]] = {"event": [10, 10], "known": [10, 15]}
    assert answers([9, 10, 14, 15, 99], rows) == [None, 0, 0, 1, 1]
    assert answers([9, 10, 14, 15, 99], rows, live=False) == [None, 1, 1, 1, 1]


def test_a_late_correction_of_an_older_event_never_hides_a_newer_event() -> None:
    rows: dict[str, list[int | None]] = {"event": [10, 20, 10], "known": [10, 20, 25]}
    assert answers([15, 20, 25, 99], rows) == [0, 1, 1, 1]


def test_an_older_event_that_arrives_first_is_the_answer_until_the_newer_one_arrives() -> None:
    rows: dict[str, list[int | None]] = {"event": [20, 10], "known": [40, 30]}
    assert answers([10, 29, 30, 39, 40], rows) == [None, None, 1, 1, 0]


def test_a_row_expires_one_step_after_its_ttl_and_shows_none_older() -> None:
    rows: dict[str, list[int | None]] = {"event": [0, 10]}
    assert answers([10, 15, 16], rows, ttl=5) == [1, 1, None]
    assert answers([10, 11], rows, ttl=0) == [1, None]


def test_ttl_counts_from_the_event_and_not_from_when_it_was_known() -> None:
    assert answers([20, 21], {"event": [10], "known": [20]}, ttl=10) == [0, None]


@pytest.mark.parametrize(("recorded", "expected"), [([2, 1], 0), ([1, 1], 1), ([None, 1], 1), ([1, None], 0)])
def test_of_equal_versions_the_last_recorded_wins_then_the_last(recorded: list[int | None], expected: int) -> None:
    rows: dict[str, list[int | None]] = {"event": [5, 5], "known": [7, 7], "recorded": recorded}
    assert answers([7], rows) == [expected]


def test_an_older_recording_that_is_known_later_replaces_nothing() -> None:
    rows: dict[str, list[int | None]] = {"event": [5, 5], "known": [7, 9], "recorded": [8, 6]}
    assert answers([6, 7, 9], rows) == [None, 0, 0]
    assert answers([6, 7, 9], rows, live=False) == [0, 0, 0]


def test_a_row_of_unknown_arrival_counts_only_where_arrival_does_not() -> None:
    rows: dict[str, list[int | None]] = {"event": [5, 6], "known": [5, None]}
    assert answers([9], rows) == [0]
    assert answers([9], rows, live=False) == [1]


def test_a_key_that_comes_back_with_older_rows_is_put_in_order() -> None:
    """Times rise wherever a row follows one of its own key, and still the rows of A are not in order."""
    rows = pl.DataFrame({"key0": ["A", "B", "A"], "event": [5, 1, 2]})
    questions = pl.DataFrame({"key0": ["A", "A", "A", "B"], "time": [1, 2, 5, 5]})
    assert newest_known(questions, rows, ["key0"], None, live=True).to_list() == [None, 2, 0, 1]


def test_many_rows_in_no_order_are_answered_as_by_a_loop() -> None:
    """Large enough for polars to work in parallel."""
    random = np.random.default_rng(5)
    size = 3_000
    rows = pl.DataFrame(
        {
            "key0": random.integers(0, 40, size).astype(str),
            "event": random.integers(0, 400, size),
            "known": random.integers(0, 500, size),
        }
    )
    questions = pl.DataFrame({"key0": random.integers(0, 45, 200).astype(str), "time": random.integers(-5, 600, 200)})
    case = Case(questions, rows, ["key0"])
    for live in (True, False):
        found = newest_known(questions, rows, ["key0"], 60, live=live)
        assert found.to_list() == brute_newest_known(case, 60, live=live)
        assert 20 < found.null_count() < 180


def test_questions_of_nobody_do_not_hide_that_others_are_out_of_order() -> None:
    rows = pl.DataFrame({"key": ["a", "a", "a", "b"], "event": [0, 4, 9, 0]})
    questions = pl.DataFrame({"key": ["a", None, "a", "b", "a"], "time": [10, 0, 5, 7, 1]})
    assert newest_known(questions, rows, ["key"], None, live=False).to_list() == [2, None, 1, 3, 0]
