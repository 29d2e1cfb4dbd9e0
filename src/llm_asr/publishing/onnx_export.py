"""Writes a model as ONNX graphs, which run without PyTorch."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import nn
from torch.export import Dim
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, WhisperFeatureExtractor

from ..atomic_writing import atomic_folder
from ..modeling.decoding_guards import SPARE_TOKENS
from ..modeling.modeling_llm_asr import LlmAsrForConditionalGeneration
from ..modeling.transformers_versions import CACHE_NAME
from ..processing.processing_llm_asr import LlmAsrProcessor
from .checksums import write_checksums
from .export import check_is_new, extract_language_model, merge_adapters
from .onnx_graphs import (
    DECODERS,
    PROJECTORS,
    DecoderGraph,
    EmbeddingGraph,
    EncoderGraph,
    ProjectorGraph,
    list_keys_and_values,
)


ONNX_CONFIG_NAME = "onnx_config.json"
ONNX_DTYPES = ("float32", "int8")
ENCODER_PADDINGS = ("longest", "max_length")

# The projector decides how many embeddings there are, and the embedding is a table; both keep their precision.
QUANTIZED = ("encoder", "decoder")

# Settings of `generate` that the runner follows, and those that have no effect on greedy decoding with a limit of new tokens.
FOLLOWED = ("eos_token_id", "max_new_tokens", "max_new_tokens_per_second", "transcription_prompt_ids")
SAMPLING = ("do_sample", "num_beams", "temperature", "top_k", "top_p", "min_p")
WITHOUT_EFFECT = (*SAMPLING, "bos_token_id", "pad_token_id", "max_length", "use_cache", "transformers_version")


def export_onnx(
    model: LlmAsrForConditionalGeneration | PeftModel,
    processor: LlmAsrProcessor,
    folder: str | Path,
    dtype: str = "float32",
) -> None:
    """
    Write a model as ONNX graphs and what is needed to run them: `examples/llm_asr_onnx.py` transcribes with NumPy, onnxruntime,
    tokenizers and soundfile alone, by the greedy decoding of `generate`.

    - `encoder.onnx`: `input_features` of shape `(1, num_mel_bins, num_mel_frames)` to `audio_hidden_states`.
    - `projector.onnx`: `audio_hidden_states` of shape `(1, num_frames, audio_hidden_size)` to `audio_embeds` of shape
      `(num_embeddings, text_hidden_size)`. With CIF, the number of embeddings depends on the recording.
    - `embed_tokens.onnx`: `input_ids` to `inputs_embeds`.
    - `decoder.onnx`: `inputs_embeds`, `attention_mask`, `position_ids` and `past_key_values.N.key` and `.value` to `logits` of the
      next token, `present.N.key` and `present.N.value`. Its batch may have any size, padded on the left.
    - `tokenizer.json`, `mel_filters.npy` and `onnx_config.json`: the prompts, the end of transcripts and their longest length.

    The folder does not exist until all its files are complete. Draft heads are not exported.

    Args:
        model ([`LlmAsrForConditionalGeneration`] or `PeftModel`): The model, in float32. A `PeftModel` is merged in a copy.
        processor ([`LlmAsrProcessor`]): The model's processor.
        folder (`str` or `Path`): Folder to write. It must be empty or not exist.
        dtype (`str`, *optional*, defaults to `"float32"`): `"float32"`, or `"int8"` for weights of 8 bits in the matrix products of
            the encoder and of the language model, whose inputs are quantised when they arrive (dynamic quantisation).

    Raises:
        `ValueError`: If the folder is not empty, or a part or a setting of the model cannot be exported; the message names it.
        `ImportError`: If a package is missing.
    """
    folder = Path(folder)
    check_is_new(folder)
    if dtype not in ONNX_DTYPES:
        raise ValueError(f"`dtype` must be one of {list(ONNX_DTYPES)} for ONNX graphs, got {dtype!r}.")
    check_packages()
    merged = merge_adapters(model)
    processor.check_model(merged.config)
    check_parts(merged)
    check_processor(processor)
    settings = describe_decoding(merged.generation_config)
    was_training = merged.training
    merged.eval()
    try:
        with atomic_folder(folder) as partial:
            for name, graph in list_graphs(merged).items():
                write_graph(graph, partial / f"{name}.onnx", dtype if name in QUANTIZED else "float32")
            processor.tokenizer.backend_tokenizer.save(str(partial / "tokenizer.json"))
            np.save(partial / "mel_filters.npy", np.asarray(processor.feature_extractor.mel_filters, dtype=np.float32))
            runner_config = {
                "dtype": dtype,
                **describe_audio(processor),
                "frame_rate": merged.config.audio_frame_rate,
                **settings,
                "prompts": describe_prompts(processor),
            }
            text = json.dumps(runner_config, indent=1, ensure_ascii=False)
            (partial / ONNX_CONFIG_NAME).write_text(text + "\n", encoding="utf-8")
            write_checksums(partial, "*")
    finally:
        merged.train(was_training)


def check_packages() -> None:
    """Raise an `ImportError` if a package for writing ONNX graphs is missing."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ImportError(
            f'ONNX graphs need packages that are not installed ({", ".join(missing)}): `pip install "llm-asr[onnx]"`.'
        )


def check_parts(model: LlmAsrForConditionalGeneration) -> None:
    """Raise a `ValueError` if a part of the model has no graph."""
    config = model.config
    for what, value, known in (
        ("speech encoder", config.audio_config.model_type, ("whisper",)),
        ("`encoder_attention`", config.encoder_attention, ("full",)),
        ("`encoder_padding`", config.encoder_padding, ENCODER_PADDINGS),
        ("`projector_type`", config.projector_config.projector_type, PROJECTORS),
        ("language model", config.text_config.model_type, tuple(DECODERS)),
    ):
        if value not in known:
            raise ValueError(f"The {what} {value!r} cannot be exported as an ONNX graph; known are {list(known)}.")
    devices = {parameter.device.type for parameter in model.parameters()}
    if devices != {"cpu"}:
        raise ValueError(
            f"`model` is on {sorted(devices)}, and ONNX graphs are written on the CPU; call `model.cpu()`."
        )
    dtypes = {str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()}
    if dtypes != {"float32"}:
        raise ValueError(
            f"`model` has weights in {sorted(dtypes)}, and ONNX graphs need float32; load it with `dtype=torch.float32`."
        )


def check_processor(processor: LlmAsrProcessor) -> None:
    """Raise a `ValueError` if the runner cannot do what the processor does."""
    extractor = processor.feature_extractor
    if type(extractor) is not WhisperFeatureExtractor or extractor.dither:
        raise ValueError(
            f"The feature extractor {type(extractor).__name__} (or its `dither`) cannot be exported; use Whisper's."
        )
    if processor.log_mel_maximum != "recording":
        raise ValueError(f"`log_mel_maximum` {processor.log_mel_maximum!r} cannot be exported; only 'recording' can.")
    if processor.audio_padding not in ("longest", "max_length"):
        raise ValueError(
            f"`audio_padding` {processor.audio_padding!r} cannot be exported; only 'longest' and 'max_length' can."
        )
    if not processor.tokenizer.is_fast:
        raise ValueError(
            f"The tokenizer {type(processor.tokenizer).__name__} has no `tokenizer.json`; use a fast tokenizer."
        )


def describe_decoding(generation_config: GenerationConfig) -> dict[str, Any]:
    """
    What the runner needs of the settings of `generate`.

    Raises:
        `ValueError`: If they ask for more than greedy decoding up to an end token.
    """
    changed = generation_config.to_diff_dict()
    others = sorted(name for name in changed if name not in (*FOLLOWED, *WITHOUT_EFFECT) and not name.startswith("_"))
    if generation_config.do_sample:
        others.append("do_sample")
    if generation_config.num_beams not in (None, 1):
        others.append("num_beams")
    if others:
        raise ValueError(
            f"`generation_config` sets {others}, and ONNX graphs are run by plain greedy decoding; remove them from "
            "`model.generation_config`."
        )
    end = generation_config.eos_token_id
    if end is None:
        raise ValueError("`generation_config.eos_token_id` is not set, so that no transcript would end; set it.")
    limits = {name: changed.get(name) for name in ("max_new_tokens", "max_new_tokens_per_second")}
    if not any(limits.values()):
        raise ValueError(
            "`generation_config` has neither `max_new_tokens_per_second` nor `max_new_tokens`, so that a transcript might never "
            "end; set one of them (20 tokens a second are usual)."
        )
    return {"eos_token_ids": [end] if isinstance(end, int) else list(end), **limits, "spare_tokens": SPARE_TOKENS}


def describe_audio(processor: LlmAsrProcessor) -> dict[str, int]:
    """What the runner needs to compute log-mel features: numbers of samples, all at `sampling_rate`."""
    extractor = processor.feature_extractor
    longest = extractor.n_samples if processor.max_audio_samples is None else processor.max_audio_samples
    return {
        "sampling_rate": processor.sampling_rate,
        "n_fft": extractor.n_fft,
        "hop_length": extractor.hop_length,
        "window_samples": extractor.n_samples,
        "min_audio_samples": processor.min_audio_samples,
        "max_audio_samples": min(extractor.n_samples, longest),
    }


def describe_prompts(processor: LlmAsrProcessor) -> dict[str, dict[str, list[int]]]:
    """
    Tokens before and after the recording: for `""` (no language is named), `"identify"` (the answer names it), and the code of
    each language.
    """
    requests: dict[str, dict[str, Any]] = {"": {}, "identify": {"identify_language": True}}
    requests |= {code: {"language": code} for code in processor.languages}
    # Prompts are rendered without reading recordings.
    texts = [
        processor.apply_transcription_request([""], tokenize=False, **request)[0] for request in requests.values()
    ]
    prompts = {}
    for name, text in zip(requests, texts, strict=True):
        ids = processor.tokenize_requests([text])["input_ids"][0].tolist()
        place = ids.index(processor.audio_token_id)
        prompts[name] = {"before": ids[:place], "after": ids[place + 1 :]}
    return prompts


@dataclass
class OnnxGraph:
    """
    A part of a model and how it is written.

    Attributes:
        module (`nn.Module`): The part.
        inputs (`dict[str, Any]`): Arguments of its `forward`, as an example.
        input_names, output_names (`list[str]`): Names of the tensors of the graph.
        dynamic_shapes (`dict[str, Any]`): Dimensions that are not fixed, as `torch.export` takes them.
    """

    module: nn.Module
    inputs: dict[str, Any]
    input_names: list[str]
    output_names: list[str]
    dynamic_shapes: dict[str, Any]


def list_graphs(model: LlmAsrForConditionalGeneration) -> dict[str, OnnxGraph]:
    """The graphs of a model that [`check_parts`] accepts, by the names of their files. They share its weights."""
    config, whole = model.config, model.model
    audio_config = config.audio_config
    both = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    return {
        "encoder": OnnxGraph(
            EncoderGraph(whole.audio_tower, config.encoder_padding),
            {"input_features": torch.randn(1, audio_config.num_mel_bins, 47)},
            ["input_features"],
            ["audio_hidden_states"],
            {"input_features": {2: Dim.DYNAMIC}},
        ),
        "projector": OnnxGraph(
            ProjectorGraph(whole.projector),
            {"audio_hidden_states": torch.randn(1, 47, audio_config.hidden_size)},
            ["audio_hidden_states"],
            ["audio_embeds"],
            {"audio_hidden_states": {1: Dim.DYNAMIC}},
        ),
        "embed_tokens": OnnxGraph(
            EmbeddingGraph(model.get_input_embeddings()),
            {"input_ids": torch.ones(2, 3, dtype=torch.long)},
            ["input_ids"],
            ["inputs_embeds"],
            {"input_ids": both},
        ),
        "decoder": _describe_decoder(extract_language_model(model)),
    }


def _describe_decoder(text_model: PreTrainedModel) -> OnnxGraph:
    hidden_size = text_model.config.hidden_size
    # Families configure the sizes of keys and values by different names, so a pass tells them.
    cache = DynamicCache()
    with torch.no_grad():
        text_model.base_model(inputs_embeds=torch.zeros(2, 5, hidden_size), use_cache=True, **{CACHE_NAME: cache})
    past = list_keys_and_values(cache)
    names = [f"{layer}.{kind}" for layer in range(len(past) // 2) for kind in ("key", "value")]
    inputs = {
        "inputs_embeds": torch.randn(2, 3, hidden_size),
        "attention_mask": torch.ones(2, 8, dtype=torch.long),
        "position_ids": torch.arange(5, 8).repeat(2, 1),
    }
    dynamic_shapes: dict[str, Any] = {name: {0: Dim.DYNAMIC, 1: Dim.DYNAMIC} for name in inputs}
    return OnnxGraph(
        DecoderGraph(text_model),
        {**inputs, "past": past},
        [*inputs, *(f"past_key_values.{name}" for name in names)],
        ["logits", *(f"present.{name}" for name in names)],
        {**dynamic_shapes, "past": [{0: Dim.DYNAMIC, 2: Dim.DYNAMIC}] * len(past)},
    )


def write_graph(graph: OnnxGraph, file: Path, dtype: str = "float32") -> None:
    """
    Write a graph to `file`, and its weights beside it, because a file of more than two gigabytes is not valid.

    Args:
        graph ([`OnnxGraph`]): From [`list_graphs`]. Its module is put into eval mode.
        file (`Path`): File to write.
        dtype (`str`, *optional*, defaults to `"float32"`): See [`export_onnx`].

    Raises:
        `ValueError`: If PyTorch cannot export the part, for instance because its positions depend on values at run time.
    """
    try:
        _write(graph, file, dtype)
    except torch.onnx.OnnxExporterError as error:
        cause = error.__cause__ or error
        reason = (str(cause).splitlines() or [type(cause).__name__])[0]
        raise ValueError(
            f"PyTorch {torch.__version__} cannot export the part {file.stem!r} as an ONNX graph: {reason}"
        ) from error


def _write(graph: OnnxGraph, file: Path, dtype: str) -> None:
    if dtype == "float32":
        return _write_float32(graph, file)
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with TemporaryDirectory(dir=file.parent) as scratch:
        original, prepared = Path(scratch, "original.onnx"), Path(scratch, "prepared.onnx")
        _write_float32(graph, original)
        quant_pre_process(
            original,
            prepared,
            skip_optimization=True,
            skip_symbolic_shape=True,
            save_as_external_data=True,
            all_tensors_to_one_file=True,
            external_data_location="prepared.onnx.data",
        )
        quantize_dynamic(
            prepared,
            file,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            # Sums of products of 8 bits overflow on CPUs without VNNI instructions.
            reduce_range=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
            extra_options={"MatMulConstBOnly": True},
        )


@torch.no_grad()
def _write_float32(graph: OnnxGraph, file: Path) -> None:
    with warnings.catch_warnings(), _without_notes("torch.onnx"):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph.module.eval(),
            kwargs=graph.inputs,
            f=file,
            dynamo=True,
            external_data=True,
            verbose=False,
            input_names=graph.input_names,
            output_names=graph.output_names,
            dynamic_shapes=graph.dynamic_shapes,
        )


@contextmanager
def _without_notes(name: str) -> Iterator[None]:
    """Hide what a logger says below an error: PyTorch's exporter names packages that it does not need."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


__all__ = ["ONNX_DTYPES", "OnnxGraph", "check_packages", "export_onnx", "list_graphs", "write_graph"]
