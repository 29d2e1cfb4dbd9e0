"""Weights of 8 bits: in Python, in the commands and in the server."""

import argparse
import asyncio

import pytest
import soundfile
import torch
from test_cpu_precision import CPU, arguments
from tiny_models import compose
from torch import nn
from transformers import pipeline

from llm_asr import LlmAsrForConditionalGeneration, LlmAsrProcessor
from llm_asr.cli import main
from llm_asr.commands.options import UsageError, check_dtype
from llm_asr.commands.serve import make_server
from llm_asr.commands.transcribe import load_transcriber
from llm_asr.processing.cpu_int8 import quantize_int8
from llm_asr.publishing.export import export_for_serving
from llm_asr.serving.front_end_runner import FrontEndRunner
from llm_asr.serving.settings import ServerSettings
from llm_asr.serving.transformers_engine import TransformersEngine
from llm_asr.training.lora import add_lora


@pytest.fixture(scope="module")
def checkpoint(parts, tmp_path_factory):
    """A bfloat16 checkpoint."""
    folder = tmp_path_factory.mktemp("model")
    model, processor = compose(parts, "moe_cif", draft_head=True)
    model.generation_config.max_new_tokens = 6
    model.bfloat16().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def pair(checkpoint):
    processor = LlmAsrProcessor.from_pretrained(checkpoint)
    return LlmAsrForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval(), processor


def linear_layers(module):
    return [name for name, layer in module.named_modules() if type(layer) is nn.Linear]


@torch.no_grad()
def test_encoder_and_language_model_have_8_bits_and_compute_almost_the_same(pair, recordings):
    model, processor = pair
    inputs = processor.apply_transcription_request(recordings)
    expected = model(**inputs).logits
    size = sum(parameter.numel() for parameter in model.parameters())
    quantize_int8(model)
    assert not linear_layers(model.model.audio_tower)
    assert not linear_layers(model.model.language_model)
    assert linear_layers(model.draft_head)
    assert type(model.lm_head) is nn.Linear
    assert sum(parameter.numel() for parameter in model.parameters()) < 0.6 * size
    logits = model(**inputs).logits
    real = inputs["attention_mask"].bool()
    error = (logits - expected)[real].norm() / expected[real].norm()
    assert 0 < error < 0.15
    # Rows of a batch are quantised by the range of the whole batch, so a row alone differs a little.
    assert model.generate(**inputs).shape[0] == len(recordings)
    assert model.generate(**processor.apply_transcription_request(recordings[0]), use_draft=True).shape[0] == 1


def test_what_cannot_be_quantised_is_refused(pair):
    model, _ = pair
    with pytest.raises(ValueError, match="merge_and_unload"):
        quantize_int8(add_lora(model, rank=2))
    quantize_int8(LlmAsrForConditionalGeneration(model.config))
    other = LlmAsrForConditionalGeneration(model.config)
    quantize_int8(other)
    with pytest.raises(ValueError, match="quantised already"):
        quantize_int8(other)
    with torch.device("meta"), pytest.raises(ValueError, match="on the CPU"):
        quantize_int8(LlmAsrForConditionalGeneration(model.config))
    with pytest.raises(UsageError, match="--device cpu"):
        check_dtype("int8", torch.device("cuda"))


def test_the_command_transcribes_with_8_bits(checkpoint, recordings, tmp_path, capsys):
    transcriber = load_transcriber(arguments(checkpoint, "int8"))
    assert not linear_layers(transcriber.model.model.language_model)
    soundfile.write(tmp_path / "one.wav", recordings[1], 16000)
    expected = transcriber(str(tmp_path / "one.wav"))["text"]
    command = [
        "transcribe",
        str(tmp_path / "one.wav"),
        "--model",
        str(checkpoint),
        "--device",
        "cpu",
        "--dtype",
        "int8",
    ]
    assert main(command) == 0
    assert expected in capsys.readouterr().out
    whole = pipeline("automatic-speech-recognition", model=str(checkpoint), dtype=torch.float32)
    quantize_int8(whole.model)
    assert whole(str(tmp_path / "one.wav"))["text"] == expected


def test_the_server_computes_with_8_bits(checkpoint, tmp_path):
    exported = tmp_path / "exported"
    model = LlmAsrForConditionalGeneration.from_pretrained(checkpoint)
    export_for_serving(model, LlmAsrProcessor.from_pretrained(checkpoint), exported)
    front_end = FrontEndRunner(exported / "front_end", "int8", CPU, ServerSettings(), lambda size: None)
    assert not linear_layers(front_end.model.audio_tower)
    engine = TransformersEngine(exported / "language_model", "int8", CPU, 1, 1)

    async def start():
        await engine.start()
        await engine.stop()

    asyncio.run(start())
    assert linear_layers(engine.model) == ["lm_head"]
    options = argparse.Namespace(
        model=str(checkpoint), device="cpu", dtype="int8", engine="vllm", served_model_name=None
    )
    with pytest.raises(ValueError, match="--engine transformers"):
        make_server(options, ServerSettings())
