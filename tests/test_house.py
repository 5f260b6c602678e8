"""The measurements of tools/house.py, on a tree whose structure is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.house import TREES, Tree, count_back, count_floors, count_settings, find_circles, render

FILES = {
    "__init__.py": "from house.cellar import bottle",
    "attic.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import house.hall.door",
    "cellar.py": "import json\nbottle = 1\n__all__ = ['bottle', 'shelf']",
    "hall/__init__.py": "",
    "hall/door.py": "def ring():\n    from house.hall import mat\n    from house.cellar import bottle",
    "hall/mat.py": "from house.hall.door import ring",
}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    write(tmp_path, FILES)
    return Tree("house", tmp_path)


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / "house" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_every_import_is_an_arrow_wherever_it_stands(tree: Tree) -> None:
    assert tree.arrows == {
        "house": {"house.cellar"},
        "house.attic": {"house.hall"},
        "house.cellar": set(),
        "house.hall": {"house.cellar"},
    }
    assert count_floors(tree.arrows) == 3
    assert find_circles(tree.arrows) == []
    assert find_circles(tree.imports) == [{"house.hall.door", "house.hall.mat"}]
    assert tree.exported() == 2
    assert tree.lines() == {"house": 1, "house.attic": 3, "house.cellar": 3, "house.hall": 4}


@pytest.mark.parametrize(
    ("arrows", "back"),
    [
        ({"a": "b", "b": "c", "c": ""}, 0),
        ({"a": "b", "b": "a"}, 1),
        ({"a": "bc", "b": "c", "c": "a"}, 1),
        ({"a": "b", "b": "ac", "c": "b", "d": "e", "e": "d"}, 3),
    ],
)
def test_arrows_back_up_are_the_fewest_that_break_every_circle(arrows: dict[str, str], back: int) -> None:
    assert count_back({node: frozenset(targets) for node, targets in arrows.items()}) == back


@pytest.mark.parametrize(
    ("line", "is_mutable"),
    [
        ("x = {}", True),
        ("x = {'a': 1}", False),
        ("x: dict = weakref.WeakValueDictionary()", True),
        ("x = threading.Lock()", True),
        ("x = set(y)", False),
        ("x = ContextVar('x')", False),
        ("class A: ...\nx = A()", True),
        ("@dataclass(frozen=True)\nclass A: ...\nx = A()", False),
        ("class A(StrEnum): ...\nx = A('a')", False),
        ("class A(StrEnum): ...\nclass B(A): ...\nx = B('a')", False),
        ("class A: ...\nclass B(A): ...\nx = B()", True),
        ("def f():\n    x = {}", False),
    ],
)
def test_objects_that_change_after_the_import_are_found(line: str, is_mutable: bool, tmp_path: Path) -> None:  # noqa: FBT001
    write(tmp_path, {"room.py": line})
    assert Tree("house", tmp_path).mutable() == (["house.room.x"] if is_mutable else [])


def test_settings_are_counted_once_whatever_the_alternatives() -> None:
    expert = {"properties": {"url": {}, "model": {}}}
    schema = {
        "$defs": {"expert": expert},
        "properties": {
            "expert": {"anyOf": [{"$ref": "#/$defs/expert"}, {"type": "null"}]},
            "experts": {"additionalProperties": {"$ref": "#/$defs/expert"}},
            "alpha": {"type": "number"},
        },
    }
    assert count_settings(schema) == 5


def test_the_repository_can_be_measured() -> None:
    text = render(Tree(name) for name in TREES)
    assert "| arrows |" in text
    assert "| the rail's section |" in text
