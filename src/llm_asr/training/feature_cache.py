"""Saves the outputs of a frozen speech encoder on disk."""

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from safetensors.torch import save_file
from tqdm.auto import tqdm

from ..atomic_writing import atomic_path
from ..modeling.modeling_llm_asr import LlmAsrForConditionalGeneration
from ..processing.processing_llm_asr import LlmAsrProcessor
from .duration_batches import read_durations


# Number of recordings to read and sort by length together. Sorting reduces the padding in batches.
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
    Run the speech encoder over a dataset and save its outputs in float16, in one safetensors file for each recording.

    The name of a file is a digest of the recording, the encoder weights and the feature extractor. A resumed run, a second
    run, or a dataset with the same recordings therefore finds existing files. The processes of a distributed run share the
    recordings. With `max_gigabytes`, the least recently used files are deleted to make room. The main process then works
    alone, because concurrent writers could exceed the limit.

    Args:
        dataset (`Dataset`): Rows with recordings.
        model ([`LlmAsrForConditionalGeneration`]): The model. Its speech encoder runs on its current device.
        processor ([`LlmAsrProcessor`]): The model's processor.
        directory (`str` or `Path`): Folder for the files.
        audio_column (`str`, *optional*, defaults to `"audio"`): Column with recordings.
        batch_size (`int`, *optional*, defaults to 16): Number of recordings to encode together.
        max_gigabytes (`float`, *optional*): Largest size of all files in `directory`, in units of 10^9 bytes.
        in_use (`Collection[str]`, *optional*): Files of other datasets, which must not be deleted.

    Returns:
        `Dataset`: The rows with a further column `audio_hidden_states`, the path of each recording's file.

    Raises:
        `ValueError`: If a recording cannot be used, or the files in use do not fit into `max_gigabytes`. The error names the
            row of an unusable recording. Files that were written before the error remain. Also if the model draws chunks in
            training, because each recording is encoded only once.
    """
    if model.config.encoder_training_chunks_s is not None:
        raise ValueError(
            "`encoder_training_chunks_s` encodes recordings differently in each batch, but a feature cache encodes them only once; "
            "use one or the other."
        )
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    names = dataset["row"][:] if "row" in dataset.column_names else range(len(dataset))
    state = PartialState()
    first, step = (state.process_index, state.num_processes) if max_gigabytes is None else (0, 1)
    files: list[str | None] = [None] * len(dataset)
    if max_gigabytes is None or state.is_main_process:
        rows = range(first, len(dataset), step)
        found = _encode_rows(
            dataset.select(rows),
            [names[row] for row in rows],
            model,
            processor,
            directory,
            audio_column,
            batch_size,
            max_gigabytes,
            in_use,
        )
        for row, file in zip(rows, found, strict=True):
            files[row] = file
    if state.num_processes > 1:
        shares = gather_object([files])
        files = [next(filter(None, row)) for row in zip(*shares, strict=True)]
    return dataset.add_column("audio_hidden_states", files)


def _encode_rows(
    dataset: Dataset,
    names: Sequence,
    model: LlmAsrForConditionalGeneration,
    processor: LlmAsrProcessor,
    directory: Path,
    audio_column: str,
    batch_size: int,
    max_gigabytes: float | None,
    in_use: Collection[str],
) -> list[str]:
    """Encode the recordings without a file, and return the file of each row."""
    space = None
    if max_gigabytes is not None:
        space = _BoundedDirectory(directory, max_gigabytes * 1e9, in_use)
        # Repeated rows share one file.
        seconds = dict(zip(names, read_durations(dataset, audio_column), strict=True))
        num_samples = [int((duration or 0.0) * processor.sampling_rate) for duration in seconds.values()]
        space.check(sum(_num_bytes(samples, model, processor) for samples in num_samples))
    fingerprint = _encoder_fingerprint(model, processor)
    files: list[str] = []
    silent = not PartialState().is_main_process
    progress = tqdm(total=len(dataset), desc="Encoding audio", unit="recording", disable=silent)
    for start in range(0, len(dataset), WINDOW_SIZE):
        rows = dataset.select(range(start, min(start + WINDOW_SIZE, len(dataset))))
        missing = []
        for offset, source in enumerate(rows[audio_column]):
            try:
                waveform = processor.load_recording(source)
            except (TypeError, ValueError) as error:
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
    return files


def _num_bytes(num_samples: int, model: LlmAsrForConditionalGeneration, processor: LlmAsrProcessor) -> int:
    """Upper bound of the size of a recording's file."""
    # Qwen3-ASR's feature extractor pads short recordings.
    num_samples = max(num_samples, getattr(processor.feature_extractor, "min_length", 0))
    num_frames = num_samples // processor.samples_per_frame + 2
    return 2 * num_frames * model.config.audio_config.hidden_size + 128


class _BoundedDirectory:
    """Limits the size of a directory. It deletes the least recently used of the files that are not in use."""

    def __init__(self, directory: Path, max_bytes: float, in_use: Collection[str]):
        self.max_bytes = max_bytes
        self.in_use = {Path(file) for file in in_use}
        files = sorted(directory.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
        self.sizes = {file: file.stat().st_size for file in files}

    def check(self, num_bytes: int) -> None:
        num_bytes += sum(self.sizes.get(file, 0) for file in self.in_use)
        if num_bytes > self.max_bytes:
            raise ValueError(
                f"`max_gigabytes` is {self.max_bytes / 1e9:.3g}, but the encoder outputs of all recordings take "
                f"{num_bytes / 1e9:.3g}; raise `max_gigabytes`, or train without a cache."
            )

    def use(self, file: Path) -> None:
        self.in_use.add(file)
        if file in self.sizes:
            file.touch()

    def take(self, sizes: dict[Path, int]) -> None:
        """Delete files to make room for new files of the given sizes."""
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
        with atomic_path(file) as unfinished:
            save_file({"hidden_states": states[real].to("cpu", torch.float16).contiguous()}, unfinished)


def _encoder_fingerprint(model: LlmAsrForConditionalGeneration, processor: LlmAsrProcessor) -> bytes:
    digest = hashlib.sha256(processor.feature_extractor.to_json_string().encode())
    if model.config.encoder_padding != "longest":
        digest.update(model.config.encoder_padding.encode())
    if model.config.encoder_attention != "full":
        digest.update(repr(model.config.attention_chunks).encode())
    if processor.log_mel_maximum != "recording":
        digest.update(processor.log_mel_maximum.encode())
    for name, tensor in model.model.audio_tower.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()
