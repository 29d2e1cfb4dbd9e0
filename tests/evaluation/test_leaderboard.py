"""The runner for the Open ASR Leaderboard, on local stand-ins for its datasets."""

import importlib
import json
import os
import subprocess
import sys

import pytest
from datasets import Audio, Dataset, DatasetDict
from speech_files import write_speech_dataset
from tiny_models import compose
from transformers import pipeline

from llm_asr.cli import main
from llm_asr.datasets_asr import open_dataset
from llm_asr.evaluation.leaderboard import scoring
from llm_asr.evaluation.leaderboard.chunked_recordings import join_chunks, write_chunk_table
from llm_asr.evaluation.leaderboard.dataset_list import (
    DATASETS,
    ENGLISH,
    MULTILINGUAL,
    LeaderboardDataset,
    select_datasets,
)
from llm_asr.evaluation.leaderboard.running import LeaderboardOptions, run_leaderboard, summarize
from llm_asr.evaluation.leaderboard.scoring import (
    is_scored,
    join_compounds,
    leaderboard_normalizer,
    leaderboard_wer,
)


HUB = "DATASET_hf-audio-open-asr-leaderboard"
ENGLISH_FILE = f"MODEL_me-tiny_{HUB}_librispeech_test.clean.jsonl"
SPANISH_FILE = f"MODEL_me-tiny_{HUB}-multilingual-datasets_fleurs_es_test.jsonl"
CHUNKS_FILE = (
    "MODEL_me-tiny_DATASET_ArtificialAnalysis-Earnings22-Cleaned-AA-chunked_earnings22_cleaned_aa_chunked_test.jsonl"
)


def save_model(parts, folder):
    model, processor = compose(parts, "moe_cif")
    model.generation_config.max_new_tokens = 8
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def checkpoint(parts, tmp_path_factory):
    return save_model(parts, tmp_path_factory.mktemp("checkpoint"))


def read_lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Local datasets by name: JSON Lines, a folder from `save_to_disk`, and chunks of two recordings."""
    folder = tmp_path_factory.mktemp("sources")
    file = write_speech_dataset(folder / "speech", size=8)
    rows = [{**row, "id": f"clips/{index}.flac"} for index, row in enumerate(read_lines(file))]
    rows[3]["text"] = "ignore time segment in scoring"
    rows[4]["text"] = "[noise]"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    absolute = [{**row, "audio": str(folder / "speech" / row["audio"]), "file_name": row["id"]} for row in rows]
    names = ("audio", "text", "file_name")
    spanish = Dataset.from_list([{name: row[name] for name in names} for row in absolute[5:]])
    DatasetDict({"test": spanish.cast_column("audio", Audio())}).save_to_disk(folder / "spanish")
    # The chunks are not in order, as files in a folder may be.
    chunks = [("b", 0), ("a", 1), ("a", 0)]
    texts = {"a": "one two three", "b": "three"}
    table = [
        {**absolute[index], "parent_id": parent, "chunk_index": number, "text": texts[parent]}
        for index, (parent, number) in enumerate(chunks)
    ]
    Dataset.from_list(table).to_parquet(folder / "chunks.parquet")
    return {
        "librispeech_clean": str(file),
        "fleurs_es": str(folder / "spanish"),
        "earnings22_cleaned_aa_chunked": str(folder / "chunks.parquet"),
    }


@pytest.fixture
def run(checkpoint, sources, tmp_path):
    """Call it to run the leaderboard on datasets of `sources`. It returns the exit status."""

    def run(*names, model=checkpoint, model_id="me/tiny", **changed):
        local = [f"{name}={path}" for name, path in (sources | changed).items() if name in names]
        identity = ["--model-id", model_id] if model_id else []
        options = ["--model", model, *identity, "--output", str(tmp_path / "results"), "--batch-size", "2"]
        return main(["leaderboard", *options, "--datasets", *names, "--sources", *local])

    run.output = tmp_path / "results"
    return run


def test_result_files_have_the_transcripts_of_the_pipeline_and_are_scored(run, sources, checkpoint, capsys):
    assert run(*sources) == 0
    assert {file.name for file in run.output.glob("*.jsonl")} == {ENGLISH_FILE, SPANISH_FILE, CHUNKS_FILE}
    transcriber = pipeline("automatic-speech-recognition", model=checkpoint)
    results = json.loads((run.output / "MODEL_me-tiny.json").read_text())["results"]
    printed = capsys.readouterr().out
    for name, file in (("librispeech_clean", ENGLISH_FILE), ("fleurs_es", SPANISH_FILE)):
        language = DATASETS[name].language
        rows = open_dataset(sources[name], split="test")
        kept = [index for index, text in enumerate(rows["text"]) if text not in ("[noise]", scoring.IGNORED)]
        lines = read_lines(run.output / file)
        # Recordings without words are left out. Only English references are normalised before this check.
        assert len(lines) == len(kept) == {"en": 6, "es": 3}[language]
        for line, index in zip(lines, kept, strict=True):
            row = rows[index]
            audio = row["audio"] if language == "es" else os.path.join(os.path.dirname(sources[name]), row["audio"])
            assert set(line) == {"audio_filepath", "duration", "time", "text", "pred_text"}
            assert line["audio_filepath"] == f"{index + (5 if language == 'es' else 0)}.flac"
            assert line["text"] == row["text"]
            assert line["pred_text"] == transcriber(audio, language=language)["text"]
            assert line["duration"] == pytest.approx(0.3 * len(line["text"].split()))
            assert line["time"] > 0
        texts = [[line[key] for line in lines] for key in ("text", "pred_text")]
        assert results[name]["wer"] == leaderboard_wer(*texts, language) > 0
        seconds = [sum(line[key] for line in lines) for key in ("duration", "time")]
        assert results[name]["rtfx"] == pytest.approx(seconds[0] / seconds[1])
        assert f"{results[name]['wer']:.2f}" in printed
    # An incomplete suite has no mean.
    assert set(results) == set(sources)


def test_runs_with_different_datasets_are_combined(run):
    assert run("fleurs_es") == 0
    assert run("librispeech_clean") == 0
    results = json.loads((run.output / "MODEL_me-tiny.json").read_text())["results"]
    assert list(results) == ["librispeech_clean", "fleurs_es"]


def test_chunks_are_scored_as_whole_recordings(run):
    assert run("earnings22_cleaned_aa_chunked") == 0
    lines = read_lines(run.output / CHUNKS_FILE)
    assert [(line["parent_id"], line["chunk_index"]) for line in lines] == [("b", 0), ("a", 1), ("a", 0)]
    said = [line["pred_text"] for line in lines]
    results = json.loads((run.output / "MODEL_me-tiny.json").read_text())["results"]
    expected = leaderboard_wer(["one two three", "three"], [f"{said[2]} {said[1]}", said[0]], "en")
    assert results["earnings22_cleaned_aa_chunked"]["wer"] == pytest.approx(expected)
    assert results["earnings22_cleaned_aa_chunked"]["recordings"] == 3
    with pytest.raises(ValueError, match=r"Recording 'a' has chunks \[1\]"):
        join_chunks(lines[:2])


def test_an_interrupted_run_continues_where_it_stopped(run):
    assert run("librispeech_clean") == 0
    lines = read_lines(run.output / ENGLISH_FILE)
    files = sorted(run.output.glob("transcripts/me-tiny/librispeech_clean/part-*.parquet"))
    assert len(files) == 4
    files[2].unlink()
    times = [file.stat().st_mtime_ns for file in (*files[:2], files[3])]
    assert run("librispeech_clean") == 0
    assert [file.stat().st_mtime_ns for file in (*files[:2], files[3])] == times
    again = read_lines(run.output / ENGLISH_FILE)
    # Rows 4 and 5 were lost, and row 4 is not scored.
    assert [line == other for line, other in zip(lines, again, strict=True)] == [True, True, True, False, True, True]
    assert [{**line, "time": 0} for line in lines] == [{**line, "time": 0} for line in again]


def test_results_of_another_model_are_not_reused(run, parts, tmp_path, capsys):
    assert run("librispeech_clean") == 0
    # Another dataset is refused as well, because both would be scored together.
    assert run("fleurs_es", model=save_model(parts, tmp_path / "other")) == 2
    assert "was started with another model" in capsys.readouterr().err


def test_recordings_that_cannot_be_read_are_named(run, tmp_path, capsys):
    file = write_speech_dataset(tmp_path / "speech", size=2)
    (tmp_path / "speech" / "1.wav").write_bytes(b"no sound")
    assert run("librispeech_clean", librispeech_clean=str(file)) == 2
    message = capsys.readouterr().err
    assert "1 recordings of librispeech_clean cannot be read" in message
    assert "1.wav" in message
    assert not list(run.output.glob("*.jsonl"))


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["librispeech_clean"], {"model_id": None}, "pass --model-id OWNER/NAME"),
        (["librispeech_clean"], {"model_id": "tiny"}, "'owner/name' on the Hub"),
        (["librispeech_clean"], {"librispeech_clean": "nowhere.jsonl"}, "'nowhere.jsonl' does not exist"),
        (["librispeech_clean"], {"librispeech_clean": ""}, "must be NAME=PATH"),
        (["librispeech_clean"], {"model": "nowhere/at-all"}, "--model 'nowhere/at-all' cannot be loaded"),
    ],
)
def test_bad_arguments_are_refused(run, capsys, names, options, message):
    assert run(*names, **options) == 2
    assert message in capsys.readouterr().err
    assert not run.output.exists()


def test_a_local_copy_of_an_unused_dataset_is_refused(checkpoint, sources, tmp_path, capsys):
    options = ["--model", checkpoint, "--model-id", "me/tiny", "--output", str(tmp_path / "results")]
    local = f"librispeech_clean={sources['librispeech_clean']}"
    assert main(["leaderboard", *options, "--datasets", "fleurs_es", "--sources", local]) == 2
    assert "the datasets to run are fleurs_es" in capsys.readouterr().err
    assert main(["leaderboard", *options, "--batch-size", "0"]) == 2
    assert "`batch_size` must be at least 1" in capsys.readouterr().err


def test_datasets_are_those_of_the_leaderboard():
    assert (len(ENGLISH), len(MULTILINGUAL)) == (7, 13)
    assert select_datasets(["fleurs_de", "multilingual"])[0].name == "fleurs_de"
    assert len(select_datasets(["multilingual", "mls_pt", "english"])) == 20
    assert DATASETS["mls_pt"].language == "pt"
    # Portuguese is the only language without Common Voice on the leaderboard.
    assert "mcv_pt" not in DATASETS
    with pytest.raises(ValueError, match="There is no dataset 'librispeech'"):
        select_datasets(["librispeech"])
    with pytest.raises(ValueError, match="`names` is empty"):
        select_datasets([])


def test_a_complete_suite_has_a_mean_error_rate_and_an_overall_speed():
    results = {
        dataset.name: {"wer": 10.0 * index, "duration": 60.0, "time": 1.0 + index}
        for index, dataset in enumerate(ENGLISH)
    }
    assert summarize(results) == {"english": {"wer": 30.0, "rtfx": pytest.approx(7 * 60 / 28)}}


@pytest.mark.parametrize(
    ("language", "reference", "hypothesis", "expected"),
    [
        # Whisper's normaliser handles spelling, contractions, fillers and numbers.
        ("en", "The colour isn't grey, uh, at all.", "the color is not gray at all", 0),
        ("en", "twenty five dollars", "$25", 0),
        ("en", "a cat and dogs", "a cat and docks", 25),
        ("en", "Ah, the B.B.C. has 5G, huh", "the bbc has 5 g", 0),
        # Joined or split compounds are not errors, in either direction and beside errors.
        ("en", "a white paper", "a whitepaper", 0),
        ("en", "a whitepaper here", "a white paper there", 100 / 3),
        # Diacritics are kept, and digits become words.
        ("es", "Corrió 21 días", "corrió veintiuno días", 0),
        ("es", "corrió", "corrio", 100),
        ("de", "10.000 Euro", "zehntausend Euro", 0),
        ("de", "das Haus Boot fährt", "das Hausboot fährt", 0),
        ("fr", "7 jours (rires)", "Sept jours !", 0),
        # The number is too large to be written in words.
        ("it", "9" * 70, "9" * 70, 0),
    ],
)
def test_errors_are_counted_as_the_leaderboard_does(language, reference, hypothesis, expected):
    assert leaderboard_wer([reference], [hypothesis], language) == pytest.approx(expected)


def test_initials_are_one_word_but_articles_are_words():
    normalize = leaderboard_normalizer("en")
    assert normalize("I, a cat, saw U.S. troops") == "i a cat saw us troops"
    assert normalize("A B C and I") == "abc and i"


def test_joined_compounds_shorten_the_reference():
    assert join_compounds("das haus boot fährt nicht", "das hausboot fährt") == (
        ["das", "hausboot", "fährt", "nicht"],
        ["das", "hausboot", "fährt"],
    )
    assert leaderboard_wer(["das haus boot fährt nicht"], ["das hausboot fährt"], "de") == 25
    with pytest.raises(ValueError, match="has no words"):
        leaderboard_wer(["..."], ["one"], "de")


@pytest.mark.parametrize(
    ("reference", "english", "german"),
    [
        ("", False, False),
        (" ", False, False),
        (scoring.IGNORED, False, False),
        ("[noise]", False, True),
        ("a", True, True),
    ],
)
def test_references_without_speech_are_not_scored(reference, english, german):
    assert [is_scored(reference, language) for language in ("en", "de")] == [english, german]


@pytest.fixture
def calls(tmp_path):
    """A chunked dataset in folders with the Hub's layout: chunks whose table does not name the audio, and whole recordings."""
    write_speech_dataset(tmp_path / "chunks" / "audio", size=2).unlink()
    table = [{"parent_id": "a", "chunk_index": index, "file_name": f"{index}.wav", "site": "x"} for index in (0, 1)]
    Dataset.from_list(table).to_parquet(tmp_path / "chunks" / "test.parquet")
    (tmp_path / "parents").mkdir()
    Dataset.from_list([{"id": "a", "text": "one two three"}]).to_parquet(tmp_path / "parents" / "test.parquet")
    path, parent = (str(tmp_path / name) for name in ("chunks", "parents"))
    return LeaderboardDataset("calls", "english", path, "calls", parent=parent)


def test_chunks_get_the_transcript_of_their_recording(calls, tmp_path):
    write_chunk_table(calls, tmp_path / "table.parquet")
    rows = open_dataset(str(tmp_path / "table.parquet")).to_list()
    assert [(row["parent_id"], row["chunk_index"], row["text"]) for row in rows] == [
        ("a", 0, "one two three"),
        ("a", 1, "one two three"),
    ]
    assert [row["audio"] for row in rows] == [str(tmp_path / "chunks" / "audio" / f"{index}.wav") for index in (0, 1)]
    Dataset.from_list([{"id": "b", "text": "one"}]).to_parquet(tmp_path / "parents" / "test.parquet")
    with pytest.raises(ValueError, match="has no transcripts of a,"):
        write_chunk_table(calls, tmp_path / "table.parquet")


def test_chunks_are_prepared_transcribed_and_scored(calls, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(DATASETS, "calls", calls)
    options = LeaderboardOptions(checkpoint, tmp_path / "results", ["calls"], "me/tiny", batch_size=1)
    results = run_leaderboard(options)
    lines = read_lines(tmp_path / "results" / calls.manifest_name("me/tiny"))
    assert [(line["audio_filepath"], line["chunk_index"], line["text"]) for line in lines] == [
        ("0.wav", 0, "one two three"),
        ("1.wav", 1, "one two three"),
    ]
    said = " ".join(line["pred_text"] for line in lines)
    assert results["calls"]["wer"] == pytest.approx(leaderboard_wer(["one two three"], [said], "en"))
    assert run_leaderboard(options) == results


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "kaldialign", None)
    with pytest.raises(ImportError, match=r"kaldialign.*pip install \"llm-asr\[leaderboard\]\""):
        importlib.reload(scoring)
    monkeypatch.undo()
    importlib.reload(scoring)


@pytest.mark.slow
def test_two_processes_write_the_same_as_one(run, checkpoint, sources, tmp_path):
    assert run("librispeech_clean", "fleurs_es") == 0
    output = tmp_path / "two"
    local = [f"{name}={sources[name]}" for name in ("librispeech_clean", "fleurs_es")]
    options = ["--model", checkpoint, "--model-id", "me/tiny", "--output", str(output), "--batch-size", "2"]
    datasets = ["--datasets", "librispeech_clean", "fleurs_es", "--sources", *local]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "llm_asr"]
    result = subprocess.run(
        [sys.executable, *launcher, "leaderboard", *options, *datasets],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Open ASR Leaderboard") == 1
    for name in (ENGLISH_FILE, SPANISH_FILE):
        one, two = ([{**line, "time": 0} for line in read_lines(folder / name)] for folder in (run.output, output))
        assert one == two
