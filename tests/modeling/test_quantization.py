"""The language model in 8 and 4 bits. Tests with quantised weights need bitsandbytes or torchao."""

import importlib.util

import pytest
import torch
from peft import PeftModel
from tiny_models import compose
from transformers import AutoModelForSpeechSeq2Seq, BitsAndBytesConfig, GPTQConfig, TorchAoConfig

from llm_asr import LlmAsrForConditionalGeneration
from llm_asr.modeling.quantization import UNQUANTIZED, quantize_language_model_alone
from llm_asr.training.lora import add_lora


def test_only_the_language_model_is_quantised():
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["model.layers.0", "down_proj"])
    quantized = quantize_language_model_alone(config, layer_prefix="model")
    assert quantized.llm_int8_skip_modules == ["model.language_model.layers.0", "down_proj", *UNQUANTIZED]
    assert config.llm_int8_skip_modules == ["model.layers.0", "down_proj"]
    assert quantize_language_model_alone(quantized).llm_int8_skip_modules == quantized.llm_int8_skip_modules
    from_dict = quantize_language_model_alone({"load_in_4bit": True})
    assert from_dict.load_in_4bit
    assert from_dict.llm_int8_skip_modules == UNQUANTIZED
    with pytest.raises(ValueError, match="`quantization_config` is a GPTQConfig"):
        quantize_language_model_alone(GPTQConfig(bits=4))


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_a_missing_library_is_named(parts, tmp_path):
    model, _ = compose(parts, "conv")
    model.save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_4bit=True)
    with pytest.raises(ImportError, match="pip install -U bitsandbytes"):
        LlmAsrForConditionalGeneration.from_pretrained(tmp_path, quantization_config=config)
    with pytest.raises(ImportError, match="pip install -U bitsandbytes"):
        compose(parts, "conv", text_kwargs={"quantization_config": config})


@pytest.fixture(params=["bitsandbytes-8", "bitsandbytes-4", "torchao-8"])
def quantization_config(request, monkeypatch):
    library, _, bits = request.param.partition("-")
    pytest.importorskip(library)
    if library == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(Int8WeightOnlyConfig())
    # On some CPUs bitsandbytes repacks weights at the first evaluation. It then cannot compute gradients through them.
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    if bits == "8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)


def count_linear(module, quantized=False):
    """Number of linear layers in `module`. The weight of a quantised layer has another class."""
    weights = [layer.weight for layer in module.modules() if isinstance(layer, torch.nn.Linear)]
    return sum(type(weight) is not torch.nn.Parameter for weight in weights) if quantized else len(weights)


@pytest.fixture(params=["composed", "loaded"])
def quantized(request, parts, tmp_path, quantization_config):
    """A quantised model and its processor."""
    if request.param == "composed":
        return compose(parts, "moe_cif", draft_head=True, text_kwargs={"quantization_config": quantization_config})
    model, processor = compose(parts, "moe_cif", draft_head=True)
    model.save_pretrained(tmp_path / "whole")
    return (
        AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "whole", quantization_config=quantization_config),
        processor,
    )


def test_the_language_model_alone_is_quantised_and_saved(quantized, recordings, tmp_path):
    model, processor = quantized
    request = processor.apply_transcription_request(recordings)
    expected = model.generate(**request, max_new_tokens=8)
    model.save_pretrained(tmp_path / "quantised")
    reloaded = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "quantised")
    for found in (model, reloaded):
        num_layers = count_linear(found.model.language_model)
        assert num_layers == 14
        assert count_linear(found.model.language_model, quantized=True) == num_layers
        assert count_linear(found, quantized=True) == num_layers
        assert found.is_quantized
        assert not hasattr(found.config.text_config, "quantization_config")
    assert torch.equal(reloaded.generate(**request, max_new_tokens=8), expected)
    assert all(
        torch.equal(tensor, model.state_dict()[name])
        for name, tensor in reloaded.state_dict().items()
        if "language_model.layers" not in name
    )


def test_lora_and_projector_are_trained_with_a_quantised_language_model(quantized, recordings, tmp_path):
    model, processor = quantized
    model.save_pretrained(tmp_path / "base")
    batch = processor.apply_transcription_request(recordings[:2], transcription=["one two", "tres"])
    adapted = add_lora(model, rank=4, dropout=0.0)
    learning = {name: parameter for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    with torch.no_grad(), adapted.disable_adapter():
        before = adapted.eval()(**batch).logits
    optimizer = torch.optim.AdamW(learning.values(), lr=1e-2)
    losses = []
    adapted.train()
    for step in range(5):
        loss = adapted(**batch).loss
        loss.backward()
        losses.append(loss.item())
        if step:  # the second factor of LoRA is zero in the first step
            assert all(parameter.grad.any() for parameter in learning.values())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.8 * losses[0]

    adapted.eval().save_pretrained(tmp_path / "adapter")
    base = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "base")
    reloaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        assert torch.allclose(reloaded(**batch).logits, adapted(**batch).logits, atol=1e-4)
        with adapted.disable_adapter():
            assert torch.allclose(adapted(**batch).logits, before, atol=1e-4)
