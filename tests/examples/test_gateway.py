"""The example `gateway` as it stands, but for addresses and folders: nginx in front of NeMo's server, both real."""

from __future__ import annotations

import asyncio
import json
import runpy
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
import yaml
from fastapi.routing import APIRoute
from nemoguardrails import LLMRails
from nemoguardrails.server import api
from nemoguardrails.types import LLMResponseChunk

from ctd_guardrail.assembly.guard import Guard
from ctd_guardrail.runtime.runtime import Runtime
from tests.nemo.doors.stage import RecordingLLM
from tests.nemo.words import ANSWER, REFUSED
from tests.support.runtimes import as_default
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "config_examples" / "gateway"
# Debian puts it where only root's search path leads.
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
OPENSSL = shutil.which("openssl")
pytestmark = [
    pytest.mark.usefixtures("host_loops"),
    pytest.mark.skipif(NGINX is None, reason="no nginx here"),
    pytest.mark.skipif(OPENSSL is None, reason="no openssl here to make a certificate"),
]

CHAT = "/v1/chat/completions"
OPEN = {CHAT: "POST", "/v1/health": "GET"}
TENANTS = ("acme", "globex", "hasty", "crowded", *(f"of-a-crowd-{i}" for i in range(5)))
KEYS = {tenant: f"{i:064x}" for i, tenant in enumerate(TENANTS, 0xA11CE)}
# What nginx.conf sets.
BODY_LIMIT = 256 * 1024
AT_ONCE = 8
AT_ONCE_OF_AN_ADDRESS = 32


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def wait_for(port: int, is_alive: Callable[[], bool], log: Path | None = None) -> None:
    def listens() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert is_alive(), "it has ended" if log is None else log.read_text()
            return False
        return True

    wait_until(listens, every_s=0.02)


@contextmanager
def nginx(config: Path, port: int) -> Iterator[None]:
    """Run nginx with a configuration file, beside which it finds its other files."""
    log = config.with_suffix(".log")
    command = [str(NGINX), "-p", str(config.parent), "-c", str(config), "-e", str(log)]
    command += ["-g", f"daemon off; pid {config.with_suffix('.pid')};"]
    with log.open("ab") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)  # noqa: S603  # fixed words
    try:
        wait_for(port, lambda: process.poll() is None, log)
        yield
    finally:
        process.terminate()
        process.wait(30)


@dataclass(frozen=True)
class Gateway:
    """The gateway, and the address of the server behind it."""

    port: int
    server_port: int
    folder: Path
    certificate: ssl.SSLContext

    def client(self, tenant: str | None = "acme") -> httpx.Client:
        headers = {} if tenant is None else {"Authorization": f"Bearer {KEYS[tenant]}"}
        address = f"https://127.0.0.1:{self.port}"
        return httpx.Client(base_url=address, headers=headers, verify=self.certificate, timeout=60)

    @contextmanager
    def unfinished_request(self, tenant: str, source: str) -> Iterator[bytes]:
        """Send a request without its body, so that it stays under way, and yield the answer's first line."""
        head = f"POST {CHAT} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {KEYS[tenant]}\r\n"
        head += "Content-Type: application/json\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"
        with (
            socket.create_connection(("127.0.0.1", self.port), 60, source_address=(source, 0)) as plain,
            self.certificate.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
        ):
            connection.sendall(head.encode())
            yield connection.recv(4096).partition(b"\r\n")[0]


@pytest.fixture(autouse=True, scope="module")
def runtime() -> Iterator[Runtime]:
    """One runtime for all tests of this file: they share a server, which keeps its guards."""
    with as_default(Runtime()) as lasting:
        yield lasting
    lasting.close()


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory, rail_policy: Path, shared_judge: Any) -> tuple[Path, int, int]:
    """A copy of the example with what a test has in the place of addresses, folders and models; and its two ports."""
    folder = tmp_path_factory.mktemp("examples") / "gateway"
    shutil.copytree(EXAMPLE, folder)
    shutil.copytree(rail_policy, folder / "policy")
    port, server_port = free_port(), free_port()
    temporary = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    in_place = {
        "config.yml": {
            "http://127.0.0.1:8000/v1": shared_judge.base_url,
            "model: gpt-4o-mini": f"model: gpt-4o-mini, parameters: {{base_url: {shared_judge.base_url}}}",
            "deadline_s: 8 ": "deadline_s: 60 ",
        },
        "serve.py": {"port=8010": f"port={server_port}"},
        "nginx.conf": {
            "listen 443": f"listen 127.0.0.1:{port}",
            "127.0.0.1:8010": f"127.0.0.1:{server_port}",
            "/var/log/nginx": str(folder),
            "http {": "http { " + "".join(f"{name}_temp_path {folder}/temporary-{name}; " for name in temporary),
        },
    }
    for name, changes in in_place.items():
        text = (folder / name).read_text()
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        (folder / name).write_text(text)
    with (folder / "tenants.map").open("a") as file:
        file.writelines(f'"Bearer {key}" {tenant};\n' for tenant, key in KEYS.items())
    return folder, port, server_port


@pytest.fixture(scope="module")
def principals() -> Iterator[list[object]]:
    """The principals that the guard was told, in order."""
    told: list[object] = []
    check = Guard.check

    async def noting(self: Guard, messages: Any, *values: Any, **options: Any) -> Any:
        told.append(options["principal"])
        return await check(self, messages, *values, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Guard, "check", noting)
        yield told


@pytest.fixture(scope="module")
def server(example: tuple[Path, int, int], principals: list[object]) -> Iterator[None]:
    """NeMo's server, as the example's script runs it, on a thread of this process."""
    folder, _, port = example
    servers: list[uvicorn.Server] = []

    class Kept(uvicorn.Server):
        def __init__(self, config: uvicorn.Config) -> None:
            super().__init__(config)
            servers.append(self)

    with pytest.MonkeyPatch.context() as patch:
        # NeMo resolves import_paths against the current folder and site-packages; a checkout is the former.
        patch.chdir(ROOT)
        patch.setenv("OPENAI_API_KEY", "a-key")
        patch.setenv("NEMO_GUARDRAILS_DISABLE_CHAT_UI", "true")
        patch.setattr(sys.modules["uvicorn.main"], "Server", Kept)  # `uvicorn.main` is its command
        patch.setattr(api, "llm_rails_instances", {})
        for name in ("rails_config_path", "default_config_id", "single_config_mode", "single_config_id"):
            patch.setattr(api.app, name, getattr(api.app, name))
        thread = threading.Thread(
            target=runpy.run_path, args=[str(folder / "serve.py")], kwargs={"run_name": "__main__"}
        )
        thread.start()
        wait_for(port, thread.is_alive)
        yield
        servers[0].should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def gateway(example: tuple[Path, int, int], server: None) -> Iterator[Gateway]:
    """Nginx, with the example's file."""
    folder, port, server_port = example
    make = f"req -x509 -newkey rsa:2048 -nodes -keyout {folder}/gateway.key -out {folder}/gateway.pem -subj /CN=gateway"
    subprocess.run(  # noqa: S603  # fixed words
        [str(OPENSSL), *make.split(), "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True
    )
    with nginx(folder / "nginx.conf", port):
        yield Gateway(port, server_port, folder, ssl.create_default_context(cafile=str(folder / "gateway.pem")))


@pytest.fixture(autouse=True)
def _nobody_before(principals: list[object], runtime: Runtime) -> None:
    principals.clear()
    runtime.memory.clear()


def body(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}], **more}


def said(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def test_a_request_is_answered_or_refused_for_the_tenant_of_its_key(
    gateway: Gateway, principals: list[object], shared_judge: Any
) -> None:
    answered = shared_judge.answers
    for tenant in ("acme", "globex"):
        with gateway.client(tenant) as client:
            assert said(client.post(CHAT, json=body("a plain question"))) == ANSWER
            assert said(client.post(CHAT, json=body("a plain threat"))) == REFUSED
    assert shared_judge.answers == answered + 2
    assert principals == ["acme", "acme", "globex", "globex"]


@pytest.mark.parametrize("name", ["X-Tenant", "x-tenant", "X_Tenant"])
def test_a_tenant_that_the_client_makes_up_does_not_arrive(
    gateway: Gateway, principals: list[object], name: str
) -> None:
    key = ("Authorization", f"Bearer {KEYS['acme']}")
    with gateway.client(None) as client:
        for headers in ([key, (name, "globex")], [(name, "globex"), key, (name, "initech")]):
            # Where it arrived beside the gateway's own, the rail would refuse the request.
            assert said(client.post(CHAT, json=body("a plain question"), headers=headers)) == ANSWER
    assert principals == ["acme", "acme"]


@pytest.mark.parametrize("key", [None, "", "Bearer", "Bearer acme", f"Basic {KEYS['acme']}", f"Bearer {KEYS['acme']}0"])
def test_a_client_without_a_key_is_turned_away(gateway: Gateway, principals: list[object], key: str | None) -> None:
    headers = {"X-Tenant": "acme"} | ({} if key is None else {"Authorization": key})
    with gateway.client(None) as client:
        answer = client.post(CHAT, json=body("a plain question"), headers=headers)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert principals == []


def test_the_example_holds_no_key() -> None:
    lines = (EXAMPLE / "tenants.map").read_text().splitlines()
    assert all(line.startswith("#") for line in lines)


def test_of_the_servers_doors_only_two_are_open(gateway: Gateway) -> None:
    paths = {route.path for route in api.app.routes if isinstance(route, APIRoute)}
    assert OPEN.keys() < paths
    with gateway.client() as client:
        for path in paths | {"/docs", "/openapi.json", "/chat", f"{CHAT}/", "//v1/checks", "/v1/health/../checks"}:
            for method in ("GET", "POST"):
                status = client.request(method, path).status_code
                if path not in OPEN:
                    assert status == 404, path
                elif method != OPEN[path]:
                    assert status == 405, path
        for path, method in OPEN.items():
            assert client.request(method, path).status_code not in {401, 404, 405}


def test_health_needs_no_key(gateway: Gateway) -> None:
    with gateway.client(None) as client:
        assert client.get("/v1/health").json() == {"status": "pass"}


def test_a_body_over_the_limit_is_refused_and_one_below_arrives(gateway: Gateway, principals: list[object]) -> None:
    content = json.dumps(body("a plain question")).encode().ljust(BODY_LIMIT)
    with gateway.client() as client:
        client.headers["Content-Type"] = "application/json"
        assert client.post(CHAT, content=content + b" ").status_code == 413
        assert principals == []
        # It does not touch the disk: run by root, nginx's worker may not write to the folder for that here.
        assert said(client.post(CHAT, content=content)) == ANSWER
        assert client.post(CHAT, content=iter([content])).status_code == 411


def test_the_server_gets_no_header_of_the_client_but_the_type_of_its_body(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, str]] = []
    find = api._get_rails

    async def noting(*values: Any, **options: Any) -> Any:
        seen.append(dict(api.api_request_headers.get()))
        return await find(*values, **options)

    monkeypatch.setattr(api, "_get_rails", noting)
    with gateway.client() as client:
        headers = {"Cookie": "a=b", "X-Forwarded-For": "192.0.2.1", "Accept": "text/plain"}
        said(client.post(f"{CHAT}?text=spoken", json=body("a plain question"), headers=headers))
    (headers,) = seen
    assert headers.keys() == {"host", "content-type", "content-length", "x-tenant", "connection"}
    assert headers["x-tenant"] == "acme"


class SteppedLLM(RecordingLLM):
    """A main LLM that says its second word when the client has read the first."""

    def __init__(self) -> None:
        super().__init__()
        self.is_read = threading.Event()
        self.was_read = False

    async def stream_async(self, prompt: Any, *, stop: Any = None, **params: Any) -> AsyncIterator[LLMResponseChunk]:
        yield LLMResponseChunk(delta_content="first ")
        self.was_read = await asyncio.to_thread(self.is_read.wait, 30)
        yield LLMResponseChunk(delta_content="second")


def test_each_piece_of_a_stream_goes_out_as_it_comes(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = SteppedLLM()
    # The server makes an app for each name of a main LLM.
    monkeypatch.setattr(api, "LLMRails", partial(LLMRails, llm=llm))
    with (
        gateway.client() as client,
        client.stream("POST", CHAT, json=body("a plain question", model="stepped", stream=True)) as answer,
    ):
        assert answer.headers["content-type"].startswith("text/event-stream")
        words = []
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                words.append(json.loads(line[6:])["choices"][0]["delta"].get("content", ""))
                llm.is_read.set()
    assert "".join(words) == "first second"
    assert llm.was_read, "the first piece lay in a buffer until the second one came"


def test_a_stream_is_refused_as_well(gateway: Gateway) -> None:
    with gateway.client() as client:
        answer = client.post(CHAT, json=body("a plain threat", stream=True))
    frames = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    assert "".join(frame["choices"][0]["delta"].get("content", "") for frame in frames) == REFUSED


def until_refused(ask: Callable[[], httpx.Response]) -> list[int]:
    """Ask until HTTP 429, without a pause; each question takes a few milliseconds."""
    statuses: list[int] = []
    while (not statuses or statuses[-1] != 429) and len(statuses) < 1000:
        statuses.append(ask().status_code)
    return statuses


def test_a_tenant_that_asks_too_often_is_refused_and_others_are_not(gateway: Gateway) -> None:
    with gateway.client("hasty") as hasty, gateway.client() as client:
        # The server refuses a request without a body at once.
        *served, last = until_refused(lambda: hasty.post(CHAT))
        assert (set(served), last) == ({422}, 429)
        assert said(client.post(CHAT, json=body("a plain question"))) == ANSWER


def test_health_has_a_rate_too(gateway: Gateway) -> None:
    with gateway.client(None) as stranger, gateway.client() as client:
        *served, last = until_refused(lambda: stranger.get("/v1/health"))
        assert (set(served), last) == ({200}, 429)
        assert said(client.post(CHAT, json=body("a plain question"))) == ANSWER


def test_a_tenant_has_so_many_requests_at_once(gateway: Gateway) -> None:
    with ExitStack() as stack:
        held = [stack.enter_context(gateway.unfinished_request("crowded", "127.0.0.1")) for _ in range(AT_ONCE + 1)]
        assert held == [*[b"HTTP/1.1 100 Continue"] * AT_ONCE, b"HTTP/1.1 429 Too Many Requests"]
        with gateway.client() as client:
            assert said(client.post(CHAT, json=body("a plain question"))) == ANSWER


def test_an_address_has_so_many_requests_at_once_whatever_its_keys(gateway: Gateway) -> None:
    with ExitStack() as stack:
        for i in range(AT_ONCE_OF_AN_ADDRESS):
            request = gateway.unfinished_request(f"of-a-crowd-{i // AT_ONCE}", "127.0.0.3")
            assert stack.enter_context(request) == b"HTTP/1.1 100 Continue"
        tenant = f"of-a-crowd-{AT_ONCE_OF_AN_ADDRESS // AT_ONCE}"
        with gateway.unfinished_request(tenant, "127.0.0.3") as line:
            assert line == b"HTTP/1.1 429 Too Many Requests"
        with gateway.unfinished_request(tenant, "127.0.0.1") as line:
            assert line == b"HTTP/1.1 100 Continue"


def test_the_server_listens_on_this_machine_only(gateway: Gateway) -> None:
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.2", gateway.server_port), 5):
        pass


def test_no_log_of_the_gateway_has_a_key_or_a_text(gateway: Gateway) -> None:
    with gateway.client() as client:
        client.post(f"{CHAT}?text=spoken", json=body("a plain question"))
        client.post("/spoken", json=body("a plain question"))
    access = (gateway.folder / "access.log").read_text()
    assert "tenant=acme status=200" in access
    assert "spoken" not in access
    logs = "".join(path.read_text() for path in gateway.folder.glob("*.log"))
    assert not any(secret in logs for secret in (*KEYS.values(), "plain"))


def test_the_gateway_waits_longer_than_the_rail() -> None:
    section = yaml.safe_load((EXAMPLE / "config.yml").read_text())["custom_data"]["ctd"]
    (waits,) = [line for line in (EXAMPLE / "nginx.conf").read_text().splitlines() if "proxy_read_timeout " in line]
    assert float(waits.split()[1].removesuffix("s;")) > section["deadline_s"]


def test_checks_are_opened_as_the_comment_says(example: tuple[Path, int, int], gateway: Gateway) -> None:
    text = (gateway.folder / "nginx.conf").read_text()
    start, end = text.index("#location = /v1/checks"), text.index("# For probes")
    opened = text[:start] + text[start:end].replace("#", "") + text[end:]
    port = free_port()
    (gateway.folder / "opened.conf").write_text(opened.replace(f":{gateway.port} ", f":{port} "))
    with nginx(gateway.folder / "opened.conf", port):
        other = Gateway(port, gateway.server_port, gateway.folder, gateway.certificate)
        with other.client() as client, other.client(None) as stranger:
            statuses = [
                client.post("/v1/checks", json=body(text)).json()["status"]
                for text in ("a plain question", "a plain threat")
            ]
            assert statuses == ["passed", "blocked"]
            assert stranger.post("/v1/checks", json=body("a plain question")).status_code == 401
