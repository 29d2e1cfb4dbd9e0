"""Checkpoints in half precision on CPUs that have no instructions for it."""

import argparse
import asyncio

import pytest
import torch
from tiny_models import compose
from transformers import AutoModelForCausalLM, pipeline
from transformers.utils import logging

from llm_asr import LlmAsrForConditionalGeneration, LlmAsrProcessor
from llm_asr.commands.serve import vllm_dtype
from llm_asr.commands.transcribe import load_transcriber
from llm_asr.processing.cpu_precision import is_slow_on_cpu, slow_dtypes
from llm_asr.publishing.export import export_for_serving
from llm_asr.serving.front_end_runner import FrontEndRunner
from llm_asr.serving.settings import ServerSettings
from llm_asr.serving.transformers_engine import TransformersEngine


CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(parts, tmp_path_factory):
    """A checkpoint with a float16 speech encoder, a float32 projector and a bfloat16 language model."""
    folder = tmp_path_factory.mktemp("half")
    model, processor = compose(parts, "moe_cif", draft_head=True)
    model.model.audio_tower.half()
    model.model.language_model.bfloat16()
    model.lm_head.bfloat16()
    model.generation_config.max_new_tokens = 4
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def set_capabilities(monkeypatch, *names):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, **dict.fromkeys(names, True)})


@pytest.mark.parametrize(
    ("names", "slow"),
    [
        ((), {torch.float16, torch.bfloat16}),
        (("avx512_f", "avx512_vnni"), {torch.float16, torch.bfloat16}),
        (("avx512_f", "avx512_bf16"), {torch.float16}),
        (("amx_bf16", "avx512_fp16"), set()),
        (("neon", "bf16", "fp16_arith"), set()),
    ],
)
def test_dtypes_without_instructions_are_slow(monkeypatch, names, slow):
    set_capabilities(monkeypatch, *names)
    dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8)
    assert {dtype for dtype in dtypes if is_slow_on_cpu(dtype)} == slow


def arguments(checkpoint, dtype):
    return argparse.Namespace(model=str(checkpoint), device="cpu", dtype=dtype, trust_remote_code=False)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("auto", {torch.float32}), ("bfloat16", {torch.bfloat16})],
)
def test_the_command_uses_float32_by_default(monkeypatch, checkpoint, dtype, expected):
    set_capabilities(monkeypatch)
    model = load_transcriber(arguments(checkpoint, dtype)).model
    assert {parameter.dtype for parameter in model.parameters()} == expected


def test_the_command_keeps_dtypes_with_fast_instructions(monkeypatch, checkpoint):
    set_capabilities(monkeypatch, "avx512_bf16")
    model = load_transcriber(arguments(checkpoint, "auto")).model
    assert model.model.audio_tower.dtype == torch.float32
    assert model.lm_head.weight.dtype == torch.bfloat16


def test_the_pipeline_warns_once(monkeypatch, checkpoint, recordings):
    set_capabilities(monkeypatch)
    warnings = []
    logger = logging.get_logger("llm_asr.processing.pipeline_llm_asr")
    monkeypatch.setattr(logger, "warning_once", warnings.append)
    transcriber = pipeline("automatic-speech-recognition", model=str(checkpoint))
    transcriber(recordings[0])
    assert len(warnings) == 1
    assert "weights in bfloat16 and float16" in warnings[0]
    assert "Pass `dtype=torch.float32` to `pipeline`" in warnings[0]
    fast = pipeline("automatic-speech-recognition", model=str(checkpoint), dtype=torch.float32)
    fast(recordings[0])
    assert len(warnings) == 1


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    model = LlmAsrForConditionalGeneration.from_pretrained(checkpoint)
    export_for_serving(model, LlmAsrProcessor.from_pretrained(checkpoint), folder)
    return folder


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_the_server_uses_float32_by_default(monkeypatch, exported, dtype):
    set_capabilities(monkeypatch)
    front_end = FrontEndRunner(exported / "front_end", dtype, CPU, ServerSettings(), lambda size: None)
    assert bool(slow_dtypes(front_end.model)) == (dtype == "bfloat16")
    engine = TransformersEngine(exported / "language_model", dtype, CPU, 1, 1)

    async def start():
        await engine.start()
        await engine.stop()

    asyncio.run(start())
    assert bool(slow_dtypes(engine.model)) == (dtype == "bfloat16")
    assert vllm_dtype(dtype, CPU, exported / "language_model") == ("float32" if dtype == "auto" else dtype)


def test_vllm_chooses_the_dtype_on_fast_cpus_and_gpus(monkeypatch, exported):
    set_capabilities(monkeypatch, "amx_bf16")
    assert AutoModelForCausalLM.from_pretrained(exported / "language_model").dtype == torch.bfloat16
    assert vllm_dtype("auto", CPU, exported / "language_model") == "auto"
    set_capabilities(monkeypatch)
    assert vllm_dtype("auto", torch.device("cuda"), exported / "language_model") == "auto"
