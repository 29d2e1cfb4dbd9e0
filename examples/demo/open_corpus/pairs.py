"""Finds recordings that do not match their text, with an independent recogniser.

A pair of recording and text is wrong if its character error exceeds the limit of its language. The limit depends on the
accuracy of the recogniser in the language: only few texts that are assigned to other recordings are below it. `calibrate`
measures the share of such texts and the share of rows that the limit rejects. ``wrong_pairs.json`` has the verdicts for the
pinned packages, so that the check need not be repeated.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jiwer

from llm_asr.atomic_writing import write_text

from .recogniser import LONG_MARGIN, SHORT_MARGIN
from .texts import normalize


MAX_CHARACTER_ERROR = {"en": 0.5, "ru": 0.5, "cs": 0.7, "nl": 0.7, "es": 0.6, "fr": 0.6}
"""Largest character error of each language. Other languages have :data:`OTHER_MAX_CHARACTER_ERROR`."""

OTHER_MAX_CHARACTER_ERROR = 0.7

MIN_REPEATED = 3
"""Smallest number of repeated letters that counts as a repetition."""

VERDICTS = Path(__file__).with_name("wrong_pairs.json")


def limit(language: str) -> float:
    """Return the largest character error of an accepted pair."""
    return MAX_CHARACTER_ERROR.get(language, OTHER_MAX_CHARACTER_ERROR)


def character_error(text: str, heard: Sequence[str], language: str) -> float:
    """Return the edit distance from a text to its nearest transcript, divided by the text's length. Spaces and loops are ignored.

    Args:
        text: normalised text.
        heard: transcripts of one recording, in the recogniser's spelling.
        language: language of the text and the transcripts.
    """
    letters = text.replace(" ", "")
    spoken = [normalize(transcript, language).replace(" ", "") for transcript in heard]
    return min(jiwer.cer(letters, candidate) for said in spoken for candidate in (said, once(said)))


def once(letters: str) -> str:
    """Remove repetitions from the end of ``letters``: a recogniser in a loop repeats its output."""
    periods = range(1, len(letters) - MIN_REPEATED + 1)
    return letters[: next((period for period in periods if letters.startswith(letters[period:])), len(letters))]


def check_pairs(
    rows: Sequence[dict], listen: Callable[[Sequence[dict], float], Mapping[str, str]], path: Path
) -> None:
    """Transcribe every recording, and write the wrong pairs.

    Args:
        rows: rows with "id", "text" and "language".
        listen: returns the transcripts of rows by "id". Its second argument is the silence after a recording in seconds.
        path: file to write.
    """
    heard = {name: [text] for name, text in listen(rows, SHORT_MARGIN).items()}
    failed = [row for row in rows if row["id"] in find_wrong_pairs(rows, heard)]
    for name, text in listen(failed, LONG_MARGIN).items():
        heard[name].append(text)
    languages = sorted({row["language"] for row in rows})
    calibration = {
        language: calibrate([row for row in rows if row["language"] == language], heard) for language in languages
    }
    write_verdicts(find_wrong_pairs(rows, heard), calibration, path)


def find_wrong_pairs(rows: Sequence[dict], heard: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Return the character error of each pair above its language's limit, by the row's "id"."""
    wrong = {}
    for row in rows:
        error = character_error(row["text"], heard[row["id"]], row["language"])
        if error > limit(row["language"]):
            wrong[row["id"]] = round(error, 2)
    return wrong


def calibrate(rows: Sequence[dict], heard: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Measure how many pairs of one language, and how many texts that are assigned to other recordings, pass the limit.

    Returns:
        "limit", "pairs", the "median" character error, "rejected" (share of the pairs) and "dealt_accepted" (share of the
        texts assigned to other recordings that would pass).
    """
    language = rows[0]["language"]
    most = limit(language)
    # Exchange texts of similar length, so that the length alone does not reveal a wrong pair.
    ordered = sorted(rows, key=lambda row: (len(row["text"]), row["id"]))
    dealt = [
        character_error(text["text"], heard[row["id"]], language)
        for row, text in zip(ordered, ordered[1:] + ordered[:1], strict=True)
        if row["text"] != text["text"]
    ]
    errors = sorted(character_error(row["text"], heard[row["id"]], language) for row in rows)
    return {
        "limit": most,
        "pairs": len(errors),
        "median": errors[len(errors) // 2],
        "rejected": sum(error > most for error in errors) / len(errors),
        "dealt_accepted": sum(error <= most for error in dealt) / max(len(dealt), 1),
    }


def read_verdicts(path: Path = VERDICTS) -> dict[str, float]:
    """Read the wrong pairs that :func:`write_verdicts` wrote, by "id"."""
    return json.loads(path.read_text(encoding="utf-8"))["wrong_pairs"]


def read_calibration(path: Path = VERDICTS) -> dict[str, dict[str, float]]:
    """Read the results of :func:`calibrate` by language."""
    return json.loads(path.read_text(encoding="utf-8"))["calibration"]


def write_verdicts(wrong: Mapping[str, float], calibration: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Write the wrong pairs and the method of the check."""
    report = {"calibration": calibration, "wrong_pairs": dict(sorted(wrong.items()))}
    write_text(path, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
