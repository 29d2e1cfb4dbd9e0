"""Conversion of the processors of published speech language models."""

from typing import Any, Self

from transformers import CONFIG_MAPPING, AutoConfig, AutoFeatureExtractor, AutoProcessor, AutoTokenizer

from .source_prompt import write_transcription_template


# What the transcription template of a converted model has left to its chat template.
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


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
        config = AutoConfig.from_pretrained(source, **kwargs)
        if family.prompt is None:
            parts = AutoProcessor.from_pretrained(source, **kwargs)
            # Granite Speech has another name for it.
            feature_extractor = parts.audio_processor if hasattr(parts, "audio_processor") else parts.feature_extractor
            tokenizer, chat_template = parts.tokenizer, parts.chat_template
            settings = {"audio_token": parts.audio_token, **family.processor}
        else:
            feature_extractor = AutoFeatureExtractor.from_pretrained(source, **kwargs)
            tokenizer, chat_template = AutoTokenizer.from_pretrained(source, **family.tokenizer, **kwargs), None
            settings = dict(family.processor)
        begins_with_bos = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
        template = write_transcription_template(
            family,
            chat_template,
            tokenizer.special_tokens_map,
            settings["audio_token"],
            beginning=tokenizer.bos_token if begins_with_bos else "",
        )
        processor_class: Any = cls
        return processor_class(
            feature_extractor,
            tokenizer,
            chat_template=CHAT_TEMPLATE,
            transcription_template=template,
            **{**config_class.describe_speech_encoder(config, feature_extractor), **settings},
        )


__all__ = ["LlmAsrProcessorConversionMixin"]
