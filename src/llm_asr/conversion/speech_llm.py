"""Turns published speech language models into checkpoints of this package."""

from dataclasses import dataclass

import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoProcessor
from transformers.configuration_utils import PreTrainedConfig
from transformers.generation import GenerationConfig

from ..modeling.composition_llm_asr import MAX_NEW_TOKENS_PER_SECOND
from ..modeling.configuration_llm_asr import LlmAsrConfig
from ..modeling.language_model_head import check_linear_head, take_language_model
from ..modeling.modeling_llm_asr import LlmAsrForConditionalGeneration
from ..modeling.speech_encoders import describe_speech_encoder, load_audio_tower
from ..modeling.weight_checks import check_finite
from ..processing.processing_llm_asr import LlmAsrProcessor


@dataclass(frozen=True)
class SpeechLlmFamily:
    """How the projector of a family, and its prompt, are written in this package."""

    # Names of linear layers in `multi_modal_projector`, by their name in the projector here.
    layers: dict[str, str]
    # The request in the user's message, around the chat template of the source.
    transcription_template: str


FAMILIES = {
    "qwen2_audio": SpeechLlmFamily(
        layers={"0": "linear"},
        # The chat template of the source writes recordings in this way.
        transcription_template=(
            "Audio 1: <|audio_bos|>{{ audio_token }}<|audio_eos|>\n"
            "{% if prompt %}{{ prompt }}{% else %}Transcribe the speech"
            "{% if language %} in {{ language }}{% endif %}.{% endif %}"
        ),
    ),
}


def convert_speech_llm(source: str, **kwargs) -> tuple[LlmAsrForConditionalGeneration, LlmAsrProcessor]:
    """
    Convert a published speech language model.

    Embeddings and logits are those of the source for recordings that fill its window of 30 s. For shorter ones, the convolutions of
    the source see the silence after the last frame, and those here see zeros, so that logits differ slightly.

    Args:
        source (`str`): Local folder or Hub id of a Qwen2-Audio checkpoint.
        kwargs: Passed on to `from_pretrained` of the source's model (`dtype`, `revision`, ...). Weights keep the dtype they were
            saved in by default.

    Returns:
        The model ([`LlmAsrForConditionalGeneration`]) with the source's weights, and its processor.

    Raises:
        `ValueError`: If the family of the source cannot be converted. No weights are read before.
    """
    revision = {name: kwargs[name] for name in ("revision", "token", "cache_dir") if name in kwargs}
    source_config = AutoConfig.from_pretrained(source, **revision)
    family = find_family(source, source_config)
    source_processor = AutoProcessor.from_pretrained(source, **revision)
    processor = LlmAsrProcessor(
        source_processor.feature_extractor,
        source_processor.tokenizer,
        chat_template=source_processor.chat_template,
        audio_token=source_processor.audio_token,
        transcription_template=family.transcription_template,
        **describe_speech_encoder(source_config, source_processor.feature_extractor),
    )
    source_model = AutoModelForSeq2SeqLM.from_pretrained(source, **{"dtype": "auto", **kwargs})
    check_finite(source_model, source)
    audio_tower = load_audio_tower(source, source_config, **{"dtype": "auto", **kwargs})
    text_model = take_language_model(source_model)
    check_linear_head(text_model)
    projector = source_model.get_submodule("model.multi_modal_projector")
    config = LlmAsrConfig(
        audio_config=audio_tower.config,
        text_config=text_model.config,
        projector_config={"projector_type": "stack", "stack_size": 1, "intermediate_size": None, "mlp_bias": True},
        audio_token_id=processor.audio_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
        audio_frame_rate=processor.sampling_rate / processor.samples_per_frame,
        # A new composite configuration would reset settings that were resolved when the parts were loaded.
        attn_implementation={
            "audio_config": audio_tower.config._attn_implementation,
            "text_config": text_model.config._attn_implementation,
        },
    )
    processor.check_model(config)
    model = LlmAsrForConditionalGeneration(config, audio_tower, text_model)
    with torch.no_grad():
        for name, source_name in family.layers.items():
            layer = model.get_submodule(f"model.projector.mlp.{name}")
            layer.load_state_dict(projector.get_submodule(source_name).state_dict())
    settings = source_model.generation_config.to_diff_dict()
    # `_from_model_config` would have the settings here thrown away when they are loaded.
    for name in ("transformers_version", "_from_model_config"):
        settings.pop(name, None)
    # The source's sampling is for conversation, and the limit here follows from the length of the recording.
    for name in ("temperature", "top_p", "top_k", "max_new_tokens", "max_length"):
        settings.pop(name, None)
    settings.update(
        max_new_tokens_per_second=MAX_NEW_TOKENS_PER_SECOND,
        do_sample=False,
        pad_token_id=processor.tokenizer.pad_token_id,
        transcription_prompt_ids=processor.transcription_prompt_ids,
    )
    if settings.get("eos_token_id") is None:
        settings["eos_token_id"] = processor.tokenizer.eos_token_id
    model.generation_config = GenerationConfig(**settings)
    return model.eval(), processor


def find_family(source: str, config: PreTrainedConfig) -> SpeechLlmFamily:
    """
    The family of a source.

    Raises:
        `ValueError`: If it cannot be converted.
    """
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"`source` {source!r} has model_type {config.model_type!r}, whose projector and prompt have no counterpart here yet; "
            f"choose a model of one of the types {sorted(FAMILIES)}."
        )
    return FAMILIES[config.model_type]


__all__ = ["FAMILIES", "convert_speech_llm"]
