"""The routes of the sidecar."""

from __future__ import annotations

import asyncio
import importlib.metadata
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ctd_guardrail.sidecar.gate import METRICS, REQUEST_ID
from ctd_guardrail.sidecar.messages import (
    ChatRequest,
    CheckAnswer,
    CheckRequest,
    ContentDetection,
    ContentsRequest,
    Detection,
    content_detections,
    detections,
)
from ctd_guardrail.sidecar.service import Service, Status
from ctd_guardrail.sidecar.settings import DETECTOR, Problem, ServeSettings

__all__ = ["create_api"]


def create_api(service: Service, settings: ServeSettings) -> FastAPI:
    """Return the web application, without the gate in front of it."""
    api = FastAPI(
        title="ctd-guardrail",
        version=importlib.metadata.version("ctd-guardrail"),
        docs_url=None,  # the pages load scripts from other sites
        redoc_url=None,
    )
    api.add_exception_handler(Problem, _answer_problem)
    api.add_exception_handler(HTTPException, _answer_http_exception)
    api.add_exception_handler(RequestValidationError, _answer_malformed)
    api.add_exception_handler(Exception, _answer_bug)

    def refuse_too_many(count: int) -> None:
        if count > settings.limits.messages:
            raise Problem(413, "too_many", f"more than {settings.limits.messages} messages or contents")

    @api.post("/v1/check", response_model_exclude_none=True)
    async def check(body: CheckRequest, request: Request) -> CheckAnswer:
        """Screen one conversation."""
        messages = body.conversation()
        refuse_too_many(len(messages))
        decision = await service.check(messages, body.overrides, principal=_principal(request, service))
        return CheckAnswer.of(decision, _request_id(request), show_scores=settings.show_scores)

    @api.post(f"{DETECTOR}contents")
    async def text_contents(body: ContentsRequest, request: Request) -> list[list[ContentDetection]]:
        """Screen texts, as a detector of the FMS API."""
        refuse_too_many(len(body.contents))
        turns = ([{"role": "user", "content": content}] for content in body.contents)
        principal = _principal(request, service)
        decisions = await asyncio.gather(*(service.check(messages, principal=principal) for messages in turns))
        return [content_detections(*found) for found in zip(decisions, body.contents, strict=True)]

    @api.post(f"{DETECTOR}chat")
    async def text_chat(body: ChatRequest, request: Request) -> list[Detection]:
        """Screen a conversation, as a detector of the FMS API."""
        refuse_too_many(len(body.messages))
        return detections(await service.check(body.messages, principal=_principal(request, service)))

    @api.get("/v1/stats")
    async def stats() -> dict[str, Any]:
        """Return counts of decisions since the start."""
        return service.stats()

    _add_health(api, service)
    if settings.metrics is not None:
        expose = settings.metrics

        @api.get(METRICS, include_in_schema=False)
        async def metrics() -> Response:
            """Expose metrics to Prometheus."""
            return Response(await asyncio.to_thread(expose), media_type=settings.metrics_type)

    return api


def _add_health(api: FastAPI, service: Service) -> None:
    @api.get("/health")
    async def health() -> dict[str, str]:
        """Report liveness and readiness in the words of the FMS detector API."""
        return {"status": "HEALTHY"} if service.is_ready else {"status": "UNHEALTHY", "reason": _why_not(service)}

    @api.get("/health/live")
    async def live() -> dict[str, str]:
        """Report that the process answers."""
        return {"status": "live"}

    @api.get("/health/ready")
    async def ready() -> JSONResponse:
        """Report readiness and the alarms that are raised."""
        note = {"alarms": service.alarms} if service.alarms else {}
        return JSONResponse({"status": service.status, **note}, 200 if service.is_ready else 503)


def _principal(request: Request, service: Service) -> str | None:
    """Return the principal that a request names.

    A gateway appends its header to that of the client, as another line or after a comma. Two values mean that the
    client has sent one, too. Their order depends on the proxy, so neither is trusted.
    """
    header = service.principal_header
    if header is None:
        return None
    given = request.headers.getlist(header)
    if len(given) > 1 or any("," in value for value in given):
        raise Problem(400, "bad_principal", f"the header {header} names more than one principal")
    return given[0] if given else None


def _why_not(service: Service) -> str:
    return f"alarms: {', '.join(service.alarms)}" if service.status is Status.READY else service.status


def _request_id(request: Request) -> str:
    return str(request.scope[REQUEST_ID])


async def _answer_problem(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Problem)  # noqa: S101  # registered for this type
    return JSONResponse(error.body(_request_id(request), path=request.url.path), error.status, error.headers)


async def _answer_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101  # registered for this type
    status = HTTPStatus(error.status_code)
    problem = Problem(status, status.name.lower(), status.phrase, headers=error.headers)
    return await _answer_problem(request, problem)


async def _answer_bug(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001  # the framework's signature
    """Answer in the usual form. The gate logs the type of the error."""
    return await _answer_problem(request, Problem(500, "internal_error", "the request could not be served"))


async def _answer_malformed(request: Request, error: Exception) -> JSONResponse:
    """Name the place and the problem, without the value."""
    assert isinstance(error, RequestValidationError)  # noqa: S101  # registered for this type
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return await _answer_problem(request, Problem(422, "invalid_request", f"{where}: {first['msg']}"))
