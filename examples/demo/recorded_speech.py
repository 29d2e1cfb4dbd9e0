"""
Creates a corpus of recorded speech in five languages for comparing systems, including voices that are not in the training set.

    python examples/demo/recorded_speech.py --output data/recorded

`compose.py` composes the utterances, with one voice for each language. Training has different amounts for each language, so
that transfer between languages can be measured. Validation and test have equal amounts. `voices.jsonl` has three further voices
in Spanish, French and Italian, recorded over telephone lines instead of in a studio. These voices and their texts occur in no
other split. `checksums.json` has the digests of the text and sound of every split. The same package versions give the same
digests.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import compose
import numpy as np
from grammars import GRAMMARS, Grammar, Lexicon
from speech import PACKAGES, SAMPLE_RATE, fetch_speech, load_clip, trim_silence
from tqdm import tqdm
from utterances import Utterance, draw_utterance, fits


TRAIN_COUNTS = {"en": 1600, "es": 800, "fr": 400, "it": 200, "ru": 100}

# Recordings of further voices with other names than the same recordings of the first voice.
OTHER_CLIPS: dict[str, dict[str, tuple[str, ...]]] = {
    "es-co": {"y": ("vm-and",)},
    "fr-armelle": {"et": ("vm-and",)},
    "it-menardi": {},
}

# Recordings that are damaged, or whose words may differ from the first voice's recording of the same name.
LEFT_OUT = {
    "es-co": ("digits/h-1", "digits/million"),
    "fr-armelle": ("digits/at", "digits/h-1", "digits/million", "digits/oclock"),
    "it-menardi": (),
}

RUMBLE_BELOW = 100.0
"""Cut-off frequency of the further voices in hertz. One voice has a third of its power below it, which hides silences."""


def voice_lexicon(voice: str, folder: Path) -> Lexicon:
    """The part of a language's lexicon that a further voice can say."""
    lexicon = {**GRAMMARS[voice[:2]].lexicon, **OTHER_CLIPS[voice]}
    found = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.*")}
    found -= set(LEFT_OUT[voice])
    return {text: clips for text, clips in lexicon.items() if found.issuperset(clips)}


def load_voice(folder: Path, lexicon: Lexicon) -> dict[str, np.ndarray]:
    """Load the clips of a further voice in any format, and remove rumble."""
    names = sorted({name for clips in lexicon.values() for name in clips})
    clips = {}
    for name in names:
        (path,) = folder.glob(f"{name}.*")
        samples = load_clip(path)
        spectrum = np.fft.rfft(samples)
        spectrum[np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE) < RUMBLE_BELOW] = 0
        clips[name] = trim_silence(np.fft.irfft(spectrum, len(samples)).astype(np.float32))
    return clips


def draw_unseen(
    grammar: Grammar, clips: Mapping[str, np.ndarray], count: int, seen: set[str], rng: np.random.Generator
) -> list[Utterance]:
    """Draw utterances of a further voice whose texts are not in `seen`, and add their texts to `seen`."""
    utterances = []
    for _ in range(count):
        utterance = draw_utterance(
            grammar, rng, lambda candidate: candidate.text not in seen and fits(candidate, clips)
        )
        if utterance is None:
            raise ValueError(f"found only {len(utterances)} of {count} utterances; ask for fewer.")
        utterances.append(utterance)
        seen.add(utterance.text)
    return utterances


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def merge_languages(output: Path, languages: Sequence[str], splits: Sequence[str]) -> None:
    """Merge the folders of all languages to one file for each split."""
    for split in splits:
        rows = []
        for language in languages:
            for row in read_rows(output / language / f"{split}.jsonl"):
                rows.append({**row, "audio": f"{language}/{row['audio']}"})
        compose._write_rows(output / f"{split}.jsonl", rows)


def compose_voices(output: Path, clips_dir: Path, count: int, seed: int, seen: Mapping[str, set[str]]) -> None:
    """Write `voices.jsonl`: `count` utterances of each further voice, with a column `voice`."""
    rows = []
    for voice in OTHER_CLIPS:
        language = voice[:2]
        grammar = GRAMMARS[language]
        lexicon = voice_lexicon(voice, clips_dir / voice)
        grammar = Grammar(lexicon, grammar.number, grammar.date, grammar.time, grammar.days)
        clips = load_voice(clips_dir / voice, lexicon)
        utterances = draw_unseen(grammar, clips, count, set(seen[language]), compose._generator(seed, voice))
        for index, utterance in enumerate(tqdm(utterances, desc=voice, unit=" utterances")):
            name = f"{voice}-{utterance.kind}-{index:05d}"
            rng = compose._generator(seed, voice, index)
            row = compose._write_utterance(output, "voices", name, language, utterance, clips, rng)
            rows.append({**row, "voice": voice})
    compose._write_rows(output / "voices.jsonl", rows)


def dataset_checksums(output: Path, splits: Sequence[str]) -> dict[str, str]:
    """Digests of the rows and recordings of each split."""
    checksums = {}
    for split in splits:
        digest = hashlib.sha256((output / f"{split}.jsonl").read_bytes())
        for row in read_rows(output / f"{split}.jsonl"):
            digest.update((output / row["audio"]).read_bytes())
        checksums[split] = digest.hexdigest()
    return checksums


def make_corpus(
    output: Path,
    clips_dir: Path,
    train_counts: Mapping[str, int] = TRAIN_COUNTS,
    validation_per_language: int = 50,
    test_per_language: int = 100,
    per_voice: int = 100,
    seed: int = 0,
) -> None:
    """Write the corpus. Existing languages are kept."""
    for language, count in train_counts.items():
        counts = {"train": count, "validation": validation_per_language, "test": test_per_language}
        # The last file of a language shows that all are complete.
        if not (output / language / "test.jsonl").is_file():
            compose.compose_dataset(output / language, clips_dir, counts, seed, [language])
    languages = list(train_counts)
    merge_languages(output, languages, ("train", "validation", "test"))
    seen = {
        language: {
            row["text"]
            for split in ("train", "validation", "test")
            for row in read_rows(output / language / f"{split}.jsonl")
        }
        for language in languages
    }
    compose_voices(output, clips_dir, per_voice, seed, seen)
    splits = ("train", "validation", "test", "voices")
    report = {
        "sha256": dataset_checksums(output, splits),
        "packages": {
            voice: {
                "name": package.name,
                "version": package.version,
                "sha256": package.sha256,
                "licence": package.licence,
            }
            for voice, package in PACKAGES.items()
        },
    }
    (output / "checksums.json").write_text(json.dumps(report, indent=1) + "\n")
    for split in splits:
        rows = read_rows(output / f"{split}.jsonl")
        hours = sum(row["duration"] for row in rows) / 3600
        print(f"{output / split}.jsonl: {len(rows)} utterances, {hours:.2f} h, sha256 {report['sha256'][split][:16]}…")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("data/recorded"), help="Folder of the corpus.")
    parser.add_argument("--clips", type=Path, default=Path("data/speech"), help="Folder of the recordings.")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    fetch_speech(args.clips, [*TRAIN_COUNTS, *OTHER_CLIPS])
    make_corpus(args.output, args.clips, seed=args.seed)


if __name__ == "__main__":
    main()
