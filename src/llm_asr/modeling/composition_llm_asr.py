"""Composition of a model from a pretrained speech encoder, a pretrained language model and a new projector."""

from dataclasses import fields
from typing import Any, Self

import torch
from transformers import CONFIG_MAPPING
from transformers.generation import GenerationConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from .configuration_projector import LlmAsrProjectorConfig
from .language_model_head import check_linear_head
from .model_interface import HeadedModelInterface
from .quantization import adopt_quantization
from .slim_checkpoint import load_parts
from .transformers_versions import CACHE_NAME
from .weight_checks import check_finite


# Speech in any script has fewer tokens per second. The limit stops a model that repeats itself.
MAX_NEW_TOKENS_PER_SECOND = 20.0

# Logits may differ from those of the original by so many times what the original differs by from itself in so many runs.
NOISE_MARGIN = 4
NUM_NOISE_RUNS = 4


class LlmAsrCompositionMixin(HeadedModelInterface):
    """Adds `from_audio_text_pretrained` to [`LlmAsrForConditionalGeneration`]."""

    @classmethod
    def from_audio_text_pretrained(
        cls,
        audio: str,
        text: str,
        projector_type: str = "moe_cif",
        *,
        freeze_audio: bool = True,
        freeze_text: bool = True,
        encoder_padding: str = "longest",
        encoder_attention: str = "full",
        encoder_chunk_s: float | None = None,
        encoder_left_context_s: float | None = None,
        encoder_lookahead_s: float | None = None,
        encoder_training_chunks_s: list[float] | None = None,
        processor=None,
        audio_kwargs: dict | None = None,
        text_kwargs: dict | None = None,
        **projector_kwargs,
    ) -> Self:
        """
        Compose a pretrained speech encoder and a pretrained language model with a new projector between them.

        Args:
            audio (`str`):
                Local folder or Hub id of the speech encoder.
            text (`str`):
                Local folder or Hub id of the causal language model.
            projector_type (`str`, *optional*, defaults to `"moe_cif"`):
                See [`LlmAsrProjectorConfig`].
            freeze_audio (`bool`, *optional*, defaults to `True`):
                Whether the speech encoder is frozen.
            freeze_text (`bool`, *optional*, defaults to `True`):
                Whether the language model and its head are frozen.
            encoder_padding (`str`, *optional*, defaults to `"longest"`):
                See [`LlmAsrConfig`].
            encoder_attention, encoder_chunk_s, encoder_left_context_s, encoder_lookahead_s, encoder_training_chunks_s (*optional*):
                See [`LlmAsrConfig`]. With `encoder_attention="chunked"`, the processor must have `log_mel_maximum="running"`.
            processor ([`LlmAsrProcessor`], *optional*):
                The processor the model is to work with. Defaults to the one that
                `LlmAsrProcessor.from_audio_text_pretrained(audio, text)` composes.
            audio_kwargs, text_kwargs (`dict`, *optional*):
                Passed on to `from_pretrained` of the parts (`dtype`, `revision`, `attn_implementation`,
                `quantization_config` of the language model, ...). Without a `dtype`, a part that is frozen is loaded in the
                dtype it was saved in, and one that is to be trained in float32.
            projector_kwargs:
                Fields of [`LlmAsrProjectorConfig`].

        Returns:
            [`LlmAsrForConditionalGeneration`]: Its projector has random weights, in float32.

        Raises:
            `ValueError`: If an option of the projector is unknown or impossible, a part is of an unsupported family, or its weights
                are missing or not finite.

        Example:

        ```python
        >>> from llm_asr import LlmAsrForConditionalGeneration

        >>> model = LlmAsrForConditionalGeneration.from_audio_text_pretrained(
        ...     "openai/whisper-large-v3", "Qwen/Qwen2.5-7B-Instruct", projector_type="moe_cif", num_experts=8
        ... )
        ```"""
        projector_config = LlmAsrProjectorConfig(projector_type=projector_type, **projector_kwargs)
        if processor is None:
            # `modeling` and `processing` do not import each other, so look the class up in Transformers' registry.
            processor_class: Any = PROCESSOR_MAPPING[cls.config_class]
            options = {"log_mel_maximum": "running"} if encoder_attention == "chunked" else {}
            processor = processor_class.from_audio_text_pretrained(audio, text, **options)
        audio_kwargs, text_kwargs = (
            {**({} if is_frozen_part else {"dtype": torch.float32}), **(kwargs or {})}
            for is_frozen_part, kwargs in ((freeze_audio, audio_kwargs), (freeze_text, text_kwargs))
        )
        audio_tower, text_model = load_parts(audio, text, audio_kwargs, text_kwargs)
        check_finite(audio_tower, audio)
        check_finite(text_model, text)
        _check_type_is_known(text_model, text)
        check_linear_head(text_model)
        make_room(text_model, processor.audio_token_id)

        config = cls.config_class(
            audio_config=audio_tower.config,
            text_config=text_model.config,
            projector_config=projector_config,
            audio_token_id=processor.audio_token_id,
            pad_token_id=processor.tokenizer.pad_token_id,
            audio_frame_rate=processor.sampling_rate / processor.samples_per_frame,
            encoder_padding=encoder_padding,
            encoder_attention=encoder_attention,
            encoder_chunk_s=encoder_chunk_s,
            encoder_left_context_s=encoder_left_context_s,
            encoder_lookahead_s=encoder_lookahead_s,
            encoder_training_chunks_s=encoder_training_chunks_s,
            # A new composite configuration would reset settings that were resolved when the parts were loaded.
            attn_implementation={
                "audio_config": audio_tower.config._attn_implementation,
                "text_config": text_model.config._attn_implementation,
            },
        )
        processor.check_model(config)
        generation_config = GenerationConfig(
            max_new_tokens_per_second=MAX_NEW_TOKENS_PER_SECOND,
            num_beams=1,
            do_sample=False,
            bos_token_id=processor.tokenizer.bos_token_id,
            eos_token_id=all_eos_token_ids(processor.tokenizer, text_model.generation_config),
            pad_token_id=processor.tokenizer.pad_token_id,
            transcription_prompt_ids=processor.transcription_prompt_ids,
        )
        model = cls(config, audio_tower, text_model)
        model.generation_config = generation_config
        _check_same_logits(model, text_model)
        adopt_quantization(model, text_model)
        if freeze_audio:
            model.freeze_audio_tower()
        if freeze_text:
            model.freeze_language_model()
        return model.eval()

    def freeze_audio_tower(self) -> None:
        """Exclude the speech encoder from training."""
        self.model.audio_tower.requires_grad_(False).eval()

    def freeze_language_model(self) -> None:
        """Exclude the language model and its head from training."""
        self.model.language_model.requires_grad_(False).eval()
        self.lm_head.requires_grad_(False)


def all_eos_token_ids(tokenizer, text_generation_config: GenerationConfig) -> int | list[int]:
    """Return the tokenizer's end token, with which training targets end, and all other tokens that end a turn."""
    others = text_generation_config.eos_token_id
    others = others if isinstance(others, list) else [others]
    token_ids = list(dict.fromkeys([tokenizer.eos_token_id, *(other for other in others if other is not None)]))
    return token_ids[0] if len(token_ids) == 1 else token_ids


def _check_type_is_known(text_model: PreTrainedModel, text: str) -> None:
    """Refuse a language model of custom code, because the checkpoint of the composed model could not be loaded again."""
    model_type = text_model.config.model_type
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"`text` {text!r} is of type {model_type!r}, which Transformers does not know: its code is in its repository. "
            "Choose a language model of Transformers, or register its classes with `AutoConfig.register` and "
            "`AutoModelForCausalLM.register` in every program that loads the result."
        )


@torch.no_grad()
def make_room(text_model: PreTrainedModel, audio_token_id: int) -> None:
    """
    Add a row for the audio token to the embedding and the head. The row is the mean of all others, so that it is always the
    same, and never belongs to the likeliest token.
    """
    embedding: Any = text_model.get_input_embeddings()
    num_embeddings = embedding.num_embeddings
    if audio_token_id < num_embeddings:
        return
    text_model.resize_token_embeddings(audio_token_id + 1, mean_resizing=False)
    for layer in (text_model.get_input_embeddings(), text_model.get_output_embeddings()):
        for parameter in layer.parameters(recurse=False):
            parameter[num_embeddings:] = parameter[:num_embeddings].mean(0)


@torch.no_grad()
def _check_same_logits(model: PreTrainedModel, text_model: PreTrainedModel) -> None:
    """Raise an error if the language model computes different logits on text as a part of `model` than alone."""
    name = type(text_model).__name__
    inputs = {"input_ids": torch.arange(4, device=text_model.device)[None] % text_model.config.vocab_size}
    was_training = text_model.training
    text_model.eval()
    model.eval()
    outputs = text_model(**inputs, use_cache=True)
    expected = outputs.logits
    if not {CACHE_NAME, "attentions"} <= {field.name for field in fields(outputs)}:
        raise ValueError(
            f"`text` is a {name}, which keeps no key/value cache; choose a language model with attention."
        )
    if expected.isnan().any():
        raise ValueError(
            f"`text` is a {name}, whose logits are not finite in {text_model.dtype}; load it in another dtype, such as "
            "`text_kwargs={'dtype': torch.bfloat16}`."
        )
    found = model(**inputs, use_cache=False).logits
    # The same operations on the same numbers, so that logits differ only where GPUs add in an order of chance. What the
    # original differs by from run to run says how much that is.
    noise = 0.0
    if not torch.equal(found, expected):
        runs = [text_model(**inputs, use_cache=True).logits for _ in range(NUM_NOISE_RUNS)]
        noise = max((run - expected).abs().max() for run in runs)
    text_model.train(was_training)
    if (found - expected).abs().max() > NOISE_MARGIN * noise:
        raise ValueError(
            f"`text` is a {name}, which gives other logits for the embeddings of tokens than for the tokens: it probably "
            "scales the embeddings of `input_ids`, and not `inputs_embeds`; choose another language model."
        )
