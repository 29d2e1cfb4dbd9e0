"""Audio that arrives in another thread while the model works."""

import threading
from collections import deque
from collections.abc import Iterator

import numpy as np


class BlockQueue:
    """
    Blocks of samples between the thread that receives them and the thread that iterates over them.

    Args:
        max_samples (`int`): Largest number of samples that wait.
    """

    def __init__(self, max_samples: int):
        self.max_samples = max_samples
        self._blocks: deque[np.ndarray] = deque()
        self._num_samples = 0
        self._is_closed = False
        self._error: Exception | None = None
        self._changed = threading.Condition()

    def put(self, block: np.ndarray, wait: bool) -> bool:
        """
        Add a block of shape `(num_samples,)`.

        Args:
            block (`np.ndarray`): The samples.
            wait (`bool`): Whether to wait until there is room.

        Returns:
            `bool`: Whether the block was added. Without `wait` there may be no room; a closed queue takes no blocks.
        """
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._is_closed or self._num_samples < self.max_samples)
            if self._is_closed or self._num_samples >= self.max_samples:
                return False
            self._blocks.append(block)
            self._num_samples += len(block)
            self._changed.notify_all()
            return True

    def close(self, error: Exception | None = None) -> None:
        """End the iteration after the blocks that wait. `error` is then raised."""
        with self._changed:
            self._is_closed = True
            self._error = self._error or error
            self._changed.notify_all()

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield everything that waits as one block, again and again until the queue is closed."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._blocks or self._is_closed)
                if not self._blocks:
                    break
                block = np.concatenate(self._blocks)
                self._blocks.clear()
                self._num_samples = 0
                self._changed.notify_all()
            yield block
        if self._error is not None:
            raise self._error


__all__ = ["BlockQueue"]
