"""Transformers as the engine: `generate()` on one device, for where vLLM does not run."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM
from transformers.generation import StoppingCriteria, StoppingCriteriaList

from ..modeling.decoding_guards import AudioLengthCriteria
from ..publishing.front_end import PromptEmbeds
from .batching import DynamicBatcher
from .engine import Decoding, Engine, NewTokens, end_token_ids


@dataclass
class Row:
    """A prompt of a batch, and whether nobody wants its continuation any more."""

    prompt: PromptEmbeds
    decoding: Decoding
    is_cancelled: bool = False
    tokens: NewTokens | None = field(default=None, init=False)


class CancelledRows(StoppingCriteria):
    """Ends rows that nobody waits for."""

    def __init__(self, rows: list[Row]):
        self.rows = rows

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        return torch.tensor([row.is_cancelled for row in self.rows], device=input_ids.device)


class TransformersEngine(Engine):
    """
    Whole batches, one after the other; a batch ends with its longest transcript. Tokens come when all of a segment's are
    there.

    Args:
        folder (`Path`): The exported language model.
        dtype (`str`): Of its weights; `"auto"` for that in which they were saved.
        device (`torch.device`): Where it is to run.
        batch_size (`int`): Prompts that are continued together.
        max_queued (`int`): Prompts that wait at most.
    """

    def __init__(self, folder: Path, dtype: str, device: torch.device, batch_size: int, max_queued: int):
        self.folder = folder
        self.dtype = dtype
        self.device = device
        self._executor = ThreadPoolExecutor(1, "language-model")
        self._batcher = DynamicBatcher(
            self._continue, self._executor, batch_size, max_size=float("inf"), max_wait_s=0.0, max_queued=max_queued
        )

    async def start(self) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=self.dtype).to(self.device).eval()
        if (self.model.generation_config.num_beams or 1) > 1:
            raise ValueError(
                "The checkpoint's `generation_config` asks for beam search, which no engine here has; set `num_beams` to 1."
            )
        self.max_length = self.model.config.max_position_embeddings
        self._end_token_ids = end_token_ids(self.model.generation_config)
        self._batcher.start()

    async def stop(self) -> None:
        await self._batcher.stop()
        self._executor.shutdown(cancel_futures=True)

    async def generate(self, prompt: PromptEmbeds, decoding: Decoding) -> AsyncIterator[NewTokens]:
        row = Row(prompt, decoding)
        try:
            yield await self._batcher.submit(row, len(prompt.inputs_embeds))
        except asyncio.CancelledError:
            row.is_cancelled = True
            raise

    async def check_health(self) -> None:
        return

    @torch.no_grad()
    def _continue(self, rows: list[Row]) -> list[NewTokens]:
        # A batch is sampled in one way.
        for decoding in {row.decoding: None for row in rows}:
            alike = [row for row in rows if row.decoding == decoding]
            for row, tokens in zip(alike, self._generate(alike, decoding), strict=True):
                row.tokens = tokens
        return [row.tokens for row in rows]

    def _generate(self, rows: list[Row], decoding: Decoding) -> list[NewTokens]:
        embeds = [row.prompt.inputs_embeds.to(self.device, self.model.dtype) for row in rows]
        masks = [torch.ones(len(each), dtype=torch.long, device=self.device) for each in embeds]
        limits = torch.tensor([self._limit(row.prompt) for row in rows], device=self.device)
        sampling = (
            {"do_sample": True, "temperature": decoding.temperature}
            if decoding.temperature > 0
            else {"do_sample": False}
        )
        outputs = self.model.generate(
            inputs_embeds=pad_sequence(embeds, batch_first=True, padding_side="left"),
            attention_mask=pad_sequence(masks, batch_first=True, padding_side="left"),
            max_new_tokens=int(limits.max()),
            stopping_criteria=StoppingCriteriaList([AudioLengthCriteria(limits, 0), CancelledRows(rows)]),
            return_dict_in_generate=True,
            output_logits=decoding.output_confidence,
            **sampling,
        )
        lengths = self._lengths(outputs.sequences, limits)
        found = [
            NewTokens(ids[:length].tolist()) for ids, length in zip(outputs.sequences, lengths.tolist(), strict=True)
        ]
        if decoding.output_confidence:
            logprobs = torch.stack(outputs.logits, dim=1).float().log_softmax(-1)
            chosen = logprobs.gather(-1, outputs.sequences[..., None])[..., 0]
            silence = logprobs[:, 0, self._end_token_ids].exp().sum(-1)
            for index, (tokens, length) in enumerate(zip(found, lengths.tolist(), strict=True)):
                tokens.logprobs = chosen[index, :length].tolist()
                tokens.no_speech_prob = float(silence[index])
        return found

    def _limit(self, prompt: PromptEmbeds) -> int:
        room = self.max_length - len(prompt.inputs_embeds)
        return room if prompt.max_new_tokens is None else min(room, prompt.max_new_tokens)

    def _lengths(self, sequences: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
        """Tokens of each row up to the end of the sequence, which is one of them, or its limit: shape `(batch_size,)`."""
        is_end = torch.isin(sequences, torch.tensor(self._end_token_ids, device=sequences.device)).long()
        return (is_end.cumsum(-1) - is_end == 0).sum(-1).minimum(limits)
