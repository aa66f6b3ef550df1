"""One thread for each call of BLAS and OpenMP while a server of this process answers, and as many as before then."""

import threading
from typing import Any, ClassVar

from threadpoolctl import threadpool_limits


class OneThread:
    """Holds the threads of BLAS and OpenMP at 1 from `begin` to `end`; either may come more than once.

    Of several that overlap, the last one that ends gives back what was there before the first one began.
    """

    _lock: ClassVar[threading.Lock] = threading.Lock()
    _holders: ClassVar[set["OneThread"]] = set()
    _limits: ClassVar[Any] = None  # what the first one found; None while there are no holders

    def begin(self) -> None:
        """Hold them."""
        with self._lock:
            if not self._holders:
                OneThread._limits = threadpool_limits(1)
            self._holders.add(self)

    def end(self) -> None:
        """Let them go."""
        with self._lock:
            if self in self._holders:
                self._holders.remove(self)
                if not self._holders:
                    self._limits.restore_original_limits()
                    OneThread._limits = None
