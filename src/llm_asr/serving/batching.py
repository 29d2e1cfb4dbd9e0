"""Dynamic batching: items that arrive at about the same time are computed together."""

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
    """An item in the queue and the future of its result."""

    item: Item
    size: float
    result: asyncio.Future
    since: float = field(default_factory=time.monotonic)


class DynamicBatcher(Generic[Item, Result]):
    """
    Computes items in batches, in order of arrival.

    A batch starts when its first item has waited for `max_wait_s` or when the next item does not fit. The next batch is
    gathered while one is computed. Cancelled items are skipped. If a batch fails, its items are computed one by one, so
    that only the faulty items get an error.

    Args:
        compute (`Callable[[list[Item]], list[Result]]`): Returns one result for each item. It runs in `executor`.
        executor (`Executor`): Runs `compute`.
        max_items (`int`): Largest number of items in a batch.
        max_size (`float`): Largest size of a batch. Items are padded to the largest one, so the size of a batch is the
            size of its largest item times the number of items. A larger item gets a batch of its own.
        max_wait_s (`float`): Longest time in seconds that an item waits for others.
        max_queued (`int`): Largest number of items in the queue. [`~DynamicBatcher.submit`] waits while the queue is full.
        on_batch (`Callable[[int], None]`, *optional*): Called with the number of items of each batch.
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
        # This item left the queue but did not fit into the last batch; it starts the next one.
        self._next: Waiting[Item] | None = None
        self._worker: asyncio.Task | None = None

    @property
    def num_queued(self) -> int:
        return self._queue.qsize() + (self._next is not None)

    @property
    def is_running(self) -> bool:
        """Whether submitted items are computed."""
        return self._worker is not None and not self._worker.done()

    async def submit(self, item: Item, size: float) -> Result:
        """
        Queue `item` and return its result. A cancelled call removes its item.

        Raises:
            `RuntimeError`: If the batcher has stopped.
        """
        if not self.is_running:
            raise RuntimeError("The batcher has stopped.")
        waiting = Waiting(item, size, asyncio.get_running_loop().create_future())
        await self._queue.put(waiting)
        return await waiting.result

    def start(self) -> None:
        self._worker = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Stop the worker. Items in the queue get no result."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.wait([self._worker])

    async def _work(self) -> None:
        while True:
            await self._compute_batch(await self._gather())

    async def _compute_batch(self, batch: list[Waiting[Item]]) -> None:
        """Set the result or the error of each item. An error of `compute` does not stop the worker."""
        batch = [waiting for waiting in batch if not waiting.result.done()]
        if not batch:
            return
        items = [waiting.item for waiting in batch]
        try:
            self.on_batch(len(batch))
            results = await asyncio.get_running_loop().run_in_executor(self.executor, self.compute, items)
            if len(results) != len(batch):
                raise RuntimeError(f"A batch of {len(batch)} items has {len(results)} results.")
        except Exception as error:
            if len(batch) > 1:
                for waiting in batch:
                    await self._compute_batch([waiting])
            elif not batch[0].result.done():
                batch[0].result.set_exception(error)
            return
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
        """The next item of the queue, or `None` if none arrives before `deadline`."""
        if not self._queue.empty():
            return self._queue.get_nowait()
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                return await self._queue.get()
        except TimeoutError:
            return None
