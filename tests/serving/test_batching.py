"""Dynamic batching."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from llm_asr.serving.batching import DynamicBatcher


class Worker:
    """Computes squares when the test allows it."""

    def __init__(self):
        self.batches = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def __call__(self, items):
        self.may_go_on.wait(10)
        self.batches.append(list(items))
        if -1 in items:
            raise RuntimeError("cannot")
        return [item**2 for item in items]


def run(scenario, **options):
    worker = Worker()
    options = {"max_items": 4, "max_size": 100.0, "max_wait_s": 0.05, "max_queued": 100, **options}

    async def main():
        with ThreadPoolExecutor(1) as executor:
            batcher = DynamicBatcher(worker, executor, **options)
            batcher.start()
            try:
                await asyncio.wait_for(scenario(batcher, worker), 10)
            finally:
                worker.may_go_on.set()
                await batcher.stop()

    asyncio.run(main())
    return worker.batches


def test_items_submitted_together_are_computed_together():
    async def scenario(batcher, worker):
        assert await asyncio.gather(*(batcher.submit(item, 1.0) for item in range(10))) == [n**2 for n in range(10)]

    assert run(scenario) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_single_item_waits_at_most_the_given_time():
    async def scenario(batcher, worker):
        loop = asyncio.get_running_loop()
        start = loop.time()
        await batcher.submit(1, 1.0)
        assert 0.15 <= loop.time() - start < 1.0
        first = asyncio.create_task(batcher.submit(2, 1.0))
        await asyncio.sleep(0.05)
        await asyncio.gather(first, batcher.submit(3, 1.0))

    assert run(scenario, max_wait_s=0.15) == [[1], [2, 3]]


def test_the_next_batch_is_collected_during_a_computation():
    async def scenario(batcher, worker):
        worker.may_go_on.clear()
        first = asyncio.create_task(batcher.submit(0, 1.0))
        await asyncio.sleep(0.05)
        others = []
        for item in (1, 2, 3):
            others.append(asyncio.create_task(batcher.submit(item, 1.0)))
            await asyncio.sleep(0.02)
        worker.may_go_on.set()
        await asyncio.gather(first, *others)

    assert run(scenario, max_wait_s=0.0) == [[0], [1, 2, 3]]


def test_size_counts_padding():
    async def scenario(batcher, worker):
        await asyncio.gather(*(batcher.submit(size, float(size)) for size in (3, 4, 1, 1, 20, 2)))

    assert run(scenario, max_size=10.0) == [[3, 4], [1, 1], [20], [2]]


def test_items_beyond_the_size_of_the_queue_wait():
    async def scenario(batcher, worker):
        worker.may_go_on.clear()
        tasks = [asyncio.create_task(batcher.submit(item, 1.0)) for item in range(8)]
        await asyncio.sleep(0.1)
        assert batcher.num_queued == 2
        worker.may_go_on.set()
        assert await asyncio.gather(*tasks) == [n**2 for n in range(8)]

    run(scenario, max_items=2, max_queued=2)


def test_cancelled_items_are_not_computed():
    async def scenario(batcher, worker):
        worker.may_go_on.clear()
        tasks = [asyncio.create_task(batcher.submit(item, 1.0)) for item in range(4)]
        await asyncio.sleep(0.1)
        tasks[0].cancel()
        tasks[2].cancel()
        worker.may_go_on.set()
        assert await asyncio.gather(tasks[1], tasks[3]) == [1, 9]

    assert run(scenario, max_items=1) == [[0], [1], [3]]


def test_only_items_that_cause_an_error_fail():
    async def scenario(batcher, worker):
        found = await asyncio.gather(*(batcher.submit(item, 1.0) for item in (1, 2, -1, 3)), return_exceptions=True)
        assert found[:2] + found[3:] == [1, 4, 9]
        assert isinstance(found[2], RuntimeError)

    assert run(scenario) == [[1, 2, -1, 3], [1], [2], [-1], [3]]


@pytest.mark.parametrize("fault", ["on_batch", "compute"])
def test_the_worker_continues_after_an_error(fault):
    """Otherwise later items would wait endlessly."""
    faults = [RuntimeError("once")]

    def fail_once(*args):
        if faults:
            raise faults.pop()

    class Short(Worker):
        def __call__(self, items):
            return [] if faults and not faults.clear() else super().__call__(items)

    async def scenario(batcher, worker):
        if fault == "on_batch":
            batcher.on_batch = fail_once
        else:
            batcher.compute = Short()
        with pytest.raises(RuntimeError, match="once|A batch of 1 items has 0 results"):
            await batcher.submit(1, 1.0)
        assert batcher.is_running
        assert await batcher.submit(2, 1.0) == 4

    run(scenario)


def test_a_stopped_batcher_refuses_items():
    async def scenario(batcher, worker):
        await batcher.stop()
        assert not batcher.is_running
        with pytest.raises(RuntimeError, match="The batcher has stopped"):
            await asyncio.wait_for(batcher.submit(1, 1.0), 1)

    run(scenario)
