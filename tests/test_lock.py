"""requirements.lock: every dependency of every extra, at a version that pyproject.toml takes, with hashes."""

import itertools
import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PINS = re.findall(r"^([\w.-]+)==([\w.+!]+)", LOCK, re.MULTILINE)
PINNED = {canonicalize_name(name): Version(version) for name, version in PINS}


def test_the_lock_satisfies_every_requirement_of_every_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    stated = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    requirements = [Requirement(line) for line in stated]
    # torch has a build for each device, and its version in constraints.txt.
    named = [each for each in requirements if each.name not in {project["name"], "torch"}]
    unmet = [str(each) for each in named if not each.specifier.contains(PINNED[canonicalize_name(each.name)])]
    assert not unmet, "run `make lock`"


def test_every_pin_has_hashes_and_nothing_names_where_it_came_from() -> None:
    blocks = re.split(r"^(?=[\w.-]+==)", LOCK, flags=re.MULTILINE)[1:]
    assert len(blocks) == len(PINNED)
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", block) for block in blocks)
    assert not re.search(r"://|--index|--find-links|--trusted-host| @ ", LOCK)
