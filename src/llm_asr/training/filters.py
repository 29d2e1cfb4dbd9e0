"""Which rows to train on, and a count of those left out."""

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

# Each worker of a `DataLoader` counts in a row of its own, so that none waits for another.
MAX_WORKERS = 128


class FilterReport:
    """
    Rows kept and rejected, by dataset and reason.

    Workers of a `DataLoader` count into the report of the process that started them. A row of a dataset that streams is
    counted whenever it is read: again in every epoch, and a little before it is trained on. Each process of a
    distributed run has a report of its own.
    """

    def __init__(self):
        self._counts: dict[str, torch.Tensor] = {}

    def __deepcopy__(self, memo):
        # `datasets` copies the functions it maps, and all copies are to count together.
        return self

    def add_dataset(self, dataset: str) -> None:
        """
        Make ready to count rows; before workers start.

        Args:
            dataset (`str`): As rows name it in their column `dataset`.
        """
        self._counts.setdefault(
            dataset, torch.zeros(MAX_WORKERS + 1, len(REASONS) + 1, dtype=torch.int64).share_memory_()
        )

    def add(self, dataset: str, reasons: Iterable[str | None]) -> None:
        """
        Count rows.

        Args:
            dataset (`str`): Where they are from, as given to `add_dataset`.
            reasons (`Iterable[str]`): Why each was rejected; `None` for those kept.
        """
        worker = get_worker_info()
        counts = self._counts[dataset][0 if worker is None else 1 + worker.id % MAX_WORKERS]
        for reason, count in Counter(reasons).items():
            counts[0 if reason is None else 1 + REASONS.index(reason)] += count

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Rows of each dataset, by `"kept"` or the reason for which they were rejected."""
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
    Decides which rows to train on. Rows without text are always rejected; a bound that is not given is not checked.

    Args:
        min_duration, max_duration (`float`, *optional*):
            Seconds.
        min_characters_per_second, max_characters_per_second (`float`, *optional*):
            Speaking rate: too low where a transcript lacks words, too high where it has words that are not spoken.

    Attributes:
        report ([`FilterReport`]): What was kept and rejected so far.
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
        Say why a row is rejected.

        Args:
            row (`dict`): With `text`, `audio`, and `duration` in seconds; without it, the audio's header is read.

        Returns:
            `str`: One of `REASONS`, or `None` if it is kept.
        """
        text = (row["text"] or "").strip()
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
        Count a row in the report.

        Args:
            row (`dict`): As for `reason`, with the `dataset` it is from.

        Returns:
            `bool`: Whether it is kept.
        """
        reason = self.reason(row)
        self.report.add(row["dataset"], [reason])
        return reason is None
