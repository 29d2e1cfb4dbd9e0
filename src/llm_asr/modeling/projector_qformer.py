"""Projectors with a fixed rate by learned queries over windows of frames."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel

from .batch_numbers import find_true, read_together
from .configuration_llm_asr import LlmAsrConfig
from .projector_base import ReducedFrames
from .projector_blocks import BlockProjector


# Of the learned queries. The Q-Former normalises them first.
QUERY_STD = 1.0


class QFormerProjector(BlockProjector):
    """
    Windows of frames → Q-Former → linear layers, or a mixture of experts (arXiv 2309.13963, section 3.2; BLIP-2, arXiv 2301.12597,
    section 3.1; Granite Speech, arXiv 2505.08699).

    A recording is cut into windows of `qformer_window_size` frames. In each window the same learned queries attend to one another
    and to the window's frames, through the layers of Transformers' `Blip2QFormerModel`, and every query gives one embedding:
    `Z_w = QFormer(queries, [h_(w W), ..., h_(w W + W - 1)])`. Windows do not see one another.

    In the last window of a recording, frames may be missing. They are masked, or they are zeros to which the queries attend, as in
    Granite Speech; see `qformer_remainder` of [`LlmAsrProjectorConfig`]. The window has as many embeddings as all others.
    """

    def __init__(self, config: LlmAsrConfig):
        super().__init__(config)
        projector_config = config.projector_config
        self.block_size = projector_config.qformer_window_size
        self.is_remainder_masked = projector_config.qformer_remainder == "mask"
        self.query = nn.Parameter(
            torch.empty(1, projector_config.qformer_num_queries, projector_config.hidden_size).normal_(std=QUERY_STD)
        )
        initializer_range = projector_config.initializer_range
        self.qformer = AutoModel.from_config(
            AutoConfig.for_model(
                "blip_2_qformer",
                hidden_size=projector_config.hidden_size,
                intermediate_size=projector_config.qformer_intermediate_size,
                num_hidden_layers=projector_config.qformer_num_hidden_layers,
                num_attention_heads=projector_config.qformer_num_attention_heads,
                cross_attention_frequency=projector_config.qformer_cross_attention_frequency,
                encoder_hidden_size=config.audio_config.hidden_size,
                hidden_act=projector_config.hidden_act,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                **({} if initializer_range is None else {"initializer_range": initializer_range}),
            )
        )
        self.add_text_layers(config)

    def reduce_frames(
        self, hidden_states, attention_mask, target_lengths=None, token_embeddings=None
    ) -> ReducedFrames:
        size, num_queries = self.block_size, self.query.shape[1]
        hidden_states = hidden_states.to(self.query.dtype)
        attention_mask = attention_mask.to(hidden_states.device)
        missing = -hidden_states.shape[1] % size
        hidden_states = hidden_states.masked_fill(~attention_mask[:, :, None], 0.0)
        windows = _cut(F.pad(hidden_states, (0, 0, 0, missing)), size)
        is_real = _cut(F.pad(attention_mask, (0, missing)), size)
        # Real frames come first, so the first frame of a window tells if it has any.
        is_window = is_real[:, :, 0]
        lengths = num_queries * is_window.sum(-1)
        host_lengths = read_together(lengths=lengths)["lengths"]
        kept = find_true(is_window, sum(host_lengths) // num_queries)
        windows, is_real = windows.flatten(0, 1)[kept], is_real.flatten(0, 1)[kept]
        if not len(windows):
            return ReducedFrames(self.query.new_zeros(0, self.query.shape[2]), lengths, host_lengths=host_lengths)
        embeds = self.qformer(
            query_embeds=self.query.expand(len(windows), -1, -1),
            encoder_hidden_states=windows,
            encoder_attention_mask=is_real if self.is_remainder_masked else None,
            return_dict=True,
        ).last_hidden_state
        return ReducedFrames(embeds.flatten(0, 1), lengths, host_lengths=host_lengths)

    def count_reduction_flops(self, frame_rate: float) -> float:
        config, window_size = self.qformer.config, self.block_size
        num_queries, size = self.query.shape[1:]
        # Per window: projections of queries and feed-forward layers, then scores and sums of attention.
        layer = num_queries * (4 * size**2 + 2 * size * config.intermediate_size) + 2 * num_queries**2 * size
        cross = 2 * num_queries * size**2 + 2 * window_size * config.encoder_hidden_size * size
        cross += 2 * num_queries * window_size * size
        num_cross = -(-config.num_hidden_layers // config.cross_attention_frequency)
        return 2 * (config.num_hidden_layers * layer + num_cross * cross) * frame_rate / window_size


def _cut(frames: torch.Tensor, size: int) -> torch.Tensor:
    """Cut the second dimension into windows of `size`."""
    return frames.reshape(len(frames), frames.shape[1] // size, size, *frames.shape[2:])


__all__ = ["QFormerProjector"]
