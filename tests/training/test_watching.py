import time

import pytest
import torch
from speech_files import write_speech_dataset
from test_training import training_options
from tiny_models import compose
from transformers import Trainer, TrainerCallback, TrainingArguments

from llm_asr.datasets_asr import load_asr_dataset
from llm_asr.training.arguments import LlmAsrTrainingArguments
from llm_asr.training.data_collator import LlmAsrDataCollator
from llm_asr.training.lora import add_lora
from llm_asr.training.trainer import LlmAsrTrainer
from llm_asr.training.watching import WatchingCallback


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return load_asr_dataset(str(write_speech_dataset(tmp_path_factory.mktemp("speech"))))


def train_and_read(trainer):
    trainer.add_callback(WatchingCallback(trainer))
    trainer.train()
    return [entry for entry in trainer.state.log_history if "audio_hours_per_second" in entry]


def make_trainer(model, processor, dataset, folder, **options):
    return Trainer(
        model,
        TrainingArguments(**training_options(folder, save_strategy="no", **options)),
        LlmAsrDataCollator(processor),
        dataset,
        eval_dataset=dataset,
    )


def test_length_errors_are_measured_on_the_training_batches(parts, dataset, tmp_path):
    model, processor = compose(parts, "cif")
    trainer = make_trainer(model, processor, dataset, tmp_path, learning_rate=0.0, eval_strategy="steps", eval_steps=1)
    logs = train_and_read(trainer)
    assert [entry["step"] for entry in logs] == [2, 4]
    # The `Trainer` still writes its own logs.
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [2, 4]
    batch = LlmAsrDataCollator(processor)(dataset.to_list())
    with torch.no_grad():
        quantities = model.eval()(**batch).quantities
    targets = batch["target_lengths"]
    expected = 100 * (quantities - targets).abs().sum() / targets.sum()
    # An epoch has two steps.
    for entry in logs:
        assert entry["length_error"] == pytest.approx(expected.item(), rel=1e-3)


class Delay(TrainerCallback):
    def __init__(self, event):
        setattr(self, event, lambda *args, **kwargs: time.sleep(0.4))


@pytest.mark.parametrize(("event", "counts"), [("on_step_begin", True), ("on_prediction_step", False)])
def test_speed_counts_only_training(parts, dataset, tmp_path, event, counts):
    model, processor = compose(parts, "conv")
    trainer = make_trainer(model, processor, dataset, tmp_path, eval_strategy="steps", eval_steps=1)
    trainer.add_callback(Delay(event))
    logs = train_and_read(trainer)
    assert "length_error" not in logs[0]
    # There are eight recordings between two logs. Each word lasts 0.3 seconds.
    hours = 2 * 0.3 * (2 + 1 + 3 + 2) / 3600
    for entry in logs:
        assert (hours / entry["audio_hours_per_second"] > 0.8) == counts
        assert entry["audio_hours_per_second"] > hours / 3


def test_learning_rates_are_named_after_parts(parts, dataset, tmp_path):
    model, processor = compose(parts, "cif", freeze_text=False)
    arguments = LlmAsrTrainingArguments(
        **{**training_options(tmp_path, save_strategy="no"), "learning_rate": 1e-3, "text_learning_rate": 1e-4}
    )
    trainer = LlmAsrTrainer(model, arguments, LlmAsrDataCollator(processor), dataset)
    logs = train_and_read(trainer)
    own = [entry for entry in trainer.state.log_history if "learning_rate" in entry]
    assert {name for name in logs[0] if name.startswith("learning_rate_")} == {
        "learning_rate_projector",
        "learning_rate_language_model",
        "learning_rate_lm_head",
    }
    for entry, expected in zip(logs, own, strict=True):
        assert entry["learning_rate_projector"] == pytest.approx(10 * entry["learning_rate_language_model"])
        assert expected["learning_rate"] in (entry["learning_rate_projector"], entry["learning_rate_language_model"])


def test_a_projector_is_watched_when_lora_is_trained(parts, dataset, tmp_path):
    model, processor = compose(parts, "cif")
    logs = train_and_read(make_trainer(add_lora(model, rank=2), processor, dataset, tmp_path))
    assert {"length_error", "learning_rate_projector", "learning_rate_language_model"} <= set(logs[0])


def test_a_model_without_a_projector_is_refused(parts, dataset, tmp_path):
    model, processor = compose(parts, "cif")
    trainer = make_trainer(model.model.language_model, processor, dataset, tmp_path)
    with pytest.raises(ValueError, match="has no projector to watch"):
        WatchingCallback(trainer)
