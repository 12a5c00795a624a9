"""The feature reference in docs/ is the one that the declarations give, and says what each of them is."""

import re
from pathlib import Path

from mt5_crs_pipeline.core.features import FeatureConfig, find_feature
from mt5_crs_pipeline.core.features.documentation import feature_document

DOCUMENT = Path(__file__).parents[3] / "docs" / "features.md"


def test_the_document_is_what_the_declarations_give() -> None:
    assert DOCUMENT.read_text("utf-8") == feature_document(), "run `make docs`"


def test_every_feature_has_a_line_with_its_memory_unit_and_description() -> None:
    rows = re.findall(r"^\| (\w+) \| (\d+) \| ([^|]+) \| ([^|]+\.) \|$", DOCUMENT.read_text("utf-8"), re.M)
    names = [*FeatureConfig.scale_free().features, *FeatureConfig().features]
    assert [name for name, *_ in rows] == names
    # Reckoned by hand: twelve and twenty-six bars' averages, the longer one until its tail weighs under 0.0001.
    assert ("macd_over_close_12_26", "120", "fraction") in [(name, memory, unit) for name, memory, unit, _ in rows]
    for name, memory, unit, description in rows:
        feature = find_feature(name)
        assert (int(memory), unit, description) == (feature.lookback, feature.unit, feature.description)
