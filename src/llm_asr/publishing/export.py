"""A model in two parts, so that a serving engine which takes prompt embeddings can host the language model unchanged."""

import copy
import os
import tempfile
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from ..modeling.modeling_llm_asr import LlmAsrForConditionalGeneration
from ..processing.processing_llm_asr import LlmAsrProcessor
from .front_end import LlmAsrFrontEnd, LlmAsrFrontEndConfig


logger = logging.get_logger(__name__)

# What of a `generation_config` is about recordings, which the front end knows and a language model does not.
RECORDING_SETTINGS = ("max_new_tokens_per_second", "transcription_prompt_ids")


def export_for_serving(
    model: LlmAsrForConditionalGeneration | PeftModel, processor: LlmAsrProcessor, folder: str | Path
) -> None:
    """
    Write a model as two checkpoints:

    - `folder/language_model`, an ordinary checkpoint of the language model, with its head, tokenizer, chat template and
      generation configuration. It keeps the audio token's row, in the tokenizer as in the weights, so that it gives each
      token the probability that it had in `model`.
    - `folder/front_end`, for [`LlmAsrFrontEnd`] and [`LlmAsrProcessor`]: the speech encoder, the projector and the input
      embedding.

    The engine is to decode as `generation_config` says: greedily by default, which an engine may not read out of
    `do_sample=False`. What else may be set there (`suppress_tokens`, `repetition_penalty`, ...) is handed on, and every
    recording's `max_new_tokens` comes with its embeddings. Drafts and the temperature fallback are not exported.

    The folder appears when it is complete.

    Args:
        model ([`LlmAsrForConditionalGeneration`] or `PeftModel`): The model. A `PeftModel` of it is merged in a copy.
        processor ([`LlmAsrProcessor`]): Its processor.
        folder (`str` or `Path`): Where to write; must not exist, or be empty.

    Raises:
        `ValueError`: If there is something in `folder`, `model` is quantized or has adapters loaded into itself, or
            `processor` is that of another model.
    """
    folder = Path(folder)
    check_is_new(folder)
    if getattr(model, "hf_quantizer", None) is not None:
        raise ValueError(
            "`model` is quantized; load it without `quantization_config`, and have the engine quantize it."
        )
    if isinstance(model, PeftModel):
        model = copy.deepcopy(model).merge_and_unload()
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ValueError("`model` has adapters loaded into it; pass a `PeftModel`, or merge them.")
    if processor.audio_token_id != model.config.audio_token_id:
        raise ValueError(
            f"The audio token of `processor` is {processor.audio_token_id} and that of `model` "
            f"{model.config.audio_token_id}; pass the processor of the model."
        )
    vocab_size = model.config.text_config.vocab_size
    unembedded = [token for token, index in processor.tokenizer.get_vocab().items() if index >= vocab_size]
    if unembedded:
        logger.warning(f"The language model has no embedding for {unembedded} of the tokenizer; write no such prompt.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as partial:
        complete = Path(partial, folder.name)
        extract_language_model(model).save_pretrained(complete / "language_model")
        tokenizer = copy.deepcopy(processor.tokenizer)
        tokenizer.chat_template = processor.chat_template
        tokenizer.save_pretrained(complete / "language_model")
        extract_front_end(model).save_pretrained(complete / "front_end")
        processor.save_pretrained(complete / "front_end")
        os.replace(complete, folder)


def check_is_new(folder: Path) -> None:
    """Raise a `ValueError` if there is something at `folder`."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"`folder` {str(folder)!r} is there already; name a new or an empty one.")


def extract_language_model(model: LlmAsrForConditionalGeneration) -> PreTrainedModel:
    """The language model of `model` with its head, as its own class; it shares its weights."""
    generation_config = copy.deepcopy(model.generation_config)
    for name in RECORDING_SETTINGS:
        if hasattr(generation_config, name):
            delattr(generation_config, name)
    config = copy.deepcopy(model.config.text_config)
    # Engines read these from either configuration.
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, getattr(generation_config, name))
    with torch.device("meta"):
        text_model = AutoModelForCausalLM.from_config(config)
    setattr(text_model, text_model.base_model_prefix, model.model.language_model)
    text_model.set_output_embeddings(model.lm_head)
    text_model.generation_config = generation_config
    return text_model.eval()


def extract_front_end(model: LlmAsrForConditionalGeneration) -> LlmAsrFrontEnd:
    """What precedes the language model's layers; it shares its weights."""
    config = LlmAsrFrontEndConfig.from_dict(
        {
            **model.config.to_diff_dict(),
            "model_type": LlmAsrFrontEndConfig.model_type,
            "max_new_tokens_per_second": model._option("max_new_tokens_per_second", {}),
            "max_new_tokens": model.generation_config.max_new_tokens,
        }
    )
    with torch.device("meta"):
        front_end = LlmAsrFrontEnd(config)
    weights = model.model.state_dict()
    front_end.load_state_dict({name: weights[name] for name in front_end.state_dict()}, assign=True)
    return front_end.eval()


__all__ = ["check_is_new", "export_for_serving", "extract_front_end", "extract_language_model"]
