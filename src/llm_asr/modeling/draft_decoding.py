"""Self-speculative decoding: the language model verifies drafts of a batch and generates the tokens that they lack."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.generation import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_utils import PreTrainedModel

from .token_logprobs import TokenLogprobs
from .transformers_versions import CACHE_NAME


# Logits of one pass: half a gigabyte in float32. Where drafts are longer, a pass verifies only their beginning.
MAX_LOGITS = 2**27

# After as many passes in a row that accept nothing of a draft, one token of it is verified in each pass. A draft that says
# something else, such as that of a translation, would otherwise make each pass as long as itself.
MAX_MISSES = 4

# Options of `generate` that decoding with drafts does not follow, with the values that leave them off.
UNSUPPORTED: dict[str, tuple] = {
    "num_beams": (1, None),
    "num_return_sequences": (1, None),
    "synced_gpus": (False, None),
    "output_attentions": (False, None),
    "output_hidden_states": (False, None),
    "cache_implementation": ("dynamic", None),
    "past_key_values": (None,),
    "cache": (None,),
    "guidance_scale": (None, 1),
    "penalty_alpha": (None, 0),
    "dola_layers": (None,),
    "assistant_model": (None,),
    "assistant_early_exit": (None,),
    "prompt_lookup_num_tokens": (None,),
    "constraints": (None,),
    "force_words_ids": (None,),
    "custom_generate": (None,),
}

# Options with which drafts are used only on request: the caller sees or changes the choice of single tokens, and with
# sampling another order of random numbers gives other transcripts.
ON_REQUEST = ("do_sample", "logits_processor", "stopping_criteria", "streamer", "prefix_allowed_tokens_fn")


class DraftAligner:
    """
    Finds the part of a draft that is still to come.

    Where the language model has disagreed, the draft is taken up again at the place with the smallest edit distance to the
    accepted tokens.

    Args:
        draft (`Sequence[int]`): The draft, with an end-of-sequence token.
    """

    # The draft has no language name before the transcript, so the tokens of the name must not count as edits.
    LEADING_INSERTION_COST = 0.5

    def __init__(self, draft: Sequence[int]):
        self.draft = list(draft)
        # costs[i]: edits between the accepted tokens and the first i of the draft; skipped draft tokens are edits.
        self.costs = [float(skipped) for skipped in range(len(self.draft) + 1)]

    def rest(self) -> list[int]:
        """Return the tokens of the draft that follow the accepted tokens."""
        # Of two equally close positions take the later one, because a replaced token is likelier than an inserted one.
        place = min(range(len(self.costs)), key=lambda index: (self.costs[index], -index))
        return self.draft[place:]

    def accept(self, token: int) -> None:
        """Add an accepted token: one more row of the edit distance."""
        costs = [self.costs[0] + self.LEADING_INSERTION_COST]
        for index, drafted in enumerate(self.draft):
            replaced = self.costs[index] + (drafted != token)
            costs.append(min(replaced, self.costs[index + 1] + 1.0, costs[index] + 1.0))
        self.costs = costs


class DraftedRow:
    """
    A row of the batch.

    Args:
        draft (`Sequence[int]`): Its draft, with an end-of-sequence token.

    Attributes:
        tokens (`list[int]`): The new tokens so far.
        drafted (`list[int]`): What the current pass verifies.
        num_read (`int`): New tokens that the current pass has started from.
        is_matching (`bool`): Whether the current pass has scores for the next token.
        is_done (`bool`): Whether the row has ended.
    """

    def __init__(self, draft: Sequence[int]):
        self.aligner = DraftAligner(draft)
        self.tokens: list[int] = []
        self.drafted: list[int] = []
        self.num_read = self.num_misses = 0
        self.is_matching = self.is_done = False

    def start_pass(self, longest: int) -> None:
        """Take up to `longest` tokens of the draft to be verified."""
        self.num_read, self.is_matching = len(self.tokens), not self.is_done
        self.drafted = self.aligner.rest()[: min(longest, 1) if self.num_misses >= MAX_MISSES else longest]

    def end_pass(self) -> None:
        """Count passes without an accepted token of the draft."""
        if self.drafted:
            self.num_misses = 0 if self.num_accepted > 1 else self.num_misses + 1

    @property
    def num_accepted(self) -> int:
        """New tokens of the current pass: the last one is the language model's own, or ends the row."""
        return len(self.tokens) - self.num_read

    def accept(self, token: int, is_end: bool) -> None:
        """Add a token that the language model has chosen."""
        index = self.num_accepted
        self.tokens.append(token)
        self.aligner.accept(token)
        self.is_done = is_end
        self.is_matching = not is_end and index < len(self.drafted) and token == self.drafted[index]


@torch.no_grad()
def decode_with_drafts(
    drafts: Sequence[Sequence[int]],
    keeps_cache: bool,
    streamer: BaseStreamer | None,
    token_logprobs: TokenLogprobs | None,
    model,
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **model_kwargs,
) -> GenerateDecoderOnlyOutput | torch.Tensor:
    """
    Decode a batch with drafts; with the first four arguments bound, a `custom_generate` for [`~generation.GenerationMixin.generate`].

    Each pass of the language model scores the rest of every draft. Tokens are chosen from these scores one by one, as plain
    decoding chooses them, up to the first that differs from the draft (arXiv 2302.01318 with a draft that has no
    probabilities; arXiv 2603.11243). Every row is accepted to its own length. Rows that have ended stay in the batch, as in greedy
    decoding, because adapters may be chosen by row.

    Args:
        drafts (`Sequence[Sequence[int]]`): The draft of each row, with an end-of-sequence token. A row with an empty draft gets
            one token from each pass.
        keeps_cache (`bool`): Whether keys and values are kept between passes. If not, or with `use_cache=False`, each pass reads
            the prompt again.
        streamer ([`~generation.BaseStreamer`], *optional*): Receives the prompt, and the tokens of each pass, of a single row.
        token_logprobs ([`TokenLogprobs`], *optional*): Records the probabilities of the new tokens.
        model (`PreTrainedModel`): A causal language model that takes `inputs_embeds` and `logits_to_keep`.
        input_ids (`torch.LongTensor` of shape `(batch_size, length)`): The prompts, or nothing if they are only known embedded.
        model_kwargs: Among them `prompt_embeds` or `inputs_embeds` of shape `(batch_size, prompt_length, hidden_size)`, the
            embedded prompts with their audio, padded on the left, and possibly `attention_mask` of shape `(batch_size,
            prompt_length)`.

    Returns:
        [`~generation.GenerateDecoderOnlyOutput`] or `torch.LongTensor`: As of greedy decoding, with padding after the end of a
        row. Scores and logits are zero there. The cache is left out.
    """
    prompt_embeds = model_kwargs["prompt_embeds" if "prompt_embeds" in model_kwargs else "inputs_embeds"]
    attention_mask = model_kwargs.get("attention_mask")
    if attention_mask is None:
        attention_mask = torch.ones(prompt_embeds.shape[:2], dtype=torch.long, device=prompt_embeds.device)
    rows = [DraftedRow(draft) for draft in drafts]
    keeps_cache = keeps_cache and model_kwargs.get("use_cache") is not False
    reader = BatchReader(model, prompt_embeds, attention_mask, keeps_cache, _pad_token_id(generation_config))
    writer = BatchWriter(rows, input_ids, logits_processor, stopping_criteria, generation_config, token_logprobs)
    vocab_size = model.config.get_text_config().vocab_size
    if streamer is not None:
        streamer.put(input_ids.cpu())
    longest = max(MAX_LOGITS // (vocab_size * len(rows)) - 1, 1)
    while not all(row.is_done for row in rows):
        for row in rows:
            room = generation_config.max_length - input_ids.shape[1] - len(row.tokens) - 1
            row.start_pass(0 if row.is_done else max(min(longest, room), 0))
        writer.write(reader.read(rows))
        for row in rows:
            row.end_pass()
        if streamer is not None:
            streamer.put(torch.tensor(rows[0].tokens[rows[0].num_read :]))
        reader.keep(rows)
    if streamer is not None:
        streamer.end()
    return writer.outputs()


class BatchReader:
    """
    Has the language model read drafts, and keeps what it has read of accepted tokens.

    Rows are padded on the left up to their last accepted token, and their drafts on the right. After a pass the keys and
    values of each row move to the right by as much as it was accepted less than others, so that padding is on the left again:
    sliding windows count places of the cache, and rejected tokens must not fill them.

    Args:
        model, prompt_embeds, attention_mask, keeps_cache: See [`decode_with_drafts`].
        pad_token_id (`int`): A token for places that nobody reads.
    """

    def __init__(
        self,
        model: Any,
        prompt_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        keeps_cache: bool,
        pad_token_id: int,
    ):
        self.model = model
        self.prompt_embeds = prompt_embeds
        self.pad_token_id = pad_token_id
        # Caches of sliding windows have dropped the keys that rows would need after a rejection, so all keys are kept.
        self.cache = DynamicCache() if keeps_cache else None
        # Of the prompt, and then of the cache: 1 for real tokens.
        self.seen = self.mask = attention_mask
        self.num_cached = 0

    def read(self, rows: list[DraftedRow]) -> torch.Tensor:
        """
        Run a pass over the drafts of rows.

        Returns:
            `torch.Tensor` of shape `(len(rows), num_scores, vocab_size)`: Logits; those of index `i` follow `i` tokens of the
            draft.
        """
        device = self.prompt_embeds.device
        # With a cache, the last token alone is unread of those that are accepted.
        accepted = [row.tokens[-1:] if self.num_cached else row.tokens for row in rows]
        unread = [torch.tensor([*tokens, *row.drafted]) for tokens, row in zip(accepted, rows, strict=True)]
        lengths = torch.tensor([len(tokens) for tokens in unread], device=device)
        ids = nn.utils.rnn.pad_sequence(unread, batch_first=True, padding_value=self.pad_token_id).long().to(device)
        embeds = self.model.get_input_embeddings()(ids).to(device)
        if not self.num_cached:
            embeds = torch.cat([self.prompt_embeds, embeds.to(self.prompt_embeds.dtype)], dim=1)
        is_unread = torch.arange(ids.shape[1], device=device) < lengths[:, None]
        self.mask = torch.cat([self.seen, is_unread.to(self.seen.dtype)], dim=1)
        # The last token before the draft, from the end.
        before = [ids.shape[1] - len(tokens) + 1 for tokens in accepted]
        logits = self.model(
            inputs_embeds=embeds,
            attention_mask=self.mask,
            position_ids=(self.mask.cumsum(-1) - 1).clamp(min=0)[:, -embeds.shape[1] :],
            use_cache=self.cache is not None,
            logits_to_keep=max(before),
            return_dict=True,
            **{CACHE_NAME: self.cache},
        ).logits
        if self.cache is not None:
            # All rows start at the same place.
            return logits
        starts = torch.tensor([max(before) - place for place in before], device=logits.device)
        num_scores = 1 + max(len(row.drafted) for row in rows)
        index = starts[:, None] + torch.arange(num_scores, device=logits.device)
        return logits.take_along_dim(index.clamp(max=logits.shape[1] - 1)[:, :, None], dim=1)

    def keep(self, rows: list[DraftedRow]) -> None:
        """Forget rejected tokens of the rows of a pass."""
        if self.cache is None:
            return
        # The last accepted token is not read yet.
        ends = [self.seen.shape[1] + bool(self.num_cached) + row.num_accepted - 1 for row in rows]
        shifts = torch.tensor([[max(ends) - end] for end in ends], device=self.mask.device)
        places = torch.arange(max(ends), device=self.mask.device)
        sources = (places - shifts).clamp(min=0)
        self.seen = self.mask.gather(1, sources) * (places >= shifts)
        for layer in self.cache.layers:
            # Layers that share the keys of others have none.
            if isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None:
                index = sources[:, None, :, None].to(layer.keys.device)
                layer.keys = layer.keys.take_along_dim(index, dim=2)
                layer.values = layer.values.take_along_dim(index, dim=2)
        self.num_cached = self.seen.shape[1]


class BatchWriter:
    """
    Chooses tokens from logits, as greedy decoding and sampling of Transformers do: logits processors and stopping criteria see
    the whole batch at one length after the other.

    Args:
        rows (`list[DraftedRow]`): All rows.
        input_ids, logits_processor, stopping_criteria, generation_config, token_logprobs: See [`decode_with_drafts`].
    """

    def __init__(
        self,
        rows: list[DraftedRow],
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        token_logprobs: TokenLogprobs | None,
    ):
        self.rows = rows
        self.token_logprobs = token_logprobs
        self.num_given = input_ids.shape[1]
        self.logits_processor = logits_processor
        self.stopping_criteria = stopping_criteria
        self.config = generation_config
        room = max(generation_config.max_length - self.num_given, 0)
        self.ids = nn.functional.pad(input_ids, (0, room), value=_pad_token_id(generation_config))
        self.scores: list[torch.Tensor] = []
        self.logits: list[torch.Tensor] = []

    def write(self, logits: torch.Tensor) -> None:
        """
        Add the tokens that a pass accepts to the rows.

        Args:
            logits (`torch.Tensor` of shape `(len(rows), num_scores, vocab_size)`): See [`BatchReader.read`].
        """
        first = min(row.num_read for row in self.rows if not row.is_done)
        for step in range(first, self.ids.shape[1] - self.num_given):
            # Other rows are at other lengths, or wait for the next pass.
            indices = [index for index, row in enumerate(self.rows) if row.is_matching and len(row.tokens) == step]
            if not indices:
                if not any(row.is_matching for row in self.rows):
                    break
                continue
            chosen = torch.tensor(indices, device=self.ids.device)
            offsets = torch.tensor([step - self.rows[index].num_read for index in indices], device=logits.device)
            found = logits[chosen.to(logits.device), offsets].to(dtype=torch.float32, device=self.ids.device)
            step_logits = found
            if len(indices) < len(self.rows):
                step_logits = found.new_zeros(len(self.rows), found.shape[-1]).index_copy(0, chosen, found)
            written = self.num_given + step
            # Slices are of `torch.Tensor`. Transformers asks for a `torch.LongTensor`.
            scores = self.logits_processor(self.ids[:, :written], step_logits)  # type: ignore[arg-type]
            if self.config.do_sample:
                tokens = torch.multinomial(scores[chosen].softmax(-1), num_samples=1)[:, 0]
            else:
                tokens = scores[chosen].argmax(-1)
            self.ids[chosen, written] = tokens
            if self.token_logprobs is not None:
                self.token_logprobs.add(step, chosen, found, tokens, len(self.rows))
            is_end = self.stopping_criteria(self.ids[:, : written + 1], scores)[chosen]
            for index, token, ends in zip(indices, tokens.tolist(), is_end.tolist(), strict=True):
                self.rows[index].accept(token, ends)
            if self.config.return_dict_in_generate:
                for name, values in (("scores", scores), ("logits", step_logits)):
                    if getattr(self.config, f"output_{name}"):
                        self._note(getattr(self, name), step, chosen, values)

    def _note(self, steps: list[torch.Tensor], step: int, chosen: torch.Tensor, values: torch.Tensor) -> None:
        """Keep the scores of rows at a step."""
        if step == len(steps):
            steps.append(torch.zeros_like(values))
        steps[step][chosen] = values[chosen]

    def outputs(self) -> GenerateDecoderOnlyOutput | torch.Tensor:
        """What `generate` returns."""
        longest = max(len(row.tokens) for row in self.rows)
        sequences = self.ids[:, : self.num_given + longest]
        if not self.config.return_dict_in_generate:
            return sequences
        return GenerateDecoderOnlyOutput(
            sequences=sequences,  # type: ignore[arg-type]
            scores=tuple(self.scores) if self.config.output_scores else None,  # type: ignore[arg-type]
            logits=tuple(self.logits) if self.config.output_logits else None,  # type: ignore[arg-type]
        )


def has_attention_alone(language_model: PreTrainedModel) -> bool:
    """Return whether keys and values are the only state that a language model keeps of earlier tokens."""
    kinds = getattr(language_model.config, "layer_types", None) or ()
    # Families with recurrent layers name them in `layer_types`, or set this private attribute.
    return not language_model._is_stateful and all(
        kind.endswith("attention") and kind != "linear_attention" for kind in kinds
    )


def find_unsupported(model: nn.Module, option: Callable[[str], Any]) -> str | None:
    """
    Return what is to be changed before a model can decode with drafts.

    Args:
        model (`nn.Module`): The model.
        option (`Callable`): Returns an option of `generate` by its name, `None` if it is not set.
    """
    for name, off in UNSUPPORTED.items():
        if option(name) not in off:
            return f"`{name}` must be {off[0]!r} with `use_draft` or `draft_ids`."
    if needs_equal_passes(model):
        return (
            "`use_draft` and `draft_ids` must be left out of a sharded model: processes would make different numbers of "
            "passes."
        )
    return None


def needs_equal_passes(model: nn.Module) -> bool:
    """Return whether several processes must run the model together, because each has a part of its weights."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return False
    is_sharded = is_deepspeed_zero3_enabled() or any(
        isinstance(module, FSDPModule | FullyShardedDataParallel) for module in model.modules()
    )
    return torch.distributed.get_world_size() > 1 and is_sharded


def _pad_token_id(generation_config: GenerationConfig) -> int:
    """The token after the end of a row, chosen as `generate` does."""
    if generation_config.pad_token_id is not None:
        return generation_config.pad_token_id
    eos = generation_config.eos_token_id
    return (eos[0] if isinstance(eos, list) else eos) or 0


def split_drafts(
    drafted: torch.Tensor, lengths: torch.Tensor, rows: torch.Tensor, num_rows: int, eos_token_ids: list[int]
) -> list[list[int]]:
    """
    Give each row of a batch the drafts of its recordings.

    Args:
        drafted (`torch.LongTensor` of shape `(sum(lengths),)`): Draft tokens, packed over recordings.
        lengths (`torch.LongTensor` of shape `(num_recordings,)`): Tokens of each draft.
        rows (`torch.LongTensor` of shape `(num_recordings,)`): Row of each recording.
        num_rows (`int`): Rows of the batch.
        eos_token_ids (`list[int]`): Tokens that end a row. The first one ends each draft.

    Returns:
        `list[list[int]]`: A draft for each row.
    """
    drafts: list[list[int]] = [[] for _ in range(num_rows)]
    tokens = iter(drafted.tolist())
    for row, length in zip(rows.tolist(), lengths.tolist(), strict=True):
        drafts[row] += itertools.islice(tokens, length)
    return [draft + eos_token_ids[:1] for draft in drafts]


def join_drafts(
    drafted: torch.Tensor,
    lengths: torch.Tensor,
    eos_token_id: int,
    pad_token_id: int,
    max_new_tokens: int | None = None,
) -> torch.Tensor:
    """
    Make rows of packed draft tokens, each with an end-of-sequence token.

    Args:
        drafted (`torch.LongTensor` of shape `(sum(lengths),)`): Draft tokens, packed over recordings.
        lengths (`torch.LongTensor` of shape `(num_recordings,)`): Tokens of each draft.
        max_new_tokens (`int`, *optional*): Where a row is cut off, without an end-of-sequence token.

    Returns:
        `torch.LongTensor` of shape `(num_recordings, longest)`, padded on the right.
    """
    end = drafted.new_tensor([eos_token_id])
    rows = [torch.cat([row, end])[:max_new_tokens] for row in drafted.split(lengths.tolist())]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_token_id)


__all__ = [
    "ON_REQUEST",
    "DraftAligner",
    "decode_with_drafts",
    "find_unsupported",
    "has_attention_alone",
    "join_drafts",
    "split_drafts",
]
