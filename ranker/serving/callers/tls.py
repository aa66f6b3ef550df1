"""TLS of the server: its certificate, read anew when it changes, and whose clients it lets in."""

import os
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from features.errors import PairliftError
from ranker.asking.expiry import warn_of_end
from ranker.serving.callers.watched import Watched

#: seconds
A_DAY = 86_400


@dataclass(frozen=True, slots=True)
class ServerTls:
    """Where the PEM files lie."""

    cert: Path  # the server's certificate, and behind it those up to the root
    key: Path  # its private key, without a password
    client_ca: Path | None = None  # the roots of the clients' certificates; None: clients need none

    def credentials(self) -> Any:
        """Return `grpc.ServerCredentials`; PairliftError where the files are not a certificate, its key, and roots.

        The files are looked at before each handshake: a new connection meets the new certificate, an open one keeps the
        one that it began with until `[serve] connection_age` ends it. Of one that has ended, or will soon, a line is
        logged when it is read, and at a handshake once a day: a server may run for longer than its certificate.
        """
        paths = [self.cert, self.key, *([] if self.client_ca is None else [self.client_ca])]
        files = Watched(paths, self._configuration)
        told = time.monotonic()

        def before_handshake() -> Any:
            nonlocal told
            changed = files.look()
            if time.monotonic() - told >= A_DAY:
                told = time.monotonic()
                self._warn_of_ends()
            return files.value if changed else None

        return grpc.dynamic_ssl_server_credentials(files.value, before_handshake, self.client_ca is not None)

    def _configuration(self, contents: list[bytes]) -> Any:
        cert, key, *roots = contents
        self._check(cert, key, *roots)
        self._warn_of_ends()
        return grpc.ssl_server_certificate_configuration([(key, cert)], roots[0] if roots else None)

    def _warn_of_ends(self) -> None:
        with suppress(OSError):  # files that are gone are told of by who looks whether they changed
            warn_of_end(self.cert, self.cert.read_bytes())
            if self.client_ca is not None:
                warn_of_end(self.client_ca, self.client_ca.read_bytes(), roots=True)

    def _check(self, cert: bytes, key: bytes, roots: bytes | None = None) -> None:
        """Raise PairliftError where a handshake with these would fail: gRPC itself would say so to the client alone."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            with ExitStack() as stack:  # OpenSSL takes paths: of files in memory, so that a key is on no other disk
                places = [stack.enter_context(_in_memory(content)) for content in (cert, key)]
                context.load_cert_chain(places[0], places[1], password="")
        except (ssl.SSLError, ValueError) as error:
            raise PairliftError(
                f"{self.cert} and {self.key}: a certificate and its private key (PEM, no password) were expected; "
                f"OpenSSL says: {error}"
            ) from error
        try:
            if roots is not None:
                context.load_verify_locations(cadata=roots.decode("ascii"))
        except (ssl.SSLError, ValueError) as error:
            raise PairliftError(f"{self.client_ca}: certificates (PEM) were expected; OpenSSL says: {error}") from error


@contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    """Give a path under which a content can be read, in no folder."""
    file = os.memfd_create("pairlift")
    try:
        os.write(file, content)
        yield f"/proc/self/fd/{file}"
    finally:
        os.close(file)
