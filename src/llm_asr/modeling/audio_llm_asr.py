"""From features of recordings to embeddings of the language model."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .batch_numbers import BatchNumbers, FrameNumbers, read_frame_numbers, read_together
from .ctc import collapse_labels
from .model_interface import ModelInterface
from .outputs_llm_asr import LlmAsrAudioOutput
from .part_dtypes import HALF_DTYPES
from .speech_encoders import count_encoded_frames, feature_time_dim, record_outputs, run_audio_tower


def is_frozen(module: nn.Module) -> bool:
    """Whether no parameter of `module` requires a gradient."""
    return not any(parameter.requires_grad for parameter in module.parameters())


class LlmAsrAudioMixin(ModelInterface):
    """Adds the audio features to [`LlmAsrModel`]."""

    audio_tower: Any
    projector: Any

    def get_audio_hidden_states(
        self,
        input_features: torch.Tensor,
        input_features_mask: torch.Tensor | None = None,
        frame_numbers: FrameNumbers | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Run the speech encoder alone, for instance to cache its output.

        Args:
            input_features (`torch.FloatTensor`):
                Features as the encoder's feature extractor makes them, or waveforms of shape `(num_recordings, num_samples)`.
            input_features_mask (`torch.Tensor` of shape `(num_recordings, num_feature_frames)`, *optional*):
                Non-zero for real feature frames, or samples; all are real if absent.
            frame_numbers ([`FrameNumbers`], *optional*):
                Of the mask; read from the device if absent.

        Returns:
            `tuple(torch.Tensor)`: Hidden states of shape `(num_recordings, num_frames, audio_hidden_size)` and a boolean
            mask of shape `(num_recordings, num_frames)`.

        Raises:
            `ValueError`: If a recording has no real frame, or more than the encoder takes.
        """
        if input_features_mask is None:
            shape = (input_features.shape[0], input_features.shape[feature_time_dim(self.config.audio_config)])
            input_features_mask = torch.ones(shape, dtype=torch.long, device=input_features.device)
            frame_numbers = FrameNumbers([shape[1]] * shape[0], shape[1])
        if frame_numbers is None:
            frame_numbers = read_frame_numbers(input_features_mask)
        empty = [row for row, length in enumerate(frame_numbers.lengths) if not length]
        if empty:
            raise ValueError(f"`input_features_mask` leaves no frame to recording(s) {empty}; remove them.")
        with torch.no_grad() if is_frozen(self.audio_tower) else nullcontext(), self._audio_autocast(input_features):
            return run_audio_tower(
                self.audio_tower,
                input_features.to(self.audio_tower.dtype),
                input_features_mask,
                frame_numbers,
                self.config.encoder_padding,
                self.config.draw_attention_chunks() if self.training else self.config.attention_chunks,
                **kwargs,
            )

    def _audio_autocast(self, input_features: torch.Tensor) -> AbstractContextManager:
        """
        Run a frozen encoder in half precision as it is: autocast to the other half precision gains nothing, and on CPUs
        PyTorch's layer normalisation refuses the mix.
        """
        if is_frozen(self.audio_tower) and self.audio_tower.dtype in HALF_DTYPES:
            return torch.autocast(input_features.device.type, enabled=False)
        return nullcontext()

    @can_return_tuple
    def get_audio_features(
        self,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        audio_hidden_states: torch.Tensor | None = None,
        audio_hidden_states_mask: torch.Tensor | None = None,
        target_lengths: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LlmAsrAudioOutput:
        """
        Encode and project recordings.

        Args:
            input_features, input_features_mask (`torch.Tensor`, *optional*):
                See [`LlmAsrModel.get_audio_hidden_states`].
            audio_hidden_states (`torch.FloatTensor` of shape `(num_recordings, num_frames, audio_hidden_size)`, *optional*):
                Encoder output, in place of `input_features`.
            audio_hidden_states_mask (`torch.Tensor` of shape `(num_recordings, num_frames)`, *optional*):
                Non-zero for its real frames; all are real if absent.
            target_lengths (`torch.LongTensor` of shape `(num_recordings,)`, *optional*):
                Number of embeddings that CIF is to fire for each recording.

        Returns:
            [`LlmAsrAudioOutput`]
        """
        outputs, _ = self.encode_and_project(
            input_features,
            input_features_mask,
            audio_hidden_states,
            audio_hidden_states_mask,
            target_lengths,
            **kwargs,
        )
        return outputs

    def encode_and_project(
        self,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        audio_hidden_states: torch.Tensor | None = None,
        audio_hidden_states_mask: torch.Tensor | None = None,
        target_lengths: torch.Tensor | None = None,
        numbers: BatchNumbers | None = None,
        **kwargs,
    ) -> tuple[LlmAsrAudioOutput, list[int]]:
        """
        Do the work of `get_audio_features`.

        Args:
            numbers ([`BatchNumbers`], *optional*): Of the batch. What is absent is read from the device.

        Returns:
            `tuple(LlmAsrAudioOutput, list[int])`: The outputs, and `audio_lengths` on the host.
        """
        recorded: dict[str, Any] = {}
        if input_features is not None and audio_hidden_states is None:
            names = ("output_hidden_states", "output_attentions")
            is_recorded = any(kwargs.get(name, getattr(self.config.audio_config, name)) for name in names)
            recorder = record_outputs(self.audio_tower) if is_recorded else None
            with recorder or nullcontext(recorded) as recorded:
                audio_hidden_states, mask = self.get_audio_hidden_states(
                    input_features, input_features_mask, None if numbers is None else numbers.features, **kwargs
                )
        elif audio_hidden_states is not None and input_features is None:
            if audio_hidden_states_mask is None:
                mask = torch.ones(audio_hidden_states.shape[:2], dtype=torch.bool, device=audio_hidden_states.device)
            else:
                mask = audio_hidden_states_mask.bool()
        else:
            raise ValueError("Pass either `input_features` or `audio_hidden_states`, and not both.")
        # Only a CTC head reads the embeddings.
        token_embeddings = self.get_token_embeddings() if self.config.projector_config.uses_ctc else None
        projected = self.projector(
            audio_hidden_states, mask, target_lengths, token_embeddings, **self._known_on_host(numbers)
        )
        outputs = LlmAsrAudioOutput(
            last_hidden_state=audio_hidden_states,
            pooler_output=projected.embeds,
            audio_lengths=projected.lengths,
            num_frames=mask.sum(-1),
            router_logits=projected.router_logits,
            selected_experts=projected.selected_experts,
            alphas=projected.alphas,
            quantities=projected.quantities,
            fire_times=projected.fire_times,
            ctc_scores=projected.ctc_scores,
            ctc_labels=projected.ctc_labels,
            **recorded,
        )
        host_lengths = projected.host_lengths
        if host_lengths is None:
            host_lengths = read_together(lengths=projected.lengths)["lengths"]
        return outputs, host_lengths

    def _known_on_host(self, numbers: BatchNumbers | None) -> dict[str, Any]:
        """What the projector need not read from the device."""
        if numbers is None:
            return {}
        if self.config.projector_config.uses_cif:
            targets = numbers.target_lengths
            return {"host_targets": targets} if targets and min(targets) >= 0 else {}
        frames = numbers.frames
        if frames is None and numbers.features is not None:
            frames = count_encoded_frames(self.config.audio_config, numbers.features)
        can_count = self.projector.counts_frames_on_host
        return {"frame_lengths": frames.lengths} if can_count and frames is not None and frames.comes_first else {}

    def get_token_embeddings(self) -> torch.Tensor:
        """
        Input embeddings of the language model, of shape `(vocab_size, text_hidden_size)`, off which a CTC head reads tokens.

        Raises:
            `ValueError`: If they are offloaded.
        """
        embeddings: Any = self.get_input_embeddings()
        if embeddings.weight.device.type == "meta":
            raise ValueError(
                "The input embeddings are offloaded, and a CTC head reads all of them at once; name a device for the embeddings in "
                "`device_map`."
            )
        return embeddings.weight

    def transcribe_ctc(self, *args, **kwargs) -> list[torch.Tensor]:
        """
        Transcribe recordings by the CTC head alone, without the language model's layers: the best label of each frame, without
        repetitions and blanks. The model needs a projector of type `"ctc"` or `"moe_ctc"`.

        Args:
            args, kwargs: See [`LlmAsrModel.get_audio_features`].

        Returns:
            `list[torch.LongTensor]`: The tokens of each recording, for `processor.decode` or, of one recording, for
            `generate(draft_ids=...)`.

        Raises:
            `ValueError`: If the model has no CTC head.

        Example:

        ```python
        >>> inputs = processor.apply_transcription_request("recording.wav")
        >>> tokens = model.transcribe_ctc(inputs["input_features"], inputs["input_features_mask"])
        >>> processor.decode(tokens[0], skip_special_tokens=True)
        ```
        """
        if not self.config.projector_config.uses_ctc:
            raise ValueError(
                f"`transcribe_ctc` needs a CTC head, and `projector_type` is {self.config.projector_config.projector_type!r}; train a "
                "model with 'ctc' or 'moe_ctc'."
            )
        with torch.no_grad():
            audio = self.get_audio_features(*args, return_dict=True, **kwargs)
        return collapse_labels(audio.ctc_labels, blank=len(self.get_token_embeddings()))
