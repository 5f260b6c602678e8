"""What all entry points share: configuration folders, an expert and a main LLM on loopback, and servers."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ctd_guardrail.policy.store import read_policy, write_policy
from tests.nemo.matrix.servers import Servers

__all__ = ["Rig"]


@dataclass
class Rig:
    """A folder for configurations, and the processes that serve them.

    Attributes:
        judge: Expert and main LLM, see ``LoopbackJudge`` in tests/support.
        policy: Policy folder.
        folder: Where configurations are written: a root for a server of several.
        servers: Processes.
    """

    judge: Any
    policy: Path
    folder: Path
    servers: Servers = field(init=False)

    def __post_init__(self) -> None:
        self.servers = Servers(self.folder)

    def write(self, name: str, *, context: str = "conversation", **config: Any) -> Path:
        """Write a configuration with the rail; keyword arguments change whole top-level keys.

        Args:
            name: Of its folder.
            context: The policy's.
            config: Keys of config.yml.
        """
        section = {
            "policy": "policy",
            "alpha": 0.2,
            "delta": 0.1,
            "expert": {"type": "openai", "base_url": self.judge.base_url, "model": "judge", "timeout_s": 10},
            "device": "cpu",
        }
        main = {"type": "main", "engine": "openai", "model": "gpt-4o-mini"}
        content = {
            "import_paths": ["ctd_guardrail/nemo"],
            "custom_data": {"ctd": section},
            "rails": {"input": {"flows": ["ctd check input"]}},
            "models": [main | {"parameters": {"base_url": self.judge.base_url}}],
        }
        folder = self.folder / name
        self._copy_policy(folder / "policy", context)
        (folder / "config.yml").write_text(yaml.safe_dump(content | config))
        return folder

    def _copy_policy(self, folder: Path, context: str) -> None:
        """Copy the policy under another date: a process remembers its judgements by policy."""
        policy = read_policy(self.policy)
        date = dt.datetime(2026, 1, 1, tzinfo=dt.UTC) + dt.timedelta(days=len(list(self.folder.iterdir())))
        fields = policy.manifest.model_dump() | {"created_at": date, "context": context}
        write_policy(folder, fields, policy.probe, policy.calibration)
