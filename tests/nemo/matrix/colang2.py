"""``LLMRails`` with a configuration in Colang 2.x."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from typing import Any, Final

from nemoguardrails import LLMRails, RailsConfig

from tests.nemo.matrix.colang import asking
from tests.nemo.matrix.entry_points import Ask, Seen, entry_point
from tests.nemo.matrix.rig import Rig
from tests.nemo.matrix.seen import seen_in_text
from tests.nemo.matrix.servers import ROOT

_ENGINE: Final = "Colang 2.x"
_MAIN: Final = ROOT / "config_examples" / "colang2" / "main.co"


def app(rig: Rig, name: str, **config: Any) -> LLMRails:
    """Build an app whose flows are those of the configuration example."""
    folder = rig.write(name, colang_version="2.x", import_paths=[], rails={}, **config)
    shutil.copy(_MAIN, folder)
    return LLMRails(RailsConfig.from_path(str(folder)))


@entry_point("`LLMRails.generate_async`", _ENGINE)
async def colang2_generate_async(rig: Rig) -> AsyncIterator[Ask]:
    yield asking(app(rig, "colang2"))


@entry_point("`LLMRails.process_events_async`", _ENGINE)
async def colang2_events(rig: Rig) -> AsyncIterator[Ask]:
    rails = app(rig, "colang2_events")

    async def ask(text: str) -> Seen:
        said = {"type": "UtteranceUserActionFinished", "final_transcript": text}
        events, _ = await rails.process_events_async([said], blocking=True)
        return seen_in_text("".join(event["script"] for event in events if event["type"] == "StartUtteranceBotAction"))

    yield ask
