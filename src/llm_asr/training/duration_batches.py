"""Batches of recordings of like duration, bounded by their padded seconds instead of their count."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from datasets import Dataset
from torch.utils.data import Sampler
from tqdm.auto import tqdm

from ..processing.audio import read_duration


class DurationBatchSampler(Sampler[list[int]]):
    """
    Batches whose size times their longest recording stays within `max_seconds`; for the `batch_sampler` of a `DataLoader`.

    Recordings are put into buckets of like duration once. Each epoch shuffles the recordings of every bucket and the order
    of the batches. A batch is counted as if all its recordings were as long as the longest of their bucket, so that where
    batches begin and end is the same in every epoch: the `Trainer` takes the number of batches of the first epoch for that
    of all of them, and counts by it when it resumes.

    An epoch depends on `seed` and [`~DurationBatchSampler.set_epoch`] alone, and holds every row once. Every process makes
    the same epoch, which `accelerate` deals out batch by batch; if the batches cannot be divided evenly, processes without
    one in the last round take the first of the epoch once more, or, with `drop_last`, the last round is left out. Either
    way, all processes take the same number of steps.

    `accelerate` does not pass the epoch on to a batch sampler if a run on several processes is resumed in the middle of an
    epoch. Call [`~DurationBatchSampler.set_epoch`] at the start of every epoch.

    Args:
        durations (`Sequence[float]` of length `num_rows`):
            Seconds of each recording; see [`read_durations`].
        max_seconds (`float`):
            Largest batch, in seconds of audio with padding, on one process.
        seed (`int`, *optional*, defaults to 0):
            Of the shuffling.
        drop_last (`bool`, *optional*, defaults to `False`):
            Whether to leave out batches that not every process has its share of. Without effect on a single process.
        max_batch_size (`int`, *optional*):
            Most recordings in a batch, however short they are.
        bucket_width (`float`, *optional*, defaults to 0.1):
            Share by which durations in a bucket may differ. More mixes recordings better, and pads them more.

    Raises:
        `ValueError`: If a duration is missing, is not positive or is above `max_seconds`; it names the row.

    Example:

    ```python
    >>> sampler = DurationBatchSampler([2.0, 2.1, 9.5, 2.1], max_seconds=10.0)
    >>> sorted(map(len, sampler))
    [1, 3]
    ```
    """

    def __init__(
        self,
        durations: Sequence[float],
        max_seconds: float,
        seed: int = 0,
        drop_last: bool = False,
        max_batch_size: int | None = None,
        bucket_width: float = 0.1,
    ):
        if not 0 < max_seconds < math.inf:
            raise ValueError(f"`max_seconds` must be a positive number, got {max_seconds}.")
        if max_batch_size is not None and max_batch_size < 1:
            raise ValueError(f"`max_batch_size` must be positive, or None for no limit, got {max_batch_size}.")
        if not 0 < bucket_width < math.inf:
            raise ValueError(f"`bucket_width` must be a positive share, got {bucket_width}.")
        if seed < 0:
            raise ValueError(f"`seed` must not be negative, got {seed}.")
        durations = np.asarray(durations, dtype=np.float64)
        if durations.ndim != 1 or len(durations) == 0:
            raise ValueError(f"`durations` must be seconds of each row, of shape (num_rows,), got {durations.shape}.")
        _check_durations(durations, max_seconds)

        self.seed = seed
        self.drop_last = drop_last
        self.epoch = 0
        # Longest first, so that the first recording of a batch tells how many fit.
        buckets = np.floor(np.log(durations / durations.min()) / math.log1p(bucket_width))
        _, buckets = np.unique(-buckets, return_inverse=True)
        # Sorting integers of 16 bits takes linear time.
        self._buckets = buckets.astype(np.min_scalar_type(int(buckets.max())))
        longest = np.zeros(int(buckets.max()) + 1)
        np.maximum.at(longest, buckets, durations)
        counted = longest[np.sort(buckets)]
        starts, start = [], 0
        while start < len(counted):
            starts.append(start)
            size = int(max_seconds // counted[start])
            start += size if max_batch_size is None else min(size, max_batch_size)
        self._bounds = np.array([*starts, len(counted)])

    def set_epoch(self, epoch: int) -> None:
        """Shuffle as in epoch `epoch`, from the next iteration on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __iter__(self) -> Iterator[list[int]]:
        generator = np.random.default_rng([self.seed, self.epoch])
        shuffled = generator.permutation(len(self._buckets))
        rows = shuffled[np.argsort(self._buckets[shuffled], kind="stable")]
        for batch in generator.permutation(len(self)):
            yield rows[self._bounds[batch] : self._bounds[batch + 1]].tolist()


def read_durations(dataset: Dataset, audio_column: str = "audio") -> list[float | None]:
    """
    Find out how long the recordings of a dataset are.

    Args:
        dataset (`Dataset`): Rows with encoded recordings, as [`load_asr_dataset`] and [`load_mixture`] give them. Where a
            column `duration`, in seconds, is missing or empty, the header of the recording is read.
        audio_column (`str`, *optional*, defaults to `"audio"`): Column with recordings.

    Returns:
        `list[float]` of length `num_rows`: Seconds; `None` where neither tells.
    """
    has_column = "duration" in dataset.column_names
    durations = dataset["duration"][:] if has_column else [None] * len(dataset)
    missing = [row for row, duration in enumerate(durations) if duration is None]
    recordings = dataset.select_columns([audio_column])
    for row in tqdm(missing, desc="Reading how long recordings are", unit="recording", disable=not missing):
        durations[row] = read_duration(recordings[row][audio_column])
    return durations


def _check_durations(durations: np.ndarray, max_seconds: float) -> None:
    for row in np.flatnonzero(~(np.isfinite(durations) & (durations > 0)))[:1]:
        raise ValueError(
            f"`durations` must be positive seconds, and row {row} has {durations[row]}; repair or remove that row."
        )
    for row in np.flatnonzero(durations > max_seconds)[:1]:
        raise ValueError(
            f"Row {row} lasts {durations[row]:.2f} s, more than a whole batch of `max_seconds` = {max_seconds}; raise it, or "
            "remove or split that row."
        )


__all__ = ["DurationBatchSampler", "read_durations"]
