"""``ctd-calibrate prompts``: the rows as token ids, for vLLM to compute their hidden states."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from calibrate.compute.progress import progress_bars
from calibrate.config.file import load_config
from calibrate.rows.data import read_dataset
from calibrate.rows.turns import collect_turns
from ctd_guardrail.cli.console import exit_on_error
from ctd_guardrail.errors import ActivationError, InputError, OverlongError
from ctd_guardrail.runtime.files import write_whole

__all__ = ["prompts"]


def prompts(
    config: Annotated[Path, typer.Argument(metavar="CALIBRATE.yml", help="Settings of the calibration.")],
    to: Annotated[Path, typer.Argument(metavar="FILE", help="JSON lines to write.")],
) -> None:
    """Let vLLM compute the activations of the rows: write them as requests.

    Each line of FILE is a request to vLLM's /v1/completions, for one window of one turn: token ids, one new token. Send
    all of them. Turns that are too long are left out: the base model does not read them. vLLM with the method
    extract_hidden_states writes the hidden states of each to its shared_storage_path.

    Name that folder in CALIBRATE.yml. `ctd-calibrate run` then reads it instead of running the base model:

    [dim]hidden_states: {path: /shared/hidden}[/]

    [bold]$ ctd-calibrate prompts CALIBRATE.yml requests.jsonl[/bold]

    Exit status: 0 done, 2 bad input.
    """
    console = Console(stderr=True)
    with exit_on_error():
        settings = load_config(config)
        from ctd_guardrail.activations.huggingface import open_tokenizer  # noqa: PLC0415  # torch

        tokenizer = open_tokenizer(settings.base.spec)
        windows: dict[tuple[int, ...], None] = {}
        with progress_bars(console) as progress:
            for paths in filter(None, (settings.data.path, settings.data.safety_path)):
                dataset = read_dataset(paths, context=settings.data.context, for_budget=True)
                turns = collect_turns(dataset, np.arange(len(dataset)))
                for place in progress.track(turns.readable.tolist(), description="Turns"):
                    try:
                        windows |= dict.fromkeys(tokenizer(turns.units[place]))
                    except OverlongError:
                        continue
                    except (InputError, ActivationError) as error:
                        raise dataset.error(turns.rows[place], error.problem, hint=error.hint) from error
        model = settings.base.model
        lines = (json.dumps({"model": model, "prompt": list(window), "max_tokens": 1}) for window in windows)
        write_whole(to, ("\n".join(lines) + "\n").encode("ascii"))
    console.print(f"{to}: {len(windows)} requests", soft_wrap=True)
