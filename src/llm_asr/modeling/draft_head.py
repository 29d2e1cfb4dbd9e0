"""Drafts of transcripts, read off the embeddings of Continuous Integrate-and-Fire in one parallel step."""

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.generation.candidate_generator import CandidateGenerator

from .configuration_llm_asr import LlmAsrConfig


class DraftHead(nn.Module):
    """
    From each embedding and its two neighbours to a hidden state that the language model's own head reads a token off.

    CIF fires one embedding a token, so that embedding `k` drafts token `k`, as Paraformer's first pass does (arXiv
    2206.08317, section 2.2).
    """

    def __init__(self, config: LlmAsrConfig):
        super().__init__()
        text_size, hidden_size = config.text_config.hidden_size, config.projector_config.hidden_size
        self.up_proj = nn.Linear(3 * text_size, hidden_size)
        self.act_fn = ACT2FN[config.projector_config.hidden_act]
        self.down_proj = nn.Linear(hidden_size, text_size)

    def forward(self, audio_embeds: torch.Tensor, audio_lengths: torch.Tensor) -> torch.Tensor:
        """
        Args:
            audio_embeds (`torch.Tensor` of shape `(sum(audio_lengths), text_hidden_size)`): Packed embeddings.
            audio_lengths (`torch.LongTensor` of shape `(num_recordings,)`): Embeddings of each recording.

        Returns:
            `torch.Tensor` of shape `(sum(audio_lengths), text_hidden_size)`.
        """
        ends = audio_lengths.cumsum(0)
        is_start = torch.zeros(len(audio_embeds) + 1, dtype=torch.bool, device=audio_embeds.device)
        is_start[ends] = True
        none = audio_embeds.new_zeros(1, audio_embeds.shape[1])
        before = torch.cat([none, audio_embeds[:-1]]).masked_fill(is_start[:-1, None], 0.0)
        behind = torch.cat([audio_embeds[1:], none]).masked_fill(is_start[1:, None], 0.0)
        return self.down_proj(self.act_fn(self.up_proj(torch.cat([before, audio_embeds, behind], dim=-1))))


def draft_labels(labels: torch.Tensor, eos_token_ids: torch.Tensor, target_lengths: torch.Tensor) -> torch.Tensor:
    """
    Tokens of the transcripts alone, packed: what follows a named language and precedes the end.

    Args:
        labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`): -100 outside of answers.
        eos_token_ids (`torch.LongTensor`): Tokens that end an answer.
        target_lengths (`torch.LongTensor` of shape `(batch_size,)`): Tokens of each transcript.

    Returns:
        `torch.LongTensor` of shape `(sum(target_lengths),)`.

    Raises:
        `ValueError`: If an answer has fewer tokens than its transcript.
    """
    is_text = (labels != -100) & ~torch.isin(labels, eos_token_ids)
    from_the_end = is_text.flip(-1).cumsum(-1).flip(-1)
    found = labels[is_text & (from_the_end <= target_lengths[:, None])]
    if len(found) != int(target_lengths.sum()):
        raise ValueError(
            "`labels` have fewer tokens than `target_lengths` says; a draft head learns from one recording a row, whose "
            "`target_lengths` counts the tokens of its transcript."
        )
    return found


class DraftCandidateGenerator(CandidateGenerator):
    """
    Proposes what is left of a draft to assisted generation.

    Where the language model has disagreed, the draft is taken up again at the place that makes the fewest edits of what
    was accepted so far.

    Args:
        draft_ids (`torch.LongTensor` of shape `(num_tokens,)`): The draft, with an end-of-sequence token.
        prompt_length (`int`): Tokens before the first new one.
    """

    # A language named before the transcript is not in the draft, and must not count as so many wrong tokens.
    LEADING_INSERTION_COST = 0.5

    def __init__(self, draft_ids: torch.Tensor, prompt_length: int):
        self.draft_ids = draft_ids
        self.draft = draft_ids.tolist()
        self.prompt_length = prompt_length
        # costs[i]: edits between the accepted tokens and the first i of the draft; skipped draft tokens are edits.
        self.costs = [float(skipped) for skipped in range(len(self.draft) + 1)]
        self.num_seen = 0

    def get_candidates(self, input_ids: torch.LongTensor, **kwargs) -> tuple[torch.LongTensor, None]:
        accepted = input_ids[0, self.prompt_length :].tolist()
        for token in accepted[self.num_seen :]:
            self._align(token)
        self.num_seen = len(accepted)
        # One token for another is likelier than one too many.
        place = min(range(len(self.costs)), key=lambda index: (self.costs[index], -index))
        return torch.cat([input_ids, self.draft_ids[None, place:]], dim=-1), None

    def _align(self, token: int) -> None:
        """One more row of the edit distance."""
        costs = [self.costs[0] + self.LEADING_INSERTION_COST]
        for index, drafted in enumerate(self.draft):
            replaced = self.costs[index] + (drafted != token)
            costs.append(min(replaced, self.costs[index + 1] + 1.0, costs[index] + 1.0))
        self.costs = costs
