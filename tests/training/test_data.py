"""Datasets, the collator and the feature cache."""

import csv
import json
import os
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict
from speech_files import write_speech_dataset
from tiny_models import compose

from llm_asr.datasets_asr import load_asr_dataset, open_dataset
from llm_asr.training.data_collator import LlmAsrDataCollator
from llm_asr.training.feature_cache import cache_audio_hidden_states


@pytest.fixture
def dataset_file(tmp_path):
    return write_speech_dataset(tmp_path / "speech")


def test_every_file_format_gives_the_same_rows(dataset_file):
    rows = [json.loads(line) for line in dataset_file.read_text().splitlines()]
    expected = load_asr_dataset(str(dataset_file)).to_list()
    assert expected[3]["row"] == 3
    assert expected[3]["audio"] == str(dataset_file.parent / "3.wav")
    Dataset.from_list(rows).to_parquet(dataset_file.with_suffix(".parquet"))
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        with open(dataset_file.with_suffix(suffix), "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys(), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    for suffix in (".csv", ".tsv", ".parquet"):
        assert load_asr_dataset(str(dataset_file.with_suffix(suffix))).to_list() == expected


def test_parquet_files_may_contain_the_recordings(dataset_file, parts):
    _, processor = compose(parts, "conv")
    rows = [
        {"audio": {"bytes": (dataset_file.parent / f"{index}.wav").read_bytes(), "path": None}, "text": "one"}
        for index in range(2)
    ]
    Dataset.from_list(rows).to_parquet(dataset_file.with_suffix(".parquet"))
    from_bytes = load_asr_dataset(str(dataset_file.with_suffix(".parquet")))
    from_paths = load_asr_dataset(str(dataset_file)).select(range(2))
    collator = LlmAsrDataCollator(processor)
    assert torch.equal(
        collator(from_bytes.to_list())["input_features"], collator(from_paths.to_list())["input_features"]
    )


@pytest.mark.parametrize("streaming", [False, True])
def test_a_saved_dataset_gives_the_same_rows(dataset_file, streaming):
    expected = open_dataset(str(dataset_file))
    expected.save_to_disk(dataset_file.parent / "one")
    DatasetDict({"test": expected}).save_to_disk(dataset_file.parent / "splits")
    for name in ("one", "splits"):
        rows = open_dataset(str(dataset_file.parent / name), split="test", streaming=streaming)
        assert list(rows) == expected.to_list()
    with pytest.raises(ValueError, match=r"no split 'dev'; its splits are \['test'\]"):
        open_dataset(str(dataset_file.parent / "splits"), split="dev")


def test_a_missing_dataset_or_column_is_named(dataset_file):
    with pytest.raises(ValueError, match="nowhere.jsonl' does not exist"):
        load_asr_dataset("nowhere.jsonl")
    with pytest.raises(ValueError, match="no column 'sentence'; its columns are"):
        load_asr_dataset(str(dataset_file), text_column="sentence")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), "Dataset row 2: `audio` file .*2.wav' does not exist"),
        (lambda file: file.write_bytes(b"not audio"), "Dataset row 2: `audio` cannot be read from .*2.wav'"),
    ],
)
def test_a_bad_file_is_named_with_its_row(dataset_file, parts, damage, message, tmp_path):
    model, processor = compose(parts, "conv")
    damage(dataset_file.parent / "2.wav")
    dataset = load_asr_dataset(str(dataset_file))
    with pytest.raises(ValueError, match=message):
        LlmAsrDataCollator(processor)(dataset.to_list())
    with pytest.raises(ValueError, match=message):
        cache_audio_hidden_states(dataset, model, processor, tmp_path / "cache")


def test_a_missing_transcript_is_named_with_its_row(dataset_file, parts):
    _, processor = compose(parts, "conv")
    rows = load_asr_dataset(str(dataset_file)).to_list()
    rows[1]["text"] = None
    with pytest.raises(ValueError, match="Dataset row 1: column 'text' must hold a transcript, got None"):
        LlmAsrDataCollator(processor)(rows)


def test_the_language_is_dropped_from_the_given_share_of_prompts(parts):
    _, processor = compose(parts, "conv")
    rows = [{"row": row, "text": "one", "language": "en"} for row in range(1000)]

    def shares(language_dropout):
        collator = LlmAsrDataCollator(processor, language_dropout=language_dropout)
        asked = [collator._language(row) for row in rows]
        return {way: asked.count(way) / len(rows) for way in set(asked)}

    assert shares(0.0) == {("en", False): 1.0}
    half = shares(0.5)
    assert half[("en", False)] == pytest.approx(0.5, abs=0.05)
    assert half[("en", True)] == pytest.approx(0.25, abs=0.05)
    assert half[(None, False)] == pytest.approx(0.25, abs=0.05)
    assert set(shares(1.0)) == {("en", True), (None, False)}
    assert LlmAsrDataCollator(processor)._language({"text": "one"}) == (None, False)
    assert shares(0.5) == half
    with pytest.raises(ValueError, match="`language_dropout` must be a share"):
        LlmAsrDataCollator(processor, language_dropout=1.5)


def test_cached_hidden_states_train_like_recordings(dataset_file, parts, tmp_path):
    model, processor = compose(parts, "moe_cif")
    dataset = load_asr_dataset(str(dataset_file))
    cached = cache_audio_hidden_states(dataset, model, processor, tmp_path / "cache", batch_size=3)
    from_recordings = model(**LlmAsrDataCollator(processor)(dataset.to_list()))
    collator = LlmAsrDataCollator(processor, hidden_states_column="audio_hidden_states")
    from_cache = model(**collator(cached.to_list()))
    # The cache has float16 precision.
    assert torch.allclose(from_cache.loss, from_recordings.loss, rtol=5e-3)
    assert torch.equal(from_cache.audio_lengths, from_recordings.audio_lengths)


def test_the_cache_computes_nothing_twice_and_knows_its_encoder(dataset_file, parts, tmp_path):
    model, processor = compose(parts, "conv")
    dataset = load_asr_dataset(str(dataset_file))
    first = cache_audio_hidden_states(dataset, model, processor, tmp_path)["audio_hidden_states"]
    # The eight rows have four different recordings.
    assert len(set(first)) == len(list(tmp_path.glob("*.safetensors"))) == 4
    times = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert cache_audio_hidden_states(dataset, model, processor, tmp_path)["audio_hidden_states"] == first
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == times
    with torch.no_grad():
        next(model.model.audio_tower.parameters()).add_(1.0)
    other = cache_audio_hidden_states(dataset, model, processor, tmp_path)["audio_hidden_states"]
    assert not set(other) & set(first)
    model.config.encoder_padding = "max_length"
    padded = cache_audio_hidden_states(dataset, model, processor, tmp_path)["audio_hidden_states"]
    assert not set(padded) & {*first, *other}


def test_a_bounded_cache_removes_entries_that_are_not_in_use(dataset_file, parts, tmp_path):
    model, processor = compose(parts, "conv")
    dataset = load_asr_dataset(str(dataset_file)).select(range(4))
    first = cache_audio_hidden_states(dataset, model, processor, tmp_path)["audio_hidden_states"]
    size = sum(Path(file).stat().st_size for file in first)
    for age, file in enumerate(first):
        os.utime(file, (1000 - age, 1000 - age))
    with torch.no_grad():
        next(model.model.audio_tower.parameters()).add_(1.0)

    def encode(rows, max_bytes, **options):
        rows = dataset.select(rows)
        options["max_gigabytes"] = max_bytes / 1e9
        return cache_audio_hidden_states(rows, model, processor, tmp_path, **options)["audio_hidden_states"]

    # One more file replaces the least recently used one.
    new = encode([1], size + 100)
    assert {str(file) for file in tmp_path.glob("*.safetensors")} == {*first[:3], *new}
    # Existing files are used, and files in `in_use` are kept.
    assert encode([1], size + 100) == new
    others = encode([0, 2], size + 100, in_use=new)
    left = {str(file) for file in tmp_path.glob("*.safetensors")}
    assert {*new, *others} <= left
    assert sum(Path(file).stat().st_size for file in left) <= size + 100
    with pytest.raises(ValueError, match="`max_gigabytes` is 1e-06.*raise `max_gigabytes`"):
        encode([3], 1000, in_use=[*new, *others])
    assert {str(file) for file in tmp_path.glob("*.safetensors")} == left


DAMAGED_FILES = {
    "cut.jsonl": (b'{"audio": "a.wav", "text": "x"}\n{"audio": "b.w', "cannot be read: JSON parse error"),
    "ragged.csv": (b"audio,text\na.wav,x\nb.wav,y,z,w\n", "cannot be read: .*Expected 2 fields in line 3, saw 4"),
    "ragged.tsv": (b"audio\ttext\na.wav\tx\nb.wav\ty\tz\n", "cannot be read: .*Expected 2 fields in line 3, saw 3"),
    "damaged.parquet": (b"PAR1 and no more", "cannot be read: .*Parquet"),
    "empty.jsonl": (b"", "is empty; write it again"),
    "empty.csv": (b"", "is empty; write it again"),
    "header.csv": (b"audio,text\n", "cannot be read|has no rows"),
    "latin.csv": ("audio,text\na.wav,año\n".encode("latin-1"), "cannot be read: .*utf-8"),
}


@pytest.mark.parametrize("name", DAMAGED_FILES)
def test_a_damaged_file_is_named(tmp_path, name):
    contents, message = DAMAGED_FILES[name]
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(ValueError, match=f"`dataset` file '.*{name}' ({message})"):
        load_asr_dataset(str(tmp_path / name))


BAD_ROWS = {
    "language": ({"language": "xx"}, "`language` 'xx' is not among"),
    "language of another type": ({"language": 3}, "`language` must be a string"),
    "audio": ({"audio": None}, "`audio` must be a path"),
    "audio token": ({"text": "one <|audio|>"}, r"column 'text' must not contain the audio token '<\|audio\|>'"),
    "text": ({"text": None}, "column 'text' must hold a transcript, got None"),
}


@pytest.mark.parametrize("fault", BAD_ROWS)
def test_a_bad_row_is_named(parts, recordings, fault):
    fields, message = BAD_ROWS[fault]
    processor = compose(parts, "conv")[1]
    rows = [
        {"audio": recording, "text": "one", "language": "en", "row": 7 + index}
        for index, recording in enumerate(recordings)
    ]
    rows[1] |= fields
    with pytest.raises((TypeError, ValueError), match=f"^Dataset row 8: {message}"):
        LlmAsrDataCollator(processor)(rows)
