"""No circle of imports, between files or between rooms."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "benchmarks").rglob("*.py"))


def name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name(file) for file in FILES}


def imports(file: Path) -> set[str]:
    """Return the modules of the benchmarks that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    packages = {"benchmarks", *(f"benchmarks.{room.name}" for room in (ROOT / "benchmarks").iterdir())}
    return found & MODULES - packages


GRAPH = {name(file): imports(file) for file in FILES}


def room(module: str) -> str:
    return module.split(".")[1] if module.count(".") > 1 else module


def test_files_import_each_other_in_one_direction() -> None:
    assert sum(map(len, GRAPH.values())) > 30
    TopologicalSorter(GRAPH).prepare()


def test_rooms_import_each_other_in_one_direction() -> None:
    rooms: dict[str, set[str]] = {}
    for module, imported in GRAPH.items():
        rooms.setdefault(room(module), set()).update(map(room, imported))
    arrows = {here: there - {here} for here, there in rooms.items()}
    TopologicalSorter(arrows).prepare()
    # The list of rooms says so.
    assert {here: there - {"benchmarks.table"} for here, there in arrows.items() if there - {"benchmarks.table"}} == {
        "operations": {"load"}
    }


def test_every_room_says_what_it_measures_and_is_listed() -> None:
    listed = set(re.findall(r"^\| `(\w+)` \|", (ROOT / "benchmarks" / "README.md").read_text("utf-8"), re.MULTILINE))
    rooms = {file.parent.name for file in FILES if file.name == "__init__.py"} - {"benchmarks"}
    assert rooms == listed
    for each in rooms:
        docstring = ast.get_docstring(ast.parse((ROOT / "benchmarks" / each / "__init__.py").read_text("utf-8")))
        assert docstring is not None
        assert docstring.count(".") >= 1
        assert "\n" not in docstring
