"""Training models with parts in different dtypes. Trained parts are float32."""

import logging

import pytest
import torch
from speech_files import write_speech_dataset
from test_training import recipe, training_options
from tiny_models import compose
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from llm_asr import LlmAsrForConditionalGeneration
from llm_asr.datasets_asr import load_asr_dataset
from llm_asr.modeling import modeling_llm_asr
from llm_asr.modeling.configuration_projector import PROJECTOR_TYPES
from llm_asr.training import program as train
from llm_asr.training.data_collator import LlmAsrDataCollator
from llm_asr.training.lora import add_lora


HALF_PARTS = {"audio_kwargs": {"dtype": torch.float16}, "text_kwargs": {"dtype": torch.bfloat16}}


@pytest.fixture(scope="module")
def dataset_file(tmp_path_factory):
    return write_speech_dataset(tmp_path_factory.mktemp("speech"))


@pytest.fixture(scope="module")
def dataset(dataset_file):
    return load_asr_dataset(str(dataset_file))


def trained_dtypes(model):
    return {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}


def fit(model, processor, dataset, folder, **options):
    """Train with the plain `Trainer`, and return the loss before and after."""
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**training_options(folder, max_steps=6, **options)),
        data_collator=LlmAsrDataCollator(processor),
        train_dataset=dataset,
        eval_dataset=dataset,
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    return before, trainer.evaluate()["eval_loss"]


@pytest.mark.parametrize("projector_type", PROJECTOR_TYPES)
def test_two_stages_train_in_float32(parts, dataset, tmp_path, projector_type):
    model, processor = compose(parts, projector_type, **HALF_PARTS)
    first, after_projector = fit(model, processor, dataset, tmp_path / "1", save_strategy="no")
    assert after_projector < first
    model.save_pretrained(tmp_path / "stage")

    model = add_lora(LlmAsrForConditionalGeneration.from_pretrained(tmp_path / "stage"), rank=2)
    assert trained_dtypes(model) == {torch.float32}
    before, after_lora = fit(model, processor, dataset, tmp_path / "2", bf16=True, save_strategy="no")
    # The loss of the first stage is computed without autocast.
    assert before == pytest.approx(after_projector, rel=0.01)
    assert after_lora < before


@pytest.mark.parametrize(("options", "dtype"), [({}, torch.float32), ({"train_in_saved_dtype": True}, torch.bfloat16)])
def test_recipes_train_in_float32_by_default(parts, dataset_file, tmp_path, options, dtype):
    model, processor = compose(parts, "moe_cif")
    model.bfloat16().save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    start = {"model": str(tmp_path / "base"), "audio_model": None, "text_model": None, "freeze_text": False}
    output_dir = tmp_path / "run"
    train.main([recipe(parts, dataset_file, output_dir, do_eval=False, max_steps=2, save_steps=1, **start, **options)])
    # Check a checkpoint for resuming and the final result.
    for folder in (output_dir / "checkpoint-1", output_dir):
        trained = LlmAsrForConditionalGeneration.from_pretrained(folder)
        assert trained.model.audio_tower.dtype == torch.bfloat16
        assert {parameter.dtype for parameter in trained.model.projector.parameters()} == {dtype}
        assert {parameter.dtype for parameter in trained.model.language_model.parameters()} == {dtype}


def test_trained_parts_are_composed_in_float32(parts, tmp_path):
    AutoModelForCausalLM.from_pretrained(parts["qwen2"], dtype=torch.bfloat16).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(parts["qwen2"]).save_pretrained(tmp_path)
    half = {**parts, "half": str(tmp_path)}
    assert trained_dtypes(compose(half, "conv", text="half", freeze_text=False)[0]) == {torch.float32}
    assert compose(half, "conv", text="half")[0].model.language_model.dtype == torch.bfloat16


def test_lora_trains_in_half_precision_on_request(parts):
    model, _ = compose(parts, "moe_cif", **HALF_PARTS)
    model = add_lora(model.to(torch.bfloat16), rank=2, autocast_adapter_dtype=False)
    assert trained_dtypes(model) == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_training_in_half_precision_is_reported(parts, dtype, caplog, monkeypatch):
    model, _ = compose(parts, "conv")
    modeling_llm_asr.logger.warning_once.cache_clear()
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with caplog.at_level("WARNING"):
        model.train()
        assert not caplog.records
        model.model.projector.to(dtype)
        model.train()
    assert "Call `model.cast_trainable_to_float32()`" in caplog.text
    model.cast_trainable_to_float32()
    assert trained_dtypes(model) == {torch.float32}
