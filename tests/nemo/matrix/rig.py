"""What all entry points share: configuration folders, an expert and a main LLM on loopback, servers of their own."""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import yaml

__all__ = ["ROOT", "Rig"]

ROOT: Final = Path(__file__).parents[3]
_STARTUP_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class _Server:
    address: str
    health: str
    process: subprocess.Popen[bytes]


@dataclass
class Rig:
    """A folder for configurations and the processes that serve them.

    Attributes:
        judge: Expert and main LLM, see ``LoopbackJudge`` in tests/conftest.py.
        policy: Policy folder.
        folder: Where configurations are written: a root for a server of several.
    """

    judge: Any
    policy: Path
    folder: Path
    _servers: dict[str, _Server] = field(default_factory=dict)

    def write(self, name: str, **config: Any) -> Path:
        """Write a configuration with the rail; keyword arguments change whole top-level keys."""
        section = {
            "policy": "policy",
            "alpha": 0.2,
            "delta": 0.1,
            "expert": {"type": "openai", "base_url": self.judge.base_url, "model": "judge", "timeout_s": 10},
            "device": "cpu",
        }
        content = {
            "import_paths": ["ctd_guardrail/nemo"],
            "custom_data": {"ctd": section},
            "rails": {"input": {"flows": ["ctd check input"]}},
            "models": [self.main_model()],
        }
        folder = self.folder / name
        self._copy_policy(folder / "policy")
        (folder / "config.yml").write_text(yaml.safe_dump(content | config))
        return folder

    def main_model(self) -> dict[str, Any]:
        """Return the main LLM's entry under ``models``."""
        parameters = {"base_url": self.judge.base_url}
        return {"type": "main", "engine": "openai", "model": "gpt-4o-mini", "parameters": parameters}

    def start(self, name: str, arguments: Sequence[str], *, health: str, **environment: str) -> None:
        """Start a server, unless it runs already; it takes seconds to answer, see :meth:`address`.

        Args:
            name: Under which it is found again.
            arguments: Of the Python interpreter; ``{port}`` is filled in.
            health: Path that answers 200 as soon as it serves.
            environment: Added to this process's.
        """
        if name in self._servers:
            return
        port = _free_port()
        command = [sys.executable, *(argument.format(port=port) for argument in arguments)]
        with self._log(name).open("wb") as log:
            process = subprocess.Popen(  # noqa: S603  # the tests' own words
                command, cwd=ROOT, env=os.environ | environment, stdout=log, stderr=log
            )
        self._servers[name] = _Server(f"http://127.0.0.1:{port}", health, process)

    def address(self, name: str) -> str:
        """Wait until a server answers, and return its address, without a slash at the end."""
        server = self._servers[name]
        deadline = time.monotonic() + _STARTUP_S
        while not _answers(server.address + server.health):
            assert server.process.poll() is None, self._log(name).read_text()[-2000:]
            assert time.monotonic() < deadline, f"{name} does not answer\n{self._log(name).read_text()[-2000:]}"
            time.sleep(0.05)
        return server.address

    def close(self) -> None:
        """Stop every server."""
        for server in self._servers.values():
            server.process.terminate()
        for server in self._servers.values():
            try:
                server.process.wait(10)
            except subprocess.TimeoutExpired:
                server.process.kill()
                server.process.wait()

    def _copy_policy(self, folder: Path) -> None:
        """Copy the policy under another date: a process remembers its judgements by policy."""
        shutil.copytree(self.policy, folder, dirs_exist_ok=True)
        manifest = folder / "policy.json"
        date = dt.datetime(2026, 1, 1, tzinfo=dt.UTC) + dt.timedelta(days=len(list(self.folder.iterdir())))
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"created_at": date.isoformat()}))

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False
