"""Which recordings do not say their text, by the judgement of an independent recogniser.

A pair is wrong where the characters that the recogniser hears differ too much from the text. How much is too much
depends on how well it hears a language: each limit lies where few texts that were dealt to other recordings pass, and
`calibrate` measures both that share and the share of rows that the limit rejects. ``wrong_pairs.json`` keeps the
verdict on the pinned packages, so that nobody has to listen again.
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
"""Character errors by the text's length, per language; others have :data:`OTHER_MAX_CHARACTER_ERROR`."""

OTHER_MAX_CHARACTER_ERROR = 0.7

MIN_REPEATED = 3
"""Letters that must come again for a repetition."""

VERDICTS = Path(__file__).with_name("wrong_pairs.json")


def limit(language: str) -> float:
    """The largest character error of a pair that is used."""
    return MAX_CHARACTER_ERROR.get(language, OTHER_MAX_CHARACTER_ERROR)


def character_error(text: str, heard: Sequence[str], language: str) -> float:
    """Edits between a text and the nearest transcript by the text's length, without spaces and repetition.

    Args:
        text: normalised.
        heard: transcripts of one recording, as the recogniser spells them.
        language: of both.
    """
    letters = text.replace(" ", "")
    spoken = [normalize(transcript, language).replace(" ", "") for transcript in heard]
    return min(jiwer.cer(letters, candidate) for said in spoken for candidate in (said, once(said)))


def once(letters: str) -> str:
    """``letters`` up to where they begin again, until their end: a recogniser in a loop says the same over and over."""
    periods = range(1, len(letters) - MIN_REPEATED + 1)
    return letters[: next((period for period in periods if letters.startswith(letters[period:])), len(letters))]


def check_pairs(
    rows: Sequence[dict], listen: Callable[[Sequence[dict], float], Mapping[str, str]], path: Path
) -> None:
    """Listen to every recording, and write which pairs are wrong.

    Args:
        rows: with "id", "text" and "language".
        listen: the transcripts of some rows by "id", with so many seconds of silence behind a recording.
        path: the file to write.
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
    """The character error of each pair above its language's limit, by the row's "id"."""
    wrong = {}
    for row in rows:
        error = character_error(row["text"], heard[row["id"]], row["language"])
        if error > limit(row["language"]):
            wrong[row["id"]] = round(error, 2)
    return wrong


def calibrate(rows: Sequence[dict], heard: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """How the limit divides the pairs of one language, and texts that are dealt to recordings of the same length.

    Returns:
        "limit", "pairs", the "median" character error, "rejected" (share of the pairs) and "dealt_accepted" (share of the
        dealt pairs that would pass).
    """
    language = rows[0]["language"]
    most = limit(language)
    # Neighbours by length, so that a wrong length alone does not give a dealt pair away.
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
    """The wrong pairs that :func:`write_verdicts` kept, by "id"."""
    return json.loads(path.read_text(encoding="utf-8"))["wrong_pairs"]


def read_calibration(path: Path = VERDICTS) -> dict[str, dict[str, float]]:
    """How the pairs of each language were judged, as :func:`calibrate` returns it."""
    return json.loads(path.read_text(encoding="utf-8"))["calibration"]


def write_verdicts(wrong: Mapping[str, float], calibration: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Keep the wrong pairs and how they were found."""
    report = {"calibration": calibration, "wrong_pairs": dict(sorted(wrong.items()))}
    write_text(path, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
