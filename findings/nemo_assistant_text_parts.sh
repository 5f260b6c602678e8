#!/usr/bin/env bash
# nemoguardrails 0.24.1, Colang 1.0: an assistant message whose content is a list of text parts, a form that the OpenAI
# API and the server's own request schema allow, ends the request with an AssertionError once a turn follows it.
# The same list in a user message is taken.
#
# Seen:
#   schema takes assistant parts: True
#   user parts: answered
#   assistant parts: AssertionError: ***StartUtteranceBotAction events need to provide 'script' of type 'str'
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "nemoguardrails==0.24.1" "openai==2.46.0" 2>"$work/pip.log" || { cat "$work/pip.log"; exit 1; }

cat >"$work/run.py" <<'PY'
import asyncio
import logging

from nemoguardrails import LLMRails, RailsConfig
from nemoguardrails.server.schemas.openai import OpenAIChatCompletionRequest
from nemoguardrails.testing import FakeLLMModel

logging.disable(logging.CRITICAL)
parts = [{"type": "text", "text": "good morning"}]
by_assistant = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": parts},
    {"role": "user", "content": "what is new"},
]
by_user = [{"role": "user", "content": parts}]


async def ask(messages):
    rails = LLMRails(RailsConfig.from_content(yaml_content="models: []"), llm=FakeLLMModel(responses=["fine"]))
    try:
        return "answered" if (await rails.generate_async(messages=messages))["content"] == "fine" else "other"
    except AssertionError as error:
        return f"AssertionError: {error}"


request = OpenAIChatCompletionRequest(model="m", messages=by_assistant)
print("schema takes assistant parts:", request.messages[1]["content"] == parts)
print("user parts:", asyncio.run(ask(by_user)))
print("assistant parts:", asyncio.run(ask(by_assistant)))
PY

seen=$(DO_NOT_TRACK=1 "$work/venv/bin/python" "$work/run.py" 2>/dev/null)
echo "$seen"
diff <(echo "$seen") - <<'SEEN'
schema takes assistant parts: True
user parts: answered
assistant parts: AssertionError: ***StartUtteranceBotAction events need to provide 'script' of type 'str'
SEEN
echo "as stated"
