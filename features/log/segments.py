"""The bytes of a recorded event log: segment files of checksummed frames.

A segment `<first frame, 20 digits>.log` starts with MAGIC. A frame is what one commit wrote: a head of 36 bytes
(mark, checksum of the rest, number, time of arrival in µs, length) and an Arrow stream of the events. Frames
count on from 1 through all segments. What follows the last whole frame of the last segment was never
acknowledged: a crash tore it. A damaged frame anywhere else is an error, for frames behind it were acknowledged.

Event ids are text, of either kind on the wire. Older segments have integers too, also beside text in one segment: they
are read as text.

One process writes a segment, and the last segment ends when the process does. So a segment is known by its first
frame: what two files of that name both have is the same, and a backup's, copied while it was written, is only shorter.
"""

import hashlib
import logging
import os
import struct
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.errors import PairliftError
from features.files import made_folder, written

log = logging.getLogger(__name__)

MAGIC = b"pairlift-log-1\n\0"
MARK = b"\xf6PLf"
HEAD = struct.Struct("<4sIQqQ")
_CHECKED = struct.Struct("<QqQ")
#: columns of an exported file that say from which segment (`segment_name`) and frame of it a row is
SEGMENT, FRAME = "pairlift_segment", "pairlift_frame"


class Frame(NamedTuple):
    """One commit."""

    number: int  # counts on from 1 through all segments
    arrival: int  # µs UTC
    events: pa.Table  # `event_id` as text


def with_text_ids(events: pa.Table) -> pa.Table:
    """Return events with `event_id` as text: 7 is "7"."""
    place = events.schema.get_field_index("event_id")
    return events.set_column(place, "event_id", events.column(place).cast(pa.string()))


def encode(number: int, arrival: int, events: pa.Table) -> bytes:
    """Return the bytes of a frame. No two are alike, so that two logs which begin with one batch differ."""
    events = events.replace_schema_metadata({"frame": uuid.uuid4().hex})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, events.schema) as writer:
        writer.write_table(events.combine_chunks())
    payload = sink.getvalue()
    rest = _CHECKED.pack(number, arrival, len(payload))
    head = HEAD.pack(MARK, zlib.crc32(payload, zlib.crc32(rest)), number, arrival, len(payload))
    return head + bytes(payload)


def _decode(data: memoryview, at: int) -> tuple[Frame, int] | None:
    """Return the frame at a place and the place behind it, None where there is no whole one."""
    if len(data) - at < HEAD.size:
        return None
    mark, checksum, number, arrival, length = HEAD.unpack_from(data, at)
    behind = at + HEAD.size + length
    if mark != MARK or behind > len(data):
        return None
    payload = data[at + HEAD.size : behind]
    if zlib.crc32(payload, zlib.crc32(_CHECKED.pack(number, arrival, length))) != checksum:
        return None
    with pa.ipc.open_stream(pa.py_buffer(payload)) as reader:
        return Frame(number, arrival, with_text_ids(reader.read_all().replace_schema_metadata())), behind


def segment_files(folder: Path) -> list[Path]:
    """Return the segments of a log in their order. Files of other names are ignored."""
    return sorted(folder.glob("[0-9]" * 20 + ".log"))


def first_number(path: Path) -> int:
    """Return the number of a segment's first frame."""
    return int(path.stem)


def segment_name(path: Path) -> str:
    """Return the name of a segment that no other has, of any log: its first frame's number and a hash of its bytes."""
    with path.open("rb") as file:
        file.seek(len(MAGIC))
        head = file.read(HEAD.size)
        length = HEAD.unpack(head)[-1] if len(head) == HEAD.size else 0
        first = head + file.read(min(length, path.stat().st_size))
    return f"{path.stem}-{hashlib.sha256(first).hexdigest()[:32]}"


def frame_heads(path: Path) -> Iterator[tuple[int, int]]:
    """Yield (number, checksum) of a segment's frames up to the first that is not whole. Their events are not read."""
    size, at = path.stat().st_size, len(MAGIC)
    with path.open("rb") as file:
        while at + HEAD.size <= size:
            file.seek(at)
            mark, checksum, number, _, length = HEAD.unpack(file.read(HEAD.size))
            at += HEAD.size + length
            if mark != MARK or at > size:
                return
            yield number, checksum


def checksum_of(folder: Path, number: int) -> int | None:
    """Return the checksum of a frame of a log, None where the log does not have it."""
    before = [path for path in segment_files(folder) if first_number(path) <= number]
    return dict(frame_heads(before[-1])).get(number) if before else None


def first_arrival(path: Path) -> int | None:
    """Return the time of arrival (µs UTC) of a segment's first frame, None where it has none."""
    with path.open("rb") as file:
        head = file.read(len(MAGIC) + HEAD.size)[len(MAGIC) :]
    return int(HEAD.unpack(head)[3]) if len(head) == HEAD.size else None


def read_frames(path: Path, at: int) -> Iterator[tuple[Frame, int]]:
    """Yield the frames of a segment from a byte on, each with the place behind it, up to the first that is not whole.

    The file may grow meanwhile. PairliftError where it is no segment.
    """
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise PairliftError(f"{path} is not a segment of a recorded log, or a damaged one; restore it from a copy")
        file.seek(at)
        data = memoryview(file.read())
    behind = 0
    while (found := _decode(data, behind)) is not None:
        frame, behind = found
        yield frame, at + behind


def read_segment(path: Path, *, last: bool) -> Iterator[Frame]:
    """Yield the frames of a segment. last: mend a torn end (it is cut off, with a line in our log).

    Raises PairliftError with file and place where a frame is damaged that others follow.
    """
    data = memoryview(path.read_bytes())
    at, number = len(MAGIC), first_number(path)
    if data[: len(MAGIC)] != MAGIC:
        if not last or bytes(data) not in (MAGIC[: len(data)], bytes(min(len(data), len(MAGIC)))):
            raise PairliftError(f"{path} is not a segment of a recorded log, or a damaged one; restore it from a copy")
        at = 0
    while at < len(data) and (found := _decode(data, at)) is not None:
        frame, at = found
        if frame.number != number:
            raise PairliftError(f"{path}: frame {number} was expected, found {frame.number}; restore it from a copy")
        number += 1
        yield frame
    if at < len(data):
        if not last or _whole_frame_behind(data, at):
            raise PairliftError(
                f"{path} is damaged at byte {at}: events behind it were acknowledged; restore the file from a copy"
            )
        log.warning("%s: a torn end of %d bytes is dropped; none of it was acknowledged", path, len(data) - at)
        _cut(path, at)


def _whole_frame_behind(data: memoryview, at: int) -> bool:
    whole = bytes(data)
    place = whole.find(MARK, at + 1)
    while place >= 0:
        if _decode(data, place) is not None:
            return True
        place = whole.find(MARK, place + 1)
    return False


def _cut(path: Path, size: int) -> None:
    if not size:
        path.unlink()
        return
    with path.open("r+b") as file:
        file.truncate(size)
        os.fsync(file.fileno())


def export_segment(path: Path, folder: Path) -> Path:
    """Write a closed segment as `<folder>/<first frame>.parquet`, `ts` as a timestamp in UTC; return the file.

    SEGMENT and FRAME say where each row is from. The file appears whole or not at all.
    """
    made_folder(folder)
    target = folder / f"{path.stem}.parquet"
    frames = list(read_segment(path, last=False))
    events = pa.concat_tables([f.events for f in frames], promote_options="permissive")
    number = np.repeat([f.number for f in frames], [f.events.num_rows for f in frames])
    events = events.append_column(SEGMENT, pa.array([segment_name(path)] * len(number), pa.string()))
    events = events.append_column(FRAME, pa.array(number, pa.int64()))
    place = events.schema.get_field_index("ts")
    events = events.set_column(place, "ts", events["ts"].cast(pa.timestamp("us")).cast(pa.timestamp("us", "UTC")))
    with written(target) as partial:
        pq.write_table(events, partial)
    return target


def check_export(path: Path, exported: Path) -> None:
    """Raise PairliftError where an exported file is not that of the whole closed segment."""
    name, last = _segment_and_last(exported)
    if name and (name, last) != (segment_name(path), max((number for number, _ in frame_heads(path)), default=0)):
        raise PairliftError(
            f"{exported.name} is there and has other events, or not all: move it elsewhere, for its events may be "
            "nowhere else, and the segment is exported"
        )


def last_exported(folder: Path) -> int:
    """Return the last frame of the exported files in a folder, 0 without any; PairliftError where it is damaged."""
    files = sorted(folder.glob("[0-9]" * 20 + ".parquet"))
    try:
        return _segment_and_last(files[-1])[1] if files else 0
    except (OSError, pa.ArrowException) as error:
        raise PairliftError(f"{files[-1]} cannot be read ({error}): restore it from a copy, or move it away") from error


def _segment_and_last(exported: Path) -> tuple[str, int]:
    """Return the name of the segment that an exported file says it is of, and the last frame.

    One from before exports said so: no name, and the last frame that it could have, with an event in each.
    """
    file = pq.ParquetFile(exported)
    if not {SEGMENT, FRAME} <= set(file.schema_arrow.names):
        return "", int(exported.stem) - 1 + file.metadata.num_rows
    rows = pq.read_table(exported, columns=[SEGMENT, FRAME], read_dictionary=[SEGMENT])
    return "/".join(rows[SEGMENT].unique().to_pylist()), pc.max(rows[FRAME]).as_py()
