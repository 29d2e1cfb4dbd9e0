"""Batches of recordings with similar durations. Their size is limited in seconds of padded audio."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from datasets import Dataset
from torch.utils.data import Sampler
from tqdm.auto import tqdm

from ..processing.audio import read_duration


class DurationBatchSampler(Sampler[list[int]]):
    """
    Samples batches whose number of recordings times their longest duration is at most `max_seconds`. Use it as the
    `batch_sampler` of a `DataLoader`.

    Recordings are sorted once into buckets of similar durations. Each epoch shuffles the recordings of every bucket and the
    order of the batches. The size of a batch is computed as if all its recordings were as long as the longest of their
    bucket. All epochs therefore have the same number of batches. The `Trainer` relies on this: it multiplies the number of
    batches of the first epoch, and resumes by it.

    An epoch depends only on `seed` and [`~DurationBatchSampler.set_epoch`], and contains every row once. All processes compute
    the same epoch, and `accelerate` distributes its batches. If the number of batches is not a multiple of the number of
    processes, `accelerate` repeats batches from the start of the epoch, or drops the last round with `drop_last`. All
    processes take the same number of steps.

    If a run on several processes is resumed inside an epoch, `accelerate` does not pass the epoch on to a batch sampler. Call
    [`~DurationBatchSampler.set_epoch`] at the start of every epoch.

    Args:
        durations (`Sequence[float]` of length `num_rows`):
            Duration of each recording in seconds; see [`read_durations`].
        max_seconds (`float`):
            Largest batch of one process, in seconds of audio with padding.
        seed (`int`, *optional*, defaults to 0):
            Seed of the shuffling.
        drop_last (`bool`, *optional*, defaults to `False`):
            Whether to drop the last batches if there are too few for all processes. It has no effect on a single process.
        max_batch_size (`int`, *optional*):
            Largest number of recordings in a batch.
        bucket_width (`float`, *optional*, defaults to 0.1):
            Share by which durations in a bucket may differ. A larger share mixes recordings better, but adds more padding.

    Raises:
        `ValueError`: If a duration is missing, not positive or above `max_seconds`. The error names the row.

    Example:

    ```python
    >>> sampler = DurationBatchSampler([2.0, 2.1, 9.5, 2.1], max_seconds=10.0)
    >>> sorted(map(len, sampler))
    [1, 3]
    ```
    """

    def __init__(
        self,
        durations: Sequence[float | None],
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
        seconds = np.asarray(durations, dtype=np.float64)
        if seconds.ndim != 1 or len(seconds) == 0:
            raise ValueError(f"`durations` must be seconds of each row, of shape (num_rows,), got {seconds.shape}.")
        _check_durations(seconds, max_seconds)

        self.seed = seed
        self.drop_last = drop_last
        self.epoch = 0
        # Sort the longest buckets first, so that the first recording of a batch is its longest and determines its size.
        buckets = np.floor(np.log(seconds / seconds.min()) / math.log1p(bucket_width))
        _, buckets = np.unique(-buckets, return_inverse=True)
        # Sorting integers of 16 bits takes linear time.
        self._buckets = buckets.astype(np.min_scalar_type(int(buckets.max())))
        longest = np.zeros(int(buckets.max()) + 1)
        np.maximum.at(longest, buckets, seconds)
        counted = longest[np.sort(buckets)]
        starts, start = [], 0
        while start < len(counted):
            starts.append(start)
            size = int(max_seconds // counted[start])
            start += size if max_batch_size is None else min(size, max_batch_size)
        self._bounds = np.array([*starts, len(counted)])

    def set_epoch(self, epoch: int) -> None:
        """Use the order of epoch `epoch` from the next iteration on."""
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
    Read the durations of the recordings in a dataset.

    Args:
        dataset (`Dataset`): Rows with encoded recordings from [`load_asr_dataset`] or [`load_mixture`]. The durations come
            from the column `duration`, in seconds, or from the header of the recording if that is missing or empty.
        audio_column (`str`, *optional*, defaults to `"audio"`): Column with recordings.

    Returns:
        `list[float]` of length `num_rows`: Durations in seconds. `None` for an unknown duration.
    """
    has_column = "duration" in dataset.column_names
    durations = dataset["duration"][:] if has_column else [None] * len(dataset)
    missing = [row for row, duration in enumerate(durations) if duration is None]
    recordings = dataset.select_columns([audio_column])
    for row in tqdm(missing, desc="Reading durations", unit="recording", disable=not missing):
        durations[row] = read_duration(recordings[row][audio_column])
    return durations


def _check_durations(durations: np.ndarray, max_seconds: float) -> None:
    for row in np.flatnonzero(~(np.isfinite(durations) & (durations > 0)))[:1]:
        raise ValueError(
            f"`durations` must be positive seconds, but row {row} has {durations[row]}; repair or remove that row."
        )
    for row in np.flatnonzero(durations > max_seconds)[:1]:
        raise ValueError(
            f"Row {row} lasts {durations[row]:.2f} s, more than a whole batch of `max_seconds` = {max_seconds}; raise "
            "`max_seconds`, or remove or split that row."
        )


__all__ = ["DurationBatchSampler", "read_durations"]
