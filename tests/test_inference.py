"""PricePredictor: the number served is the number trained on, and a refusal is typed."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mt5_crs_pipeline.adapters.model_store import ModelStore
from mt5_crs_pipeline.core.bars import close_time
from mt5_crs_pipeline.core.errors import (
    BundleRejectedError,
    InputError,
    NotEnoughBarsError,
    PipelineError,
    UnknownSymbolError,
)
from mt5_crs_pipeline.core.feature_rows import PIPELINE_FEATURES, feature_rows
from mt5_crs_pipeline.core.features import get_feature_names
from mt5_crs_pipeline.inference import Prediction, PricePredictor
from tests.adapters.small_model import VERSION, model, model_of_each, real_bars, save_alone, save_model, training_rows

NOW = datetime(2013, 3, 10, tzinfo=UTC)
NAMES = get_feature_names(PIPELINE_FEATURES)
COLUMNS = ["symbol", "time", "open", "high", "low", "close", "adjusted_close", "volume"]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    save_model(ModelStore(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture
def predictor(models: Path) -> PricePredictor:
    return PricePredictor(models)


def bars_of(symbol: str, rows: int | None = None) -> pd.DataFrame:
    bars = real_bars()
    bars = bars.loc[bars["symbol"] == symbol, COLUMNS]
    return bars if rows is None else bars.tail(rows)


def whole_history() -> pd.DataFrame:
    return feature_rows(real_bars(), "D1")


def refused(kind: type[PipelineError], work: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(kind) as error:
        work(*arguments, **options)
    text = str(error.value)
    assert text and "\n" not in text
    return text


# --- The same number -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("symbol", ["AAPL", "IBM"])
def test_a_prediction_from_bars_equals_that_of_the_stored_features_bit_for_bit(
    predictor: PricePredictor, symbol: str
) -> None:
    history = whole_history()
    bars = bars_of(symbol)
    for end in (len(bars), len(bars) - 57):
        row = history[history["symbol"] == symbol].iloc[end - 1]
        expected = predictor.predict(row[NAMES].to_dict(), symbol)
        for given in (bars.iloc[:end], bars.iloc[end - predictor.lookback : end], bars.iloc[:end][::-1]):
            answer = predictor.predict_from_ohlcv(given, NOW)
            assert answer.probability == expected.probability
            assert answer.bar_close == row["event_timestamp"].to_pydatetime()
            assert answer.symbol == symbol and answer.model_version == VERSION
    assert predictor.lookback == PIPELINE_FEATURES.lookback


def test_a_prediction_is_that_of_the_trained_model(predictor: PricePredictor) -> None:
    import xgboost

    rows = training_rows().tail(60).reset_index(drop=True)
    expected = model().boosters[None].predict(xgboost.DMatrix(rows[NAMES])).astype(float)
    answers = predictor.predict_batch(rows)
    assert [answer.probability for answer in answers] == expected.tolist()
    assert [answer.symbol for answer in answers] == rows["symbol"].tolist()
    assert [answer.bar_close for answer in answers] == [t.to_pydatetime() for t in rows["event_timestamp"]]
    one_by_one = [predictor.predict(row).probability for row in rows[NAMES].to_dict("records")]
    assert one_by_one == expected.tolist()
    assert {answer.prediction for answer in answers} == {0, 1}


def test_direction_and_confidence_follow_from_the_probability(predictor: PricePredictor) -> None:
    for answer in predictor.predict_batch(training_rows()):
        assert answer.prediction == (answer.probability >= 0.5)
        assert answer.direction == ("UP" if answer.prediction else "DOWN")
        assert answer.confidence == max(answer.probability, 1 - answer.probability) >= 0.5


def test_columns_may_come_in_any_order_and_more_of_them(predictor: PricePredictor) -> None:
    rows = training_rows().tail(5)
    expected = [answer.probability for answer in predictor.predict_batch(rows)]
    shuffled = rows[list(reversed(rows.columns))].assign(more=1).set_index(pd.Index(list("abcde")))
    assert [answer.probability for answer in predictor.predict_batch(shuffled)] == expected
    without_names = predictor.predict_batch(rows[NAMES])
    assert [(answer.probability, answer.symbol, answer.bar_close) for answer in without_names] == [
        (probability, None, None) for probability in expected
    ]
    assert predictor.predict_batch(rows.iloc[:0]) == []


def test_prices_are_adjusted_as_in_training(predictor: PricePredictor) -> None:
    bars = bars_of("AAPL", predictor.lookback)
    split = bars.assign(**{name: bars[name] * 2 for name in ("open", "high", "low", "close")})
    half = pd.concat([split.iloc[:-3], bars.iloc[-3:]])
    unadjusted = predictor.predict_from_ohlcv(half.drop(columns="adjusted_close"), NOW)
    assert unadjusted.probability != predictor.predict_from_ohlcv(bars, NOW).probability
    assert predictor.predict_from_ohlcv(half, NOW).confidence == pytest.approx(
        predictor.predict_from_ohlcv(bars, NOW).confidence
    )


def test_the_input_is_left_as_it_was(predictor: PricePredictor) -> None:
    bars = bars_of("IBM")
    before = bars.copy(deep=True)
    predictor.predict_from_ohlcv(bars, NOW)
    pd.testing.assert_frame_equal(bars, before)


def test_a_bar_still_forming_is_left_out(predictor: PricePredictor) -> None:
    bars = bars_of("IBM")
    last = bars["time"].iloc[-1].to_pydatetime()
    before = predictor.predict_from_ohlcv(bars.iloc[:-1], NOW)
    during = predictor.predict_from_ohlcv(bars, last + timedelta(hours=23, minutes=59))
    after = predictor.predict_from_ohlcv(bars, last + timedelta(hours=24))
    assert during == before and during.bar_close is not None and during.bar_close <= last
    assert after.bar_close == last + timedelta(days=1)


def test_times_of_any_zone_mean_the_same_bars(predictor: PricePredictor) -> None:
    bars = bars_of("IBM")
    elsewhere = bars.assign(time=bars["time"].dt.tz_convert("Asia/Tokyo").dt.as_unit("ns"))
    answer = predictor.predict_from_ohlcv(elsewhere, NOW)
    assert answer == predictor.predict_from_ohlcv(bars, NOW)
    assert answer.bar_close is not None and answer.bar_close.utcoffset() == timedelta(0)


# --- Refusals --------------------------------------------------------------------------------------------------------


def test_too_few_bars_are_refused_with_both_numbers(predictor: PricePredictor) -> None:
    needed = predictor.lookback
    assert predictor.predict_from_ohlcv(bars_of("IBM", needed), NOW)
    text = refused(NotEnoughBarsError, predictor.predict_from_ohlcv, bars_of("IBM", needed - 1), NOW)
    assert str(needed) in text and str(needed - 1) in text and "IBM" in text
    last = bars_of("IBM")["time"].iloc[-1].to_pydatetime()
    refused(NotEnoughBarsError, predictor.predict_from_ohlcv, bars_of("IBM", needed), last + timedelta(hours=1))


def test_an_unknown_symbol_is_refused_with_the_known_ones(predictor: PricePredictor) -> None:
    unknown = "'; drop table market_data; --"
    bars = bars_of("IBM").assign(symbol=unknown)
    features = training_rows()[NAMES].iloc[0].to_dict()
    for text in (
        refused(UnknownSymbolError, predictor.predict_from_ohlcv, bars, NOW),
        refused(UnknownSymbolError, predictor.predict, features, unknown),
        refused(UnknownSymbolError, predictor.predict_batch, training_rows().tail(2).assign(symbol=["IBM", unknown])),
    ):
        assert repr(unknown) in text and "AAPL, IBM" in text


def test_two_symbols_or_none_are_refused(predictor: PricePredictor) -> None:
    both = real_bars()[COLUMNS]
    assert "AAPL, IBM" in refused(InputError, predictor.predict_from_ohlcv, both, NOW)
    assert "none" in refused(InputError, predictor.predict_from_ohlcv, both.iloc[:0], NOW)


def test_naive_times_are_refused(predictor: PricePredictor) -> None:
    bars = bars_of("IBM")
    naive = bars.assign(time=bars["time"].dt.tz_localize(None))
    assert "aware UTC" in refused(InputError, predictor.predict_from_ohlcv, naive, NOW)
    assert "aware UTC" in refused(InputError, predictor.predict_from_ohlcv, bars.assign(time="2013-01-01"), NOW)


@pytest.mark.parametrize("column", ["symbol", "time", "open", "high", "low", "close", "volume"])
def test_a_missing_column_is_named(predictor: PricePredictor, column: str) -> None:
    text = refused(InputError, predictor.predict_from_ohlcv, bars_of("IBM").drop(columns=column), NOW)
    assert f"bars lack the columns {column};" in text


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("high", 0.01, "high_below_low"),
        ("close", -1.0, "price_not_positive"),
        ("open", np.nan, "price_not_finite"),
        ("low", np.inf, "price_not_finite"),
        ("volume", -1.0, "volume_negative"),
        ("volume", np.nan, "volume_not_finite"),
        ("volume", 2.0**53, "volume_not_exact"),
        ("adjusted_close", 0.0, "adjusted_close_not_positive"),
        ("time", pd.Timestamp("2100-01-01", tz="UTC"), "from_the_future"),
        ("time", pd.NaT, "missing_time"),
    ],
)
@pytest.mark.parametrize("back", [1, 30])
def test_one_bar_that_is_not_valid_is_refused_with_its_reason(
    predictor: PricePredictor, column: str, value: Any, reason: str, back: int
) -> None:
    bars = bars_of("IBM").reset_index(drop=True)
    bars[column] = bars[column].astype(float) if column == "volume" else bars[column]
    bars.loc[len(bars) - back, column] = value
    assert reason in refused(InputError, predictor.predict_from_ohlcv, bars, NOW)


def test_an_invalid_bar_before_the_history_needed_does_no_harm(predictor: PricePredictor) -> None:
    bars = bars_of("IBM").reset_index(drop=True)
    expected = predictor.predict_from_ohlcv(bars, NOW)
    bars.loc[len(bars) - predictor.lookback - 1, "close"] = -1.0
    assert predictor.predict_from_ohlcv(bars, NOW) == expected


def test_repeated_bars_and_bars_of_another_timeframe_are_refused(predictor: PricePredictor) -> None:
    bars = bars_of("IBM")
    repeated = pd.concat([bars, bars.tail(1)])
    assert "duplicate" in refused(InputError, predictor.predict_from_ohlcv, repeated, NOW)
    contradiction = pd.concat([bars, bars.tail(1).assign(volume=1.0)])
    assert "contradicting_duplicate" in refused(InputError, predictor.predict_from_ohlcv, contradiction, NOW)
    hourly = bars.assign(timeframe="H1")
    assert "wrong_timeframe" in refused(InputError, predictor.predict_from_ohlcv, hourly, NOW)
    assert predictor.predict_from_ohlcv(bars.assign(timeframe="D1"), NOW)


@pytest.mark.parametrize("value", ["abc", None, True])
def test_a_price_that_is_no_number_is_refused(predictor: PricePredictor, value: Any) -> None:
    bars = bars_of("IBM").assign(close=value)
    assert "close" in refused(InputError, predictor.predict_from_ohlcv, bars, NOW)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, None, "abc", "1.5"])
def test_a_feature_that_is_no_finite_number_is_refused(predictor: PricePredictor, value: Any) -> None:
    rows = training_rows().tail(3).reset_index(drop=True)
    features = {**rows[NAMES].iloc[0].to_dict(), "rsi_14": value}
    assert "rsi_14" in refused(InputError, predictor.predict, features)
    broken = rows.astype({"rsi_14": object})
    broken.loc[1, "rsi_14"] = value
    if isinstance(value, float):
        broken = broken.astype({"rsi_14": float})
    assert "rsi_14" in refused(InputError, predictor.predict_batch, broken)


def test_a_missing_feature_is_named(predictor: PricePredictor) -> None:
    features = training_rows()[NAMES].iloc[0].to_dict()
    del features["gap"], features["rsi_7"]
    assert "features missing: gap, rsi_7" in refused(InputError, predictor.predict, features)
    assert "gap" in refused(InputError, predictor.predict_batch, training_rows().drop(columns="gap"))
    assert "rsi_7" in refused(InputError, predictor.predict, {})


# --- The model -------------------------------------------------------------------------------------------------------


def test_every_prediction_of_an_unproven_model_says_so(models: Path) -> None:
    store = ModelStore(models)
    row = training_rows().tail(1)
    answers = []
    for verdict in (None, {"promoted": False, "reason": "no edge"}):
        if verdict:
            store.record_verdict(VERSION, verdict)
        predictor = PricePredictor(models)
        answers += predictor.predict_batch(row)
        answers.append(predictor.predict(row[NAMES].iloc[0].to_dict()))
        answers.append(predictor.predict_from_ohlcv(bars_of("IBM"), NOW))
    assert len(answers) == 6
    assert all(not answer.edge_shown and "unproven" in answer.note for answer in answers)
    store.record_verdict(VERSION, {"promoted": True, "reason": "clear"})
    [proven] = PricePredictor(models).predict_batch(row)
    assert proven.edge_shown and "unproven" not in proven.note
    assert proven.probability == answers[0].probability


def test_the_champion_or_the_version_asked_for_answers(models: Path) -> None:
    store = ModelStore(models)
    save_model(store, "20140101-newer")
    assert PricePredictor(models).model_version == "20140101-newer"
    store.promote(store.load(VERSION), "2013-03-02T00:00:00+00:00")
    assert PricePredictor(models).model_version == VERSION
    assert PricePredictor(models, "20140101-newer").model_version == "20140101-newer"
    assert "absent" in refused(BundleRejectedError, PricePredictor, models, "absent")


def test_a_damaged_or_absent_model_answers_nothing(models: Path, tmp_path: Path) -> None:
    assert "mt5-crs retrain" in refused(BundleRejectedError, PricePredictor, tmp_path / "empty")
    path = models / VERSION / "model.ubj"
    path.write_bytes(path.read_bytes()[:-1])
    assert "model.ubj" in refused(BundleRejectedError, PricePredictor, models)


def test_without_a_folder_the_settings_say_where_models_are(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MT5_CRS_HOME", str(models.parent / "home"))
    (models.parent / "home" / "models").mkdir(parents=True)
    models.rename(models.parent / "home" / "models" / "D1")
    assert PricePredictor().model_version == VERSION


def test_an_answer_is_one_typed_value_that_json_can_hold(predictor: PricePredictor) -> None:
    answer = predictor.predict_from_ohlcv(bars_of("IBM"), NOW)
    assert isinstance(answer, Prediction)
    assert isinstance(answer.prediction, int) and isinstance(answer.probability, float)
    told = json.loads(json.dumps(answer.to_dict()))
    closes = close_time(bars_of("IBM")["time"], "D1").iloc[-1]
    assert told["bar_close"] == closes.isoformat() == "2013-03-02T00:00:00+00:00"
    assert set(told) == {
        *("prediction", "probability", "direction", "confidence", "symbol", "bar_close"),
        *("horizon_bars", "model_version", "edge_shown", "note"),
    }
    assert predictor.predict(training_rows()[NAMES].iloc[0].to_dict()).to_dict()["bar_close"] is None


def test_predicting_needs_neither_dagster_nor_feast_nor_a_database() -> None:
    code = (
        "import sys, mt5_crs_pipeline.inference\n"
        "print(*sorted({'dagster', 'feast', 'matplotlib', 'psycopg2', 'sqlalchemy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert done.stdout.strip() == ""


# --- A model of its own for each symbol ------------------------------------------------------------------------------


@pytest.fixture
def of_each(tmp_path: Path) -> PricePredictor:
    save_alone(ModelStore(tmp_path / "each"))
    return PricePredictor(tmp_path / "each")


def test_each_symbol_is_answered_by_its_own_model(of_each: PricePredictor) -> None:
    rows = training_rows().tail(60).reset_index(drop=True)
    boosters = model_of_each().boosters
    expected = [
        float(boosters[symbol].inplace_predict(rows.loc[[at], NAMES].to_numpy())[0])
        for at, symbol in enumerate(rows["symbol"])
    ]
    answers = of_each.predict_batch(rows)
    assert [answer.probability for answer in answers] == expected
    assert [answer.symbol for answer in answers] == rows["symbol"].tolist()
    one_by_one = zip(rows[NAMES].to_dict("records"), rows["symbol"], strict=True)
    assert [of_each.predict(row, symbol).probability for row, symbol in one_by_one] == expected
    features = rows[NAMES].iloc[0].to_dict()
    assert of_each.predict(features, "AAPL").probability != of_each.predict(features, "IBM").probability


def test_from_bars_the_symbol_of_the_bars_is_asked(of_each: PricePredictor) -> None:
    history = whole_history()
    for symbol in ("AAPL", "IBM"):
        answer = of_each.predict_from_ohlcv(bars_of(symbol), NOW)
        row = history[history["symbol"] == symbol].iloc[-1]
        assert answer.symbol == symbol
        assert answer.probability == of_each.predict(row[NAMES].to_dict(), symbol).probability


def test_a_symbol_is_needed_and_known_where_each_has_its_own_model(of_each: PricePredictor) -> None:
    rows = training_rows().tail(3)
    features = rows[NAMES].iloc[0].to_dict()
    for text in (
        refused(InputError, of_each.predict, features),
        refused(InputError, of_each.predict_batch, rows[NAMES]),
        refused(InputError, of_each.predict_batch, rows.assign(symbol=["IBM", None, "AAPL"])),
    ):
        assert "say which symbol" in text
    assert "AAPL, IBM" in refused(UnknownSymbolError, of_each.predict, features, "MSFT")
    assert of_each.predict_batch(rows.iloc[:0]) == []
