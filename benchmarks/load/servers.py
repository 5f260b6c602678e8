"""Servers of a run on loopback: the sidecar, NeMo's own server, and a judge that fails for a known share of texts."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime as dt
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import yaml

from benchmarks.load.memory import resident_mib
from benchmarks.load.traffic import Answer, Door, text, tickets
from ctd_guardrail.activations.base_model import load_base_model
from ctd_guardrail.activations.spec import ActivationSpec
from ctd_guardrail.policy.store import CalibrationScores, write_policy
from ctd_guardrail.probes.probes import Probes
from ctd_guardrail.probes.spec import ProbeSpec
from ctd_guardrail.probes.windows import over_windows
from ctd_guardrail.sidecar.server import serve
from ctd_guardrail.sidecar.settings import ServeSettings
from ctd_guardrail.text.conversation import Conversation

__all__ = ["ALPHA", "CALIBRATION", "DOORS", "Server", "free_port", "judge", "process", "server", "wait", "write_folder"]

DOORS: Final = ("sidecar", "llmrails", "iorails")
CALIBRATION: Final = 1_000
ALPHA: Final = 0.2
_LAG_EVERY_S: Final = 0.01


def write_folder(folder: Path, *, model: str, layer: int, judge: str, timeout_s: float) -> Path:
    """Write a policy that delegates about a fifth of the traffic, and a configuration around it; return the folder."""
    spec = ActivationSpec(model=model, layers=(layer,), site="residual")
    engine = load_base_model(spec, device="cpu")
    rng = np.random.default_rng(0)
    tensors = {
        "0.weight": rng.normal(size=(4, engine.width)).astype(np.float32),
        "bias": np.zeros(4, np.float32),
    }
    rows = engine.run_many(
        [Conversation.from_text(text(number)) for number in itertools.islice(tickets(), CALIBRATION)],
        Probes(ProbeSpec(), tensors),
    )
    p, d = np.array([over_windows(each) for each in rows], np.float64).T
    manifest = {
        "created_at": dt.datetime.now(dt.UTC),
        "versions": {},
        "activations": spec,
        "fingerprint": engine.fingerprint,
        "expert": "recorded:expert",
        "calibration": {"rows": CALIBRATION, "alpha": ALPHA, "delta": 0.05, "seed": 0},
        "data": [],
        "training": {},
        "evaluation": {},
    }
    write_policy(folder / "policy", manifest, tensors, CalibrationScores.from_rows(d=d, p=p))
    expert = {"type": "openai", "base_url": judge, "model": "judge", "timeout_s": timeout_s}
    content = {
        "import_paths": ["ctd_guardrail/nemo"],
        "custom_data": {"ctd": {"policy": "./policy", "expert": expert, "device": "cpu"}},
        "rails": {"input": {"flows": ["ctd check input"]}},
    }
    (folder / "config.yml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder


@dataclass(frozen=True, slots=True)
class Server:
    """A server under measurement.

    Attributes:
        pid: Process of the server.
        door: Address and format of its requests.
        stats: File of the event loop's delays, written when the server ends. None for NeMo's own servers.
    """

    pid: int
    door: Door
    stats: Path | None

    def resident_mib(self) -> float:
        """Return the resident memory of the server in MiB."""
        return resident_mib(self.pid)


@contextlib.contextmanager
def judge(share: float) -> Iterator[str]:
    """Run the judge in a process of its own, and yield its address."""
    command = [sys.executable, "-m", "benchmarks.load.faulty_judge", f"--share={share}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603  # a module of this package
        assert process.stdout is not None  # noqa: S101  # a pipe was asked for
        yield process.stdout.readline().strip()
        process.terminate()


@contextlib.contextmanager
def server(door: str, folder: Path) -> Iterator[Server]:
    """Run a server in a process of its own until the block ends."""
    port = free_port()
    address, environment = f"http://127.0.0.1:{port}", dict(os.environ)
    stats = folder / "delays.json" if door == "sidecar" else None
    if door == "sidecar":
        command = [sys.executable, "-m", "benchmarks.load.servers", str(folder), f"--port={port}"]
        opened = Door(f"{address}/v1/check", _sidecar_body, _read_sidecar)
    else:
        module = "nemoguardrails" if door == "llmrails" else "ctd_guardrail.nemo"
        command = [sys.executable, "-m", module, "server", f"--port={port}", "--disable-chat-ui", f"--config={folder}"]
        environment["NEMO_GUARDRAILS_IORAILS_ENGINE"] = "1" if door == "iorails" else "0"
        opened = Door(f"{address}/v1/checks", partial(_checks_body, config=folder.name), _read_checks)
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:  # noqa: S603  # fixed words
        wait(f"{address}/health/ready" if door == "sidecar" else f"{address}/v1/rails/configs", process)
        yield Server(process.pid, opened, stats)
        process.send_signal(signal.SIGINT)
        process.wait(60)


def free_port() -> int:
    """Return a free port."""
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port: int = reserved.getsockname()[1]
    return port


def wait(url: str, process: subprocess.Popen[bytes], *, log: Path | None = None) -> None:
    """Wait until an address answers with success; otherwise exit with the log of its process."""
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url).is_success:
                return
        time.sleep(0.1)
    raise SystemExit(f"nothing answers at {url}\n{'' if log is None else log.read_text(encoding='utf-8')}")


def _sidecar_body(message: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": message}]}


def _read_sidecar(reply: Any) -> Answer:
    return Answer(reply["verdict"], reply["route"], reply["reason"])


def _checks_body(message: str, *, config: str) -> dict[str, Any]:
    return _sidecar_body(message) | {"model": "gpt-4o-mini", "guardrails": {"config_id": config}}


def _read_checks(reply: Any) -> Answer:
    return Answer("allow" if reply["status"] == "passed" else "block")


def run_sidecar(folder: Path, port: int) -> None:
    """Serve, and record the delays of the event loop."""
    delays: list[float] = []

    async def main() -> None:
        async def watch() -> None:
            while True:
                due = time.perf_counter() + _LAG_EVERY_S
                await asyncio.sleep(_LAG_EVERY_S)
                delays.append(time.perf_counter() - due)

        watching = asyncio.create_task(watch())
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, delays.clear)
        await serve(folder, ServeSettings(port=port))
        watching.cancel()

    asyncio.run(main())
    shares = {f"p{share:g}": 1000 * float(np.percentile(delays, share)) for share in (50, 99, 99.9, 100)}
    (folder / "delays.json").write_text(json.dumps(shares), encoding="utf-8")


@contextlib.contextmanager
def process(command: list[str], log: Path, health: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process, wait until it is healthy, and stop it when the block ends."""
    with (
        log.open("wb") as file,
        subprocess.Popen(command, env=os.environ | environment, stdout=file, stderr=file) as running,  # noqa: S603
    ):
        try:
            wait(health, running, log=log)
            yield running
        finally:
            running.terminate()
            running.wait(60)


def main() -> None:
    """Serve a folder until the process is interrupted."""
    parser = argparse.ArgumentParser(description=run_sidecar.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    run_sidecar(options.folder, options.port)


if __name__ == "__main__":
    main()
