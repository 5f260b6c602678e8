"""Times of several variants of one task, measured in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

__all__ = ["Stopwatch"]


@dataclass(frozen=True)
class Stopwatch:
    """Measures the process's CPU time; on a GPU, the time until the device is idle.

    Attributes:
        device: Device that does the work.
    """

    device: str

    def seconds(self, work: Callable[[], object]) -> float:
        """Return the seconds of one run."""
        start = self._now()
        work()
        return self._now() - start

    def medians(self, variants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
        """Return the median seconds of each variant. Variants take turns, every second round in reverse order."""
        for work in variants.values():
            work()
        times: dict[str, list[float]] = {name: [] for name in variants}
        for number in range(rounds):
            for name in variants if number % 2 else reversed(list(variants)):
                times[name].append(self.seconds(variants[name]))
        return {name: statistics.median(values) for name, values in times.items()}

    def _now(self) -> float:
        if not self.device.startswith("cuda"):
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()
