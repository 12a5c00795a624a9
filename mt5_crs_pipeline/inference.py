"""PricePredictor: the trained direction model, asked one question at a time; never imports dagster."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mt5_crs_pipeline.adapters.model_store import ModelStore
from mt5_crs_pipeline.core.bars import (
    BAR_COLUMNS,
    OPTIONAL_COLUMNS,
    VALUE_COLUMNS,
    adjusted,
    close_time,
    reject_reasons,
)
from mt5_crs_pipeline.core.errors import InputError, NotEnoughBarsError, UnknownSymbolError
from mt5_crs_pipeline.core.features import feature_frame, get_feature_names
from mt5_crs_pipeline.core.model import predict
from mt5_crs_pipeline.settings import Settings, load_settings


@dataclass(frozen=True)
class Prediction:
    """One answer: will the close `horizon_bars` later be higher than this one?

    `probability` is that of UP, `confidence` that of the predicted direction; `edge_shown` says whether the model was
    promoted on out-of-sample evidence, and `note` says it in words.
    """

    prediction: int
    probability: float
    direction: str
    confidence: float
    symbol: str | None
    bar_close: datetime | None
    horizon_bars: int
    model_version: str
    edge_shown: bool
    note: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, the time as ISO 8601."""
        return {**asdict(self), "bar_close": self.bar_close.isoformat() if self.bar_close else None}


class PricePredictor:
    """Predictions of one verified model bundle.

    `models` is the folder of bundles (default: that of the settings), `version` one of them (default: the champion, or
    the newest where none was promoted). Raises BundleRejectedError when the bundle is absent, damaged or foreign.
    """

    def __init__(self, models: Path | None = None, version: str | None = None) -> None:
        store = ModelStore(models or load_settings().models)
        bundle = store.load(version)
        verdict = store.verdict(bundle.version)
        self.metadata = bundle.metadata
        self.config = bundle.config
        self.model_version = bundle.version
        self.edge_shown = bool(verdict and verdict["promoted"])
        self._model = bundle.model()

    @property
    def lookback(self) -> int:
        """Bars needed for one prediction."""
        return self.config.lookback

    def predict_from_ohlcv(self, bars: pd.DataFrame, now: datetime | None = None) -> Prediction:
        """Predict from the newest closed bar of one symbol.

        `bars` has columns symbol, time (open, aware UTC), open, high, low, close, volume, optionally adjusted_close, at
        least `lookback` rows in any order; a bar still forming at `now` (default: the clock) is left out. Raises
        UnknownSymbolError, NotEnoughBarsError, and InputError naming the first bar that is no valid bar.
        """
        timeframe = self.metadata["timeframe"]
        frame = self._as_bars(bars, timeframe)
        symbol = self._known_symbol(frame)
        reasons = reject_reasons(frame, timeframe, now or datetime.now(UTC))
        closed = frame[reasons != "not_closed_yet"].sort_values("time").tail(self.lookback)
        if len(closed) < self.lookback:
            raise NotEnoughBarsError(
                f"{symbol}: {len(closed)} closed {timeframe} bars given, the features reach back {self.lookback}"
            )
        broken = reasons.loc[closed.index].dropna()
        if len(broken):
            raise InputError(
                f"{symbol}: the bar at {closed.loc[broken.index[0], 'time']} is not valid: {broken.iloc[0]}"
            )
        features = feature_frame(adjusted(closed), self.config).iloc[[-1]]
        bar_close = close_time(closed["time"], timeframe).iloc[-1].to_pydatetime()
        return self._answers(features, [symbol], [bar_close])[0]

    def predict(self, features: Mapping[str, float], symbol: str | None = None) -> Prediction:
        """Predict from feature values by name, such as one row of the online store; all of them, all finite.

        `symbol` is needed where each symbol has a model of its own, else only repeated in the answer.
        """
        names = get_feature_names(self.config)
        missing = [name for name in names if name not in features]
        if missing:
            raise InputError(f"features missing: {', '.join(missing)}")
        return self._answers(pd.DataFrame([{name: features[name] for name in names}]), [symbol], [None])[0]

    def predict_batch(self, frame: pd.DataFrame) -> list[Prediction]:
        """Predict every row of a frame with the feature columns, and symbol and event_timestamp where it has them."""
        missing = [name for name in get_feature_names(self.config) if name not in frame]
        if missing:
            raise InputError(f"feature columns missing: {', '.join(missing)}")
        nothing: list[Any] = [None] * len(frame)
        symbols = frame["symbol"].tolist() if "symbol" in frame else nothing
        closes = [t.to_pydatetime() for t in frame["event_timestamp"]] if "event_timestamp" in frame else nothing
        return self._answers(frame, symbols, closes)

    def _answers(self, rows: pd.DataFrame, symbols: list[Any], closes: list[Any]) -> list[Prediction]:
        for symbol in set(symbols) - {None}:
            self._check_symbol(symbol)
        if not self._model.pooled:
            if None in symbols:
                raise InputError(
                    f"model {self.model_version} has a model for each symbol: say which symbol the features are of"
                )
            rows = rows.assign(symbol=symbols)
        _check_numbers(rows, get_feature_names(self.config))
        note = (
            "the model was promoted on out-of-sample evidence"
            if self.edge_shown
            else "the model was not promoted on out-of-sample evidence: treat the prediction as unproven"
        )
        return [
            Prediction(
                prediction=int(probability >= 0.5),
                probability=float(probability),
                direction="UP" if probability >= 0.5 else "DOWN",
                confidence=float(max(probability, 1 - probability)),
                symbol=symbol,
                bar_close=close,
                horizon_bars=self.metadata["label_config"]["horizon_bars"],
                model_version=self.model_version,
                edge_shown=self.edge_shown,
                note=note,
            )
            for probability, symbol, close in zip(predict(self._model, rows), symbols, closes, strict=True)
        ]

    def _as_bars(self, bars: pd.DataFrame, timeframe: str) -> pd.DataFrame:
        missing = [name for name in BAR_COLUMNS if name not in bars and name not in (*OPTIONAL_COLUMNS, "timeframe")]
        if missing:
            raise InputError(
                f"bars lack the columns {', '.join(missing)}; they have {', '.join(map(str, bars.columns))}"
            )
        if not isinstance(bars["time"].dtype, pd.DatetimeTZDtype):
            raise InputError(
                f"column 'time' is {bars['time'].dtype}: make it aware UTC, for example .dt.tz_localize('UTC')"
            )
        _check_numbers(bars, [name for name in VALUE_COLUMNS if name in bars])
        absent = {name: np.nan for name in OPTIONAL_COLUMNS if name not in bars}
        timeframes = {} if "timeframe" in bars else {"timeframe": timeframe}
        utc = bars["time"].dt.tz_convert("UTC")
        return bars.assign(**absent, **timeframes, time=utc).reset_index(drop=True)

    def _known_symbol(self, bars: pd.DataFrame) -> str:
        symbols = bars["symbol"].unique().tolist()
        if len(symbols) != 1:
            raise InputError(f"bars of one symbol are needed, these are of {', '.join(map(str, symbols)) or 'none'}")
        return self._check_symbol(symbols[0])

    def _check_symbol(self, symbol: object) -> str:
        if symbol not in self.metadata["symbols"]:
            known = ", ".join(self.metadata["symbols"])
            raise UnknownSymbolError(f"model {self.model_version} was not trained on {symbol!r}, only on {known}")
        return str(symbol)


def _check_numbers(frame: pd.DataFrame, names: list[str]) -> None:
    for name in names:
        if not pd.api.types.is_numeric_dtype(frame[name]) or pd.api.types.is_bool_dtype(frame[name]):
            raise InputError(
                f"{name} is {frame[name].dtype}, not a number; first value {frame[name].iloc[:1].tolist()}"
            )


def predict_stored(settings: Settings, symbol: str, version: str | None = None) -> Prediction:
    """Predict from the newest stored bars of `symbol`; `version` is as in PricePredictor.

    Raises UnknownSymbolError when no bars of it are stored, and what PricePredictor raises.
    """
    # Who predicts from bars of their own needs no database.
    from mt5_crs_pipeline.adapters.bar_store import read_latest, stored_symbols
    from mt5_crs_pipeline.adapters.database import Database

    predictor = PricePredictor(settings.models, version)
    with Database(settings).connection() as connection:
        # One more than needed: the newest stored bar may still be forming.
        bars = read_latest(connection, settings.timeframe, symbols=[symbol], last=predictor.lookback + 1).to_pandas()
        if bars.empty:
            known = ", ".join(stored_symbols(connection, settings.timeframe)) or "none"
            raise UnknownSymbolError(f"no {settings.timeframe} bars are stored for {symbol!r}; stored are {known}")
    return predictor.predict_from_ohlcv(bars)
