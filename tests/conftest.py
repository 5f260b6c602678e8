"""Tiny base models with random weights, made on the spot, and a whole rail around one of them.

Tests need no download, and no network but loopback.
"""

# Only tests that use a model pay for importing torch; tokens such as [PAD] are no passwords.
# ruff: noqa: PLC0415, S106

from __future__ import annotations

import asyncio
import datetime as dt
import json
import logging
import os
import string
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml

if TYPE_CHECKING:
    from ctd_guardrail.runtime.runtime import Runtime

# Before anything imports torch or transformers.
os.environ.update(HF_HUB_OFFLINE="1", DO_NOT_TRACK="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", choices=("reduced", "full"), default="reduced", help="trials of tests/faults")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # The timeout in pyproject.toml is for a few trials.
    is_full = config.getoption("--faults") == "full"
    for item in items:
        if (is_full or item.get_closest_marker("slow")) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(3600))


@pytest.fixture(autouse=True)
def runtime() -> Iterator[Runtime]:
    """A fresh runtime for each test: what one test has decided must not answer for another."""
    from ctd_guardrail.runtime.runtime import Runtime

    for earlier in Runtime.all():  # those of fixtures with a wider scope
        earlier.decisions.clear()
        earlier.answers.clear()
    with Runtime().as_default() as fresh:
        yield fresh
    fresh.close()


@pytest.fixture(autouse=True)
def _root_logger_as_python_has_it() -> None:
    # NeMo's server sets it to INFO when it is imported, and other tests count what is logged.
    logging.getLogger().setLevel(logging.WARNING)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT encoder (2 layers, width 32, 128 positions) with a WordPiece tokenizer over single characters."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny_bert")
    characters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *[f"##{c}" for c in characters]]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(folder)
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=128,
            # The usual .02 makes so small a model nearly constant.
            initializer_range=0.5,
        )
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama decoder (3 layers, width 32, 256 positions) with a byte-level tokenizer and a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny_llama")
    vocabulary = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=_CHAT_TEMPLATE,
    ).save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=64,
            max_position_embeddings=256,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            initializer_range=0.3,
        )
    ).save_pretrained(folder)
    return folder


class LoopbackJudge:
    """OpenAI-compatible models: judges that find texts with the word `harmful` unsafe, and main LLMs that answer.

    Attributes:
        calls: Number of calls to the judges.
        answers: Number of calls to the main LLMs, the models `gpt-...`.
        answered_models: Names of the main LLMs that were called, in order.
        answered_bodies: The bodies of these calls.
        is_down: Whether judges answer with HTTP 503.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.answered_models: list[str] = []
        self.answered_bodies: list[str] = []
        self.is_down = False
        judge = self
        counting = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                request = json.loads(body)
                if request["model"].startswith("gpt-"):
                    judge.answered_models.append(request["model"])
                    judge.answered_bodies.append(json.dumps(request, ensure_ascii=False))
                    self.answer(is_streamed=request.get("stream", False))
                    return
                with counting:
                    judge.calls += 1
                p = 0.98 if "harmful" in body else 0.02
                if not request.get("logprobs"):
                    self.close_connection = True  # as below
                    verdict = json.dumps({"User Safety": "unsafe" if p > 0.5 else "safe"})
                    self.reply(503 if judge.is_down else 200, {"message": {"role": "assistant", "content": verdict}})
                    return
                alternatives = [{"token": "Yes", "logprob": np.log(p)}, {"token": "No", "logprob": np.log1p(-p)}]
                token = {"token": "No", "logprob": 0.0, "top_logprobs": alternatives}
                choice = {"message": {"role": "assistant", "content": "No"}, "logprobs": {"content": [token]}}
                self.reply(503 if judge.is_down else 200, choice)

            def answer(self, *, is_streamed: bool) -> None:
                # NeMo keeps connections for the event loop that opened them, and asks again from any other loop.
                self.close_connection = True
                if not is_streamed:
                    self.reply(200, {"message": {"role": "assistant", "content": "the main LLM's answer"}})
                    return
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Connection", "close")
                self.end_headers()
                deltas = [{"role": "assistant", "content": "the main"}, {"content": " LLM's"}, {"content": " answer"}]
                for delta in [*deltas, {}]:
                    choice = {"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}
                    chunk = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m"}
                    self.wfile.write(f"data: {json.dumps(chunk | {'choices': [choice]})}\n\n".encode())
                self.wfile.write(b"data: [DONE]\n\n")

            def reply(self, status: int, choice: dict[str, Any]) -> None:
                choice |= {"index": 0, "finish_reason": "stop"}
                completion = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
                raw = json.dumps(completion).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.send_header("Connection", "close" if self.close_connection else "keep-alive")
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 128
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                """Say nothing of clients that leave."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def answers(self) -> int:
        return len(self.answered_models)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def judge() -> Iterator[LoopbackJudge]:
    server = LoopbackJudge()
    yield server
    server.close()


@pytest.fixture(scope="session")
def shared_judge() -> Iterator[LoopbackJudge]:
    """For processes that serve many tests: these take its counts as differences."""
    server = LoopbackJudge()
    yield server
    server.close()


# Text -> (p, d) of the policy that `make_rail_folder` writes; its threshold lies between the two values of d.
RAIL_TEXTS = {
    "a plain question": (0.1, 0.0),
    "a plain threat": (0.9, 0.0),
    "an odd question": (0.9, 0.9),
    "an odd and harmful wish": (0.1, 0.9),
}


@pytest.fixture(scope="session")
def rail_policy(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy on `tiny_bert` whose probes give the scores of RAIL_TEXTS exactly: one linear head fits few texts."""
    from ctd_guardrail.activations.base_model import load_base_model
    from ctd_guardrail.activations.spec import ActivationSpec
    from ctd_guardrail.policy.store import CalibrationScores, write_policy
    from ctd_guardrail.probes.ragged import segment_mean
    from ctd_guardrail.text.conversation import Conversation

    spec = ActivationSpec(model=str(tiny_bert), layers=(1,), site="residual")
    engine = load_base_model(spec, device="cpu")
    pooled = np.concatenate(engine.run_many([Conversation.from_text(text) for text in RAIL_TEXTS], segment_mean))
    wanted = []
    for p, d in RAIL_TEXTS.values():
        unsafe = 20.0 if p < 0.5 else -20.0
        # d = eta (e1 - p) + (1 - eta)(p - e0): the expert is right where d is large, and agrees with p elsewhere.
        wanted.append([np.log(p / (1 - p)), unsafe, 1.0, 0.0] if d else [np.log(p / (1 - p)), 0.0, p, p])
    augmented = np.hstack([pooled, np.ones((len(pooled), 1))]).astype(np.float64)
    solution = np.linalg.lstsq(augmented, np.array(wanted), rcond=None)[0].T
    probe = {
        "0.weight": solution[:, :-1].astype(np.float32),
        "bias": solution[:, -1].astype(np.float32),
    }
    n = 200
    folder = tmp_path_factory.mktemp("policy")
    write_policy(
        folder,
        {
            "created_at": dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
            "versions": {},
            "activations": spec,
            "fingerprint": engine.fingerprint,
            "expert": "recorded:expert",
            "calibration": {"rows": n, "alpha": 0.2, "delta": 0.1, "seed": 0},
            "data": [],
            "training": {},
            "evaluation": {},
        },
        probe,
        CalibrationScores.from_rows(d=np.linspace(-0.5, 0.6, n), p=np.linspace(0, 1, n)),
    )
    return folder


@pytest.fixture
def make_rail_folder(rail_policy: Path, tmp_path: Path, judge: LoopbackJudge) -> Callable[..., Path]:
    """Write a NeMo Guardrails folder with the rail; keyword arguments change `custom_data.ctd`, `config` the rest."""

    def make(*, config: dict[str, Any] | None = None, **changes: Any) -> Path:
        section = {
            "policy": os.path.relpath(rail_policy, tmp_path / "rails"),
            "alpha": 0.2,
            "delta": 0.1,
            "expert": {"type": "openai", "base_url": judge.base_url, "model": "judge", "timeout_s": 5},
            "device": "cpu",
        }
        content = {
            "import_paths": ["ctd_guardrail/nemo"],
            "custom_data": {"ctd": section | changes},
            "rails": {"input": {"flows": ["ctd check input"]}},
        }
        folder = tmp_path / "rails"
        folder.mkdir(exist_ok=True)
        (folder / "config.yml").write_text(yaml.safe_dump(content | (config or {})))
        return folder

    return make


@pytest.fixture
def host_loops(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close the event loops that NeMo's synchronous calls make for each thread and never close."""
    loops: list[asyncio.AbstractEventLoop] = []
    make = asyncio.new_event_loop

    def remember() -> asyncio.AbstractEventLoop:
        loops.append(make())
        return loops[-1]

    monkeypatch.setattr(asyncio, "new_event_loop", remember)
    yield
    for loop in loops:
        if not loop.is_running():
            loop.close()
