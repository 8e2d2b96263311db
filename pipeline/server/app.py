"""The HTTP application: predictions, the state of the models, metrics, and the page at /.

It knows nothing of Ray: a backend predicts, in batches or not.
"""

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Protocol

from fastapi import Depends, FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from pipeline.data.photo import Photo
from pipeline.recipe import ModelTask
from pipeline.server.answers import list_colors
from pipeline.server.batches import Prediction, PredictionJob
from pipeline.server.live_model import LiveModel
from pipeline.server.metrics import ServerMetrics
from pipeline.server.options import ServeOptions
from pipeline.server.predict_request import RawRequest, decode, read_raw_request
from pipeline.server.request_content import RequestError
from pipeline.server.request_fields import PHOTO, RequestFields, describe_bodies
from pipeline.server.request_masks import decode_masks
from pipeline.server.tasks import TASKS
from pipeline.serving.memory import describe_memory, list_memory_errors
from pipeline.text import suggest

PAGE = Path(__file__).parent / "page"

_DECODED_BATCHES = 2
"""Decoded photos take much more memory than files, so others wait as they came."""

_HEADERS = {
    # The page loads nothing from elsewhere, and no other page may frame it.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

_log = logging.getLogger(__name__)


class Backend(Protocol):
    """The interface of what predicts for the application."""

    options: ServeOptions
    models: Mapping[str, LiveModel]
    """By name; the first is the default."""
    token_digest: str
    """`digest_token` of the token that clients must send; "" if they need none."""
    metrics: ServerMetrics

    async def predict(self, job: PredictionJob) -> Prediction:
        """Predict for a photo; raise one of `list_memory_errors` if it does not fit."""


class Problem(BaseModel):
    """Why there is no answer, and what to do."""

    error: str


_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": text}
    for status, text in {
        400: "The body cannot be read.",
        401: "The token is missing or wrong.",
        413: "The photo has too many bytes or pixels, or there are too many masks.",
        415: "The content type is neither a form nor JSON.",
        422: "A field is wrong, or the photo or a mask is damaged.",
        503: "Too many photos wait; try again.",
    }.items()
}


def digest_token(token: str) -> str:
    """Return the SHA-256 of a token: replicas compare this and never hold the token."""
    return hashlib.sha256(token.encode()).hexdigest()


def build_app(backend: Backend) -> FastAPI:
    """Build the application of a backend, whose models all have one task."""
    task = next(iter(backend.models.values())).task
    app = FastAPI(
        title="BoundarySqueeze",
        description=f"{TASKS[task].summary}.",
        # FastAPI's own page of the API loads its scripts from another server.
        docs_url=None,
        redoc_url=None,
    )
    for error_type, handler in _list_handlers().items():
        app.add_exception_handler(error_type, handler)
    app.middleware("http")(_make_middleware(backend.metrics))
    _add_prediction(app, backend, task)
    _add_state(app, backend, task)
    _add_pages(app)
    return app


def _add_prediction(app: FastAPI, backend: Backend, task: ModelTask) -> None:
    decoded = asyncio.Semaphore(_DECODED_BATCHES * backend.options.max_batch)

    @app.post(
        "/predict",
        summary=TASKS[task].summary,
        dependencies=[_require_token(backend.token_digest)],
        openapi_extra={"requestBody": describe_bodies(task), "x-curl": TASKS[task].curl},
        responses={200: {"model": TASKS[task].answer, "content": {"image/png": {}}}, **_PROBLEMS},
    )
    async def predict(request: Request) -> Response:
        started = time.perf_counter()
        metrics = backend.metrics
        if metrics.waiting_now() >= backend.options.max_waiting:
            raise RequestError(503, "too many photos wait for a prediction; try again in a second")
        with metrics.waiting.track_inprogress():
            raw = await read_raw_request(request, backend.options, task)
            model = _choose_model(raw.fields.model, backend.models)
            async with decoded:
                answer = await _answer(backend, model, raw)
        metrics.seconds.observe(time.perf_counter() - started)
        return answer


async def _answer(backend: Backend, model: LiveModel, raw: RawRequest) -> Response:
    photo = await run_in_threadpool(decode, raw.photo, backend.options)
    try:
        masks = await run_in_threadpool(decode_masks, raw.masks, raw.fields, photo.pixels.shape)
        found = await backend.predict(PredictionJob(model, photo.pixels, masks))
        return await run_in_threadpool(_format, found, photo, raw.fields, backend.metrics)
    except list_memory_errors() as error:
        height, width = photo.pixels.shape[:2]
        raise RequestError(
            413, f"{PHOTO}: {width} x {height} pixels: {describe_memory(error)}"
        ) from error


def _add_state(app: FastAPI, backend: Backend, task: ModelTask) -> None:
    protected = [_require_token(backend.token_digest)]

    @app.get("/health", summary="Whether the process answers")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready", summary="Whether the models are loaded and the queue is not full")
    async def ready() -> JSONResponse:
        waiting = backend.metrics.waiting_now()
        is_ready = waiting < backend.options.max_waiting
        models = {name: each.current.uri for name, each in backend.models.items()}
        content = {"ready": is_ready, "waiting": waiting, "models": models}
        return JSONResponse(content, status_code=200 if is_ready else 503)

    @app.get("/models", summary="The models, their versions and categories", dependencies=protected)
    async def models() -> dict[str, Any]:
        options = backend.options
        return {
            "task": task,
            "models": [_describe_model(each) for each in backend.models.values()],
            "limits": {"max_bytes": options.max_bytes, "max_pixels": options.max_pixels}
            | ({"max_masks": options.max_masks} if task == "refine" else {}),
        }

    @app.get("/metrics", summary="Metrics for Prometheus", dependencies=protected)
    async def metrics() -> Response:
        for name, each in backend.models.items():
            backend.metrics.version.labels(name).set(int(each.current.version))
        return Response(backend.metrics.format(), media_type="text/plain; version=0.0.4")


def _add_pages(app: FastAPI) -> None:
    for path, file in {"/": "index.html", "/docs": "api.html"}.items():
        app.add_api_route(path, _make_page(file), include_in_schema=False)
    app.mount("/page", StaticFiles(directory=PAGE))


def _make_page(file: str) -> Callable[[], Awaitable[Response]]:
    async def show() -> Response:
        return FileResponse(PAGE / file)

    return show


def _require_token(digest: str) -> Any:  # noqa: ANN401  FastAPI's own type of a dependency
    scheme = HTTPBearer(auto_error=False)

    async def check(given: Annotated[HTTPAuthorizationCredentials | None, Depends(scheme)]) -> None:
        found = digest_token(given.credentials) if given else ""
        if not hmac.compare_digest(found, digest):
            raise RequestError(
                401, "the token is missing or wrong; send the header Authorization: Bearer TOKEN"
            )

    async def accept() -> None:
        """Accept every client: the server has no token."""

    return Depends(check if digest else accept)


def _choose_model(name: str, models: Mapping[str, LiveModel]) -> LiveModel:
    if not name:
        return next(iter(models.values()))
    if name not in models:
        raise RequestError(
            422,
            f"model: {name[:100]!r} is not served{suggest(name, models)}; there are: "
            f"{', '.join(models)}",
        )
    return models[name]


def _format(
    found: Prediction, photo: Photo, fields: RequestFields, metrics: ServerMetrics
) -> Response:
    reply = TASKS[found.version.predictor.task].make_reply(found, photo.pixels, fields)
    metrics.detections.inc(reply.number)
    uri = found.version.uri
    if reply.png:
        return Response(reply.png, media_type="image/png", headers={"X-Model": uri})
    height, width = photo.pixels.shape[:2]
    shared = {
        "model": uri,
        "image": {"width": width, "height": height},
        "notices": [reason for _, reason in photo.notices],
    }
    return JSONResponse(shared | reply.content)


def _describe_model(model: LiveModel) -> dict[str, Any]:
    version = model.current
    # A refiner finds no objects: those of its training data would say nothing about its answers.
    categories = () if model.task == "refine" else version.predictor.categories
    colors = list_colors(categories, model.task)
    return {
        "name": model.name,
        "version": version.uri,
        "categories": [
            {"id": each.category_id, "name": each.name, "color": color}
            for each, color in zip(categories, colors, strict=True)
        ],
        "problem": model.problem,
    }


def _make_middleware(metrics: ServerMetrics) -> Callable[..., Awaitable[Response]]:
    async def count(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        response = await call_next(request)
        route = request.scope.get("route")
        # Clients choose paths, and every label is a series of its own.
        path = getattr(route, "path", "other")
        metrics.requests.labels(path, response.status_code).inc()
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    return count


def _list_handlers() -> dict[type[Exception], Callable[[Request, Any], Awaitable[Response]]]:
    async def refuse(_: Request, error: RequestError) -> Response:
        headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}
        return _answer_error(error.status, str(error), headers.get(error.status))

    async def refuse_path(request: Request, error: HTTPException) -> Response:
        text = f"{request.method} {request.url.path[:100]}: {error.detail}; the API is in /docs"
        return _answer_error(error.status_code, text, error.headers)

    async def fail(_: Request, error: Exception) -> Response:
        _log.error("a request failed", exc_info=error)
        return _answer_error(500, "the server failed; the reason is in its log")

    return {RequestError: refuse, HTTPException: refuse_path, Exception: fail}


def _answer_error(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"error": text}, status_code=status, headers=headers)
