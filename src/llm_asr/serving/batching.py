"""Dynamic batching: what several requests want at about the same time is computed together."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Generic, TypeVar


Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class Waiting(Generic[Item]):
    """An item in the queue, and who waits for its result."""

    item: Item
    size: float
    result: asyncio.Future
    since: float = field(default_factory=time.monotonic)


class DynamicBatcher(Generic[Item, Result]):
    """
    Computes items in batches, in the order in which they came.

    A batch begins when its first item has waited for `max_wait_s` or nothing more would fit; while one is computed, the
    next is gathered. Items that nobody waits for any more are left out.

    Args:
        compute (`Callable[[list[Item]], list[Result]]`): One result for each item; runs in `executor`.
        executor (`Executor`): Where.
        max_items (`int`): Items of a batch.
        max_size (`float`): Size of a batch: its largest item's, for each of its items, since others are padded to it. An
            item that is larger is a batch of its own.
        max_wait_s (`float`): Seconds.
        max_queued (`int`): Items that wait at most; whoever brings more waits for room.
        on_batch (`Callable[[int], None]`, *optional*): Told the number of items of each batch.
    """

    def __init__(
        self,
        compute: Callable[[list[Item]], list[Result]],
        executor: Executor,
        max_items: int,
        max_size: float,
        max_wait_s: float,
        max_queued: int,
        on_batch: Callable[[int], None] = lambda count: None,
    ):
        self.compute = compute
        self.executor = executor
        self.max_items = max_items
        self.max_size = max_size
        self.max_wait_s = max_wait_s
        self.on_batch = on_batch
        self._queue: asyncio.Queue[Waiting[Item]] = asyncio.Queue(max_queued)
        # Taken out of the queue, and too large for the batch that was being gathered.
        self._next: Waiting[Item] | None = None
        self._worker: asyncio.Task | None = None

    @property
    def num_queued(self) -> int:
        return self._queue.qsize() + (self._next is not None)

    async def submit(self, item: Item, size: float) -> Result:
        """Its result. Whoever is cancelled while waiting for it is forgotten."""
        waiting = Waiting(item, size, asyncio.get_running_loop().create_future())
        await self._queue.put(waiting)
        return await waiting.result

    def start(self) -> None:
        self._worker = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Stop; items that are still there get no result."""
        self._worker.cancel()
        await asyncio.wait([self._worker])

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [waiting for waiting in await self._gather() if not waiting.result.done()]
            if not batch:
                continue
            self.on_batch(len(batch))
            try:
                results = await loop.run_in_executor(self.executor, self.compute, [waiting.item for waiting in batch])
            # It is theirs who wait, and others come after them.
            except Exception as error:
                for waiting in batch:
                    if not waiting.result.done():
                        waiting.result.set_exception(error)
                continue
            for waiting, result in zip(batch, results, strict=True):
                if not waiting.result.done():
                    waiting.result.set_result(result)

    async def _gather(self) -> list[Waiting[Item]]:
        first = self._next or await self._queue.get()
        self._next = None
        batch, largest = [first], first.size
        deadline = first.since + self.max_wait_s
        while len(batch) < self.max_items and (waiting := await self._get(deadline)) is not None:
            largest = max(largest, waiting.size)
            if largest * (len(batch) + 1) > self.max_size:
                self._next = waiting
                break
            batch.append(waiting)
        return batch

    async def _get(self, deadline: float) -> Waiting[Item] | None:
        """The next in the queue, or `None` if none comes in time."""
        if not self._queue.empty():
            return self._queue.get_nowait()
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                return await self._queue.get()
        except TimeoutError:
            return None
