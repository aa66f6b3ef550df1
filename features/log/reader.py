"""Reading a log on while another thread or process writes it: only what is durable is seen.

The writer notes the number of the last durable frame in DIR/durable once its fsync has returned. A reader takes that
number first and then the frames up to it, so that it never sees one that is written and may yet be cut off.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from features.errors import PairliftError
from features.log.segments import MAGIC, Frame, first_number, last_exported, read_frames, segment_files

#: file of a log's folder: the number of the last durable frame, and its complement, by which a torn read is known
DURABLE = "durable"
#: folder of a log's, of closed segments as Parquet
EVENTS = "events"
_NUMBER = struct.Struct("<qq")


class DurableFrame:
    """The number of a log's last durable frame, in a file that one process writes and others read."""

    def __init__(self, folder: Path, *, writes: bool = False) -> None:
        """writes: make the file where it is missing; else PairliftError. OSError where it cannot be opened."""
        self._number = 0
        try:
            self._file = os.open(folder / DURABLE, os.O_RDWR | os.O_CREAT if writes else os.O_RDONLY, 0o644)
        except FileNotFoundError as error:
            raise PairliftError(f"{folder} has no file '{DURABLE}': no server has opened this log yet") from error

    def note(self, number: int) -> None:
        """Note that all frames up to a number are durable. Not synced: after a power cut the writer notes it anew."""
        os.pwrite(self._file, _NUMBER.pack(number, ~number), 0)

    @property
    def number(self) -> int:
        """The number of the last durable frame, 0 where there is none; once it is closed, as it was read last."""
        data = os.pread(self._file, _NUMBER.size, 0) if self._file >= 0 else b""
        if len(data) == _NUMBER.size:
            number, complement = _NUMBER.unpack(data)
            if number == ~complement:
                self._number = number
        return self._number

    def close(self) -> None:
        """Close the file, where it is open."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class LogReader:
    """Reads the durable frames of a log behind a given one, again and again. For one thread."""

    def __init__(self, folder: Path, after: int) -> None:
        """after: number of the frame that the reader's state has already, 0 for none.

        PairliftError where the log lacks it, or frames behind it.
        """
        self._folder = folder
        self._durable = DurableFrame(folder)
        self._place: tuple[int, Path, int] | None = None  # behind which frame what was read last ends, and where
        files = segment_files(folder)
        self.begin = first_number(files[0]) if files else last_exported(folder / EVENTS) + 1
        if 0 < after < self.begin - 1:
            raise PairliftError(
                f"{folder} begins with frame {self.begin}, but the snapshot is of frame {after}: what lies between was "
                "deleted; serve a later snapshot, or a newer bundle"
            )
        if self.last < after:
            raise PairliftError(
                f"{folder} ends with frame {self.last}, but the snapshot is of frame {after}: "
                "it is another log, or a part of it is missing"
            )

    @property
    def last(self) -> int:
        """The number of the last durable frame."""
        return self._durable.number

    def frames(self, after: int) -> Iterator[Frame]:
        """Yield the durable frames behind a frame, up to the last as of now; PairliftError where one is damaged."""
        last, after = self.last, max(after, self.begin - 1)  # before them, segments were deleted
        while after < last:
            path, at = self._opened(after)
            before = after
            for frame, behind in read_frames(path, at):
                if frame.number > last:
                    break
                if frame.number > after:
                    after = frame.number
                    self._place = after, path, behind
                    yield frame
            if after == before:
                self._turn(path, after)

    def _opened(self, after: int) -> tuple[Path, int]:
        """Return the segment that was read last, where it may have the frame behind `after`; and the byte to go on."""
        if self._place is None or self._place[0] != after:
            files = [path for path in segment_files(self._folder) if first_number(path) <= after + 1]
            if not files:
                raise PairliftError(f"{self._folder}: frame {after + 1} was expected, its segment was deleted")
            self._place = after, files[-1], len(MAGIC)
        return self._place[1:]

    def _turn(self, path: Path, after: int) -> None:
        """Go to the segment that begins behind a frame; PairliftError where there is none."""
        following = self._folder / f"{after + 1:020d}.log"
        if following == path or not following.exists():
            raise PairliftError(
                f"{path}: frame {after + 1} was expected and is missing or damaged; restore the file from a copy"
            )
        self._place = after, following, len(MAGIC)

    def close(self) -> None:
        """Close what is open."""
        self._durable.close()
