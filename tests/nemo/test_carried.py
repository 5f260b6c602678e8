"""Texts in prompts, as the host's own templates write them there."""

from __future__ import annotations

from typing import Any

import pytest
from nemoguardrails import RailsConfig
from nemoguardrails.llm.taskmanager import LLMTaskManager
from nemoguardrails.types import ChatMessage

from ctd_guardrail.nemo.carried import Prompt, texts_in

AROUND = "Be kind, and brief. The customer told us this before: {} Now answer the question."
TEXTS = {
    "a word": "plover",
    "words": "a flock of plovers on the beach",
    "lines": "birds\nin the reeds\nat dawn by the cold river",
    "apostrophes": "it's o'er, isn't it? they'd've come " * 6,
    "tabs": "a\tflock\tof\tplovers\ton\tthe\tbeach\tat\tlow\ttide",
    "zero-width": "a fl\u200bock of plo\u200bvers on the be\u200bach at low ti\u200bde",
    "accents": "des pluviers dorés à l'été, près de l'étang gelé",
    "another script": "стая куликов на берегу моря во время отлива",
    "letters beyond the first plane": "𝒑𝒍𝒐𝒗𝒆𝒓𝒔 𝒐𝒏 𝒕𝒉𝒆 𝒃𝒆𝒂𝒄𝒉 𝒂𝒕 𝒍𝒐𝒘 𝒕𝒊𝒅𝒆",
    "signs alone": "🐦🌊🐚",
    "markup": '<b>plovers</b> & gulls <i>on</i> the <u>beach</u> at "low" tide',
    "escapes of its own": "100%25 pl%6fvers \\u0041nd it's &lt;gulls&gt; on th\\x65 beach",
    "long": "the plovers are back on the beach at low tide, and so are the gulls " * 40,
    "deep inside a long one": "x" * 500 + " a flock of plovers on the beach at low tide " + "y" * 500,
}
TEMPLATES = [
    "{{ v }}",
    "{{ v | upper }}",
    "{{ v | title }}",
    "{{ v | e }}",
    "{{ v | tojson }}",
    "{{ v | tojson | tojson }}",
    "{{ v | tojson | e }}",
    "{{ v | urlencode }}",
    "{{ v | striptags }}",
    "{{ v | wordwrap(9) }}",
    "{{ v | truncate(24) }}",
    "{{ v | truncate(300, True) }}",
    "{{ v | center(400) }}",
    "{{ [v] }}",
    "{{ {'note': v, 'more': 1} }}",
    "{{ {v: 'note'} | tojson }}",
    "{{ v | list | join(' ') if v | length > 8 else v }}",
    "{{ v | replace(' ', '_') }}",
    "{{ v[:24] }}",
    "{{ v[-24:] }}",
    "{{ v[20:80] if v | length > 200 else v }}",
]


@pytest.fixture(scope="module")
def render() -> Any:
    env = LLMTaskManager(RailsConfig(models=[])).env

    def render(template: str, value: object) -> str:
        return AROUND.format(env.from_string(template).render(v=value))

    return render


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_text_is_found_whatever_the_template_makes_of_it(render: Any, template: str, text: str) -> None:
    assert Prompt([render(template, text)]).carried([text]) == [text]


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_text_that_is_not_there_is_not_found(text: str) -> None:
    assert not Prompt([AROUND.format("nothing")]).carried([text, "plovers", "ten"])


def test_many_texts_are_looked_for_as_one_by_one() -> None:
    prompt = Prompt([AROUND.format(" ".join(f"word{n} and the longer words of {n}" for n in range(0, 400, 3)))])
    texts = [f"word{n}" for n in range(400)] + [f"the longer words of {n}" for n in range(400)]
    assert prompt.carried(texts) == [text for text in texts if prompt.carried([text])]


def test_only_a_text_that_stands_there_as_a_whole_is_held() -> None:
    prompt = Prompt(["You are a helpful assistant of a bird reserve."])
    assert prompt.holds("a helpful assistant")
    assert prompt.holds("Bird-reserve")
    assert not prompt.holds("a helpful assistant of a bird reserve\nplovers")
    assert not prompt.holds("serve")


def test_texts_are_found_in_every_kind_of_value() -> None:
    class Note:
        def __str__(self) -> str:
            return "an object"

    loop: list[Any] = ["a loop"]
    loop.append(loop)
    value = {"a key": [("a pair", {"a set"}), b"bytes", Note(), 1, None, True, " "], "loop": loop}
    assert set(texts_in(value)) == {"a key", "a pair", "a set", "bytes", "an object", "loop", "a loop"}
    said = [f"turn {number}" for number in range(100)]
    assert set(said) <= set(texts_in([ChatMessage.from_user(text) for text in said]))


def test_a_value_may_be_deep() -> None:
    deep: Any = "the bottom"
    for _ in range(50_000):
        deep = [{"key": deep}]
    assert texts_in(deep)[-1] == "the bottom"
