"""Live: what the champion says about bars whose outcome is still to come."""

import dagster as dg

from mt5_crs_pipeline.adapters import pictures
from mt5_crs_pipeline.adapters.live_predictions import live_record, predict_newest, predictions_revised_since
from mt5_crs_pipeline.core.labels import EVENT_TIMESTAMP
from mt5_crs_pipeline.core.live import NO_OUTCOME_YET
from mt5_crs_pipeline.defs.assets.model import champion_model
from mt5_crs_pipeline.defs.metadata import picture, row_metadata
from mt5_crs_pipeline.defs.resources import Stores
from mt5_crs_pipeline.defs.steps import step


@dg.asset(group_name="model", kinds={"postgres"}, owners=["team:research"], deps=[champion_model])
@step
def live_predictions(stores: dg.ResourceParam[Stores]) -> dg.MaterializeResult:
    """The champion's word on every symbol's newest bar, kept before its outcome, and what became of earlier ones."""
    with stores.database.connection() as connection:
        said = predict_newest(connection, stores.models, stores.lake)
        record = live_record(connection, stores.models, stores.lake)
        revised = predictions_revised_since(connection, stores.models, stores.lake)
    if said is None:
        return dg.MaterializeResult(metadata={"champion": "none yet: nothing is predicted live"})
    told = row_metadata(
        len(said.predictions),
        said.predictions[EVENT_TIMESTAMP],
        champion=said.champion,
        stored=said.stored,
        features_revised_since=revised,
        left_out=said.left_out,
        record=record.sentence if record else NO_OUTCOME_YET,
    )
    if record:
        found = record.to_dict()
        told |= {name: found[name] for name in ("log_wealth", "threshold", "live_rows", "live_instants")}
        told |= {f"live accuracy {name}": value for name, value in found["live_accuracy"].items()}
        told["live base rate"] = record.base_rate
        told["evidence"] = picture(pictures.evidence(found), "log-wealth, the threshold, and where live begins")
    return dg.MaterializeResult(metadata=told)
