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
from ..processing.pipeline_llm_asr import DEFAULT_CHUNK_LENGTH_S, align_pieces
from ..processing.processing_llm_asr import LlmAsrProcessor
from ..processing.segmentation import Segment, read_segments


@torch.no_grad()
def measure_audio(
    transcriber: Pipeline, dataset: Dataset, rows: list[dict], batch_size: int, silent: bool
) -> list[dict]:
    """
    Return `row`, `length` in embeddings, `duration` in seconds and, with experts, `expert_load` for each recording. A
    recording longer than the speech encoder's limit gets the sums over its segments. With CIF, recordings with `words` also get
    `given_words`, the times of the words of the true transcript as [`LlmAsrProcessor.align`] finds them.
    """
    model: Any = transcriber.model
    processor: Any = transcriber.processor
    # A recording without speech has no segments and keeps these values.
    nothing: dict[str, Any] = {"length": 0, "duration": 0.0}
    if model.config.projector_config.uses_experts:
        nothing["expert_load"] = [0.0] * model.config.projector_config.num_experts
    measures = {row["row"]: {"row": row["row"], **nothing} for row in rows}
    # Alignment needs a tokenizer that tells which characters its tokens cover.
    is_aligned = model.config.projector_config.uses_cif and processor.tokenizer.is_fast
    texts = {row["row"]: row["text"] for row in rows if is_aligned and row.get("words")}
    weights: dict[int, list[dict]] = {row: [] for row in texts}
    pieces = iter(tqdm(split_rows(processor, dataset, rows), desc="Projecting", unit="segment", disable=silent))
    while batch := list(itertools.islice(pieces, batch_size)):
        waveforms = [segment.waveform for _, segment in batch]
        outputs = model.get_audio_features(**processor(audio=waveforms).to(model.device))
        lengths = outputs.audio_lengths.tolist()
        for index, ((row, segment), length) in enumerate(zip(batch, lengths, strict=True)):
            measures[row]["length"] += length
            measures[row]["duration"] += len(segment.waveform) / processor.sampling_rate
            if row in texts:
                times = {"has_speech": True, "start": segment.start, "end": segment.end}
                weights[row].append({"text": texts[row], **times, "alphas": outputs.alphas[index : index + 1].float()})
        if outputs.router_logits is None:
            continue
        routing = zip(outputs.router_logits.split(lengths), outputs.selected_experts.split(lengths), strict=True)
        for (row, _), frames in zip(batch, routing, strict=True):
            load = np.array(measures[row]["expert_load"]) + count_expert_load(*frames).cpu().numpy()
            measures[row]["expert_load"] = load.tolist()
    for row, pieces_of_row in weights.items():
        # Without any weight, the times of words are unknown.
        if any(piece["alphas"].any() for piece in pieces_of_row):
            aligned = align_pieces(pieces_of_row, processor, model.config.projector_frame_period)
            measures[row]["given_words"] = aligned["chunks"]
    return list(measures.values())


def split_rows(processor: LlmAsrProcessor, dataset: Dataset, rows: list[dict]) -> Iterator[tuple[int, Segment]]:
    """Split recordings as the pipeline does, and yield the row number of each segment, and the segment."""
    longest = processor.max_audio_samples
    longest_s = DEFAULT_CHUNK_LENGTH_S if longest is None else longest / processor.sampling_rate
    for row in rows:
        stream = stream_audio(dataset[row["row"]]["audio"], processor.sampling_rate)
        for segment in read_segments(stream, processor.sampling_rate, longest_s):
            yield row["row"], segment


__all__ = ["measure_audio"]
