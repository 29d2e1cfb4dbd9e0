"""
Creates a corpus of sentences in ten languages, spoken by eSpeak NG with many voices, speeds and pitches, and with noise.

    python examples/demo/espeak_speech.py --output data/espeak

The sentences come from the GNOME user documentation and its translations (CC-BY-SA-3.0). Sentences with digits, acronyms or
letters of another script are left out, because their pronunciation is ambiguous. The same pages are held out for validation and
test in all languages, without sentences that occur in other pages. `test.jsonl` has voices of the training set. `voices.jsonl`
has the same sentences in voices that occur in no other split. `checksums.json` has the digests of the text and sound of every
split. The same package versions give the same digests.
"""

from __future__ import annotations

import argparse
import ctypes
import json
from pathlib import Path

import compose
import espeakng_loader
import numpy as np
import rendering
import soxr
from gnome_texts import LANGUAGES, TEXTS, plain, read_language
from recorded_speech import dataset_checksums, read_rows
from speech import SAMPLE_RATE, install_package
from tqdm import tqdm


TRAINED_VOICES = ("m1", "m3", "m4", "m6", "m7", "f1", "f2", "f4")
HELD_OUT_VOICES = ("m2", "m5", "f3", "f5")

WORDS_PER_MINUTE = (130, 190)
PITCH = (35, 65)


class Espeak:
    """
    eSpeak NG from the PyPI package `espeakng-loader`.

    The sound of a text depends slightly on the texts before it in the same process. The same order gives the same sounds.

    Args:
        seed: Seed of eSpeak NG's random numbers.

    Raises:
        `RuntimeError`: If eSpeak NG does not start.
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
        # Keep a reference, because the library would otherwise call a deleted function.
        self._callback = prototype(self._receive)
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples, count, events) -> int:
        if samples and count:
            self._pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def speak(self, text: str, voice: str, words_per_minute: int, pitch: int) -> np.ndarray:
        """
        Speak a text.

        Args:
            text: Text to speak.
            voice: Language and variant ("de+f3").
            words_per_minute: Speed.
            pitch: Pitch from 0 to 99.

        Returns:
            Samples of shape `(samples,)`: float32 in [-1, 1], mono, 16 kHz.

        Raises:
            `ValueError`: If there is no such voice.
            `RuntimeError`: If eSpeak NG returns no samples.
        """
        self._pieces = []
        # eSpeak NG silently ignores a variant that does not exist.
        _, _, variant = voice.partition("+")
        variants = Path(espeakng_loader.get_data_path()) / "voices" / "!v"
        if (variant and not (variants / variant).is_file()) or self._library.espeak_SetVoiceByName(voice.encode()):
            raise ValueError(f"`voice` {voice!r} is not one of eSpeak NG's.")
        self._library.espeak_SetParameter(self.RATE, words_per_minute, 0)
        self._library.espeak_SetParameter(self.PITCH, pitch, 0)
        encoded = text.encode()
        failed = self._library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, self.UTF8, None, None)
        if failed or not self._pieces:
            raise RuntimeError(f"eSpeak NG returned no samples for {text!r} in {voice!r}.")
        samples = np.concatenate(self._pieces).astype(np.float32) / 32768
        return soxr.resample(samples, self.sample_rate, SAMPLE_RATE)


def make_corpus(output: Path, texts: Path, takes: int = 1, limit: int | None = None, seed: int = 0) -> None:
    """
    Write the corpus in one process, because the sound of a sentence depends slightly on the sentences before it.

    Args:
        output: Folder of the corpus.
        texts: Folder of the documentation, with a folder for each language.
        takes: Number of times that each sentence of the training set is spoken, each time by another voice.
        limit: Largest number of sentences for each language and split.
        seed: Seed of all random choices.
    """
    if not 1 <= takes <= len(TRAINED_VOICES):
        raise ValueError(f"`takes` must be between 1 and {len(TRAINED_VOICES)}, the number of voices, got {takes}.")
    espeak = Espeak(seed)
    sentences = {code: read_language(texts, language) for code, language in LANGUAGES.items()}
    # Source split of the sentences, voices, and number of times that each sentence is spoken.
    parts = {
        "train": ("train", TRAINED_VOICES, takes),
        "validation": ("validation", TRAINED_VOICES, 1),
        "test": ("test", TRAINED_VOICES, 1),
        "voices": ("test", HELD_OUT_VOICES, 1),
    }
    for part, (split, voices, count) in parts.items():
        augmentation = rendering.TRAIN_AUGMENTATION if part == "train" else rendering.TEST_AUGMENTATION
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
                        rendering.render_synthetic(samples, augmentation, rng),
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
    parser.add_argument("--packages", type=Path, default=Path("data/speech"), help="Folder for downloads.")
    parser.add_argument("--takes", type=int, default=1, help="Number of times that each training sentence is spoken.")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.packages.mkdir(parents=True, exist_ok=True)
    texts = args.packages.resolve() / TEXTS.name
    if not texts.is_dir():
        install_package(TEXTS, args.packages.resolve(), texts)
    make_corpus(args.output, texts, takes=args.takes, seed=args.seed)


if __name__ == "__main__":
    main()
