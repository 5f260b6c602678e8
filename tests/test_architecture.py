"""The arrows between the rooms, and what may not come in at all."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = [
    path.relative_to(ROOT) for package in ("ctd_guardrail", "calibrate") for path in (ROOT / package).rglob("*.py")
]
# The files behind which a library stands.
OWN_OF = {"kept_monitors.py": ["filelock"]}
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
