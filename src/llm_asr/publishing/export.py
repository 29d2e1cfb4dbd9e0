"""Splits a model into a front end and an unchanged language model, for serving engines that accept prompt embeddings."""

import copy
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from ..atomic_writing import atomic_folder
from ..modeling.modeling_llm_asr import LlmAsrForConditionalGeneration
from ..processing.processing_llm_asr import LlmAsrProcessor
from .checksums import write_checksums
from .front_end import LlmAsrFrontEnd, LlmAsrFrontEndConfig


logger = logging.get_logger(__name__)

# Generation settings that depend on the recording. The front end applies them, because the language model has no recording.
RECORDING_SETTINGS = ("max_new_tokens_per_second", "transcription_prompt_ids")


def export_for_serving(
    model: LlmAsrForConditionalGeneration | PeftModel, processor: LlmAsrProcessor, folder: str | Path
) -> None:
    """
    Write a model as two checkpoints:

    - `folder/language_model`, an ordinary checkpoint of the language model with its head, tokenizer, chat template and
      generation configuration. The tokenizer and the weights keep the audio token, so that all tokens have the same
      probabilities as in `model`.
    - `folder/front_end`, for [`LlmAsrFrontEnd`] and [`LlmAsrProcessor`]: the speech encoder, the projector, the draft head and
      the input embedding.

    The engine must follow the language model's `generation_config`, including settings such as `suppress_tokens` and
    `repetition_penalty`. The default is greedy decoding; engines that ignore `do_sample=False` need a temperature of zero.
    The front end returns the `max_new_tokens` of each recording with its embeddings. The temperature fallback is not
    exported.

    The folder does not exist until all its files are complete.

    Args:
        model ([`LlmAsrForConditionalGeneration`] or `PeftModel`): The model. A `PeftModel` is merged in a copy.
        processor ([`LlmAsrProcessor`]): The model's processor.
        folder (`str` or `Path`): Folder to write. It must be empty or not exist.

    Raises:
        `ValueError`: If `folder` is not empty, `model` is quantized or has adapters loaded into it, or `processor` belongs
            to another model.
    """
    folder = Path(folder)
    check_is_new(folder)
    merged = merge_adapters(model)
    processor.check_model(merged.config)
    vocab_size = merged.config.text_config.vocab_size
    unembedded = [token for token, index in processor.tokenizer.get_vocab().items() if index >= vocab_size]
    if unembedded:
        logger.warning(
            f"The language model has no embeddings for the tokens {unembedded} of the tokenizer; prompts must not contain them."
        )
    with atomic_folder(folder) as partial:
        extract_language_model(merged).save_pretrained(partial / "language_model")
        tokenizer = copy.deepcopy(processor.tokenizer)
        tokenizer.chat_template = processor.chat_template
        tokenizer.save_pretrained(partial / "language_model")
        extract_front_end(merged).save_pretrained(partial / "front_end")
        processor.save_pretrained(partial / "front_end")
        for part in ("front_end", "language_model"):
            write_checksums(partial / part, "*")


def check_is_new(folder: Path) -> None:
    """
    Raises:
        `ValueError`: If `folder` is a file or a folder that is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"`folder` {str(folder)!r} exists already; name a new or an empty folder.")


def merge_adapters(model: LlmAsrForConditionalGeneration | PeftModel) -> LlmAsrForConditionalGeneration:
    """
    Return `model`, or a copy of it into which its adapters are merged.

    Raises:
        `ValueError`: If `model` is quantized or has adapters loaded into it.
    """
    if getattr(model, "hf_quantizer", None) is not None:
        raise ValueError(
            "`model` is quantized; load it without `quantization_config`, and have the engine quantize it."
        )
    merged: LlmAsrForConditionalGeneration = (
        copy.deepcopy(model).merge_and_unload() if isinstance(model, PeftModel) else model
    )
    if any(isinstance(module, BaseTunerLayer) for module in merged.modules()):
        raise ValueError("`model` has adapters loaded into it; pass a `PeftModel`, or merge them.")
    return merged


def extract_language_model(model: LlmAsrForConditionalGeneration) -> PreTrainedModel:
    """The language model with its head, as an instance of its original class. It shares the weights of `model`."""
    generation_config = copy.deepcopy(model.generation_config)
    for name in RECORDING_SETTINGS:
        if hasattr(generation_config, name):
            delattr(generation_config, name)
    config = copy.deepcopy(model.config.text_config)
    # Some engines read these from the model configuration, others from the generation configuration.
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, getattr(generation_config, name))
    with torch.device("meta"):
        text_model = AutoModelForCausalLM.from_config(config)
    setattr(text_model, text_model.base_model_prefix, model.model.language_model)
    text_model.set_output_embeddings(model.lm_head)
    text_model.generation_config = generation_config
    return text_model.eval()


def extract_front_end(model: LlmAsrForConditionalGeneration) -> LlmAsrFrontEnd:
    """The parts before the language model's layers. They share the weights of `model`."""
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
    if model.draft_head is not None:
        weights |= {f"draft_head.{name}": tensor for name, tensor in model.draft_head.state_dict().items()}
    front_end.load_state_dict({name: weights[name] for name in front_end.state_dict()}, assign=True)
    return front_end.eval()


__all__ = ["check_is_new", "export_for_serving", "extract_front_end", "extract_language_model", "merge_adapters"]
