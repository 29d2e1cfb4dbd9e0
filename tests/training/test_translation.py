"""Training and evaluating translation."""

import json

import pytest
from speech_files import write_speech_dataset
from tiny_models import compose

from llm_asr.cli import main
from llm_asr.datasets_asr import load_asr_dataset
from llm_asr.evaluation.translation_metrics import translation_report
from llm_asr.publishing.model_card import write_model_card
from llm_asr.training.data_collator import LlmAsrDataCollator
from llm_asr.training.data_mixing import DatasetSpec, load_mixture


TRANSLATIONS = {"uno dos tres": "one two three", "cuatro cinco": "four five", "one two": "uno dos", "three": "tres"}


@pytest.fixture
def dataset_file(tmp_path):
    file = write_speech_dataset(tmp_path / "speech")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        row["translation"] = TRANSLATIONS[row["text"]]
        row["target_language"] = "es" if row["language"] == "en" else "en"
    rows[0]["text"] = None
    rows[1]["translation"] = None
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def processor(parts):
    return compose(parts, "cif")[1]


def test_the_collator_draws_the_task_of_a_row(processor, dataset_file):
    rows = load_asr_dataset(str(dataset_file)).to_list()
    answers = {}
    for share in (0.5, 1.0):
        collator = LlmAsrDataCollator(processor, language_dropout=0.5, translation_share=share)
        batch = collator(rows)
        texts = [processor.decode(row[row != -100]) for row in batch["labels"]]
        answers[share] = texts
        prompts = processor.tokenizer.batch_decode(batch["input_ids"])
        for row, text, prompt, is_translation in zip(
            rows, texts, prompts, batch["is_translation"].tolist(), strict=True
        ):
            assert text == (row["translation"] if is_translation else row["text"])
            assert ("Translate" in prompt) == is_translation
        assert batch["target_lengths"][0] == -1
        assert (batch["target_lengths"][1:] > 0).all()
        (alone,) = LlmAsrDataCollator(processor, translation_share=share)(rows[2:3])["labels"]
        assert processor.decode(alone[alone != -100]) == texts[2]
    assert answers[1.0] == [row["translation"] or row["text"] for row in rows]
    assert 1 <= sum(text in TRANSLATIONS.values() for text in answers[0.5][2:]) < 6
    assert "is_translation" not in LlmAsrDataCollator(processor)(rows[1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_language": None}, "column 'target_language' must name the language of the translation"),
        ({"target_language": "xx"}, "Dataset row 2: `language` 'xx' is not among"),
        ({"translation": "<|audio|>"}, "column 'translation' must not contain the audio token"),
        ({"translation": None, "text": None}, "column 'text' must hold a transcript, got None"),
    ],
)
def test_rows_that_cannot_be_translated(processor, dataset_file, change, message):
    row = {**load_asr_dataset(str(dataset_file))[2], **change}
    with pytest.raises(ValueError, match=message):
        LlmAsrDataCollator(processor, translation_share=1.0)([row])
    with pytest.raises(ValueError, match="`translation_share` must be a share"):
        LlmAsrDataCollator(processor, translation_share=2.0)


def test_a_mixture_keeps_translations(dataset_file):
    spec = {"dataset": str(dataset_file), "language_column": "language", "translation_column": "translation"}
    rows = load_mixture([{**spec, "target_language_column": "target_language"}])
    index = rows["text"].index("uno dos tres")
    assert (rows["translation"][index], rows["target_language"][index]) == ("one two three", "en")
    assert set(load_mixture([{**spec, "target_language": "German"}])["target_language"]) == {"German"}
    with pytest.raises(
        ValueError, match="needs `target_language` or `target_language_column` with `translation_column`"
    ):
        DatasetSpec.from_dict(spec)
    with pytest.raises(ValueError, match="none without it"):
        DatasetSpec.from_dict({"dataset": "a", "target_language": "en"})


def test_bleu_and_chrf_by_direction():
    report = translation_report(
        ["one two three four", "four five", "今天天气很好"],
        ["one two three four", "four six", "今天天气好"],
        ["en", "en", "zh"],
        ["es", "fr", None],
    )
    assert list(report) == ["? → zh", "es → en", "fr → en"]
    assert report["es → en"]["bleu"] == pytest.approx(100)
    assert report["es → en"]["chrf"] == pytest.approx(100)
    assert report["fr → en"]["chrf"] < 100
    assert "tok:zh" in report["? → zh"]["bleu_signature"]
    assert "tok:13a" in report["es → en"]["bleu_signature"]
    with pytest.raises(ValueError, match="same length"):
        translation_report(["a"], [], ["en"])


def test_train_evaluate_and_describe(parts, dataset_file, tmp_path, capsys):
    recipe = {
        "audio_model": parts["whisper"],
        "text_model": parts["qwen2"],
        "projector_type": "cif",
        "projector": {"hidden_size": 32, "intermediate_size": 48, "draft_head": True},
        "train_dataset": str(dataset_file),
        "output_dir": str(tmp_path / "run"),
        "do_train": True,
        "max_steps": 1,
        "translation_share": 0.5,
        "report_to": "none",
        "use_cpu": True,
    }
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(recipe))
    assert main(["train", str(file)]) == 0
    output = tmp_path / "run" / "translations.json"
    command = ["evaluate", "--model", str(tmp_path / "run"), "--dataset", str(dataset_file), "--output", str(output)]
    assert main([*command, "--task", "translate"]) == 0
    report = json.loads(output.read_text())
    assert {direction: found["recordings"] for direction, found in report["translations"].items()} == {
        "en → es": 3,
        "es → en": 4,
    }
    assert len(report["recordings"]) == 7
    assert "chrF" in capsys.readouterr().out
    card = write_model_card(tmp_path / "run").read_text()
    assert "| direction | recordings | BLEU | chrF |" in card
    assert "| es → en | 4 |" in card
    assert main([*command, "--task", "translate", "--keywords", "2"]) == 2
    assert "`keywords` measures transcripts" in capsys.readouterr().err
