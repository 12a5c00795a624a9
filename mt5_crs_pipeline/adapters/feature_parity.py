"""The parity proof on what is stored: in the lake's Parquet files and in Feast's online store."""

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any, Final

import pandas as pd
import pyarrow as pa

from mt5_crs_pipeline.adapters.feast_store import FeastStore
from mt5_crs_pipeline.adapters.lake import MARKET_DATA, TECHNICAL_FEATURES, Lake
from mt5_crs_pipeline.adapters.versions import library_versions
from mt5_crs_pipeline.core.bars import CLOSED_BAR_SCHEMA, adjusted, month_of
from mt5_crs_pipeline.core.errors import InputError
from mt5_crs_pipeline.core.feature_rows import PIPELINE_FEATURES, RECORDED_AT, feature_schema
from mt5_crs_pipeline.core.labels import EVENT_TIMESTAMP
from mt5_crs_pipeline.core.parity import NOTHING_COMPARED, Parity, certificate, compare, sample

# Besides the newest row of every symbol; as many again of those that were revised.
OLDER_ROWS: Final = 200
# Of the symbols whose online row was left alone.
OTHERS_SERVED: Final = 50


class StoredMonths:
    """What the lake holds of `months`, read once, when first asked for; of the bars those of `symbols`, or all."""

    def __init__(self, lake: Lake, months: Sequence[str], symbols: Collection[str] | None = None) -> None:
        self._lake, self.months, self._symbols = lake, months, symbols

    @cached_property
    def bars(self) -> pd.DataFrame:
        """All revisions of the bars, with the history that features need."""
        history = PIPELINE_FEATURES.lookback - 1
        return self._lake.read_with_history(MARKET_DATA, self.months, history, CLOSED_BAR_SCHEMA, self._symbols)

    @cached_property
    def features(self) -> pa.Table:
        """All versions of the feature rows; as a frame they would be there twice."""
        return self._lake.read(TECHNICAL_FEATURES, self.months, feature_schema())

    def continued(self) -> list[str]:
        """Return the symbols that have feature rows in the lake's last month, if that is a later one."""
        return self._lake.continued(TECHNICAL_FEATURES, self.months)


def parity_of_lake(stored: StoredMonths) -> Parity:
    """Compare the newest row of every symbol that is not continued, other rows and revised ones with fresh ones."""
    # The number of rows seeds the choice: equal data give an equal certificate, new data other rows.
    keys = stored.features.select(["symbol", "time", RECORDED_AT]).to_pandas()
    chosen = stored.features.take(sample(keys, OLDER_ROWS, len(keys), stored.continued())).to_pandas()
    return compare(chosen, adjusted(stored.bars), PIPELINE_FEATURES)


def parity_of_online_store(
    feast: FeastStore, lake: Lake, months: Sequence[str], left_alone: Collection[str] = ()
) -> Parity:
    """Compare what the online store serves for every symbol in `months` with fresh computations of the bar it is of.

    Of those that were `left_alone` a sample is: the same or a newer row was compared when it was written. Those that go
    on in the lake's last month are not in it, as no row of `months` is to be served of them.
    A row that is older than the symbol's newest one in `months`, or of no bar of the lake, counts as different.
    """
    if not months:
        return NOTHING_COMPARED
    columns = ["symbol", "time", EVENT_TIMESTAMP, RECORDED_AT]
    in_months = lake.read(TECHNICAL_FEATURES, months, feature_schema(), ["symbol", EVENT_TIMESTAMP]).to_pandas()
    newest = in_months.groupby("symbol")[EVENT_TIMESTAMP].max()
    others = pd.Series(sorted({*left_alone}.difference(lake.continued(TECHNICAL_FEATURES, months))), dtype=object)
    some = others.sample(min(OTHERS_SERVED, len(others)), random_state=len(in_months))
    newest = newest.drop({*left_alone}.difference(some), errors="ignore")
    if newest.empty:
        return NOTHING_COMPARED
    served = feast.online_rows(newest.index.tolist())
    # The lake goes by the bars' opens, and no bar is longer than a month.
    closes = served[EVENT_TIMESTAMP].dropna().drop_duplicates()
    opened = sorted({*month_of(closes), *month_of(closes - pd.DateOffset(months=1))})
    rows = lake.read(TECHNICAL_FEATURES, opened, feature_schema(), columns).to_pandas()
    latest = rows.sort_values(RECORDED_AT, kind="stable").drop_duplicates(["symbol", "time"], keep="last")
    served = served.merge(latest, on=["symbol", EVENT_TIMESTAMP], how="left")
    served.loc[~(served[EVENT_TIMESTAMP] >= served["symbol"].map(newest)), "time"] = pd.NaT
    oldest = min(month_of(served["time"].dropna()), default=min(months))
    months = [month for month in lake.months(MARKET_DATA) if month >= oldest]
    bars = StoredMonths(lake, months, newest.index).bars
    return compare(served, adjusted(bars), PIPELINE_FEATURES)


def parity_of_training_rows(lake: Lake, rows: pd.DataFrame, in_force: pd.DataFrame) -> Parity:
    """Compare the newest training row of every symbol and a sample of older ones with fresh computations of their bars.

    `in_force` has symbol, event_timestamp, time and recorded_at of the version that was known at each row's close. A
    value that needs a later bar, or a row that is joined with another bar's features, is different.
    """
    dated = rows.merge(in_force, on=["symbol", EVENT_TIMESTAMP], how="left")
    bars = StoredMonths(lake, lake.months(MARKET_DATA)).bars
    chosen = dated.take(sample(dated, OLDER_ROWS, seed=len(dated)))
    return compare(chosen, adjusted(bars), PIPELINE_FEATURES)


def certify(parity: Parity) -> dict[str, Any]:
    """Return the certificate of a comparison made with the libraries that are installed."""
    return certificate(parity, PIPELINE_FEATURES, library_versions())


def proof_for_training(lake: Lake) -> dict[str, Any]:
    """Return the certificate of all that is stored; raise InputError unless it holds."""
    months = lake.months(TECHNICAL_FEATURES)
    parity = parity_of_lake(StoredMonths(lake, months)) if months else NOTHING_COMPARED
    if not parity.rows:
        raise InputError(f"no features are stored below {lake.folder}: materialize technical_features first")
    if not parity.holds:
        raise InputError(
            f"{parity.different} of {parity.values} stored feature values differ from a fresh computation, the first is"
            f" {parity.first_difference}: materialize technical_features again"
        )
    return certify(parity)
