"""
Composes utterances from clips, as a telephone system speaks numbers, dates, times and telephone numbers.

An utterance starts as a text that follows the rules of its language. The language's lexicon then names the recordings for
exactly this text. Texts with words that have no recording are not used. The column `words` of a row lists spoken units. A unit
is usually one written word, and sometimes several that share one recording ("dix sept").
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile
from grammars import GRAMMARS, Lexicon
from rendering import (
    TEST_AUGMENTATION,
    TRAIN_AUGMENTATION,
    render,
    render_silence,
)
from speech import SAMPLE_RATE, fetch_speech, load_clip
from tqdm import tqdm
from utterances import Utterance, draw_splits

from llm_asr.atomic_writing import write_text


def load_clips(voice: Path, lexicon: Lexicon) -> dict[str, np.ndarray]:
    """Load the clips that `lexicon` uses from the folder `voice`."""
    names = sorted({name for clips in lexicon.values() for name in clips})
    return {name: load_clip(voice / f"{name}.g722") for name in names}


def compose_dataset(
    output: str | Path,
    clips_dir: str | Path,
    counts: Mapping[str, int],
    seed: int = 0,
    languages: Sequence[str] = tuple(GRAMMARS),
    silences: Mapping[str, int] | None = None,
    translations: bool = False,
) -> None:
    """
    Write `audio/<split>/<id>.flac` (16 kHz, mono, 16 bit) and one `<split>.jsonl` per split.

    A row of `<split>.jsonl` has `id`, `audio` (relative to the file's folder), `text`, `language`, `duration` in seconds, and
    `words`: `word`, `start` and `end` in seconds of each spoken unit. The file is written after all audio of its split. A
    recording without speech has an empty text, no words and the language `None`. The same arguments give the same bytes. The
    utterances of a language do not depend on the other languages.

    Args:
        output: Folder of the dataset.
        clips_dir: Folder with one folder of clips per language, as [`fetch_speech`] writes it.
        counts: Utterances per language for each split: "train" and any others.
        seed: Seed of all random choices.
        languages: Keys of `GRAMMARS`.
        silences: Number of recordings without speech for each split; zero for splits that are not named.
        translations: Whether rows also have `translation`, the same number, date or time in another of the languages, and
            `target_language`. Recordings do not depend on it.

    Raises:
        `ValueError`: If a language is unknown, there is no other language to translate into, or if "train" is missing from `counts` or too small to use every word.
    """
    unknown = sorted(set(languages) - set(GRAMMARS))
    if unknown:
        raise ValueError(f"no grammar for languages {unknown}; choose from {sorted(GRAMMARS)}")
    if translations and len(languages) < 2:
        raise ValueError(f"translations need two languages, got {list(languages)}")
    if "train" not in counts:
        raise ValueError(f"counts names the splits {sorted(counts)}, which lack 'train'")
    output, clips_dir = Path(output), Path(clips_dir)
    clips = {language: load_clips(clips_dir / language, GRAMMARS[language].lexicon) for language in languages}
    # Draw all texts before writing any sound, so that errors come first.
    drawn = {
        language: draw_splits(GRAMMARS[language], clips[language], counts, _generator(seed, language))
        for language in languages
    }
    for splits in drawn.values():
        assert_disjoint(splits)
    silences = silences or {}
    total = sum(counts.values()) * len(languages) + sum(silences.values())
    progress = tqdm(total=total, desc="composing", unit=" utterances")
    with progress:
        for split in counts:
            rows = []
            for language in languages:
                for index, utterance in enumerate(drawn[language][split]):
                    name = f"{language}-{utterance.kind}-{index:05d}"
                    rng = _generator(seed, language, split, index)
                    row = _write_utterance(output, split, name, language, utterance, clips[language], rng)
                    if translations:
                        others = [other for other in languages if other != language]
                        target = str(_generator(seed, "translation", language, split, index).choice(others))
                        row |= {"translation": utterance.translate(GRAMMARS[target]), "target_language": target}
                    rows.append(row)
                    progress.update()
            for index in range(silences.get(split, 0)):
                samples = render_silence(_generator(seed, "silence", split, index))
                rows.append(_write_recording(output, split, f"silence-{index:05d}", samples))
                progress.update()
            _write_rows(output / f"{split}.jsonl", rows)


def assert_disjoint(splits: Mapping[str, Sequence[Utterance]]) -> None:
    """Raise an error if a text occurs twice, in one split or in two."""
    texts = [utterance.text for utterances in splits.values() for utterance in utterances]
    assert len(texts) == len(set(texts)), "a text occurs twice"


def _generator(seed: int, *path: str | int) -> np.random.Generator:
    """A random generator for one place in the dataset, so that results do not depend on the order of work."""
    return np.random.default_rng([seed, *(zlib.crc32(str(step).encode()) for step in path)])


def _write_utterance(
    output: Path,
    split: str,
    name: str,
    language: str,
    utterance: Utterance,
    clips: Mapping[str, np.ndarray],
    rng: np.random.Generator,
) -> dict:
    """Write the sound of one utterance, and return its row."""
    augmentation = TRAIN_AUGMENTATION if split == "train" else TEST_AUGMENTATION
    samples, spans = render(utterance.units, clips, augmentation, rng)
    words = [
        {"word": unit.text, "start": start, "end": end}
        for unit, (start, end) in zip(utterance.units, spans, strict=True)
    ]
    return _write_recording(output, split, name, samples, utterance.text, language, words)


def _write_recording(
    output: Path,
    split: str,
    name: str,
    samples: np.ndarray,
    text: str = "",
    language: str | None = None,
    words: Sequence[dict] = (),
) -> dict:
    audio = Path("audio") / split / f"{name}.flac"
    (output / audio).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(output / audio, samples, SAMPLE_RATE, subtype="PCM_16")
    return {
        "id": name,
        "audio": audio.as_posix(),
        "text": text,
        "language": language,
        "duration": len(samples) / SAMPLE_RATE,
        "words": list(words),
    }


def _write_rows(path: Path, rows: Iterable[dict]) -> None:
    """Write `rows` atomically as JSON Lines."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def main(arguments: Sequence[str] | None = None) -> None:
    """Download missing recordings, and compose the dataset."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("data/demo"), help="folder of the dataset")
    parser.add_argument("--clips", type=Path, default=Path("data/speech"), help="folder of the recordings")
    parser.add_argument("--train-per-language", type=int, default=600)
    parser.add_argument("--validation-per-language", type=int, default=20)
    parser.add_argument("--test-per-language", type=int, default=40)
    parser.add_argument("--train-silences", type=int, default=100, help="recordings without speech")
    parser.add_argument("--test-silences", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--translations", action="store_true", help="write translations into another language too")
    parser.add_argument("--languages", nargs="+", choices=sorted(GRAMMARS), default=list(GRAMMARS))
    options = parser.parse_args(arguments)
    fetch_speech(options.clips, options.languages)
    counts = {
        "train": options.train_per_language,
        "validation": options.validation_per_language,
        "test": options.test_per_language,
    }
    silences = {"train": options.train_silences, "test": options.test_silences}
    compose_dataset(
        options.output, options.clips, counts, options.seed, options.languages, silences, options.translations
    )


if __name__ == "__main__":
    main()
