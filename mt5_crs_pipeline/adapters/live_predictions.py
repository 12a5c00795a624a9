"""The champion's predictions of the newest bars, kept before their outcome is known, and what became of them."""

from dataclasses import dataclass

import pandas as pd

from mt5_crs_pipeline.adapters.lake import MARKET_DATA, TECHNICAL_FEATURES, Lake
from mt5_crs_pipeline.adapters.model_store import Bundle, ModelStore
from mt5_crs_pipeline.adapters.online_store import newest_in_lake
from mt5_crs_pipeline.adapters.postgres import Connection
from mt5_crs_pipeline.adapters.promotion import answering
from mt5_crs_pipeline.adapters.trial_ledger import lock_promotions, recipes_tried
from mt5_crs_pipeline.core.bars import CLOSED_BAR_SCHEMA, adjusted, latest_revisions
from mt5_crs_pipeline.core.errors import BundleRejectedError
from mt5_crs_pipeline.core.feature_rows import IS_COMPLETE, RECORDED_AT, feature_schema, revised_since
from mt5_crs_pipeline.core.features import get_feature_names
from mt5_crs_pipeline.core.labels import EVENT_TIMESTAMP, labelled_bars
from mt5_crs_pipeline.core.live import PREDICTED_AT, LiveRecord, go_on, rows_in_time
from mt5_crs_pipeline.core.model import predict
from mt5_crs_pipeline.core.promotion import recipe, recipe_hash


@dataclass(frozen=True)
class PredictedLive:
    """What the champion said about the newest bars: `stored` of the predictions are new."""

    champion: str
    predictions: pd.DataFrame
    """symbol, event_timestamp (UTC), probability of UP."""
    stored: int
    left_out: dict[str, str]
    """Symbols that were not predicted, with the reason."""


def predict_newest(connection: Connection, store: ModelStore, lake: Lake) -> PredictedLive | None:
    """Predict the newest bar of every symbol with the champion and keep it; None without a champion.

    What a bundle said about a bar first stays. Raises BundleRejectedError when the champion is not there as it was
    promoted, or needs features that the lake does not hold.
    """
    # What a champion says while another takes its place would be kept as the champion's.
    lock_promotions(connection)
    pointer = store.champion()
    if pointer is None:
        return None
    bundle = store.load(pointer["model_version"])
    rows: pd.DataFrame = newest_in_lake(lake, lake.months(TECHNICAL_FEATURES)).to_pandas()
    absent = [name for name in get_feature_names(bundle.config) if name not in rows]
    if absent:
        raise BundleRejectedError(
            f"champion {bundle.version} needs {', '.join(absent)}, which this package does not store: `mt5-crs retrain`"
            " trains a model on the features that it stores"
        )
    known = rows["symbol"].isin(bundle.metadata["symbols"])
    left_out = dict.fromkeys(rows.loc[~known, "symbol"], "the champion was not trained on it")
    left_out |= dict.fromkeys(rows.loc[known & ~rows[IS_COMPLETE], "symbol"], "too few bars")
    rows = rows[known & rows[IS_COMPLETE]]
    said = rows[["symbol", EVENT_TIMESTAMP]].assign(probability=predict(bundle.model(), rows))
    return PredictedLive(bundle.version, said, store_predictions(connection, bundle, said), left_out)


def store_predictions(connection: Connection, bundle: Bundle, predictions: pd.DataFrame) -> int:
    """Keep predictions (symbol, event_timestamp, probability) and return how many are new; known ones stay as said."""
    with connection.cursor() as cursor:
        cursor.execute(
            "insert into model_prediction"
            " (timeframe, symbol, event_timestamp, model_version, bundle_hash, recipe_hash, probability)"
            " select %s, symbol, event_timestamp, %s, %s, %s, probability"
            " from unnest(%s::text[], %s::timestamptz[], %s::float8[]) as said (symbol, event_timestamp, probability)"
            " on conflict do nothing",
            (
                *(bundle.timeframe, bundle.version, bundle.checksum, recipe_hash(recipe(bundle.metadata))),
                predictions["symbol"].tolist(),
                [close.to_pydatetime() for close in predictions[EVENT_TIMESTAMP]],
                predictions["probability"].tolist(),
            ),
        )
        return cursor.rowcount


def stored_predictions(connection: Connection, bundle: Bundle) -> pd.DataFrame:
    """Return what champions of the bundle's recipe said: symbol, event_timestamp, probability, predicted_at (UTC)."""
    with connection.cursor() as cursor:
        cursor.execute(
            "select symbol, event_timestamp, probability, predicted_at from model_prediction"
            " where timeframe = %s and recipe_hash = %s order by event_timestamp, symbol, predicted_at",
            (bundle.timeframe, recipe_hash(recipe(bundle.metadata))),
        )
        frame = pd.DataFrame(cursor.fetchall(), columns=["symbol", EVENT_TIMESTAMP, "probability", PREDICTED_AT])
    times = dict.fromkeys((EVENT_TIMESTAMP, PREDICTED_AT), "datetime64[us, UTC]")
    return frame.astype({"symbol": object, "probability": float, **times})


def predictions_revised_since(connection: Connection, store: ModelStore, lake: Lake) -> int:
    """Return of how many predictions by champions of the present recipe the features were revised after they were made.

    They stay as they were made.
    """
    champion = answering(store)
    said = pd.DataFrame() if champion is None else stored_predictions(connection, champion)
    if said.empty:
        return 0
    columns = ["symbol", EVENT_TIMESTAMP, RECORDED_AT]
    months = [month for month in lake.months(TECHNICAL_FEATURES) if month >= _first_month(said)]
    versions = lake.read(TECHNICAL_FEATURES, months, feature_schema(), columns).to_pandas()
    return int(revised_since(said, versions, PREDICTED_AT).sum())


def live_record(connection: Connection, store: ModelStore, lake: Lake) -> LiveRecord | None:
    """Return the champion's evidence with its live outcomes; None while none is known, or no champion can answer.

    What champions of other recipes said is not its record. The outcomes are those of the bars as the lake has them now:
    a correction of a close may turn one, and a bar that arrives late between two others may bring one forward, so that
    a prediction made after it no longer counts. The threshold is that of the champion's promotion.
    """
    champion = answering(store)
    if champion is None:
        return None
    said = stored_predictions(connection, champion)
    if said.empty:
        return None
    verdict = store.verdict(champion.version)
    recipes = (
        verdict["evidence"]["against_chance"]["recipes"] if verdict else recipes_tried(connection, champion.timeframe)
    )
    live = rows_in_time(said, _outcomes(lake, champion, said))
    return go_on(champion.version, champion.predictions(), live, recipes, champion.label.horizon_bars)


def _outcomes(lake: Lake, bundle: Bundle, said: pd.DataFrame) -> pd.DataFrame:
    """Return the closed labels of the bars that were predicted, and of later ones."""
    months = [month for month in lake.months(MARKET_DATA) if month >= _first_month(said)]
    bars = lake.read(MARKET_DATA, months, CLOSED_BAR_SCHEMA).to_pandas()
    of_interest = latest_revisions(bars[bars["symbol"].isin(said["symbol"])])
    return labelled_bars(adjusted(of_interest), bundle.timeframe, bundle.label)


def _first_month(said: pd.DataFrame) -> str:
    # The lake goes by the bars' opens, and no bar is longer than a month.
    return f"{said[EVENT_TIMESTAMP].min() - pd.DateOffset(months=1):%Y-%m}"
