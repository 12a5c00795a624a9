"""The user's recipe file: defaults without it, whole or refused by name with it."""

import json
import re
from pathlib import Path

import pytest

from mt5_crs_pipeline.adapters.recipe_file import read_recipe, write_recipe
from mt5_crs_pipeline.core.errors import ConfigurationError
from mt5_crs_pipeline.core.labels import LabelConfig
from mt5_crs_pipeline.core.model import TrainingConfig
from mt5_crs_pipeline.core.recipe import Recipe

ROOT = Path(__file__).parents[2]


def test_without_a_file_the_defaults_hold(tmp_path: Path) -> None:
    assert read_recipe(tmp_path / "recipes" / "D1.json") == Recipe()


def test_the_readme_s_example_is_a_recipe(tmp_path: Path) -> None:
    [example] = re.findall(r"```json\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    path = tmp_path / "D1.json"
    path.write_text(example, "utf-8")
    recipe = read_recipe(path)
    assert recipe.label == LabelConfig(5, 0.001)
    for part, settings in json.loads(example).items():
        assert settings.items() <= recipe.to_dict()[part].items()


@pytest.mark.parametrize(
    ("content", "word"), [("{", "JSON"), ("[]", "recipe is []"), ('{"label": {"cost": 1}}', "'cost'"), ("\xff", "utf")]
)
def test_a_file_that_is_none_is_refused_in_one_line_with_its_name(tmp_path: Path, content: str, word: str) -> None:
    path = tmp_path / "D1.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigurationError) as refused:
        read_recipe(path)
    assert str(path) in str(refused.value) and word in str(refused.value) and "\n" not in str(refused.value)


def test_a_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(str(tmp_path))):
        read_recipe(tmp_path)


def test_what_is_written_is_read_back_and_only_training_settings_are_replaced(tmp_path: Path) -> None:
    path, label = tmp_path / "recipes" / "D1.json", LabelConfig(5, 0.001)
    write_recipe(path, Recipe(label, TrainingConfig(max_depth=2)))
    write_recipe(path, Recipe(label, TrainingConfig(learning_rate=0.1)))
    assert read_recipe(path) == Recipe(label, TrainingConfig(learning_rate=0.1))
    assert [file.name for file in path.parent.iterdir()] == ["D1.json"]


@pytest.mark.parametrize("content", ['{"label": {"horizon_bars": 4}}', "{}", "{"])
def test_a_file_of_another_label_or_none_is_not_overwritten(tmp_path: Path, content: str) -> None:
    path = tmp_path / "D1.json"
    path.write_text(content, "utf-8")
    with pytest.raises(ConfigurationError, match=re.escape(str(path))):
        write_recipe(path, Recipe(LabelConfig(5)))
    assert path.read_text("utf-8") == content
