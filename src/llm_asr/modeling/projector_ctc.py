"""Projectors with a dynamic rate by the labels of a CTC head."""

from torch.nn.utils.rnn import pad_sequence

from .configuration_llm_asr import LlmAsrConfig
from .ctc import CtcHead, merge_runs
from .projector_base import LlmAsrProjector, ReducedFrames
from .projector_conv import ConvDownsampler


class CtcProjector(LlmAsrProjector):
    """
    Strided convolutions → frames merged by the labels of a CTC head (CTC compression, arXiv 2102.01578) → two linear layers, or a
    mixture of experts.

    The head labels each frame with a token of the language model or with the blank; see [`CtcHead`]. A run of frames with the same
    label becomes one embedding, their mean, and blanks are dropped; see [`merge_runs`]. A recording of blanks has no embedding.
    The choice of labels has no gradient: the head learns from `ctc_loss` alone.
    """

    def __init__(self, config: LlmAsrConfig):
        super().__init__(config)
        self.downsampler = ConvDownsampler(config)
        self.frame_rate = 1 / config.projector_frame_period
        self.vocab_size = config.text_config.vocab_size
        self.ctc_head = CtcHead(config.projector_config.hidden_size, config.text_config.hidden_size)
        self.add_text_layers(config)

    def reduce_frames(
        self, hidden_states, attention_mask, target_lengths=None, token_embeddings=None
    ) -> ReducedFrames:
        if token_embeddings is None:
            raise ValueError(
                "`token_embeddings` must be passed to a projector with a CTC head, which reads tokens off the language model's input "
                "embeddings."
            )
        hidden_states, attention_mask = self.downsampler(hidden_states, attention_mask)
        frames, lengths = hidden_states[attention_mask], attention_mask.sum(-1)
        scores = self.ctc_head(frames)
        labels = scores.labels(token_embeddings)
        merged, num_runs = merge_runs(frames, labels, lengths, blank=len(token_embeddings))
        return ReducedFrames(
            merged,
            num_runs,
            ctc_scores=scores,
            ctc_labels=pad_sequence(labels.split(lengths.tolist()), batch_first=True, padding_value=-100),
        )

    def count_reduction_flops(self, frame_rate: float) -> float:
        matrices = self.ctc_head.proj.weight.numel() + self.ctc_head.blank.weight.numel()
        products = matrices + self.ctc_head.proj.out_features * self.vocab_size
        return self.downsampler.count_flops(frame_rate) + 2 * products * self.frame_rate


__all__ = ["CtcProjector"]
