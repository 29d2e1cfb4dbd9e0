"""An engine with Transformers' `generate()` on one device, for machines that cannot run vLLM."""

import asyncio
import inspect
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM
from transformers.generation import StoppingCriteria, StoppingCriteriaList

from ..modeling.decoding_guards import AudioLengthCriteria
from ..modeling.draft_decoding import decode_with_drafts, find_unsupported, has_attention_alone
from ..modeling.token_logprobs import TokenLogprobs
from ..processing.cpu_precision import loaded_dtype, set_dtype
from ..publishing.front_end import PromptEmbeds
from .batching import DynamicBatcher
from .engine import Decoding, Engine, EngineDeadError, NewTokens, end_token_ids


@dataclass
class Row:
    """A prompt of a batch, and whether its request was cancelled."""

    prompt: PromptEmbeds
    decoding: Decoding
    is_cancelled: bool = False
    tokens: NewTokens = field(init=False, repr=False)


class CancelledRows(StoppingCriteria):
    """Ends the rows of cancelled requests."""

    def __init__(self, rows: list[Row]):
        self.rows = rows

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs) -> torch.Tensor:
        return torch.tensor([row.is_cancelled for row in self.rows], device=input_ids.device)


class TransformersEngine(Engine):
    """
    Generates one batch after the other. A batch ends when its longest transcript ends, and only then are its tokens
    returned.

    Args:
        folder (`Path`): Folder of the exported language model.
        dtype (`str`): Dtype of the weights. `"auto"` means the dtype in which they were saved, or float32 if that dtype is
            slow on the CPU. `"int8"` is for the CPU; see [`quantize_int8`].
        device (`torch.device`): Device of the model.
        batch_size (`int`): Largest number of prompts in a batch.
        max_queued (`int`): Largest number of prompts in the queue.
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
        dtype = loaded_dtype(self.dtype)
        # mypy does not bind `to` of a model, because Transformers decorates it.
        self.model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=dtype).to(self.device).eval()  # type: ignore[arg-type]
        # `generate` checks the same, but only when a request has come.
        if "inputs_embeds" not in inspect.signature(self.model.prepare_inputs_for_generation).parameters:
            raise ValueError(
                f"The language model is a {type(self.model).__name__}, whose `generate` does not take `inputs_embeds` in "
                "Transformers; serve it with `--engine vllm`, or transcribe with `llm-asr transcribe`."
            )
        set_dtype(self.model, self.dtype)
        if (self.model.generation_config.num_beams or 1) > 1:
            raise ValueError(
                "The checkpoint's `generation_config` asks for beam search, which the server does not support; set "
                "`num_beams` to 1."
            )
        self.max_length = self.model.config.max_position_embeddings
        self._end_token_ids = end_token_ids(self.model.generation_config)
        settings = self.model.generation_config
        self._uses_drafts = (
            has_attention_alone(self.model)
            and find_unsupported(self.model, lambda name: getattr(settings, name, None)) is None
        )
        self._batcher.start()

    async def stop(self) -> None:
        await self._batcher.stop()
        self._executor.shutdown(cancel_futures=True)

    async def generate(self, prompt: PromptEmbeds, decoding: Decoding) -> AsyncGenerator[NewTokens, None]:
        row = Row(prompt, decoding)
        try:
            yield await self._batcher.submit(row, len(prompt.inputs_embeds))
        except asyncio.CancelledError:
            row.is_cancelled = True
            raise

    async def check_health(self) -> None:
        if not self._batcher.is_running:
            raise EngineDeadError("The language model has stopped; restart the server.")

    @torch.no_grad()
    def _continue(self, rows: list[Row]) -> list[NewTokens]:
        # `generate()` samples all rows of a batch alike, so rows are grouped by their decoding settings.
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
        criteria = StoppingCriteriaList([AudioLengthCriteria(limits, 0), CancelledRows(rows)])
        confidence, hook = TokenLogprobs(self._end_token_ids), None
        drafts = self._drafts(rows) if decoding.temperature == 0 and self._uses_drafts else None
        custom = None
        if drafts is not None:
            custom = partial(
                decode_with_drafts, drafts, True, None, confidence if decoding.output_confidence else None
            )
        elif decoding.output_confidence:
            criteria.append(confidence)
            hook = self.model.register_forward_hook(confidence.note_logits)
        try:
            sequences = self.model.generate(
                inputs_embeds=pad_sequence(embeds, batch_first=True, padding_side="left"),
                attention_mask=pad_sequence(masks, batch_first=True, padding_side="left"),
                max_new_tokens=int(limits.max()),
                stopping_criteria=criteria,
                custom_generate=custom,
                **sampling,
            )
        finally:
            if hook is not None:
                hook.remove()
        lengths = self._lengths(sequences, limits)
        found = [NewTokens(ids[:length].tolist()) for ids, length in zip(sequences, lengths.tolist(), strict=True)]
        if decoding.output_confidence:
            chosen = confidence.logprobs()
            for index, (tokens, length) in enumerate(zip(found, lengths.tolist(), strict=True)):
                tokens.logprobs = chosen[index, :length].tolist()
                tokens.no_speech_prob = float(confidence.no_speech_probs[index])
        return found

    def _drafts(self, rows: list[Row]) -> list[list[int]] | None:
        """The draft of each row, `None` if no row has one."""
        states = [row.prompt.draft_states for row in rows]
        if not any(state is not None and len(state) for state in states):
            return None
        # The language model's own scales and caps do not change which logit is the largest.
        head = self.model.get_output_embeddings()
        tokens = [
            [] if state is None else head(state.to(self.device, self.model.dtype)).argmax(-1).tolist()
            for state in states
        ]
        return [row and [*row, self._end_token_ids[0]] for row in tokens]

    def _limit(self, prompt: PromptEmbeds) -> int:
        room = self.max_length - len(prompt.inputs_embeds)
        return room if prompt.max_new_tokens is None else min(room, prompt.max_new_tokens)

    def _lengths(self, sequences: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
        """Length of each row up to its end token, which counts, or up to its limit: shape `(batch_size,)`."""
        is_end = torch.isin(sequences, torch.tensor(self._end_token_ids, device=sequences.device)).long()
        return (is_end.cumsum(-1) - is_end == 0).sum(-1).minimum(limits)
