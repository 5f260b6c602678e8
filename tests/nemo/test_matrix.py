"""Every entry point of NeMo Guardrails against every verdict, with the calls that each costs."""

import asyncio
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tests.nemo.matrix import chat, colang, colang2, iorails, processes, sidecar  # noqa: F401  # each fills the table
from tests.nemo.matrix.entry_points import CASES, ENTRY_POINTS, Cell, EntryPoint, markdown
from tests.nemo.matrix.rig import Rig
from tests.nemo.matrix.servers import ROOT


@pytest.fixture(scope="module")
def rig(rail_policy: Path, shared_judge: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    rig = Rig(shared_judge, rail_policy, tmp_path_factory.mktemp("configurations"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "a-key")
        sidecar.start(rig)
        processes.start(rig)
        yield rig
    rig.servers.close()


@pytest.mark.parametrize("point", ENTRY_POINTS, ids=lambda point: f"{point.engine}: {point.name}".replace("`", ""))
async def test_entry_point(point: EntryPoint, rig: Rig) -> None:
    observed, expected = {}, {}
    async with point.open(rig) as ask:
        for case in CASES:
            rig.judge.is_down = case.expert_is_down
            before = rig.judge.calls, rig.judge.answers
            seen = await asyncio.wait_for(ask(case.text), 120)
            cell = Cell(seen, rig.judge.calls - before[0], rig.judge.answers - before[1])
            observed[case.name] = cell
            expected[case.name] = point.expected(case, cell)
    assert observed == expected


@pytest.mark.skipif("CTD_TEST_HOST" not in os.environ, reason="the installed version is meant")
def test_the_host_is_the_version_that_is_meant() -> None:
    assert version("nemoguardrails") == os.environ["CTD_TEST_HOST"]


def test_the_page_shows_the_matrix() -> None:
    page = (ROOT / "docs" / "nemo.md").read_text(encoding="utf-8")
    assert markdown() in page, "run python tests/nemo/write_matrix.py"
