"""Files of the apps behind the doors: Colang, actions and prompts."""

from __future__ import annotations

from typing import Final

__all__ = [
    "ACTION_CO",
    "ACTION_PY",
    "COLANG_2",
    "DIALOG_CO",
    "DIALOG_PY",
    "ESCAPING_PROMPT",
    "MATCHES",
    "PROMPT",
    "SAYS",
]

# Dialog rails look for the nearest example of an utterance. This index needs no model: all are equally near.
DIALOG_PY: Final = """
from nemoguardrails.embeddings.index import EmbeddingsIndex


class First(EmbeddingsIndex):
    def __init__(self, **_):
        self.items = []

    async def add_items(self, items):
        self.items += items

    async def search(self, text, max_results, threshold=None):
        return self.items[:max_results]


def init(app):
    app.register_embedding_search_provider("first", First)
"""
DIALOG_CO: Final = """
define user greet
  "hello"

define user ask news
  "what is new"

define flow greeting
  user greet
  bot greet back

define flow news
  user ask news
  bot tell news about $topic
"""
# The input rails of Colang 2.x run for a flow that waits for `user said something`, and not for one that waits for the
# event itself.
COLANG_2: Final = """
import core
{imports}

flow main
  activate answering

flow answering
  {waits}
  $answer = await PassthroughLLMAction(user_message={text})
  bot say $answer
{rails}
"""
SAYS: Final = ("user said something as $said", "$said.transcript")
MATCHES: Final = ("match UtteranceUserAction.Finished() as $said", "$said.final_transcript")
# An app's own action writes variables into a prompt, by the templates of the host, and asks the main LLM.
ACTION_PY: Final = """
from nemoguardrails.actions import action
from nemoguardrails.actions.llm.utils import llm_call


@action(is_system_action=True)
async def tell_news(context, events, llm, llm_task_manager):
    prompt = llm_task_manager.render_task_prompt(task="tell_news", context=context, events=events)
    return (await llm_call(llm, prompt)).content
"""
ACTION_CO: Final = """
define flow telling
  event UserMessage
  $told = execute tell_news
  bot say what was told

define bot say what was told
  "$told"
"""
PROMPT: Final = (
    "The topic is {{ topic }}. Notes: {{ profile }}. Known: {{ relevant_chunks }}. {{ note }} {{ history | colang }}"
)
ESCAPING_PROMPT: Final = (
    "{{ topic | default('') | tojson }} {{ profile | default('') | tojson }} {{ topic | default('') | truncate(15) }} "
    "{{ profile | default('') | string | urlencode }} {{ history | colang }}"
)
