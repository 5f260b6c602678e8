"""The public names: what each door exports, and that docs and examples use nothing else."""

import ast
import doctest
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TYPING = ROOT / "tests" / "typing" / "api.py"
DOORS = {
    "ctd_guardrail": """
        ActivationError ActivationSource ActivationSpec ActivationUnavailableError BreakerOpenError CapStoreError
        ConfigError Conversation CtdError DataError Decision DependencyError Expert ExpertCapError ExpertDisabledError
        ExpertError ExpertNotAskedError ExpertOverloadedError ExpertScore ExpertTimeoutError ExpertUnavailableError
        ExpertVerdictError Fingerprint Guard HostError InfeasibleBudgetError InputError Message Mode NonTextError
        OnFailure OverloadedError OverlongError OverrideError PolicyError PolicyFormatError PolicyIntegrityError
        PolicyLockedError PolicyMismatchError Ragged Reason Route StoreError Timings Verdict __version__
        load_guard
    """,
    "ctd_guardrail.budget": """
        BudgetUnit CalibrationScores Certificate Choice Costs Criterion Guarantee Method Policy Status TurnScores
        best_threshold certify max_exceedances min_alpha min_rows read_policy
    """,
    "ctd_guardrail.testing": "Asked FakeExpert FakeGuard guarding_nemo",
}
# The host's own door: NeMo Guardrails reads this folder, and an app calls `install` or `init` of it.
HOST = "ctd_guardrail.nemo"
_PYTHON = re.compile(r"^ *```python\n(.*?)^ *```$", flags=re.MULTILINE | re.DOTALL)
PUBLIC = {*DOORS, HOST, "calibrate"}


@pytest.mark.parametrize("door", DOORS)
def test_a_door_exports_exactly_the_held_names(door: str) -> None:
    module = importlib.import_module(door)
    held = DOORS[door].split()
    assert sorted(module.__all__) == sorted(held), (
        "a change of the API: change it here, in docs/api.md and in CHANGELOG"
    )
    assert set(held) <= set(dir(module))
    assert all(hasattr(module, name) for name in held)


def test_the_main_door_lists_its_names_and_nothing_else() -> None:
    assert dir(importlib.import_module("ctd_guardrail")) == sorted(DOORS["ctd_guardrail"].split())


def test_the_door_of_the_host_lists_its_names_before_they_are_loaded() -> None:
    module = importlib.import_module(HOST)
    assert dir(module) == ["init", "install"]
    assert all(callable(getattr(module, name)) for name in dir(module))


def test_every_error_of_the_one_tree_is_exported() -> None:
    errors = importlib.import_module("ctd_guardrail.errors")
    assert set(errors.__all__) <= set(DOORS["ctd_guardrail"].split())


def test_a_name_that_is_not_public_is_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Cascade'"):
        importlib.import_module("ctd_guardrail").Cascade  # noqa: B018  # the look-up is what is tested


@pytest.mark.parametrize(
    ("door", "absent"),
    [
        ("ctd_guardrail", "torch transformers nemoguardrails numpy pydantic"),
        ("ctd_guardrail.budget", "torch transformers nemoguardrails sklearn scipy.stats"),
        ("ctd_guardrail.testing", "torch transformers nemoguardrails sklearn"),
    ],
)
def test_a_door_is_light(door: str, absent: str) -> None:
    code = f"import sys, {door}; sys.exit(' '.join(set({absent.split()}) & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("door", DOORS)
def test_the_examples_in_docstrings_run(door: str) -> None:
    assert doctest.testmod(importlib.import_module(door)).failed == 0


def test_mypy_reads_every_public_name_as_a_user_writes_it() -> None:
    lines = [node for node in ast.walk(ast.parse(TYPING.read_text())) if isinstance(node, ast.ImportFrom)]
    used = {(node.module, alias.name) for node in lines for alias in node.names}
    assert {(door, name) for door, names in DOORS.items() for name in names.split()} <= used
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    assert settings["strict"]
    assert str(TYPING.parent.relative_to(ROOT)) in settings["files"]


def imported(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)


def sources() -> Iterator[tuple[str, str]]:
    for page in [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md")), *(ROOT / "config_examples").glob("*.md")]:
        blocks = re.findall(
            r"^ *```python\n(.*?)^ *```$", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
        )
        yield from ((f"{page.name}:{number}", block) for number, block in enumerate(blocks))
    for script in sorted((ROOT / "config_examples").rglob("*.py")):
        yield str(script.relative_to(ROOT)), script.read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "text"), [pytest.param(*each, id=each[0]) for each in sources()])
def test_docs_and_examples_import_public_names_only(name: str, text: str) -> None:
    own = {module for module in imported(text) if module.split(".")[0] in {"ctd_guardrail", "calibrate", "benchmarks"}}
    assert own <= PUBLIC, name


@pytest.mark.parametrize(
    "package",
    sorted((ROOT / "ctd_guardrail").rglob("*/__init__.py")),
    ids=lambda path: path.parent.name,
)
def test_a_package_that_is_no_door_says_that_it_is_internal(package: Path) -> None:
    name = ".".join(package.parent.relative_to(ROOT).parts)
    docstring = ast.get_docstring(ast.parse(package.read_text())) or ""
    assert ("Internal." in docstring) == (name != HOST)


def test_the_page_of_the_api_lists_every_name_and_no_other() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## `([\w.]+)`\n(.*?)(?=^## |\Z)", page, flags=re.MULTILINE | re.DOTALL))
    assert set(DOORS) <= set(sections)
    for door, text in sections.items():
        listed = [
            name
            for cell in re.findall(r"^\| (`.*?`) \|", text, flags=re.MULTILINE)
            for name in re.findall(r"`([\w]+)`", cell)
        ]
        assert sorted(listed) == sorted(importlib.import_module(door).__all__), door
