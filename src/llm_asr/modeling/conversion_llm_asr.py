"""Conversion of published speech language models."""

import os
from pathlib import Path
from typing import Any, Self

from huggingface_hub import metadata_load
from huggingface_hub.constants import REPOCARD_NAME
from transformers import AutoModelForSeq2SeqLM
from transformers.generation import GenerationConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import CONFIG_NAME
from transformers.utils.hub import extract_commit_hash

from .checkpoint_safety import HUB_OPTIONS, find_file
from .composition_llm_asr import MAX_NEW_TOKENS_PER_SECOND, all_eos_token_ids, make_room
from .language_model_head import check_linear_head, take_language_model
from .model_interface import HeadedModelInterface
from .speech_encoders import take_audio_tower
from .speech_llm_families import SpeechLlmFamily, find_speech_llm
from .ultravox_source import SpeechLlmParts, load_ultravox
from .weight_checks import check_finite, check_nothing_missing


# Settings of the source that are for conversation, or that this package makes of the length of a recording.
LEFT_OUT = (
    "temperature",
    "top_p",
    "top_k",
    "max_new_tokens",
    "max_length",
    "transformers_version",
    "_from_model_config",
)


class LlmAsrConversionMixin(HeadedModelInterface):
    """Adds `from_speech_llm` to [`LlmAsrForConditionalGeneration`]."""

    @classmethod
    def from_speech_llm(cls, source: str, *, processor=None, **kwargs) -> Self:
        """
        Convert a published speech language model: its weights, prompt and generation settings. Embeddings, logits and greedy tokens
        are those of the source in Transformers.

        Args:
            source (`str`):
                Local folder or Hub id of a checkpoint of one of the families in `FAMILIES` of `speech_llm_families.py`.
            processor ([`LlmAsrProcessor`], *optional*):
                Defaults to `LlmAsrProcessor.from_speech_llm(source)`.
            kwargs:
                Passed on to `from_pretrained` of the source's model (`dtype`, `revision`, ...). Weights keep the dtype they were
                saved in by default. LoRA weights of the source are merged into its language model.

        Returns:
            [`LlmAsrForConditionalGeneration`]: Its `config.converted_from` names the source and its licence.

        Raises:
            `ValueError`: If the family of the source cannot be converted; no weights are read before. Also if weights are missing or
                not finite.

        Example:

        ```python
        >>> from llm_asr import LlmAsrForConditionalGeneration, LlmAsrProcessor

        >>> model = LlmAsrForConditionalGeneration.from_speech_llm("Qwen/Qwen2-Audio-7B-Instruct")
        >>> processor = LlmAsrProcessor.from_speech_llm("Qwen/Qwen2-Audio-7B-Instruct")
        ```"""
        hub_kwargs = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        family = find_speech_llm(source, **hub_kwargs)
        if processor is None:
            # `modeling` and `processing` do not import each other, so look the class up in Transformers' registry.
            processor_class: Any = PROCESSOR_MAPPING[cls.config_class]
            processor = processor_class.from_speech_llm(source, **hub_kwargs)
        kwargs = {"dtype": "auto", **kwargs}
        if family.has_remote_code:
            parts = load_ultravox(source, hub_kwargs, **kwargs)
        else:
            parts = _load_source(source, family, **kwargs)
        audio_tower, text_model = parts.audio_tower, parts.text_model
        check_finite(audio_tower, source)
        check_finite(text_model, source)
        check_linear_head(text_model)
        head, embedding = text_model.get_output_embeddings(), text_model.get_input_embeddings()
        # The source's own configuration decides it, which may contradict the language model's.
        text_model.config.tie_word_embeddings = head.weight is embedding.weight
        make_room(text_model, processor.audio_token_id)
        config = cls.config_class(
            audio_config=audio_tower.config,
            text_config=text_model.config,
            projector_config=family.projector(parts.config),
            audio_token_id=processor.audio_token_id,
            pad_token_id=processor.tokenizer.pad_token_id,
            audio_frame_rate=processor.sampling_rate / processor.samples_per_frame,
            encoder_padding=family.encoder_padding,
            converted_from=describe_source(source, parts.config.model_type, **hub_kwargs),
            # A new composite configuration would reset settings that were resolved when the source was loaded.
            attn_implementation={
                "audio_config": audio_tower.config._attn_implementation,
                "text_config": text_model.config._attn_implementation,
            },
        )
        processor.check_model(config)
        model = cls(config, audio_tower, text_model)
        weights = {}
        for name, tensor in parts.projector.items():
            for source_name, own_name in family.projector_layers.items():
                if name == source_name or name.startswith(f"{source_name}."):
                    weights[own_name + name.removeprefix(source_name)] = tensor
        model.model.projector.load_state_dict(weights, assign=True)
        check_finite(model.model.projector, source)
        model.generation_config = _convert_generation_config(parts.generation_config, processor)
        return model.eval()


def _load_source(source: str, family: SpeechLlmFamily, **kwargs) -> SpeechLlmParts:
    """Load a model whose classes are in Transformers."""
    loaded: Any = AutoModelForSeq2SeqLM.from_pretrained(source, output_loading_info=True, **kwargs)
    model, info = loaded
    check_nothing_missing(set(info["missing_keys"]), source)
    _merge_adapters(model)
    return SpeechLlmParts(
        audio_tower=take_audio_tower(model.get_submodule(family.audio_tower_name)),
        text_model=take_language_model(model),
        projector=model.get_submodule(family.projector_name).state_dict(),
        config=model.config,
        generation_config=model.generation_config,
    )


def describe_source(source: str, model_type: str, **hub_kwargs) -> dict[str, str | None]:
    """
    What `converted_from` of [`LlmAsrConfig`] says: the name, the commit, the type and the licence of a source. The name of a local
    folder is its last part, because its path means nothing to others.
    """
    card = find_file(source, REPOCARD_NAME, **hub_kwargs)
    metadata = metadata_load(card) if card is not None else None
    is_local = os.path.isdir(source)
    commit = None if is_local else extract_commit_hash(find_file(source, CONFIG_NAME, **hub_kwargs), None)
    return {
        "name_or_path": Path(source).resolve().name if is_local else source,
        "revision": commit,
        "model_type": model_type,
        "license": (metadata or {}).get("license"),
    }


def _merge_adapters(model: PreTrainedModel) -> None:
    """Merge the LoRA weights that Transformers has loaded with a model into its layers."""
    # This import is slow.
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(model.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            model.set_submodule(name, layer.get_base_layer())


def _convert_generation_config(source: GenerationConfig, processor) -> GenerationConfig:
    """The settings of a source for greedy transcription."""
    settings = {name: value for name, value in source.to_diff_dict().items() if name not in LEFT_OUT}
    settings.update(
        max_new_tokens_per_second=MAX_NEW_TOKENS_PER_SECOND,
        do_sample=False,
        eos_token_id=all_eos_token_ids(processor.tokenizer, source),
        pad_token_id=processor.tokenizer.pad_token_id,
        transcription_prompt_ids=processor.transcription_prompt_ids,
    )
    return GenerationConfig(**settings)


__all__ = ["LlmAsrConversionMixin", "describe_source"]
