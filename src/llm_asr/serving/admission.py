"""How many requests are in the house; those beyond are turned away at the door."""

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import ApiError


class Admission:
    """
    Counts requests.

    Args:
        max_requests (`int`): Let in at a time.
    """

    def __init__(self, max_requests: int):
        self.max_requests = max_requests
        self.num_requests = 0
        self._durations: deque[float] = deque(maxlen=32)

    @contextmanager
    def enter(self) -> Iterator[None]:
        """
        Raises:
            `ApiError`: 429, if there is no room.
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
        """Seconds after which one is likely to have left: as long as one has stayed lately, by the number inside."""
        if not self._durations:
            return 1
        mean = sum(self._durations) / len(self._durations)
        return max(1, math.ceil(mean / self.max_requests))
