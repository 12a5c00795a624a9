"""The noise floor as a JSON file beside the reports: it is made about once a year, and shown every day."""

import json
from pathlib import Path
from typing import Final

from mt5_crs_pipeline.adapters.files import commit_bytes
from mt5_crs_pipeline.core.noise_floor import NoiseFloor

NOISE_FLOOR_FILE: Final = "noise_floor.json"


def read_noise_floor(folder: Path) -> NoiseFloor | None:
    """Return the noise floor in `folder`, or None where there is none, or none that this package wrote."""
    path = folder / NOISE_FLOOR_FILE
    try:
        return NoiseFloor.from_dict(json.loads(path.read_bytes())) if path.exists() else None
    except (KeyError, TypeError, ValueError):
        return None


def write_noise_floor(folder: Path, floor: NoiseFloor) -> None:
    """Make `floor` the noise floor in `folder`, in one step."""
    commit_bytes(folder / NOISE_FLOOR_FILE, (json.dumps(floor.to_dict(), indent=2, allow_nan=False) + "\n").encode())
