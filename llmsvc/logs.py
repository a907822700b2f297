"""What the service says of itself: a line for each request and each answer, in words or as JSON.

Never what was asked or answered, nor a name or a key that somebody gave: fields are ids, counts and states, and of an
error its type and place.
"""

import json
import logging
import time
import traceback
from contextvars import ContextVar
from types import TracebackType
from typing import Any

REQUEST: ContextVar[str] = ContextVar("request", default="")
"""The id of the request that is being answered."""

_Failure = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def configure(level: str, as_json: bool) -> None:
    """``level`` is ours; libraries only warn, since some of them log what they are given."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if as_json else _Words("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level="WARNING", handlers=[handler], force=True)
    logging.getLogger("llmsvc").setLevel(level.upper())


def event(logger: logging.Logger, level: int, name: str, **fields: Any) -> None:
    """One line of what happened."""
    logger.log(level, name, extra={"fields": fields})


class _Words(logging.Formatter):
    def formatException(self, ei: _Failure) -> str:
        return _place(ei)

    def formatMessage(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        return super().formatMessage(record) + "".join(f" {name}={value}" for name, value in fields.items())


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z"
        line = {"time": at, "level": record.levelname.lower(), "logger": record.name, "event": record.getMessage()}
        if request := REQUEST.get():
            line["request"] = request
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["error"] = _place(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def _place(failure: _Failure) -> str:
    """Where it was raised and of what type. Its text is left out, as it may quote what a user wrote."""
    kind, error, trace = failure
    if kind is None or error is None:
        return ""
    frames = "".join(traceback.format_list(traceback.extract_tb(trace)))
    return f"{frames}{kind.__module__}.{kind.__qualname__}"
