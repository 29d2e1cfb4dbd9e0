"""Runs the front end: turns segments of speech into prompt embeddings in dynamic batches."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from transformers.feature_extraction_utils import BatchFeature

from ..processing.cpu_precision import loaded_dtype, set_dtype
from ..processing.processing_llm_asr import LlmAsrProcessor
from ..processing.segmentation import Segment
from ..publishing.front_end import LlmAsrFrontEnd, PromptEmbeds
from .batching import DynamicBatcher
from .settings import ServerSettings


class FrontEndRunner:
    """
    Extracts the features of each segment in a thread of its own. Speech encoder and projector run in batches on one
    device.

    Args:
        folder (`Path`): Folder of the exported front end.
        dtype (`str`): Dtype of the weights. `"auto"` means the dtype in which they were saved, or float32 if that dtype is
            slow on the CPU. `"int8"` is for the CPU; see [`quantize_int8`].
        device (`torch.device`): Device of the model.
        settings ([`ServerSettings`]): Sizes of batches.
        on_batch (`Callable[[int], None]`): Called with the number of segments of each batch.
    """

    def __init__(
        self,
        folder: Path,
        dtype: str,
        device: torch.device,
        settings: ServerSettings,
        on_batch: Callable[[int], None],
    ):
        self.processor = LlmAsrProcessor.from_pretrained(folder)
        self.model = LlmAsrFrontEnd.from_pretrained(folder, dtype=loaded_dtype(dtype)).to(device).eval()
        self.processor.check_model(self.model.config)
        set_dtype(self.model, dtype)
        self._extractors = ThreadPoolExecutor(thread_name_prefix="features")
        self._executor = ThreadPoolExecutor(1, "front-end")
        self.batcher: DynamicBatcher[BatchFeature, PromptEmbeds] = DynamicBatcher(
            self._encode,
            self._executor,
            max_items=settings.batch_size,
            max_size=settings.batch_seconds,
            max_wait_s=settings.batch_wait_ms / 1000,
            max_queued=settings.max_requests,
            on_batch=on_batch,
        )

    def start(self) -> None:
        self.batcher.start()

    async def stop(self) -> None:
        await self.batcher.stop()
        for executor in (self._extractors, self._executor):
            executor.shutdown(cancel_futures=True)

    async def encode(
        self,
        segment: Segment,
        language: str | None,
        prompt: str | None,
        keywords: list[str] | None = None,
        target_language: str | None = None,
    ) -> PromptEmbeds:
        """
        The prompt embeddings that the language model continues.

        Args:
            segment ([`Segment`]): Must not be longer than the speech encoder's limit.
            language (`str`, *optional*): Code or English name of the language. By default the model identifies it.
            prompt (`str`, *optional*): Context for the language model.
            keywords (`list[str]`, *optional*): Words that may be spoken.
            target_language (`str`, *optional*): Language to translate into. `None` means transcription.
        """
        loop = asyncio.get_running_loop()
        inputs = await loop.run_in_executor(
            self._extractors,
            lambda: self.processor.apply_transcription_request(
                segment.waveform,
                language=language,
                prompt=prompt,
                identify_language=language is None and target_language is None,
                keywords=keywords,
                task="transcribe" if target_language is None else "translate",
                target_language=target_language,
            ),
        )
        embeds = await self.batcher.submit(inputs, segment.end - segment.start)
        # Drafts are of transcripts.
        return embeds if target_language is None else replace(embeds, draft_states=None)

    def _encode(self, requests: list[BatchFeature]) -> list[PromptEmbeds]:
        batch = {name: pad_rows([request[name][0] for request in requests]) for name in requests[0]}
        return self.model(**{name: rows.to(self.model.device) for name, rows in batch.items()})


def pad_rows(rows: list[torch.Tensor]) -> torch.Tensor:
    """Stack tensors and pad them with zeros at the end of every axis. The padding of a mask is zero too, as it must be."""
    sizes = [max(lengths) for lengths in zip(*(row.shape for row in rows), strict=True)]
    padded = []
    for row in rows:
        missing = [size - length for size, length in zip(sizes, row.shape, strict=True)]
        padded.append(nn.functional.pad(row, [amount for axis in reversed(missing) for amount in (0, axis)]))
    return torch.stack(padded)
