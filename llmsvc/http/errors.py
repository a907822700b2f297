"""Errors as the OpenAI and the Anthropic API define them: one body that clients of both understand."""

import json
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from llmsvc.errors import BadRequest, LlmsvcError

log = logging.getLogger(__name__)

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_UNREADABLE = BadRequest("The body could not be read. Send JSON as UTF-8.")


def body(error: LlmsvcError, param: str | None = None) -> dict[str, Any]:
    """https://platform.openai.com/docs/guides/error-codes, https://docs.anthropic.com/en/api/errors"""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    said = {"message": _whole(str(error)), "type": kind, "param": param and _whole(param), "code": error.code}
    return {"type": "error", "error": said}


def _whole(text: str) -> str:
    """Without halves of surrogate pairs, which a request may have and no answer can."""
    return text.encode("utf-8", "replace").decode()


def refused(error: LlmsvcError, param: str | None = None) -> JSONResponse:
    """The response, with Retry-After where coming again may help."""
    wait = error.retry_seconds
    return JSONResponse(body(error, param), error.status, {"Retry-After": str(wait)} if wait else None)


def event(error: LlmsvcError) -> str:
    """The same within a stream of events."""
    return f"event: error\ndata: {json.dumps(body(error), ensure_ascii=False)}\n\n"


class ApiRoute(APIRoute):
    """A route whose errors all have that body, and never a traceback."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            try:
                return await handle(request)
            except LlmsvcError as error:
                return refused(error)
            except RequestValidationError as error:
                return refused(*_first(error))
            except HTTPException as error:  # FastAPI's own, around what happened while it read the body
                return refused(error.__cause__ if isinstance(error.__cause__, LlmsvcError) else _UNREADABLE)
            except ClientDisconnect:
                return Response(status_code=499)  # nobody reads it
            except Exception:
                log.exception("%s failed", self.path)
                return refused(LlmsvcError("This request failed inside the service. Its log says why."))

        return guarded


async def unreadable(_: Request, error: Exception) -> Response:
    """A handler for what Gradio's routes cannot read; FastAPI's own fails where a number is none."""
    return refused(*_first(error)) if isinstance(error, RequestValidationError) else refused(_UNREADABLE)


def _first(error: RequestValidationError) -> tuple[BadRequest, str | None]:
    """What is wrong first, and where."""
    found = error.errors()[0]
    place = ".".join(str(part) for part in found["loc"][1:] if not str(part).startswith(("list[", "dict[", "str")))
    if found["type"] == "json_invalid":
        return BadRequest("The body is no JSON. Send a JSON object."), None
    return BadRequest(f"{place or 'body'}: {found['msg']}."), place or None
