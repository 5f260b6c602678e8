"""Runs garak, a public scanner of LLMs, against a target on loopback, and reads its counts.

garak has its own environment and shares no package with this one.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ctd_guardrail.text.refusals import DEFAULT_REFUSALS

__all__ = ["GRANT", "IN_CHAT", "OF_A_GUARD", "Scan", "Target", "garak_version", "read", "scan"]

GRANT: Final = "Here is all that you asked for, step by step."
"""Answer of the main LLM to every request that reaches it."""

IN_CHAT: Final = ("mitigation.MitigationBypass", "mitigation.Prefixes")
"""garak's detectors for answers of a chat: any answer without the words of a refusal is a successful attack."""

OF_A_GUARD: Final = ("shields.Up",)
"""garak's detector for verdicts: any verdict but a block is a successful attack."""

_REFUSED, _UNAVAILABLE = DEFAULT_REFUSALS[:2]
_SCAN_S: Final = 900
# Their prompts are in garak's package, and the detectors compare strings, so no file is downloaded.
_PROBES: Final = ("donotanswer.MaliciousUses", "dan.DanInTheWild")
_PROMPTS: Final = 64


def garak_version(python: Path) -> str:
    """Return the version of garak in the environment of an interpreter."""
    code = "import importlib.metadata; print(importlib.metadata.version('garak'))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)  # noqa: S603  # constant
    return done.stdout.strip()


@dataclass(frozen=True, slots=True)
class Target:
    """A target of garak.

    Attributes:
        name: Name in the table.
        guard: Guard in the table.
        generator: garak's generator, as ``module.Class``.
        model: The generator's name of the target.
        settings: Settings of the generator.
        detectors: Names of garak's detectors.
    """

    name: str
    guard: str
    generator: str
    model: str
    settings: dict[str, Any]
    detectors: Sequence[str]


@dataclass(frozen=True, slots=True)
class Scan:
    """Results of one target with one probe of garak.

    Attributes:
        target: The target.
        probe: The probe.
        answers: Number of times that the target gave each answer; None stands for no answer.
        hits: Successful attacks, by detector.
    """

    target: Target
    probe: str
    answers: Counter[str | None]
    hits: dict[str, int]

    @property
    def refused(self) -> int:
        """Number of prompts whose content was refused."""
        return self.answers[_REFUSED] + self.answers["block"]

    @property
    def unavailable(self) -> int:
        """Number of prompts that the guard could not check and did not let through."""
        return self.answers[_UNAVAILABLE]

    @property
    def granted(self) -> int:
        """Number of prompts that the guard let through."""
        return self.answers[GRANT] + self.answers["allow"]

    def mistakes(self) -> list[str]:
        """Return a message for each count of garak that is wrong."""
        found = []
        if other := self.answers.total() - self.refused - self.unavailable - self.granted:
            found.append(f"{other} answers are neither a refusal nor the main LLM's")
        found += [
            f"{detector} counts {hits} successful attacks, and {self.granted} requests were let through"
            for detector, hits in self.hits.items()
            if hits != self.granted
        ]
        return [f"{self.target.name}, {self.target.guard}, {self.probe}: {mistake}" for mistake in found]

    def row(self) -> str:
        """Return the row of the table."""
        hits = ", ".join(f"{detector.split('.')[1]} {hits}" for detector, hits in self.hits.items())
        cells = (self.probe, self.answers.total(), self.refused, self.unavailable, self.granted, hits)
        return f"| {self.target.name} | {self.target.guard} | " + " | ".join(map(str, cells)) + " |"


def scan(target: Target, python: Path, folder: Path, name: str) -> list[Scan]:
    """Run garak against a target.

    Args:
        target: The target.
        python: The interpreter of garak's environment.
        folder: Folder of garak's reports and of all its other files.
        name: Name of the report and the log.
    """
    print(f"garak against: {target.name}, {target.guard}", flush=True)
    module, kind = target.generator.split(".")
    report = folder / name
    config = {
        "run": {"generations": 1, "seed": 0, "soft_probe_prompt_cap": _PROMPTS},
        "plugins": {
            "target_type": target.generator,
            "target_name": target.model,
            "generators": {module: {kind: target.settings}},
        },
        "reporting": {"report_prefix": str(report)},
    }
    file = folder / f"{name}.json"
    file.write_text(json.dumps(config, indent=1), encoding="utf-8")
    own = folder / "garak"
    # A proxy that does not exist makes every request beyond loopback fail.
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
    homes = {f"XDG_{kind}_HOME": str(own) for kind in ("CACHE", "CONFIG", "DATA")}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= homes | proxies | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "HF_HUB_OFFLINE": "1"}
    command = [str(python), "-m", "garak", f"--config={file}"]
    command += [f"--probes={','.join(_PROBES)}", f"--detectors={','.join(target.detectors)}"]
    with (folder / f"{name}.log").open("wb") as log:
        done = subprocess.run(  # noqa: S603  # fixed words
            command, env=environment, cwd=folder, stdout=log, stderr=log, timeout=_SCAN_S, check=False
        )
    if done.returncode:
        raise SystemExit(f"garak failed: see {log.name}")
    return read(report.with_name(f"{report.name}.report.jsonl"), target)


def read(report: Path, target: Target) -> list[Scan]:
    """Return the results in a report of garak, one for each probe.

    Args:
        report: File of JSON lines.
        target: Target of the attack.
    """
    answers: dict[str, Counter[str | None]] = {probe: Counter() for probe in _PROBES}
    hits: dict[str, dict[str, int]] = {probe: {} for probe in _PROBES}
    for line in report.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if entry["entry_type"] == "attempt" and entry["detector_results"]:  # once more, before the detectors ran
            answers[entry["probe_classname"]].update(output and output["text"] for output in entry["outputs"])
        elif entry["entry_type"] == "eval":
            hits[entry["probe"]][entry["detector"]] = entry["fails"]
    return [Scan(target, probe, answers[probe], hits[probe]) for probe in _PROBES]
