"""The open end of a recorded log: the segment that frames are appended to, each durable or not there at all."""

import os
from pathlib import Path
from time import monotonic

from features.errors import PairliftError
from features.files import sync
from features.log.segments import MAGIC, Frame, encode
from features.schema import SECOND

#: bytes that a disk which was full must have before events are asked for again
ROOM = 1 << 20


class LogError(PairliftError):
    """Events could not be made durable: none of the batch is recorded. full: for want of space."""

    def __init__(self, sentence: str, *, full: bool = False) -> None:
        super().__init__(sentence)
        self.full = full


class Tail:
    """Appends frames to the newest segment, and begins another where that is full or old. For one thread."""

    def __init__(self, folder: Path, *, segment_bytes: int, segment_time: int) -> None:
        """segment_bytes, segment_time: size, and µs since its first frame was written, at which a segment ends: the
        next frame starts another.
        """
        self.folder = folder
        self.broken = ""  # why nothing can be written any more
        self.first = 0  # number of the open segment's first frame
        self._segment_bytes, self._segment_time = segment_bytes, segment_time
        self._file = -1  # of the open segment
        self._size = 0  # bytes of it that are durable
        self._began = 0  # µs of the monotonic clock, when its first frame was written

    def open(self, number: int) -> None:
        """Begin a segment, whose first frame will have that number, and close the one before."""
        path = self.folder / f"{number:020d}.log"
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            _write(handle, MAGIC)
            os.fsync(handle)
            sync(self.folder)
        except OSError:
            os.close(handle)
            path.unlink(missing_ok=True)
            raise
        self.close()
        self._file, self._size, self.first = handle, len(MAGIC), number

    def append(self, frame: Frame) -> None:
        """Make a frame durable; OSError, or LogError where `broken`, leaves the log as it was."""
        if self.broken:
            raise LogError(self.broken)
        now = round(monotonic() * SECOND)  # not the log's clock: that of an old log runs with its events
        if self._size == len(MAGIC):
            self._began = now
        elif self._file < 0 or self._size >= self._segment_bytes or now >= self._began + self._segment_time:
            self.open(frame.number)
            self._began = now
        data = encode(*frame)
        try:
            _write(self._file, data)
        except OSError:
            self._undo()
            raise
        try:
            os.fsync(self._file)
        except OSError as error:
            self._undo()
            # What the kernel could not write it may have forgotten: a second fsync that succeeds says nothing.
            self.broken = f"{self.folder}: fsync failed ({error.strerror}); mend the disk, then start the server again"
            raise LogError(self.broken) from error
        self._size += len(data)

    def find_room(self) -> None:
        """Raise OSError where the disk has no room for some frames."""
        path = self.folder / ".room"
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            os.posix_fallocate(handle, 0, ROOM)
        finally:
            os.close(handle)
            path.unlink()

    def close(self) -> None:
        """Close the open segment, where there is one."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _undo(self) -> None:
        try:
            os.ftruncate(self._file, self._size)
            os.lseek(self._file, self._size, os.SEEK_SET)
            os.fsync(self._file)  # else a power cut may leave the torn frame in a segment that another follows
        except OSError as error:
            self.broken = f"{self.folder}: a torn frame cannot be cut off ({error.strerror}); start the server again"


def _write(handle: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(handle, left) :]
