"""A public scanner against the rail: garak, and a main LLM that grants every request.

Starts a NeMo Guardrails server and the sidecar with the rail of a folder. garak sends its prompts to both. The main LLM
is a double on loopback that grants everything, so every request that the guard lets through is a successful attack. The
same prompts go to a server without the rail, to a sidecar in shadow mode, and to a rail whose expert is switched off.

The run fails if garak's successful attacks are not exactly the requests that reached the main LLM. All traffic stays on
loopback. garak's reports contain its prompts and stay in the folder of this run.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import sys
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import httpx
import yaml

from benchmarks.load.servers import free_port, process
from benchmarks.operations.garak_scan import GRANT, IN_CHAT, OF_A_GUARD, Scan, Target, garak_version, scan

_ROOT: Final = Path(__file__).parents[2]
_CUT: Final = "\n---\n"
_MODEL: Final = "granting"
_START_S: Final = 120.0


class MainLLM:
    """An OpenAI-compatible model that grants every request.

    Attributes:
        calls: Number of requests that reached it.
        base_url: Its address.
    """

    def __init__(self) -> None:
        self.calls = 0
        counting = threading.Lock()
        llm = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                with counting:
                    llm.calls += 1
                choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": GRANT}}
                completion = {"id": "1", "object": "chat.completion", "created": 0, "model": _MODEL}
                raw = json.dumps(completion | {"choices": [choice]}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.base_url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


def write_rail(rails: Path, folder: Path, llm: MainLLM, **changes: Any) -> None:
    """Write a configuration: the rail of a folder with some settings changed, and the main LLM of this run.

    Args:
        rails: Folder of the rail. It stays as it is.
        folder: Folder to write.
        llm: The main LLM.
        changes: Keys of ``custom_data.ctd``.
    """
    content = yaml.safe_load((rails / "config.yml").read_text(encoding="utf-8"))
    section = content["custom_data"]["ctd"]
    section["policy"] = str((rails / section["policy"]).resolve())
    if section["expert"].get("type") == "local" and (model := rails / section["expert"]["model"]).exists():
        section["expert"]["model"] = str(model.resolve())
    section |= changes
    write_config(folder, content, llm)


def write_config(folder: Path, content: dict[str, Any], llm: MainLLM) -> None:
    """Write a configuration around the main LLM of this run."""
    folder.mkdir(parents=True, exist_ok=True)
    main = {"type": "main", "engine": "openai", "model": _MODEL, "parameters": {"base_url": llm.base_url}}
    (folder / "config.yml").write_text(yaml.safe_dump(content | {"models": [main]}), encoding="utf-8")


@contextlib.contextmanager
def nemo_server(configs: Path) -> Iterator[str]:
    """Run a NeMo Guardrails server, and yield its address."""
    address = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "nemoguardrails", "server", "--disable-chat-ui"]
    command += [f"--port={port}", f"--config={configs}"]
    # A checkout is not on NeMo's import path.
    environment = {"COLANGPATH": str(_ROOT), "OPENAI_API_KEY": "none", "DO_NOT_TRACK": "1"}
    with process(command, configs.parent / "nemo.log", f"{address}/v1/rails/configs", **environment):
        yield address


@contextlib.contextmanager
def sidecar(folder: Path) -> Iterator[str]:
    """Run the sidecar, and yield its address."""
    address = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "ctd_guardrail.cli", "serve", f"--config={folder}", f"--port={port}"]
    with process([*command, "--drain-delay=0"], folder.parent / "sidecar.log", f"{address}/health/ready"):
        yield address


def scan_nemo(configs: Path, guards: dict[str, str], python: Path, llm: MainLLM) -> Iterator[Scan]:
    """Scan configurations. Each has its own server, because a process remembers its decisions.

    Args:
        configs: Folder of the configurations.
        guards: Guard in the table, by name of the configuration.
        python: The interpreter of garak's environment.
        llm: The main LLM of all of them.

    Raises:
        SystemExit: A configuration cannot be used, or the calls of the main LLM do not match its answers.
    """
    for name, guard in guards.items():
        with nemo_server(configs) as address:
            settings = {"uri": f"{address}/v1/", "config_ids": [name]}
            generator = "guardrails.NeMoGuardrailsServer"
            target = Target("NeMo Guardrails server", guard, generator, _MODEL, settings, IN_CHAT)
            # garak would continue with a server that answers HTTP 500.
            question = {"model": _MODEL, "messages": [{"role": "user", "content": "Hello"}]}
            body = question | {"guardrails": {"config_id": name}}
            reply = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=_START_S)
            if not reply.is_success:
                raise SystemExit(
                    f"{name}: the server answers with HTTP {reply.status_code}, see {configs.parent}/nemo.log"
                )
            before = llm.calls
            scans = scan(target, python, configs.parent, f"nemo-{name}")
        granted = sum(each.granted for each in scans)
        if llm.calls - before != granted:
            raise SystemExit(f"{guard}: {granted} answers of the main LLM, which was called {llm.calls - before} times")
        yield from scans


def scan_sidecar(folder: Path, guard: str, python: Path) -> Iterator[Scan]:
    """Scan a sidecar.

    Args:
        folder: Folder of its configuration.
        guard: Guard in the table.
        python: The interpreter of garak's environment.

    Raises:
        SystemExit: The guard failed on a request.
    """
    with sidecar(folder) as address:
        url = f"{address}/v1/check"
        settings = {
            "uri": url,
            "headers": {"Content-Type": "application/json"},
            "req_template_json_object": {"text": "$INPUT"},
            "response_json": True,
            "response_json_field": "verdict",
        }
        target = Target("sidecar", guard, "rest.RestGenerator", url, settings, OF_A_GUARD)
        yield from scan(target, python, folder.parent, f"sidecar-{folder.name}")
        stats = httpx.get(f"{address}/v1/stats").json()
    if stats["failures"]:
        raise SystemExit(f"{guard}: the guard could not do its work {stats['failures']} times, see {folder.parent}")


def harmless_passed(folder: Path, rows: Path) -> tuple[int, int]:
    """Return the number of harmless rows that a sidecar lets through, and their total."""
    lines = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    bodies = [{name: row[name] for name in ("text", "messages") if name in row} for row in lines if not row["label"]]
    with sidecar(folder) as address, httpx.Client(base_url=address) as client:
        verdicts = [client.post("/v1/check", json=body).raise_for_status().json()["verdict"] for body in bodies]
    return verdicts.count("allow"), len(verdicts)


def summary(scans: Sequence[Scan], harmless: tuple[int, int], garak: str) -> str:
    """Return the results in Markdown."""
    day = dt.datetime.now(tz=dt.UTC).date()
    lines = [
        f"{day.day} {day:%B %Y}, garak {garak}, NeMo Guardrails {version('nemoguardrails')}:",
        "",
        "| target | guard | garak's probe | prompts | refused | guard unavailable | let through | garak's hits |",
        "|---|---|---|---|---|---|---|---|",
        *(each.row() for each in scans),
        "",
        f"Harmless requests that the calibration has not seen: {harmless[0]} of {harmless[1]} were let through.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Scan every target, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rails", type=Path, help="folder of a NeMo Guardrails configuration with the rail")
    parser.add_argument("--harmless", type=Path, required=True, help="rows; those of label 0 must not be refused")
    parser.add_argument("--python", type=Path, required=True, help="interpreter of an environment with garak")
    parser.add_argument("--to", type=Path, required=True, help="folder for configurations, logs and garak's reports")
    parser.add_argument(
        "--page", type=Path, help="page whose results are replaced; without it, results are only printed"
    )
    options = parser.parse_args()
    folder, python = (
        options.to.resolve(),
        options.python.absolute(),
    )  # a resolved path would lie outside its environment
    with contextlib.closing(MainLLM()) as llm:
        configs = folder / "configs"
        write_config(configs / "without", {}, llm)
        write_rail(options.rails, configs / "rail", llm)
        write_rail(options.rails, configs / "expert-off", llm, expert_enabled=False, on_failure="block")
        guards = {"without": "none", "rail": "the rail", "expert-off": "the rail, `expert_enabled: false`"}
        write_rail(options.rails, folder / "shadow", llm, mode="shadow")
        write_rail(options.rails, folder / "enforce", llm)
        scans = [
            *scan_nemo(configs, guards, python, llm),
            *scan_sidecar(folder / "shadow", "`mode: shadow`", python),
            *scan_sidecar(folder / "enforce", "the rail", python),
        ]
        harmless = harmless_passed(folder / "enforce", options.harmless)
    results = summary(scans, harmless, garak_version(python))
    print(results)
    if mistakes := [mistake for each in scans for mistake in each.mistakes()]:
        raise SystemExit("\n".join(mistakes))
    if options.page is not None:
        text = options.page.read_text(encoding="utf-8").split(_CUT)[0]
        options.page.write_text(f"{text}{_CUT}\n{results}", encoding="utf-8")


if __name__ == "__main__":
    main()
