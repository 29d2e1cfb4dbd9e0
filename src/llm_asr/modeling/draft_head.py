"""Drafts of transcripts, predicted from the embeddings of Continuous Integrate-and-Fire in one parallel step."""

import torch
from torch import nn
from transformers.activations import ACT2FN

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
