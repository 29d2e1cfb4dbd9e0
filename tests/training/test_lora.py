"""LoRA with PEFT's variants, with merging, and with an adapter for each language."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from speech_files import write_speech_dataset
from test_training import recipe
from tiny_models import compose
from transformers import AutoModelForSpeechSeq2Seq

from llm_asr import LlmAsrForConditionalGeneration
from llm_asr.training import program as train
from llm_asr.training.lora import add_lora


VARIANTS = {
    "lora": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "attention alone": {"target_modules": ["q_proj", "v_proj"]},
}


@pytest.fixture
def batches(parts, recordings):
    """A request, and training batches of two languages."""
    _, processor = compose(parts, "moe_cif")
    requests = processor.apply_transcription_request(recordings[:2])
    english = processor.apply_transcription_request(recordings[:2], transcription=["one two", "three"])
    spanish = processor.apply_transcription_request(recordings[:2], transcription=["uno", "dos tres cuatro"])
    return {"request": requests, "en": english, "es": spanish}


@pytest.fixture(scope="module")
def base(parts, tmp_path_factory):
    """The folder of the base model of adapters."""
    folder = tmp_path_factory.mktemp("base")
    model, _ = compose(parts, "moe_cif", draft_head=True)
    model.save_pretrained(folder)
    return folder


def load_base(base):
    model = LlmAsrForConditionalGeneration.from_pretrained(base)
    torch.manual_seed(0)
    return model


def fit(model, batch, steps=3):
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def logits(model, batch, **kwargs):
    return model.eval()(**batch, **kwargs).logits


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_variants_are_reloaded_and_merged(base, batches, tmp_path, options):
    model = load_base(base)
    untrained = logits(model, batches["en"])
    weights = set(model.state_dict())
    adapted = fit(add_lora(model, rank=4, dropout=0.0, **options), batches["en"])
    expected = logits(adapted, batches["en"])
    assert not torch.allclose(expected, untrained, atol=0.1)
    adapted.save_pretrained(tmp_path)

    reloaded = PeftModel.from_pretrained(load_base(base), tmp_path)
    for name, value in options.items():
        wanted = set(value) if isinstance(value, list) else value
        assert getattr(reloaded.active_peft_config, name) == wanted
    assert torch.allclose(logits(reloaded, batches["en"]), expected, atol=1e-4)
    merged = reloaded.merge_and_unload()
    assert type(merged) is LlmAsrForConditionalGeneration
    assert set(merged.state_dict()) == weights
    assert torch.allclose(logits(merged, batches["en"]), expected, atol=1e-4)


@pytest.mark.parametrize("projector_type", ["stack", "moe_qformer", "ctc"])
def test_the_whole_projector_is_trained_and_reloaded(parts, batches, tmp_path, projector_type):
    compose(parts, projector_type)[0].save_pretrained(tmp_path / "base")
    adapted = add_lora(load_base(tmp_path / "base"), rank=4, dropout=0.0)
    before = {name: tensor.clone() for name, tensor in adapted.named_parameters()}
    layers = [name for name in before if "lora_" in name]
    assert all(".language_model.layers." in name for name in layers)
    adapted = fit(adapted, batches["en"])
    for name, parameter in adapted.named_parameters():
        is_trained = "lora_" in name or ".projector.modules_to_save." in name
        assert parameter.requires_grad == is_trained, name
        assert torch.equal(parameter, before[name]) != is_trained, name
    expected = logits(adapted, batches["en"])
    adapted.save_pretrained(tmp_path / "adapter")
    reloaded = PeftModel.from_pretrained(load_base(tmp_path / "base"), tmp_path / "adapter")
    assert torch.allclose(logits(reloaded, batches["en"]), expected, atol=1e-4)
    assert torch.allclose(logits(reloaded.merge_and_unload(), batches["en"]), expected, atol=1e-4)


def test_target_modules_are_layers_of_the_language_model_by_default(base):
    """Speech encoders also have a `q_proj`."""
    adapted = add_lora(load_base(base), rank=2, target_modules=["q_proj"])
    layers = {name.partition(".lora_")[0] for name, _ in adapted.named_parameters() if "lora_" in name}
    assert layers == {f"base_model.model.model.language_model.layers.{i}.self_attn.q_proj" for i in (0, 1)}
    everywhere = add_lora(load_base(base), rank=2, target_modules=["q_proj"], exclude_modules=None)
    assert any("audio_tower" in name for name, _ in everywhere.named_parameters() if "lora_" in name)


def test_options_that_peft_does_not_know_are_refused(base):
    with pytest.raises(TypeError, match="use_dorra"):
        add_lora(load_base(base), rank=2, use_dorra=True)
    adapted = add_lora(load_base(base), rank=2, adapter_name="es")
    with pytest.raises(ValueError, match="`adapter_name`: the model has an adapter 'es'"):
        add_lora(adapted, rank=2, adapter_name="es")


def test_languages_have_their_own_adapters(base, batches, tmp_path):
    """The adapters are trained one after the other on the same base, and saved and loaded together."""
    model = add_lora(load_base(base), rank=4, dropout=0.0, adapter_name="en")
    untrained = logits(load_base(base), batches["en"])
    fit(model, batches["en"])
    expected = {"en": logits(model, batches["en"])}
    add_lora(model, rank=2, dropout=0.0, adapter_name="es", use_dora=True)
    assert model.peft_config["es"].target_modules == model.peft_config["en"].target_modules
    # The second adapter starts from the base, and not from the first adapter.
    assert torch.allclose(logits(model, batches["en"]), untrained, atol=1e-4)
    fit(model, batches["es"])
    expected["es"] = logits(model, batches["en"])
    assert not torch.allclose(expected["es"], expected["en"], atol=0.1)
    model.save_pretrained(tmp_path)

    loaded = PeftModel.from_pretrained(load_base(base), tmp_path / "en", adapter_name="en")
    loaded.load_adapter(tmp_path / "es", adapter_name="es")
    for adapted in (model, loaded):
        for language in ("en", "es"):
            adapted.set_adapter(language)
            torch.testing.assert_close(
                logits(adapted, batches["en"]), expected[language], msg=f"{language}: {{}}".format
            )
        with adapted.disable_adapter():
            assert torch.allclose(logits(adapted, batches["en"]), untrained, atol=1e-4)
    loaded.set_adapter("en")
    merged = loaded.merge_and_unload()
    assert torch.allclose(logits(merged, batches["en"]), expected["en"], atol=1e-4)


@pytest.mark.parametrize("num_beams", [1, 2])
def test_rows_of_a_batch_have_their_own_adapters_over_one_projector(base, batches, num_beams):
    adapted = load_base(base)
    for language in ("en", "es"):
        adapted = add_lora(adapted, rank=4, dropout=0.0, adapter_name=language, modules_to_save=[])
        assert all("lora_" in name for name, parameter in adapted.named_parameters() if parameter.requires_grad)
        fit(adapted, batches[language])
    options = {"max_new_tokens": 6, "num_beams": num_beams}
    mixed = logits(adapted, batches["en"], adapter_names=["en", "es"])
    mixed_ids = adapted.generate(**batches["request"], adapter_names=["en", "es"], **options)
    for row, language in enumerate(("en", "es")):
        adapted.set_adapter(language)
        alone = logits(adapted, batches["en"])[row]
        assert torch.allclose(mixed[row], alone, atol=1e-5)
        ids = adapted.generate(**batches["request"], **options)[row]
        length = min(len(ids), mixed_ids.shape[1])
        assert torch.equal(mixed_ids[row, :length], ids[:length])
    assert not torch.allclose(mixed[1], logits(adapted, batches["en"], adapter_names=["en", "en"])[1], atol=0.1)


def test_rows_with_their_own_projectors_are_refused(base, batches):
    adapted = add_lora(add_lora(load_base(base), rank=2, adapter_name="en"), rank=2, adapter_name="es")
    with pytest.raises(TypeError, match="Mixed batching is only supported"):
        logits(adapted, batches["en"], adapter_names=["en", "es"])


def test_a_recipe_names_options_of_peft(parts, tmp_path):
    dataset_file = write_speech_dataset(tmp_path / "speech")
    options = {
        "lora_rank": 2,
        "lora_config": {"use_dora": True},
        "freeze_text": True,
        "do_eval": False,
        "max_steps": 2,
    }
    train.main([recipe(parts, dataset_file, tmp_path / "run", **options)])
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert config["use_dora"]
    merged = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "run")
    assert not any("lora" in name for name in merged.state_dict())


@pytest.mark.parametrize("option", ["load_in_8bit", "load_in_4bit"])
def test_a_recipe_trains_on_a_quantised_language_model(parts, tmp_path, monkeypatch, option):
    pytest.importorskip("bitsandbytes")
    # On some CPUs bitsandbytes repacks weights at the first evaluation. It then cannot compute gradients through them.
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    dataset_file = write_speech_dataset(tmp_path / "speech")
    options = {"lora_rank": 4, "freeze_text": True, "max_steps": 20, option: True}
    train.main([recipe(parts, dataset_file, tmp_path / "run", **options)])
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    losses = [log["lm_loss"] for log in history if "lm_loss" in log]
    assert losses[-1] < 0.7 * losses[0]
    # LoRA is merged into the original language model, so loading does not need bitsandbytes.
    merged = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "run")
    assert not hasattr(merged.config, "quantization_config")
    assert {tensor.dtype for tensor in merged.state_dict().values()} == {torch.float32}
    text = load_file(f"{parts['qwen2']}/model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    update = merged.model.language_model.layers[0].self_attn.q_proj.weight - text
    assert 0 < torch.linalg.matrix_rank(update, rtol=1e-4) <= 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_config": {"use_dora": True}}, "`lora_config` is for LoRA; set `lora_rank`"),
        ({"load_in_4bit": True}, "`load_in_4bit` is for LoRA; set `lora_rank`"),
        ({"load_in_4bit": True, "load_in_8bit": True, "lora_rank": 2}, "either `load_in_4bit` or `load_in_8bit`"),
    ],
)
def test_impossible_recipes_are_refused(parts, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        train.parse_arguments([recipe(parts, "nowhere.jsonl", tmp_path, **options)])
