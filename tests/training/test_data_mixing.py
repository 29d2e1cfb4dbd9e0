"""Mixing datasets with different columns: rows, probabilities, resuming and processes."""

import io
import json
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from accelerate.data_loader import prepare_data_loader
from datasets import Audio, ClassLabel, Dataset, Features, Value
from speech_files import write_speech_dataset
from tiny_models import compose
from torch.utils.data import DataLoader

from llm_asr.training.arguments import LlmAsrTrainingArguments
from llm_asr.training.data_collator import LlmAsrDataCollator
from llm_asr.training.data_mixing import DatasetSpec, StreamingMixture, language_probabilities, load_mixture, unquote
from llm_asr.training.filters import RowFilters
from llm_asr.training.trainer import LlmAsrTrainer


def wav(seconds=0.1, seed=0):
    buffer = io.BytesIO()
    samples = 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * 16000))
    soundfile.write(buffer, samples, 16000, format="WAV")
    return buffer.getvalue()


def audio(name):
    return {"bytes": wav(), "path": name}


STRING, INTEGER, FLOAT, AUDIO = Value("string"), Value("int64"), Value("float64"), Audio(decode=False)

# Columns of known datasets, the values of each row, the entry of a recipe, and the expected text.
SCHEMAS = {
    "fleurs": (
        {
            "id": (INTEGER, 7),
            "num_samples": (Value("int32"), 1600),
            "path": (STRING, "/cache/103.wav"),
            "audio": (AUDIO, audio("103.wav")),
            "transcription": (STRING, "hola señor"),
            "raw_transcription": (STRING, "¡Hola, señor!"),
            "gender": (ClassLabel(names=["male", "female", "other"]), 1),
            "lang_id": (ClassLabel(names=["es_419", "fr_fr"]), 0),
            "language": (STRING, "Spanish"),
            "lang_group_id": (ClassLabel(names=["western_european_we"]), 0),
        },
        {"text_column": "transcription", "language": "es"},
        ("hola señor", "es"),
    ),
    "common_voice": (
        {
            "client_id": (STRING, "c"),
            "path": (STRING, "es_1.mp3"),
            "audio": (AUDIO, audio("es_1.mp3")),
            "sentence": (STRING, '"Dijo ""hola"" y se fue."'),
            "up_votes": (INTEGER, 2),
            "down_votes": (INTEGER, 0),
            "age": (STRING, ""),
            "gender": (STRING, ""),
            "accent": (STRING, ""),
            "locale": (STRING, "es"),
            "segment": (STRING, ""),
            "variant": (STRING, ""),
        },
        {"text_column": "sentence", "language_column": "locale", "text_normalizer": "unquote"},
        ('Dijo "hola" y se fue.', "es"),
    ),
    "mls": (
        {
            "audio": (AUDIO, audio("10367_10282_000000.opus")),
            "original_path": (STRING, "http://archive.org/a.mp3"),
            "begin_time": (FLOAT, 1.0),
            "end_time": (FLOAT, 1.1),
            "transcript": (STRING, "guten tag"),
            "audio_duration": (FLOAT, 0.1),
            "speaker_id": (STRING, "10367"),
            "chapter_id": (STRING, "10282"),
            "file": (STRING, "10367_10282_000000.opus"),
            "id": (STRING, "10367_10282_000000"),
        },
        {"text_column": "transcript", "language": "de", "duration_column": "audio_duration"},
        ("guten tag", "de"),
    ),
    "voxpopuli": (
        {
            "audio_id": (STRING, "2009-fr"),
            "language": (ClassLabel(names=["en", "de", "fr"]), 2),
            "audio": (AUDIO, audio("2009-fr.wav")),
            "raw_text": (STRING, "Bonjour, Madame"),
            "normalized_text": (STRING, "bonjour madame"),
            "gender": (STRING, "female"),
            "speaker_id": (STRING, "1"),
            "is_gold_transcript": (Value("bool"), True),
            "accent": (STRING, "None"),
        },
        {"text_column": "raw_text", "language_column": "language", "text_normalizer": "whisper_basic"},
        ("bonjour madame", "fr"),
    ),
    "gigaspeech2": (
        {
            "segment_id": (STRING, "0-0-0"),
            "text": (STRING, "XIN CHÀO"),
            "audio": (AUDIO, {"bytes": wav(), "path": None}),
        },
        {"language": "vi", "text_normalizer": "lower"},
        ("xin chào", "vi"),
    ),
}


def write_parquet(file, columns, features):
    """Write a Parquet file like those on the Hub, with a feature `Audio` that contains the audio files."""
    plain = {
        name: {"bytes": Value("binary"), "path": STRING} if feature == AUDIO else feature
        for name, feature in features.items()
    }
    rows = Dataset.from_dict(columns, features=Features(plain)).cast_column("audio", Audio(decode=False))
    rows.to_parquet(file)
    assert Features.from_arrow_schema(pq.read_schema(file))["audio"] == AUDIO


def write_rows(file, language, size, seconds=0.1):
    """Write a Parquet file whose texts identify the rows."""
    rows = {
        "audio": [{"bytes": wav(seconds), "path": f"{language}{index}.wav"} for index in range(size)],
        "text": [f"{language}{index}" for index in range(size)],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    write_parquet(file, rows, {"audio": AUDIO, "text": STRING})
    return str(file)


def spec(dataset, language, size, streaming=True):
    return {"dataset": dataset, "language": language, "streaming": streaming} | (
        {"num_rows": size} if streaming else {}
    )


@pytest.fixture
def specs(tmp_path):
    """Two streaming languages. One of them has four files, which are shards."""
    for part in range(4):
        write_rows(tmp_path / "es" / f"{part}.parquet", f"es{part}-", 5)
    en = write_rows(tmp_path / "en.parquet", "en", 8)
    return [spec(str(tmp_path / "es"), "es", 20), spec(en, "en", 8)]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    # `datasets` sleeps for seconds after closing an interleaved Parquet file.
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


def resumed(mixture, state):
    mixture.load_state_dict(state)
    return mixture


def texts(rows):
    return [row["text"] for row in rows]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_schema_gives_the_same_columns(schema, streaming, tmp_path):
    columns, recipe, (text, language) = SCHEMAS[schema]
    folder = tmp_path / schema
    folder.mkdir()
    write_parquet(
        folder / "train-00000-of-00001.parquet",
        {name: [value] * 3 for name, (_, value) in columns.items()},
        {name: feature for name, (feature, _) in columns.items()},
    )
    filters = RowFilters(min_duration=0.05, max_duration=0.2)
    rows = list(load_mixture([{"dataset": str(folder), "streaming": streaming, **recipe}], filters=filters))
    assert len(rows) == 3
    for row in rows:
        assert row["audio"] == columns["audio"][1]
        assert (row["text"], row["language"], row["dataset"]) == (text, language, str(folder))
        assert row["row"].startswith(f"{folder}#")
        names = {"audio", "text", "language", "translation", "target_language", "dataset", "row", "duration"}
        assert set(row) == names
        # The duration comes from the dataset or from the filters. Streams do not keep the duration of the filters.
        assert row["duration"] == (None if streaming and "duration_column" not in recipe else 0.1)
    assert filters.report.counts == {str(folder): {"kept": 3}}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv"])
def test_files_with_paths_give_rows_that_the_collator_reads(suffix, streaming, tmp_path, parts):
    file = write_speech_dataset(tmp_path / "speech")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    if suffix != ".jsonl":
        file = file.with_suffix(suffix)
        Dataset.from_list(rows).to_csv(file, sep="\t" if suffix == ".tsv" else ",")
    mixture = load_mixture(
        [{"dataset": str(file), "language_column": "language", "streaming": streaming}],
        filters=RowFilters(min_duration=0.1),
    )
    mixed = list(mixture)
    assert Counter(texts(mixed)) == Counter(row["text"] for row in rows)
    assert {row["language"] for row in mixed} == {"en", "es"}
    assert len({row["row"] for row in mixed}) == 8
    _, processor = compose(parts, "conv")
    assert len(LlmAsrDataCollator(processor)(mixed)["input_ids"]) == 8
    (tmp_path / "speech" / "3.wav").unlink()
    with pytest.raises(ValueError, match=r"Dataset row .*#.*3.*: `audio` file .*3.wav' does not exist"):
        LlmAsrDataCollator(processor)(mixed)


def test_language_probabilities_follow_the_formula():
    sizes = {"en": 900, "es": 90, "qu": 10}
    assert language_probabilities(sizes, 1.0) == pytest.approx({"en": 0.9, "es": 0.09, "qu": 0.01})
    roots = {language: size**0.5 for language, size in sizes.items()}
    expected = {language: root / sum(roots.values()) for language, root in roots.items()}
    assert language_probabilities(sizes, 2.0) == pytest.approx(expected)
    assert list(language_probabilities(sizes, 1e6).values()) == pytest.approx([1 / 3] * 3, abs=1e-5)
    assert language_probabilities(sizes, 1e-3)["en"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="`temperature` must be positive, got 0"):
        language_probabilities(sizes, 0)


def test_without_a_temperature_every_row_occurs_once(specs):
    fixed = [{"dataset": spec["dataset"], "language": spec["language"]} for spec in specs]
    rows = load_mixture(fixed)
    assert len(rows) == len(set(rows["row"])) == 28


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_are_drawn_with_these_probabilities(streaming, tmp_path):
    # Spanish has 400 rows in two datasets, which share its probability 3 to 1.
    sizes = {"a": ("es", 300), "b": ("es", 100), "c": ("en", 25)}
    specs = []
    for name, (language, size) in sizes.items():
        file = tmp_path / f"{name}.jsonl"
        lines = [json.dumps({"audio": f"{index}.wav", "text": f"{name}{index}"}) for index in range(size)]
        file.write_text("\n".join(lines))
        specs.append(spec(str(file), language, size, streaming))
    rows = list(load_mixture(specs, temperature=2.0, seed=3))
    counts = Counter(row["text"][0] for row in rows)
    # The ratio of sqrt(400) and sqrt(25) is 4 to 1.
    for name, probability in (("a", 0.6), ("b", 0.2), ("c", 0.2)):
        deviation = (probability * (1 - probability) / len(rows)) ** 0.5
        assert counts[name] / len(rows) == pytest.approx(probability, abs=4 * deviation)
    # No row is left out, and rows of the smaller language are repeated.
    assert set(texts(rows)) == {f"{name}{index}" for name, (_, size) in sizes.items() for index in range(size)}
    assert len(rows) < 3 * 425
    assert texts(rows) == texts(load_mixture(specs, temperature=2.0, seed=3))
    assert texts(rows) != texts(load_mixture(specs, temperature=2.0, seed=4))


def test_languages_of_one_dataset_are_distinguished(tmp_path):
    file = tmp_path / "speech.jsonl"
    rows = [{"audio": "a.wav", "text": str(index), "language": "es" if index < 20 else None} for index in range(420)]
    file.write_text("\n".join(map(json.dumps, rows)))
    mixture = load_mixture([{"dataset": str(file), "language_column": "language"}], temperature=1e6)
    share = Counter(mixture["language"])["es"] / len(mixture)
    assert share == pytest.approx(0.5, abs=0.08)


def test_streamed_and_loaded_datasets_are_mixed(specs, tmp_path):
    fixed = spec(write_rows(tmp_path / "fr.parquet", "fr", 6), "fr", 6, streaming=False)
    rows = list(load_mixture([*specs, fixed], temperature=2.0))
    assert set(Counter(texts(rows))) >= {f"fr{index}" for index in range(6)}
    assert {row["language"] for row in rows} == {"es", "en", "fr"}
    assert all(set(row["audio"]) == {"bytes", "path"} for row in rows)


@pytest.mark.parametrize("buffer_size", [1, 7, 1000])
def test_resuming_repeats_and_skips_no_row(specs, buffer_size):
    def mixture():
        return load_mixture(specs, 2.0, filters=RowFilters(), shuffle_buffer_size=buffer_size)

    first = mixture()
    assert texts(resumed(mixture(), first.state_dict())) == texts(first)
    for epoch in (0, 1):
        first.set_epoch(epoch)
        whole, states = [], []
        for row in first:
            whole.append(row["text"])
            states.append(json.dumps(first.state_dict()))
        assert len(whole) >= 28
        for stop, state in enumerate(states, start=1):
            again = resumed(mixture(), json.loads(state))
            assert whole[:stop] + texts(again) == whole
        # Resuming applies once. The next iteration is an epoch from its start.
        assert texts(again) == whole


def test_another_epoch_discards_the_state(specs):
    mixture = load_mixture(specs, 2.0, shuffle_buffer_size=4)
    next(iter(mixture))
    state = mixture.state_dict()
    mixture.load_state_dict(state)
    mixture.set_epoch(1)
    later = texts(mixture)
    fresh = load_mixture(specs, 2.0, shuffle_buffer_size=4)
    fresh.set_epoch(1)
    assert texts(fresh) == later


def test_epochs_and_seeds_change_the_order(specs):
    mixture = load_mixture(specs, shuffle_buffer_size=5)
    first = texts(mixture)
    assert texts(mixture) == first
    mixture.set_epoch(1)
    second = texts(mixture)
    assert second != first
    assert set(second) == set(first)
    mixture.set_epoch(0)
    assert texts(mixture) == first
    assert texts(load_mixture(specs, seed=1, shuffle_buffer_size=5)) != first
    # The order of files changes too.
    mixture = load_mixture(specs[:1], shuffle_buffer_size=1)
    orders = set()
    for epoch in range(5):
        mixture.set_epoch(epoch)
        orders.add(tuple(texts(mixture)))
    assert len(orders) > 1
    assert all(Counter(order) == Counter(first_order) for order in orders for first_order in orders)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_processes_share_the_rows_evenly(specs, num_workers):
    """Prepares the loader as the `Trainer` does, for each of two processes."""
    ranks = []
    for rank in range(2):
        mixture = load_mixture(specs[:1], shuffle_buffer_size=4)
        loader = DataLoader(mixture, batch_size=2, collate_fn=texts, num_workers=num_workers)
        loader = prepare_data_loader(
            loader, num_processes=2, process_index=rank, put_on_device=False, dispatch_batches=False
        )
        loader.set_epoch(1)
        ranks.append(list(loader))
    assert len(ranks[0]) == len(ranks[1])
    seen = [[text for batch in rank for text in batch] for rank in ranks]
    everything = {f"es{part}-{index}" for part in range(4) for index in range(5)}
    assert set(seen[0]) | set(seen[1]) == everything
    # Each worker completes its last batch with earlier rows.
    if num_workers == 0:
        assert not set(seen[0]) & set(seen[1])
        assert len(seen[0]) == len(seen[1]) == 10


def test_persistent_workers_receive_the_epoch(specs):
    mixture = load_mixture(specs[:1], shuffle_buffer_size=4)
    loader = DataLoader(mixture, collate_fn=texts, num_workers=2, persistent_workers=True)
    first = list(loader)
    mixture.set_epoch(1)
    second = list(loader)
    assert first != second
    assert sorted(first) == sorted(second)
    assert len(first) == 20


@pytest.mark.parametrize("streaming", [False, True])
def test_filters_count_what_they_reject(streaming, tmp_path):
    good = write_rows(tmp_path / "good.parquet", "es", 6)
    long = write_rows(tmp_path / "long.parquet", "en", 4, seconds=0.5)
    mixed = pq.read_table(good).to_pylist()[:3] + pq.read_table(long).to_pylist()
    mixed[0]["text"] = " "
    columns = {name: [row[name] for row in mixed] for name in ("audio", "text")}
    write_parquet(tmp_path / "mixed.parquet", columns, {"audio": AUDIO, "text": STRING})
    filters = RowFilters(max_duration=0.3)
    mixture = load_mixture(
        [spec(good, "es", 6, streaming), spec(str(tmp_path / "mixed.parquet"), "en", 7, streaming)], filters=filters
    )
    rows = list(mixture)
    assert {row["text"] for row in rows} == {f"es{index}" for index in range(6)}
    counts = filters.report.counts[str(tmp_path / "mixed.parquet")]
    if streaming:
        # The smaller dataset is repeated.
        assert counts["empty text"] >= 1
        assert counts["too long"] >= 4
        assert counts["too long"] % 4 == 0
    else:
        assert counts == {"kept": 2, "empty text": 1, "too long": 4}
        again = RowFilters(max_duration=0.3)
        load_mixture([spec(str(tmp_path / "mixed.parquet"), "en", 7, False)], filters=again)
        assert again.report.counts == {str(tmp_path / "mixed.parquet"): counts}
        with pytest.raises(ValueError, match=r"has no row left \({'too long': 4}\); check its columns"):
            load_mixture([spec(long, "en", 4, False)], filters=RowFilters(max_duration=0.3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lang": "es"}, r"has unknown keys \['lang'\]; it may have \['dataset', 'name'"),
        ({"language_column": "text"}, "has both `language` and `language_column`; remove one"),
        ({"text_normalizer": "upper"}, r"`text_normalizer` of dataset .* must be one of \['lower', 'unquote'"),
        ({"text_column": None}, "`text_column` of dataset .* must be a string, got None"),
        ({"streaming": "yes"}, "`streaming` of dataset .* must be true or false, got 'yes'"),
        ({"num_rows": 0}, "`num_rows` of dataset .* must be a positive integer, got 0"),
        ({"streaming": False}, "`num_rows` of dataset .* is only for `streaming: true`; remove it"),
        ({"text_column": "sentence"}, r"no column 'sentence'; its columns are \['audio', 'text'\]"),
        ({"duration_column": "seconds"}, "no column 'seconds'"),
        ({"num_rows": None}, "streams and does not provide its size; set `num_rows`"),
        ({"language": None, "language_column": "text"}, "cannot be counted; set one `language`"),
        ({"dataset": "nowhere.parquet"}, "nowhere.parquet' does not exist"),
        ({"dataset": None}, "`dataset` of dataset None must be a string, got None"),
    ],
)
def test_a_bad_recipe_is_refused(specs, change, message):
    with pytest.raises(ValueError, match=message):
        load_mixture([specs[0], specs[1] | change], temperature=2.0)


def test_other_bad_arguments_are_refused(specs):
    with pytest.raises(ValueError, match="`train_datasets` is empty"):
        load_mixture([])
    with pytest.raises(ValueError, match="must be a mapping with `dataset`, got {'language': 'es'}"):
        load_mixture([{"language": "es"}])
    with pytest.raises(ValueError, match="`shuffle_buffer_size` must be at least 1, got 0"):
        load_mixture(specs, shuffle_buffer_size=0)
    with pytest.raises(ValueError, match="`temperature` must be positive, got -1"):
        load_mixture(specs, temperature=-1)


def test_names_of_sources():
    assert DatasetSpec("google/fleurs", name="es_419").source == "google/fleurs:es_419"
    assert DatasetSpec("a/b", split="validation").source == "a/b:validation"
    assert unquote('"') == '"'
    assert unquote('Dijo "hola"') == 'Dijo "hola"'


def test_a_resumed_training_run_sees_the_rows_it_would_have_seen(tmp_path, parts):
    """The `Trainer` skips as many batches as before, so only their order matters."""
    file = write_speech_dataset(tmp_path / "speech")
    lines = [json.loads(line) | {"text": f"one {index}"} for index, line in enumerate(file.read_text().splitlines())]
    file.write_text("\n".join(map(json.dumps, lines)))
    recipe = [{"dataset": str(file), "language_column": "language", "streaming": True}]
    model, processor = compose(parts, "conv", freeze_audio=True)

    class Collator(LlmAsrDataCollator):
        def __call__(self, rows):
            seen.append(texts(rows))
            return super().__call__(rows)

    def train(resume=None):
        seen.clear()
        trainer = LlmAsrTrainer(
            model=model,
            args=LlmAsrTrainingArguments(
                output_dir=str(tmp_path / "run"),
                per_device_train_batch_size=2,
                max_steps=6,
                save_steps=2,
                report_to="none",
                use_cpu=True,
                disable_tqdm=True,
            ),
            data_collator=Collator(processor),
            train_dataset=load_mixture(recipe, shuffle_buffer_size=3),
            processing_class=processor,
        )
        trainer.train(resume_from_checkpoint=resume)
        return list(seen)

    seen = []
    whole = train()
    # Six steps are one and a half epochs.
    assert sorted(text for batch in whole[:4] for text in batch) == sorted(row["text"] for row in lines)
    assert whole[4:6] != whole[:2]
    assert train(str(tmp_path / "run" / "checkpoint-2"))[:6] == whole[:6]
    assert isinstance(load_mixture(recipe), StreamingMixture)
