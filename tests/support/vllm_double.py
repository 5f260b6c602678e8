"""A loopback server that speaks vLLM's ``/pooling`` and ``/v1/models`` routes, on an export that transformers loads.

Written after vLLM 0.33: requests as ``entrypoints/pooling/pooling/protocol.py`` (``PoolingCompletionRequest``) and
``entrypoints/pooling/base/protocol.py`` define them, the choice of the task as
``entrypoints/pooling/pooling/serving.py`` and ``config/model.py`` make it, answers as ``entrypoints/pooling/utils.py``
and ``utils/serial_utils.py`` write them: the numbers of the prompts one after the other, streamed a chunk each. vLLM
itself takes no part.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from transformers import AutoModelForSequenceClassification

from tests.support.loopback import JsonHandler, LoopbackServer

__all__ = ["VllmDouble"]


class PoolingCompletionRequest(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: str | None = None
    user: str | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    padding: Literal["max_length", "do_not_pad"] | None = None
    truncation_side: Literal["left", "right"] | None = None
    request_id: str = "random"
    priority: int = 0
    mm_processor_kwargs: dict[str, Any] | None = None
    cache_salt: str | None = None
    input: list[int] | list[list[int]] | str | list[str]
    add_special_tokens: bool = True
    encoding_format: Literal["float", "base64", "bytes", "bytes_only"] = "float"
    embed_dtype: Literal["float32", "float16", "bfloat16", "fp8_e4m3", "fp8_e5m2"] = "float32"
    endianness: Literal["native", "big", "little"] = "native"
    dimensions: int | None = None
    use_activation: bool | None = None
    task: Literal["embed", "classify", "token_embed", "token_classify", "plugin", "embed&token_classify"] | None = None


class VllmDouble:
    """The server.

    Args:
        export: What ``ctd-guardrail export`` wrote.
        name: ``--served-model-name``.
        task: ``--pooler-config.task``; without that option a sequence classifier's task is ``classify``.
        max_model_len: ``--max-model-len``.
        key: ``--api-key``.

    Attributes:
        requests: Bodies of all calls of ``/pooling``, in order.
        connections: Connections that were opened.
        fault: Takes the place of the answer of ``/pooling``, where it is set.
        change: Applied to the numbers of each prompt.
    """

    def __init__(
        self, export: Path, *, name: str = "ctd", task: str = "token_classify", max_model_len: int = 256, key: str = ""
    ) -> None:
        self.requests: list[PoolingCompletionRequest] = []
        self.connections = 0
        self.fault: Callable[[Any], None] | None = None
        self.change: Callable[[NDArray[np.float32]], NDArray[np.float32]] = lambda values: values
        self.models: list[dict[str, Any]] = [{"id": name, "object": "model", "max_model_len": max_model_len}]
        self.key = key
        self._task, self._max_model_len = task, max_model_len
        model: Any = AutoModelForSequenceClassification.from_pretrained(export)
        self._base, self._score = model.base_model, model.score.weight.float()
        self._server = self._listen(0)

    @property
    def base_url(self) -> str:
        return self._server.url

    def stop(self) -> None:
        self._server.close()

    def start_again(self) -> None:
        """Listen at the same address as before."""
        self._server = self._listen(self._server.server_port)

    def _listen(self, port: int) -> LoopbackServer:
        double = self

        class Handler(_Handler):
            engine = double

        return LoopbackServer(Handler, port)

    def pool(self, request: PoolingCompletionRequest) -> list[bytes]:
        """Return the encoded logits of each prompt.

        Raises:
            ValueError: vLLM would answer with HTTP 400.
        """
        if request.task is not None and request.task != self._task:
            raise ValueError(f"Try switching the model's pooling_task via --pooler-config.task {request.task}.")
        prompts = request.input if isinstance(request.input[0], list) else [request.input]
        chunks = []
        for prompt in prompts:
            if not prompt or len(prompt) > self._max_model_len:
                raise ValueError(f"This model's maximum context length is {self._max_model_len} tokens.")
            with torch.inference_mode():
                hidden = self._base(input_ids=torch.tensor([prompt]), use_cache=False).last_hidden_state[0]
                # The head runs in float32, whatever the dtype of the model.
                logits = hidden.float() @ self._score.T
                if request.use_activation is not False:
                    logits = logits.softmax(dim=-1)
            values = self.change(logits.numpy()).astype({"float32": "<f4", "float16": "<f2"}[request.embed_dtype])
            chunks.append(values.tobytes())
        return chunks


class _Handler(JsonHandler):
    engine: VllmDouble

    def setup(self) -> None:
        super().setup()
        self.engine.connections += 1

    def do_GET(self) -> None:  # noqa: N802  # likewise
        if not self._is_authorised():
            return
        if self.path != "/v1/models":
            self.refuse(404, "Not Found")
            return
        self.reply(200, {"object": "list", "data": self.engine.models})

    def do_POST(self) -> None:  # noqa: N802  # the standard library's name
        body = self.read_body()
        if not self._is_authorised():
            return
        if self.path != "/pooling":
            self.refuse(404, "Not Found")
            return
        if self.headers["Content-Type"] != "application/json":
            self.refuse(400, "Unsupported Media Type: Only 'application/json' is allowed")
            return
        try:
            request = PoolingCompletionRequest.model_validate_json(body)
            self.engine.requests.append(request)
            if self.engine.fault is not None:
                self.engine.fault(self)
                return
            chunks = self.engine.pool(request)
        except (ValidationError, ValueError) as error:
            self.refuse(400, str(error))
            return
        if request.encoding_format != "bytes_only":
            self.refuse(501, "not spoken here")
            return
        self.stream(chunks)

    def stream(self, chunks: list[bytes]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for chunk in [*chunks, b""]:
            self.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")

    def refuse(self, status: int, message: str) -> None:
        self.reply(status, {"error": {"message": message, "type": "Error", "param": None, "code": status}})

    def drop(self) -> None:
        """Reset the connection."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def _is_authorised(self) -> bool:
        if self.engine.key and self.headers.get("Authorization") != f"Bearer {self.engine.key}":
            self.refuse(401, "Unauthorized")
            return False
        return True
