"""Connectionist Temporal Classification over the tokens of the language model, and frames merged by its labels."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence


# Frames whose scores are in memory at once where no gradient is needed.
FRAMES_AT_ONCE = 1024


class CtcHead(nn.Module):
    """
    Scores of each frame for all tokens of the language model and for the blank.

    A linear layer maps a frame to the size of the language model's embeddings. The score of a token is the product with its
    input embedding, so that the head has no matrix over the vocabulary of its own. Another linear layer gives the score of the
    blank, whose label is the number of embeddings.

    Args:
        hidden_size (`int`): Size of a frame.
        text_size (`int`): Size of the language model's input embeddings.
    """

    def __init__(self, hidden_size: int, text_size: int):
        super().__init__()
        self.proj = nn.Linear(hidden_size, text_size)
        self.blank = nn.Linear(hidden_size, 1)

    def forward(self, frames: torch.Tensor) -> "CtcScores":
        """
        Args:
            frames (`torch.Tensor` of shape `(num_frames, hidden_size)`): Packed frames.
        """
        return CtcScores(self.proj(frames), self.blank(frames))


@dataclass
class CtcScores:
    """
    Scores of frames before the product with the token embeddings, which has as many columns as the vocabulary.

    Attributes:
        queries (`torch.Tensor` of shape `(num_frames, text_size)`): What the token embeddings are multiplied by.
        blank (`torch.Tensor` of shape `(num_frames, 1)`): Scores of the blank.
    """

    queries: torch.Tensor
    blank: torch.Tensor

    def logits(self, token_embeddings: torch.Tensor) -> torch.Tensor:
        """
        Scores of shape `(num_frames, vocab_size + 1)`, float32 or wider. The blank is the last.

        Args:
            token_embeddings (`torch.Tensor` of shape `(vocab_size, text_size)`): Input embeddings of the language model.
        """
        queries = self.queries.to(token_embeddings)
        logits = F.linear(queries, token_embeddings)
        logits = torch.cat([logits, self.blank.to(logits)], dim=-1)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    @torch.no_grad()
    def labels(self, token_embeddings: torch.Tensor) -> torch.Tensor:
        """The label with the highest score, for each frame, of shape `(num_frames,)`. It needs little memory."""
        pieces = zip(self.queries.split(FRAMES_AT_ONCE), self.blank.split(FRAMES_AT_ONCE), strict=True)
        labels = [CtcScores(*piece).logits(token_embeddings).argmax(-1) for piece in pieces]
        return torch.cat(labels).to(self.queries.device)


def merge_runs(
    frames: torch.Tensor, labels: torch.Tensor, lengths: torch.Tensor, blank: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Average each run of frames with the same label, and leave out the runs of blanks (CTC compression, arXiv 2102.01578, section
    3, with the blanks removed as in arXiv 2307.03917): `z_i = mean(h_t for t in run i)`.

    Args:
        frames (`torch.Tensor` of shape `(sum(lengths), hidden_size)`): Packed frames.
        labels (`torch.LongTensor` of shape `(sum(lengths),)`): Their labels.
        lengths (`torch.LongTensor` of shape `(num_recordings,)`): Frames of each recording.
        blank (`int`): Label of the blank.

    Returns:
        `tuple(torch.Tensor)`: Packed means of shape `(num_runs, hidden_size)`, in the dtype of `frames`, and runs of each
        recording. A recording of blanks has none.
    """
    is_start = torch.ones_like(labels, dtype=torch.bool)
    is_start[1:] = labels[1:] != labels[:-1]
    firsts = lengths.cumsum(0) - lengths
    # The first frame of a recording does not continue the one before it.
    is_start[firsts[lengths > 0]] = True
    is_kept = labels != blank
    starts = (is_kept.cumsum(0) - 1)[is_start & is_kept]
    wide = frames.to(torch.promote_types(frames.dtype, torch.float32))
    means = F.embedding_bag(is_kept.nonzero().flatten(), wide, starts, mode="mean")
    recording = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    num_runs = torch.bincount(recording[is_start & is_kept], minlength=len(lengths))
    return means.to(frames.dtype), num_runs


def collapse_labels(labels: torch.Tensor, blank: int) -> list[torch.Tensor]:
    """
    Tokens of the greedy CTC transcripts: labels without repetitions and blanks (Graves et al., 2006, "Connectionist Temporal
    Classification", section 3.1).

    Args:
        labels (`torch.LongTensor` of shape `(num_recordings, num_frames)`): Labels of frames, -100 in padding.
        blank (`int`): Label of the blank.

    Returns:
        `list[torch.LongTensor]`: The tokens of each recording.
    """
    tokens = []
    for row in labels:
        runs = row[row != -100].unique_consecutive()
        tokens.append(runs[runs != blank])
    return tokens


def ctc_loss(
    logits: torch.Tensor, lengths: torch.Tensor, tokens: torch.Tensor, target_lengths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Sum of `-log p(transcript | frames)` over recordings, with the last score as that of the blank.

    A recording whose transcript has more tokens than frames can be aligned with (each token takes a frame, and the blank between
    two equal tokens one more) has no alignment. It adds nothing, and it is counted.

    Args:
        logits (`torch.Tensor` of shape `(sum(lengths), vocab_size + 1)`): Packed scores of frames.
        lengths (`torch.LongTensor` of shape `(num_recordings,)`): Frames of each recording.
        tokens (`torch.LongTensor` of shape `(sum(target_lengths),)`): Packed tokens of the transcripts, where they are known.
        target_lengths (`torch.LongTensor` of shape `(num_recordings,)`): Tokens of each transcript; negative where they are not
            known. Such recordings add nothing.

    Returns:
        `tuple(torch.Tensor)`: The sum, and the number of recordings without an alignment, both scalars.
    """
    target_lengths, tokens = target_lengths.to(logits.device), tokens.to(logits.device)
    lengths = lengths.to(logits.device)
    is_known = target_lengths >= 0
    targets = target_lengths.clamp(min=0)
    recording = torch.arange(len(targets), device=targets.device).repeat_interleave(targets)
    is_repeated = (tokens[1:] == tokens[:-1]) & (recording[1:] == recording[:-1])
    needed = targets + torch.bincount(recording[1:][is_repeated], minlength=len(targets))
    is_possible = is_known & (needed <= lengths)
    rows = [
        row for row, possible in zip(logits.split(lengths.tolist()), is_possible.tolist(), strict=True) if possible
    ]
    num_impossible = (is_known & ~is_possible).sum()
    if not rows:
        return 0.0 * logits.sum(), num_impossible
    log_probs = pad_sequence([row.log_softmax(-1) for row in rows])
    loss = F.ctc_loss(
        log_probs,
        tokens[is_possible[recording]],
        lengths[is_possible],
        targets[is_possible],
        blank=logits.shape[-1] - 1,
        reduction="sum",
    )
    return loss, num_impossible


__all__ = ["CtcHead", "CtcScores", "collapse_labels", "ctc_loss", "merge_runs"]
