"""Drafts of transcripts, predicted from the embeddings of Continuous Integrate-and-Fire in one parallel step."""

import torch
from torch import nn
from transformers.activations import ACT2FN

from .batch_numbers import BatchNumbers, is_any_of, read_together, select
from .configuration_llm_asr import LlmAsrConfig


class DraftHead(nn.Module):
    """
    Maps each embedding and its two neighbours to a hidden state, from which the language model's own head reads a token.

    CIF fires one embedding a token, so that embedding `k` drafts token `k`, as Paraformer's first pass does (arXiv
    2206.08317, section 2.2).
    """

    def __init__(self, config: LlmAsrConfig):
        super().__init__()
        text_size, hidden_size = config.text_config.hidden_size, config.projector_config.hidden_size
        self.up_proj = nn.Linear(3 * text_size, hidden_size)
        self.act_fn = ACT2FN[config.projector_config.hidden_act]
        self.down_proj = nn.Linear(hidden_size, text_size)
        self.is_residual = config.projector_config.draft_residual

    def forward(self, audio_embeds: torch.Tensor, audio_lengths: torch.Tensor) -> torch.Tensor:
        """
        Args:
            audio_embeds (`torch.Tensor` of shape `(sum(audio_lengths), text_hidden_size)`): Packed embeddings.
            audio_lengths (`torch.LongTensor` of shape `(num_recordings,)`): Embeddings of each recording.

        Returns:
            `torch.Tensor` of shape `(sum(audio_lengths), text_hidden_size)`.
        """
        ends = audio_lengths.to(audio_embeds.device).cumsum(0)
        is_start = torch.zeros(len(audio_embeds) + 1, dtype=torch.bool, device=audio_embeds.device)
        is_start = is_start.index_fill(0, ends, True)
        none = audio_embeds.new_zeros(1, audio_embeds.shape[1])
        before = torch.cat([none, audio_embeds[:-1]]).masked_fill(is_start[:-1, None], 0.0)
        behind = torch.cat([audio_embeds[1:], none]).masked_fill(is_start[1:, None], 0.0)
        drafted = self.down_proj(self.act_fn(self.up_proj(torch.cat([before, audio_embeds, behind], dim=-1))))
        return audio_embeds + drafted if self.is_residual else drafted


def draft_labels(
    labels: torch.Tensor,
    eos_token_ids: list[int],
    target_lengths: torch.Tensor,
    numbers: BatchNumbers | None = None,
) -> torch.Tensor:
    """
    Pack the tokens of the transcripts: those after a named language and before the end.

    Args:
        labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`): -100 outside of answers.
        eos_token_ids (`list[int]`): Tokens that end an answer.
        target_lengths (`torch.LongTensor` of shape `(batch_size,)`): Tokens of each transcript.
        numbers ([`BatchNumbers`], *optional*): Of the batch; read from the device if absent. Its translations have no tokens.

    Returns:
        `torch.LongTensor` of shape `(sum(target_lengths),)`.

    Raises:
        `ValueError`: If an answer has fewer tokens than its transcript.
    """
    target_lengths = target_lengths.to(labels.device)
    is_text = (labels != -100) & ~is_any_of(labels, eos_token_ids)
    if numbers is None or numbers.target_lengths is None:
        read = read_together(found=is_text.sum(-1), wanted=target_lengths)
        found, wanted = read["found"], read["wanted"]
    else:
        translations = numbers.translations or [False] * len(numbers.target_lengths)
        wanted = [
            0 if other else max(length, 0) for length, other in zip(numbers.target_lengths, translations, strict=True)
        ]
        found = wanted if numbers.text_targets is None else numbers.text_targets
    if len(found) != len(wanted) or any(have < want for have, want in zip(found, wanted, strict=True)):
        raise ValueError(
            "`labels` have fewer tokens than `target_lengths` says; a draft head learns from one recording a row, whose "
            "`target_lengths` counts the tokens of its transcript."
        )
    from_the_end = is_text.flip(-1).cumsum(-1).flip(-1)
    return select(labels, is_text & (from_the_end <= target_lengths[:, None]), sum(wanted))
