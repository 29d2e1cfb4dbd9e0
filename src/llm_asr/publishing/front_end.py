"""The front end for a serving engine. It turns recordings and prompts into prompt embeddings for the language model."""

from dataclasses import dataclass

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModel, AutoProcessor

from ..modeling.configuration_llm_asr import LlmAsrConfig
from ..modeling.decoding_guards import length_limits
from ..modeling.draft_head import DraftHead
from ..modeling.generation_settings import check_tokens_per_second
from ..modeling.modeling_llm_asr import LlmAsrModel
from ..modeling.part_dtypes import default_dtype
from ..processing.processing_llm_asr import LlmAsrProcessor


@strict
class LlmAsrFrontEndConfig(LlmAsrConfig):
    r"""
    Configuration of [`LlmAsrFrontEnd`]. It extends the model's configuration by the generation settings that depend on the
    recording.

    Args:
        max_new_tokens_per_second (`float`, *optional*):
            Largest number of tokens per second of a recording, from the model's `generation_config`. `None` sets no limit.
        max_new_tokens (`int`, *optional*):
            Largest number of tokens per recording, from the model's `generation_config`.
        kwargs:
            See [`LlmAsrConfig`].
    """

    # A type of its own: with the model's type, `AutoModel` would load a whole model with a random language model.
    model_type = "llm_asr_front_end"

    max_new_tokens_per_second: float | int | None = None
    max_new_tokens: int | None = None

    def __post_init__(self, **kwargs):
        check_tokens_per_second(self.max_new_tokens_per_second)
        super().__post_init__(**kwargs)


@dataclass
class PromptEmbeds:
    """
    The prompt embeddings of one recording, which the language model continues with the transcript.

    Attributes:
        inputs_embeds (`torch.Tensor` of shape `(prompt_length, text_hidden_size)`): Embeddings of the prompt's tokens, with
            the recording's embeddings in place of the audio token. The tensor has no padding, its own storage, and the dtype
            of the front end. Cast it if the language model has another dtype.
        max_new_tokens (`int`, *optional*): Largest number of tokens of the transcript, as in `generate`. `None` sets no limit.
        alphas (`torch.FloatTensor` of shape `(num_projector_frames,)`, *optional*): CIF weights, zero in padding.
            [`LlmAsrProcessor.decode`] computes the times of words from them.
        draft_states (`torch.Tensor` of shape `(num_audio_embeddings, text_hidden_size)`, *optional*): Hidden states of models
            with a draft head. The language model's head reads the tokens of a draft off them.
    """

    inputs_embeds: torch.Tensor
    max_new_tokens: int | None
    alphas: torch.Tensor | None
    draft_states: torch.Tensor | None = None


class LlmAsrFrontEnd(LlmAsrModel):
    """
    [`LlmAsrModel`] without the layers of its language model. [`export_for_serving`] writes it.

    The front end keeps the whole input embedding. A context (`prompt`) may contain any token, and an engine with prompt
    embeddings does not look up tokens itself.

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
        with default_dtype(config.projector_config.dtype):
            self.draft_head = DraftHead(config) if config.projector_config.draft_head else None

    @torch.no_grad()
    def forward(
        self,
        input_ids: torch.Tensor,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        audio_hidden_states: torch.Tensor | None = None,
        audio_hidden_states_mask: torch.Tensor | None = None,
    ) -> list[PromptEmbeds]:
        """
        Compute the prompt embeddings of a batch of recordings.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
                Prompts with one audio token each. Padding may be on either side.
            input_features, input_features_mask, attention_mask, audio_hidden_states, audio_hidden_states_mask:
                See [`LlmAsrForConditionalGeneration.forward`].

        Returns:
            `list[PromptEmbeds]`: Prompt embeddings of each row.

        Raises:
            `ValueError`: If a row does not have exactly one audio token.
        """
        if ((input_ids == self.config.audio_token_id).sum(-1) != 1).any():
            raise ValueError(
                "`input_ids` must have one audio token in every row; create them with "
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
        if config.max_new_tokens_per_second is not None and audio_outputs.num_frames is not None:
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
        drafts: list[torch.Tensor | None] = [None] * num_rows
        audio_embeds, audio_lengths = audio_outputs.pooler_output, audio_outputs.audio_lengths
        if self.draft_head is not None and audio_embeds is not None and audio_lengths is not None:
            dtype = self.draft_head.up_proj.weight.dtype
            states = self.draft_head(audio_embeds.to(dtype), audio_lengths)
            drafts = [row.clone() for row in states.split(audio_lengths.tolist())]
        return [PromptEmbeds(*parts) for parts in zip(embeds, limits, alphas, drafts, strict=True)]


def _remove_all_but(module: nn.Module, kept: nn.Module) -> None:
    """Remove the submodules that do not contain `kept`, and empty the lists of layers."""
    for name, child in list(module.named_children()):
        if child is kept:
            continue
        if any(part is kept for part in child.modules()):
            _remove_all_but(child, kept)
        elif isinstance(child, nn.ModuleList):
            # The initialisation of some models walks over their layers.
            setattr(module, name, nn.ModuleList())
        else:
            delattr(module, name)


AutoConfig.register("llm_asr_front_end", LlmAsrFrontEndConfig)
AutoModel.register(LlmAsrFrontEndConfig, LlmAsrFrontEnd)
AutoProcessor.register(LlmAsrFrontEndConfig, LlmAsrProcessor)

__all__ = ["LlmAsrFrontEnd", "LlmAsrFrontEndConfig", "PromptEmbeds"]
