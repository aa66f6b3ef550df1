"""Lines of the server's log, as text or as JSON; a line that is written within a call names it."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from features.errors import brief
from ranker.serving.watching.calls import CURRENT

#: fields of a record that the JSON has where they are set by `extra`
EXTRA = ("code",)
#: characters of a traceback
TRACEBACK = 8000


def set_up(form: str) -> None:
    """Write the log to stderr. form: `text` or `json`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def of_call() -> dict[str, str]:
    """Return what names the call that this thread is at; nothing outside one."""
    call = CURRENT.get()
    if call is None:
        return {}
    named = {"method": call.method, "request_id": call.request_id, "bundle": call.bundle, "arm": call.arm}
    trace = call.traceparent.split("-")
    return {name: value for name, value in {**named, "trace_id": trace[1] if len(trace) > 2 else ""}.items() if value}


class Lines(logging.Formatter):
    """Formats a traceback without the megabytes that an exception's message may have."""

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """Return the traceback, its lines and all of it cut."""
        return brief("\n".join(map(brief, super().formatException(ei).splitlines())), TRACEBACK)


class TextLines(Lines):
    """Text, with the request's id behind the message where there is one."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Return the line without its traceback."""
        line = super().formatMessage(record)
        request_id = of_call().get("request_id")
        return f"{line} [request {request_id}]" if request_id else line


class JsonLines(Lines):
    """One JSON object a line: time (ISO 8601, UTC), level, logger, message, and what names the call."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; a traceback is its field `traceback`."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= of_call() | {name: getattr(record, name) for name in EXTRA if hasattr(record, name)}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
