"""The recipe a user chose, or a search for them: a JSON file beside the data, or the default where there is none."""

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
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error
    except json.JSONDecodeError as error:
        raise ConfigurationError(f"{path} is no JSON: {error}") from error
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def write_recipe(path: Path, recipe: Recipe) -> None:
    """Put `recipe`, every setting written out, in `path` in one step; of a file that is there the label stays.

    Raises ConfigurationError, and leaves the file alone, where its label is another one or it is no recipe.
    """
    if path.exists() and read_recipe(path).label != recipe.label:
        raise ConfigurationError(
            f"{path} holds another label than these training settings were chosen for ({recipe.label.definition}):"
            " nothing was written"
        )
    commit_bytes(path, (json.dumps(recipe.to_dict(), indent=2) + "\n").encode())
