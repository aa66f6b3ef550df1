"""Who may reach a server: TLS, tokens, and on which addresses it listens without them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from features.errors import PairliftError
from ranker.asking.channel import is_loopback
from ranker.serving.callers.limits import Callers
from ranker.serving.callers.rights import Rights
from ranker.serving.callers.tls import ServerTls
from ranker.serving.callers.tokens import Tokens
from ranker.serving.port import UNIX


@dataclass(frozen=True, slots=True)
class Access:
    """What `pairlift serve` says of its callers. As it is: anybody, from this machine alone."""

    tls: ServerTls | None = None  # None: plain text
    tokens: Path | None = None  # file of `ranker.serving.callers.tokens`; None: nobody is asked who they are
    insecure: bool = False  # whether plain text may leave this machine

    def check(self, host: str) -> None:
        """Raise PairliftError where listening on that host would show what is said, or tokens, to the network."""
        if self.tls is not None or host.startswith(UNIX) or is_loopback(host):
            return
        if not self.insecure:
            raise PairliftError(
                f"--host {host} is reached from other machines, and without TLS all that is said can be read and "
                "changed on the way: give --tls-cert and --tls-key, or --insecure where the network itself is private"
            )
        if self.tokens is not None:
            raise PairliftError(
                f"--tokens with --host {host} and no TLS: whoever sees the network could read the tokens and use them. "
                "Give --tls-cert and --tls-key, or listen on 127.0.0.1 behind a proxy that has TLS"
            )

    def credentials(self) -> Any:
        """Return `grpc.ServerCredentials`, None for plain text; PairliftError where the files are wrong."""
        return None if self.tls is None else self.tls.credentials()

    def around(self, gate: grpc.ServerInterceptor, calls_per_caller: int) -> tuple[grpc.ServerInterceptor, ...]:
        """Return what each call passes, the outermost first: rights before the gate, limits of one caller behind it.

        PairliftError where the file of tokens is wrong. calls_per_caller: 0 is no limit.
        """
        tokens = None if self.tokens is None else Tokens(self.tokens)
        rights = () if tokens is None else (Rights(tokens),)
        return (*rights, gate, *((Callers(calls_per_caller, tokens),) if calls_per_caller else ()))


#: the default: plain text, on this machine alone
ANYBODY_HERE = Access()
