"""Whisper's encoder for streams: attention in chunks with cached keys and values."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from .chunked_attention import AttentionChunks, as_scores, check_attention_implementation
from .streaming_convolution import StreamingConvolution
from .transformers_versions import CACHE_NAME


if TYPE_CHECKING:
    from .whisper_encoder import LlmAsrWhisperEncoder


class StreamingEncoderState:
    """
    What Whisper's encoder keeps of one stream: the ends of its two convolutions, the frames that wait for their chunk and, for
    each layer, the keys and values of the frames before it.

    Args:
        tower ([`LlmAsrWhisperEncoder`]): The encoder.
        chunks ([`AttentionChunks`]): Its chunks.

    Attributes:
        num_frames (`int`): Frames that were encoded.
    """

    def __init__(self, tower: "LlmAsrWhisperEncoder", chunks: AttentionChunks):
        check_attention_implementation(tower.config._attn_implementation)
        self.chunks = chunks
        self.num_frames = 0
        config: Any = tower.config
        self._convs = (StreamingConvolution(tower.conv1), StreamingConvolution(tower.conv2))
        self._mel = torch.zeros(0, config.num_mel_bins, dtype=tower.dtype, device=tower.device)
        self._num_mel = 0
        self._max_mel = 2 * tower.max_source_positions
        # After the convolutions and with positions.
        self._inputs = torch.zeros(0, config.d_model, dtype=tower.dtype, device=tower.device)
        num_heads = config.encoder_attention_heads
        shape = (num_heads, 0, config.d_model // num_heads)
        self._keys = [self._inputs.new_zeros(shape) for _ in tower.layers]
        self._values = list(self._keys)

    def check(self, mel: torch.Tensor) -> None:
        """Raise a `ValueError` if mel frames of shape `(num_mel_bins, num_mel_frames)` are more than the encoder takes."""
        if self._num_mel + mel.shape[1] > self._max_mel:
            raise ValueError(
                f"The stream has {self._num_mel + mel.shape[1]} mel frames and the speech encoder takes {self._max_mel}; begin "
                "another one, at best in a pause."
            )

    def add(self, mel: torch.Tensor) -> None:
        """Add mel frames of shape `(num_mel_bins, num_mel_frames)`."""
        self._mel = torch.cat([self._mel, mel.T.to(self._mel)])
        self._num_mel += mel.shape[1]

    def next_chunk(self, tower: "LlmAsrWhisperEncoder", is_last: bool) -> tuple[torch.Tensor, int] | None:
        """
        The next chunk, if its frames and those of its look-ahead are known.

        Returns:
            `tuple(torch.Tensor, int)`: Inputs of shape `(num_frames + num_ahead, d_model)`, and `num_frames`.
        """
        first, second = self._convs
        num_known = second.count_outputs(first.count_outputs(self._num_mel, is_last), is_last) - self.num_frames
        size, lookahead = self.chunks.size, self.chunks.lookahead
        if num_known < size + lookahead and not (is_last and num_known):
            return None
        if num_known > len(self._inputs):
            # Only now, because the convolutions of a few frames are slow.
            position = second.num_outputs
            hidden = nn.functional.gelu(first.push(self._mel, is_last))
            hidden = nn.functional.gelu(second.push(hidden, is_last))
            self._mel = self._mel[:0]
            positions = torch.arange(position, position + len(hidden), device=hidden.device)
            hidden = hidden + tower.embed_positions(positions)
            self._inputs = torch.cat([self._inputs, hidden])
        num_frames = min(size, num_known)
        return self._inputs[: num_frames + lookahead], num_frames

    def take(self, keys: list[torch.Tensor], values: list[torch.Tensor], num_frames: int) -> None:
        """Go on to the next chunk, with the keys and values of each layer of shape `(num_heads, num_keys, head_dim)`."""
        self._inputs = self._inputs[num_frames:]
        self.num_frames += num_frames
        first = [max(0, one.shape[1] - self.chunks.left) for one in keys]
        # Copies, or all that they are cut from stays in memory.
        self._keys = [one[:, start:].clone() for one, start in zip(keys, first, strict=True)]
        self._values = [one[:, start:].clone() for one, start in zip(values, first, strict=True)]

    def left_context(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a layer, of shape `(num_heads, num_keys, head_dim)`."""
        return self._keys[layer], self._values[layer]


class LeftContext:
    """
    Stands in for a [`~transformers.cache_utils.Cache`] in one layer: puts the cached frames before those of a chunk, and keeps
    both.

    Args:
        keys, values (`torch.Tensor` of shape `(batch_size, num_heads, num_cached, head_dim)`): Cached frames.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor):
        self.keys, self.values = keys, values

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        """See [`~transformers.cache_utils.Cache.update`]."""
        self.keys = torch.cat([self.keys, keys], dim=2)
        self.values = torch.cat([self.values, values], dim=2)
        return self.keys, self.values


@torch.no_grad()
def encode_stream(
    tower: "LlmAsrWhisperEncoder", states: list[StreamingEncoderState], mel: list[torch.Tensor], is_last: list[bool]
) -> list[torch.Tensor]:
    """
    Encode the next mel frames of several streams. Chunks of different streams are one batch.

    Args:
        tower ([`LlmAsrWhisperEncoder`]): The encoder.
        states (`list[StreamingEncoderState]`): One for each stream.
        mel (`list[torch.Tensor]`): Frames of shape `(num_mel_bins, num_mel_frames)`, for each stream. There may be none.
        is_last (`list[bool]`): Whether they are the last of their stream.

    Returns:
        `list[torch.Tensor]`: For each stream, the hidden states of shape `(num_frames, d_model)` of the chunks that are complete
        now. Over all calls they are what the encoder gives for the whole, with the same chunks.

    Raises:
        `ValueError`: If a stream has more frames than the encoder takes. Nothing has been added then.
    """
    for state, one in zip(states, mel, strict=True):
        state.check(one)
    for state, one in zip(states, mel, strict=True):
        state.add(one)
    encoded: list[list[torch.Tensor]] = [[] for _ in states]
    while due := [
        (row, *chunk)
        for row, (state, last) in enumerate(zip(states, is_last, strict=True))
        if (chunk := state.next_chunk(tower, last)) is not None
    ]:
        outputs = _encode_chunks(tower, [states[row] for row, _, _ in due], [one for _, one, _ in due])
        for (row, _, num_frames), (hidden, keys, values) in zip(due, outputs, strict=True):
            num_left = states[row].left_context(0)[0].shape[1]
            end = num_left + num_frames
            states[row].take([one[:, :end] for one in keys], [one[:, :end] for one in values], num_frames)
            encoded[row].append(hidden[:num_frames])
    none = torch.zeros(0, tower.config.d_model, dtype=tower.dtype, device=tower.device)
    return [torch.cat([none, *pieces]) for pieces in encoded]


def _encode_chunks(
    tower: "LlmAsrWhisperEncoder", states: list[StreamingEncoderState], inputs: list[torch.Tensor]
) -> list[tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]]:
    """Hidden states of each chunk, and the keys and values of each layer: of the left context, then of the chunk."""
    lengths = torch.tensor([len(one) for one in inputs], device=tower.device)
    num_cached = [state.left_context(0)[0].shape[1] for state in states]
    longest = max(num_cached)
    hidden_states = pad_sequence(inputs, batch_first=True)
    num_frames = hidden_states.shape[1]
    # The left context is padded on the left.
    cached = (
        torch.arange(longest, device=tower.device) >= longest - torch.tensor(num_cached, device=tower.device)[:, None]
    )
    is_real = torch.cat([cached, torch.arange(num_frames, device=tower.device) < lengths[:, None]], dim=1)
    mask = as_scores(is_real[:, None, :].expand(-1, num_frames, -1), hidden_states.dtype)
    keys, values = [], []
    for index, layer in enumerate(tower.layers):
        context = LeftContext(
            *(
                torch.stack([nn.functional.pad(one, (0, 0, longest - one.shape[1], 0)) for one in rows])
                for rows in zip(*(state.left_context(index) for state in states), strict=True)
            )
        )
        hidden_states = layer(hidden_states, mask, **{CACHE_NAME: context})
        keys.append(context.keys)
        values.append(context.values)
    hidden_states = tower.layer_norm(hidden_states)
    return [
        (
            hidden_states[row],
            [one[row, :, longest - cut :] for one in keys],
            [one[row, :, longest - cut :] for one in values],
        )
        for row, cut in enumerate(num_cached)
    ]


__all__ = ["StreamingEncoderState", "encode_stream"]
