"""Output of a frozen speech encoder, computed once and kept on disk."""

import hashlib
import os
from collections.abc import Collection
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import save_file
from tqdm.auto import tqdm

from ..modeling.modeling_llm_asr import LlmAsrForConditionalGeneration
from ..processing.processing_llm_asr import LlmAsrProcessor
from .duration_batches import read_durations


# Recordings read together and sorted by length, so that batches hold little padding.
WINDOW_SIZE = 256


def cache_audio_hidden_states(
    dataset: Dataset,
    model: LlmAsrForConditionalGeneration,
    processor: LlmAsrProcessor,
    directory: str | Path,
    audio_column: str = "audio",
    batch_size: int = 16,
    max_gigabytes: float | None = None,
    in_use: Collection[str] = (),
) -> Dataset:
    """
    Run the speech encoder over a dataset and keep its output, in float16, one safetensors file a recording.

    Files are named after their contents (recording, encoder weights and feature extractor), so that a second run, another
    dataset with the same recordings, or a run that was interrupted computes nothing twice. In a directory whose size is
    bounded, files that were not used for longest make room for others.

    Args:
        dataset (`Dataset`): Rows with recordings.
        model ([`LlmAsrForConditionalGeneration`]): Whose speech encoder is to be run, on the device it is on.
        processor ([`LlmAsrProcessor`]): Of that model.
        directory (`str` or `Path`): Where to keep the files.
        audio_column (`str`, *optional*, defaults to `"audio"`): Column with recordings.
        batch_size (`int`, *optional*, defaults to 16): Recordings encoded together.
        max_gigabytes (`float`, *optional*): Most that all files in `directory` may take, in units of 10^9 bytes.
        in_use (`Collection[str]`, *optional*): Files of other datasets, which must stay.

    Returns:
        `Dataset`: With a further column `audio_hidden_states`, the path of each recording's file.

    Raises:
        `ValueError`: If a recording cannot be used, which it names by its row, or if what is in use does not fit into
            `max_gigabytes`. What was computed before is kept.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    names = dataset["row"][:] if "row" in dataset.column_names else range(len(dataset))
    space = None
    if max_gigabytes is not None:
        space = _BoundedDirectory(directory, max_gigabytes * 1e9, in_use)
        # Rows that come several times are kept once.
        seconds = dict(zip(names, read_durations(dataset, audio_column), strict=True))
        num_samples = [int((duration or 0.0) * processor.sampling_rate) for duration in seconds.values()]
        space.check(sum(_num_bytes(samples, model, processor) for samples in num_samples))
    fingerprint = _encoder_fingerprint(model, processor)
    files: list[str] = []
    progress = tqdm(total=len(dataset), desc="Encoding audio", unit="recording")
    for start in range(0, len(dataset), WINDOW_SIZE):
        rows = dataset.select(range(start, min(start + WINDOW_SIZE, len(dataset))))
        missing = []
        for offset, source in enumerate(rows[audio_column]):
            try:
                waveform = processor.load_recording(source)
            except ValueError as error:
                raise ValueError(f"Dataset row {names[start + offset]}: {error}") from error
            file = directory / f"{hashlib.sha256(fingerprint + waveform.tobytes()).hexdigest()}.safetensors"
            files.append(str(file))
            if not file.is_file():
                missing.append((waveform, file))
            if space is not None:
                space.use(file)
        progress.update(len(rows) - len(missing))
        missing.sort(key=lambda item: len(item[0]))
        for first in range(0, len(missing), batch_size):
            batch = missing[first : first + batch_size]
            if space is not None:
                space.take({file: _num_bytes(len(waveform), model, processor) for waveform, file in batch})
            _encode(model, processor, batch)
            progress.update(len(batch))
    progress.close()
    return dataset.add_column("audio_hidden_states", files)


def _num_bytes(num_samples: int, model: LlmAsrForConditionalGeneration, processor: LlmAsrProcessor) -> int:
    """Size of a recording's file, rounded up."""
    num_frames = num_samples // processor.samples_per_frame + 2
    return 2 * num_frames * model.config.audio_config.hidden_size + 128


class _BoundedDirectory:
    """Keeps the files of a directory within a number of bytes: those in use, and of the others those used last."""

    def __init__(self, directory: Path, max_bytes: float, in_use: Collection[str]):
        self.max_bytes = max_bytes
        self.in_use = {Path(file) for file in in_use}
        files = sorted(directory.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
        self.sizes = {file: file.stat().st_size for file in files}

    def check(self, num_bytes: int) -> None:
        num_bytes += sum(self.sizes.get(file, 0) for file in self.in_use)
        if num_bytes > self.max_bytes:
            raise ValueError(
                f"`max_gigabytes` is {self.max_bytes / 1e9:.3g}, and what the speech encoder makes of all recordings takes "
                f"{num_bytes / 1e9:.3g}; raise it, or train without a cache."
            )

    def use(self, file: Path) -> None:
        self.in_use.add(file)
        if file in self.sizes:
            file.touch()

    def take(self, sizes: dict[Path, int]) -> None:
        """Make room for files that are about to be written."""
        self.sizes.update(sizes)
        excess = sum(self.sizes.values()) - self.max_bytes
        for file in [file for file in self.sizes if file not in self.in_use]:
            if excess <= 0:
                break
            excess -= self.sizes.pop(file)
            file.unlink(missing_ok=True)
        if excess > 0:
            self.check(0)


@torch.no_grad()
def _encode(model: LlmAsrForConditionalGeneration, processor: LlmAsrProcessor, batch: list[tuple]) -> None:
    inputs = processor(audio=[waveform for waveform, _ in batch]).to(model.device)
    hidden_states, mask = model.model.get_audio_hidden_states(inputs["input_features"], inputs["input_features_mask"])
    for states, real, (_, file) in zip(hidden_states, mask, batch, strict=True):
        # A file appears under its name only when it is whole.
        unfinished = file.with_suffix(f".{os.getpid()}.tmp")
        save_file({"hidden_states": states[real].to("cpu", torch.float16).contiguous()}, unfinished)
        os.replace(unfinished, file)


def _encoder_fingerprint(model: LlmAsrForConditionalGeneration, processor: LlmAsrProcessor) -> bytes:
    digest = hashlib.sha256(processor.feature_extractor.to_json_string().encode())
    if model.config.encoder_padding != "longest":
        digest.update(model.config.encoder_padding.encode())
    for name, tensor in model.model.audio_tower.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.digest()
