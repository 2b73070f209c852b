"""The ASGI app: routes, and what becomes of errors. `create_app(served, Settings())` is for uvicorn, or a test."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version as version_of

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from posttrain.errors import PosttrainError, did_you_mean, nearest
from posttrain.serve.chat import chat_completions
from posttrain.serve.completions import completions
from posttrain.serve.engine_thread import EngineThread
from posttrain.serve.refusals import RequestRefused, body_of, error_body
from posttrain.serve.scoring import pooling, score
from posttrain.serve.security import Guard
from posttrain.serve.served import Served
from posttrain.serve.state import Settings, State
from posttrain.serve.streaming import ClientGone
from posttrain.serve.token_routes import detokenize, tokenize, tokenizer_info

logger = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]

CLIENT_GONE = 499
"""nginx's word for it; nobody reads it but the metrics."""


async def health(request: Request) -> Response:
    """Whether answers can be had: a server whose engines' thread is gone should be started anew."""
    state: State = request.app.state.server
    return PlainTextResponse("ok") if state.thread.is_alive else PlainTextResponse("the engines have ended", 503)


async def version(request: Request) -> Response:
    return JSONResponse({"version": version_of("posttrain")})


async def models(request: Request) -> Response:
    served: Served = request.app.state.server.served
    return JSONResponse({"object": "list", "data": [_model(served, name) for name in served.names]})


async def model(request: Request) -> Response:
    served: Served = request.app.state.server.served
    return JSONResponse(_model(served, served.require(request.path_params["name"])))


def _model(served: Served, name: str) -> dict[str, object]:
    policy = served.policies.get(name)
    return {
        "id": name,
        "object": "model",
        "created": served.created,
        "owned_by": "posttrain",
        "max_model_len": policy.longest if policy is not None else None,
        "parent": policy.is_adapter_of if policy is not None else None,
    }


async def metrics(request: Request) -> Response:
    state: State = request.app.state.server
    return Response(state.thread.meter.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


ROUTES: dict[str, tuple[str, Handler]] = {
    "/health": ("GET", health),
    "/version": ("GET", version),
    "/metrics": ("GET", metrics),
    "/v1/models": ("GET", models),
    "/v1/models/{name:path}": ("GET", model),
    "/v1/completions": ("POST", completions),
    "/v1/chat/completions": ("POST", chat_completions),
    "/v1/score": ("POST", score),
    "/score": ("POST", score),
    "/pooling": ("POST", pooling),
    "/tokenize": ("POST", tokenize),
    "/detokenize": ("POST", detokenize),
    "/tokenizer_info": ("GET", tokenizer_info),
}
"""Every path that is answered."""


def create_app(served: Served, settings: Settings | None = None) -> Starlette:
    """The app; its engines' thread lives as long as the app does, from the lifespan's start to its end."""
    settings = settings or Settings()
    state = State(served, EngineThread(settings.max_rows, settings.max_waiting), settings)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        state.thread.start()
        try:
            yield
        finally:
            await state.thread.close()

    app = Starlette(
        routes=[Route(path, _answered(path, handler), methods=[method]) for path, (method, handler) in ROUTES.items()],
        middleware=[Middleware(Guard, settings=settings)],
        exception_handlers={HTTPException: _no_route, Exception: _fault},
        lifespan=lifespan,
    )
    app.state.server = state
    return app


def _answered(path: str, handler: Handler) -> Handler:
    """A route whose errors are answers, counted and, where that is asked for, logged by a line without contents."""

    async def answer(request: Request) -> Response:
        state: State = request.app.state.server
        begin = time.monotonic()
        try:
            response = await handler(request)
        except PosttrainError as error:
            status, body, headers = body_of(error, state.served.hidden)
            if status >= 500 and not isinstance(error, RequestRefused):
                logger.error("%s: %s", path, error)
            response = JSONResponse(body, status_code=status, headers=headers)
        except (ClientGone, ClientDisconnect):
            response = Response(status_code=CLIENT_GONE)
        except Exception:  # the boundary: no client sees a traceback, or a path of this machine
            logger.exception("an unexpected fault in %s", path)
            message = "an unexpected fault of the server, which its log explains"
            response = JSONResponse(error_body(message, status=500), status_code=500)
        state.thread.meter.requests[path, response.status_code] += 1
        if state.settings.log_requests:
            client = request.client.host if request.client is not None else "-"
            logger.info(
                "%s %s %s %s %.0f ms",
                client,
                request.method,
                path,
                response.status_code,
                1e3 * (time.monotonic() - begin),
            )
        return response

    return answer


async def _no_route(request: Request, error: Exception) -> Response:
    """404 and 405, in the shape of all errors."""
    assert isinstance(error, HTTPException)
    path = request.url.path[:100]
    if error.status_code == 405:
        problem, remedy = f"`{path}` is not asked by {request.method}", "use the method that the path is made for"
    else:
        near = nearest(path, [known for known in ROUTES if "{" not in known])
        problem, remedy = f"there is nothing at `{path}`", did_you_mean(near, "see docs/serve.md for the paths")
    refusal = RequestRefused(problem, status=error.status_code, code="no_such_path", remedy=remedy)
    status, body, _ = body_of(refusal)
    return JSONResponse(body, status_code=status, headers=dict(error.headers or {}))


async def _fault(request: Request, error: Exception) -> Response:
    message = "an unexpected fault of the server, which its log explains"
    return JSONResponse(error_body(message, status=500), status_code=500)
