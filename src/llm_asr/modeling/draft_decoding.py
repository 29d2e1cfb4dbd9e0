"""Self-speculative decoding: the language model verifies a draft and generates the tokens that the draft lacks."""

from typing import Any

import torch
from transformers.cache_utils import DynamicCache
from transformers.generation import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput
from transformers.modeling_utils import PreTrainedModel

from .transformers_versions import CACHE_NAME


class DraftAligner:
    """
    Finds the part of a draft that is still to come.

    Where the language model has disagreed, the draft is taken up again at the place with the smallest edit distance to the
    accepted tokens.

    Args:
        draft_ids (`torch.LongTensor` of shape `(num_tokens,)`): The draft, with an end-of-sequence token.
    """

    # The draft has no language name before the transcript, so the tokens of the name must not count as edits.
    LEADING_INSERTION_COST = 0.5

    def __init__(self, draft_ids: torch.Tensor):
        self.draft_ids = draft_ids
        self.draft = draft_ids.tolist()
        # costs[i]: edits between the accepted tokens and the first i of the draft; skipped draft tokens are edits.
        self.costs = [float(skipped) for skipped in range(len(self.draft) + 1)]

    def rest(self) -> torch.Tensor:
        """Return the tokens of the draft that follow the accepted tokens, of shape `(num_tokens,)`."""
        # Of two equally close positions take the later one, because a replaced token is likelier than an inserted one.
        place = min(range(len(self.costs)), key=lambda index: (self.costs[index], -index))
        return self.draft_ids[place:]

    def accept(self, token: int) -> None:
        """Add an accepted token: one more row of the edit distance."""
        costs = [self.costs[0] + self.LEADING_INSERTION_COST]
        for index, drafted in enumerate(self.draft):
            replaced = self.costs[index] + (drafted != token)
            costs.append(min(replaced, self.costs[index + 1] + 1.0, costs[index] + 1.0))
        self.costs = costs


@torch.no_grad()
def decode_with_draft(
    draft_ids: torch.Tensor,
    streamer: BaseStreamer | None,
    model,
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **model_kwargs,
) -> GenerateDecoderOnlyOutput | torch.Tensor:
    """
    Decode one recording with a draft; with `draft_ids` and `streamer` bound, a `custom_generate` for [`~generation.GenerationMixin.generate`].

    Each pass of the language model scores the rest of the draft. Tokens are chosen from these scores one by one, as plain
    decoding chooses them, up to the first that differs from the draft (arXiv 2302.01318 with a draft that has no
    probabilities; arXiv 2603.11243).

    Args:
        draft_ids (`torch.LongTensor` of shape `(num_tokens,)`): The draft, with an end-of-sequence token.
        streamer ([`~generation.BaseStreamer`], *optional*): Receives the prompt, and the tokens of each pass.
        model ([`LlmAsrForConditionalGeneration`]): The model.
        input_ids (`torch.LongTensor` of shape `(1, length)`): The prompt, or nothing if it is only known embedded.
        model_kwargs: Among them `prompt_embeds` or `inputs_embeds` of shape `(1, prompt_length, hidden_size)`, the embedded
            prompt with its audio, and possibly `attention_mask` of shape `(1, prompt_length)`.

    Raises:
        `ValueError`: If an option has no effect on this loop.
    """
    check_draft_options(generation_config)
    prompt_embeds = model_kwargs["prompt_embeds" if "prompt_embeds" in model_kwargs else "inputs_embeds"]
    prompt_length, num_given = prompt_embeds.shape[1], input_ids.shape[1]
    attention_mask = model_kwargs.get("attention_mask")
    if attention_mask is None:
        attention_mask = torch.ones(1, prompt_length, dtype=torch.long, device=prompt_embeds.device)
    aligner = DraftAligner(draft_ids)
    # Rejected tokens are cropped from the cache, which caches of sliding windows and static caches do not allow. The
    # states of other layers than attention cannot be cropped, so each pass reads the prompt again.
    cache = DynamicCache() if has_attention_alone(model.model.language_model) else None
    steps: dict[str, list] = {"scores": [], "logits": []}
    if streamer is not None:
        streamer.put(input_ids.cpu())
    is_done = False
    while not is_done:
        drafted = aligner.rest()
        new_ids = torch.cat([input_ids[:, num_given:], drafted[None]], dim=-1)
        seen = torch.nn.functional.pad(attention_mask, (0, new_ids.shape[1]), value=1)
        start = 0 if cache is None else cache.get_seq_length()
        unread = model.get_input_embeddings()(new_ids[:, max(start - prompt_length, 0) :]).to(prompt_embeds.device)
        outputs = model(
            inputs_embeds=torch.cat([prompt_embeds[:, start:], unread], dim=1),
            attention_mask=seen,
            position_ids=(seen.cumsum(-1) - 1).clamp(min=0)[:, start:],
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=len(drafted) + 1,
            return_dict=True,
        )
        new_tokens = []
        for index in range(len(drafted) + 1):
            logits = outputs.logits[:, index].to(copy=True, dtype=torch.float32, device=input_ids.device)
            # `torch.cat` returns a `torch.Tensor`. Transformers asks for a `torch.LongTensor`.
            scores = logits_processor(input_ids, logits)  # type: ignore[arg-type]
            if generation_config.do_sample:
                token = torch.multinomial(scores.softmax(-1), num_samples=1)
            else:
                token = scores.argmax(-1, keepdim=True)
            input_ids = torch.cat([input_ids, token], dim=-1)
            steps["scores"].append(scores)
            steps["logits"].append(logits)
            new_tokens.append(token)
            aligner.accept(int(token))
            is_done = bool(stopping_criteria(input_ids, scores).all())
            if is_done or index == len(drafted) or int(token) != int(drafted[index]):
                break
        # The last token has no keys and values yet.
        num_rejected = seen.shape[1] - (prompt_length + input_ids.shape[1] - num_given - 1)
        if cache is not None and num_rejected:
            cache.crop(-num_rejected)
        if streamer is not None:
            streamer.put(torch.cat(new_tokens, dim=-1).cpu())
    if streamer is not None:
        streamer.end()
    if not generation_config.return_dict_in_generate:
        return input_ids
    caches: dict[str, Any] = {CACHE_NAME: cache}
    return GenerateDecoderOnlyOutput(
        sequences=input_ids,  # type: ignore[arg-type]
        scores=tuple(steps["scores"]) if generation_config.output_scores else None,
        logits=tuple(steps["logits"]) if generation_config.output_logits else None,
        **caches,
    )


def has_attention_alone(language_model: PreTrainedModel) -> bool:
    """Return whether keys and values are the only state that a language model keeps of earlier tokens."""
    kinds = getattr(language_model.config, "layer_types", None) or ()
    # Families with recurrent layers name them in `layer_types`, or set this private attribute.
    return not language_model._is_stateful and all(
        kind.endswith("attention") and kind != "linear_attention" for kind in kinds
    )


def check_draft_options(generation_config: GenerationConfig) -> None:
    """Raise a `ValueError` for options of `generate` that decoding with a draft does not support."""
    for name in ("output_attentions", "output_hidden_states"):
        if getattr(generation_config, name):
            raise ValueError(f"`{name}` must be False with a draft.")
    if generation_config.cache_implementation not in (None, "dynamic"):
        raise ValueError(
            f"`cache_implementation` must be 'dynamic' with a draft, got {generation_config.cache_implementation!r}."
        )


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


__all__ = ["DraftAligner", "decode_with_draft", "join_drafts"]
