"""When certificates end: with one that has ended each handshake fails, and the log of neither side would say why."""

import logging
import re
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

log = logging.getLogger(__name__)

#: how long before it ends that is said
AHEAD = timedelta(days=14)
CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
#: tags of DER
VERSION, UTC_TIME = 0xA0, 0x17


def warn_of_end(path: Path, pem: bytes, *, roots: bool = False) -> None:
    """Log a warning where the certificates of a file have ended, will within AHEAD, or have not begun.

    roots: one that is valid will do; else all are needed. Of what is no certificate nothing is said: TLS itself does.
    """
    try:
        spans = list(spans_of(pem))
    except (ValueError, IndexError):
        return
    if not spans:
        return
    begin, end = (max if roots else min)(spans, key=lambda span: span[1])
    now = datetime.now(UTC)
    if end <= now:
        log.warning("%s: the certificate ended at %s, so no handshake succeeds; put a new one there", path, _iso(end))
    elif end <= now + AHEAD:
        hours = (end - now) // timedelta(hours=1)
        log.warning("%s: the certificate ends at %s, in %d hours; put a new one there", path, _iso(end), hours)
    elif begin > now:
        log.warning("%s: the certificate is not valid before %s; look at the clock", path, _iso(begin))


def spans_of(pem: bytes) -> Iterator[tuple[datetime, datetime]]:
    """Yield from when until when each certificate of a PEM file is valid; ValueError or IndexError for what is none.

    Of `Certificate` in RFC 5280: the fourth of the first part's fields, an optional version left out, is its validity.
    """
    for found in CERTIFICATE.findall(pem.decode("ascii", "replace")):
        _, certificate = _parts(ssl.PEM_cert_to_DER_cert(found))[0]
        fields = [content for tag, content in _parts(_parts(certificate)[0][1]) if tag != VERSION]
        begin, end = (_time(tag, content.decode("ascii")) for tag, content in _parts(fields[3]))
        yield begin, end


def _parts(der: bytes) -> list[tuple[int, bytes]]:
    """Return (tag, content) of what a DER content has, one behind another."""
    found, at = list[tuple[int, bytes]](), 0
    while at < len(der):
        tag, size, at = der[at], der[at + 1], at + 2
        if size >= 0x80:  # then it is how many bytes the size has
            size, at = int.from_bytes(der[at : at + size - 0x80], "big"), at + size - 0x80
        found.append((tag, der[at : at + size]))
        at += size
    return found


def _time(tag: int, text: str) -> datetime:
    return datetime.strptime(text, "%y%m%d%H%M%SZ" if tag == UTC_TIME else "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _iso(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")
