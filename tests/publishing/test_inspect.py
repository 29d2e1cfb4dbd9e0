"""`llm-asr inspect`, on checkpoints of every form."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import compose

from llm_asr import LlmAsrForConditionalGeneration
from llm_asr.cli import main
from llm_asr.publishing.checkpoint_forms import save_checkpoint
from llm_asr.publishing.inspect import inspect_checkpoint
from llm_asr.publishing.remote_code import write_remote_code
from llm_asr.training.lora import add_lora


@pytest.fixture(scope="module")
def full(parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspected") / "full"
    model, processor = compose(parts, "moe_cif", text="qwen2-tied")
    model.model.audio_tower.bfloat16()
    save_checkpoint(model, processor, folder)
    return folder


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_sizes_of_parts_equal_those_of_the_loaded_model(full):
    report = inspect_checkpoint(full)
    model = LlmAsrForConditionalGeneration.from_pretrained(full).model
    buffers = sum(
        buffer.numel() for name, buffer in model.projector.named_buffers() if name in model.projector.state_dict()
    )
    assert report["form"] == "full"
    assert {name: part["parameters"] for name, part in report["parts"].items()} == {
        "audio_tower": count(model.audio_tower),
        "projector": count(model.projector) + buffers,
        # A tied head has no tensor of its own.
        "language_model": count(model.language_model),
    }
    assert report["parts"]["audio_tower"]["dtypes"] == ["BF16"]
    assert report["parts"]["audio_tower"]["bytes"] == 2 * count(model.audio_tower)
    assert report["parts"]["language_model"]["dtypes"] == ["F32"]
    # The remaining bytes of the file are its header.
    header = report["bytes"] - sum(part["bytes"] for part in report["parts"].values())
    assert 0 < header < 20_000
    assert report["files"] == {"model.safetensors": (full / "model.safetensors").stat().st_size}


def test_weights_are_not_read(full, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("weights were read")

    monkeypatch.setattr(torch.nn.Module, "load_state_dict", refuse)
    monkeypatch.setattr("safetensors.torch.load_file", refuse)
    monkeypatch.setattr("llm_asr.modeling.checkpoint_safety.hash_files", refuse)
    inspect_checkpoint(full)


@pytest.mark.parametrize(
    ("projector_type", "has", "has_not"),
    [
        ("conv", {"conv_strides"}, {"num_experts", "cif_threshold", "router_aux_loss_coef", "draft_head", "merge"}),
        ("moe", {"num_experts", "routing_level", "norm_topk_prob"}, {"cif_threshold", "quantity_loss_coef"}),
        ("cif", {"cif_threshold", "expected_tokens_per_second", "draft_head"}, {"num_experts", "router_type"}),
        ("stack", {"stack_size", "mlp_bias"}, {"conv_strides", "hidden_size", "num_experts", "cif_threshold"}),
        ("moe_stack", {"stack_size", "num_experts"}, {"conv_kernel_size", "mlp_bias", "intermediate_size"}),
    ],
)
def test_a_projector_is_described_by_the_options_of_its_type(parts, tmp_path, projector_type, has, has_not):
    save_checkpoint(*compose(parts, projector_type), tmp_path / "checkpoint")
    projector = inspect_checkpoint(tmp_path / "checkpoint")["projector"]
    assert projector["projector_type"] == projector_type
    assert "stack" in projector_type or projector["hidden_size"] == 32
    assert has <= set(projector)
    assert not has_not & set(projector)


def test_provenance(full, parts, tmp_path):
    report = inspect_checkpoint(full)
    assert report["speech_encoder"] == {"model_type": "whisper", "name_or_path": parts["whisper"], "revision": None}
    assert report["language_model"]["model_type"] == "qwen2"
    provenance = report["provenance"]
    assert provenance["base"] is None
    assert provenance["checksums"]
    assert provenance["code"] is None
    assert provenance["training"] is None
    assert report["languages"] == {"card": None, "named": 119}

    model, processor = compose(parts, "conv")
    save_checkpoint(model, processor, tmp_path / "checkpoint")
    write_remote_code(tmp_path / "checkpoint")
    (tmp_path / "checkpoint/README.md").write_text("---\nlanguage:\n- en\n- es\n---\n")
    assert inspect_checkpoint(tmp_path / "checkpoint")["languages"]["card"] == ["en", "es"]
    code = inspect_checkpoint(tmp_path / "checkpoint")["provenance"]["code"]
    assert code["files"] > 10
    assert code["differing"] == []
    (tmp_path / "checkpoint/cif.py").write_text("raise RuntimeError")
    (tmp_path / "checkpoint/evil.py").touch()
    code = inspect_checkpoint(tmp_path / "checkpoint")["provenance"]["code"]
    assert code["differing"] == ["cif.py", "evil.py"]


def test_slim_and_adapter(full, parts, tmp_path):
    model, processor = compose(parts, "cif")
    save_checkpoint(model, processor, tmp_path / "base")
    model = add_lora(LlmAsrForConditionalGeneration.from_pretrained(tmp_path / "base"), 2, 4, 0.0)
    lora = sum(parameter.numel() for name, parameter in model.named_parameters() if "lora_" in name)
    projector = count(model.get_base_model().model.projector.modules_to_save["default"])
    backbones = {"audio_tower": parts["whisper"], "language_model": parts["qwen2"]}
    save_checkpoint(model, processor, tmp_path / "slim", "slim", backbones=backbones)
    save_checkpoint(model, processor, tmp_path / "adapter", "adapter")

    slim = inspect_checkpoint(tmp_path / "slim")
    assert slim["form"] == "slim"
    assert slim["parts"]["language_model, LoRA"]["parameters"] == lora
    assert slim["parts"]["projector"]["parameters"] == projector
    assert "audio_tower" not in slim["parts"]
    assert slim["speech_encoder"]["name_or_path"] == parts["whisper"]
    assert set(slim["files"]) == {"model.safetensors", "adapter/adapter_model.safetensors"}

    adapter = inspect_checkpoint(tmp_path / "adapter")
    assert adapter["form"] == "adapter"
    assert adapter["parts"]["language_model, LoRA"]["parameters"] == lora
    assert adapter["parts"]["projector"]["parameters"] == projector
    assert adapter["projector"] is adapter["speech_encoder"] is None
    assert adapter["provenance"]["base"]["base_model_name_or_path"] == str(tmp_path / "base")


def test_on_the_command_line(full, capsys):
    assert main(["inspect", str(full), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == inspect_checkpoint(full)
    assert main(["inspect", str(full)]) == 0
    printed = capsys.readouterr().out
    for text in ("full checkpoint", "audio_tower", "BF16", "moe_cif", "origin", "119", "SHA256SUMS", "not recorded"):
        assert text in printed or text == "origin"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
        (lambda folder: (folder / "config.json").unlink(), "has neither config.json nor adapter_config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has neither model.safetensors nor"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x09"), "cut short or damaged"),
        (
            lambda folder: (folder / "processor_config.json").write_text("{"),
            "is cut short or damaged",
        ),
    ],
)
def test_a_folder_without_a_checkpoint_is_refused(parts, tmp_path, capsys, spoil, message):
    save_checkpoint(*compose(parts, "conv"), tmp_path / "checkpoint")
    spoil(tmp_path / "checkpoint")
    assert main(["inspect", str(tmp_path / "checkpoint")]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_folder_is_named(capsys):
    assert main(["inspect", "absent"]) == 2
    assert "absent" in capsys.readouterr().err


def test_rows_of_an_embedding_are_counted_without_reading_their_values(parts, tmp_path):
    model, processor = compose(parts, "conv", text="qwen2-tied")
    with torch.no_grad():
        model.get_input_embeddings().weight[[3, 5]] += 1
    save_checkpoint(model, processor, tmp_path / "slim", "slim")
    part = inspect_checkpoint(tmp_path / "slim")["parts"]["language_model"]
    saved = load_file(tmp_path / "slim/model.safetensors")
    rows = len(saved["model.language_model.embed_tokens.weight:rows"])
    assert rows >= 2
    assert part == {"parameters": rows * 40, "bytes": rows * (40 * 4 + 8), "dtypes": ["F32"]}
