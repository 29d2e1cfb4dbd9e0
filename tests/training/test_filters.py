"""Rejecting rows, and counting rejected rows."""

import copy
import io

import numpy as np
import pytest
import soundfile
from torch.utils.data import DataLoader, IterableDataset

from llm_asr.training.filters import FilterReport, RowFilters


def wav(seconds):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(round(seconds * 16000)), 16000, format="WAV")
    return buffer.getvalue()


def row(text="one two", seconds=1.0, **columns):
    return {"text": text, "audio": {"bytes": wav(seconds), "path": None}, "dataset": "speech", **columns}


@pytest.mark.parametrize(
    ("rejected", "reason"),
    [
        (row(text="  "), "empty text"),
        (row(text=None), "empty text"),
        (row(seconds=0.3), "too short"),
        (row(seconds=0.3, duration=2.5), "too long"),
        (row(seconds=2.5), "too long"),
        (row(text="a"), "too few characters per second"),
        (row(text="a" * 21), "too many characters per second"),
        (row() | {"audio": {"bytes": b"not audio", "path": None}}, "unreadable audio"),
        (row() | {"audio": {"bytes": None, "path": "nowhere.wav"}}, "unreadable audio"),
        (row() | {"audio": {"bytes": None, "path": None}}, "unreadable audio"),
        (row(seconds=0.0), "unreadable audio"),
    ],
)
def test_rejected_rows_are_counted_by_reason(rejected, reason):
    filters = RowFilters(0.5, 2.0, 2.0, 20.0)
    filters.report.add_dataset("speech")
    assert filters(row())
    assert filters(row(seconds=0.3, duration=1.0))
    assert not filters(rejected)
    assert filters.report.counts == {"speech": {"kept": 2, reason: 1}}
    assert str(filters.report) == f"speech: 2 rows kept, 1 rejected (1 {reason})"


def test_bounds_that_are_not_given_are_not_checked():
    unreadable = row() | {"audio": {"bytes": b"not audio", "path": None}}
    assert RowFilters().reason(unreadable) is None
    assert RowFilters().reason(row(text="")) == "empty text"


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"min_duration": -1}, "`min_duration` must not be negative, got -1"),
        ({"max_duration": float("nan")}, "`max_duration` must not be negative, got nan"),
        ({"min_duration": 3, "max_duration": 2}, "`min_duration` 3 is above `max_duration` 2; swap them"),
        (
            {"min_characters_per_second": 3, "max_characters_per_second": 2},
            "`min_characters_per_second` 3 is above",
        ),
    ],
)
def test_impossible_bounds_are_refused(bounds, message):
    with pytest.raises(ValueError, match=message):
        RowFilters(**bounds)


class Rows(IterableDataset):
    def __init__(self, filters):
        self.filters = filters

    def __iter__(self):
        return (index for index in range(10) if self.filters(row(text="" if index < 4 else "one")))


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_and_copies_count_in_one_report(context):
    filters = RowFilters()
    filters.report.add_dataset("speech")
    rows = Rows(copy.deepcopy(filters))
    assert len(list(DataLoader(rows, num_workers=2, multiprocessing_context=context))) == 12
    assert filters.report.counts == {"speech": {"kept": 12, "empty text": 8}}


def test_an_empty_report_prints_nothing():
    assert str(FilterReport()) == ""
