"""Selects rows for training, and counts the rejected rows."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch.utils.data import get_worker_info

from ..processing.audio import read_duration


REASONS = (
    "empty text",
    "unreadable audio",
    "too short",
    "too long",
    "too few characters per second",
    "too many characters per second",
)

# Each worker of a `DataLoader` counts in its own row of a table, so that workers need no lock.
MAX_WORKERS = 128


class FilterReport:
    """
    Numbers of kept and rejected rows, by dataset and reason.

    Workers of a `DataLoader` count into the report of the process that started them. A row of a streaming dataset is counted
    each time it is read, which happens in every epoch and some time before the row is used for training. Each process of a
    distributed run has its own report.
    """

    def __init__(self):
        self._counts: dict[str, torch.Tensor] = {}

    def __deepcopy__(self, memo):
        # `datasets` copies mapped functions; all copies must share the counts.
        return self

    def add_dataset(self, dataset: str) -> None:
        """
        Add a dataset to the report. Call this before workers start.

        Args:
            dataset (`str`): Name of the dataset in the column `dataset` of its rows.
        """
        self._counts.setdefault(
            dataset, torch.zeros(MAX_WORKERS + 1, len(REASONS) + 1, dtype=torch.int64).share_memory_()
        )

    def add(self, dataset: str, reasons: Iterable[str | None]) -> None:
        """
        Count rows.

        Args:
            dataset (`str`): Dataset of the rows, as passed to `add_dataset`.
            reasons (`Iterable[str]`): Reason for rejecting each row; `None` for a kept row.
        """
        worker = get_worker_info()
        counts = self._counts[dataset][0 if worker is None else 1 + worker.id % MAX_WORKERS]
        for reason, count in Counter(reasons).items():
            counts[0 if reason is None else 1 + REASONS.index(reason)] += count

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Numbers of rows of each dataset, by `"kept"` or the reason for rejecting them."""
        return {
            dataset: {name: int(count) for name, count in zip(("kept", *REASONS), counts.sum(0), strict=True) if count}
            for dataset, counts in self._counts.items()
        }

    def __str__(self) -> str:
        lines = []
        for dataset, counts in self.counts.items():
            kept = counts.pop("kept", 0)
            why = ", ".join(f"{count} {reason}" for reason, count in counts.items())
            lines.append(
                f"{dataset}: {kept} rows kept, {sum(counts.values())} rejected" + (f" ({why})" if why else "")
            )
        return "\n".join(lines)


@dataclass
class RowFilters:
    """
    Selects rows for training. Rows without text are always rejected. A bound of `None` is not checked.

    Args:
        min_duration, max_duration (`float`, *optional*):
            Bounds of the duration in seconds.
        min_characters_per_second, max_characters_per_second (`float`, *optional*):
            Bounds of the speaking rate. A low rate means that the transcript lacks words, and a high rate that it has words
            that are not spoken.

    Attributes:
        report ([`FilterReport`]): Numbers of rows kept and rejected so far.
    """

    min_duration: float | None = None
    max_duration: float | None = None
    min_characters_per_second: float | None = None
    max_characters_per_second: float | None = None
    report: FilterReport = field(default_factory=FilterReport, init=False, repr=False, compare=False)

    def __post_init__(self):
        for quantity in ("duration", "characters_per_second"):
            low, high = getattr(self, f"min_{quantity}"), getattr(self, f"max_{quantity}")
            for side, bound in (("min", low), ("max", high)):
                if bound is not None and not bound >= 0:
                    raise ValueError(f"`{side}_{quantity}` must not be negative, got {bound}.")
            if low is not None and high is not None and low > high:
                raise ValueError(f"`min_{quantity}` {low} is above `max_{quantity}` {high}; swap them.")

    @property
    def needs_duration(self) -> bool:
        bounds = (self.min_duration, self.max_duration, self.min_characters_per_second, self.max_characters_per_second)
        return any(bound is not None for bound in bounds)

    def reason(self, row: dict) -> str | None:
        """
        Find the reason for rejecting a row.

        Args:
            row (`dict`): A row with `text`, `audio`, `duration` in seconds and possibly `translation`. Without a duration, the
                header of the audio is read.

        Returns:
            `str`: One of `REASONS`, or `None` for a row to keep.
        """
        text = (row["text"] or "").strip()
        # A translation says something about the speaking rate too.
        text = text or (row.get("translation") or "").strip()
        if not text:
            return "empty text"
        if not self.needs_duration:
            return None
        duration = row.get("duration")
        if duration is None:
            duration = read_duration(row["audio"])
        if not duration:
            return "unreadable audio"
        if self.min_duration is not None and duration < self.min_duration:
            return "too short"
        if self.max_duration is not None and duration > self.max_duration:
            return "too long"
        rate = len(text) / duration
        if self.min_characters_per_second is not None and rate < self.min_characters_per_second:
            return "too few characters per second"
        if self.max_characters_per_second is not None and rate > self.max_characters_per_second:
            return "too many characters per second"
        return None

    def __call__(self, row: dict) -> bool:
        """
        Decide whether to keep a row, and count it in the report.

        Args:
            row (`dict`): A row as for `reason`, with the name of its `dataset`.

        Returns:
            `bool`: Whether to keep the row.
        """
        reason = self.reason(row)
        self.report.add(row["dataset"], [reason])
        return reason is None
