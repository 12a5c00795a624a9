"""The recipe a user chose: a JSON file beside the data, or the default where there is none."""

import json
from pathlib import Path

from mt5_crs_pipeline.adapters.files import commit_bytes
from mt5_crs_pipeline.core.errors import ConfigurationError
from mt5_crs_pipeline.core.recipe import Recipe


def read_recipe(path: Path) -> Recipe:
    """Return the recipe in `path`; raise ConfigurationError naming the file and what in it makes no sense."""
    if not path.exists():
        return Recipe()
    try:
        return Recipe.from_dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, ConfigurationError) as error:
        raise ConfigurationError(f"{path}: {error}") from error


def write_recipe(path: Path, recipe: Recipe) -> None:
    """Make `recipe` the one that the next model is trained by."""
    commit_bytes(path, (json.dumps(recipe.to_dict(), indent=2) + "\n").encode())
