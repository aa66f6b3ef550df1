"""Who may call what: a server interceptor, which refuses before a message is read."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import grpc
from grpc_health.v1 import health
from pairlift.v1 import ranking_pb2 as pb

from ranker.serving.callers.tokens import Tokens

_SERVICE = pb.DESCRIPTOR.services_by_name["RankingService"].full_name
_PACKAGE = pb.DESCRIPTOR.package
#: the right that each method needs; any other, of another service too, needs `admin`
NEEDS = {
    **{f"{_SERVICE}/{name}": "read" for name in ("Recommend", "Rank", "Describe")},
    f"{_SERVICE}/RecordEvents": "record",
    f"{_PACKAGE}.MetricsService/Metrics": "read",
}
BEARER = "Bearer "
NO_TOKEN = "a token was expected: send the metadata `authorization: Bearer TOKEN` (our commands: --token-file)"
UNKNOWN_TOKEN = "this token is not known: `pairlift token NAME` makes one, and a line for the file of `serve --tokens`"


@lru_cache(maxsize=64)  # callers may send any name
def right_of(method: str) -> str | None:
    """Return the right that `/package.Service/Method` needs; None: it is open to all, as health is."""
    name = method.lstrip("/")
    service = name.partition("/")[0]
    if service == health.SERVICE_NAME:
        return None
    return "read" if service.startswith("grpc.reflection.") else NEEDS.get(name, "admin")


class Rights(grpc.ServerInterceptor):
    """Lets in calls whose token has the right that their method needs."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Return the handler of a call, or one that refuses it."""
        right = right_of(handler_call_details.method)
        if right is None:
            return continuation(handler_call_details)
        token = token_in(handler_call_details.invocation_metadata)
        grant = None if token is None else self._tokens.find(token)
        if grant is None:
            return _refusal(grpc.StatusCode.UNAUTHENTICATED, NO_TOKEN if token is None else UNKNOWN_TOKEN)
        if right not in grant.rights:
            method, has = handler_call_details.method.rpartition("/")[2], ", ".join(sorted(grant.rights))
            sentence = f"{method} needs the right '{right}', and the token of '{grant.name}' has: {has}"
            return _refusal(grpc.StatusCode.PERMISSION_DENIED, sentence)
        return continuation(handler_call_details)


def token_in(metadata: Any) -> str | None:
    """Return the bearer token of a call; None where it has none."""
    for key, value in metadata:
        if key == "authorization" and isinstance(value, str) and value.startswith(BEARER):
            return value[len(BEARER) :].strip()
    return None


def _refusal(code: grpc.StatusCode, sentence: str) -> Any:
    """Return a handler that ends a call of any kind; one of a stream, for it needs not wait for a message."""
    return grpc.stream_stream_rpc_method_handler(partial(_refuse, code, sentence))


def _refuse(code: grpc.StatusCode, sentence: str, _: Any, context: grpc.ServicerContext) -> Any:
    context.abort(code, sentence)
