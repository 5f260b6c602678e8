#!/usr/bin/env bash
# nemoguardrails 0.24.1, Colang 1.0 without passthrough: the result of a tool reaches no prompt. Where a user's turn
# follows it, it is left out without a word; the main LLM is asked as if the tool had never answered. With
# `passthrough: true` the same messages arrive whole.
#
# Seen:
#   plain: prompt holds the tool's result: False
#   passthrough: prompt holds the tool's result: True
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "nemoguardrails==0.24.1" 2>"$work/pip.log" || { cat "$work/pip.log"; exit 1; }

cat >"$work/run.py" <<'PY'
import asyncio
import logging

from nemoguardrails import LLMRails, RailsConfig
from nemoguardrails.testing import FakeLLMModel

logging.disable(logging.CRITICAL)
call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
messages = [
    {"role": "user", "content": "what is the weather"},
    {"role": "assistant", "content": None, "tool_calls": [call]},
    {"role": "tool", "tool_call_id": "call_1", "content": "nineteen degrees"},
    {"role": "user", "content": "and in one word"},
]


class Recording(FakeLLMModel):
    async def generate_async(self, prompt, **kwargs):
        self.prompt = str(prompt)
        return await super().generate_async(prompt, **kwargs)


for name, yaml in (("plain", "models: []"), ("passthrough", "passthrough: true")):
    llm = Recording(responses=["fine"])
    rails = LLMRails(RailsConfig.from_content(yaml_content=yaml), llm=llm)
    asyncio.run(rails.generate_async(messages=[dict(message) for message in messages]))
    print(f"{name}: prompt holds the tool's result: {'nineteen degrees' in llm.prompt}")
PY

seen=$(DO_NOT_TRACK=1 "$work/venv/bin/python" "$work/run.py" 2>/dev/null)
echo "$seen"
diff <(echo "$seen") - <<'SEEN'
plain: prompt holds the tool's result: False
passthrough: prompt holds the tool's result: True
SEEN
echo "as stated"
