"""`type: python`: an activation source that the operator's own code makes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ctd_guardrail.activations.base_model import BatchedBaseModel
from ctd_guardrail.activations.python import PythonSource, open_base_model
from ctd_guardrail.activations.spec import ActivationSpec
from ctd_guardrail.config.source import PythonSourceConfig
from ctd_guardrail.errors import ActivationError, ConfigError, CtdError, OverlongError
from ctd_guardrail.runtime.factory import Factory
from ctd_guardrail.text.conversation import Conversation

SPEC = ActivationSpec(model="words", layers=(1, 2), max_tokens=20)
TEXT = Conversation.from_text("a canary text")
PRELUDE = """
import torch
from ctd_guardrail import *
from ctd_guardrail import Fingerprint, Ragged

class Source:
    def __init__(self, spec, width=3):
        self.spec = spec
        self.fingerprint = Fingerprint(
            architecture="Source", hidden_size=width, window=8,
            weights_sha256="a" * 64, tokenizer_sha256="b" * 64, template_sha256="c" * 64,
        )

    def tokenize(self, conversation):
        ids = [len(word) for word in conversation.plain_text().split()] or [0]
        return [ids[start : start + 8] for start in range(0, len(ids), 8)]

    def activations(self, windows):
        rows = [[token] * 6 for window in windows for token in window]
        return Ragged(torch.tensor(rows, dtype=torch.float32), tuple(map(len, windows)))
"""

Make = Callable[..., PythonSource]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(body: str = "make = Source", **options: Any) -> PythonSource:
        (tmp_path / "source.py").write_text(PRELUDE + body, encoding="utf-8")
        config = PythonSourceConfig(type="python", factory="source.py:make", options=options)
        return PythonSource(Factory(*config.call_in(tmp_path)), SPEC)

    return make


def test_it_serves_the_base_model_as_a_hugging_face_model_does(make: Make) -> None:
    served = BatchedBaseModel(make())
    (tokens,) = served.tokens_of([Conversation.from_text("one word")])
    assert served.width == 6
    assert tokens.values.shape == (sum(tokens.lengths), 6)
    assert torch.equal(tokens.values[:, 0], tokens.values[:, 5])


def test_guards_of_one_section_share_one_source(make: Make, tmp_path: Path) -> None:
    make()
    config = PythonSourceConfig(type="python", factory="source.py:make")
    first = open_base_model(SPEC, Factory(*config.call_in(tmp_path)))
    assert open_base_model(SPEC, Factory(*config.call_in(tmp_path))) is first
    other = config.model_copy(update={"options": {"width": 3}})
    assert open_base_model(SPEC, Factory(*other.call_in(tmp_path))) is not first


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("def make(spec): return None", "returned a NoneType"),
        ("def make(): return None", "does not take these options"),
        ("def make(spec): return Source(spec.model_copy(update={'layers': (7,)}))", "another spec than"),
        ("def make(spec):\n    s = Source(spec)\n    s.fingerprint = 'me'\n    return s", "fingerprint .* is a str"),
    ],
)
def test_a_factory_that_makes_no_source_is_refused_with_its_key(make: Make, body: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as raised:
        make(body)
    assert raised.value.key.startswith("source.")
    assert raised.value.hint


@pytest.mark.parametrize(
    ("tokenize", "error"),
    [
        ("raise ValueError('canary')", ActivationError),
        ("raise OverlongError('long')", OverlongError),
        ("return []", ActivationError),
        ("return [[]]", ActivationError),
        ("return [['a', 'b']]", ActivationError),
        ("return 7", ActivationError),
        ("return [[1] * 8, [1] * 13]", OverlongError),
    ],
)
def test_windows_are_lists_of_token_ids_within_the_limit(make: Make, tokenize: str, error: type[CtdError]) -> None:
    source = make(f"def tokenize(self, conversation): {tokenize}\nSource.tokenize = tokenize\nmake = Source")
    with pytest.raises(error) as raised:
        source.tokenize(TEXT)
    assert "canary" not in str(raised.value)


@pytest.mark.parametrize(
    "activations",
    [
        "raise ValueError('canary')",
        "return None",
        "return Ragged(torch.zeros(5, 6), (2, 3))",
        "return Ragged(torch.zeros(5, 7), (3, 2))",
        "return Ragged(torch.zeros(4, 6), (3, 2))",
    ],
)
def test_activations_that_belong_to_other_tokens_are_refused(make: Make, activations: str) -> None:
    source = make(f"def activations(self, windows): {activations}\nSource.activations = activations\nmake = Source")
    with pytest.raises(ActivationError) as raised:
        source.activations([(1, 2, 3), (4, 5)])
    assert "canary" not in str(raised.value)
