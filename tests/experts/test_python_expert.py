"""`type: python`: an expert that the operator's own code makes."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from calibrate.report.reproducibility import _without_code
from ctd_guardrail.config.experts import ExpertConfig, PythonExpertConfig
from ctd_guardrail.errors import (
    BreakerOpenError,
    ConfigError,
    ExpertTimeoutError,
    ExpertUnavailableError,
    ExpertVerdictError,
    OverlongError,
)
from ctd_guardrail.experts.bounded.bounded_expert import Spend, health_of
from ctd_guardrail.experts.bounded.breaker import CircuitBreaker
from ctd_guardrail.experts.build import build_expert
from ctd_guardrail.experts.protocol import Expert
from ctd_guardrail.text.conversation import Conversation

TEXT = Conversation.from_text("a canary text")
PRELUDE = """
import asyncio
from dataclasses import dataclass
from ctd_guardrail import *
from ctd_guardrail import ExpertScore

@dataclass
class Judge:
    identity: str = "judge:v1"
    answer: object = 0.25

    async def score(self, conversation):
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer if isinstance(self.answer, ExpertScore) else ExpertScore(self.answer)

    async def aclose(self):
        self.identity = "closed"
"""

Make = Callable[..., Expert]


@pytest.fixture
def build(tmp_path: Path) -> Make:
    """Write a file with a function `make`, and build the expert that it returns."""

    def build(body: str, *, factory: str = "judge.py:make", **section: Any) -> Expert:
        (tmp_path / "judge.py").write_text(PRELUDE + body, encoding="utf-8")
        config: Any = TypeAdapter(ExpertConfig).validate_python({"type": "python", "factory": factory} | section)
        return build_expert(config, base_dir=tmp_path)

    return build


async def test_options_are_the_functions_keyword_arguments(build: Make) -> None:
    expert = build("def make(answer, name='x'): return Judge(name, answer)", options={"answer": 0.75})
    assert expert.identity == "x"
    assert (await expert.score(TEXT)).p_unsafe == 0.75


async def test_an_installed_package_is_named_by_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ctd_test_package").mkdir()
    (tmp_path / "ctd_test_package" / "__init__.py").touch()
    (tmp_path / "ctd_test_package" / "judges.py").write_text(
        f"{PRELUDE}\nclass Judges:\n    make = staticmethod(lambda: Judge())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = PythonExpertConfig(type="python", factory="ctd_test_package.judges:Judges.make")
    assert (await build_expert(config).score(TEXT)).p_unsafe == 0.25


async def test_files_of_one_name_in_two_folders_are_two_modules(tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "judge.py").write_text(f"{PRELUDE}\ndef make(): return Judge({name!r})")
        config = PythonExpertConfig(type="python", factory="judge.py:make")
        found.append(build_expert(config, base_dir=folder).identity)
    assert found == ["a", "b"]


@pytest.mark.parametrize(
    ("body", "section", "key", "problem"),
    [
        ("", {}, "expert.factory", "has no 'make'"),
        ("make = 3", {}, "expert.factory", "is not callable"),
        ("", {"factory": "no_such_package.judges:make"}, "expert.factory", "there is no module 'no_such_package'"),
        ("", {"factory": "other.py:make"}, "expert.factory", r"there is no file .*other\.py"),
        ("import no_such_package", {}, "expert.factory", "there is no module 'no_such_package'"),
        ("def make(: pass", {}, "expert.factory", "SyntaxError"),
        ("1 / 0", {}, "expert.factory", r"ZeroDivisionError at judge\.py:\d+"),
        ("def make(): raise ValueError('canary')", {}, "expert.factory", r"raised ValueError at judge\.py:\d+"),
        ("def make(words): pass", {}, "expert.options", "missing a required argument: 'words'"),
        ("def make(): pass", {"options": {"words": []}}, "expert.options", "unexpected keyword argument 'words'"),
        ("def make(): return None", {}, "expert.factory", "returned a NoneType, which has no 'identity'"),
        ("def make(): return Judge", {}, "expert.factory", "returned the class Judge"),
        (
            "Judge.score = lambda self, c: ExpertScore(0.1)\ndef make(): return Judge()",
            {},
            "expert.factory",
            "not async",
        ),
        ("def make(): return Judge('')", {}, "expert.factory", "not one line of text"),
        ("def make(): return Judge('two\\nlines')", {}, "expert.factory", "not one line of text"),
        ("def make(): return Judge('recorded:expert')", {}, "expert.factory", "begins with 'recorded:'"),
    ],
)
def test_a_factory_that_makes_no_expert_is_refused_with_its_key_and_a_way_out(
    build: Make, body: str, section: dict[str, Any], key: str, problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem) as raised:
        build(body, **section)
    assert raised.value.key == key
    assert raised.value.hint
    assert "canary" not in str(raised.value)


@pytest.mark.parametrize("factory", ["", "make", "judge.py", "a.b:", ":make", "a b:make", "os.system('x'):y", "a:b()"])
def test_a_name_that_is_no_function_is_refused_before_anything_is_imported(factory: str) -> None:
    with pytest.raises(ValueError, match="does not name a function"):
        PythonExpertConfig(type="python", factory=factory)


def test_an_error_of_the_one_tree_leaves_a_factory_as_it_is(build: Make) -> None:
    with pytest.raises(ConfigError, match="environment variable X"):
        build("def make(): raise ConfigError('environment variable X is not set')")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("ExpertTimeoutError('late')", ExpertTimeoutError),
        ("OverlongError('long')", OverlongError),
        ("ExpertVerdictError('none')", ExpertVerdictError),
        ("TimeoutError('canary')", ExpertUnavailableError),
        ("ValueError('canary')", ExpertUnavailableError),
        ("ActivationError('canary')", ExpertUnavailableError),
        ("'0.9'", ExpertVerdictError),
        ("1.5", ExpertVerdictError),
        ("float('nan')", ExpertVerdictError),
        ("ExpertScore(0.5, attempts=-3)", ExpertVerdictError),
        ("ExpertScore(0.5, tokens=-3)", ExpertVerdictError),
        ("ExpertScore(0.5, tokens=1.5)", ExpertVerdictError),
    ],
)
async def test_whatever_it_answers_it_is_a_score_or_an_error_of_the_protocol(
    build: Make, answer: str, error: type[Exception]
) -> None:
    expert = build(f"def make(): return Judge(answer={answer})")
    with pytest.raises(error) as raised:
        await expert.score(TEXT)
    assert "canary" not in str(raised.value)


async def test_something_else_than_a_score_is_no_verdict(build: Make) -> None:
    expert = build("async def score(self, c): return 0.1\nJudge.score = score\ndef make(): return Judge()")
    with pytest.raises(ExpertVerdictError, match="returned a float"):
        await expert.score(TEXT)


async def test_only_a_fault_of_the_connection_counts_as_an_outage(build: Make) -> None:
    async def opens(error: str) -> bool:
        breaker = CircuitBreaker(failures=2, health=health_of)
        expert = build(f"def make(): return Judge(answer={error})").with_limits(
            is_enabled=True, breaker=breaker, caps=None, attempts=1
        )
        for _ in range(4):
            try:
                await expert.ask(TEXT, Spend())
            except BreakerOpenError:
                return True
            except ExpertUnavailableError:
                pass
        return False

    assert await opens("ConnectionRefusedError()")
    assert not await opens("KeyError()")


async def test_a_call_ends_at_its_deadline(build: Make) -> None:
    body = "async def score(self, c): await asyncio.Event().wait()\nJudge.score = score\ndef make(): return Judge()"
    expert = build(body, timeout_s=0.01)
    with pytest.raises(ExpertTimeoutError):
        await asyncio.wait_for(expert.score(TEXT), 60)


async def test_an_exception_while_it_is_closed_goes_no_further(build: Make, caplog: pytest.LogCaptureFixture) -> None:
    body = "async def close(self): raise ValueError('canary')\nJudge.aclose = close\ndef make(): return Judge()"
    await build(body).aclose()
    assert "ValueError" in caplog.text
    assert "canary" not in caplog.text


def test_no_artefact_names_the_code() -> None:
    python = {"type": "python", "factory": "judge.py:make", "options": {"token": "canary"}, "timeout_s": 10.0}
    record = _without_code({"expert": python, "source": None, "output": "policy"})
    assert record == {"expert": {"type": "python", "timeout_s": 10.0}, "source": None, "output": "policy"}
