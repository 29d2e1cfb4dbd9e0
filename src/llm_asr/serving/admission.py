"""Limits the number of requests in progress and rejects the rest with 429."""

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import ApiError


class Admission:
    """
    Counts the requests in progress.

    Args:
        max_requests (`int`): Largest number of requests in progress.
    """

    def __init__(self, max_requests: int):
        self.max_requests = max_requests
        self.num_requests = 0
        self._durations: deque[float] = deque(maxlen=32)

    @contextmanager
    def enter(self) -> Iterator[None]:
        """
        Count one request as in progress while the context lasts.

        Raises:
            `ApiError`: 429, if `max_requests` are in progress.
        """
        if self.num_requests >= self.max_requests:
            raise ApiError(
                429,
                f"{self.num_requests} requests are being transcribed already; try again later.",
                code="rate_limit_exceeded",
                headers={"Retry-After": str(self.retry_after)},
            )
        self.num_requests += 1
        start = time.monotonic()
        try:
            yield
        finally:
            self.num_requests -= 1
            self._durations.append(time.monotonic() - start)

    @property
    def retry_after(self) -> int:
        """Seconds until a request is likely to end: the mean duration of recent requests divided by `max_requests`."""
        if not self._durations:
            return 1
        mean = sum(self._durations) / len(self._durations)
        return max(1, math.ceil(mean / self.max_requests))
