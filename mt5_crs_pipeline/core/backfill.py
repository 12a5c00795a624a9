"""Which months to compute again when bars arrive late or are corrected."""

from collections.abc import Iterable


def months_between(first: str, last: str) -> list[str]:
    """Return the months from '2023-11' to '2024-01', both included."""
    numbers = range(_number(first), _number(last) + 1)
    return [f"{number // 12:04d}-{number % 12 + 1:02d}" for number in numbers]


def next_month(month: str) -> str:
    """Return the month after `month`."""
    return months_between(month, f"{int(month[:4]) + 1}-{month[5:]}")[1]


def contiguous_ranges(months: Iterable[str]) -> list[tuple[str, str]]:
    """Return `months` as the fewest (first, last) ranges that hold exactly these months."""
    ranges: list[tuple[str, str]] = []
    for month in sorted(set(months)):
        if ranges and _number(month) == _number(ranges[-1][1]) + 1:
            ranges[-1] = (ranges[-1][0], month)
        else:
            ranges.append((month, month))
    return ranges


def _number(month: str) -> int:
    return int(month[:4]) * 12 + int(month[5:]) - 1
