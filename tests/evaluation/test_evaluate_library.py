"""The library `evaluate` with our metrics and our pipeline, without a network."""

import json
import socket
import sys

import evaluate
import numpy as np
import pytest
from speech_files import write_speech_dataset
from tiny_models import compose
from transformers import EvalPrediction, pipeline

import llm_asr.evaluation.evaluator  # noqa: F401
from llm_asr.cli import main
from llm_asr.datasets_asr import load_asr_dataset
from llm_asr.evaluation.compute_metrics import ErrorRates
from llm_asr.evaluation.metrics import error_rates, error_report
from llm_asr.evaluation.modules import metric_folder
from llm_asr.evaluation.modules.cer_by_language.cer_by_language import CharacterErrorRateByLanguage
from llm_asr.evaluation.modules.error_report.error_report import ErrorReport
from llm_asr.evaluation.modules.wer_by_language.wer_by_language import WordErrorRateByLanguage


REFERENCES = ["one two", "uno dos tres", "今天好"]
PREDICTIONS = ["One too.", "uno tres", "今天 好"]
LANGUAGES = ["en", "es", "zh"]
RATES = ("wer_by_language", "cer_by_language")


def forget_loaded_modules():
    """Python keeps the package that `evaluate` creates from its cache, and would not use another cache."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "evaluate_modules"]:
        del sys.modules[name]


@pytest.fixture(autouse=True, scope="module")
def modules_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("modules")
        patch.setattr("evaluate.config.HF_MODULES_CACHE", str(cache))
        patch.syspath_prepend(cache)
        forget_loaded_modules()
        yield
        forget_loaded_modules()


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Records each attempted request, because `evaluate` ignores failed requests."""
    attempts = []

    def refuse(*address, **options):
        attempts.append(address)
        raise OSError("There is no network.")

    for function in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, function, refuse)
    yield
    assert attempts == []


@pytest.mark.parametrize("name", RATES)
def test_modules_are_loaded_from_the_package(name):
    metric = evaluate.load(metric_folder(name))
    found = metric.compute(predictions=PREDICTIONS, references=REFERENCES, languages=LANGUAGES)
    expected = error_rates(REFERENCES, PREDICTIONS, LANGUAGES)
    assert found == {key: value for key, value in expected.items() if key.startswith(name[:3])}
    assert found[f"{name[:3]}_zh"] == 0
    # Add predictions one by one, as in a loop over batches.
    for prediction, reference in zip(PREDICTIONS, REFERENCES, strict=True):
        metric.add(prediction=prediction, reference=reference)
    assert metric.compute()[name[:3]] == pytest.approx(error_rates(REFERENCES, PREDICTIONS)[name[:3]])


def test_the_report_is_a_module():
    groups = ["read", "read", "spontaneous"]
    found = evaluate.load(metric_folder("error_report")).compute(
        predictions=PREDICTIONS, references=REFERENCES, languages=LANGUAGES, groups=groups, normalizer="whisper"
    )
    assert found == error_report(REFERENCES, PREDICTIONS, LANGUAGES, groups, "whisper")
    assert found["spontaneous"]["headline"] == "cer"


def test_modules_combine_and_are_saved(tmp_path):
    both = evaluate.combine([evaluate.load(metric_folder(name)) for name in RATES])
    results = both.compute(predictions=PREDICTIONS, references=REFERENCES, languages=LANGUAGES)
    expected = error_rates(REFERENCES, PREDICTIONS, LANGUAGES)
    assert results == expected
    assert set(expected) == {f"{rate}{language}" for rate in ("wer", "cer") for language in ("", "_en", "_es", "_zh")}
    file = evaluate.save(tmp_path, model="mine", **results)
    saved = json.loads(file.read_text())
    assert {name: saved[name] for name in expected} == expected
    assert saved["model"] == "mine"
    assert saved["_python_version"]


@pytest.fixture
def computed(monkeypatch):
    """Records the names of the modules that compute, in order."""
    names = []
    for module in (WordErrorRateByLanguage, CharacterErrorRateByLanguage, ErrorReport):

        def watch(self, *args, compute=module._compute, **options):
            names.append(self.name)
            return compute(self, *args, **options)

        monkeypatch.setattr(module, "_compute", watch)
    return names


def test_the_trainer_reports_the_results_of_the_modules(parts, computed):
    _, processor = compose(parts, "moe_cif")
    tokenizer = processor.tokenizer
    texts = (["one two", "uno dos tres", "..."], ["one too", "uno tres", "one"])
    labels, predictions = (
        tokenizer(column, padding=True, padding_side="right", return_tensors="np")["input_ids"] for column in texts
    )
    labels = np.where(labels == tokenizer.pad_token_id, -100, labels)
    languages = ["en", "es", "en"]
    rates = ErrorRates(processor, languages)(EvalPrediction(predictions, labels))
    assert rates == error_rates(*texts, languages)
    assert (rates["unscored"], rates["unscored_hypotheses"]) == (1, 1)
    assert computed == ["word_error_rate_by_language", "character_error_rate_by_language"]


def test_the_command_reports_the_results_of_the_module(parts, tmp_path, computed):
    model, processor = compose(parts, "conv")
    model.generation_config.max_new_tokens = 8
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    dataset, output = write_speech_dataset(tmp_path / "speech", size=4), tmp_path / "report.json"
    arguments = ["--model", str(tmp_path / "model"), "--dataset", str(dataset), "--output", str(output)]
    assert main(["evaluate", *arguments]) == 0
    report = json.loads(output.read_text())
    rows = [json.loads(line) for line in dataset.read_text().splitlines()]
    hypotheses = [row["text"] for row in report["recordings"]]
    expected = error_report([row["text"] for row in rows], hypotheses, [row["language"] for row in rows])
    assert report["error_rates"] == expected
    assert computed == ["error_report"]


def test_another_module_is_refused():
    with pytest.raises(ValueError, match="`name` must be one of"):
        metric_folder("bleu")


@pytest.mark.parametrize("kind", ["checkpoint", "pipeline"])
def test_the_evaluator_evaluates_our_pipeline(parts, tmp_path, kind):
    model, processor = compose(parts, "moe_cif")
    model.generation_config.max_new_tokens = 8
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    dataset = load_asr_dataset(str(write_speech_dataset(tmp_path / "speech")))
    transcriber = pipeline("automatic-speech-recognition", model=str(tmp_path / "model"))
    evaluator = evaluate.evaluator("automatic-speech-recognition")
    results = evaluator.compute(
        transcriber if kind == "pipeline" else str(tmp_path / "model"),
        dataset,
        input_column="audio",
        label_column="text",
        generation_kwargs={"language": "es"},
    )
    texts = [transcriber(audio, language="es")["text"] for audio in dataset["audio"]]
    assert results["wer"] == pytest.approx(error_rates(dataset["text"][:], texts)["wer"])
    assert results["samples_per_second"] > 0
    # The options of a call must not affect the next call.
    assert evaluate.evaluator("automatic-speech-recognition").PIPELINE_KWARGS == {}
