"""Makes the rows and files of the corpus from the packages' clips, and counts rejected recordings by reason."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from speech import SAMPLE_RATE
from tqdm import tqdm

from llm_asr.atomic_writing import write_text

from . import sound, texts
from .clips import Clip
from .packages import PACKAGES, SOURCES
from .splits import MINUTES, split_rows


MIN_PHRASE_WORDS = 3
"""A single word of an unknown speaker is a poor test of a recogniser of sentences."""


@dataclass
class Corpus:
    """
    Attributes:
        rows: the accepted recordings.
        rejected: number of rejected recordings by source, language and reason.
    """

    rows: list[dict] = field(default_factory=list)
    rejected: Counter = field(default_factory=Counter)

    def reject(self, source: str, language: str, reason: str) -> None:
        """Count a recording that is not used."""
        self.rejected[source, language, reason] += 1


def read_corpus(clips: Iterable[Clip], output: Path) -> Corpus:
    """Convert the clips, and keep those whose text and sound can be used.

    Args:
        clips: clips of any sources.
        output: folder of the corpus. The sound is written to ``audio/<source>/<id>.flac``.
    """
    corpus = Corpus()
    for clip in tqdm(clips, desc="converting", unit=" clips"):
        text = texts.normalize(clip.text, clip.language)
        reason = texts.reason_to_reject(clip.text, clip.language)
        if reason is None and clip.source == "tuxpaint" and len(text.split()) < MIN_PHRASE_WORDS:
            reason = f"a phrase of fewer than {MIN_PHRASE_WORDS} words"
        if reason is None:
            audio = Path("audio") / clip.source / f"{clip.id}.flac"
            samples = sound.convert(clip, output / audio)
            reason = sound.reason_to_reject(samples, text)
        if reason is None:
            corpus.rows.append(_row(clip, text, audio, len(samples) / SAMPLE_RATE))
        else:
            corpus.reject(clip.source, clip.language, reason)
    return corpus


def _row(clip: Clip, text: str, audio: Path, duration: float) -> dict:
    package = PACKAGES[SOURCES[clip.source].packages[0]]
    return {
        "id": clip.id,
        "audio": audio.as_posix(),
        "text": text,
        "language": clip.language,
        "speaker": clip.speaker,
        "duration": round(duration, 3),
        "source": clip.source,
        "group": clip.group,
        "original_text": clip.text.strip(),
        "package": f"{package.name}={package.version}",
        "licence": package.licence,
    }


def drop_wrong_pairs(corpus: Corpus, wrong: Mapping[str, float]) -> None:
    """Reject the rows whose "id" is in ``wrong``."""
    kept = []
    for row in corpus.rows:
        if row["id"] in wrong:
            corpus.reject(row["source"], row["language"], "the recogniser hears another text")
        else:
            kept.append(row)
    corpus.rows = kept


def divide(corpus: Corpus, minutes: Mapping[str, float] = MINUTES) -> dict[str, list[dict]]:
    """Return the rows by file name: "train", "validation" and "test" of sentences, and "phrases-LL" of each language.

    Args:
        corpus: the corpus. Rows whose text is in another split are added to its rejected recordings.
        minutes: size of each source's held-out splits.
    """
    files: dict[str, list[dict]] = {"train": [], "validation": [], "test": []}
    for source in dict.fromkeys(row["source"] for row in corpus.rows):
        rows = [row for row in corpus.rows if row["source"] == source]
        if source == "tuxpaint":
            for row in rows:
                files.setdefault(f"phrases-{row['language']}", []).append({**row, "new_speaker": None})
            continue
        splits, left_out = split_rows(rows, minutes)
        for split, members in splits.items():
            files[split] += members
        for row, reason in left_out:
            corpus.reject(row["source"], row["language"], reason)
    return drop_training_phrases(corpus, files)


def drop_training_phrases(corpus: Corpus, files: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """Remove the phrases from ``files`` that are in their language's training set."""
    trained = {(row["language"], row["text"]) for row in files["train"]}
    for name in files:
        if name.startswith("phrases-"):
            for row in files[name]:
                if (row["language"], row["text"]) in trained:
                    corpus.reject(row["source"], row["language"], "text of another split")
            files[name] = [row for row in files[name] if (row["language"], row["text"]) not in trained]
    return files


def write_files(files: Mapping[str, Sequence[dict]], output: Path) -> None:
    """Write ``<name>.jsonl`` for each of ``files``."""
    for name, rows in files.items():
        write_text(output / f"{name}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def summarize(files: Mapping[str, Sequence[dict]], rejected: Counter) -> dict:
    """Return counts, hours, words and speakers by file and language, and rejected recordings by source and reason."""
    train_words = {}
    for row in [*files.get("train", ()), *files.get("synthetic-train", ())]:
        train_words.setdefault(row["language"], set()).update(row["text"].split())
    table = []
    for name, rows in files.items():
        for language in sorted({row["language"] for row in rows}):
            members = [row for row in rows if row["language"] == language]
            words = [word for row in members for word in row["text"].split()]
            known = train_words.get(language)
            table.append(
                {
                    "file": name,
                    "language": language,
                    "rows": len(members),
                    "hours": round(sum(row["duration"] for row in members) / 3600, 3),
                    "words": len(words),
                    "distinct_words": len(set(words)),
                    "unseen_words": None
                    if name.endswith("train") or known is None
                    else round(sum(word not in known for word in words) / len(words), 3),
                    "speakers": len({row["speaker"] for row in members} - {None}),
                    "rows_of_new_speakers": sum(row["new_speaker"] is True for row in members),
                }
            )
    reasons = [
        {"source": source, "language": language, "reason": reason, "recordings": count}
        for (source, language, reason), count in sorted(rejected.items())
    ]
    return {"files": table, "rejected": reasons}
