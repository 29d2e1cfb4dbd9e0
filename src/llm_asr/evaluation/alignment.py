"""How well CIF counts tokens, how much it compresses, and how exact its word boundaries are."""

from collections.abc import Sequence

import numpy as np


def length_report(
    predicted_lengths: Sequence[int],
    target_lengths: Sequence[int],
    durations: Sequence[float],
    languages: Sequence[str] | None = None,
    fixed_rate: float = 12.5,
) -> dict[str, dict[str, float]]:
    """
    Embeddings that a projector gave, against the tokens of the transcripts.

    Args:
        predicted_lengths (`Sequence[int]`): Embeddings of each recording, without knowing its transcript.
        target_lengths (`Sequence[int]`): Tokens of each transcript, in the language model's own tokenizer.
        durations (`Sequence[float]`): Of each recording, in seconds.
        languages (`Sequence[str]`, *optional*): Of each recording.
        fixed_rate (`float`, *optional*, defaults to 12.5): Embeddings a second of the fixed-rate projector to compare
            with; Whisper's 50 frames a second through the default `conv` projector.

    Returns:
        `dict`: For each language and for `"all"`: `length_error`, `sum(|predicted - target|) / sum(target)` in percent;
        `embeddings_per_second`; `prefill_saved`, the percentage of audio positions that the language model need not read
        compared with `fixed_rate`.

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

    A reference unit may hold several written words ("dix sept"), where nothing is known inside it: its start is compared
    with the start of its first word and its end with the end of its last.

    Args:
        reference (`Sequence[dict]`): `{"word": str, "start": float, "end": float}` for each spoken unit.
        hypothesis (`Sequence[dict]`): `{"text": str, "timestamp": (start, end)}` for each written word, as
            [`LlmAsrProcessor.decode`] returns them.

    Returns:
        `list[float]`: Two for each unit, or none if the words differ: an error of recognition is not one of timing.
    """
    written = [word for unit in reference for word in unit["word"].split()]
    if written != [word["text"] for word in hypothesis]:
        return []
    errors = []
    position = 0
    for unit in reference:
        count = len(unit["word"].split())
        start, end = hypothesis[position]["timestamp"][0], hypothesis[position + count - 1]["timestamp"][1]
        errors += [abs(start - unit["start"]), abs(end - unit["end"])]
        position += count
    return errors


__all__ = ["boundary_errors", "length_report"]
