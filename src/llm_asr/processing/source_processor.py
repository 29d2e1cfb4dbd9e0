"""Conversion of the processors of published speech language models."""

from typing import Any, NamedTuple, Self

from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoFeatureExtractor,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from .source_prompt import write_transcription_template


# What the transcription template of a converted model has left to its chat template.
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


class SourceProcessor(NamedTuple):
    """What is read of a source: parts of its processor, its configuration, and the token that its tokenizer puts before prompts."""

    config: Any
    feature_extractor: Any
    tokenizer: Any
    chat_template: str | None
    audio_token: str
    beginning: str = ""


class LlmAsrProcessorConversionMixin:
    """Adds `from_speech_llm` to [`LlmAsrProcessor`]."""

    @classmethod
    def from_speech_llm(cls, source: str, **kwargs) -> Self:
        """
        Convert the processor of a published speech language model. Its transcription request is the source's prompt, token for token.

        Args:
            source (`str`): Local folder or Hub id; see [`LlmAsrForConditionalGeneration.from_speech_llm`].
            kwargs: Where the files are, as in `from_pretrained`: `revision`, `token`, `cache_dir`, ...

        Raises:
            `ValueError`: If the family of the source cannot be converted, or its chat template is not that of the family.
            `ImportError`: If the source's tokenizer needs a package that is not installed.
        """
        # `modeling` and `processing` do not import each other, so find the class in Transformers' registry.
        config_class: Any = CONFIG_MAPPING["llm_asr"]
        family = config_class.find_speech_llm(source, **kwargs)
        if family.has_remote_code:
            found = _read_named_parts(source, family, config_class.read_ultravox_config(source, **kwargs), **kwargs)
        elif family.prompt is not None:
            found = _read_parts(source, family, **kwargs)
        else:
            found = _read_processor(source, **kwargs)
        template = write_transcription_template(
            family,
            found.chat_template,
            found.tokenizer.special_tokens_map,
            found.audio_token,
            beginning=found.beginning,
        )
        settings = config_class.describe_speech_encoder(found.config, found.feature_extractor)
        settings |= {"audio_token": found.audio_token, **family.processor}
        processor_class: Any = cls
        return processor_class(
            found.feature_extractor,
            found.tokenizer,
            chat_template=CHAT_TEMPLATE,
            transcription_template=template,
            **settings,
        )


def _read_processor(source: str, **kwargs) -> SourceProcessor:
    """Read a processor whose class is in Transformers."""
    processor = AutoProcessor.from_pretrained(source, **kwargs)
    tokenizer = processor.tokenizer
    begins_with_bos = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return SourceProcessor(
        AutoConfig.from_pretrained(source, **kwargs),
        # Granite Speech has another name for it.
        processor.audio_processor if hasattr(processor, "audio_processor") else processor.feature_extractor,
        tokenizer,
        processor.chat_template,
        processor.audio_token,
        beginning=tokenizer.bos_token if begins_with_bos else "",
    )


def _read_parts(source: str, family, **kwargs) -> SourceProcessor:
    """Read the parts of a processor that has no chat template."""
    return SourceProcessor(
        AutoConfig.from_pretrained(source, **kwargs),
        AutoFeatureExtractor.from_pretrained(source, **kwargs),
        AutoTokenizer.from_pretrained(source, **family.tokenizer, **kwargs),
        None,
        family.processor["audio_token"],
    )


def _read_named_parts(source: str, family, config, **kwargs) -> SourceProcessor:
    """Read the parts that the configuration of a source with code of its own names."""
    # `AutoTokenizer` would ask to trust that code.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(source, **kwargs)
    audio_token = family.processor["audio_token"]
    tokenizer.add_special_tokens({"extra_special_tokens": [audio_token]}, replace_extra_special_tokens=False)
    return SourceProcessor(
        config.audio_config,
        AutoFeatureExtractor.from_pretrained(config.audio_model_id or config.audio_config.name_or_path),
        tokenizer,
        tokenizer.chat_template,
        audio_token,
    )


__all__ = ["LlmAsrProcessorConversionMixin"]
