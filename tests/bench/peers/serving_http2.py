"""The least of HTTP/2 that unary gRPC calls need, over one plain socket that never blocks.

A generator of load must cost little beside the server that it measures: gRPC's own client in Python takes longer for a
call than a server that refuses it. Here a call is a buffer that is written, with headers that stand for themselves (no
dynamic table, RFC 7541 §6.2.2), and its answer is a few frames (RFC 9113 §6) of which one has the status. What a
client owes is kept: settings and pings are acknowledged, the windows for sending respected, calls that are given up are
reset, and a connection that the server closes (GOAWAY) begins no further ones.
"""

import socket
import struct
from typing import NamedTuple

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_STREAMS, INITIAL_WINDOW, MAX_FRAME = 1, 2, 3, 4, 5
CANCEL, REFUSED_STREAM = 8, 7
#: of windows: the most that HTTP/2 has, and what there is before anything is said
LARGEST, DEFAULT_WINDOW = 2**31 - 1, 65_535
#: the longest frame, there and here
LONGEST = 16_384
#: bytes received after which the connection's window is opened again
REOPEN = 1 << 24
#: a frame's header: length (8 and 16 bits), type, flags, stream
FRAME = struct.Struct(">BHBBI")
STATUS = b"grpc-status"
#: gRPC's status of a call whose stream the server reset, and of one that it never began
INTERNAL, UNAVAILABLE = 13, 14


class Ended(NamedTuple):
    """A call that has its answer."""

    call: int  # the number that `begin` was given
    status: int  # gRPC's code
    body: bytes  # of its answer, with the prefix of 5 bytes; empty where it was not to be kept


def call_of(method: str, message: bytes, timeout: float | None) -> tuple[bytes, bytes]:
    """Return the header block and the data of a call. method: /package.Service/Method. timeout: seconds."""
    headers = [(":method", "POST"), (":scheme", "http"), (":path", method), (":authority", "localhost")]
    headers += [("te", "trailers"), ("content-type", "application/grpc")]
    if timeout is not None:
        headers.append(("grpc-timeout", f"{round(timeout * 1e6)}u"))
    block = b"".join(b"\x00" + _text(name) + _text(value) for name, value in headers)
    if len(message) + 5 > LONGEST:
        raise ValueError(f"a message of at most {LONGEST - 5} bytes was expected, found {len(message)}")
    return block, struct.pack(">BI", 0, len(message)) + message


def _text(text: str) -> bytes:
    assert len(text) < 127  # a length of one byte
    return bytes([len(text)]) + text.encode()


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return a frame."""
    return FRAME.pack(len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream) + payload


class Connection:
    """One connection and the calls that are open on it."""

    def __init__(self, host: str, port: int) -> None:
        self.socket = socket.create_connection((host, port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.open: dict[int, int] = {}  # call by stream
        self.closing = False  # whether it takes no further calls
        self.unseen: list[int] = []  # calls that the server never began: they may begin again elsewhere
        self.failed: list[int] = []  # calls of a connection that broke
        self._stream = 1
        self._kept: dict[int, list[bytes]] = {}
        self._window, self._of_stream, self._most = DEFAULT_WINDOW, DEFAULT_WINDOW, LARGEST
        self._in, self._out, self._received = bytearray(), bytearray(), 0
        settings = ((HEADER_TABLE_SIZE, 0), (ENABLE_PUSH, 0), (INITIAL_WINDOW, LARGEST), (MAX_FRAME, LONGEST))
        payload = b"".join(struct.pack(">HI", *each) for each in settings)
        self._write(PREFACE + frame(SETTINGS, 0, 0, payload) + self._opened(LARGEST - DEFAULT_WINDOW))

    @property
    def has_output(self) -> bool:
        """Whether something waits for the socket."""
        return bool(self._out)

    def takes(self, data: bytes) -> bool:
        """Tell whether a call with so much data can begin now."""
        fits = len(data) <= min(self._window, self._of_stream)
        return fits and not self.closing and len(self.open) < self._most

    def begin(self, call: int, block: bytes, data: bytes, keep: bool = False) -> int:
        """Begin a call and return its stream; `takes` said that it can. keep: its answer's body is wanted."""
        stream = self._stream
        self._stream += 2
        self.open[stream] = call
        if keep:
            self._kept[stream] = []
        self._window -= len(data)
        self._write(frame(HEADERS, END_HEADERS, stream, block) + frame(DATA, END_STREAM, stream, data))
        return stream

    def give_up(self, stream: int) -> bool:
        """Reset a call; False where it has ended."""
        if self.open.pop(stream, None) is None:
            return False
        self._kept.pop(stream, None)
        self._write(frame(RST_STREAM, 0, stream, struct.pack(">I", CANCEL)))
        return True

    def flush(self) -> None:
        """Write what waits."""
        if self._out:
            sent = self._sent(bytes(self._out))
            del self._out[:sent]

    def _write(self, data: bytes) -> None:
        if self._out:
            self._out += data
        else:
            self._out += data[self._sent(data) :]

    def _sent(self, data: bytes) -> int:
        try:
            return self.socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self._break()
            return len(data)

    def receive(self) -> list[Ended]:
        """Read what is there and return the calls that ended by it."""
        try:
            received = self.socket.recv(1 << 20)
        except BlockingIOError:
            return []
        except OSError:
            received = b""
        if not received:
            self._break()
            return []
        self._in += received
        self._received += len(received)
        if self._received >= REOPEN:
            self._write(self._opened(self._received))
            self._received = 0
        return self._frames()

    def _break(self) -> None:
        self.closing = True
        self.failed += self.open.values()
        self.open.clear()

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    def _opened(self, more: int) -> bytes:
        return frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", more))

    def _frames(self) -> list[Ended]:
        """Take the whole frames off what was read."""
        at, data, ended = 0, bytes(self._in), []
        while at + FRAME.size <= len(data):
            high, low, kind, flags, stream = FRAME.unpack_from(data, at)
            stop = at + FRAME.size + (high << 16) + low
            if stop > len(data):
                break
            payload = data[at + FRAME.size : stop]
            at = stop
            if kind == HEADERS:
                if flags & END_STREAM and stream in self.open:
                    body = b"".join(self._kept.pop(stream, ()))
                    ended.append(Ended(self.open.pop(stream), _status(payload), body))
            elif kind == DATA:
                if stream in self._kept:
                    self._kept[stream].append(payload)
            elif kind == RST_STREAM:
                if stream in self.open:
                    refused = payload == struct.pack(">I", REFUSED_STREAM)
                    ended.append(Ended(self.open.pop(stream), UNAVAILABLE if refused else INTERNAL, b""))
            else:
                self._control(kind, flags, stream, payload)
        del self._in[:at]
        return ended

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        """Do what a frame asks that is not of a call."""
        if kind == SETTINGS and not flags & ACK:
            for place in range(0, len(payload), 6):
                name, value = struct.unpack_from(">HI", payload, place)
                if name == MAX_STREAMS:
                    self._most = value
                elif name == INITIAL_WINDOW:
                    self._of_stream = value
            self._write(frame(SETTINGS, ACK, 0, b""))
        elif kind == PING and not flags & ACK:
            self._write(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE and stream == 0:
            self._window += struct.unpack(">I", payload)[0]
        elif kind == GOAWAY:
            self.closing = True
            last = struct.unpack_from(">I", payload)[0]
            for unseen in [stream for stream in self.open if stream > last]:
                self.unseen.append(self.open.pop(unseen))


def _status(block: bytes) -> int:
    """Return the code of trailers; gRPC writes their texts as they are (no Huffman code)."""
    at = block.find(STATUS)
    if at < 0:
        return INTERNAL
    length = block[at + len(STATUS)]
    start = at + len(STATUS) + 1
    return int(block[start : start + length])
