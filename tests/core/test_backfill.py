"""Months, counted by hand."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt5_crs_pipeline.core.backfill import (
    Memory,
    Outcome,
    Request,
    ask,
    contiguous_ranges,
    months_between,
    next_month,
    settle,
)

month = st.tuples(st.integers(1990, 1994), st.integers(1, 12)).map(lambda pair: f"{pair[0]}-{pair[1]:02d}")


def test_months_run_over_the_turn_of_the_year() -> None:
    assert months_between("2023-11", "2024-02") == ["2023-11", "2023-12", "2024-01", "2024-02"]
    assert months_between("2024-05", "2024-05") == ["2024-05"]
    assert months_between("2024-05", "2024-04") == []
    assert len(months_between("2000-01", "2024-12")) == 300


@pytest.mark.parametrize(
    ("this", "following"), [("2024-01", "2024-02"), ("2024-12", "2025-01"), ("0999-12", "1000-01")]
)
def test_the_next_month(this: str, following: str) -> None:
    assert next_month(this) == following


def test_ranges_join_neighbours_only() -> None:
    assert contiguous_ranges(["2024-01", "2023-12", "2024-03", "2024-03"]) == [
        ("2023-12", "2024-01"),
        ("2024-03", "2024-03"),
    ]
    assert contiguous_ranges([]) == []


@given(st.lists(month))
def test_ranges_hold_exactly_the_months_and_never_touch(months: list[str]) -> None:
    ranges = contiguous_ranges(months)
    assert [m for first, last in ranges for m in months_between(first, last)] == sorted(set(months))
    for (_, end), (start, _) in pairwise(ranges):
        assert next_month(end) < start


# ---------------------------------------------------------------- when to ask again

NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)
MAY = Request("2024-05", "2024-05", "may", ("2024-05",))
JUNE = Request("2024-06", "2024-06", "june", ("2024-06",))


def asked() -> Memory:
    memory, wanted = ask(Memory(done=5), [MAY, JUNE], 9, {})
    assert wanted == [MAY, JUNE] and memory.done == 5
    return memory


def test_the_position_moves_only_when_every_run_has_succeeded() -> None:
    memory = asked()
    waiting, reason = settle(memory, {"may": "succeeded", "june": "at work"}, NOW)
    assert waiting == memory and reason == "waiting for 1 of 2 runs that were asked for"
    assert settle(memory, {"may": "succeeded", "june": "succeeded"}, NOW) == (Memory(done=9), None)


def test_without_changes_the_position_moves_at_once() -> None:
    assert ask(Memory(done=5), [], 9, {}) == (Memory(done=9), [])
    assert settle(Memory(done=9), {}, NOW) == (Memory(done=9), None)


def test_a_failed_run_is_asked_for_again_under_another_key_after_a_pause_that_grows() -> None:
    memory, pauses, now = asked(), [], NOW
    for attempt in range(1, 9):
        outcomes: dict[str, Outcome] = {"may": "succeeded", "june": "failed"}
        memory, reason = settle(memory, outcomes, now)
        assert reason and "1 of 2 runs failed: asked for again at 2024-05-0" in reason
        assert memory.again_at
        again = datetime.fromisoformat(memory.again_at)
        pauses.append((again - now) / timedelta(minutes=1))
        assert settle(memory, outcomes, again - timedelta(seconds=1))[1]
        memory, reason = settle(memory, outcomes, again)
        assert reason is None
        memory, wanted = ask(memory, [MAY, JUNE], 9, outcomes)
        # What succeeded is not done twice.
        assert [one.key for one in wanted] == [f"june#{attempt + 1}"]
        assert memory.run_keys() == {"may": "may", "june": f"june#{attempt + 1}"} and memory.done == 5
        now = again
    assert pauses == [2, 4, 8, 16, 32, 60, 60, 60]
    assert settle(memory, {"may": "succeeded", "june": "succeeded"}, now) == (Memory(done=9), None)


def test_a_run_that_was_never_made_is_asked_for_again_under_the_same_key() -> None:
    memory, reason = settle(asked(), {"may": "unknown", "june": "succeeded"}, NOW)
    assert reason is None
    assert ask(memory, [MAY, JUNE], 9, {"may": "unknown", "june": "succeeded"})[1] == [MAY]


def test_what_changed_meanwhile_is_asked_for_with_the_retry_and_moves_the_position_further() -> None:
    outcomes: dict[str, Outcome] = {"may": "failed", "june": "succeeded"}
    more = Request("2024-06", "2024-07", "june and more", ("2024-06",))
    memory, wanted = ask(asked(), [MAY, more], 12, outcomes)
    assert [one.key for one in wanted] == ["may#2", "june and more"]
    assert (memory.done, memory.asked) == (5, 12)


@given(st.lists(st.sampled_from(["at work", "succeeded", "failed", "unknown"]), min_size=2, max_size=40))
def test_nothing_is_passed_over_and_what_succeeded_is_not_repeated(found: list[Outcome]) -> None:
    memory, now, succeeded = asked(), NOW, set()
    for may, june in pairwise(found):
        outcomes = {
            key: "succeeded" if key in succeeded else outcome for key, outcome in (("may", may), ("june", june))
        }
        succeeded |= {key for key, outcome in outcomes.items() if outcome == "succeeded"}
        memory, reason = settle(memory, outcomes, now)
        if memory.done == 9:
            assert succeeded == {"may", "june"}
            return
        assert memory.done == 5
        if reason is None:
            memory, wanted = ask(memory, [MAY, JUNE], 9, outcomes)
            assert not {one.key.partition("#")[0] for one in wanted} & succeeded
        now += timedelta(minutes=10)
        assert Memory.from_json(memory.to_json()) == memory


def test_no_memory_is_an_empty_one_and_that_of_an_earlier_release_is_a_position() -> None:
    assert Memory.from_json(None) == Memory()
    assert Memory.from_json('{"position": 7}') == Memory(done=7)
