"""
Sentences of any words in ten languages, spoken by eSpeak NG: many voices, speeds and pitches, with noise.

    python examples/demo/espeak_speech.py --output data/espeak

The sentences are from the GNOME user documentation and its translations (CC-BY-SA-3.0), without those that hold digits,
acronyms or letters of another script, which nobody could say in one way. Pages of it, the same in all languages, are held out
for validation and test, and what they share with the others is left out. `test.jsonl` has those sentences in voices of the
training set, and `voices.jsonl` the same ones in voices that occur nowhere else. `checksums.json` holds the digest of every
split, text and sound; the same package versions give the same.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import re
import unicodedata
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import compose
import espeakng_loader
import numpy as np
import soxr
from recorded_speech import dataset_checksums, read_rows
from speech import SAMPLE_RATE, SoundPackage, install_package
from tqdm import tqdm


TEXTS = SoundPackage(
    name="gnome-user-docs",
    version="43.0-2",
    sha256="0d635a840747958ca84da778b40d341f1155603851f922c9a171f5a181d6a39f",
    licence="CC-BY-SA-3.0",
    sounds="usr/share/help",
)


@dataclass(frozen=True)
class Language:
    """
    Attributes:
        folder: of the translation.
        voice: eSpeak NG's name of the language.
        script: first word of the Unicode names of its letters.
    """

    folder: str
    voice: str
    script: str = "LATIN"


LANGUAGES = {
    "cs": Language("cs", "cs"),
    "de": Language("de", "de"),
    "en": Language("C", "en-us"),
    "es": Language("es", "es"),
    "fr": Language("fr", "fr"),
    "hu": Language("hu", "hu"),
    "pl": Language("pl", "pl"),
    "pt": Language("pt_BR", "pt-br"),
    "ru": Language("ru", "ru", "CYRILLIC"),
    "sv": Language("sv", "sv"),
}

TRAINED_VOICES = ("m1", "m3", "m4", "m6", "m7", "f1", "f2", "f4")
HELD_OUT_VOICES = ("m2", "m5", "f3", "f5")

WORDS_PER_MINUTE = (130, 190)
PITCH = (35, 65)

MALLARD = "{http://projectmallard.org/1.0/}"
CODE = {MALLARD + name for name in ("code", "cmd", "file", "input", "key", "keyseq", "output", "screen", "sys", "var")}
"""Marks what is typed rather than said; paragraphs with it are left out."""

MIN_WORDS, MAX_WORDS, MAX_CHARACTERS = 3, 14, 90

# Of 20 pages.
TEST_PAGES, VALIDATION_PAGES = 2, 1


# --- Text -----------------------------------------------------------------------------------------------------------


def read_sentences(page: Path) -> Iterator[str]:
    """Sentences of a page, as written."""
    tree = ElementTree.parse(page)
    for tag in ("p", "desc"):
        for paragraph in tree.iter(MALLARD + tag):
            if not any(element.tag in CODE for element in paragraph.iter()):
                text = " ".join("".join(paragraph.itertext()).split())
                yield from re.split(r"(?<=[.!?;:])\s+", text)


def plain(sentence: str) -> str:
    """Lower case, without punctuation but apostrophes."""
    kept = (character if character == "'" or character.isalpha() else " " for character in sentence.replace("’", "'"))
    return " ".join("".join(kept).lower().split())


def is_sayable(sentence: str, language: Language) -> bool:
    """Whether a sentence is whole, of a fit length, and its letters tell how to say it."""
    letters = [character for character in unicodedata.normalize("NFC", sentence) if character.isalpha()]
    words = [re.sub(r"\W", "", word) for word in sentence.split()]
    return (
        sentence.endswith((".", "!", "?"))
        and not re.search(r"[\d()\[\]/\\<>=+*@_…|&%]|\.\.", sentence)
        and not any(len(word) > 1 and word.isupper() for word in words)
        and MIN_WORDS <= len(plain(sentence).split()) <= MAX_WORDS
        and len(sentence) <= MAX_CHARACTERS
        and all(unicodedata.name(letter, "").startswith(language.script) for letter in letters)
    )


def split_of(page: str) -> str:
    """The split of a page, which is that of its translations."""
    draw = zlib.crc32(page.encode()) % 20
    return "test" if draw < TEST_PAGES else "validation" if draw < TEST_PAGES + VALIDATION_PAGES else "train"


def read_language(folder: Path, language: Language) -> dict[str, list[str]]:
    """Sentences of each split; none twice, and none that nobody has translated."""
    originals: set[str] = set()
    if language.folder != "C":
        for page in (folder / "C" / "gnome-help").glob("*.page"):
            originals.update(read_sentences(page))
    splits: dict[str, dict[str, str]] = {"train": {}, "validation": {}, "test": {}}
    for page in sorted((folder / language.folder / "gnome-help").glob("*.page")):
        for sentence in read_sentences(page):
            if sentence not in originals and is_sayable(sentence, language):
                splits[split_of(page.stem)].setdefault(plain(sentence), sentence)
    seen: set[str] = set()
    chosen = {}
    for split, sentences in splits.items():
        chosen[split] = [sentence for text, sentence in sentences.items() if text not in seen]
        seen.update(sentences)
    return chosen


# --- Sound ----------------------------------------------------------------------------------------------------------


class Espeak:
    """
    eSpeak NG, as the PyPI package `espeakng-loader` brings it.

    How something sounds depends a little on what was said before, in the whole process; the same order gives the same.

    Args:
        seed: of its chance.

    Raises:
        `RuntimeError`: If it does not start.
    """

    # From speak_lib.h.
    SYNCHRONOUS, DONT_EXIT, UTF8, RATE, PITCH = 2, 0x8000, 1, 1, 3

    def __init__(self, seed: int = 0):
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path().encode()
        self.sample_rate = self._library.espeak_Initialize(self.SYNCHRONOUS, 0, data, self.DONT_EXIT)
        if self.sample_rate <= 0:
            raise RuntimeError(f"eSpeak NG does not start with its data in {data.decode()}.")
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        self._library.espeak_Info.restype = ctypes.c_char_p
        self.version = self._library.espeak_Info(None).decode()
        self._pieces: list[np.ndarray] = []
        prototype = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        # Kept, or the library would call what is gone.
        self._callback = prototype(self._receive)
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples, count, events) -> int:
        if samples and count:
            self._pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def speak(self, text: str, voice: str, words_per_minute: int, pitch: int) -> np.ndarray:
        """
        Args:
            text: to say.
            voice: of a language and a variant ("de+f3").
            words_per_minute: speed.
            pitch: from 0 to 99.

        Returns:
            float32 in [-1, 1], mono, 16 kHz, shape `(samples,)`.

        Raises:
            `ValueError`: If there is no such voice.
            `RuntimeError`: If nothing comes.
        """
        self._pieces = []
        # A variant that does not exist would be left out without a word.
        _, _, variant = voice.partition("+")
        variants = Path(espeakng_loader.get_data_path()) / "voices" / "!v"
        if (variant and not (variants / variant).is_file()) or self._library.espeak_SetVoiceByName(voice.encode()):
            raise ValueError(f"`voice` {voice!r} is not one of eSpeak NG's.")
        self._library.espeak_SetParameter(self.RATE, words_per_minute, 0)
        self._library.espeak_SetParameter(self.PITCH, pitch, 0)
        encoded = text.encode()
        failed = self._library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, self.UTF8, None, None)
        if failed or not self._pieces:
            raise RuntimeError(f"eSpeak NG said nothing for {text!r} in {voice!r}.")
        samples = np.concatenate(self._pieces).astype(np.float32) / 32768
        return soxr.resample(samples, self.sample_rate, SAMPLE_RATE)


def render(samples: np.ndarray, augmentation: compose.Augmentation, rng: np.random.Generator) -> np.ndarray:
    """Silence around what is said, noise and a level."""
    edges = [np.zeros(int(rng.uniform(*compose.EDGE_SECONDS) * SAMPLE_RATE), dtype=np.float32) for _ in range(2)]
    samples = np.concatenate([edges[0], samples, edges[1]])
    noise_power = np.mean(np.square(samples)) * 10 ** (-rng.uniform(*augmentation.snr_db) / 10)
    samples = samples + np.float32(np.sqrt(noise_power)) * compose.noise_like(len(samples), rng)
    gain = 10 ** (rng.uniform(*augmentation.gain_db) / 20)
    return samples * np.float32(min(gain, 0.99 / np.max(np.abs(samples))))


# --- Corpus ---------------------------------------------------------------------------------------------------------


def make_corpus(output: Path, texts: Path, takes: int = 1, limit: int | None = None, seed: int = 0) -> None:
    """
    Write the corpus, in one go, since how a sentence sounds depends a little on those before.

    Args:
        output: folder of the corpus.
        texts: folder of the documentation, with a folder a language.
        takes: how often each sentence of the training set is spoken, each time by another voice.
        limit: of sentences a language and split.
        seed: of all chance.
    """
    if not 1 <= takes <= len(TRAINED_VOICES):
        raise ValueError(f"`takes` must be between 1 and {len(TRAINED_VOICES)}, the number of voices, got {takes}.")
    espeak = Espeak(seed)
    sentences = {code: read_language(texts, language) for code, language in LANGUAGES.items()}
    # The split that sentences are from, the voices that say them, and how often.
    parts = {
        "train": ("train", TRAINED_VOICES, takes),
        "validation": ("validation", TRAINED_VOICES, 1),
        "test": ("test", TRAINED_VOICES, 1),
        "voices": ("test", HELD_OUT_VOICES, 1),
    }
    for part, (split, voices, count) in parts.items():
        augmentation = compose.TRAIN_AUGMENTATION if part == "train" else compose.TEST_AUGMENTATION
        rows = []
        for code, language in LANGUAGES.items():
            for index, sentence in enumerate(tqdm(sentences[code][split][:limit], desc=f"{part} {code}", leave=False)):
                rng = compose._generator(seed, part, code, index)
                for take, variant in enumerate(rng.permutation(voices)[:count]):
                    speed, pitch = int(rng.integers(*WORDS_PER_MINUTE)), int(rng.integers(*PITCH))
                    samples = espeak.speak(sentence, f"{language.voice}+{variant}", speed, pitch)
                    row = compose._write_recording(
                        output,
                        part,
                        f"{code}-{index:05d}-{take}",
                        render(samples, augmentation, rng),
                        plain(sentence),
                        code,
                    )
                    del row["words"]
                    rows.append({**row, "voice": f"{language.voice}+{variant}"})
        compose._write_rows(output / f"{part}.jsonl", rows)
    report = {
        "sha256": dataset_checksums(output, tuple(parts)),
        "texts": {"name": TEXTS.name, "version": TEXTS.version, "sha256": TEXTS.sha256, "licence": TEXTS.licence},
        "espeak": espeak.version,
    }
    (output / "checksums.json").write_text(json.dumps(report, indent=1) + "\n")
    for part in parts:
        rows = read_rows(output / f"{part}.jsonl")
        hours = sum(row["duration"] for row in rows) / 3600
        print(f"{output / part}.jsonl: {len(rows)} utterances, {hours:.2f} h, sha256 {report['sha256'][part][:16]}…")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("data/espeak"), help="Folder of the corpus.")
    parser.add_argument("--packages", type=Path, default=Path("data/speech"), help="Folder of what is downloaded.")
    parser.add_argument("--takes", type=int, default=1, help="How often each training sentence is spoken.")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.packages.mkdir(parents=True, exist_ok=True)
    texts = args.packages.resolve() / TEXTS.name
    if not texts.is_dir():
        install_package(TEXTS, args.packages.resolve(), texts)
    make_corpus(args.output, texts, takes=args.takes, seed=args.seed)


if __name__ == "__main__":
    main()
