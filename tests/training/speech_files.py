"""Writes a tiny speech dataset to disk."""

import json
from pathlib import Path

import numpy as np
import soundfile


TEXTS = ("one two", "three", "uno dos tres", "cuatro cinco")


def write_speech_dataset(folder: Path, size: int = 8) -> Path:
    """Write `size` recordings and a JSON Lines file. Each word is a tone, so that a model can learn them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(size):
        text = TEXTS[index % len(TEXTS)]
        tones = [
            np.sin(2 * np.pi * (200 + 40 * (sum(word.encode()) % 40)) * np.arange(4800) / 16000)
            for word in text.split()
        ]
        soundfile.write(folder / f"{index}.wav", 0.3 * np.concatenate(tones), 16000)
        language = "en" if index % 4 < 2 else "es"
        rows.append({"audio": f"{index}.wav", "text": text, "language": language})
    file = folder / "dataset.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
