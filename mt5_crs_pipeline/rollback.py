"""Back to the champion before this one, after it has shown that it still answers."""

from datetime import UTC, datetime
from typing import Any

from mt5_crs_pipeline.adapters.alerts import alert
from mt5_crs_pipeline.adapters.bar_store import read_latest
from mt5_crs_pipeline.adapters.database import Database
from mt5_crs_pipeline.adapters.model_store import Bundle, ModelStore
from mt5_crs_pipeline.adapters.postgres import Connection
from mt5_crs_pipeline.adapters.promotion import roll_back
from mt5_crs_pipeline.core.errors import NotEnoughBarsError
from mt5_crs_pipeline.inference import Prediction, PricePredictor
from mt5_crs_pipeline.settings import Settings


def return_to_earlier_champion(settings: Settings) -> dict[str, Any]:
    """Return the champion that answers again, the model it replaced, and the prediction that shows it works.

    Raises NoEarlierChampionError, BundleRejectedError or a PredictionRefusedError; then the champion stays.
    """
    store = ModelStore(settings.models)
    replaced = store.sound_champion()
    predictions: list[Prediction] = []
    with Database(settings).connection() as connection:

        def check(bundle: Bundle) -> None:
            predictions.append(_prediction(connection, settings, bundle))

        now = datetime.now(UTC)
        bundle = roll_back(connection, store, settings.timeframe, now, check)
    left = replaced["model_version"] if replaced else "no model"
    alert(
        Database(settings),
        settings.alert_urls.get_secret_value(),
        f"{settings.timeframe} rollback {bundle.version} {now.isoformat()}",
        f"{bundle.version} is the champion again",
        f"mt5-crs rollback returned from {left} to {bundle.version}",
    )
    return {
        "model_version": bundle.version,
        "replaced": replaced["model_version"] if replaced else None,
        "at": now.isoformat(),
        "prediction": predictions[0].to_dict(),
    }


def _prediction(connection: Connection, settings: Settings, bundle: Bundle) -> Prediction:
    """Predict from the stored bars of the first of the bundle's symbols that has enough of them."""
    predictor = PricePredictor(settings.models, bundle.version)
    for symbol in bundle.metadata["symbols"]:
        # One more than needed: the newest stored bar may still be forming.
        bars = read_latest(connection, bundle.timeframe, symbols=[symbol], last=predictor.lookback + 1).to_pandas()
        if len(bars) > predictor.lookback:
            return predictor.predict_from_ohlcv(bars)
    raise NotEnoughBarsError(
        f"{bundle.version} cannot be tried: none of its symbols ({', '.join(bundle.metadata['symbols'])}) has"
        f" {predictor.lookback + 1} stored {bundle.timeframe} bars; ingest them first"
    )
