"""Replacing audio tokens by the embeddings of their recordings."""

from dataclasses import dataclass

import torch

from .batch_numbers import BatchNumbers, find_true, read_batch_numbers, read_together


@dataclass
class AudioRuns:
    """
    The runs of consecutive audio tokens in a batch, in row-major order; a run stands for one recording.

    Attributes:
        mask (`torch.BoolTensor` of shape `(batch_size, sequence_length)`): True at audio tokens.
        rows (`torch.LongTensor` of shape `(num_recordings,)`): Row of each recording.
        lengths (`torch.LongTensor` of shape `(num_recordings,)`, *optional*): Tokens in each run where the prompt was
            expanded beforehand; `None` where each recording has one token that the model is to expand.
    """

    mask: torch.Tensor
    rows: torch.Tensor
    lengths: torch.Tensor | None

    def to(self, device: torch.device) -> "AudioRuns":
        """Return the runs on another device."""
        lengths = None if self.lengths is None else self.lengths.to(device)
        return AudioRuns(self.mask.to(device), self.rows.to(device), lengths)


def find_audio_runs(mask: torch.Tensor, num_recordings: int, numbers: BatchNumbers | None = None) -> AudioRuns:
    """
    Match the audio tokens of a batch to its recordings.

    Args:
        mask (`torch.BoolTensor` of shape `(batch_size, sequence_length)`): True at audio tokens.
        num_recordings (`int`): Recordings in the batch.
        numbers ([`BatchNumbers`], *optional*): Of the batch; read from the device if absent.

    Raises:
        `ValueError`: If there is neither one audio token nor one run of audio tokens for each recording.
    """
    num_tokens = int(mask.sum()) if numbers is None else sum(numbers.audio_tokens)
    if num_tokens == num_recordings:
        return AudioRuns(mask=mask, rows=find_true(mask, num_tokens) // mask.shape[1], lengths=None)
    starts = mask & ~torch.nn.functional.pad(mask, (1, 0))[:, :-1]
    run = starts.flatten().cumsum(0)[mask.flatten()] - 1
    num_runs = int(run[-1]) + 1 if num_tokens else 0
    if num_runs != num_recordings:
        raise ValueError(
            f"`input_ids` has {num_tokens} audio token(s) in {num_runs} run(s) and there are {num_recordings} "
            "recording(s); write one audio token, or one run of audio tokens, for each recording."
        )
    return AudioRuns(mask=mask, rows=starts.nonzero()[:, 0], lengths=torch.bincount(run, minlength=num_runs))


@dataclass
class MergedInputs:
    """
    A batch with audio in the place of audio tokens.

    Attributes:
        inputs_embeds (`torch.Tensor` of shape `(batch_size, merged_length, hidden_size)`): Zero in padding.
        attention_mask (`torch.LongTensor` of shape `(batch_size, merged_length)`): One for text and audio.
        positions (`torch.LongTensor` of shape `(batch_size, sequence_length)`): Where each token of `input_ids` is; of an
            audio token that grew, the last embedding of its recording. Anywhere for padding.
        is_text (`torch.BoolTensor` of shape `(batch_size, sequence_length)`): False for audio tokens and padding.
    """

    inputs_embeds: torch.Tensor
    attention_mask: torch.Tensor
    positions: torch.Tensor
    is_text: torch.Tensor

    @property
    def position_ids(self) -> torch.Tensor:
        """Positions that count real tokens only, whichever side is padded."""
        return (self.attention_mask.cumsum(-1) - 1).clamp(min=0)

    def mask_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Labels of shape `(batch_size, sequence_length)`, with -100 at audio tokens and padding."""
        return labels.masked_fill(~self.is_text.to(labels.device), -100)

    def at_tokens(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """
        Hidden states of shape `(batch_size, merged_length, hidden_size)` at the tokens of `input_ids`, so that they line up
        with labels: shape `(batch_size, sequence_length, hidden_size)`.
        """
        positions = self.positions.to(hidden_states.device)
        return hidden_states.gather(1, positions[:, :, None].expand(-1, -1, hidden_states.shape[2]))


def merge_audio(
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor,
    audio_runs: AudioRuns,
    audio_embeds: torch.Tensor,
    audio_lengths: torch.Tensor,
    padding_side: str,
    audio_counts: list[int] | None = None,
    numbers: BatchNumbers | None = None,
) -> MergedInputs:
    """
    Put packed audio embeddings in the place of audio tokens.

    Single audio tokens grow to the length of their recording, and rows are padded anew to the longest; a run that was
    expanded beforehand is filled in place and keeps the layout of `inputs_embeds`. The result is on the device of
    `inputs_embeds`, wherever the speech encoder and the projector are.

    Args:
        inputs_embeds (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`): Embedded `input_ids`.
        attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`): Non-zero for real tokens.
        audio_runs ([`AudioRuns`]): Where the audio goes.
        audio_embeds (`torch.Tensor` of shape `(sum(audio_lengths), hidden_size)`): Packed embeddings.
        audio_lengths (`torch.LongTensor` of shape `(num_recordings,)`): Embeddings of each recording.
        padding_side (`str`): `"left"` or `"right"`, for rows that are padded anew.
        audio_counts (`list[int]`, *optional*): `audio_lengths` on the host.
        numbers ([`BatchNumbers`], *optional*): Of the batch. What is absent is read from the device.

    Raises:
        `ValueError`: If a run that was expanded beforehand is not as long as its recording.
    """
    batch_size, sequence_length, hidden_size = inputs_embeds.shape
    device = inputs_embeds.device
    audio_embeds = audio_embeds.to(device=device, dtype=inputs_embeds.dtype)
    attention_mask, audio_runs, audio_lengths = (
        attention_mask.to(device),
        audio_runs.to(device),
        audio_lengths.to(device),
    )
    columns = torch.arange(sequence_length, device=device).expand(batch_size, -1)

    is_real = attention_mask.bool()
    is_text = is_real & ~audio_runs.mask
    if audio_runs.lengths is not None:
        if not torch.equal(audio_runs.lengths, audio_lengths):
            raise ValueError(
                f"`input_ids` has runs of {audio_runs.lengths.tolist()} audio tokens and the projector gives "
                f"{audio_lengths.tolist()} embeddings; write as many, or a single audio token for each recording."
            )
        merged = inputs_embeds.masked_scatter(audio_runs.mask[:, :, None], audio_embeds)
        return MergedInputs(merged, attention_mask.long(), columns, is_text)

    # How often each token appears in the merged row: padding never, text once, an audio token once for each embedding.
    repeats = is_real.long().masked_scatter(audio_runs.mask, audio_lengths)
    row_lengths = repeats.sum(-1)
    if audio_counts is None:
        audio_counts = read_together(lengths=audio_lengths)["lengths"]
    if numbers is None:
        numbers = read_batch_numbers(audio_runs.mask, attention_mask)
    counts = iter(audio_counts)
    host_lengths = [
        text_length + sum(next(counts) for _ in range(num_recordings))
        for text_length, num_recordings in zip(numbers.text_lengths, numbers.audio_tokens, strict=True)
    ]
    merged_length = max(host_lengths)
    token = torch.repeat_interleave(repeats.flatten(), output_size=sum(host_lengths))
    row = token // sequence_length
    position = torch.arange(token.numel(), device=device) - (row_lengths.cumsum(0) - row_lengths)[row]
    if padding_side == "left":
        position = position + (merged_length - row_lengths)[row]

    is_audio = audio_runs.mask.flatten()[token]
    packed = inputs_embeds.reshape(-1, hidden_size)[token].masked_scatter(is_audio[:, None], audio_embeds)
    merged = inputs_embeds.new_zeros(batch_size, merged_length, hidden_size).index_put((row, position), packed)
    merged_mask = attention_mask.new_zeros(batch_size, merged_length, dtype=torch.long)
    # If the mask hides an audio token, hide its embeddings too.
    merged_mask[row, position] = is_real.flatten()[token].long()
    ends = repeats.cumsum(-1)
    if padding_side == "left":
        ends = ends + (merged_length - row_lengths)[:, None]
    return MergedInputs(merged, merged_mask, (ends - 1).clamp(min=0), is_text)
