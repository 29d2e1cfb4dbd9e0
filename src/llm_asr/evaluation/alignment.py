"""Measures of CIF: errors of its token counts, its compression, and errors of its word boundaries."""

from collections.abc import Sequence

import numpy as np

from ..processing.writing import split_units


def length_report(
    predicted_lengths: Sequence[int],
    target_lengths: Sequence[int],
    durations: Sequence[float],
    languages: Sequence[str] | None = None,
    fixed_rate: float = 12.5,
) -> dict[str, dict[str, float]]:
    """
    Compare the numbers of embeddings from a projector with the numbers of tokens in the transcripts.

    Args:
        predicted_lengths (`Sequence[int]`): Number of embeddings of each recording, at inference, where the projector does
            not know the transcript.
        target_lengths (`Sequence[int]`): Number of tokens of each transcript with the language model's tokenizer.
        durations (`Sequence[float]`): Duration of each recording in seconds.
        languages (`Sequence[str]`, *optional*): Language of each recording.
        fixed_rate (`float`, *optional*, defaults to 12.5): Embeddings per second of the fixed-rate projector to compare
            with. The default is the `conv` projector's rate for Whisper's 50 frames per second.

    Returns:
        `dict`: For each language and for `"all"`: `length_error`, `sum(|predicted - target|) / sum(target)` in percent;
        `embeddings_per_second`; `prefill_saved`, the reduction of audio positions in the language model's prompt relative
        to `fixed_rate`, in percent.

    Raises:
        `ValueError`: If the lengths of the arguments differ.
    """
    columns = [predicted_lengths, target_lengths, durations, *([] if languages is None else [languages])]
    if len({len(column) for column in columns}) != 1:
        raise ValueError(f"All arguments must have the same length, got {[len(column) for column in columns]}.")
    predicted, target = np.array(predicted_lengths, dtype=float), np.array(target_lengths, dtype=float)
    seconds = np.array(durations, dtype=float)
    groups = {language: np.array(languages) == language for language in sorted(set(languages or []))}
    groups["all"] = np.ones(len(predicted), dtype=bool)
    report = {}
    for language, rows in groups.items():
        rate = predicted[rows].sum() / seconds[rows].sum()
        report[language] = {
            "length_error": 100 * np.abs(predicted - target)[rows].sum() / target[rows].sum(),
            "embeddings_per_second": rate,
            "prefill_saved": 100 * (1 - rate / fixed_rate),
        }
    return report


def boundary_errors(reference: Sequence[dict], hypothesis: Sequence[dict]) -> list[float]:
    """
    Absolute errors of word boundaries, in seconds.

    A reference unit may hold several written words ("dix sept"). The times of boundaries inside a unit are unknown, so only
    the start of its first word and the end of its last word are compared.

    Args:
        reference (`Sequence[dict]`): `{"word": str, "start": float, "end": float}` for each spoken unit.
        hypothesis (`Sequence[dict]`): `{"text": str, "timestamp": (start, end)}` for each written word, as
            [`LlmAsrProcessor.decode`] returns them.

    Returns:
        `list[float]`: Two errors for each unit. The list is empty if the words differ, because boundaries of wrong words
        cannot be compared.
    """
    written = [word for unit in reference for word in split_units(unit["word"])]
    if written != [word["text"] for word in hypothesis]:
        return []
    errors = []
    position = 0
    for unit in reference:
        count = len(split_units(unit["word"]))
        start, end = hypothesis[position]["timestamp"][0], hypothesis[position + count - 1]["timestamp"][1]
        errors += [abs(start - unit["start"]), abs(end - unit["end"])]
        position += count
    return errors


__all__ = ["boundary_errors", "length_report"]
