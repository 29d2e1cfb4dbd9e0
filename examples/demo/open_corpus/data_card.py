"""Writes the data card of the corpus: its contents, licences and rejected recordings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gnome_texts import TEXTS

from .packages import PACKAGES, SOURCES
from .splits import HELD_OUT_SPEAKER_MINUTES, MINUTES


HEADER = """\
# Open-vocabulary speech from Debian's packages

Recordings of people who say sentences and phrases, with their texts. `examples/demo/open_speech.py` makes this folder from
packages that it pins by version and SHA-256. Nothing here is redistributed with LLM-ASR: **the recordings keep the licences
of their packages** (below), which allow use and change; read them before you publish recordings or a model.

## Rows

`train.jsonl`, `validation.jsonl` and `test.jsonl` are sentences, and `phrases-LL.jsonl` are short phrases for tests alone.
A row has `audio` (16 kHz mono FLAC, relative to this folder), `text` (lower case, without punctuation), `language`,
`speaker` (a role; `null` where unknown), `duration` (seconds), and where it is from: `source`, `group`, `package`, `licence`
and `original_text`. `new_speaker` says whether the training set lacks the speaker.
"""

SYNTHETIC = """\
## Synthetic speech

SVOX Pico (`py-nanotts` 0.1.1, Apache-2.0) says the rows of `synthetic-*.jsonl`: dialogue of Fish Fillets (`fillets-ng-data`,
GPL-2.0-or-later) and sentences of the GNOME user documentation (`{name}` {version}, {licence}, SHA-256 `{sha256}`), at several
speeds and pitches and with noise. One voice speaks each language; the English test has a voice of its own. No sentence is in
two splits, and none is a text that people say.
"""

SPLITS = """\
## Splits

Dialogues, scenes, levels and runs of 20 sentences stay whole; in the order of the SHA-256 of their names they fill the test
set ({test:g} minutes of each source) and the validation set ({validation:g} minutes). No text of one split is in another.
Minor roles that occur in several dialogues are in the test set alone, up to {speakers:g} minutes; what others say in those
dialogues is on the side of the dialogue. One actor may play several roles, which the packages do not tell, and the roles in
the cutaways of the English game are unknown. The check by a recogniser leaves out what it hears worst, so error rates on these
tests are a little lower than on everything that the actors say.
"""


def write_card(
    summary: Mapping[str, Sequence[Mapping]], calibration: Mapping[str, Mapping[str, float]], sources: Sequence[str]
) -> str:
    """Return the data card in Markdown.

    Args:
        summary: result of :func:`corpus.summarize`.
        calibration: results of :func:`pairs.calibrate` by language.
        sources: keys of :data:`SOURCES` that were used.
    """
    parts = [HEADER]
    parts.append("## Contents\n")
    columns = ("file", "language", "rows", "hours", "words", "distinct_words", "unseen_words", "speakers")
    parts.append(_table(columns, summary["files"]))
    parts.append("`unseen_words` is the share of words that the training set of the language lacks.\n")
    parts.append("## Sources and licences\n")
    packages = [
        {
            "source": source,
            "what": SOURCES[source].description,
            "package": f"`{name}` {PACKAGES[name].version}",
            "licence": PACKAGES[name].licence,
            "sha256": f"`{PACKAGES[name].sha256}`",
        }
        for source in sources
        for name in SOURCES[source].packages
    ]
    parts.append(_table(("source", "what", "package", "licence", "sha256"), packages))
    parts.append(
        "Each package's `copyright` file, with its whole licence, lies in its folder beside the recordings.\n"
    )
    if any(row["file"].startswith("synthetic-") for row in summary["files"]):
        parts.append(SYNTHETIC.format(**vars(TEXTS)))
    parts.append(SPLITS.format(**MINUTES, speakers=HELD_OUT_SPEAKER_MINUTES))
    parts.append("## Left out\n")
    parts.append(_table(("source", "language", "reason", "recordings"), summary["rejected"]))
    parts.append(
        "Whisper-base (8 bits, greedy, language given) heard every recording. A pair counts as wrong where the character "
        "error of what it heard exceeds the limit. `dealt_accepted` is the share of texts, dealt to recordings of other "
        "texts of the same length, that would pass.\n"
    )
    columns = ("language", "pairs", "median", "limit", "rejected", "dealt_accepted")
    rows = [{"language": language, **values} for language, values in calibration.items()]
    parts.append(_table(columns, rows))
    return "\n".join(parts)


def _table(columns: Sequence[str], rows: Sequence[Mapping]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
