"""Immutable model bundles, the champion pointer, and every promotion verdict with its reasons."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd
import pyarrow as pa

from mt5_crs_pipeline.adapters.files import commit_bytes, commit_folder
from mt5_crs_pipeline.adapters.lake import parquet_bytes, read_parquet
from mt5_crs_pipeline.core.errors import BundleRejectedError, ConfigurationError
from mt5_crs_pipeline.core.features import FeatureConfig, get_feature_names
from mt5_crs_pipeline.core.labels import LabelConfig
from mt5_crs_pipeline.core.model import MODEL_TYPE, PREDICTION_COLUMNS, Model
from mt5_crs_pipeline.core.model_card import MODEL_FILE, model_files
from mt5_crs_pipeline.core.promotion import How

METADATA_FILE: Final = "model_metadata.json"
PREDICTIONS_FILE: Final = "out_of_sample_predictions.parquet"
# The format of the sha256sum program, so that anyone can check a bundle without this package.
CHECKSUMS_FILE: Final = "SHA256SUMS"
CHAMPION_FILE: Final = "champion.json"
VERDICTS_FOLDER: Final = "verdicts"
REQUIRED_KEYS: Final = (
    *("model_type", "model_version", "symbols", "timeframe", "lookback", "features", "train_date", "params", "metrics"),
    *(
        "model_file",
        "feature_config",
        "feature_set_hash",
        "data_window",
        "row_counts",
        "data_fingerprint",
        "code_commit",
        "parity",
    ),
    *("library_versions", "label", "label_config", "class_balance", "importance"),
)


@dataclass(frozen=True)
class Bundle:
    """A verified bundle: its folder, its metadata and the feature set it was trained on."""

    folder: Path
    metadata: dict[str, Any]
    config: FeatureConfig

    @property
    def version(self) -> str:
        """The model version, which is also the folder's name."""
        return str(self.metadata["model_version"])

    @property
    def timeframe(self) -> str:
        """The timeframe of the bars it learned from."""
        return str(self.metadata["timeframe"])

    @property
    def checksum(self) -> str:
        """The SHA-256 of the checksums, which stands for every byte of the bundle."""
        return hashlib.sha256((self.folder / CHECKSUMS_FILE).read_bytes()).hexdigest()

    def model(self) -> Model:
        """Return the model; the hashes of its files were checked when the bundle was opened."""
        import xgboost

        boosters = {}
        for symbol, name in _model_files(self.metadata).items():
            boosters[symbol] = xgboost.Booster(model_file=self.folder / name)
            if boosters[symbol].feature_names != get_feature_names(self.config):
                raise BundleRejectedError(f"{self.folder / name} was trained on other features than its metadata says")
        return Model(boosters)

    def predictions(self) -> pd.DataFrame:
        """Return the out-of-sample predictions: PREDICTION_COLUMNS; the target is NaN inside the cost band."""
        predictions: pd.DataFrame = read_parquet(self.folder / PREDICTIONS_FILE, PREDICTION_COLUMNS).to_pandas()
        return predictions

    @property
    def label(self) -> LabelConfig:
        """What the model predicts."""
        return LabelConfig(**self.metadata["label_config"])


class ModelStore:
    """The bundles of one timeframe below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, version: str) -> bool:
        """True when a bundle of that version is stored."""
        return (self.folder / version).is_dir()

    def versions(self) -> list[str]:
        """Return the stored versions, those trained on the latest data last."""
        cards = [path for path in self.folder.glob(f"*/{METADATA_FILE}") if path.parent.name[0] != "."]
        # Models of the same newest bar, as after a correction, go by when they were written.
        cards.sort(key=lambda path: (path.parent.name.split("-")[0], path.stat().st_mtime_ns, path.parent.name))
        return [path.parent.name for path in cards]

    def save(self, metadata: dict[str, Any], model: Model, predictions: pd.DataFrame) -> Bundle:
        """Store a new bundle in one step; a stored version is never changed."""
        missing = [key for key in REQUIRED_KEYS if key not in metadata]
        if missing:
            raise BundleRejectedError(f"model metadata lacks {', '.join(missing)}")
        names = _model_files(metadata)
        if set(names) != set(model.boosters):
            raise BundleRejectedError(
                f"model metadata is of {_of(names)}, the model of {_of(model.boosters)}: they do not belong together"
            )
        files = {
            **{names[symbol]: bytes(booster.save_raw("ubj")) for symbol, booster in model.boosters.items()},
            PREDICTIONS_FILE: parquet_bytes(pa.Table.from_pandas(predictions, preserve_index=False)),
            METADATA_FILE: _json(metadata),
        }
        sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items())
        commit_folder(self.folder / metadata["model_version"], {**files, CHECKSUMS_FILE: sums.encode()})
        return self.load(metadata["model_version"])

    def load(self, version: str | None = None) -> Bundle:
        """Return the bundle of `version`; without one the champion, or the newest where none was promoted.

        Raises BundleRejectedError when there is none, or when it is damaged or foreign: no byte of a model reaches
        XGBoost, which may crash on a damaged file, before its hash is right.
        """
        if version is None:
            champion = self.champion()
            versions = self.versions()
            if champion is None and not versions:
                raise BundleRejectedError(f"no model in {self.folder}: run `mt5-crs retrain` first")
            version = champion["model_version"] if champion else versions[-1]
        return open_bundle(self.folder / version)

    def champion(self) -> dict[str, Any] | None:
        """Return the champion pointer (model_version, promoted_at, how, checksums_sha256), or None.

        Raises BundleRejectedError when the model it names is not there as it was promoted.
        """
        path = self.folder / CHAMPION_FILE
        if not path.exists():
            return None
        pointer = _read_json(path)
        sums = self.folder / str(pointer.get("model_version")) / CHECKSUMS_FILE
        if not sums.exists() or hashlib.sha256(sums.read_bytes()).hexdigest() != pointer.get("checksums_sha256"):
            raise BundleRejectedError(
                f"{path} names a model that is not there as it was promoted: run `mt5-crs retrain`, or"
                " `mt5-crs rollback` for the one before"
            )
        return pointer

    def sound_champion(self) -> dict[str, Any] | None:
        """Return the champion pointer, or None also where it names no model that is there as it was promoted."""
        try:
            return self.champion()
        except BundleRejectedError:
            return None

    def promote(self, bundle: Bundle, promoted_at: str, how: How = "promoted") -> bool:
        """Point the champion at `bundle`; False when it already is."""
        champion = self.sound_champion()
        if champion and champion["model_version"] == bundle.version:
            return False
        pointer = {
            "model_version": bundle.version,
            "promoted_at": promoted_at,
            "how": how,
            "checksums_sha256": bundle.checksum,
        }
        return commit_bytes(self.folder / CHAMPION_FILE, _json(pointer))

    def record_verdict(self, version: str, verdict: dict[str, Any]) -> Path:
        """Keep the promotion verdict of a version, whichever it was; return its file."""
        path = self.folder / VERDICTS_FOLDER / f"{version}.json"
        commit_bytes(path, _json(verdict))
        return path

    def verdict(self, version: str) -> dict[str, Any] | None:
        """Return the promotion verdict of a version, or None when it was never judged."""
        path = self.folder / VERDICTS_FOLDER / f"{version}.json"
        return _read_json(path) if path.exists() else None


def open_bundle(folder: Path) -> Bundle:
    """Verify a bundle folder and return it; raise BundleRejectedError naming the file and what is wrong."""
    if not folder.is_dir():
        raise BundleRejectedError(f"no model bundle at {folder}")
    if not (folder / CHECKSUMS_FILE).is_file():
        raise BundleRejectedError(f"{folder} is no model bundle: {CHECKSUMS_FILE} is missing")
    lines = (folder / CHECKSUMS_FILE).read_text("utf-8", "replace").splitlines()
    expected = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}

    def verify(name: str) -> None:
        if not (folder / name).is_file():
            raise BundleRejectedError(f"{folder} is no model bundle: {name} is missing")
        if expected.get(name) != hashlib.sha256((folder / name).read_bytes()).hexdigest():
            raise BundleRejectedError(
                f"{folder / name} does not match {CHECKSUMS_FILE}: it was damaged or replaced; retrain"
            )

    verify(METADATA_FILE)
    metadata = _read_json(folder / METADATA_FILE)
    missing = [key for key in REQUIRED_KEYS if key not in metadata]
    if missing or metadata["model_type"] != MODEL_TYPE or metadata["model_version"] != folder.name:
        raise BundleRejectedError(
            f"{folder / METADATA_FILE} is not of this package: missing {', '.join(missing) or 'nothing'},"
            f" type {metadata.get('model_type')!r}, version {metadata.get('model_version')!r}"
        )
    for name in (*_model_files(metadata).values(), PREDICTIONS_FILE):
        verify(name)
    try:
        config = FeatureConfig.from_json(json.dumps(metadata["feature_config"]))
    except (ConfigurationError, KeyError, TypeError, ValueError) as error:
        raise BundleRejectedError(
            f"{folder.name} was trained on a feature set this package does not know ({error}): retrain"
        ) from error
    if (config.feature_set_hash, get_feature_names(config)) != (metadata["feature_set_hash"], metadata["features"]):
        raise BundleRejectedError(
            f"{folder.name} was trained on feature set {str(metadata['feature_set_hash'])[:12]}, this package computes"
            f" {config.feature_set_hash[:12]}: retrain, or use the package version it was trained with"
        )
    return Bundle(folder, metadata, config)


def _model_files(metadata: dict[str, Any]) -> dict[str | None, str]:
    """Return the model files that metadata names, by symbol, or under None the one of all symbols."""
    named, symbols = metadata["model_file"], metadata["symbols"]
    if named == MODEL_FILE:
        return {None: MODEL_FILE}
    is_known = isinstance(symbols, list) and all(isinstance(symbol, str) for symbol in symbols) and symbols
    if not is_known or named != model_files(symbols):
        raise BundleRejectedError(
            f"{METADATA_FILE} of {metadata['model_version']} names the model files {named!r}: they are no files of this"
            " package"
        )
    return dict(named.items())


def _of(symbols: Iterable[str | None]) -> str:
    return ", ".join(sorted(symbol or "all symbols" for symbol in symbols))


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise BundleRejectedError(f"{path} is no JSON: it was damaged; retrain") from error
    if not isinstance(content, dict):
        raise BundleRejectedError(f"{path} holds {type(content).__name__}, not an object: it was damaged; retrain")
    return content
