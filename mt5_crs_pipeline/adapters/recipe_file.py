"""The recipe a user chose: a JSON file beside the data, or the default where there is none."""

import json
from pathlib import Path

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
