"""The rail as a service, behind NeMo's own rail for classifiers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from nemoguardrails import Guardrails, RailsConfig

from tests.nemo.matrix.colang import asking
from tests.nemo.matrix.entry_points import Ask, Seen, entry_point
from tests.nemo.matrix.rig import Rig


def start(rig: Rig) -> None:
    """Start a sidecar for each engine: one of them remembers what it has judged."""
    arguments = ["-m", "ctd_guardrail.cli", "serve", "--port={port}", "--drain-delay=0"]
    for use_iorails in (False, True):
        name = _name(use_iorails=use_iorails)
        rig.servers.start(name, [*arguments, f"--config={rig.write(f'behind_{name}')}"], health="/health/ready")


def _name(*, use_iorails: bool) -> str:
    return "sidecar of IORails" if use_iorails else "sidecar of Colang"


async def behind_classifier(rig: Rig, *, use_iorails: bool) -> AsyncIterator[Ask]:
    """NeMo asks the sidecar as it would ask a detector."""
    address = await asyncio.to_thread(rig.servers.address, _name(use_iorails=use_iorails))
    classifier = {"engine": "fms", "model": "ctd", "base_url": address, "blocked_labels": ["ctd_block"]}
    rails: dict[str, Any] = {
        "config": {"hf_classifier": {"ctd": classifier}},
        "input": {"flows": ['hf classifier check input $classifier="ctd"']},
    }
    folder = rig.write(f"sidecar_{use_iorails}", import_paths=[], custom_data={}, rails=rails)
    app = Guardrails(RailsConfig.from_path(str(folder)), use_iorails=use_iorails, require_iorails=use_iorails)
    async with app:
        yield asking(app)


for engine, use_iorails in (("Colang 1.0", False), ("IORails", True)):
    entry_point("`ctd-guardrail serve` behind `hf classifier check input`", engine, broken=Seen.REFUSED)(
        partial(behind_classifier, use_iorails=use_iorails)
    )
