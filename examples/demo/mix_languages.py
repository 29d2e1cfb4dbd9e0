"""
Joins utterances of several languages to utterances that switch between languages.

    python examples/demo/mix_languages.py --dataset data/demo/train.jsonl --output data/demo-mixed --name train --count 2000

It reads any JSON Lines file with `audio`, `text` and `language`, such as those of the demo and of `open_speech.py`. Run it once for
each split, so that no recording is in two splits.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np
import soundfile
from speech import SAMPLE_RATE
from tqdm import tqdm

from llm_asr.atomic_writing import write_text
from llm_asr.processing.audio import load_audio
from llm_asr.processing.writing import joint, split_units


# Pauses between the parts, in seconds.
SHORTEST_PAUSE, LONGEST_PAUSE = 0.05, 0.4


def mix(parts: list[tuple[dict, np.ndarray]], pauses: list[float]) -> tuple[dict, np.ndarray]:
    """
    Join rows, which begin after one another with a pause between them.

    Args:
        parts: Rows of a dataset with their recordings at `SAMPLE_RATE`.
        pauses: Seconds of silence between the parts, one fewer than parts.

    Returns:
        The row and its recording. `language` has the codes, with commas between them, the one with most words first.
        `word_languages` has the language of each word, and `words` their times, if all parts have them.
    """
    text, sounds, words, times = "", [], [], []
    start = 0.0
    for (row, sound), pause in zip(parts, [*pauses, 0.0], strict=True):
        text += joint(text, row["text"]) + row["text"]
        words += [{"word": word, "language": row["language"]} for word in split_units(row["text"])]
        times += [
            {**word, "start": round(word["start"] + start, 3), "end": round(word["end"] + start, 3)}
            for word in row.get("words") or []
        ]
        sounds += [sound, np.zeros(round(pause * SAMPLE_RATE), np.float32)]
        start = sum(map(len, sounds)) / SAMPLE_RATE
    counts = Counter(word["language"] for word in words)
    mixed = {"text": text, "language": ",".join(language for language, _ in counts.most_common()), "duration": start}
    mixed["word_languages"] = words
    if all(row.get("words") for row, _ in parts):
        mixed["words"] = times
    return mixed, np.concatenate(sounds)


def draw_parts(rows: dict[str, list[dict]], most_parts: int, rng: np.random.Generator) -> list[dict]:
    """Draw two rows or more, of languages that differ from one to the next."""
    chosen: list[dict] = []
    for _ in range(int(rng.integers(2, most_parts + 1))):
        languages = [language for language in sorted(rows) if not chosen or language != chosen[-1]["language"]]
        members = rows[languages[int(rng.integers(len(languages)))]]
        chosen.append(members[int(rng.integers(len(members)))])
    return chosen


def mix_dataset(
    dataset: Path, output: Path, name: str, count: int, most_parts: int = 3, max_seconds: float = 28.0, seed: int = 0
) -> None:
    """
    Write `count` utterances to `output/NAME.jsonl` and `output/audio/NAME/`. The same arguments give the same bytes.

    Args:
        dataset: JSON Lines file.
        output: Folder of the new dataset.
        name: Name of the split.
        count: Number of utterances.
        most_parts: Largest number of parts of an utterance.
        max_seconds: Longest utterance. Longer ones are drawn again.
        seed: Seed of all draws.

    Raises:
        `ValueError`: If the dataset has fewer than two languages, or its recordings are too long to be joined.
    """
    rows: dict[str, list[dict]] = {}
    for line in dataset.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["text"] and row["language"]:
            rows.setdefault(row["language"], []).append(row)
    if len(rows) < 2:
        raise ValueError(f"{str(dataset)!r} has {len(rows)} language(s); switching needs two.")
    (output / "audio" / name).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    lines = []
    for index in tqdm(range(count), desc=f"Mixing {name}"):
        for _ in range(100):
            chosen = draw_parts(rows, most_parts, rng)
            pauses = rng.uniform(SHORTEST_PAUSE, LONGEST_PAUSE, len(chosen) - 1).tolist()
            parts = [(row, load_audio(str(dataset.parent / row["audio"]), SAMPLE_RATE)) for row in chosen]
            mixed, sound = mix(parts, pauses)
            if mixed["duration"] <= max_seconds:
                break
        else:
            raise ValueError(f"Two recordings of {str(dataset)!r} together last more than {max_seconds} s.")
        file = f"audio/{name}/{index:06d}.flac"
        soundfile.write(output / file, sound, SAMPLE_RATE, subtype="PCM_16")
        lines.append(json.dumps({"id": f"{name}-{index}", "audio": file, **mixed}, ensure_ascii=False))
    write_text(output / f"{name}.jsonl", "\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().partition("\n")[0])
    parser.add_argument("--dataset", type=Path, required=True, help="JSON Lines file with audio, text and language.")
    parser.add_argument("--output", type=Path, required=True, help="Folder of the new dataset.")
    parser.add_argument("--name", default="train", help="Name of the split; by default train.")
    parser.add_argument("--count", type=int, required=True, help="Number of utterances.")
    parser.add_argument("--most-parts", type=int, default=3, help="Largest number of parts; by default 3.")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    mix_dataset(args.dataset, args.output, args.name, args.count, args.most_parts, seed=args.seed)


if __name__ == "__main__":
    main()
