"""The clock of a server."""

import time


def now_wall() -> int:
    """Return the wall clock in µs UTC."""
    return time.time_ns() // 1000
