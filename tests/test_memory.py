"""Returning freed memory to the system."""

import subprocess
import sys
import threading

import pytest

from llm_asr.memory import find_trim, trimmed_memory


# A separate process has a heap without free blocks of other tests.
PROGRAM = """
import time
import numpy as np, psutil
from llm_asr.memory import trimmed_memory

def resident():
    return psutil.Process().memory_info().rss / 2**20

before = resident()
# Blocks of a size below the threshold of mmap, with a few among them that stay.
blocks = [np.ones(8000) for _ in range(4000)]
kept = blocks[::50]
grown = resident() - before
assert grown > 200, grown
del blocks
held = resident() - before
with trimmed_memory(interval_s=0.05):
    deadline = time.monotonic() + 10
    while resident() - before > 0.3 * grown and time.monotonic() < deadline:
        time.sleep(0.05)
print(grown, held, resident() - before)
"""


@pytest.mark.skipif(find_trim() is None, reason="needs glibc")
def test_freed_memory_is_returned_to_the_system():
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    grown, held, left = map(float, ended.stdout.split())
    assert held > 0.7 * grown
    assert left < 0.3 * grown


def test_memory_is_not_trimmed_without_glibc(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert find_trim() is None
    with trimmed_memory():
        assert not any(thread.name == "trim-memory" for thread in threading.enumerate())
    monkeypatch.undo()
    with trimmed_memory():
        assert any(thread.name == "trim-memory" for thread in threading.enumerate()) == (find_trim() is not None)
    assert not any(thread.name == "trim-memory" for thread in threading.enumerate())
