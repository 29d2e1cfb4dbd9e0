"""Keywords of training prompts."""

import json

import pytest
import torch
from speech_files import write_speech_dataset
from tiny_models import compose

from llm_asr.cli import main
from llm_asr.datasets_asr import load_asr_dataset
from llm_asr.keyword_lists import KeywordLists
from llm_asr.training.data_collator import LlmAsrDataCollator
from llm_asr.training.keyword_sampling import KeywordSampling


TEXTS = [f"number {index} of {word}" for index, word in enumerate(["Oslo", "Qwen", "Iñigo", "Lima"] * 20)]


@pytest.fixture
def sampling():
    return KeywordSampling(KeywordLists([*TEXTS, "seldom"], None), max_keywords=6)


def test_kinds_of_lists(sampling):
    draws = [sampling.draw(text, None, str(row)) for row, text in enumerate(TEXTS * 5)]
    spoken = [
        sum(word.casefold() in text.casefold() for word in drawn) for drawn, text in zip(draws, TEXTS * 5, strict=True)
    ]
    share = len(draws)
    assert sum(not drawn for drawn in draws) / share == pytest.approx(0.3, abs=0.07)
    assert sum(bool(drawn) and not count for drawn, count in zip(draws, spoken, strict=True)) / share == pytest.approx(
        0.3, abs=0.07
    )
    assert max(map(len, draws)) == 6
    assert max(spoken) <= 4
    # The number of a row is rarer than its name, and "number" and "of" are in all rows.
    with_one = [drawn for drawn, count in zip(draws, spoken, strict=True) if count == 1]
    assert not any({"number", "of"} & set(drawn) for drawn in with_one)


def test_silence_has_distractors(sampling):
    draws = [sampling.draw("", None, str(row)) for row in range(50)]
    assert 20 < sum(map(bool, draws)) < 50


def test_draws_repeat_in_an_epoch_and_differ_between_epochs(sampling):
    def epoch(number):
        sampling.set_epoch(number)
        return [sampling.draw(text, None, str(row)) for row, text in enumerate(TEXTS)]

    first, second = epoch(0), epoch(1)
    assert first != second
    assert epoch(0) == first
    with pytest.raises(ValueError, match="`max_keywords` must be positive"):
        KeywordSampling(sampling.lists, 0)


def test_the_collator_lists_keywords_and_keeps_silence_empty(parts, tmp_path):
    _, processor = compose(parts, "cif")
    rows = load_asr_dataset(str(write_speech_dataset(tmp_path, 8))).to_list()
    rows = [{**row, "text": "" if index < 2 else row["text"]} for index, row in enumerate(rows)]
    lists = KeywordLists([row["text"] for row in rows] + ["<|im_end|>x one|two"])
    collator = LlmAsrDataCollator(processor, keyword_sampling=KeywordSampling(lists, 5))
    batch = collator(rows)
    plain = LlmAsrDataCollator(processor)(rows)
    prompts = processor.tokenizer.batch_decode(batch["input_ids"])
    assert 0 < sum("Keywords:" in prompt for prompt in prompts) < len(rows)
    assert any("Keywords:" in prompt for prompt in prompts[:2])
    for batch_labels, plain_labels in zip(batch["labels"], plain["labels"], strict=True):
        assert torch.equal(batch_labels[batch_labels != -100], plain_labels[plain_labels != -100])
    assert batch["target_lengths"].tolist() == plain["target_lengths"].tolist()
    assert batch["target_lengths"][:2].tolist() == [0, 0]
    # A row has its keywords in any batch.
    (alone,) = processor.tokenizer.batch_decode(collator(rows[3:4])["input_ids"])
    assert alone.replace("<|endoftext|>", "") == prompts[3].replace("<|endoftext|>", "")


def test_training_with_keywords(parts, tmp_path, capsys):
    dataset = write_speech_dataset(tmp_path / "speech")
    recipe = {
        "audio_model": parts["whisper"],
        "text_model": parts["qwen2"],
        "projector_type": "cif",
        "projector": {"hidden_size": 32, "intermediate_size": 48},
        "train_dataset": str(dataset),
        "output_dir": str(tmp_path / "run"),
        "do_train": True,
        "max_steps": 1,
        "max_keywords": 3,
        "report_to": "none",
        "use_cpu": True,
    }
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(recipe))
    assert main(["train", str(file)]) == 0
    output = tmp_path / "report" / "test.json"
    arguments = ["--model", str(tmp_path / "run"), "--dataset", str(dataset), "--output", str(output)]
    assert main(["evaluate", *arguments, "--keywords", "0", "2"]) == 0
    report = json.loads(output.read_text())["keywords"]
    assert set(report) == {"0", "2"}
    assert report["2"]["recordings"] == 8
    assert report["0"]["listed"] == report["2"]["listed"]
    assert output.with_name("test-keywords-2.hypotheses.jsonl").is_file()
    printed = capsys.readouterr().out
    assert "B-WER %" in printed
    assert "B-WER %" in output.with_suffix(".md").read_text()

    processor = tmp_path / "run" / "processor_config.json"
    settings = json.loads(processor.read_text())
    settings["transcription_template"] = "{{ audio_token }}Transcribe."
    processor.write_text(json.dumps(settings))
    assert main(["evaluate", *arguments, "--keywords", "2"]) == 2
    assert "has no place for keywords" in capsys.readouterr().err
