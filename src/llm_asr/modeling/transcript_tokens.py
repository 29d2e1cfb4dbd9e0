"""The tokens of transcripts, found in labels."""

import torch


def transcript_tokens(labels: torch.Tensor, eos_token_ids: torch.Tensor, target_lengths: torch.Tensor) -> torch.Tensor:
    """
    Pack the tokens of the transcripts: those after a named language and before the end.

    Args:
        labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`): -100 outside of answers.
        eos_token_ids (`torch.LongTensor`): Tokens that end an answer.
        target_lengths (`torch.LongTensor` of shape `(batch_size,)`): Tokens of each transcript. Negative numbers count as zero.

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
    is_text = (labels != -100) & ~torch.isin(labels, eos_token_ids)
    from_the_end = is_text.flip(-1).cumsum(-1).flip(-1)
    found = labels[is_text & (from_the_end <= target_lengths[:, None])]
    if len(found) != int(target_lengths.sum()):
        raise ValueError(
            "`labels` have fewer tokens than `target_lengths` says; `target_lengths` must count the tokens of each transcript."
        )
    return found


__all__ = ["transcript_tokens"]
