"""What the fuzzing benchmark sends: calls as bytes, drawn from good ones that are broken, and from hostile ones."""

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from pairlift.v1 import admin_pb2, metrics_pb2
from pairlift.v1 import ranking_pb2 as pb
from world import SPAN, START

from features.schema import DAY

SERVICE = "/pairlift.v1.RankingService/"
#: good messages of each kind that are broken
CORPUS = 60
#: longest run of random bytes
BYTES = 200
#: of a large message, and how many large ones there are among all
LARGE, LARGE_SHARE = 100_000, 0.0005
#: integers that a caller may have meant
ODD = (
    0,
    1,
    -1,
    2,
    127,
    128,
    -128,
    2**31 - 1,
    -(2**31),
    2**32,
    2**53,
    2**62,
    2**63 - 1,
    -(2**63),
    START,
)
NUMBERS = (0.0, -0.0, 1.0, float("nan"), float("inf"), -float("inf"), 1e38, 3.5e38, 1e308, 5e-324, -1e12)
TEXTS = ("", "feed", "\0", "\n", "é" * 300, "\U0001f600" * 100, "x" * 257, "-1", "nan", "1e999", "' OR 1=1 --", "../..")
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
METHODS = ("Rank", "Recommend", "RecordEvents", "Describe")
WRONG = ("Nothing", "rank", "", "Rank/Rank", "TakeSnapshots", "%00", "é")
#: methods of the other services, which take messages that nobody drew for them
OTHERS = tuple(
    f"/{service.full_name}/{method.name}"
    for module in (admin_pb2, metrics_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
)
#: shares of the methods
SHARES = (0.4, 0.35, 0.2, 0.05)


class Asked(NamedTuple):
    """One call."""

    method: str
    messages: tuple[bytes, ...]
    streams: bool = False  # whether the caller takes a stream of answers
    several: bool = False  # whether the caller sends another number of messages than one
    cancelled: bool = False
    deadline: float | None = None  # seconds


class Drawer:
    """Draws calls."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._good = {name: [self._message(name) for _ in range(CORPUS)] for name in METHODS}
        self._breaks: tuple[Callable[[bytes], bytes], ...] = (
            self._random, self._flipped, self._cut, self._inserted, self._joined, self._long_varint, self._nested,
            self._bad_text, self._unknown_field, self._other_length,
        )  # fmt: skip
        items = pb.Ids(integers=pb.IntegerIds(values=[10 + 3 * k for k in range(20)]))
        #: a Rank of the time when half of the world's log was there
        self.good = pb.RankRequest(user=pb.Id(integer=1007), items=items, as_of=START + SPAN // 2).SerializeToString()

    def call(self) -> Asked:
        """Draw a call."""
        rng, draw = self._rng, self._rng.random()
        if draw < 0.02:
            return Asked(SERVICE + str(rng.choice(WRONG)), (self._random(b""),))
        if draw < 0.0202:
            return Asked(f"{SERVICE}TakeSnapshot", (self._random(b""),))
        if draw < 0.0252:
            return Asked(str(rng.choice(OTHERS)), (self.message(str(rng.choice(METHODS))),))
        name = str(rng.choice(METHODS, p=SHARES))
        kinds = {"cancelled": draw > 0.99, "deadline": float(rng.choice([0.0, 1e-4, 0.002])) if draw > 0.98 else None}
        if name == "RecordEvents":
            sent = (self.message(name), *(self.message(name) for _ in range(rng.integers(0, 3))))
            return Asked(SERVICE + name, sent, streams=True, **kinds)
        if draw < 0.03:  # none, or two, where one was expected
            return Asked(SERVICE + name, (self.message(name),) * int(2 * rng.integers(0, 2)), several=True)
        return Asked(SERVICE + name, (self.message(name),), **kinds)

    def message(self, name: str) -> bytes:
        """Draw a message of a method: a broken one, or a hostile one."""
        if self._rng.random() < 0.4:
            return self._message(name)
        good = self._good[name]
        return self._breaks[self._rng.integers(0, len(self._breaks))](good[self._rng.integers(0, len(good))])

    def bytes_of_a_connection(self) -> bytes:
        """Draw what is sent to the port without any gRPC."""
        rng, kind = self._rng, self._rng.integers(0, 4)
        if kind == 0:
            return self._random(b"")
        if kind == 1:
            return b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
        frames = b""
        for _ in range(rng.integers(1, 10)):
            held = self._random(b"")
            size = len(held) if kind == 2 else int(rng.integers(0, 1 << 24))
            frames += struct.pack(">I", size)[1:] + bytes(rng.integers(0, 11, 2).astype(np.uint8).tolist())
            frames += struct.pack(">I", int(rng.integers(0, 8))) + held
        return PREFACE + frames

    # What is hostile: well-formed messages of values that nobody should send.

    def _message(self, name: str) -> bytes:
        if name == "RecordEvents":
            return self._events().SerializeToString()
        if name == "Describe":
            return b""
        request: Any = pb.RankRequest() if name == "Rank" else pb.RecommendRequest()
        request.request_id = self._text()
        self._id(request.user, 1000, 7, 40)
        if self._rng.random() < 0.5:
            request.as_of = self._time()
        request.explain = bool(self._rng.random() < 0.2)
        if self._rng.random() < 0.5:
            request.context.surface, request.context.query = self._text(), self._text()
            self._id(request.context.source_item, 10, 3, 80)
            request.context.attributes[self._text()] = self._text()
        if name == "Rank":
            self._ids(request.items, self._count(), 10, 3, 80)
            for _ in range(self._count(4)):
                request.columns.append(self._column())
        else:
            request.k = int(np.clip(self._odd(), -(2**31), 2**31 - 1)) if self._rng.random() < 0.3 else 10
            self._ids(request.exclude, self._count(), 10, 3, 80)
        return bytes(request.SerializeToString())

    def _events(self) -> pb.RecordEventsRequest:
        rng, n = self._rng, self._count(20)
        lengths = (n, n, n, n, n + 1, 0) if rng.random() < 0.3 else (n,)
        some = lambda: int(rng.choice(lengths))  # noqa: E731
        events = pb.RecordEventsRequest(
            ts=[self._time() for _ in range(some())],
            surfaces=rng.integers(0, 4, some()).tolist() if rng.random() < 0.3 else [],
            surface_names=[self._text() for _ in range(rng.integers(0, 4))],
            request_ids=[self._text() for _ in range(some())] if rng.random() < 0.3 else [],
            positions=rng.integers(-3, 50, some()).tolist() if rng.random() < 0.3 else [],
            organic=rng.integers(-2, 4, some()).tolist() if rng.random() < 0.3 else [],
            grades=[str(rng.choice(["skip", "like", "", "lik"])) for _ in range(some())] if rng.random() < 0.2 else [],
        )
        self._ids(events.event_ids, some(), -(2**63), 1, 2**63 - 1)
        self._ids(events.users, some(), 1000, 7, 60)
        self._ids(events.items, some(), 10, 3, 90)
        for _ in range(rng.integers(0, 3)):
            name = str(rng.choice(["play", "play", "", "other"]))
            numbers = [self._number() for _ in range(some())] if rng.random() < 0.8 else []
            events.feedback.add(name=name, numbers=numbers, texts=[self._text()] if rng.random() < 0.1 else [])
        return events

    def _column(self) -> pb.CandidateColumn:
        numbers = np.clip([self._number() for _ in range(self._count())], -3.4e38, 3.4e38).tolist()
        texts = [self._text() for _ in range(self._count(3))] if self._rng.random() < 0.3 else []
        return pb.CandidateColumn(name=self._text(), numbers=numbers, texts=texts)

    def _count(self, most: int = 60) -> int:
        """Draw how many there are: mostly some, now and then very many."""
        return LARGE // 10 if self._rng.random() < LARGE_SHARE else int(self._rng.integers(0, most))

    def _id(self, message: pb.Id, start: int, step: int, n: int) -> None:
        kind = self._rng.random()
        if kind < 0.7:
            message.integer = start + step * int(self._rng.integers(0, n))
        elif kind < 0.8:
            message.integer = max(self._odd(), -(2**63))
        elif kind < 0.9:
            message.text = self._text()

    def _ids(self, message: pb.Ids, count: int, start: int, step: int, n: int) -> None:
        if self._rng.random() < 0.9:
            values = (
                start + step * self._rng.integers(0, n, count) if start >= 0 else self._rng.integers(start, n, count)
            )
            message.integers.values.extend(values.tolist())
            if count and self._rng.random() < 0.1:
                message.integers.values[0] = self._odd()
        else:
            message.texts.values.extend(self._text() for _ in range(count))

    def _time(self) -> int:
        return START + SPAN - int(self._rng.integers(0, 3 * DAY)) if self._rng.random() < 0.7 else self._odd()

    def _odd(self) -> int:
        return (
            ODD[self._rng.integers(0, len(ODD))]
            if self._rng.random() < 0.8
            else int(self._rng.integers(-(2**62), 2**62))
        )

    def _number(self) -> float:
        return float(self._rng.random()) if self._rng.random() < 0.7 else NUMBERS[self._rng.integers(0, len(NUMBERS))]

    def _text(self) -> str:
        if self._rng.random() < LARGE_SHARE:
            return "x" * LARGE
        return TEXTS[self._rng.integers(0, len(TEXTS))]

    # What is broken: bytes that are no message, or another than was meant.

    def _random(self, _: bytes) -> bytes:
        return self._rng.bytes(int(self._rng.integers(0, BYTES)))

    def _place(self, good: bytes) -> int:
        return int(self._rng.integers(0, len(good) + 1))

    def _flipped(self, good: bytes) -> bytes:
        broken = bytearray(good)
        for _ in range(self._rng.integers(1, 6) if good else 0):
            broken[self._rng.integers(0, len(good))] ^= 1 << int(self._rng.integers(0, 8))
        return bytes(broken)

    def _cut(self, good: bytes) -> bytes:
        return good[: self._place(good)]

    def _inserted(self, good: bytes) -> bytes:
        at = self._place(good)
        return good[:at] + self._random(good)[:20] + good[at:]

    def _joined(self, good: bytes) -> bytes:
        """Fields twice, each kind of a oneof among them: as protobuf has it, the last holds, and lists grow."""
        others = self._good[str(self._rng.choice(METHODS[:3]))]
        return good + others[self._rng.integers(0, len(others))] + good

    def _long_varint(self, good: bytes) -> bytes:
        at = self._place(good)
        return good[:at] + b"\xff" * int(self._rng.integers(1, 12)) + b"\x01" + good[at:]

    def _nested(self, good: bytes) -> bytes:
        """Groups within groups, or messages within messages, deeper than any parser goes."""
        depth = int(self._rng.integers(90, 300))
        if self._rng.random() < 0.5:
            return good + b"\x7b" * depth + b"\x7c" * depth
        held = b""
        for _ in range(depth):
            held = b"\x1a" + _varint(len(held)) + held
        return good + held

    def _bad_text(self, good: bytes) -> bytes:
        return good + b"\x0a\x03\xff\xfe\xfd" + b"\x1a\x04\x0a\x02\xc3\x28"

    def _unknown_field(self, good: bytes) -> bytes:
        field = int(self._rng.choice([15, 100, 536_870_911, 0]))
        return good + _varint(field << 3 | int(self._rng.integers(0, 8))) + self._random(good)[:30]

    def _other_length(self, good: bytes) -> bytes:
        """One byte other, which may be the length of a field."""
        if not good:
            return good
        broken = bytearray(good)
        broken[self._rng.integers(0, min(len(good), 12))] = int(self._rng.choice([0, 1, 127, 128, 255]))
        return bytes(broken)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])
