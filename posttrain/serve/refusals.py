"""What the server answers where it refuses: posttrain's error voice in OpenAI's shape.

raise refused("the prompt is empty", param="prompt", remedy="write a text, or a list of token ids")
-> HTTP 400 {"error": {"message": "...", "type": "invalid_request_error", "param": "prompt", "code": null}}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from posttrain.errors import ConfigError, PosttrainError

INVALID = "invalid_request_error"
TOO_LONG = "context_length_exceeded"
"""The code by which clients know a prompt that does not fit: inspect-ai ends the sample, and does not fail it."""
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class RequestRefused(ConfigError):
    """A request that is answered with an error; the server goes on.

    Args:
        param: the field of the request that is at fault.
        code: a word that programs look for.
        status: of HTTP.
        headers: beside the usual ones, such as Retry-After.
    """

    def __init__(
        self,
        problem: str,
        *,
        remedy: str,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
        headers: Mapping[str, str] | None = None,
        **details: Any,
    ):
        self.param, self.code, self.status = param, code, status
        self.headers = dict(headers or {})
        super().__init__(problem, remedy=remedy, **details)


def refused(problem: str, *, param: str | None, remedy: str, **details: Any) -> RequestRefused:
    """The error for one field of a request: refused("...", param="top_p", found=2, expected="0 to 1", remedy="...")."""
    return RequestRefused(problem, param=param, remedy=remedy, **details)


def error_body(message: str, *, status: int, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's shape of an error, which its client reads `type`, `param` and `code` from."""
    kind = _TYPES.get(status, INVALID if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def body_of(error: PosttrainError, hidden: Iterable[str] = ()) -> tuple[int, dict[str, Any], dict[str, str]]:
    """(status, body, headers) of an error of posttrain's own.

    Args:
        hidden: texts that no answer may show, such as the folder of the model.
    """
    if isinstance(error, RequestRefused):
        status, param, code, headers = error.status, error.param, error.code, error.headers
    else:
        # Whoever reads a row, renders a template or encodes a text refuses what came in as a ValueError.
        status, param, code, headers = (400 if isinstance(error, ValueError) else 500), None, None, {}
    message = str(error)
    for text in hidden:
        message = message.replace(text, "...")
    return status, error_body(message, status=status, param=param, code=code), headers
