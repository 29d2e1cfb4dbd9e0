"""Returns freed memory to the system in long-running programs."""

import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


INTERVAL_S = 10.0


def find_trim() -> Callable[[int], int] | None:
    """glibc's `malloc_trim`, which returns freed memory to the system. `None` if the C library does not have it."""
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


@contextmanager
def trimmed_memory(interval_s: float = INTERVAL_S) -> Iterator[None]:
    """
    Return freed memory to the system every `interval_s` seconds while the block runs, if the C library is glibc.

    Tensors of varying sizes fragment the heap, and the allocator keeps the free fragments. Without trimming, the process
    would grow for hours although it does not use more memory.
    """
    trim = find_trim()
    if trim is None:
        yield
        return
    stopped = threading.Event()

    def work() -> None:
        while not stopped.wait(interval_s):
            trim(0)

    thread = threading.Thread(target=work, name="trim-memory", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


__all__ = ["trimmed_memory"]
