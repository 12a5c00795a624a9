"""Which rows of a file a window holds, whatever the file says of itself."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast.infra.offline_stores.file_source import FileSource
from feast.repo_config import RepoConfig

from mt5_crs_pipeline.adapters.asof_files import dataset_of, read_files

FIRST = datetime(2024, 1, 1, tzinfo=UTC)


def day(number: int | None) -> datetime | None:
    return None if number is None else FIRST + timedelta(days=number)


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("days", [[1, 2, 3], [3, None, 1], [None, None], []], ids=str)
@pytest.mark.parametrize(
    "window", [(0, 9), (1, 3), (2, 3), (1, 2), (4, 9), (None, 2), (2, None), (None, None)], ids=str
)
def test_a_window_holds_its_rows_and_no_other(
    tmp_path: Path, days: list[int | None], window: tuple[int | None, int | None], statistics: bool
) -> None:
    times = pa.array([day(number) for number in days], pa.timestamp("us", "UTC"))
    table = pa.table({"at": times, "row": range(len(days))})
    for name in ("one", "another"):
        (tmp_path / "bars").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "bars" / f"{name}.parquet", row_group_size=1, write_statistics=statistics)
    config = RepoConfig(project="files", registry=str(tmp_path / "registry.db"), provider="local")
    dataset = dataset_of(config, FileSource(path=str(tmp_path / "bars"), timestamp_field="at"))
    start, end = window
    found = read_files(dataset, ["row"], "at", day(start), day(end))["row"].to_pylist()

    def inside(number: int | None) -> bool:
        if window == (None, None):
            return True
        return number is not None and (start is None or number >= start) and (end is None or number <= end)

    assert sorted(found) == sorted(2 * [row for row, number in enumerate(days) if inside(number)])
