"""Model cards of a complete run, and of checkpoints with less information."""

import json
import re
import shutil
from pathlib import Path

import pytest
import soundfile
from huggingface_hub import HfApi, ModelCard
from speech_files import write_speech_dataset
from test_training import recipe
from tiny_models import compose
from transformers import pipeline

from llm_asr import LlmAsrForConditionalGeneration, LlmAsrProcessor
from llm_asr.cli import main
from llm_asr.publishing import model_card
from llm_asr.publishing.checkpoint_forms import save_checkpoint
from llm_asr.publishing.model_card import write_model_card
from llm_asr.publishing.push import push_checkpoint
from llm_asr.training import program as train


@pytest.fixture(scope="module")
def trained(parts, tmp_path_factory):
    """A folder with the outputs of `llm-asr train` and `llm-asr evaluate`."""
    folder = tmp_path_factory.mktemp("trained") / "demo"
    dataset = write_speech_dataset(folder.parent / "speech")
    train.main([recipe(parts, dataset, folder, max_steps=4, save_steps=2, weight_decay=0.01)])
    arguments = ["--model", str(folder), "--dataset", str(dataset), "--output", str(folder / "test.json")]
    assert main(["evaluate", *arguments]) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "demo"))


@pytest.fixture
def checkpoint(parts, tmp_path):
    save_checkpoint(*compose(parts, "cif"), tmp_path / "untrained")
    return tmp_path / "untrained"


def section(card: ModelCard, heading: str) -> str:
    return card.text.partition(f"## {heading}\n")[2].partition("\n## ")[0]


def table(text: str) -> dict[str, list[str]]:
    """Cells of each line of a table, by the first cell."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {cells[0].strip("`"): [cell.strip("`") for cell in cells[1:]] for cells in lines}


def test_results_equal_the_report_and_are_readable_by_the_hub(run):
    card = ModelCard.load(write_model_card(run, repo_id="someone/asr"))
    report = json.loads((run / "test.json").read_text())
    assert card.data.language == ["en", "es"]
    assert card.data.pipeline_tag == "automatic-speech-recognition"
    assert card.data.library_name == "transformers"
    assert card.data.metrics == ["cer", "wer"]
    assert {"llm-asr", "moe_cif"} <= set(card.data.tags)
    assert card.data.model_name == "asr"
    found = {(result.dataset_config, result.metric_type): result.metric_value for result in card.data.eval_results}
    assert found == {
        (language, metric): round(report["error_rates"][language][metric], 2)
        for language in ("en", "es", "all")
        for metric in ("wer", "cer")
    }
    assert {(result.dataset_name, result.dataset_split) for result in card.data.eval_results} == {
        ("dataset.jsonl", "test")
    }
    rows = table(section(card, "Results"))
    assert rows["en"][0] == "4"
    assert rows["en"][1].startswith(f"{report['error_rates']['en']['wer']:.1f} [")
    assert "dataset.jsonl, test; the prompt does not name the language" in section(card, "Results")
    assert table(section(card, "Languages"))["es"] == ["Spanish"]


def test_training_is_described_from_the_record_of_the_run(run):
    record = json.loads((run / "training_run.json").read_text())
    card = ModelCard.load(write_model_card(run))
    training = section(card, "Training")
    arguments = table(training)
    assert arguments["learning_rate"] == [str(record["arguments"]["learning_rate"])]
    assert arguments["training_steps"] == ["4"]
    assert arguments["weight_decay"] == ["0.01"]
    assert arguments["freeze_text"] == ["False"]
    assert record["steps"] == 4
    assert record["hours"] > 0
    assert "Length: 4 steps" in training
    assert f"Hardware: {record['hardware']}" in training
    assert "Data: dataset.jsonl" in training
    assert "not recorded" not in training
    # The card must not contain paths of this machine.
    assert str(run.parent) not in card.content
    for picture in re.findall(r"!\[.*\]\((.*)\)", card.text):
        assert (run / picture).read_bytes().startswith(b"\x89PNG")
    assert set(re.findall(r"!\[.*\]\((.*)\)", card.text)) == {"training_curves.png", "expert_usage_test.png"}


def test_another_form_of_a_checkpoint_keeps_the_record_of_the_run(run, parts, tmp_path):
    """A push in another form writes such a card."""
    model, processor = LlmAsrForConditionalGeneration.from_pretrained(run), LlmAsrProcessor.from_pretrained(run)
    save_checkpoint(model, processor, tmp_path / "slim", "slim")
    slim = ModelCard.load(write_model_card(tmp_path / "slim", run=run, pictures=False))
    full = ModelCard.load(write_model_card(run, pictures=False))
    for heading in ("Results", "Training", "Languages", "Licences"):
        assert section(slim, heading) == section(full, heading)
    assert table(section(slim, "Parts"))["speech encoder"][1:] == ["0", "–"]
    assert table(section(full, "Parts"))["speech encoder"][2] == "F32"


def test_a_run_that_logged_nothing_has_a_card_without_curves(run):
    """The run was shorter than `logging_steps`."""
    for state in run.glob("**/trainer_state.json"):
        content = json.loads(state.read_text())
        state.write_text(json.dumps({**content, "log_history": content["log_history"][-1:]}))
    card = ModelCard.load(write_model_card(run))
    assert re.findall(r"!\[.*\]\((.*)\)", card.text) == ["expert_usage_test.png"]


def test_hours_of_a_resumed_run_include_all_sessions(run):
    before = json.loads((run / "training_run.json").read_text())
    shutil.rmtree(run / "checkpoint-4")
    (run / "training_run.json").write_text(json.dumps({**before, "hours": 5.0}))
    train.main([str(run / "recipe.json"), "--output_dir", str(run), "--resume_from_checkpoint", "true"])
    assert 5 < json.loads((run / "training_run.json").read_text())["hours"] < 5.1
    train.main([str(run / "recipe.json"), "--output_dir", str(run)])
    assert json.loads((run / "training_run.json").read_text())["hours"] < 0.1


def test_the_snippet_of_a_published_card_runs(hub, run, recordings, tmp_path, monkeypatch, capsys):
    push_checkpoint(run, "someone/asr")
    card = hub.files("someone/asr")["README.md"].decode()
    assert {"training_curves.png", "expert_usage_test.png"} <= set(hub.files("someone/asr"))
    (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert '"someone/asr"' in snippet
    soundfile.write(tmp_path / "speech.wav", recordings[1], 16000)
    monkeypatch.chdir(tmp_path)
    expected = pipeline("automatic-speech-recognition", model=str(run))("speech.wav")["text"]
    capsys.readouterr()
    exec(snippet, {})
    assert capsys.readouterr().out == f"{expected}\n"


def test_the_snippet_without_an_id_runs_in_the_folder(checkpoint, recordings, monkeypatch, capsys):
    card = write_model_card(checkpoint, pictures=False)
    (snippet,) = re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)
    soundfile.write(checkpoint / "speech.wav", recordings[1], 16000)
    monkeypatch.chdir(checkpoint)
    exec(snippet, {})
    assert "In the folder of the checkpoint:" in card.read_text()
    assert capsys.readouterr().out


def test_unknown_facts_are_omitted(checkpoint, parts):
    card = ModelCard.load(write_model_card(checkpoint))
    assert card.data.to_dict().keys() == {"library_name", "pipeline_tag", "tags"}
    assert section(card, "Languages").strip() == "Not stated."
    assert section(card, "Results").strip() == "Not evaluated."
    assert section(card, "Training").count("not recorded") == 5
    assert "The error rate has not been measured" in section(card, "Limits")
    licenses = table(section(card, "Licences"))
    assert licenses.pop("code") == ["apache-2.0"]
    assert licenses.pop("the whole") == ["not stated"]
    del licenses["part"]
    assert set(map(tuple, licenses.values())) == {("unknown",)}
    assert "whisper (a local folder)" in section(card, "Parts")
    assert "Speech recognition: a whisper encoder, a `cif` projector and a qwen2 language model." in card.text


def test_a_report_without_a_dataset_is_only_in_the_text(run):
    report = json.loads((run / "test.json").read_text())
    del report["dataset"]
    (run / "test.json").write_text(json.dumps(report))
    card = ModelCard.load(write_model_card(run, pictures=False))
    assert card.data.eval_results is None
    assert "whose dataset is not recorded" in section(card, "Results")


def test_results_on_silence_are_those_of_the_report(run):
    report = json.loads((run / "test.json").read_text())
    report["silence"] = {"recordings": 40, "hallucinated": 2.5, "words_per_recording": 0.1}
    (run / "test.json").write_text(json.dumps(report))
    limits = section(ModelCard.load(write_model_card(run, limits=["No singing."], pictures=False)), "Limits")
    assert "The model wrote a transcript for 2.5 % of 40 recordings without speech." in limits
    assert limits.strip().endswith("- No singing.")
    assert "has not been measured" not in limits


def test_languages_without_spaces_have_no_word_error_rate(run):
    report = json.loads((run / "test.json").read_text())
    report["error_rates"]["zh-TW"] = {**report["error_rates"].pop("es"), "headline": "cer"}
    (run / "test.json").write_text(json.dumps(report))
    card = ModelCard.load(write_model_card(run, pictures=False))
    assert card.data.language == ["en", "zh"]
    metrics = [result.metric_type for result in card.data.eval_results if result.dataset_config == "zh-TW"]
    assert metrics == ["cer"]
    assert table(section(card, "Results"))["zh-TW"][1] == "–"
    assert table(section(card, "Languages"))["zh-TW"] == ["Chinese"]


def test_the_licences_of_backbones_are_those_of_their_cards(hub, run, parts):
    api = HfApi()
    api.create_repo("someone/whisper")
    api.upload_file(path_or_fileobj=b"---\nlicense: mit\n---\n", path_in_repo="README.md", repo_id="someone/whisper")
    api.create_repo("someone/text")
    backbones = {"audio_tower": "someone/whisper", "language_model": "someone/text"}
    card = ModelCard.load(
        write_model_card(run, backbones=backbones, license="cc-by-4.0", licenses={"data": "cc0-1.0"}, pictures=False)
    )
    assert card.data.license == "cc-by-4.0"
    assert card.data.base_model == ["someone/whisper", "someone/text"]
    licenses = table(section(card, "Licences"))
    assert licenses["speech encoder"] == ["mit"]
    assert licenses["language model"] == ["unknown"]
    assert licenses["training data"] == ["cc0-1.0"]
    backbones["language_model"] = "someone/absent"
    card = ModelCard.load(
        write_model_card(run, backbones=backbones, licenses={"audio_tower": "x"}, overwrite=True, pictures=False)
    )
    assert table(section(card, "Licences"))["language model"] == ["unknown"]
    assert table(section(card, "Licences"))["speech encoder"] == ["x"]


def test_the_licence_of_a_backbone_in_a_folder(checkpoint, parts, tmp_path):
    config = json.loads((checkpoint / "config.json").read_text())
    shutil.copytree(parts["whisper"], tmp_path / "whisper")
    (tmp_path / "whisper/README.md").write_text("---\nlicense: mit\n---\n")
    config["audio_config"]["_name_or_path"] = str(tmp_path / "whisper")
    (checkpoint / "config.json").write_text(json.dumps(config))
    card = ModelCard.load(write_model_card(checkpoint))
    assert table(section(card, "Licences"))["speech encoder"] == ["mit"]
    # The name of a folder is never used as a Hub id.
    assert card.data.base_model is None


def test_the_source_of_a_converted_checkpoint_is_named(checkpoint, tmp_path):
    folder = tmp_path / "converted"
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    source = {"name_or_path": "maker/listener", "revision": "a" * 40, "model_type": "voxtral", "license": "apache-2.0"}
    (folder / "config.json").write_text(json.dumps({**config, "converted_from": source}))
    card = ModelCard.load(write_model_card(folder))
    assert "Converted from maker/listener, whose licence applies." in card.text
    assert card.data.base_model == ["maker/listener"]
    assert "| speech encoder | apache-2.0 |" in card.text
    assert "| language model | apache-2.0 |" in card.text


def test_models_and_datasets_of_the_hub_are_named(run):
    record = json.loads((run / "training_run.json").read_text())
    record["started_from"]["audio_tower"] = {"name": "openai/whisper-base", "on_hub": True}
    record["datasets"] = [{"name": "google/fleurs", "on_hub": True}, {"name": "/home/me/own.jsonl", "on_hub": False}]
    (run / "training_run.json").write_text(json.dumps(record))
    card = ModelCard.load(write_model_card(run, pictures=False))
    assert card.data.base_model == ["openai/whisper-base"]
    assert card.data.datasets == ["google/fleurs"]
    assert "Data: google/fleurs, own.jsonl" in section(card, "Training")
    assert table(section(card, "Parts"))["speech encoder"][0] == "openai/whisper-base"


def test_an_existing_card_is_kept(run, capsys):
    (run / "README.md").write_text("mine")
    assert main(["card", str(run)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert (run / "README.md").read_text() == "mine"
    assert main(["card", str(run), "--overwrite", "--no-pictures"]) == 0
    assert (run / "README.md").read_text() != "mine"


def test_on_the_command_line(run, tmp_path, capsys):
    moved = tmp_path / "elsewhere.json"
    shutil.move(run / "test.json", moved)
    arguments = ["--evaluation", str(moved), "--license", "mit", "--license-of", "projector=mit", "--hours", "12"]
    arguments += [
        "--hardware",
        "8 × abacus",
        "--dataset",
        "google/fleurs",
        "own speech",
        "--language",
        "en",
        "es",
        "ca",
    ]
    arguments += ["--run", str(run)]
    assert main(["card", str(run), "--repo-id", "someone/asr", *arguments]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(run / "README.md")
    card = ModelCard.load(run / "README.md")
    assert card.data.language == ["ca", "en", "es"]
    assert card.data.datasets == ["google/fleurs"]
    assert card.data.model_name == "asr"
    assert "8 × abacus" in section(card, "Training")
    assert "12 hours" in section(card, "Training")
    assert "google/fleurs, own speech" in section(card, "Training")
    assert table(section(card, "Licences"))["projector and other trained parts"] == ["mit"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"licenses": {"encoder": "mit"}}, r"`licenses` has \['encoder'\]; its keys are among"),
        ({"backbones": {"encoder": "a/b"}}, r"`backbones` has \['encoder'\]"),
        ({"evaluations": ["absent.json"]}, "'absent.json' is not a report"),
    ],
)
def test_contradictory_options_are_refused(checkpoint, options, message):
    with pytest.raises(ValueError, match=message):
        write_model_card(checkpoint, **options)
    assert not (checkpoint / "README.md").exists()


def test_without_matplotlib_there_are_no_pictures(run, monkeypatch):
    monkeypatch.setattr(model_card, "can_draw", lambda: False)
    with pytest.raises(ImportError, match=r'`pip install "llm-asr\[train\]"`'):
        write_model_card(run)
    assert not (run / "README.md").exists()
    assert "![" not in write_model_card(run, pictures=False).read_text()
