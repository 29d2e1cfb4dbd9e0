"""Outputs of the model."""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import ModelOutput

from .ctc import CtcScores
from .merging import MergedInputs


@dataclass
class LlmAsrAudioOutput(ModelOutput):
    r"""
    Encoded and projected recordings; "packed" means concatenated over recordings, in order, without padding.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(num_recordings, num_frames, audio_hidden_size)`):
            Output of the speech encoder.
        pooler_output (`torch.FloatTensor` of shape `(sum(audio_lengths), text_hidden_size)`):
            Packed projected embeddings.
        hidden_states, attentions (`tuple(torch.FloatTensor)`, *optional*):
            Of the layers of the speech encoder, as with `output_hidden_states=True` and `output_attentions=True`. `None` for
            encoders that run recordings of different lengths one after the other.
        audio_lengths (`torch.LongTensor` of shape `(num_recordings,)`):
            Embeddings of each recording.
        num_frames (`torch.LongTensor` of shape `(num_recordings,)`):
            Real frames of `last_hidden_state`.
        router_logits (`torch.FloatTensor` of shape `(sum(audio_lengths), num_experts)`, *optional*):
            With a mixture of experts.
        selected_experts (`torch.LongTensor` of shape `(sum(audio_lengths), num_experts_per_tok)`, *optional*):
            Experts that each embedding came through.
        alphas (`torch.FloatTensor` of shape `(num_recordings, num_projector_frames)`, *optional*):
            CIF weights, zero in padding.
        quantities (`torch.FloatTensor` of shape `(num_recordings,)`, *optional*):
            Numbers of embeddings that CIF predicted, before any scaling.
        fire_times (`torch.FloatTensor` of shape `(sum(audio_lengths),)`, *optional*):
            Packed times at which CIF fired, in seconds from the start of each recording.
        ctc_scores ([`CtcScores`], *optional*):
            With a CTC head, what its scores of frames are computed from.
        ctc_labels (`torch.LongTensor` of shape `(num_recordings, num_projector_frames)`, *optional*):
            With a CTC head, the best label of each frame, -100 in padding. The blank is the number of the language model's input
            embeddings.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    audio_lengths: torch.Tensor | None = None
    num_frames: torch.Tensor | None = None
    router_logits: torch.Tensor | None = None
    selected_experts: torch.Tensor | None = None
    alphas: torch.Tensor | None = None
    quantities: torch.Tensor | None = None
    fire_times: torch.Tensor | None = None
    ctc_scores: CtcScores | None = None
    ctc_labels: torch.Tensor | None = None


@dataclass
class LlmAsrModelOutputWithPast(BaseModelOutputWithPast):
    r"""
    Output of [`LlmAsrModel`]. In its sequences, each audio token is replaced by the embeddings of its recording.

    Args:
        audio_outputs ([`LlmAsrAudioOutput`], *optional*, returned when there is audio):
            Encoded and projected recordings.
        merged_inputs (`MergedInputs`, *optional*, returned when there is audio):
            Where each position of the merged sequence came from.
    """

    audio_outputs: LlmAsrAudioOutput | None = None
    merged_inputs: MergedInputs | None = None


@dataclass
class LlmAsrCausalLMOutputWithPast(CausalLMOutputWithPast):
    r"""
    Output of [`LlmAsrForConditionalGeneration`].

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` is provided):
            `lm_loss + quantity_loss_coef * quantity_loss + draft_loss_coef * draft_loss + ctc_loss_coef * ctc_loss +
            router_aux_loss_coef * router_aux_loss + router_z_loss_coef * router_z_loss`, of the parts that the model has.
        logits (`torch.FloatTensor` of shape `(batch_size, sequence_length, vocab_size)`):
            Prediction scores at the tokens of `input_ids`, so that they line up with `labels`; those of an audio token are
            at the end of its recording.
        past_key_values (`Cache`, *optional*):
            Key and value states of the language model. From Transformers 5.24 on, this field is called `cache`.
        hidden_states, attentions (`tuple(torch.FloatTensor)`, *optional*):
            Of the language model, over the merged sequence, in which each audio token grew to its recording.
        lm_loss (`torch.FloatTensor` of shape `(1,)`, *optional*):
            Cross-entropy of the labels.
        quantity_loss (`torch.FloatTensor` of shape `(1,)`, *optional*):
            Error of CIF's predicted number of tokens, per label.
        draft_loss (`torch.FloatTensor` of shape `(1,)`, *optional*):
            Cross-entropy of the drafts.
        ctc_loss (`torch.FloatTensor` of shape `(1,)`, *optional*):
            CTC loss of the transcripts, per label.
        ctc_skipped (`torch.LongTensor` of shape `()`, *optional*):
            Recordings that add nothing to `ctc_loss`, because their transcripts have more tokens than CTC can align with their
            frames.
        router_aux_loss (`torch.FloatTensor` of shape `(1,)`, *optional*):
            Load-balancing loss.
        router_z_loss (`torch.FloatTensor` of shape `(1,)`, *optional*):
            Router z-loss.
        router_logits (`torch.FloatTensor` of shape `(sum(audio_lengths), num_experts)`, *optional*):
            Router scores of real frames, packed over recordings.
        selected_experts (`torch.LongTensor` of shape `(sum(audio_lengths), num_experts_per_tok)`, *optional*):
            Experts that each embedding came through.
        audio_embeds (`torch.FloatTensor` of shape `(sum(audio_lengths), text_hidden_size)`, *optional*):
            Projected embeddings, packed over recordings.
        audio_lengths (`torch.LongTensor` of shape `(num_recordings,)`, *optional*):
            Embeddings of each recording.
        alphas (`torch.FloatTensor` of shape `(num_recordings, num_projector_frames)`, *optional*):
            CIF weights, zero in padding.
        quantities (`torch.FloatTensor` of shape `(num_recordings,)`, *optional*):
            Numbers of embeddings that CIF predicted, before any scaling.
        fire_times (`torch.FloatTensor` of shape `(sum(audio_lengths),)`, *optional*):
            Packed CIF fire times, in seconds.
        ctc_labels (`torch.LongTensor` of shape `(num_recordings, num_projector_frames)`, *optional*):
            See [`LlmAsrAudioOutput`].
    """

    lm_loss: torch.Tensor | None = None
    quantity_loss: torch.Tensor | None = None
    draft_loss: torch.Tensor | None = None
    ctc_loss: torch.Tensor | None = None
    ctc_skipped: torch.Tensor | None = None
    router_aux_loss: torch.Tensor | None = None
    router_z_loss: torch.Tensor | None = None
    router_logits: torch.Tensor | None = None
    selected_experts: torch.Tensor | None = None
    audio_embeds: torch.Tensor | None = None
    audio_lengths: torch.Tensor | None = None
    alphas: torch.Tensor | None = None
    quantities: torch.Tensor | None = None
    fire_times: torch.Tensor | None = None
    ctc_labels: torch.Tensor | None = None


__all__ = ["LlmAsrAudioOutput", "LlmAsrCausalLMOutputWithPast", "LlmAsrModelOutputWithPast"]
