"""The house rules that can be read off the imports: layers, doors, and what is public."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import stageflow

ROOT = Path(stageflow.__file__).parent
PACKAGE = "stageflow"

LAYERS: dict[str, int] = {
    # 1 words: plain data
    "errors": 1,
    "item": 1,
    "events": 1,
    "protocols": 1,
    "commit": 1,
    "counters": 1,
    "money": 1,
    "plain": 1,
    # 2 parts
    "channel": 2,
    "graph": 2,
    "contexts": 2,
    "policies": 2,
    # 3 description
    "stage": 3,
    "plan": 3,
    "pricing": 3,
    # 4
    "engine": 4,
    # 5 edges
    "adapters": 5,
    "ledger": 5,
    "cache": 5,
    "report": 5,
    "llm": 5,
    "stores": 5,
    # 6 front
    "pipeline": 6,
    "loader": 6,
    "fingerprint": 6,
    "caching": 6,
    "feeding": 6,
    "files": 6,
    "placing": 6,
    "forecast": 6,
    "syntax": 6,
    "uses": 6,
    "retries": 6,
    "status": 6,
    "chaos": 6,
    "options": 6,
    "ends": 6,
    "output": 6,
    "recorder": 6,
    "entry": 6,
    "settings": 6,
    "command": 6,
    "sweep": 6,
    "runner": 6,
    "local": 6,
    "work": 6,
    "replicas": 6,
    "cluster": 6,
    "cli": 6,
    "cli_options": 6,
    "testing": 6,
    "__main__": 6,
    "": 6,  # the package itself: the public names
}
SIBLINGS = {2, 5}
"""Layers whose modules do not import each other."""
WORDS_ONLY = {5}
"""Layers that see the words and nothing else."""

DOORS = {
    "click": {"cli", "cli_options", "command"},
    "tqdm": {"report.progress.bar"},
    "uvloop": {"entry"},
    "aiostream": {"adapters.streams"},
    "backports": {"adapters.jsonl"},
    "compression": {"adapters.jsonl"},
    "ray": {"cluster.ray"},
    "obstore": {"adapters.remote", "stores.objects"},
    "pyarrow": {"adapters.parquet"},
    "orjson": {"adapters.jsonl", "ledger", "retries", "testing", "llm"},
    "httptools": {"llm.wire"},
    "jsonschema_rs": {"llm.schema"},
}


def modules() -> Iterator[tuple[str, Path]]:
    """Each module by its dotted name below the package, with its file."""
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(tree: ast.AST) -> tuple[str, ...]:
    """Everything that is imported anywhere in it, inside functions and for types only, too; the names as well."""
    return tuple(_imports(tree))


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(tree: ast.AST) -> set[str]:
    """The modules of the package that are imported, as names below it."""
    names = {name.removeprefix(PACKAGE).removeprefix(".") for name in imports(tree) if name.split(".")[0] == PACKAGE}
    return {name for name in names if name in MODULES and name}


def part(module: str) -> str:
    """The file or folder right below the package that a module belongs to."""
    return module.partition(".")[0]


MODULES = dict(modules())


def test_every_module_has_a_layer() -> None:
    assert {part(module) for module in MODULES} <= LAYERS.keys()


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_from_the_layers_above_its_own(module: str) -> None:
    layer = LAYERS[part(module)]
    for imported in own(tree_of(MODULES[module])):
        if part(imported) == part(module):
            continue
        assert LAYERS[part(imported)] <= layer, f"{module} ({layer}) imports {imported} ({LAYERS[part(imported)]})"
        if layer in SIBLINGS:
            assert LAYERS[part(imported)] < layer, f"{module} imports its sibling {imported}"
        if layer in WORDS_ONLY:
            assert LAYERS[part(imported)] == 1, f"{module} sees more than words: {imported}"


def test_words_know_no_asyncio_and_no_files() -> None:
    for module, path in MODULES.items():
        if LAYERS[part(module)] == 1:
            assert not {"asyncio", "os", "pathlib", "io"} & set(imports(tree_of(path))), module


def at_import(tree: ast.Module) -> Iterator[ast.stmt]:
    """The statements that run when a module is imported, which those for type checkers do not."""
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        statement = waiting.pop()
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            continue
        yield statement
        for name in ("body", "orelse", "finalbody"):
            if not isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                waiting += getattr(statement, name, [])


def test_no_module_imports_itself_by_way_of_others() -> None:
    from stageflow.graph import find_cycle

    needs = {}
    for module, path in MODULES.items():
        found: set[str] = set()
        for statement in at_import(tree_of(path)):
            if isinstance(statement, (ast.Import, ast.ImportFrom)):
                found |= own(statement)
        needs[module] = sorted(found - {module})
    assert find_cycle(needs) is None


@pytest.mark.parametrize("library", DOORS)
def test_each_library_has_its_door(library: str) -> None:
    users = {
        module for module, path in MODULES.items() if library in {name.split(".")[0] for name in imports(tree_of(path))}
    }
    assert users, f"nothing uses {library}"
    for user in users:
        assert any(user == door or user.startswith(f"{door}.") for door in DOORS[library]), f"{user} imports {library}"


def test_no_other_library_is_used() -> None:
    allowed = {PACKAGE, *DOORS, *sys.stdlib_module_names}
    for module, path in MODULES.items():
        strangers = {name.split(".")[0] for name in imports(tree_of(path))} - allowed
        assert not strangers, f"{module} imports {strangers}"


def loaded_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT.parent
    )
    return set(done.stdout.split())


def test_a_plain_import_loads_no_library() -> None:
    assert not loaded_by("import stageflow") & DOORS.keys()


def test_the_client_for_models_is_loaded_by_those_who_ask_for_it() -> None:
    loaded = "import sys, stageflow.cli\nprint(*[name for name in sys.modules if name.startswith('stageflow.llm')])"
    done = subprocess.run(
        [sys.executable, "-c", loaded], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT.parent
    )
    assert done.stdout.split() == []
    assert not loaded_by("import stageflow.llm") & {"httptools", "jsonschema_rs", "uvloop"}


def test_building_and_checking_a_job_loads_no_library() -> None:
    job = "from stageflow import Pipeline\np = Pipeline()\np.add_stage('s', lambda x: x)\np.plan()"
    assert not loaded_by(job) & DOORS.keys()


def test_a_run_from_python_to_python_loads_none_but_the_loop() -> None:
    job = "from stageflow import Pipeline\np = Pipeline()\np.add_stage('s', lambda x: x)\np.run_sync([{'x': 1}], [])"
    assert loaded_by(job) & DOORS.keys() <= {"uvloop"}


# What is public


def test_the_public_names_are_those_that_are_imported() -> None:
    tree = tree_of(ROOT / "__init__.py")
    imported = [
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module != "__future__"
        for alias in node.names
    ]
    assert sorted(imported) == sorted(stageflow.__all__)
    assert len(set(stageflow.__all__)) == len(stageflow.__all__)


@pytest.mark.parametrize("module", [module for module in MODULES if module != "__main__"])
def test_what_a_module_exports_is_there(module: str) -> None:
    found = importlib.import_module(f"{PACKAGE}.{module}".rstrip("."))
    exported = getattr(found, "__all__", [])
    assert len(set(exported)) == len(exported)
    for name in exported:
        assert hasattr(found, name), f"{module}.__all__ has {name}, which is not there"


def private(path: Path) -> Iterator[str]:
    """The names with an underscore that a module takes from others of the package."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            yield from (alias.name for alias in node.names if alias.name.startswith("_"))


def test_no_module_takes_the_private_names_of_another() -> None:
    assert {module: names for module, path in MODULES.items() if (names := list(private(path)))} == {}


def test_every_error_is_public_and_has_an_exit_code() -> None:
    from stageflow import errors

    for name in errors.__all__:
        kind = getattr(errors, name)
        assert getattr(stageflow, name) is kind
        assert kind.exit_code in (1, 2, 3, 4, 5, 6, 7)
