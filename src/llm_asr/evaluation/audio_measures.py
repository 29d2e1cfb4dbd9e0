"""Measures the projector on the recordings of a dataset: numbers of embeddings, durations and expert load."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import Pipeline

from ..modeling.expert_balance import count_expert_load
from ..processing.audio import stream_audio
from ..processing.pipeline_llm_asr import DEFAULT_CHUNK_LENGTH_S
from ..processing.processing_llm_asr import LlmAsrProcessor
from ..processing.segmentation import read_segments


@torch.no_grad()
def measure_audio(
    transcriber: Pipeline, dataset: Dataset, rows: list[dict], batch_size: int, silent: bool
) -> list[dict]:
    """
    Return `row`, `length` in embeddings, `duration` in seconds and, with experts, `expert_load` for each recording. A
    recording longer than the speech encoder's limit gets the sums over its segments.
    """
    model: Any = transcriber.model
    processor: Any = transcriber.processor
    # A recording without speech has no segments and keeps these values.
    nothing: dict[str, Any] = {"length": 0, "duration": 0.0}
    if model.config.projector_config.uses_experts:
        nothing["expert_load"] = [0.0] * model.config.projector_config.num_experts
    measures = {row["row"]: {"row": row["row"], **nothing} for row in rows}
    pieces = iter(tqdm(split_rows(processor, dataset, rows), desc="Projecting", unit="segment", disable=silent))
    while batch := list(itertools.islice(pieces, batch_size)):
        waveforms = [waveform for _, waveform in batch]
        outputs = model.get_audio_features(**processor(audio=waveforms).to(model.device))
        lengths = outputs.audio_lengths.tolist()
        for (row, waveform), length in zip(batch, lengths, strict=True):
            measures[row]["length"] += length
            measures[row]["duration"] += len(waveform) / processor.sampling_rate
        if outputs.router_logits is None:
            continue
        routing = zip(outputs.router_logits.split(lengths), outputs.selected_experts.split(lengths), strict=True)
        for (row, _), frames in zip(batch, routing, strict=True):
            load = np.array(measures[row]["expert_load"]) + count_expert_load(*frames).cpu().numpy()
            measures[row]["expert_load"] = load.tolist()
    return list(measures.values())


def split_rows(processor: LlmAsrProcessor, dataset: Dataset, rows: list[dict]) -> Iterator[tuple[int, np.ndarray]]:
    """Split recordings as the pipeline does, and yield the row number and the waveform of each segment."""
    longest = processor.max_audio_samples
    longest_s = DEFAULT_CHUNK_LENGTH_S if longest is None else longest / processor.sampling_rate
    for row in rows:
        stream = stream_audio(dataset[row["row"]]["audio"], processor.sampling_rate)
        for segment in read_segments(stream, processor.sampling_rate, longest_s):
            yield row["row"], segment.waveform


__all__ = ["measure_audio"]
