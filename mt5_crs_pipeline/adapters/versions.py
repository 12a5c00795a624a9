"""Which code and libraries are running."""

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

DISTRIBUTION = "mt5-crs-pipeline"
_RECORDED = ("dagster", "feast", "numba", "numpy", "pandas", "pyarrow", "xgboost")


def package_version() -> str:
    """Return the installed version of this package."""
    return importlib.metadata.version(DISTRIBUTION)


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that decide a result."""
    return {"python": platform.python_version(), **{name: _version(name) for name in _RECORDED}}


@functools.cache
def _version(name: str) -> str:
    # Read once: it means parsing all that a distribution says of itself.
    return importlib.metadata.version(name)


def code_commit() -> str:
    """Return the git commit of a source checkout, else the installed version."""
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / ".git").exists():
        try:
            done = subprocess.run(
                ["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=True, timeout=10
            )
            return done.stdout.strip()
        except (OSError, subprocess.SubprocessError):
            pass
    return f"{DISTRIBUTION} {package_version()}"
