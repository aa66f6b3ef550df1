"""Bearer tokens (RFC 6750): who they are for and what they allow. The server's file has hashes of them alone.

A line of the file is `NAME SHA256 RIGHTS`, the hash in hexadecimal digits, the rights with commas between; `#` begins a
comment. A plain SHA-256 will do, for a token is 256 random bits: there is nothing to guess, so a slow hash would only
make each call slow. A name may have several tokens, so that a new one can be handed out before the old one is deleted.
"""

import hashlib
import re
import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from features.errors import PairliftError
from ranker.serving.callers.watched import Watched

#: what a token may allow: to ask, to record events, to change what the server does
RIGHTS = ("read", "record", "admin")
#: seconds within which a change of the file is seen
LOOK_EVERY = 1.0
#: what a token begins with, so that one that was committed or logged can be searched for
PREFIX = "pairlift_"
_NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Grant:
    """One token's caller and rights."""

    name: str
    rights: frozenset[str]  # of RIGHTS


class Tokens:
    """The tokens of a file, which is looked at again every second while calls come in."""

    def __init__(self, path: Path) -> None:
        """Read the file; PairliftError where a line of it is wrong, or it has none."""
        self._file = Watched([path], lambda contents: read_tokens(path, contents[0]))
        self._next = time.monotonic() + LOOK_EVERY

    def find(self, token: str) -> Grant | None:
        """Return what a token allows; None for one that is not known.

        The look-up is by the hash of what was sent: how long it takes tells nothing of the hashes that are known.
        """
        now = time.monotonic()
        if now >= self._next:
            self._next = now + LOOK_EVERY
            self._file.look()
        return self._file.value.get(hashlib.sha256(token.encode(errors="replace")).digest())


def read_tokens(path: Path, content: bytes) -> dict[bytes, Grant]:
    """Return the grants of a file's content by the SHA-256 of their tokens; PairliftError that names a wrong line."""
    found: dict[bytes, Grant] = {}
    for number, line in enumerate(content.decode(errors="replace").splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        place = f"{path} line {number}"
        if len(words) != 3 or not _NAME.fullmatch(words[0]) or not _HASH.fullmatch(words[1]):
            raise PairliftError(f"{place}: NAME SHA256 RIGHTS was expected, as `pairlift token NAME` prints it")
        digest = bytes.fromhex(words[1])
        if digest in found:
            raise PairliftError(f"{place}: this hash stands in the file twice: delete one of the lines")
        found[digest] = Grant(words[0], frozenset(read_rights(words[2], place)))
    if not found:
        raise PairliftError(f"{path} has no token, so nobody could call: `pairlift token NAME` prints a line for it")
    return found


def read_rights(text: str, place: str) -> list[str]:
    """Return the rights of a list with commas; PairliftError that begins with `place` for an unknown one."""
    rights = text.split(",")
    unknown = [right for right in rights if right not in RIGHTS]
    if unknown:
        raise PairliftError(f"{place}: rights of {', '.join(RIGHTS)} were expected, found '{unknown[0]}'")
    return rights


def new_token(name: str, rights: Collection[str]) -> tuple[str, str]:
    """Return a new token (256 random bits) and its line for the file; PairliftError for a name that no line can have.

    rights: of RIGHTS.
    """
    if not _NAME.fullmatch(name):
        raise PairliftError(f"'{name}': a name of letters, digits, '_', '.' and '-', of at most 64, was expected")
    token = PREFIX + secrets.token_urlsafe(32)
    listed = ",".join(right for right in RIGHTS if right in rights)
    return token, f"{name} {hashlib.sha256(token.encode()).hexdigest()} {listed}"
