"""The tokens of transcripts, found in labels."""

import torch

from .batch_numbers import BatchNumbers, is_any_of, read_together, select


def transcript_tokens(
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
        target_lengths (`torch.LongTensor` of shape `(batch_size,)`): Tokens of each transcript. Negative numbers count as zero.
        numbers ([`BatchNumbers`], *optional*): Of the batch; read from the device if absent. Its translations have no tokens.

    Returns:
        `torch.LongTensor` of shape `(sum(target_lengths),)`.

    Raises:
        `ValueError`: If rows hold several recordings, or an answer has fewer tokens than its transcript.
    """
    if len(labels) != len(target_lengths):
        raise ValueError(
            f"A draft head and a CTC head learn from one recording a row, and there are {len(target_lengths)} recordings in "
            f"{len(labels)} rows; write one audio token into each row."
        )
    target_lengths = target_lengths.to(labels.device).clamp(min=0)
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
    if any(have < want for have, want in zip(found, wanted, strict=True)):
        raise ValueError(
            "`labels` have fewer tokens than `target_lengths` says; `target_lengths` must count the tokens of each transcript."
        )
    from_the_end = is_text.flip(-1).cumsum(-1).flip(-1)
    return select(labels, is_text & (from_the_end <= target_lengths[:, None]), sum(wanted))


__all__ = ["transcript_tokens"]
