"""Every code block of the documentation runs."""

import json
import os
import random
import re
import runpy
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
import yaml
from nemoguardrails import RailsConfig
from pydantic import BaseModel, ConfigDict

from calibrate.config.file import load_config
from ctd_guardrail.assembly.folder import read_folder
from ctd_guardrail.config.experts import ExpertConfig
from ctd_guardrail.config.validation import validate
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "config_examples").glob("*.md"))]
# Commands that change the machine, or that a test of its own runs.
ELSEWHERE = re.compile(r"(make|pip|git|python -m benchmarks\.|ctd-guardrail export)\b")


class Block(NamedTuple):
    page: str
    line: int
    language: str
    text: str


def blocks(*languages: str) -> list[object]:
    return [
        pytest.param(block, id=f"{block.page}:{block.line}") for block in all_blocks() if block.language in languages
    ]


def all_blocks() -> Iterator[Block]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"^ *```(\w*)\n(.*?)^ *```$", text, flags=re.MULTILINE | re.DOTALL):
            yield Block(page.name, text.count("\n", 0, match.start()) + 1, match[1], match[2])


def test_blocks_are_of_a_kind_that_is_run() -> None:
    languages = {block.language for block in all_blocks()}
    assert languages <= {"python", "yaml", "console", "json", ""}


@pytest.mark.parametrize("page", sorted({block.page for block in all_blocks() if block.language == "python"}))
def test_python(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The blocks of a page are one session, as a reader would type it.
    session = [block.text for block in all_blocks() if (block.page, block.language) == (page, "python")]
    script = tmp_path / "session.py"
    script.write_text("\n".join(session), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script), run_name="__main__")


@pytest.mark.parametrize("block", blocks("json"))
def test_json(block: Block) -> None:
    assert all(json.loads(line) for line in block.text.splitlines())


class _ExpertOnly(BaseModel):
    model_config = ConfigDict(extra="forbid")
    expert: ExpertConfig


@pytest.mark.parametrize("block", blocks("yaml"))
def test_yaml(block: Block, tmp_path: Path) -> None:
    content = yaml.safe_load(block.text)
    if "custom_data" in content:
        (tmp_path / "config.yml").write_text(block.text)
        read_folder(tmp_path)
    elif "rails" in content:
        RailsConfig.from_content(yaml_content=block.text)
    elif "base" in content:
        (tmp_path / "CALIBRATE.yml").write_text(block.text)
        load_config(tmp_path / "CALIBRATE.yml")
    else:
        validate(_ExpertOnly, content)


@pytest.fixture
def workspace(make_rail_folder: Callable[..., Path], tiny_bert: Path, tmp_path: Path) -> Path:
    """A folder with everything that the documentation's commands speak of."""
    rng = random.Random(0)
    (tmp_path / "config").symlink_to(make_rail_folder(), target_is_directory=True)
    rows = [
        {"text": " ".join(rng.choices("abcdefgh", k=9)), "label": i % 2, "expert": rng.random()} for i in range(300)
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "messages.txt").write_text("a plain question\nan odd question\n")
    (tmp_path / "messages.jsonl").write_text(json.dumps({"id": "1", "text": "a plain question"}) + "\n")
    rows = "".join(f"{rng.random() - 0.5},{number // 2}\n" for number in range(3000))
    (tmp_path / "traffic.csv").write_text("dv,conversation\n" + rows)
    (tmp_path / "scores.csv").write_text("dv\n" + "".join(f"{rng.random()}\n" for _ in range(1000)))
    (tmp_path / "CALIBRATE.yml").write_text(
        f"base: {{model: {tiny_bert}, layers: 1, site: residual}}\n"
        "data: {path: prompts.jsonl, expert_column: expert}\nbudget: {alpha: 0.2, delta: 0.1}\noutput: ./policy\n"
    )
    return tmp_path


@pytest.mark.parametrize("block", blocks("console"))
def test_console(block: Block, workspace: Path) -> None:
    commands = [line[2:].split("  #")[0].strip() for line in block.text.splitlines() if line.startswith("$ ")]
    assert commands
    with ExitStack() as servers, socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
        free.close()
        for command in commands:
            if ELSEWHERE.match(command):
                continue
            if "--policy" in command:
                run("ctd-calibrate run CALIBRATE.yml", workspace)
            if command.endswith("&"):
                servers.enter_context(serving(command.removesuffix("&").replace("8080", port), port, workspace))
            else:
                run(command.replace("8080", port), workspace)


def environment() -> dict[str, str]:
    return os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "COLANGPATH": str(ROOT),  # as docs/nemo.md says for an editable installation
    }


def run(command: str, folder: Path) -> None:
    # The documentation's commands are written for a shell.
    done = subprocess.run(  # noqa: S602
        command, shell=True, cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stderr}"


def is_ready(port: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"http://127.0.0.1:{port}/health/ready").is_success
    return False


@contextmanager
def serving(command: str, port: str, folder: Path) -> Iterator[None]:
    """A server that a command starts in the background, from ready to its end on request."""
    arguments = [*shlex.split(command), "--drain-delay", "0"]
    server = subprocess.Popen(arguments, cwd=folder, env=environment(), stderr=subprocess.DEVNULL)  # noqa: S603
    try:
        wait_until(lambda: server.poll() is not None or is_ready(port), every_s=0.1)
        assert server.poll() is None, command
        yield
    finally:
        server.terminate()
        assert server.wait(60) == 0
