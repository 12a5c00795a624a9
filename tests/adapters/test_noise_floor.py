"""The noise floor as a file, a picture and a section of the report."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from mt5_crs_pipeline.adapters import pictures
from mt5_crs_pipeline.adapters.noise_floor_file import NOISE_FLOOR_FILE, read_noise_floor, write_noise_floor
from mt5_crs_pipeline.adapters.pictures_noise import finding, noise_floor
from mt5_crs_pipeline.adapters.report import render_report
from mt5_crs_pipeline.core.noise_floor import NoiseFloor, Place, Run
from tests.adapters.test_report import EARNED, METADATA, NOT_PROMOTED, Page, sample, size

FLOOR = NoiseFloor(
    shape="feed",
    renewed_at="2024-03-26T01:02:03+00:00",
    rows=12_345,
    first="2020-01-01T00:00:00+00:00",
    last="2024-03-26T00:00:00+00:00",
    permuted=tuple(Run(number / 10 - 1, -0.01) for number in range(10)),
    walks=tuple(Run(number / 5 - 2, 0.001 * number) for number in range(10)),
)
HIGH, LOW = Place(FLOOR, Run(2.88, 0.02)), Place(FLOOR, Run(-3.0, -0.05))
NONE = Place(replace(FLOOR, permuted=(), walks=(), refused=("training needs <both> classes",)), Run(1.0, 0.0))


@cache
def page(place: Place | None) -> Page:
    return Page(render_report(sample(), METADATA, NOT_PROMOTED, EARNED, noise=place))


def section(place: Place | None) -> str:
    text = page(place).text
    return text[text.index("Noise floor") : text.index("Live")]


def test_a_floor_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_noise_floor(tmp_path) is None
    write_noise_floor(tmp_path, FLOOR)
    assert read_noise_floor(tmp_path) == FLOOR


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"5", b"\xff", b'{"permuted": [], "walks": []}'])
def test_a_damaged_file_counts_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NOISE_FLOOR_FILE).write_bytes(content)
    assert read_noise_floor(tmp_path) is None


@pytest.mark.filterwarnings("error")
def test_the_picture_follows_the_runs_and_the_model() -> None:
    fewer = Place(replace(FLOOR, walks=FLOOR.walks[:-1]), HIGH.model)
    drawn = [noise_floor(place) for place in (HIGH, LOW, fewer)]
    assert [size(png) for png in drawn] == [(800, 350)] * 3
    assert noise_floor(HIGH) == drawn[0] and len(set(drawn)) == 3
    assert finding(HIGH) == "Log-wealth 2.88 is above 20 of 20 runs on noise: p = 0.048"
    assert finding(LOW) == "Log-wealth -3.00 is above 0 of 20 runs on noise: p = 1"


def test_the_report_says_where_the_model_lies_of_what_the_floor_is_made_and_that_it_decides_nothing() -> None:
    text = section(HIGH)
    assert HIGH.sentence in text
    for expected in (
        "10 runs on permuted labels, 10 on random walks",
        "shaped like 12,345 rows from 2020-01-01 00:00 UTC to 2024-03-26 00:00 UTC",
        "made on 2024-03-26 01:02 UTC",
        "promotion does not ask it",
    ):
        assert expected in text
    images = {str(found["alt"]): found["src"] for tag, found in page(HIGH).tags if tag == "img"}
    assert images[f"Noise floor: {finding(HIGH)}."] == pictures.data_uri(noise_floor(HIGH))


def test_without_a_floor_or_without_runs_the_report_says_why_and_shows_no_picture() -> None:
    plain = len([tag for tag, _ in page(HIGH).tags if tag == "img"]) - 1
    assert "MT5_CRS_NOISE_RUNS" in section(None)
    assert "No run on data where nothing can be known was possible: training needs <both> classes." in section(NONE)
    assert "1 more could not be trained" in section(NONE)
    for place in (None, NONE):
        assert len([tag for tag, _ in page(place).tags if tag == "img"]) == plain
