"""The scoring server's HTTP application, in the forms that SageMaker and Vertex AI expect.

``GET /ping``, ``POST /invocations`` (JSON or JSON lines) and ``GET /metrics``; on Vertex the same handlers also under
``AIP_HEALTH_ROUTE`` and ``AIP_PREDICT_ROUTE``. It keeps no state between requests but its counters and the prediction
log. It does no authentication and no TLS: it listens on loopback, or behind a service that does both.
"""

from __future__ import annotations

import json
import logging
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.to_thread
from fastapi import FastAPI, Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.ml.bundle import Bundle, Scorer
from airflow_provider_sml.ml.serving.log import PredictionLog
from airflow_provider_sml.ml.serving.metrics import Metrics
from airflow_provider_sml.ml.serving.requests import ID, RequestChecker, RequestError

JSON = "application/json"
JSON_LINES = "application/jsonlines"
VERSION_HEADER = "X-SML-Model-Version"
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RequestLimits:
    """How large a scoring request may be.

    :param body_bytes: of its body.
    :param instances: in one request.
    """

    body_bytes: int = 6 * 2**20
    instances: int = 10_000


class HttpError(Exception):
    """An answer other than 200.

    :param status: HTTP status.
    :param error: what is wrong, in one sentence.
    :param more: further keys of the answer.
    """

    def __init__(self, status: int, error: str, **more: Any) -> None:
        self.status, self.body = status, {"error": error, **more}
        super().__init__(error)


def create_app(
    bundle: Bundle,
    *,
    version: str,
    model: str | None = None,
    log: PredictionLog | None = None,
    limits: RequestLimits | None = None,
    threads: int = 1,
    workers: int = 2,
    environ: Mapping[str, str] | None = None,
) -> FastAPI:
    """Make the application of one model.

    :param bundle: the model.
    :param version: its version, told in each answer.
    :param model: the registered model's name; without it the bundle's.
    :param log: where predictions are logged; None for nowhere. The caller closes it.
    :param limits: how large a request may be.
    :param threads: threads that XGBoost may use for one request.
    :param workers: requests that are scored at one time; more of them wait.
    :param environ: where the routes of Vertex AI stand; the process's environment by default.
    """
    service = _Service(bundle, version, model or bundle.name, log, limits or RequestLimits(), threads, workers)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    #: Set while the process is ending: each answer then asks its client to connect anew.
    app.state.draining = False
    app.add_middleware(_Headers, version=version, state=app.state)
    predict, health = _routes(os.environ if environ is None else environ)
    for path in predict:
        app.add_api_route(path, service.invocations, methods=["POST"], response_model=None)
    for path in health:
        app.add_api_route(path, service.ping, methods=["GET"], response_model=None)
    app.add_api_route("/metrics", service.metrics_text, methods=["GET"], response_model=None)
    return app


def _routes(environ: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """The paths of the predict and of the health handler."""
    found = []
    for variable, standard in (("AIP_PREDICT_ROUTE", "/invocations"), ("AIP_HEALTH_ROUTE", "/ping")):
        path = environ.get(variable) or standard
        if not path.startswith("/"):
            raise ConfigurationError(f"{variable} is no route", expected="a path that begins with /", found=path)
        found.append(list(dict.fromkeys([standard, path])))
    return found[0], found[1]


class _Service:
    """The handlers, with what they share."""

    def __init__(
        self,
        bundle: Bundle,
        version: str,
        model: str,
        log: PredictionLog | None,
        limits: RequestLimits,
        threads: int,
        workers: int,
    ) -> None:
        self.model, self.version, self.model_id = model, version, bundle.model_id
        self.log, self.limits = log, limits
        self.checker = RequestChecker(bundle)
        self.scorer = Scorer(bundle, threads)
        self.metrics = Metrics(model, version, bundle.model_id, log)
        self._workers = anyio.Semaphore(workers)

    async def ping(self) -> Response:
        """Whether the server can answer, and with what."""
        return _json({"status": "ok", "model": self.model, "version": self.version, "model_id": self.model_id})

    async def metrics_text(self) -> Response:
        return Response(self.metrics.text(), media_type=METRICS_TYPE)

    async def invocations(self, request: Request) -> Response:
        """Score the instances of a request."""
        began, rows = time.perf_counter(), 0
        try:
            lines = _content_type(request)
            body = await self._body(request)
            async with self._workers:  # in a worker thread, so that /ping stays quick
                rows, content = await anyio.to_thread.run_sync(self._answer, body, lines, _wants_lines(request, lines))
            response = Response(content[0], media_type=content[1])
        except HttpError as error:
            response = _json(error.body, error.status)
        except ClientDisconnect:
            response = _json({"error": "the client went away"}, 400)
        except Exception:
            _log.exception("a request failed")
            response = _json({"error": "the server failed; its log says why"}, 500)
        self.metrics.request(response.status_code, rows, time.perf_counter() - began)
        return response

    async def _body(self, request: Request) -> bytes:
        most = self.limits.body_bytes
        refusal = HttpError(413, f"the body is over the limit of {most:,} bytes; send fewer instances per request")
        # A client that is still sending when the connection closes sees no answer, so a body that is somewhat too
        # large is read and thrown away first.
        try:
            if int(request.headers.get("content-length", "0")) > 10 * most:
                raise refusal
        except ValueError:
            raise HttpError(400, "the header Content-Length is no number") from None
        chunks, size = [], 0
        async for chunk in request.stream():
            size += len(chunk)
            if size <= most:
                chunks.append(chunk)
            elif size > 10 * most:
                break
            else:
                chunks.clear()
        if size > most:
            raise refusal
        return b"".join(chunks)

    def _answer(self, body: bytes, lines: bool, lines_out: bool) -> tuple[int, tuple[bytes, str]]:
        """Check, score and log; returns the rows, and the content with its type."""
        instances = _instances(body, lines)
        if len(instances) > self.limits.instances:
            raise HttpError(
                413, f"{len(instances):,} instances are over the limit of {self.limits.instances:,} in one request"
            )
        try:
            checked = self.checker.check(instances)
        except RequestError as error:
            raise HttpError(422, error.message, problems=error.problems, total=error.total) from None
        scores = self.scorer.score(checked.rows).tolist()
        if self.log is not None:
            made = uuid.uuid4().hex
            self.log.append(
                [
                    {
                        "id": f"{made}-{number}" if given is None else given,
                        "model": self.model,
                        "version": self.version,
                        "features": features,
                        "score": score,
                    }
                    for number, (given, features, score) in enumerate(
                        zip(checked.ids, checked.features, scores, strict=True)
                    )
                ]
            )
        return len(scores), self._content(scores, checked.ids, lines_out)

    def _content(self, scores: list[float], ids: list[str | None], lines: bool) -> tuple[bytes, str]:
        if lines:
            rows = [
                {"prediction": score} | ({} if given is None else {ID: given})
                for score, given in zip(scores, ids, strict=True)
            ]
            return b"".join(_dumps(row) + b"\n" for row in rows), JSON_LINES
        answer: dict[str, Any] = {"predictions": scores, "model": self.model, "version": self.version}
        if any(given is not None for given in ids):
            answer["ids"] = ids
        return _dumps(answer), JSON


class _Headers:
    """ASGI middleware: the version on each answer, and ``Connection: close`` while the process is ending."""

    def __init__(self, app: ASGIApp, version: str, state: Any) -> None:
        self.app, self.state = app, state
        self.header = (VERSION_HEADER.lower().encode(), version.encode("latin-1", "replace"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", []), self.header]
                if self.state.draining:
                    headers.append((b"connection", b"close"))
                message = {**message, "headers": headers}
            await send(message)

        await self.app(scope, receive, send_with_headers)


def _content_type(request: Request) -> bool:
    """Whether the body is JSON lines; anything but JSON and JSON lines is refused."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind not in (JSON, JSON_LINES):
        raise HttpError(
            415, f"the content type is {kind or 'not given'}; expected the header Content-Type: {JSON} or {JSON_LINES}"
        )
    return kind == JSON_LINES


def _wants_lines(request: Request, lines_in: bool) -> bool:
    accepted = request.headers.get("accept", "").lower()
    if JSON_LINES in accepted:
        return True
    return lines_in and JSON not in accepted


def _instances(body: bytes, lines: bool) -> list[Any]:
    if lines:
        rows = [(number, line) for number, line in enumerate(body.split(b"\n"), 1) if line.strip()]
        instances = [_loads(line, f"line {number}") for number, line in rows]
    else:
        document = _loads(body, "the body")
        shape = 'expected {"instances": [{...}, ...]}'
        if not isinstance(document, dict) or not isinstance(document.get("instances"), list):
            raise HttpError(400, f"the body has another shape; {shape}")
        # Vertex AI passes "parameters" on; this model takes none.
        others = [key for key, value in document.items() if key != "instances" and (key != "parameters" or value)]
        if others:
            raise HttpError(400, f"the body has the unknown key {others[0][:80]!r}; {shape}")
        instances = document["instances"]
    if not instances:
        raise HttpError(400, "the request holds no instance; expected at least one")
    return instances


def _loads(text: bytes, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HttpError(400, f"{what} is not JSON: {str(error)[:200]}") from None


def _dumps(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _json(value: Any, status: int = 200) -> Response:
    return Response(_dumps(value), status, media_type=JSON)
