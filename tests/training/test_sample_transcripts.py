"""Transcripts of every evaluation are shown as text and not logged as metrics."""

import numpy as np
import pytest
from speech_files import write_speech_dataset
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_training import training_options
from tiny_models import compose
from transformers import EvalPrediction

from llm_asr.datasets_asr import load_asr_dataset
from llm_asr.evaluation.compute_metrics import ErrorRates
from llm_asr.training.arguments import LlmAsrTrainingArguments
from llm_asr.training.data_collator import LlmAsrDataCollator
from llm_asr.training.sample_transcripts import SampleTranscripts, SampleTranscriptsCallback
from llm_asr.training.trainer import LlmAsrTrainer


def test_samples_are_the_same_rows_in_every_evaluation(parts):
    _, processor = compose(parts, "conv")
    texts = ["one", "two", "three|four", "five"]
    ids = [processor.tokenizer(text)["input_ids"] for text in texts]
    width = max(map(len, ids))
    labels = np.array([row + [-100] * (width - len(row)) for row in ids])
    metrics = SampleTranscripts(ErrorRates(processor), processor, num_samples=2)
    result = metrics(EvalPrediction(predictions=labels[[1, 1, 1, 2]], label_ids=labels))
    assert set(result) == {"wer", "cer"}
    assert result["wer"] > 0
    assert metrics.samples == [(0, "one", "two"), (3, "five", "three|four")]
    with pytest.raises(ValueError, match="`num_samples` must be positive"):
        SampleTranscripts(ErrorRates(processor), processor, num_samples=0)


def test_samples_are_shown_and_logged_as_text(parts, tmp_path, capsys):
    model, processor = compose(parts, "cif")
    dataset = load_asr_dataset(str(write_speech_dataset(tmp_path / "speech")))
    options = {"report_to": "tensorboard", "generation_max_length": 4, "eval_strategy": "steps", "eval_steps": 2}
    samples = SampleTranscripts(ErrorRates(processor), processor)
    trainer = LlmAsrTrainer(
        model,
        LlmAsrTrainingArguments(**training_options(tmp_path / "run", max_steps=2, **options)),
        LlmAsrDataCollator(processor),
        dataset,
        dataset,
        compute_metrics=samples,
    )
    trainer.add_callback(SampleTranscriptsCallback(trainer, samples))
    trainer.train()
    shown = capsys.readouterr().out
    assert "Transcripts at step 2" in shown
    assert "one two" in shown
    # The `Trainer` would print a text in the metrics in lines with hundreds of spaces.
    assert all(isinstance(value, (int, float)) for entry in trainer.state.log_history for value in entry.values())
    events = list((tmp_path / "run").rglob("events.out.tfevents*"))
    logged = EventAccumulator(str(events[0].parent)).Reload()
    (event,) = logged.Tensors("eval/samples/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert text.splitlines()[:2] == ["| row | reference | transcript |", "| --- | --- | --- |"]
    assert "| 0 | one two |" in text
