"""Encodes and projects recordings that arrive in blocks."""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from .outputs_llm_asr import LlmAsrAudioOutput
from .projector_base import ProjectorStream
from .speech_encoders import find_speech_encoder


if TYPE_CHECKING:
    from .modeling_llm_asr import LlmAsrModel


class StreamingAudioState:
    """
    What the speech encoder and the projector keep of one stream. Its size is bounded by the left context.

    Args:
        model ([`LlmAsrModel`]): The model, with `encoder_attention="chunked"`, in eval mode.

    Raises:
        `ValueError`: If the model cannot encode streams.
    """

    def __init__(self, model: "LlmAsrModel"):
        config = model.config
        chunks = config.attention_chunks
        if chunks is None:
            raise ValueError(
                "`encoder_attention` of the model is 'full', so that every frame needs the whole recording; use a checkpoint that "
                "was trained with `encoder_attention='chunked'`."
            )
        if config.projector_config.uses_experts and config.projector_config.routing_level == "utterance":
            raise ValueError(
                "`routing_level='utterance'` chooses experts by the whole recording, which a stream does not have; train with "
                "`routing_level='frame'`."
            )
        if model.training:
            raise ValueError("The model is in training mode, in which results are random; call `model.eval()`.")
        self.encoder: Any = find_speech_encoder(config.audio_config).open_stream(model.audio_tower, chunks)
        self.projector: ProjectorStream = model.projector.open_stream()
        self.is_finished = False


class LlmAsrStreamingMixin:
    """Adds streams of audio to [`LlmAsrModel`]."""

    def open_audio_stream(self: Any) -> StreamingAudioState:
        """
        What `stream_audio_features` keeps of one stream.

        Raises:
            `ValueError`: If the model cannot encode streams.
        """
        return StreamingAudioState(self)

    @torch.no_grad()
    def stream_audio_features(
        self: Any, states: list[StreamingAudioState], input_features: list[torch.Tensor], is_last: list[bool]
    ) -> list[LlmAsrAudioOutput]:
        """
        Encode and project the next features of several streams. Chunks of different streams are one batch of the encoder, and
        their embeddings one of the projector's layers.

        Over all calls, the outputs of a stream joined by [`join_audio_outputs`] are what `get_audio_features` gives for the
        whole.

        Args:
            states (`list[StreamingAudioState]`): One from `open_audio_stream` for each stream.
            input_features (`list[torch.Tensor]`): Features of shape `(num_mel_bins, num_mel_frames)`, for each stream. There
                may be none.
            is_last (`list[bool]`): Whether they are the last of their stream.

        Returns:
            `list[LlmAsrAudioOutput]`: For each stream, what is new, as of one recording: `last_hidden_state`, `pooler_output`,
            `audio_lengths`, `num_frames` and, with CIF, `alphas` and `fire_times` in seconds from the start of the stream.

        Raises:
            `ValueError`: If a stream is finished, or longer than the encoder takes. Nothing has been added then.
        """
        if any(state.is_finished for state in states):
            raise ValueError("The stream is finished and takes no further features; open another one.")
        family = find_speech_encoder(self.config.audio_config)
        encoders = [state.encoder for state in states]
        hidden_states = family.encode_stream(self.audio_tower, encoders, input_features, is_last)
        pieces, outputs = [], []
        for state, hidden, last in zip(states, hidden_states, is_last, strict=True):
            reduced = state.projector.reduce(hidden, last)
            output = LlmAsrAudioOutput(
                last_hidden_state=hidden[None], num_frames=torch.tensor([len(hidden)], device=hidden.device)
            )
            if reduced.alphas is not None:
                output["alphas"], output["fire_times"] = reduced.alphas, reduced.fire_times
            state.is_finished = last
            pieces.append(reduced.frames)
            outputs.append(output)
        lengths = torch.tensor([len(piece) for piece in pieces], device=pieces[0].device)
        embeds = self.projector.project(torch.cat(pieces), lengths)[0].split(lengths.tolist())
        for row, output in enumerate(outputs):
            output["pooler_output"], output["audio_lengths"] = embeds[row], lengths[row : row + 1]
        return outputs


def join_audio_outputs(pieces: list[LlmAsrAudioOutput]) -> LlmAsrAudioOutput:
    """
    Join what `stream_audio_features` gave for one stream, in order, to what `get_audio_features` gives for one recording.

    Args:
        pieces (`list[LlmAsrAudioOutput]`): At least one.
    """
    joined = LlmAsrAudioOutput()
    for name, dim in (("last_hidden_state", 1), ("pooler_output", 0), ("alphas", 1), ("fire_times", 0)):
        if pieces[0].get(name) is not None:
            joined[name] = torch.cat([piece[name] for piece in pieces], dim)
    for name in ("audio_lengths", "num_frames"):
        joined[name] = torch.stack([piece[name] for piece in pieces]).sum(0)
    return joined


def batch_audio_outputs(rows: list[LlmAsrAudioOutput]) -> LlmAsrAudioOutput:
    """
    Put outputs of several recordings into one batch, for `generate(audio_outputs=...)`. Shorter rows of `last_hidden_state` and
    `alphas` are padded with zeros.

    Args:
        rows (`list[LlmAsrAudioOutput]`): At least one, such as from [`join_audio_outputs`].
    """
    batch = LlmAsrAudioOutput()
    for name in ("pooler_output", "fire_times", "audio_lengths", "num_frames"):
        if rows[0].get(name) is not None:
            batch[name] = torch.cat([row[name] for row in rows])
    for name in ("last_hidden_state", "alphas"):
        if rows[0].get(name) is not None:
            longest = max(row[name].shape[1] for row in rows)
            batch[name] = torch.cat([_pad_time(row[name], longest) for row in rows])
    return batch


def _pad_time(values: torch.Tensor, length: int) -> torch.Tensor:
    padding = (0, 0) * (values.ndim - 2) + (0, length - values.shape[1])
    return F.pad(values, padding)


__all__ = ["LlmAsrStreamingMixin", "StreamingAudioState", "batch_audio_outputs", "join_audio_outputs"]
