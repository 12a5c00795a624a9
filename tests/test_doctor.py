"""The doctor finds what is wrong, says it beside what is right, and ends with 1."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mt5_crs_pipeline.adapters.model_store import ModelStore
from mt5_crs_pipeline.core.feature_rows import PIPELINE_FEATURES
from mt5_crs_pipeline.doctor import examine
from mt5_crs_pipeline.settings import Settings
from tests.commands import run, succeed

FINDINGS = [
    *("package", "state folder", "database", "feature registry", "online features"),
    *("live outcomes", "lake", "market time", "stored features", "models"),
]


@pytest.fixture
def home(demo_home: Path, demo_folder: Path) -> Iterator[Path]:
    """A copy of the demo's state folder that may be damaged."""
    copy = Path(shutil.copytree(demo_home, demo_folder / "doctor"))
    yield copy
    shutil.rmtree(copy)


def flip_a_bit(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def findings(home: Path, **settings: str) -> dict[str, tuple[bool, str]]:
    found = {finding["what"]: (finding["ok"], finding["found"]) for finding in examine(Settings(home=home, **settings))}
    assert all("\n" not in text for _, text in found.values())
    return found


def test_everything_is_well_after_the_demo(demo_home: Path) -> None:
    said = succeed(demo_home, "doctor")
    lines = said.stdout.splitlines()
    assert [line[:4] for line in lines] == ["ok  "] * len(FINDINGS)
    assert [line[5:].split(": ")[0] for line in lines] == FINDINGS
    assert "D1 bars of 5 symbols, 0 rows in quarantine" in said.stdout
    # Whether the demo's model is promoted is for its evidence to say, which another XGBoost may turn.
    champion = ModelStore(demo_home / "models" / "D1").champion()
    assert f"1 verified, champion: {champion['model_version'] if champion else 'none'}" in said.stdout
    # Of every value of five symbols' newest rows, and of 200 older ones.
    values = 2 * len(PIPELINE_FEATURES.features)
    assert f"{values * 205:,} values of 205 rows equal a fresh computation to the last bit" in said.stdout
    assert f"{values * 5:,} values of 5 rows equal a fresh computation to the last bit" in said.stdout
    assert "market time: XNYS (guessed): 5 symbols, 5 ended, 0 gaps (0 bars), 0 outages\n" in said.stdout
    assert said.stderr == ""


def test_a_flipped_bit_in_the_lake_fails_what_reads_it_and_the_command(home: Path) -> None:
    damaged = home / "lake" / "D1" / "technical_features" / "2010-05.parquet"
    prices = pq.read_metadata(damaged).row_group(0).column(5)
    flip_a_bit(damaged, prices.data_page_offset + prices.total_compressed_size - 5)
    done = run(home, "doctor", "--json")
    assert (done.returncode, done.stderr) == (1, "")
    found = json.loads(done.stdout)
    assert [finding["what"] for finding in found] == FINDINGS
    wrong = {finding["what"]: finding["found"] for finding in found if not finding["ok"]}
    assert wrong.keys() == {"lake", "stored features"}
    assert all(str(damaged) in text for text in wrong.values())


def test_a_changed_value_in_the_lake_is_told_from_a_fresh_computation(home: Path) -> None:
    newest = home / "lake" / "D1" / "technical_features" / "2013-02.parquet"
    table = pq.read_table(newest)
    at = table.schema.get_field_index("rsi_14")
    nudged = pa.array(np.nextafter(table.column(at).to_numpy(), np.inf))
    pq.write_table(table.set_column(at, "rsi_14", nudged), newest)
    found = findings(home)
    # The online store serves what the bars give; the file does not hold it any more.
    assert {what for what, (ok, _) in found.items() if not ok} == {"stored features"}
    assert "differ from a fresh computation, the first is rsi_14 of FB at 2013-02" in found["stored features"][1]


def test_a_damaged_bundle_fails_the_line_of_the_models(home: Path) -> None:
    (model,) = (home / "models" / "D1").glob("*/model.ubj")
    flip_a_bit(model, 1000)
    found = findings(home)
    assert {what for what, (ok, _) in found.items() if not ok} == {"models"}
    assert str(model) in found["models"][1]


def test_an_unreachable_database_fails_its_line_and_the_files_are_examined_all_the_same(demo_home: Path) -> None:
    found = findings(demo_home, database_url="postgresql://me:secret@127.0.0.1:1/bars")
    assert {what for what, (ok, _) in found.items() if not ok} == {"database"}
    assert "me@127.0.0.1:1/bars" in found["database"][1] and "secret" not in found["database"][1]
    assert found["lake"][0] and found["models"][0]


@pytest.mark.parametrize("url", ["redis://:secret@127.0.0.1:1", "secret@127.0.0.1"], ids=["unreachable", "malformed"])
def test_a_redis_that_cannot_be_used_fails_the_lines_that_need_it(demo_home: Path, url: str) -> None:
    found = findings(demo_home, redis_url=url)
    assert (
        {"online features"}
        <= {what for what, (ok, _) in found.items() if not ok}
        <= {"online features", "feature registry"}
    )
    said = found["online features"][1]
    assert "MT5_CRS_REDIS_URL" in said and "secret" not in said


def test_a_new_state_folder_is_well_and_has_nothing(settings: Settings) -> None:
    found = findings(settings.home, database_url=settings.database_url.get_secret_value())
    assert all(ok for ok, _ in found.values()), found
    assert found["feature registry"][1] == "nothing applied yet"
    assert found["lake"][1].startswith("0 files")
    assert found["models"][1] == "0 verified, champion: none"
