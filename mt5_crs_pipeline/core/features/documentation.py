"""The feature reference, written from the declarations."""

from mt5_crs_pipeline.core.features.config import FeatureConfig
from mt5_crs_pipeline.core.features.declaration import Feature

_INTRODUCTION = """# Features

Written from the declarations in `mt5_crs_pipeline/core/features/formulas.py`; renew it with `make docs`.
The memory is how many bars a value reads, its own included. All values are doubles; NaN in a bar that is read gives
NaN, and so does a history that is too short.
"""


def feature_document() -> str:
    """Return both feature sets as Markdown tables: name, memory, unit, what it is."""
    sets = {
        "The scale-free set, `FeatureConfig.scale_free()`: the pipeline trains on it": FeatureConfig.scale_free(),
        "The default set, `FeatureConfig()`": FeatureConfig(),
    }
    parts = [_INTRODUCTION]
    for title, config in sets.items():
        lines = [_line(feature) for feature in config.declared]
        head = f"{len(lines)} features; one complete row reads {config.lookback} bars."
        parts.append(
            "\n".join([f"## {title}", "", head, "", "| feature | memory | unit | |", "|---|---|---|---|", *lines])
        )
    return "\n".join(parts) + "\n"


def _line(feature: Feature) -> str:
    return f"| {feature.name} | {feature.lookback} | {feature.unit} | {feature.description} |"
