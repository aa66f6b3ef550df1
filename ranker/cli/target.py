"""How the commands that ask a server name it, and are let in: the same options for all of them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import click

from features.errors import PairliftError
from ranker.asking.channel import Tls, read_token
from ranker.client import DEFAULT_ADDRESS, Client

PATH = click.Path(path_type=Path, dir_okay=False)


@dataclass(frozen=True, slots=True)
class Target:
    """A server, and what it is to be shown."""

    address: str  # HOST:PORT
    tls: Tls | None  # None: plain text
    token_file: Path | None

    def client(self, timeout: float = 5.0) -> Client:
        """Return a client of it; timeout: seconds that a call may take."""
        if ":" not in self.address:
            raise PairliftError(f"--address '{self.address}': HOST:PORT was expected, such as {DEFAULT_ADDRESS}")
        token = None if self.token_file is None else read_token(self.token_file)
        return Client(self.address, timeout, tls=self.tls, token=token)


def asks_server(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command, which takes them as one argument: `server`, a Target."""
    options = [
        click.option(
            "--address", "--to", "address", default=DEFAULT_ADDRESS, show_default=True, help="HOST:PORT of the server."
        ),
        click.option("--tls", is_flag=True, help="Speak TLS; as it is, by the public roots. Any --tls-… says so too."),
        click.option("--tls-ca", type=PATH, help="PEM of the roots that the server's certificate must come from."),
        click.option("--tls-cert", type=PATH, help="PEM of a certificate of one's own, where the server asks for it."),
        click.option("--tls-key", type=PATH, help="PEM of its private key."),
        click.option("--token-file", type=PATH, help="File that holds a token, where the server asks for one."),
    ]

    @wraps(command)
    def with_target(
        *,
        address: str,
        tls: bool,
        tls_ca: Path | None,
        tls_cert: Path | None,
        tls_key: Path | None,
        token_file: Path | None,
        **others: Any,
    ) -> Any:
        spoken = tls or any((tls_ca, tls_cert, tls_key))
        server = Target(address, Tls(tls_ca, tls_cert, tls_key) if spoken else None, token_file)
        return command(server=server, **others)

    for option in reversed(options):
        with_target = option(with_target)
    return with_target
