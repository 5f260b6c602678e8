"""The kinds of probe: reductions of the projections of a window's tokens to the heads of the window.

A component's columns are linear in the token's activation, so all components share one matrix product. The reductions
read a few numbers a token. Biases are added later: the mean, running mean, weighted mean and maximum of x + b are those
of x, plus b.

Source: arXiv 2601.11516 compares running and rolling means with a maximum, attention with several heads, and MultiMax.
In long contexts softmax attention raises false alarms, and MultiMax does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import torch

from ctd_guardrail.probes.segments import Segments
from ctd_guardrail.probes.spec import Component, Reduction

__all__ = ["matrix", "reduce"]

# A token whose share in a running mean is smaller cannot change a float32.
_NEGLIGIBLE: Final = 2.0**-30


def matrix(component: Component, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the component's projection, shape [columns, width].

    Args:
        component: The component.
        tensors: Its parameters, with the names of :meth:`Component.shapes`.
    """
    width = next(iter(tensors.values())).shape[-1]
    return torch.cat([tensors[name].reshape(-1, width) for name in component.shapes(width)])


def reduce(component: Component, columns: torch.Tensor, segments: Segments) -> torch.Tensor:
    """Return the contribution of the component to its heads, shape [segments, outputs].

    Args:
        component: The component.
        columns: Projections of the tokens, shape [T, columns].
        segments: One for each window.
    """
    return _REDUCTIONS[component.reduction](component, columns, segments)


def _mean(component: Component, columns: torch.Tensor, segments: Segments) -> torch.Tensor:
    del component
    return segments.reduce(columns, "mean")


def _ema(component: Component, columns: torch.Tensor, segments: Segments) -> torch.Tensor:
    """Largest m_t of the running mean m_1 = x_1, m_t = decay m_(t-1) + (1 - decay) x_t.

    Doubling: after step s, m_t holds the last 2 s terms. All weights are positive, so no digits cancel.
    """
    first = (segments.position == 0)[:, None]
    running, step = torch.where(first, columns, (1.0 - component.decay) * columns), 1
    while step < segments.longest and component.decay**step > _NEGLIGIBLE:
        running = running + component.decay**step * segments.shift(running, step)
        step *= 2
    return segments.reduce(running, "max")


def _rolling(component: Component, columns: torch.Tensor, segments: Segments) -> torch.Tensor:
    """Largest mean over ``span`` neighbouring tokens; a shorter window is one span.

    Sums of 1, 2, 4, ... tokens are added for each bit of the span.
    """
    span = min(component.span, segments.longest)
    total, done = torch.zeros_like(columns), 0
    power, size = columns, 1
    while True:
        if span & size:
            total = total + segments.shift(power, done)
            done += size
        if done == span:
            break
        power = power + segments.shift(power, size)
        size *= 2
    tokens = segments.lengths.clamp(max=span)[segments.number]
    is_whole = (segments.position + 1 >= tokens)[:, None]
    return segments.reduce(torch.where(is_whole, total / tokens[:, None], -torch.inf), "max")


def _attention(component: Component, columns: torch.Tensor, segments: Segments) -> torch.Tensor:
    """Sum over heads of the mean of the head's values, weighted by the softmax of its queries over the tokens."""
    heads = component.heads
    query, value = columns[:, :heads], columns[:, heads:].unflatten(1, (-1, heads))
    # Softmax does not depend on a constant offset. Subtracting the maximum prevents overflow.
    top = segments.reduce(query.detach(), "max")
    weight = torch.exp(query - top[segments.number])
    weighted = segments.reduce((weight[:, None] * value).flatten(1), "sum").unflatten(1, (-1, heads))
    mean: torch.Tensor = weighted / segments.reduce(weight, "sum")[:, None]
    return mean.sum(dim=2)


def _multimax(component: Component, columns: torch.Tensor, segments: Segments) -> torch.Tensor:
    """Sum over heads of the head's largest value."""
    largest: torch.Tensor = segments.reduce(columns, "max").unflatten(1, (-1, component.heads))
    return largest.sum(dim=2)


_REDUCTIONS: Final[Mapping[Reduction, Callable[[Component, torch.Tensor, Segments], torch.Tensor]]] = {
    "mean": _mean,
    "ema": _ema,
    "rolling": _rolling,
    "attention": _attention,
    "multimax": _multimax,
}
