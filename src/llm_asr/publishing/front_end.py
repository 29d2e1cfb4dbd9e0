"""The front end of a serving engine: recordings and prompts in, prompt embeddings for the language model out."""

from dataclasses import dataclass

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModel, AutoProcessor

from ..modeling.configuration_llm_asr import LlmAsrConfig
from ..modeling.decoding_guards import length_limits
from ..modeling.modeling_llm_asr import LlmAsrModel
from ..processing.processing_llm_asr import LlmAsrProcessor


@strict
class LlmAsrFrontEndConfig(LlmAsrConfig):
    r"""
    Configuration of [`LlmAsrFrontEnd`]: that of its model, and the generation settings that depend on the recording.

    Args:
        max_new_tokens_per_second (`float`, *optional*):
            As in the `generation_config` of the model: tokens that a second of a recording may have; unlimited if absent.
        max_new_tokens (`int`, *optional*):
            Likewise: tokens that a recording may have at most.
        kwargs:
            See [`LlmAsrConfig`].
    """

    # Another one than the model's: loaded as a whole model, it would be given a random language model.
    model_type = "llm_asr_front_end"

    max_new_tokens_per_second: float | int | None = None
    max_new_tokens: int | None = None


@dataclass
class PromptEmbeds:
    """
    What a language model continues to transcribe one recording.

    Attributes:
        inputs_embeds (`torch.Tensor` of shape `(prompt_length, text_hidden_size)`): The prompt's tokens and, in the place
            of the audio token, the recording; without padding, in a storage of its own, in the precision of the front
            end. Cast it to that of the language model where they differ.
        max_new_tokens (`int`, *optional*): Tokens that the transcript may have, as in `generate`; unlimited if absent.
        alphas (`torch.FloatTensor` of shape `(num_projector_frames,)`, *optional*): CIF weights, which
            [`LlmAsrProcessor.decode`] reads the times of words off; zero in padding.
    """

    inputs_embeds: torch.Tensor
    max_new_tokens: int | None
    alphas: torch.Tensor | None


class LlmAsrFrontEnd(LlmAsrModel):
    """
    All of [`LlmAsrModel`] but the layers of its language model.

    It keeps the whole input embedding rather than the rows of the usual prompts, because a context (`prompt`) may hold any
    token, and an engine that is given embeddings looks up none. [`export_for_serving`] writes it.

    Example:

    ```python
    >>> from llm_asr import LlmAsrProcessor
    >>> from llm_asr.publishing.front_end import LlmAsrFrontEnd

    >>> processor = LlmAsrProcessor.from_pretrained("exported/front_end")
    >>> front_end = LlmAsrFrontEnd.from_pretrained("exported/front_end")
    >>> requests = front_end(**processor.apply_transcription_request(["one.wav", "two.flac"], language=["es", None]))
    >>> requests[0].inputs_embeds.shape, requests[0].max_new_tokens
    (torch.Size([21, 256]), 66)
    ```
    """

    config: LlmAsrFrontEndConfig
    config_class = LlmAsrFrontEndConfig

    def __init__(self, config: LlmAsrFrontEndConfig):
        super().__init__(config)
        _remove_all_but(self.language_model, self.get_input_embeddings())

    @torch.no_grad()
    def forward(
        self,
        input_ids: torch.LongTensor,
        input_features: torch.FloatTensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        audio_hidden_states: torch.FloatTensor | None = None,
        audio_hidden_states_mask: torch.Tensor | None = None,
    ) -> list[PromptEmbeds]:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
                Prompts with one audio token each, padded on either side.
            input_features, input_features_mask, attention_mask, audio_hidden_states, audio_hidden_states_mask:
                See [`LlmAsrForConditionalGeneration.forward`].

        Returns:
            `list[PromptEmbeds]`: One for each row.

        Raises:
            `ValueError`: If a row does not have one recording.
        """
        if ((input_ids == self.config.audio_token_id).sum(-1) != 1).any():
            raise ValueError(
                "`input_ids` must have one audio token in every row; make them with "
                "`processor.apply_transcription_request`."
            )
        merged_inputs, audio_outputs = self.merge_audio_and_text(
            input_ids=input_ids,
            attention_mask=attention_mask,
            input_features=input_features,
            input_features_mask=input_features_mask,
            audio_hidden_states=audio_hidden_states,
            audio_hidden_states_mask=audio_hidden_states_mask,
        )
        config, num_rows = self.config, len(input_ids)
        limits = [config.max_new_tokens] * num_rows
        if config.max_new_tokens_per_second is not None:
            limits = length_limits(
                audio_outputs.num_frames,
                config.audio_frame_rate,
                config.max_new_tokens_per_second,
                config.max_new_tokens,
            ).tolist()
        alphas = [None] * num_rows if audio_outputs.alphas is None else [row.clone() for row in audio_outputs.alphas]
        embeds = [
            row[mask.bool()]
            for row, mask in zip(merged_inputs.inputs_embeds, merged_inputs.attention_mask, strict=True)
        ]
        return [PromptEmbeds(*parts) for parts in zip(embeds, limits, alphas, strict=True)]


def _remove_all_but(module: nn.Module, kept: nn.Module) -> None:
    """Remove the submodules that do not hold `kept`."""
    for name, child in list(module.named_children()):
        if child is kept:
            continue
        if any(part is kept for part in child.modules()):
            _remove_all_but(child, kept)
        else:
            delattr(module, name)


AutoConfig.register("llm_asr_front_end", LlmAsrFrontEndConfig)
AutoModel.register(LlmAsrFrontEndConfig, LlmAsrFrontEnd)
AutoProcessor.register(LlmAsrFrontEndConfig, LlmAsrProcessor)

__all__ = ["LlmAsrFrontEnd", "LlmAsrFrontEndConfig", "PromptEmbeds"]
