"""Model bundles: immutable, checked to the last byte before XGBoost sees one, and pointed at by a champion."""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xgboost

from mt5_crs_pipeline.adapters.model_store import (
    CHAMPION_FILE,
    CHECKSUMS_FILE,
    METADATA_FILE,
    PREDICTIONS_FILE,
    REQUIRED_KEYS,
    ModelStore,
    open_bundle,
)
from mt5_crs_pipeline.core.errors import BundleRejectedError
from mt5_crs_pipeline.core.feature_rows import PIPELINE_FEATURES
from mt5_crs_pipeline.core.features import FeatureConfig
from mt5_crs_pipeline.core.model import predict
from mt5_crs_pipeline.core.model_card import MODEL_FILE
from tests.adapters.small_model import (
    VERSION,
    card,
    card_of_each,
    model,
    model_of_each,
    predictions,
    save_alone,
    save_model,
    training_rows,
)

FILES = (MODEL_FILE, METADATA_FILE, PREDICTIONS_FILE, CHECKSUMS_FILE)


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


@pytest.fixture
def folder(store: ModelStore) -> Path:
    return save_model(store).folder


@pytest.fixture(autouse=True)
def xgboost_sees_nothing_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """XGBoost may crash on a damaged file, so it must never be given one."""
    sound = hashlib.sha256(model().boosters[None].save_raw("ubj")).hexdigest()
    real = xgboost.Booster.__init__

    def opened(self: Any, *arguments: Any, model_file: Any = None, **options: Any) -> None:
        if isinstance(model_file, str | os.PathLike):
            assert hashlib.sha256(Path(model_file).read_bytes()).hexdigest() == sound, "damaged bytes reached XGBoost"
        real(self, *arguments, model_file=model_file, **options)

    monkeypatch.setattr(xgboost.Booster, "__init__", opened)


def refused(work: Callable[[], Any]) -> str:
    with pytest.raises(BundleRejectedError) as error:
        work()
    text = str(error.value)
    assert text and "\n" not in text
    return text


def edit_metadata(folder: Path, **changes: Any) -> None:
    """Change the metadata as a forger would: with the right checksum."""
    path = folder / METADATA_FILE
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    resign(folder, before, METADATA_FILE)


def resign(folder: Path, before: str, name: str) -> None:
    sums = folder / CHECKSUMS_FILE
    assert before in sums.read_text()
    sums.write_text(sums.read_text().replace(before, hashlib.sha256((folder / name).read_bytes()).hexdigest()))


# --- There and back --------------------------------------------------------------------------------------------------


def test_a_bundle_comes_back_as_it_was_saved(store: ModelStore) -> None:
    saved = save_model(store)
    for bundle in (saved, store.load(VERSION), store.load(), open_bundle(saved.folder)):
        assert bundle.version == VERSION and bundle.metadata == card() and bundle.config == PIPELINE_FEATURES
        pd.testing.assert_frame_equal(bundle.predictions(), predictions())
        rows = training_rows().head(50)
        assert np.array_equal(predict(bundle.model(), rows), predict(model(), rows))
    assert sorted(path.name for path in saved.folder.iterdir()) == sorted(FILES)
    assert not [path for path in saved.folder.iterdir() if path.suffix in (".pkl", ".pickle", ".joblib")]


def test_the_checksums_are_what_the_sha256sum_program_writes(folder: Path) -> None:
    lines = (folder / CHECKSUMS_FILE).read_text().splitlines()
    expected = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}" for name in FILES[:-1]]
    assert sorted(lines) == sorted(expected)


def test_a_stored_version_is_never_changed(store: ModelStore, folder: Path) -> None:
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    again = store.save(card(metrics={"accuracy": 0.99}), model(), predictions().assign(probability=0.75))
    assert again.metadata["metrics"] == {"accuracy": 0.5}
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()} == before
    assert store.has(VERSION) and not store.has("other")


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    one, two = (save_model(ModelStore(tmp_path / name)).folder for name in ("one", "two"))
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in FILES)


@pytest.mark.parametrize("key", REQUIRED_KEYS)
def test_metadata_without_a_required_key_is_neither_saved_nor_opened(store: ModelStore, key: str) -> None:
    incomplete = {name: value for name, value in card().items() if name != key}
    assert key in refused(lambda: store.save(incomplete, model(), predictions()))
    assert store.versions() == []


def test_metadata_that_is_no_json_number_is_not_saved(store: ModelStore) -> None:
    with pytest.raises(ValueError, match="JSON"):
        save_model(store, metrics={"accuracy": float("nan")})
    assert store.versions() == []


# --- Which model -----------------------------------------------------------------------------------------------------


def test_without_any_model_the_remedy_is_named(store: ModelStore) -> None:
    assert "mt5-crs retrain" in refused(store.load)
    assert "no model bundle at" in refused(lambda: store.load("20200101-absent"))


def test_the_newest_is_the_one_trained_on_the_latest_bars_then_the_latest_written(store: ModelStore) -> None:
    for version in ("20130301-ffff", "20121231-ffff", "20130301-0000"):
        save_model(store, version)
    os.utime(store.folder / "20130301-ffff" / METADATA_FILE, ns=(1, 1))
    assert store.versions() == ["20121231-ffff", "20130301-ffff", "20130301-0000"]
    assert store.load().version == "20130301-0000"


def test_leftovers_of_killed_writers_and_other_folders_are_no_models(store: ModelStore, folder: Path) -> None:
    shutil.copytree(folder, store.folder / ".partial-abc")
    (store.folder / "notes").mkdir()
    store.record_verdict(VERSION, {"promoted": False})
    assert store.versions() == [VERSION]
    shutil.rmtree(folder)
    assert store.versions() == []


def test_the_champion_is_loaded_though_newer_models_exist(store: ModelStore) -> None:
    old = save_model(store, "20120101-aaaa")
    save_model(store, "20130301-bbbb")
    assert store.champion() is None and store.load().version == "20130301-bbbb"
    assert store.promote(old, "2012-01-02T00:00:00+00:00") is True
    assert store.load().version == "20120101-aaaa"
    pointer = (store.folder / CHAMPION_FILE).read_bytes()
    assert store.promote(old, "2020-01-01T00:00:00+00:00") is False
    assert (store.folder / CHAMPION_FILE).read_bytes() == pointer
    assert json.loads(pointer)["promoted_at"] == "2012-01-02T00:00:00+00:00"


@pytest.mark.parametrize("damage", ["missing", "changed", "no json", "no object", "foreign"])
def test_a_champion_that_is_not_as_it_was_promoted_is_refused(store: ModelStore, folder: Path, damage: str) -> None:
    save_model(store, "20100101-other")
    store.promote(store.load(VERSION), "2013-03-02T00:00:00+00:00")
    pointer = store.folder / CHAMPION_FILE
    if damage == "missing":
        shutil.rmtree(folder)
    elif damage == "changed":
        edit_metadata(folder, train_date="2013-03-03T00:00:00+00:00")
    else:
        pointer.write_text({"no json": '{"model', "no object": "[1]", "foreign": "{}"}[damage])
    assert str(pointer) in refused(store.load)
    assert store.load("20100101-other").version == "20100101-other"


def test_every_verdict_is_kept_with_its_reasons(store: ModelStore, folder: Path) -> None:
    assert store.verdict(VERSION) is None
    verdict = {
        "model_version": VERSION,
        "promoted": False,
        "reason": "49.1 % is not above 52 %",
        "evidence": {"rows": 8},
    }
    path = store.record_verdict(VERSION, verdict)
    assert store.verdict(VERSION) == verdict and json.loads(path.read_text()) == verdict
    store.record_verdict("20140101-next", {"promoted": True})
    assert store.verdict(VERSION) == verdict
    path.write_text("half")
    assert str(path) in refused(lambda: store.verdict(VERSION))


# --- Damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere_is_refused_before_xgboost_sees_it(store: ModelStore, folder: Path, name: str) -> None:
    path = folder / name
    sound = path.read_bytes()
    chosen = random.Random(name)
    positions = {0, 1, len(sound) // 2, len(sound) - 1, *chosen.sample(range(len(sound)), 25)}
    for position in positions:
        damaged = bytearray(sound)
        damaged[position] ^= 1 << chosen.randrange(8)
        path.write_bytes(damaged)
        if name == CHECKSUMS_FILE and damaged.splitlines() == sound.splitlines():
            continue  # another way to end a line
        assert str(folder) in refused(lambda: store.load(VERSION).model()), position
    path.write_bytes(sound)
    store.load(VERSION).model()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "a folder"])
def test_a_missing_or_short_file_is_named(store: ModelStore, folder: Path, name: str, damage: str) -> None:
    path = folder / name
    sound = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes(b"" if damage == "empty" else sound[: len(sound) // 3])
    text = refused(lambda: store.load(VERSION))
    assert str(folder) in text and (name in text or name == CHECKSUMS_FILE)


def test_a_foreign_folder_and_a_file_are_no_bundles(store: ModelStore, tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "model.pkl").write_bytes(b"\x80\x04")
    (tmp_path / "file").write_bytes(b"")
    assert "is missing" in refused(lambda: open_bundle(tmp_path / "foreign"))
    assert "no model bundle at" in refused(lambda: open_bundle(tmp_path / "file"))
    assert "no model bundle at" in refused(lambda: open_bundle(tmp_path / "absent"))


def test_a_renamed_bundle_is_refused(folder: Path) -> None:
    other = folder.rename(folder.with_name("20300101-better"))
    assert VERSION in refused(lambda: open_bundle(other))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"feature_set_hash": "0" * 64}, "was trained on feature set 000000000000, this package computes"),
        ({"feature_set_hash": None}, "was trained on feature set"),
        ({"features": ["gap"]}, "was trained on feature set"),
        ({"feature_config": {"features": list(FeatureConfig().features)}}, "was trained on feature set"),
        ({"feature_config": {"features": ["of_the_future"]}}, "does not know"),
        ({"feature_config": {}}, "does not know"),
        ({"feature_config": None}, "does not know"),
        ({"feature_config": {"features": 5}}, "does not know"),
        ({"model_type": "sklearn"}, "is not of this package"),
        ({"model_version": "other"}, "is not of this package"),
    ],
)
def test_metadata_edited_with_new_checksums_is_refused_when_it_does_not_fit(
    folder: Path, changes: dict[str, Any], words: str
) -> None:
    edit_metadata(folder, **changes)
    assert words in refused(lambda: open_bundle(folder))


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"text"', "\udcff"])
def test_metadata_that_is_no_object_is_refused(folder: Path, content: str) -> None:
    path = folder / METADATA_FILE
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_text(content, errors="surrogateescape")
    resign(folder, before, METADATA_FILE)
    assert str(path) in refused(lambda: open_bundle(folder))


def test_a_model_of_other_features_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    path = folder / MODEL_FILE
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    rows = np.random.default_rng(1).random((50, 2))
    data = xgboost.DMatrix(rows, label=rows[:, 0] > 0.5, feature_names=["gap", "return_1"])
    xgboost.train({"objective": "binary:logistic"}, data, 2).save_model(path)
    resign(folder, before, MODEL_FILE)
    assert "trained on other features" in refused(lambda: open_bundle(folder).model())


# --- A model of its own for each symbol ------------------------------------------------------------------------------


@pytest.fixture
def alone(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.undo()
    return save_alone(store).folder


def test_a_bundle_of_a_model_for_each_symbol_comes_back_as_it_was_saved(store: ModelStore, alone: Path) -> None:
    bundle = store.load(VERSION)
    files = {"AAPL": "model-0000.ubj", "IBM": "model-0001.ubj"}
    assert bundle.metadata["model_file"] == files and bundle.metadata["params"]["pooled"] is False
    lines = (alone / CHECKSUMS_FILE).read_text().splitlines()
    names = [*files.values(), METADATA_FILE, PREDICTIONS_FILE]
    assert sorted(lines) == sorted(
        f"{hashlib.sha256((alone / name).read_bytes()).hexdigest()}  {name}" for name in names
    )
    assert sorted(path.name for path in alone.iterdir()) == sorted([*names, CHECKSUMS_FILE])
    rows = training_rows().head(50)
    assert not bundle.model().pooled
    assert np.array_equal(predict(bundle.model(), rows), predict(model_of_each(), rows))
    for symbol, name in files.items():
        assert (alone / name).read_bytes() == bytes(model_of_each().boosters[symbol].save_raw("ubj"))


@pytest.mark.parametrize("name", ["model-0000.ubj", "model-0001.ubj"])
def test_damage_to_the_model_of_one_symbol_is_refused(store: ModelStore, alone: Path, name: str) -> None:
    sound = (alone / name).read_bytes()
    (alone / name).write_bytes(sound[:-1])
    assert f"{name} does not match" in refused(lambda: store.load(VERSION))
    (alone / name).unlink()
    assert f"{name} is missing" in refused(lambda: store.load(VERSION))


def test_the_models_of_two_symbols_that_changed_places_are_refused(store: ModelStore, alone: Path) -> None:
    one, two = alone / "model-0000.ubj", alone / "model-0001.ubj"
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    assert "model-0000.ubj does not match" in refused(lambda: store.load(VERSION))


@pytest.mark.parametrize(
    "named",
    [
        {"AAPL": "model-0000.ubj"},
        {"AAPL": "model-0001.ubj", "IBM": "model-0000.ubj"},
        {"AAPL": "../other/model.ubj", "IBM": "model-0001.ubj"},
        {},
        [],
        None,
        "model-0000.ubj",
        "../other/model.ubj",
    ],
)
def test_forged_names_of_model_files_are_refused(alone: Path, named: object) -> None:
    edit_metadata(alone, model_file=named)
    assert "no files of this package" in refused(lambda: open_bundle(alone))


@pytest.mark.parametrize("symbols", [None, [], ["AAPL"], ["AAPL", 5], "AAPL", {"AAPL": 1, "IBM": 2}])
def test_forged_symbols_of_a_model_for_each_are_refused(alone: Path, symbols: object) -> None:
    edit_metadata(alone, symbols=symbols)
    assert "no files of this package" in refused(lambda: open_bundle(alone))


def test_metadata_and_a_model_that_do_not_belong_together_are_not_saved(store: ModelStore) -> None:
    text = refused(lambda: store.save(card(), model_of_each(), predictions()))
    assert "metadata is of all symbols, the model of AAPL, IBM" in text
    text = refused(lambda: store.save(card_of_each(), model(), predictions()))
    assert "metadata is of AAPL, IBM, the model of all symbols" in text
    assert store.versions() == []
