"""The parts of the training loss and their weighted sum."""

from collections.abc import Callable
from functools import reduce
from typing import Any, cast

import torch
from torch import nn

from .batch_numbers import BatchNumbers, is_any_of, read_together
from .cif import quantity_loss
from .configuration_llm_asr import LOSS_PARTS
from .configuration_projector import LlmAsrProjectorConfig
from .ctc import ctc_loss
from .model_interface import HeadedModelInterface
from .outputs_llm_asr import LlmAsrAudioOutput, LlmAsrCausalLMOutputWithPast
from .transcript_tokens import transcript_tokens


def language_modeling_loss(
    loss_function: Callable[..., torch.Tensor],
    logits: torch.Tensor,
    shift_labels: torch.Tensor,
    smoothing: float,
    num_items_in_batch: torch.Tensor | int | None,
) -> torch.Tensor:
    """
    Compute the cross-entropy of the labels.

    Args:
        loss_function (`Callable`): `loss_function` of the model, which is used without smoothing.
        logits (`torch.Tensor` of shape `(..., vocab_size)`): Scores.
        shift_labels (`torch.LongTensor` of shape `(...)`): Label of each score; -100 is ignored.
        smoothing (`float`): Share of each label's probability that is dealt out to all tokens (arXiv 1512.00567, section 7).
        num_items_in_batch (`torch.Tensor` or `int`, *optional*): Divisor; the number of labels if absent.
    """
    vocab_size = logits.shape[-1]
    if not smoothing:
        return loss_function(
            logits=logits,
            labels=None,
            shift_labels=shift_labels,
            vocab_size=vocab_size,
            num_items_in_batch=num_items_in_batch,
        )
    loss = nn.functional.cross_entropy(
        logits.float().reshape(-1, vocab_size),
        shift_labels.flatten(),
        label_smoothing=smoothing,
        reduction="sum",
    )
    if num_items_in_batch is None:
        num_items_in_batch = (shift_labels != -100).sum()
    return loss / num_items_in_batch


def resolve_target_lengths(
    labels: torch.Tensor,
    target_lengths: torch.Tensor | None,
    num_recordings: int,
    eos_token_ids: list[int],
    is_translation: torch.Tensor | None = None,
    numbers: BatchNumbers | None = None,
) -> torch.Tensor:
    """
    Return `target_lengths` as given, or count them in `labels`. They are -1 for translations, whose transcripts are unknown.

    Args:
        labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`): Targets, -100 elsewhere.
        target_lengths (`torch.LongTensor` of shape `(num_recordings,)`, *optional*): Tokens of each transcript.
        num_recordings (`int`): Recordings in the batch.
        eos_token_ids (`list[int]`): Tokens that end a transcript, which CIF does not fire.
        is_translation (`torch.BoolTensor` of shape `(batch_size,)`, *optional*): Rows whose labels are not a transcript.
        numbers ([`BatchNumbers`], *optional*): Of the batch, whose `target_lengths` are filled in. Read from the device if
            absent.

    Raises:
        `ValueError`: If a row has no target, or rows hold several recordings and `target_lengths` is absent.
    """
    is_target = labels != -100
    targets = read_together(targets=is_target.sum(-1))["targets"] if numbers is None else numbers.targets or []
    empty = [row for row, num_targets in enumerate(targets) if not num_targets]
    if empty:
        raise ValueError(
            f"`labels` has no target in row(s) {empty}; give each row a transcript (an empty one still ends with the "
            "end-of-sequence token)."
        )
    if target_lengths is not None:
        return target_lengths
    if num_recordings != labels.shape[0]:
        raise ValueError(
            f"`target_lengths` must be passed when rows hold several recordings ({num_recordings} recordings in "
            f"{labels.shape[0]} rows)."
        )
    lengths = (is_target & ~is_any_of(labels, eos_token_ids)).sum(-1)
    if numbers is not None and numbers.text_targets is not None:
        translations = numbers.translations or [False] * len(numbers.text_targets)
        numbers.target_lengths = [
            -1 if other else length for length, other in zip(numbers.text_targets, translations, strict=True)
        ]
    return lengths if is_translation is None else lengths.masked_fill(is_translation.to(lengths.device), -1)


def weighted_sum(losses: dict[str, torch.Tensor], projector_config: LlmAsrProjectorConfig) -> torch.Tensor:
    """
    Add the parts of the loss, each but `lm_loss` multiplied by the field `<part>_coef` of the configuration. Other entries of
    `losses` are left out.
    """
    losses = {name: loss for name, loss in losses.items() if name in LOSS_PARTS}
    # The projector and the head may be on two devices.
    device = next(iter(losses.values())).device
    coefficients = {name: 1.0 if name == "lm_loss" else getattr(projector_config, f"{name}_coef") for name in losses}
    return reduce(torch.add, (coefficients[name] * loss.to(device) for name, loss in losses.items()))


class LlmAsrLossMixin(HeadedModelInterface):
    """Adds the losses of the projector and of drafts to [`LlmAsrForConditionalGeneration`]."""

    def _eos_ids(self) -> list[int]:
        token_ids = self.generation_config.eos_token_id
        return [] if token_ids is None else [token_ids] if isinstance(token_ids, int) else list(token_ids)

    def _eos_token_ids(self, device: torch.device) -> torch.Tensor:
        return torch.tensor(self._eos_ids(), dtype=torch.long, device=device)

    def _projector_losses(
        self,
        audio: LlmAsrAudioOutput,
        labels: torch.Tensor,
        target_lengths: torch.Tensor | None,
        num_items_in_batch: torch.Tensor | int | None,
        is_translation: torch.Tensor | None,
        numbers: BatchNumbers | None,
    ) -> dict[str, torch.Tensor]:
        """
        Compute the parts of the loss other than `lm_loss`, normalised like it. With a CTC loss, `ctc_skipped` is among them.

        A row without a target length adds nothing to the quantity loss. A translation adds nothing to the draft loss and the CTC
        loss, because they are of transcripts.
        """
        losses: dict[str, torch.Tensor] = {}
        if target_lengths is None or audio.pooler_output is None or audio.audio_lengths is None:
            # There is no audio.
            return losses
        num_labels = (labels != -100).sum()
        num_items = num_labels if num_items_in_batch is None else num_items_in_batch
        if audio.quantities is not None:
            device = audio.quantities.device
            num_tokens = num_items.to(device) if isinstance(num_items, torch.Tensor) else num_items
            losses["quantity_loss"] = quantity_loss(audio.quantities, target_lengths.to(device), num_tokens)
        # The labels of a translation are not its transcript.
        known_lengths = target_lengths
        if is_translation is not None:
            known_lengths = target_lengths.masked_fill(is_translation.to(target_lengths.device), -1)
        if self.draft_head is not None:
            losses["draft_loss"] = self._draft_loss(audio, labels, known_lengths, numbers) / num_items
        if audio.ctc_scores is not None and audio.ctc_labels is not None:
            logits = audio.ctc_scores.logits(self.model.get_token_embeddings())
            num_frames = (audio.ctc_labels != -100).sum(-1)
            tokens = transcript_tokens(labels, self._eos_ids(), known_lengths, numbers)
            loss, losses["ctc_skipped"] = ctc_loss(logits, num_frames, tokens, known_lengths)
            losses["ctc_loss"] = loss.to(num_labels.device) / num_items
        if audio.router_logits is not None and audio.selected_experts is not None:
            losses["router_aux_loss"], losses["router_z_loss"] = self.model.projector.moe.balance(
                audio.router_logits,
                audio.selected_experts.to(audio.router_logits.device),
                num_labels.to(audio.router_logits.device),
                num_items_in_batch,
            )
        return losses

    def _draft_loss(
        self,
        audio: LlmAsrAudioOutput,
        labels: torch.Tensor,
        known_lengths: torch.Tensor,
        numbers: BatchNumbers | None,
    ) -> torch.Tensor:
        """The sum of the cross-entropies of drafted tokens, on the device of the labels."""
        tokens = transcript_tokens(labels, self._eos_ids(), known_lengths, numbers)
        drafted_lengths = known_lengths.clamp(min=0)
        embeds, lengths = cast("torch.Tensor", audio.pooler_output), cast("torch.Tensor", audio.audio_lengths)
        drafts = self.draft(embeds, lengths)
        tokens = tokens.to(drafts.device)
        # Recordings without a draft have embeddings all the same. A token without an embedding goes to the place behind all.
        lengths, drafted_lengths = lengths.to(drafts.device), drafted_lengths.to(drafts.device)
        rows = torch.arange(len(lengths), device=drafts.device)
        row = rows.repeat_interleave(drafted_lengths, output_size=len(tokens))
        index = torch.arange(len(tokens), device=drafts.device) - (drafted_lengths.cumsum(0) - drafted_lengths)[row]
        place = (lengths.cumsum(0) - lengths)[row] + index
        place = place.masked_fill(index >= lengths[row], len(drafts))
        drafted_tokens = tokens.new_full((len(drafts) + 1,), -100).index_copy(0, place, tokens)[:-1]
        loss = nn.functional.cross_entropy(drafts.float(), drafted_tokens, reduction="sum")
        return loss.to(labels.device)

    def draft(self, audio_embeds: torch.Tensor, audio_lengths: torch.Tensor) -> torch.Tensor:
        """
        Draft transcripts without the language model's layers. The model needs `draft_head=True`.

        Args:
            audio_embeds (`torch.Tensor` of shape `(sum(audio_lengths), text_hidden_size)`): Packed embeddings.
            audio_lengths (`torch.LongTensor` of shape `(num_recordings,)`): Embeddings of each recording.

        Returns:
            `torch.Tensor` of shape `(sum(audio_lengths), vocab_size)`: Logits of one token for each embedding.

        Raises:
            `ValueError`: If the model has no draft head.
        """
        if self.draft_head is None:
            raise ValueError("`draft` needs a model with `draft_head=True` in its projector configuration.")
        drafted = self.draft_head(audio_embeds.to(self.draft_head.up_proj.weight.dtype), audio_lengths)
        return self.get_logits(drafted.to(self.lm_head.weight.dtype))

    def _forward_draft_only(
        self,
        labels: torch.Tensor | None,
        target_lengths: torch.Tensor | None,
        num_items_in_batch: torch.Tensor | int | None,
        is_translation: torch.Tensor | None,
        numbers: BatchNumbers | None,
        **audio_inputs,
    ) -> LlmAsrCausalLMOutputWithPast:
        """See `draft_only` of [`LlmAsrForConditionalGeneration.forward`]."""
        if self.draft_head is None or labels is None or target_lengths is None:
            raise ValueError(
                "`draft_only` needs a model with `draft_head=True` in its projector configuration, `labels` and audio; pass "
                "them, or leave it out."
            )
        audio, _ = self.model.encode_and_project(target_lengths=target_lengths, numbers=numbers, **audio_inputs)
        losses: dict[str, Any] = self._projector_losses(
            audio, labels, target_lengths, num_items_in_batch, is_translation, numbers
        )
        return LlmAsrCausalLMOutputWithPast(
            loss=weighted_sum(losses, self.config.projector_config),
            router_logits=audio.router_logits,
            selected_experts=audio.selected_experts,
            audio_embeds=audio.pooler_output,
            audio_lengths=audio.audio_lengths,
            alphas=audio.alphas,
            quantities=audio.quantities,
            fire_times=audio.fire_times,
            ctc_labels=audio.ctc_labels,
            **losses,
        )


__all__ = ["LlmAsrLossMixin", "language_modeling_loss", "resolve_target_lengths", "weighted_sum"]
