"""The arrows between the rooms, and what may not come in at all."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.house import ROOT, TREES, Tree, find_circles

MODULES = [
    path.relative_to(ROOT) for package in ("ctd_guardrail", "calibrate") for path in (ROOT / package).rglob("*.py")
]
# The files behind which a library stands.
OWN_OF = {"kept_monitors.py": ["filelock"]}
# The rooms of ctd_guardrail, lowest floor first: a room imports rooms of lower floors only.
FLOORS = [
    {"errors", "decision", "_typing"},
    {"text", "probes"},
    {"activations", "runtime"},
    {"policy"},
    {"monitors", "config"},
    {"serving", "experts", "observability"},
    {"cascade"},
    {"assembly"},
    {"ctd_guardrail", "budget", "testing"},
    {"nemo", "sidecar"},
    {"cli"},
]
# Arrows up that are still there. Delete an entry together with its arrow.
ARROWS_UP = {
    ("policy", "config"),  # policy/plan.py reads the section
    ("policy", "monitors"),  # policy/plan.py reads the audit's floor
    ("policy", "serving"),  # policy/plan.py reads the record of the export
    ("runtime", "monitors"),  # runtime/files.py writes monitors' state
    ("serving", "ctd_guardrail"),  # the version, which the root states
}
# Circles that are still there, likewise.
ROOM_CIRCLES = [
    {"calibrate.config", "calibrate.risk"},
    {"calibrate.evaluate", "calibrate.train"},
    {f"ctd_guardrail.{room}" for room in ("config", "monitors", "policy", "runtime", "serving")},
]
FILE_CIRCLES = [{"calibrate.expert_scores.ask", "calibrate.expert_scores.ray"}]
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
        assert under(path, "ctd_guardrail/nemo/", "ctd_guardrail/experts/rail/expert.py", "calibrate/demo/tour.py")
    if under(path, "calibrate/risk/", "ctd_guardrail/policy/", "ctd_guardrail/monitors/"):
        own = {"calibrate", "ctd_guardrail", *OWN_OF.get(path.name, ())}
        assert roots <= {*sys.stdlib_module_names, *own, "numpy", "scipy", "pydantic", "pydantic_core", "safetensors"}
        assert not names & {"scipy.stats"}, "slow to import"


def test_a_room_imports_lower_floors_only() -> None:
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    arrows = {
        (room.split(".")[-1], target.split(".")[-1])
        for room, targets in Tree("ctd_guardrail").arrows.items()
        for target in targets
    }
    assert {room for arrow in arrows for room in arrow} <= set(floor), "give the room a floor"
    assert {(room, target) for room, target in arrows if floor[target] >= floor[room]} == ARROWS_UP


def test_no_imports_form_a_circle() -> None:
    trees = [Tree(name) for name in TREES]
    rooms = [set(circle) for tree in trees for circle in find_circles(tree.arrows)]
    files = [set(circle) for tree in trees for circle in find_circles(tree.imports)]
    assert sorted(map(sorted, rooms)) == sorted(map(sorted, ROOM_CIRCLES))
    assert sorted(map(sorted, files)) == sorted(map(sorted, FILE_CIRCLES))


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
