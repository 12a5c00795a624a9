"""Months, counted by hand."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt5_crs_pipeline.core.backfill import contiguous_ranges, months_between, next_month

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
