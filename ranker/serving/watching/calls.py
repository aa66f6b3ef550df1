"""The call that a thread is at: what its log lines, its metrics and its trace name.

A synchronous server answers a call on one thread, so a context variable of that thread has it; the bundle that answers
fills in what the wire does not say (`ranker.serving.served`).
"""

import time
from contextvars import ContextVar
from dataclasses import dataclass, field

from ranker.request import Answer


@dataclass(slots=True)
class Call:
    """One call under way."""

    method: str  # such as `Rank`
    request_id: str = ""  # the message's own, else that of the metadata `x-request-id`; brief
    traceparent: str = ""  # of the metadata (W3C Trace Context)
    bundle: str = ""  # version of the bundle that answers; empty: none has been asked
    columns: tuple[str, ...] = ()  # the features of that bundle, as `Trace.missing` has them
    arm: str = ""  # of the experiment; empty: none
    answer: Answer | None = None  # of a Rank or Recommend
    began: int = field(default_factory=time.perf_counter_ns)
    began_at: int = field(default_factory=time.time_ns)  # ns since 1970, for the trace


#: None outside a call
CURRENT: ContextVar[Call | None] = ContextVar("call", default=None)
