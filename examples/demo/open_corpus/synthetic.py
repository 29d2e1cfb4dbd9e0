"""Creates synthetic speech with SVOX Pico: hours of recordings with exact transcripts in minutes.

The package ``py-nanotts`` (extra ``corpus``, Apache-2.0) has the voices. The sentences are dialogue of Fish Fillets and the GNOME
user documentation. English has two voices, and one of them is only in the test. The other languages have one voice for all
splits. Spanish and French also have the phrases that people say as a test.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import gnome_texts
import numpy as np
import soundfile
from rendering import TEST_AUGMENTATION, TRAIN_AUGMENTATION, render_synthetic
from speech import SAMPLE_RATE
from tqdm import tqdm

from llm_asr.atomic_writing import atomic_path

from .fillets import read_lines
from .texts import normalize, reason_to_reject


@dataclass(frozen=True)
class Voices:
    """The voice of the training and validation sets, and the voice of the test."""

    train: str
    test: str


VOICES = {
    "de": Voices("de-DE", "de-DE"),
    "en": Voices("en-US", "en-GB"),
    "es": Voices("es-ES", "es-ES"),
    "fr": Voices("fr-FR", "fr-FR"),
    "it": Voices("it-IT", "it-IT"),
}

# The eSpeak corpus has no Italian, so `gnome_texts` does not list it.
DOCUMENTATION = {**gnome_texts.LANGUAGES, "it": gnome_texts.Language("it", "it")}

SPEED = (0.8, 1.25)
PITCH = (0.85, 1.2)
VOLUME = 0.4
"""At full volume, the loudest samples are clipped."""

WORDS = (2, 25)

HELD_OUT = {"validation": 50, "test": 100}
"""Number of sentences for each language."""


@dataclass(frozen=True)
class Sentence:
    """
    Attributes:
        text: normalised text.
        original: spoken text in its original spelling.
        group: level of the game, or "gnome-help" for the documentation.
    """

    text: str
    original: str
    group: str


def read_sentences(
    scripts: Path, documentation: Path, language: str, heard: Collection[str]
) -> dict[str, list[Sentence]]:
    """Return the sentences of each split. No sentence occurs twice, and none is in ``heard``.

    Args:
        scripts: folder of the scripts of Fish Fillets.
        documentation: folder of the GNOME documentation.
        language: key of :data:`VOICES`.
        heard: normalised texts of all recordings of people in this language.
    """
    splits: dict[str, dict[str, Sentence]] = {"test": {}, "validation": {}, "train": {}}
    seen = set(heard)
    found = list(_dialogue(scripts, language)) + list(_documentation(documentation, language))
    for split, chosen in splits.items():
        for original, group, side in found:
            text = normalize(original, language)
            fits = WORDS[0] <= len(text.split()) <= WORDS[1] and reason_to_reject(original, language) is None
            if side == split and fits and text not in seen and len(chosen) < HELD_OUT.get(split, len(found)):
                chosen.setdefault(text, Sentence(text, original, group))
        seen.update(chosen)
    return {split: list(chosen.values()) for split, chosen in splits.items()}


def _dialogue(scripts: Path, language: str) -> Iterator[tuple[str, str, str]]:
    """Yield text, group and split of the game's lines."""
    for file in sorted(scripts.glob(f"*/*dialogs_{language}.lua")):
        level = file.parent.name
        for _, _, text in read_lines(file.read_text(encoding="utf-8")):
            yield text, level, gnome_texts.split_of(level)


def _documentation(folder: Path, language: str) -> Iterator[tuple[str, str, str]]:
    """Yield text, group and split of the documentation's sentences."""
    for split, sentences in gnome_texts.read_language(folder, DOCUMENTATION[language]).items():
        for text in sentences:
            yield text, "gnome-help", split


def speak_corpus(
    scripts: Path, documentation: Path, people: dict[str, list[dict]], output: Path, takes: int
) -> dict[str, list[dict]]:
    """Speak the sentences of all languages.

    Args:
        scripts: folder of the scripts of Fish Fillets.
        documentation: folder of the GNOME documentation.
        people: rows of recordings of people by file. Their texts are not spoken.
        output: folder of the corpus. The sound is written to ``audio/pico``.
        takes: number of times that each training sentence is spoken, each time at another speed and pitch.

    Returns:
        Rows of "synthetic-train", "synthetic-validation" and "synthetic-test".
    """
    from py_nanotts import NanoTTS  # needed only for synthetic speech

    engine = NanoTTS()
    rows: dict[str, list[dict]] = {f"synthetic-{split}": [] for split in ("train", "validation", "test")}
    for language, voices in VOICES.items():
        heard = {row["text"] for members in people.values() for row in members if row["language"] == language}
        for split, sentences in read_sentences(scripts, documentation, language, heard).items():
            voice = voices.test if split == "test" else voices.train
            for index, sentence in enumerate(tqdm(sentences, desc=f"speaking {language} {split}", leave=False)):
                for take in range(takes if split == "train" else 1):
                    name = f"pico-{language}-{split}-{index:05d}-{take}"
                    row = _speak(engine, sentence, language, voice, name, output, varied=split != "test")
                    rows[f"synthetic-{split}"].append({**row, "new_speaker": voice != voices.train})
    return rows


def _speak(engine, sentence: Sentence, language: str, voice: str, name: str, output: Path, varied: bool) -> dict:
    """Write a spoken sentence to a file, unless the file exists, and return its row."""
    audio = Path("audio") / "pico" / f"{name}.flac"
    path = output / audio
    if not path.is_file():
        rng = np.random.default_rng(zlib.crc32(f"{name} {sentence.original}".encode()))
        speed, pitch = (rng.uniform(*SPEED), rng.uniform(*PITCH)) if varied else (1.0, 1.0)
        data = engine.speak(sentence.original, voice=voice, speed=speed, pitch=pitch, volume=VOLUME)
        samples = np.frombuffer(data, "<i2").astype(np.float32) / 32768
        samples = render_synthetic(samples, TRAIN_AUGMENTATION if varied else TEST_AUGMENTATION, rng)
        with atomic_path(path) as unfinished:
            soundfile.write(unfinished, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return {
        "id": name,
        "audio": audio.as_posix(),
        "text": sentence.text,
        "language": language,
        "speaker": f"pico-{voice}",
        "duration": round(soundfile.info(path).duration, 3),
        "source": "pico",
        "group": sentence.group,
        "original_text": sentence.original,
        "package": "py-nanotts=0.1.1",
        "licence": "Apache-2.0 (voices), GPL-2.0-or-later and CC-BY-SA-3.0 (sentences)",
    }
