"""Output of a frozen speech encoder, computed once and kept on disk."""

import hashlib
import os
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import save_file
from tqdm.auto import tqdm

from ..modeling.modeling_llm_asr import LlmAsrForConditionalGeneration
from ..processing.processing_llm_asr import LlmAsrProcessor


# Recordings read together and sorted by length, so that batches hold little padding.
WINDOW_SIZE = 256


def cache_audio_hidden_states(
    dataset: Dataset,
    model: LlmAsrForConditionalGeneration,
    processor: LlmAsrProcessor,
    directory: str | Path,
    audio_column: str = "audio",
    batch_size: int = 16,
) -> Dataset:
    """
    Run the speech encoder over a dataset and keep its output, in float16, one safetensors file a recording.

    Files are named after their contents (recording, encoder weights and feature extractor), so that a second run, another
    dataset with the same recordings, or a run that was interrupted computes nothing twice.

    Args:
        dataset (`Dataset`): Rows with recordings.
        model ([`LlmAsrForConditionalGeneration`]): Whose speech encoder is to be run, on the device it is on.
        processor ([`LlmAsrProcessor`]): Of that model.
        directory (`str` or `Path`): Where to keep the files.
        audio_column (`str`, *optional*, defaults to `"audio"`): Column with recordings.
        batch_size (`int`, *optional*, defaults to 16): Recordings encoded together.

    Returns:
        `Dataset`: With a further column `audio_hidden_states`, the path of each recording's file.

    Raises:
        `ValueError`: If a recording cannot be used; it names the row. What was computed before is kept.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
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
                raise ValueError(f"Dataset row {start + offset}: {error}") from error
            file = directory / f"{hashlib.sha256(fingerprint + waveform.tobytes()).hexdigest()}.safetensors"
            files.append(str(file))
            if not file.is_file():
                missing.append((waveform, file))
        progress.update(len(rows) - len(missing))
        missing.sort(key=lambda item: len(item[0]))
        for first in range(0, len(missing), batch_size):
            batch = missing[first : first + batch_size]
            _encode(model, processor, batch)
            progress.update(len(batch))
    progress.close()
    return dataset.add_column("audio_hidden_states", files)


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
