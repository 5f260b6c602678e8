#!/usr/bin/env bash
# nemoguardrails 0.24.1: a message of the role `context`, by which clients pass variables, is taken out of the
# conversation by the LLMRails engine. The IORails engine sends it to the model's endpoint as it is, with a mapping as
# its content, which is no message of the OpenAI API.
#
# Seen:
#   IORails sends the roles: context, user
#   content of the first: {'name': 'a value'}
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "nemoguardrails==0.24.1" 2>"$work/pip.log" || { cat "$work/pip.log"; exit 1; }

cat >"$work/run.py" <<'PY'
import asyncio
import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from nemoguardrails import Guardrails, RailsConfig

logging.disable(logging.CRITICAL)
bodies = []


class Endpoint(BaseHTTPRequestHandler):
    def do_POST(self):
        bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "fine"}}
        raw = json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]})
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw.encode())

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Endpoint)
threading.Thread(target=server.serve_forever, daemon=True).start()
config = f"""
models:
  - {{type: main, engine: openai, model: m, parameters: {{base_url: "http://127.0.0.1:{server.server_port}/v1"}}}}
"""
messages = [{"role": "context", "content": {"name": "a value"}}, {"role": "user", "content": "hello"}]


async def main():
    async with Guardrails(RailsConfig.from_content(yaml_content=config), require_iorails=True) as rails:
        await rails.generate_async(messages=messages)


asyncio.run(main())
sent = bodies[0]["messages"]
print("IORails sends the roles:", ", ".join(message["role"] for message in sent))
print("content of the first:", sent[0]["content"])
PY

seen=$(DO_NOT_TRACK=1 OPENAI_API_KEY=a-key "$work/venv/bin/python" "$work/run.py" 2>/dev/null)
echo "$seen"
diff <(echo "$seen") - <<'SEEN'
IORails sends the roles: context, user
content of the first: {'name': 'a value'}
SEEN
echo "as stated"
