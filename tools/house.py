"""Measure the structure of the code: rooms, arrows, circles, size, names and settings, as a Markdown table.

A *room* is a module or package directly below a tree: `ctd_guardrail.policy`, `ctd_guardrail.errors`. An *arrow* is an
import of one room by another, wherever the statement stands: at the top, in a function, or under `TYPE_CHECKING`.
A *floor* is a position in the longest chain of arrows. Needs the standard library only.

    python tools/house.py
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

__all__ = ["ROOT", "TREES", "Tree", "find_circles", "render"]

ROOT = Path(__file__).parents[1]
TREES = ("ctd_guardrail", "calibrate", "benchmarks")
SCHEMAS = {"the rail's section": "config.schema.json", "CALIBRATE.yml": "calibrate.schema.json"}

# Classes whose instances count as constants.
_FROZEN_BASES = frozenset({"BaseModel", "Enum", "NamedTuple", "StrEnum", "TypedDict"})

Graph = Mapping[str, frozenset[str]]

# Calls at import that make an object which changes later.
_MUTABLE = frozenset(
    {
        "Condition",
        "Counter",
        "Event",
        "Lock",
        "LRUCache",
        "OrderedDict",
        "Queue",
        "RLock",
        "Semaphore",
        "SimpleQueue",
        "TTLCache",
        "Thread",
        "ThreadPoolExecutor",
        "WeakKeyDictionary",
        "WeakSet",
        "WeakValueDictionary",
        "bytearray",
        "defaultdict",
        "deque",
        "dict",
        "list",
        "local",
        "set",
    }
)
# Calls whose object stays as it is, or belongs to a library that says how to use it at import.
_CONSTANT = frozenset({"ContextVar", "Typer", "TypeVar", "getLogger", "get_logger", "get_tracer", "get_meter"})


@dataclass(frozen=True)
class Tree:
    """The Python files of one top-level package.

    Attributes:
        name: Its import name.
        root: Folder that holds it.
    """

    name: str
    root: Path = ROOT

    @cached_property
    def files(self) -> dict[str, ast.Module]:
        """Module name to syntax tree."""
        found = {}
        for path in sorted((self.root / self.name).rglob("*.py")):
            parts = path.relative_to(self.root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = ast.parse(path.read_text(encoding="utf-8"))
        return found

    @cached_property
    def imports(self) -> Graph:
        """Module name to the modules of this tree that it imports."""
        return {name: frozenset(self._imports_of(tree)) - {name} for name, tree in self.files.items()}

    @cached_property
    def arrows(self) -> Graph:
        """Room to the rooms that it imports."""
        rooms: dict[str, set[str]] = {self.room_of(name): set() for name in self.files}
        for name, targets in self.imports.items():
            rooms[self.room_of(name)] |= {self.room_of(target) for target in targets}
        return {room: frozenset(targets - {room}) for room, targets in rooms.items()}

    def room_of(self, module: str) -> str:
        """Return the room of a module; the tree's own `__init__` is a room."""
        return ".".join(module.split(".")[:2])

    def _imports_of(self, tree: ast.Module) -> Iterator[str]:
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                named: Iterable[str] = (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules = [f"{node.module}.{alias.name}" for alias in node.names]
                named = (each if each in self.files else node.module for each in modules)
            else:
                continue
            yield from (name for name in named if name in self.files)

    def lines(self) -> dict[str, int]:
        """Return the number of lines of each room."""
        counts: dict[str, int] = {}
        for path in sorted((self.root / self.name).rglob("*.py")):
            parts = path.relative_to(self.root).with_suffix("").parts
            room = ".".join(part for part in parts[:2] if part != "__init__")
            counts[room] = counts.get(room, 0) + len(path.read_text(encoding="utf-8").splitlines())
        return counts

    def exported(self) -> int:
        """Return how many names stand in the `__all__` of all files together."""
        return sum(len(names) for tree in self.files.values() for names in _assigned(tree, "__all__"))

    def mutable(self) -> list[str]:
        """Return the objects that a module makes at import and that change later, as `module.name`."""
        return [
            f"{module}.{name}"
            for module, tree in self.files.items()
            for name, value in _assignments(tree)
            if self._changes(value)
        ]

    def _changes(self, value: ast.expr) -> bool:
        if isinstance(value, ast.Dict | ast.List | ast.Set):
            # A table of constants has entries; what starts empty is filled later.
            return not (value.keys if isinstance(value, ast.Dict) else value.elts)
        if not isinstance(value, ast.Call):
            return False
        called = ast.unparse(value.func).split("[")[0].split(".")[-1]
        if called in _CONSTANT:
            return False
        return (called in _MUTABLE and not value.args) or called in self._stateful_classes

    @cached_property
    def _stateful_classes(self) -> frozenset[str]:
        """Names of this tree's classes that are frozen neither by their declaration nor by a base class."""
        nodes = [node for tree in self.files.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        stateful = [node for node in nodes if not _is_frozen(node)]
        while True:
            frozen = {node.name for node in nodes} - {node.name for node in stateful}
            left = [node for node in stateful if frozen.isdisjoint(_bases(node))]
            if len(left) == len(stateful):
                return frozenset(node.name for node in stateful)
            stateful = left


def find_circles(graph: Graph) -> list[frozenset[str]]:
    """Return the largest sets of nodes that all reach each other, of two and more."""
    reached = {node: _reach(graph, node) for node in graph}
    circles = {frozenset({node, *(to for to in reached[node] if node in reached.get(to, ()))}) for node in graph}
    return sorted((circle for circle in circles if len(circle) > 1), key=sorted)


def count_back(graph: Graph) -> int:
    """Return how few arrows would have to go so that no circle is left."""
    return sum(_fewest_back({node: graph[node] & circle for node in circle}) for circle in find_circles(graph))


def count_floors(graph: Graph) -> int:
    """Return the length of the longest chain of arrows, in rooms. A circle counts as one room."""
    circle_of = {node: circle for circle in find_circles(graph) for node in circle}
    heights: dict[object, int] = {}

    def height(node: str) -> int:
        group = circle_of.get(node, frozenset({node}))
        if group not in heights:
            below = {to for each in group for to in graph[each]} - group
            heights[group] = 1 + max(map(height, below), default=0)
        return heights[group]

    return max(map(height, graph), default=0)


def count_settings(schema: Mapping[str, Any]) -> int:
    """Return the number of leaf keys that a JSON schema describes, whatever the alternatives."""
    paths = _leaves(schema, schema.get("$defs", {}))
    return sum(not any(other != path and other[: len(path)] == path for other in paths) for path in paths)


def render(trees: Iterable[Tree]) -> str:
    """Return the measurements as Markdown."""
    trees = list(trees)
    rows: list[tuple[str, list[object]]] = [
        ("lines", [f"{sum(tree.lines().values()):,}" for tree in trees]),
        ("files", [len(tree.files) for tree in trees]),
        ("rooms", [len(tree.arrows) for tree in trees]),
        ("floors", [count_floors(tree.arrows) for tree in trees]),
        ("arrows", [sum(map(len, tree.arrows.values())) for tree in trees]),
        ("arrows back up", [count_back(tree.arrows) for tree in trees]),
        ("circles of rooms", [len(find_circles(tree.arrows)) for tree in trees]),
        ("circles of files", [len(find_circles(tree.imports)) for tree in trees]),
        ("names in `__all__`", [tree.exported() for tree in trees]),
        ("process-wide mutable objects", [len(tree.mutable()) for tree in trees]),
    ]
    lines = _table(["", *(f"`{tree.name}`" for tree in trees)], [[name, *cells] for name, cells in rows])
    for tree in trees:
        lines += ["", f"Lines of `{tree.name}` by room:", ""]
        counts = tree.lines()
        lines += _table(["room", "lines"], [[f"`{room}`", f"{counts[room]:,}"] for room in sorted(counts)])
        lines += [f"\nCircle of {kind}: {', '.join(sorted(circle))}" for kind, circle in _named_circles(tree)]
        lines += ["\nProcess-wide mutable objects: " + ", ".join(tree.mutable())] if tree.mutable() else []
    schemas = ROOT / "config_examples" / "schema"
    leaves = [[n, count_settings(json.loads((schemas / f).read_text(encoding="utf-8")))] for n, f in SCHEMAS.items()]
    return "\n".join([*lines, "", *_table(["file", "settings"], leaves)]) + "\n"


def _named_circles(tree: Tree) -> list[tuple[str, frozenset[str]]]:
    kinds = (("rooms", tree.arrows), ("files", tree.imports))
    return [(kind, circle) for kind, graph in kinds for circle in find_circles(graph)]


def _table(head: list[str], rows: list[list[object]]) -> list[str]:
    ruled: list[list[object]] = [[*head], ["---"] * len(head), *rows]
    return [f"| {' | '.join(map(str, row))} |" for row in ruled]


def _reach(graph: Graph, start: str) -> set[str]:
    reached: set[str] = set()
    stack = [start]
    while stack:
        new = graph.get(stack.pop(), frozenset()) - reached
        reached |= new
        stack += new
    return reached


def _fewest_back(circle: Graph) -> int:
    # Build an order from the top. The next room pays for its arrows to rooms that stand above it already.
    nodes = sorted(circle)
    index = {node: i for i, node in enumerate(nodes)}
    to = [sum(1 << index[target] for target in circle[node]) for node in nodes]
    best = {0: 0}
    for _ in nodes:
        longer: dict[int, int] = {}
        for above, cost in best.items():
            for i, targets in enumerate(to):
                if not above >> i & 1:
                    key, price = above | 1 << i, cost + (targets & above).bit_count()
                    longer[key] = min(price, longer.get(key, price))
        best = longer
    return best[(1 << len(nodes)) - 1]


def _assignments(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    for node in tree.body:
        if isinstance(node, ast.Assign):
            yield from ((target.id, node.value) for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and node.value is not None and isinstance(node.target, ast.Name):
            yield node.target.id, node.value


def _assigned(tree: ast.Module, name: str) -> Iterator[list[ast.expr]]:
    for each, value in _assignments(tree):
        if each == name and isinstance(value, ast.List | ast.Tuple):
            yield value.elts


def _is_frozen(node: ast.ClassDef) -> bool:
    declared = [*node.decorator_list, *node.bases, *(keyword.value for keyword in node.keywords)]
    words = {word for each in declared for word in ast.unparse(each).replace("(", ".").replace("[", ".").split(".")}
    return "frozen=True" in " ".join(map(ast.unparse, declared)) or bool(words & _FROZEN_BASES)


def _bases(node: ast.ClassDef) -> Iterator[str]:
    yield from (ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases)


def _leaves(
    schema: Mapping[str, Any], definitions: Mapping[str, Any], path: tuple[str, ...] = (), seen: tuple[str, ...] = ()
) -> set[tuple[str, ...]]:
    if "$ref" in schema:
        name = schema["$ref"].split("/")[-1]
        if name in seen:
            return {path}
        own = {key: value for key, value in schema.items() if key != "$ref"}
        return _leaves({**definitions[name], **own}, definitions, path, (*seen, name))
    found: set[tuple[str, ...]] = set()
    for alternative in (each for key in ("anyOf", "oneOf", "allOf") for each in schema.get(key, [])):
        found |= _leaves(alternative, definitions, path, seen)
    if properties := schema.get("properties"):
        for name, below in properties.items():
            found |= _leaves(below, definitions, (*path, name), seen)
        return found
    if isinstance(items := schema.get("items"), dict):
        found |= _leaves(items, definitions, path, seen)
    if isinstance(others := schema.get("additionalProperties"), dict):
        found |= _leaves(others, definitions, (*path, "*"), seen)
    return found or {path}


if __name__ == "__main__":
    print(render(Tree(name) for name in TREES), end="")
