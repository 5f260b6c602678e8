"""The arrows between the rooms, and what no room may import."""

import ast
import importlib
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import is_dataclass
from enum import Enum
from pathlib import Path
from threading import Lock, RLock
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

import pytest
from pydantic import BaseModel

from tools.house import ROOT, TREES, Tree, find_circles

MODULES = [
    path.relative_to(ROOT) for package in ("ctd_guardrail", "calibrate") for path in (ROOT / package).rglob("*.py")
]
# The files behind which a library stands.
OWN_OF = {"kept_monitors.py": ["filelock"]}
# The rooms of ctd_guardrail, lowest floor first: a room imports rooms of lower floors only.
FLOORS = [
    {"errors", "decision", "_typing", "_version"},
    {"text", "probes", "runtime"},
    {"activations"},
    {"policy"},
    {"monitors", "config"},
    {"serving", "experts", "observability"},
    {"cascade"},
    {"assembly"},
    {"ctd_guardrail", "budget", "testing"},
    {"nemo", "sidecar"},
    {"cli"},
]
# The rooms of calibrate, lowest floor first.
CALIBRATE_FLOORS = [
    {"_extra", "risk"},
    {"config"},
    {"compute", "rows"},
    {"features", "expert_scores"},
    {"train"},
    {"evaluate"},
    {"pipeline"},
    {"report"},
    {"calibrate"},
    {"demo"},
    {"cli"},
    {"__main__"},
]
SOURCES = [*MODULES, *(path.relative_to(ROOT) for path in (ROOT / "benchmarks").rglob("*.py"))]


def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield str(node.module)


def under(path: Path, *folders: str) -> bool:
    return path.as_posix().startswith(folders)


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_follow_the_arrows(path: Path) -> None:
    names = set(imports(path))
    roots = {name.split(".")[0] for name in names}
    if under(path, "ctd_guardrail/"):
        assert "calibrate" not in roots
        assert "sklearn" not in roots
    if "nemoguardrails" in roots:
        assert under(
            path,
            "ctd_guardrail/nemo/",
            "ctd_guardrail/experts/rail/expert.py",
            "ctd_guardrail/cli/wiring.py",
            "calibrate/demo/tour.py",
        )
    if under(path, "calibrate/risk/", "ctd_guardrail/policy/", "ctd_guardrail/monitors/"):
        own = {"calibrate", "ctd_guardrail", *OWN_OF.get(path.name, ())}
        assert roots <= {*sys.stdlib_module_names, *own, "numpy", "scipy", "pydantic", "pydantic_core", "safetensors"}
        assert not names & {"scipy.stats"}, "slow to import"


@pytest.mark.parametrize(("name", "floors"), [("ctd_guardrail", FLOORS), ("calibrate", CALIBRATE_FLOORS)])
def test_a_room_imports_lower_floors_only(name: str, floors: list[set[str]]) -> None:
    floor = {room: number for number, rooms in enumerate(floors) for room in rooms}
    arrows = {
        (room.split(".")[-1], target.split(".")[-1])
        for room, targets in Tree(name).arrows.items()
        for target in targets
    }
    assert {room for arrow in arrows for room in arrow} <= set(floor), "give the room a floor"
    assert not {(room, target) for room, target in arrows if floor[target] >= floor[room]}


@pytest.mark.parametrize("name", TREES)
def test_no_imports_form_a_circle(name: str) -> None:
    assert not find_circles(Tree(name).arrows)
    assert not find_circles(Tree(name).imports)


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def defined_in(path: Path) -> Iterator[str]:
    """Find the names that other code can reach: those of modules and classes, and the attributes of objects."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Module | ast.ClassDef):
            for each in node.body:
                if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    yield each.name
                elif isinstance(each, ast.Assign | ast.AnnAssign):
                    targets = each.targets if isinstance(each, ast.Assign) else [each.target]
                    yield from (target.id for target in targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def touched_in(path: Path) -> Iterator[str]:
    """Find the attributes of other objects, imported names and names that a monkeypatch replaces."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in {"self", "cls"}:
            yield node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("setattr", "delattr", "patch", "object")):
            texts = [each.value for each in node.args if isinstance(each, ast.Constant)]
            yield from (text.rsplit(".", 1)[-1] for text in texts if isinstance(text, str))


def test_a_private_part_of_the_product_is_touched_from_one_test_file_at_most() -> None:
    of_named_tuples = {"_asdict", "_fields", "_make", "_replace"}
    own = {name for path in SOURCES for name in defined_in(path) if private(name)} - of_named_tuples
    files: dict[str, set[str]] = {}
    for path in sorted(path.relative_to(ROOT) for path in (ROOT / "tests").rglob("*.py")):
        for name in {name for name in touched_in(path) if name in own}:
            files.setdefault(name, set()).add(path.as_posix())
    assert {name: sorted(paths) for name, paths in files.items() if len(paths) > 1} == {}, (
        "give the product a public seam, or tests/support/internals.py the one access"
    )


def test_array_types_have_one_name_each() -> None:
    defined = {
        path.as_posix()
        for path in SOURCES
        for node in tree(path).body
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value and "NDArray[np." in ast.unparse(node.value)
    }
    assert defined == {"ctd_guardrail/_typing.py"}


def test_one_object_of_the_process_can_change() -> None:
    mutable = (WeakSet, WeakValueDictionary, WeakKeyDictionary, deque, type(Lock()), type(RLock()))
    found = []
    for path in MODULES:
        if not under(path, "ctd_guardrail/") or path.name == "__main__.py":
            continue
        module = importlib.import_module(".".join(path.with_suffix("").parts))
        for node in tree(path).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            for name in (target.id for target in targets if isinstance(target, ast.Name)):
                value = vars(module).get(name)
                own = type(value).__module__.startswith("ctd_guardrail.") and not isinstance(value, Enum)
                frozen = is_dataclass(value) and type(value).__dataclass_params__.frozen
                frozen |= isinstance(value, BaseModel) and value.model_config.get("frozen", False)
                empty = isinstance(value, dict | list | set) and not value
                if isinstance(value, mutable) or empty or (own and not frozen and not isinstance(value, tuple)):
                    found.append(f"{module.__name__}.{name}")
    assert found == ["ctd_guardrail.runtime.runtime._PROCESS"]


# What is computed once for the process, and never changes.
MEMOISED = {
    "ctd_guardrail.observability.gauges",
    "ctd_guardrail.observability.metrics",
    "ctd_guardrail.observability.service_metrics",
    "ctd_guardrail.policy.envelope",
    "ctd_guardrail.runtime.http_client",
}


def test_memoised_functions_are_known() -> None:
    found = {
        ".".join(path.with_suffix("").parts)
        for path in MODULES
        if under(path, "ctd_guardrail/")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and any(
            ast.unparse(each).split("(")[0].split(".")[-1] in {"cache", "lru_cache"} for each in node.decorator_list
        )
    }
    assert found == MEMOISED


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_nothing_can_run_code_from_data(path: Path) -> None:
    assert not {"pickle", "joblib", "dill", "marshal", "shelve"} & {name.split(".")[0] for name in imports(path)}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in {"eval", "exec", "torch.load", "yaml.load", "yaml.unsafe_load", "numpy.load", "np.load"}


@pytest.mark.parametrize(
    "module", ["ctd_guardrail", "ctd_guardrail.config.section", "ctd_guardrail.cli.app", "calibrate.cli.app"]
)
def test_importing_loads_no_torch_and_no_host(module: str) -> None:
    heavy = "{'torch', 'transformers', 'nemoguardrails', 'sklearn', 'scipy.stats'}"
    code = f"import sys, {module}; found = {heavy} & set(sys.modules); sys.exit(str(found) if found else 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr


def test_the_folder_that_nemo_imports_holds_nothing_it_would_join_or_execute_by_itself() -> None:
    names = {path.name for path in (ROOT / "ctd_guardrail" / "nemo").iterdir()}
    assert not {name for name in names if name.endswith((".yml", ".yaml"))}
    assert "actions.py" not in names
    assert "actions" not in names
