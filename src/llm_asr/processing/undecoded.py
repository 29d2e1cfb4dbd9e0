"""Reads recordings in columns of `datasets` without the decoder that `datasets` needs."""

import dataclasses
from collections.abc import Sequence


def is_column(inputs) -> bool:
    """Whether `inputs` is a column of a dataset, the type of `dataset["audio"]` in `datasets` 4 and later."""
    return isinstance(inputs, Sequence) and hasattr(inputs, "source") and hasattr(inputs, "column_name")


def without_decoding(dataset, column: str):
    """
    Return a dataset whose column contains encoded recordings (`{"path", "bytes"}`), which [`load_audio`] reads.

    `datasets` decodes with torchcodec, and fails if torchcodec is not installed.

    Args:
        dataset (`Dataset` or `IterableDataset`): A dataset of `datasets`. Any other object is returned unchanged.
        column (`str`): Name of the column with recordings.
    """
    feature = (getattr(dataset, "features", None) or {}).get(column)
    if feature is None or type(feature).__name__ != "Audio" or not feature.decode:
        return dataset
    return dataset.cast_column(column, dataclasses.replace(feature, decode=False))


__all__ = ["is_column", "without_decoding"]
