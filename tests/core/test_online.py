"""What may be served, and each reason why something may not."""

import math
from datetime import UTC, datetime, timedelta, timezone

import pytest

from mt5_crs_pipeline.core.errors import (
    FeaturesExpiredError,
    FeaturesFromTheFutureError,
    FeaturesIncompleteError,
    FeaturesNotStoredError,
    InputError,
    PredictionRefusedError,
)
from mt5_crs_pipeline.core.online import TIME_TO_LIVE, StoredRow, servable

CLOSE = datetime(2024, 5, 1, tzinfo=UTC)
TICK = timedelta(microseconds=1)
VALUES = {"rsi_14": 50.0, "gap": -0.0}


def refusal(now: datetime, time: datetime | None = CLOSE, **changed: float) -> PredictionRefusedError | None:
    found = servable(StoredRow("IBM", time, VALUES | changed), list(VALUES), now)
    assert (found.symbol, found.event_timestamp) == ("IBM", time)
    assert dict(found.values) == ({} if found.refusal else VALUES | changed)
    return found.refusal


@pytest.mark.parametrize("age", [timedelta(0), timedelta(days=1), TIME_TO_LIVE])
def test_a_row_is_served_from_its_close_until_it_has_lived(age: timedelta) -> None:
    assert refusal(CLOSE + age) is None
    assert refusal((CLOSE + age).astimezone(timezone(timedelta(hours=9)))) is None


@pytest.mark.parametrize(
    ("now", "time", "changed", "kind", "words"),
    [
        (CLOSE, None, {}, FeaturesNotStoredError, "'IBM'"),
        (CLOSE - TICK, CLOSE, {}, FeaturesFromTheFutureError, "2024-04-30T23:59:59.999999+00:00"),
        (CLOSE + TIME_TO_LIVE + TICK, CLOSE, {}, FeaturesExpiredError, "more than 30 days"),
        (CLOSE, CLOSE, {"gap": math.nan}, FeaturesIncompleteError, "lack gap"),
        (CLOSE, CLOSE, {"gap": math.inf}, FeaturesIncompleteError, "lack gap"),
        (CLOSE, CLOSE, {"gap": math.nan, "rsi_14": math.nan}, FeaturesIncompleteError, "lack rsi_14 and 1 more"),
    ],
)
def test_every_other_row_is_refused_with_its_reason(
    now: datetime, time: datetime | None, changed: dict[str, float], kind: type, words: str
) -> None:
    found = refusal(now, time, **changed)
    assert type(found) is kind
    assert "IBM" in str(found) and words in str(found) and "\n" not in str(found)


def test_a_value_that_is_not_there_at_all_is_missing() -> None:
    found = servable(StoredRow("IBM", CLOSE, VALUES), [*VALUES, "new_feature"], CLOSE)
    assert isinstance(found.refusal, FeaturesIncompleteError) and found.values == {}


def test_a_time_without_zone_is_no_question() -> None:
    with pytest.raises(InputError, match="time zone"):
        refusal(datetime(2024, 5, 1))
