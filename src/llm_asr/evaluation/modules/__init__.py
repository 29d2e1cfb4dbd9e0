"""Metric modules for the library `evaluate`. Load one with `evaluate.load(metric_folder("wer_by_language"))`."""

from pathlib import Path


MODULES = ("wer_by_language", "cer_by_language", "error_report", "keyword_report")


def metric_folder(name: str) -> str:
    """
    The folder of a metric module.

    Args:
        name (`str`): One of `MODULES`.

    Raises:
        `ValueError`: If no module has this name.
    """
    if name not in MODULES:
        raise ValueError(f"`name` must be one of {list(MODULES)}, got {name!r}.")
    return str(Path(__file__).parent / name)


__all__ = ["MODULES", "metric_folder"]
