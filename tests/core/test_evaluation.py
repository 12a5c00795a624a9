"""The metrics against other people's formulas, and the verdict against luck, NaN and degenerate input."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mt5_crs_pipeline.core.errors import InputError
from mt5_crs_pipeline.core.evaluation import auc, base_rate, evaluate, log_loss
from mt5_crs_pipeline.core.intervals import Interval
from mt5_crs_pipeline.core.metrics import metrics_with_intervals
from tests.core.test_intervals import interval_by_loops

IMPORTANCE = {"rsi_14": 2.0, "momentum_5": 5.0, "sma_5": 2.0}


def predictions(
    seed: int = 1, days: int = 300, symbols: tuple[str, ...] = ("EURUSD", "GBPUSD", "USDJPY")
) -> pd.DataFrame:
    """Rows of several symbols that close at the same times, across a turn of the year."""
    rng = np.random.default_rng(seed)
    times = pd.date_range("2023-06-01", periods=days, freq="D", tz="UTC").as_unit("us")
    blocks = [pd.DataFrame({"symbol": name, "event_timestamp": times}) for name in symbols]
    frame = pd.concat(blocks, ignore_index=True)
    frame["target"] = (rng.random(len(frame)) < 0.52).astype(float)
    frame["probability"] = np.clip(0.5 + 0.1 * (frame["target"] - 0.5) + rng.normal(0, 0.12, len(frame)), 0, 1)
    return frame


def test_auc_equals_counting_all_pairs_with_ties() -> None:
    rng = np.random.default_rng(5)
    target = (rng.random(150) < 0.4).astype(float)
    probability = np.round(np.clip(0.5 + 0.2 * (target - 0.5) + rng.normal(0, 0.2, 150), 0, 1), 1)
    ups, downs = probability[target == 1], probability[target == 0]
    wins = sum(1.0 if up > down else 0.5 if up == down else 0.0 for up in ups for down in downs)
    assert len(np.unique(probability)) < 15
    assert auc(target, probability) == pytest.approx(wins / (len(ups) * len(downs)), abs=1e-15)


def test_auc_of_known_orders() -> None:
    target = np.array([0.0, 0.0, 1.0, 1.0])
    assert auc(target, np.array([0.1, 0.2, 0.3, 0.4])) == 1.0
    assert auc(target, np.array([0.4, 0.3, 0.2, 0.1])) == 0.0
    assert auc(target, np.full(4, 0.7)) == 0.5
    assert math.isnan(auc(np.ones(4), np.linspace(0, 1, 4)))


def test_log_loss_equals_the_formula_row_by_row() -> None:
    frame = predictions()
    target, probability = frame["target"].to_numpy(), frame["probability"].to_numpy()
    total = -math.fsum(math.log(p if t == 1 else 1 - p) for t, p in zip(target, probability, strict=True))
    assert log_loss(target, probability) == pytest.approx(total / len(frame), rel=1e-12)


def test_a_sure_and_wrong_row_costs_much_but_not_infinity() -> None:
    assert log_loss(np.array([0.0, 1.0]), np.array([1.0, 0.0])) == pytest.approx(-math.log(1e-15), rel=1e-2)


def test_base_rate_is_the_share_of_the_more_frequent_class() -> None:
    assert base_rate(np.array([0.0, 0.0, 0.0, 1.0])) == 0.75
    assert base_rate(np.array([1.0, 1.0, 0.0])) == pytest.approx(2 / 3)


def test_evaluation_equals_counting_by_hand() -> None:
    frame = predictions()
    found = evaluate(frame, IMPORTANCE)
    up, right = frame["probability"] >= 0.5, (frame["probability"] >= 0.5) == (frame["target"] == 1)
    lower, upper = interval_by_loops(right.tolist(), frame["event_timestamp"].map(pd.Timestamp.toordinal).tolist())
    rows = frame.sort_values("event_timestamp", kind="stable", ignore_index=True)
    drawn = metrics_with_intervals(rows).set_index("metric").loc["accuracy"]
    wider = min(lower, drawn["lower"]), max(upper, drawn["upper"])
    assert (found.accuracy.lower, found.accuracy.upper) == pytest.approx(wider, rel=2e-3)
    assert (found.rows, found.symbols, found.accuracy.estimate) == (900, 3, pytest.approx(right.mean()))
    assert found.first_event_timestamp == pd.Timestamp("2023-06-01", tz="UTC")
    assert found.last_event_timestamp == pd.Timestamp("2024-03-26", tz="UTC")
    share = frame["target"].mean()
    assert found.base_log_loss == pytest.approx(-share * math.log(share) - (1 - share) * math.log(1 - share))
    assert found.confusion.loc["DOWN", "UP"] == int(((frame["target"] == 0) & up).sum())
    assert found.confusion.loc["UP", "UP"] == int(((frame["target"] == 1) & up).sum())
    assert found.confusion.to_numpy().sum() == 900
    assert list(found.importance.items()) == [("momentum_5", 5.0), ("rsi_14", 2.0), ("sma_5", 2.0)]


def test_each_group_is_what_its_rows_alone_would_give() -> None:
    frame = predictions()
    found = evaluate(frame, IMPORTANCE)
    assert found.by_symbol["group"].tolist() == ["EURUSD", "GBPUSD", "USDJPY"]
    assert found.by_year["group"].tolist() == ["2023", "2024"]
    assert found.by_year["rows"].tolist() == [214 * 3, 86 * 3]
    columns = ["group", "rows", "accuracy", "lower", "upper", "base_rate", "log_loss"]
    for table, key in ((found.by_symbol, frame["symbol"]), (found.by_year, frame["event_timestamp"].dt.strftime("%Y"))):
        assert list(table.columns) == columns
        for line in table.itertuples():
            part = frame[key == line.group]
            right = (part["probability"] >= 0.5) == (part["target"] == 1)
            ends = interval_by_loops(right.tolist(), part["event_timestamp"].map(pd.Timestamp.toordinal).tolist())
            up = part["target"].mean()
            assert (line.rows, line.accuracy) == (len(part), pytest.approx(right.mean()))
            assert (line.lower, line.upper) == pytest.approx(ends, rel=2e-3)
            assert line.base_rate == pytest.approx(max(up, 1 - up))
            # scipy has no log-loss: the Bernoulli log-likelihood is the same number.
            assert line.log_loss == pytest.approx(-stats.bernoulli.logpmf(part["target"], part["probability"]).mean())


def test_reliability_bins_hold_their_lower_edge_and_the_last_holds_one() -> None:
    frame = predictions(days=6, symbols=("A", "B")).assign(
        probability=[0.0, 0.0999999, 0.1, 0.3, 0.29999999, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0, 1.0],
        target=[0.0, 0, 0, 1, 0, 1, 1, 1, 1, 1, 0, 1],
    )
    table = evaluate(frame, {}).reliability
    assert table["bin_lower"].tolist() == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.6, 0.7, 0.8, 0.9])
    assert table["rows"].tolist() == [2, 1, 1, 1, 1, 1, 1, 4]
    last = table.iloc[-1]
    wilson = stats.binomtest(3, 4).proportion_ci(method="wilson")
    assert (last["share_up"], last["mean_probability"]) == (0.75, pytest.approx(3.85 / 4))
    assert (last["lower"], last["upper"]) == pytest.approx((wilson.low, wilson.high))


def test_the_order_of_rows_changes_nothing_and_the_input_stays_as_it_was() -> None:
    frame = predictions()
    before = frame.copy(deep=True)
    shuffled = frame.sample(frac=1, random_state=3)
    text = json.dumps(evaluate(frame, IMPORTANCE).to_dict())
    assert json.dumps(evaluate(shuffled, IMPORTANCE).to_dict()) == text
    pd.testing.assert_frame_equal(frame, before)


def test_half_counts_as_up() -> None:
    found = evaluate(predictions(days=2, symbols=("A",)).assign(probability=0.5, target=[1.0, 0.0]), {})
    assert found.confusion["UP"].tolist() == [1, 1]
    assert found.confusion["DOWN"].tolist() == [0, 0]
    ups = evaluate(predictions(days=2, symbols=("A",)).assign(probability=0.5, target=1.0), {})
    assert ups.accuracy.estimate == 1.0


def test_to_dict_is_plain_json_and_says_what_the_fields_say() -> None:
    frame = predictions(days=3, symbols=("A",)).assign(target=1.0)
    found = evaluate(frame, {"rsi_14": math.nan, "sma_5": 1.0})
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["auc"] is None
    assert list(plain["importance"].items()) == [("sma_5", 1.0), ("rsi_14", None)]
    assert plain["first_event_timestamp"] == "2023-06-01T00:00:00Z"
    assert plain["accuracy"] == {
        "estimate": found.accuracy.estimate,
        "lower": found.accuracy.lower,
        "upper": found.accuracy.upper,
    }
    assert plain["confusion"]["DOWN"] == {"DOWN": 0, "UP": 0}
    assert [line["group"] for line in plain["by_year"]] == ["2023"]


def test_times_of_another_zone_are_read_in_utc() -> None:
    frame = predictions()
    elsewhere = frame.assign(event_timestamp=frame["event_timestamp"].dt.tz_convert("America/New_York"))
    assert evaluate(elsewhere, {}).to_dict() == evaluate(frame, {}).to_dict()


def test_one_row_of_one_symbol_and_one_class_is_evaluated() -> None:
    found = evaluate(predictions(days=1, symbols=("A",)).assign(target=1.0, probability=0.8), {})
    assert found.accuracy == Interval(1.0, 0.0, 1.0)
    assert (found.base_rate, found.symbols, found.rows) == (1.0, 1, 1)
    assert found.base_log_loss == pytest.approx(0.0, abs=1e-12)
    assert math.isnan(found.auc)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("probability", math.nan, r"column probability, row 4 \(counted from 0\): .*nan.* is not a number from 0 to 1"),
        ("probability", 1.0000001, r"column probability, row 4 .*1\.0000001"),
        ("probability", -0.1, r"column probability, row 4 .*-0\.1"),
        ("probability", math.inf, r"column probability, row 4 .*inf"),
        ("target", math.nan, r"column target, row 4 .*nan.* is not 0 or 1"),
        ("target", 0.5, r"column target, row 4 .*0\.5"),
        ("target", -1.0, r"column target, row 4"),
        ("symbol", None, r"column symbol, row 4 .*None.* is not a symbol"),
        ("event_timestamp", pd.NaT, r"column event_timestamp, row 4 .*NaT.* is not a time"),
    ],
)
def test_the_first_offending_row_is_named(column: str, value: object, message: str) -> None:
    frame = predictions().set_index(pd.Index(range(1000, 1900)))
    frame.iloc[4, list(frame.columns).index(column)] = value
    frame.iloc[7, list(frame.columns).index(column)] = value
    with pytest.raises(InputError, match=message):
        evaluate(frame, {})


@pytest.mark.parametrize("column", ["symbol", "event_timestamp", "target", "probability"])
def test_a_missing_column_is_named(column: str) -> None:
    with pytest.raises(InputError, match=f"lack the column {column}"):
        evaluate(predictions().drop(columns=column), {})


def test_no_rows_and_times_without_a_zone_are_refused() -> None:
    with pytest.raises(InputError, match="no rows"):
        evaluate(predictions().iloc[:0], {})
    naive = predictions().assign(event_timestamp=lambda frame: frame["event_timestamp"].dt.tz_localize(None))
    with pytest.raises(InputError, match="time with a zone"):
        evaluate(naive, {})


def test_rows_are_grouped_by_the_thirds_of_their_own_symbol_s_volatility() -> None:
    times = pd.date_range("2024-01-01", periods=90, freq="D", tz="UTC")
    frame = pd.concat(
        [
            pd.DataFrame(
                {
                    "symbol": name,
                    "event_timestamp": times,
                    # Right only when it is wild; one symbol is always wilder than the other.
                    "target": np.where(np.arange(90) >= 60, 1.0, 0.0),
                    "probability": 0.75,
                    "realised_volatility_20": level * (1.0 + np.arange(90)),
                }
            )
            for name, level in (("QUIET", 0.001), ("LOUD", 1.0))
        ]
    )
    found = evaluate(frame.sample(frac=1, random_state=1), {}).by_regime.set_index("group")
    assert found.index.tolist() == ["calm", "usual", "wild"]
    assert found["accuracy"].tolist() == [0.0, 0.0, 1.0]
    assert found["rows"].tolist() == [60, 60, 60]
    unknown = evaluate(frame.assign(realised_volatility_20=np.nan), {})
    assert unknown.by_regime.empty and unknown.rank_ic.empty
    assert evaluate(frame.drop(columns="realised_volatility_20"), {}).by_regime.empty


def with_returns(seed: int = 1) -> pd.DataFrame:
    """Predictions of a label with a cost band of 1 %: a third of the rows stays inside it and has no target."""
    frame = predictions(seed)
    moved = np.random.default_rng(seed).normal(0, 0.02, len(frame)) + 0.02 * (frame["probability"] - 0.5)
    return frame.assign(forward_return=moved, target=np.where(np.abs(moved) <= 0.01, np.nan, (moved > 0) * 1.0))


def test_rows_inside_the_cost_band_count_for_the_rank_correlation_alone() -> None:
    frame = with_returns()
    found, labelled = evaluate(frame, {}, 0.01), frame.dropna(subset=["target"])
    assert (found.rows, found.rows_in_cost_band) == (len(labelled), len(frame) - len(labelled))
    assert 200 < found.rows_in_cost_band < 500
    alone = evaluate(labelled, {}, 0.01)
    assert found.metrics.equals(alone.metrics) and found.by_year.equals(alone.by_year)
    assert found.rank_ic.equals(evaluate(frame.assign(target=1.0), {}).rank_ic)
    assert found.rank_ic["count"].tolist() != alone.rank_ic["count"].tolist()
    assert found.to_dict()["rows_in_cost_band"] == found.rows_in_cost_band
    assert found.to_dict()["rank_ic"][0]["group"] == "2023"


@pytest.mark.parametrize("moved", [0.0101, -0.5, math.nan])
def test_a_target_may_be_missing_only_inside_the_cost_band(moved: float) -> None:
    frame = with_returns()
    frame.loc[4, ["target", "forward_return"]] = math.nan, moved
    with pytest.raises(InputError, match=r"column target, row 4 .*missing only where .* the cost band of 0\.01"):
        evaluate(frame, {}, 0.01)


def test_without_a_cost_band_every_target_is_needed_even_of_a_close_that_stayed() -> None:
    frame = predictions().assign(forward_return=0.0)
    frame.loc[4, "target"] = math.nan
    with pytest.raises(InputError, match=r"column target, row 4 .*is not 0 or 1$"):
        evaluate(frame, {})


def test_a_cost_band_that_no_close_left_is_one_clear_line() -> None:
    frame = predictions().assign(forward_return=0.001, target=math.nan)
    with pytest.raises(InputError, match="none of 900 predictions has a target: every close stayed inside the cost"):
        evaluate(frame, {}, 0.01)


@pytest.mark.parametrize("value", [math.inf, "much"])
def test_a_return_that_is_none_is_named(value: object) -> None:
    frame = with_returns().astype({"forward_return": object})
    frame.loc[4, "forward_return"] = value
    with pytest.raises(InputError, match=r"column forward_return, row 4 .*is not a return or missing"):
        evaluate(frame, {}, 0.01)
