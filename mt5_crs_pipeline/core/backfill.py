"""Which months to compute again when bars arrive late or are corrected, and when to ask for them again."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final, Literal

Outcome = Literal["at work", "succeeded", "failed", "unknown"]
LONGEST_PAUSE: Final = timedelta(hours=1)


@dataclass(frozen=True)
class Request:
    """A range of months to compute, both included, the key of what changed in it, and the months whose bars did."""

    first: str
    last: str
    key: str
    changed: tuple[str, ...]


@dataclass(frozen=True)
class Memory:
    """What is remembered between looks at the changes; positions are those of the changes' source.

    All changes before `done` are in the lake. Those before `asked` were asked for, with `attempts` by key; they count
    as done when every one of these runs has succeeded, so that nothing is lost with a run. `again_at` is when failed
    ones are asked for again, in ISO 8601.
    """

    done: int | None = None
    asked: int | None = None
    attempts: Mapping[str, int] = field(default_factory=dict)
    again_at: str | None = None

    @classmethod
    def from_json(cls, text: str | None) -> "Memory":
        """Return the memory that `to_json` wrote; an empty one of nothing."""
        kept = json.loads(text) if text else {}
        # Before runs were waited for, a cursor was a position alone.
        return cls(done=kept["position"]) if "position" in kept else cls(**kept)

    def to_json(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    def run_keys(self) -> dict[str, str]:
        """Return, by key, the run key under which it was asked for last: another for every attempt."""
        return {key: _run_key(key, attempt) for key, attempt in self.attempts.items()}


def settle(memory: Memory, outcomes: Mapping[str, Outcome], now: datetime) -> tuple[Memory, str | None]:
    """Return the memory after a look at the runs that were asked for, and why none is asked for now, if so.

    `outcomes` is by key. A run that failed is asked for again after 2, 4, 8 ... minutes, later every hour; one that is
    unknown was never made, or its record was deleted, and is asked for at once.
    """
    if memory.asked is None:
        return memory, None
    found = [outcomes[key] for key in memory.attempts]
    if "at work" in found:
        return memory, f"waiting for {found.count('at work')} of {len(found)} runs that were asked for"
    if all(outcome == "succeeded" for outcome in found):
        return Memory(done=memory.asked), None
    failed = [key for key in memory.attempts if outcomes[key] == "failed"]
    if failed and memory.again_at is None:
        attempt = max(memory.attempts[key] for key in failed)
        pause = min(timedelta(minutes=2 ** min(attempt, 10)), LONGEST_PAUSE)
        memory = replace(memory, again_at=(now + pause).isoformat())
    if memory.again_at is not None and now < datetime.fromisoformat(memory.again_at):
        return memory, f"{len(failed)} of {len(found)} runs failed: asked for again at {memory.again_at}"
    return memory, None


def ask(
    memory: Memory, requests: Sequence[Request], position: int, outcomes: Mapping[str, Outcome]
) -> tuple[Memory, list[Request]]:
    """Return the memory and the runs to ask for, their keys being run keys, for all changes since `memory.done`.

    A range that was asked for and succeeded is not asked for again unless more changed in it.
    """
    if not requests:
        return Memory(done=position), []
    attempts = {one.key: memory.attempts.get(one.key, 1) + (outcomes.get(one.key) == "failed") for one in requests}
    wanted = [
        replace(one, key=_run_key(one.key, attempts[one.key]))
        for one in requests
        if outcomes.get(one.key) != "succeeded"
    ]
    return Memory(done=memory.done, asked=position, attempts=attempts), wanted


def _run_key(key: str, attempt: int) -> str:
    return key if attempt == 1 else f"{key}#{attempt}"


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
