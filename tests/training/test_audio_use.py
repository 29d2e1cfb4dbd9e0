"""Training only with drafts as a first stage, and measuring whether a model uses its recordings."""

from dataclasses import replace

import pytest
import torch
from speech_files import write_speech_dataset
from test_training import training_options
from tiny_models import compose

from llm_asr.datasets_asr import load_asr_dataset
from llm_asr.evaluation.compute_metrics import ErrorRates
from llm_asr.training.arguments import LlmAsrTrainingArguments
from llm_asr.training.audio_use import AudioUseCallback, exchange_recordings
from llm_asr.training.data_collator import LlmAsrDataCollator
from llm_asr.training.trainer import LlmAsrTrainer


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return load_asr_dataset(str(write_speech_dataset(tmp_path_factory.mktemp("speech"))))


def make_trainer(model, processor, dataset, folder, **options):
    arguments = LlmAsrTrainingArguments(**training_options(folder, save_strategy="no", **options))
    trainer = LlmAsrTrainer(
        model,
        arguments,
        LlmAsrDataCollator(processor, row_ids=True),
        dataset,
        eval_dataset=dataset,
        processing_class=processor,
        compute_metrics=ErrorRates(processor),
    )
    trainer.add_callback(AudioUseCallback(trainer))
    return trainer


def gaps(trainer):
    trainer.evaluate()
    names = ("eval_audio_gap", "eval_draft_gap")
    return {name: entry[name] for entry in trainer.state.log_history for name in names if name in entry}


@pytest.mark.parametrize("projector_type", ["conv", "moe_cif"])
def test_a_model_that_ignores_the_audio_has_no_gap(parts, dataset, tmp_path, projector_type):
    model, processor = compose(parts, projector_type, **({"draft_head": True} if projector_type == "moe_cif" else {}))
    # All embeddings are equal. With a fixed rate, longer recordings still have more embeddings.
    model.model.projector.register_forward_hook(lambda module, args, output: replace(output, embeds=output.embeds * 0))
    dataset = dataset.select([0, 0]) if projector_type == "conv" else dataset
    found = gaps(make_trainer(model, processor, dataset, tmp_path))
    assert set(found) == {"eval_audio_gap"} | ({"eval_draft_gap"} if projector_type == "moe_cif" else set())
    assert all(gap == pytest.approx(0.0, abs=1e-5) for gap in found.values())


def test_the_gap_is_the_difference_of_losses(parts, dataset, tmp_path):
    model, processor = compose(parts, "cif", draft_head=True)
    trainer = make_trainer(model, processor, dataset, tmp_path, per_device_eval_batch_size=8)
    found = gaps(trainer)
    (batch,) = trainer.get_eval_dataloader()
    batch.pop("row_ids")
    with torch.no_grad():
        right, wrong = (model.eval()(**inputs) for inputs in (batch, exchange_recordings(batch)))
    assert found["eval_audio_gap"] == pytest.approx(float(wrong.lm_loss - right.lm_loss), rel=1e-3, abs=1e-5)
    assert found["eval_draft_gap"] == pytest.approx(float(wrong.draft_loss - right.draft_loss), rel=1e-3, abs=1e-5)


def test_the_draft_head_is_trained_without_the_language_model(parts, dataset, tmp_path):
    """The gap grows, error rates are those of drafts, and the layers of the language model never run."""
    model, processor = compose(parts, "cif", draft_head=True)
    passes = []
    model.model.language_model.register_forward_hook(lambda *arguments: passes.append(1))
    before = {name: tensor.clone() for name, tensor in model.model.language_model.named_parameters()}
    options = {"max_steps": 60, "learning_rate": 1e-2, "draft_only": True, "predict_with_generate": True}
    trainer = make_trainer(model, processor, dataset, tmp_path, **options)
    trainer.train()
    found = gaps(trainer)
    assert not passes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.model.language_model.named_parameters())
    assert set(found) == {"eval_draft_gap"}
    assert found["eval_draft_gap"] > 0.5
    assert "lm_loss" not in trainer.state.log_history[0]
    assert "draft_loss" in trainer.state.log_history[0]
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] < 1.0
    assert metrics["eval_wer"] == 0.0
    inputs = processor(audio=dataset["audio"])
    assert processor.batch_decode(model.generate(**inputs, draft_only=True)) == dataset["text"][:]


def test_the_second_stage_continues_from_the_first(parts, dataset, tmp_path):
    model, processor = compose(parts, "cif", draft_head=True)
    make_trainer(model, processor, dataset, tmp_path, draft_only=True).train()
    trainer = make_trainer(model, processor, dataset, tmp_path)
    trainer.train()
    assert {"lm_loss", "draft_loss", "quantity_loss"} <= set(trainer.state.log_history[0])


def test_drafts_are_rows_with_an_end(parts, recordings):
    model, processor = compose(parts, "cif", draft_head=True, expected_tokens_per_second=6.0)
    features = processor(audio=recordings)
    outputs = model.generate(**features, draft_only=True, return_dict_in_generate=True)
    audio = model.get_audio_features(**features)
    drafted = model.draft(audio.pooler_output, audio.audio_lengths).argmax(-1).split(audio.audio_lengths.tolist())
    end = processor.tokenizer.eos_token_id
    for row, expected in zip(outputs.sequences.tolist(), drafted, strict=True):
        assert row[: len(expected) + 1] == [*expected.tolist(), end]
    assert torch.equal(outputs.audio_lengths, audio.audio_lengths)
    assert model.generate(**features, draft_only=True, max_new_tokens=2).shape[1] == 2


def test_models_without_drafts_are_refused(parts, recordings, dataset, tmp_path):
    model, processor = compose(parts, "conv")
    features = processor(audio=recordings)
    with pytest.raises(ValueError, match="`draft_only` needs a model with `draft_head=True`"):
        model.generate(**features, draft_only=True)
    with pytest.raises(ValueError, match="`draft_only` needs a model with `draft_head=True`"):
        model(**LlmAsrDataCollator(processor)(dataset.to_list()), draft_only=True)
    with pytest.raises(ValueError, match="`draft_only` needs a draft head"):
        make_trainer(model, processor, dataset, tmp_path, draft_only=True)
    drafting, _ = compose(parts, "cif", draft_head=True)
    with pytest.raises(ValueError, match="`draft_only` makes no choices"):
        drafting.generate(**features, draft_only=True, num_beams=2)


def test_a_batch_of_one_has_no_other_recording(parts, dataset, tmp_path):
    model, processor = compose(parts, "conv")
    with pytest.raises(ValueError, match="`per_device_eval_batch_size` must be at least 2"):
        make_trainer(model, processor, dataset, tmp_path, per_device_eval_batch_size=1)
