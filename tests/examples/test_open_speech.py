"""The open-vocabulary corpus: clips and texts of packages like Debian's, what is used of them, and on which side."""

import hashlib
import json
import subprocess
import sys

import gnome_texts
import open_speech
import pytest
import soundfile
from open_corpus import festvox, fillets, packages, pairs, queen, recogniser, synthetic, tuxpaint
from open_corpus.corpus import divide, read_corpus
from open_corpus.recogniser import LONG_MARGIN, SHORT_MARGIN
from open_corpus.splits import split_rows
from open_corpus.texts import normalize, reason_to_reject
from open_speech_packages import (
    cutaway,
    dialogue,
    sound_bytes,
    tone,
    write_festvox,
    write_fillets,
    write_queen,
    write_stamp,
)
from speech import SoundPackage


SOUND = sound_bytes()


def queen_files():
    joe = {0: "Hello there.", 10: "What a day.*14*FLAnd what a night."}
    return {
        "BOB1.DOG": dialogue(2, joe, {0x1F: "I am Bob.*03"}, greeting="Back so soon?"),
        "C13A.CUT": cutaway("*", "Stop right there!*XY00(237,112)Now."),
        "QUEEN2.JAS": b"Neat*02\r\nc13a.CUT\r\nIt is closed*14Really\r\n",
        # Joe's greeting, two segments of a line (the direction between them counts), Bob's line and second greeting.
        **dict.fromkeys(("02SSSSJ1.SB", "02000AJ1.SB", "02000AJ3.SB", "02001FP1.SB", "02XXXXP1.SB"), SOUND),
        **dict.fromkeys(("C13A_021.SB", "C13A_022.SB", "JOE00411.SB", "JOE00431.SB", "JOE00432.SB"), SOUND),
        # Without a text.
        "1000SSSS.SB": SOUND,
    }


def test_the_name_of_a_voice_file_identifies_its_line(tmp_path):
    write_queen(tmp_path, queen_files())
    clips = {clip.id.removeprefix("queen-"): clip for clip in queen.read_clips(tmp_path)}
    assert {name: (clip.text, clip.group, clip.speaker) for name, clip in clips.items()} == {
        "02SSSSJ1": ("Hello there.", "bob", "queen-joe"),
        "02000AJ1": ("What a day.", "bob", "queen-joe"),
        "02000AJ3": ("And what a night.", "bob", "queen-joe"),
        "02001FP1": ("I am Bob.", "bob", "queen-bob"),
        "02XXXXP1": ("Back so soon?", "bob", "queen-bob"),
        "C13A_021": ("Stop right there!", "c13", None),
        "C13A_022": ("Now.", "c13", None),
        "JOE00411": ("Neat", "joe-0", "queen-joe"),
        "JOE00431": ("It is closed", "joe-0", "queen-joe"),
        "JOE00432": ("Really", "joe-0", "queen-joe"),
    }
    assert clips["C13A_022"].read() == SOUND


def test_another_archive_is_refused(tmp_path):
    (tmp_path / "queen.1c").write_bytes(b"QTBX" + bytes(100))
    with pytest.raises(ValueError, match="QTBL"):
        list(queen.read_clips(tmp_path))


def test_a_line_of_fillets_has_the_sound_of_its_level_and_its_role(tmp_path):
    levels = {"city": {"vit-1": ("statue", r"Vítejte v \"městě\"."), "vit-2": ("both", "Ano, ano.")}, "cave": {}}
    write_fillets(tmp_path / "script", tmp_path / "sound", "cs", levels)
    # A line of the same name on another level, and a sound without a line.
    write_fillets(tmp_path / "script", tmp_path / "sound", "cs", {"cave": {"vit-1": ("small", "Jinak.")}})
    (tmp_path / "sound" / "cave" / "cs" / "splash.ogg").write_bytes(SOUND)
    clips = list(fillets.read_clips(tmp_path / "script", tmp_path / "sound", "cs"))
    assert [(clip.id, clip.text, clip.speaker) for clip in clips] == [
        ("fillets-cs-cave-vit-1", "Jinak.", "fillets-cs-small"),
        ("fillets-cs-city-vit-1", 'Vítejte v "městě".', "fillets-cs-statue"),
        ("fillets-cs-city-vit-2", "Ano, ano.", None),
    ]


def test_festvox_texts_have_no_stress_marks_and_missing_sounds_are_skipped(tmp_path):
    write_festvox(tmp_path, {"ru_0001": "+Окна, вол+ос.", "ru_0002": "Нет."})
    (tmp_path / "wav" / "ru_0002.wav").unlink()
    (clip,) = festvox.read_clips(tmp_path)
    assert (clip.id, clip.text, clip.language) == ("festvox-ru_0001", "Окна, волос.", "ru")


def test_stamps_with_the_same_sound_are_used_once(tmp_path):
    write_stamp(tmp_path / "animals", "cat", {"es": "Un gato negro.", "fr": "Un chat noir."})
    write_stamp(tmp_path / "animals", "dog", {"fr": "Un chien."})
    write_stamp(tmp_path / "alphabets", "k", {"fr": "La lettre k."})
    (tmp_path / "animals" / "cat2.txt").write_text("A cat.\nes.utf8=Un gato negro.\n", encoding="utf-8")
    (tmp_path / "animals" / "cat2_desc_es.ogg").write_bytes((tmp_path / "animals" / "cat_desc_es.ogg").read_bytes())
    clips = list(tuxpaint.read_clips(tmp_path, ["es", "fr"]))
    assert [(clip.language, clip.text) for clip in clips] == [
        ("es", "Un gato negro."),
        ("fr", "Un chat noir."),
        ("fr", "Un chien."),
    ]


@pytest.mark.parametrize(
    ("language", "text", "normalized"),
    [
        ("en", "Don’t - stop, 'Joe'... well-known!", "don't stop joe well known"),
        ("ru", "Ещё, ЁЖ - и всё.", "еще еж и все"),
        ("cs", "Cafe\u0301 „Žižka“?", "café žižka"),
        ("nl", "'t Is 's avonds 'laat'", "'t is 's avonds laat"),
        ("fr", "L'eau, c’est « bon »", "l'eau c'est bon"),
    ],
)
def test_texts_are_normalised_by_language(language, text, normalized):
    assert normalize(text, language) == normalized
    assert reason_to_reject(text, language) is None


@pytest.mark.parametrize(
    ("language", "text", "reason"),
    [
        ("en", "Room 12", "digits"),
        ("en", "<sigh> well", "signs"),
        ("en", "Aaargh!", "cry"),
        ("nl", "!?", "no word"),
        ("ru", "Система unix", "script"),
        ("cs", "привет", "script"),
    ],
)
def test_texts_with_an_ambiguous_pronunciation_are_rejected(language, text, reason):
    assert reason in reason_to_reject(text, language)


def row(name, group, speaker=None, text=None, duration=60.0):
    return {"id": name, "text": text or name, "duration": duration, "speaker": speaker, "group": group}


def test_no_group_text_or_held_out_speaker_is_in_two_splits():
    rows = [row(f"{group}-{index}", f"g{group}", "hero") for group in range(20) for index in range(3)]
    rows += [row(f"minor-{index}", f"g{index}", "minor") for index in range(4)]
    # A text that every group has.
    rows += [row(f"same-{group}", f"g{group}", "hero", text="same") for group in range(20)]
    splits, left_out = split_rows(rows, {"test": 15, "validation": 8})

    assert all(members for members in splits.values())
    minor = [member for member in splits["test"] if member["speaker"] == "minor"]
    assert len(minor) == 4
    assert all(member["new_speaker"] for member in minor)
    sides = {}
    for split, members in splits.items():
        for member in members:
            if member["speaker"] != "minor":
                assert member["new_speaker"] is False
                assert sides.setdefault(member["group"], split) == split
    texts = {split: {member["text"] for member in members} for split, members in splits.items()}
    assert not texts["train"] & texts["test"]
    assert not (texts["train"] | texts["test"]) & texts["validation"]
    assert sum(map(len, splits.values())) + len(left_out) == len(rows)
    assert {member["text"] for member, _ in left_out} == {"same"}
    assert 13 * 60 <= sum(member["duration"] for member in splits["test"]) <= 15 * 60 * 1.1
    # The order of rows has no say.
    again, _ = split_rows(rows[::-1], {"test": 15, "validation": 8})
    assert {split: {m["id"] for m in members} for split, members in again.items()} == {
        split: {m["id"] for m in members} for split, members in splits.items()
    }


def test_failed_pairs_are_transcribed_again_and_the_nearest_transcript_counts(tmp_path):
    rows = [
        {"id": "right", "text": "one two three", "language": "en"},
        {"id": "looped", "text": "four five", "language": "en"},
        {"id": "unclear", "text": "eight nine", "language": "en"},
        {"id": "wrong", "text": "six seven", "language": "en"},
    ]
    heard = [
        {"right": "One, two, tree.", "looped": "Four five. Four five. Fo", "unclear": "a night", "wrong": "nothing"},
        {"unclear": "Eight, nine!", "wrong": "or this"},
    ]
    margins = []

    def listen(members, margin):
        margins.append(margin)
        # What said its text once, and then again, has not failed.
        assert {member["id"] for member in members} == heard[len(margins) - 1].keys()
        return heard[len(margins) - 1]

    pairs.check_pairs(rows, listen, tmp_path / "verdicts.json")
    assert margins == [SHORT_MARGIN, LONG_MARGIN]
    assert list(pairs.read_verdicts(tmp_path / "verdicts.json")) == ["wrong"]
    calibration = pairs.read_calibration(tmp_path / "verdicts.json")["en"]
    assert (calibration["pairs"], calibration["rejected"], calibration["dealt_accepted"]) == (4, 0.25, 0)


@pytest.mark.parametrize(
    ("letters", "said"), [("abcabcabc", "abc"), ("abcabcab", "abc"), ("mamama", "ma"), ("abcab", "abcab"), ("", "")]
)
def test_repetitions_at_the_end_are_removed(letters, said):
    assert pairs.once(letters) == said


def test_an_interrupted_check_continues_where_it_stopped(tmp_path, monkeypatch):
    class Recogniser:
        """Says which recordings it was given; it stands for a model that nobody can download here."""

        def __init__(self, folder):
            pass

        def transcribe(self, samples, language, margin):
            if len(batches) == 2:
                raise KeyboardInterrupt
            batches.append([language, *(round(len(recording) / 16_000, 1) for recording in samples)])
            return [f"{language} {len(recording)}" for recording in samples]

    batches = []
    monkeypatch.setattr(recogniser, "Recogniser", Recogniser)
    monkeypatch.setattr(recogniser, "fetch_recogniser", lambda folder: folder)
    monkeypatch.setattr(recogniser, "BATCH", 2)
    recordings = {}
    for index, (language, seconds) in enumerate([("nl", 0.5), ("en", 0.7), ("en", 0.4), ("en", 0.6)]):
        path = tmp_path / f"{index}.flac"
        soundfile.write(path, tone(seconds), 16_000)
        recordings[str(index)] = (path, language)
    cache = tmp_path / "check" / "heard.jsonl"
    with pytest.raises(KeyboardInterrupt):
        recogniser.hear(recordings, cache, tmp_path)
    # One language a batch, and the shortest first.
    assert batches == [["en", 0.4, 0.6], ["en", 0.7]]
    with cache.open("a") as file:
        file.write('{"id": "0", "hea')  # what was being written when the power failed
    batches.clear()
    heard = recogniser.hear(recordings, cache, tmp_path)
    assert batches == [["nl", 0.5]]
    assert heard == {"0": "nl 8000", "1": "en 11200", "2": "en 6400", "3": "en 9600"}
    assert recogniser.hear(recordings, cache, tmp_path) == heard
    assert len(batches) == 1


def lay_package_tree(folder, name, sounds):
    """What lies in `folder`, moved to where the package has it."""
    tree = folder.parent / f"tree-{name}"
    (tree / "DEBIAN").mkdir(parents=True)
    control = f"Package: {name}\nVersion: 1.0\nArchitecture: all\nMaintainer: A <a@b.c>\nDescription: test\n"
    (tree / "DEBIAN" / "control").write_text(control)
    (tree / "usr/share/doc" / name).mkdir(parents=True)
    (tree / "usr/share/doc" / name / "copyright").write_text("GPL")
    (tree / sounds).parent.mkdir(parents=True, exist_ok=True)
    folder.rename(tree / sounds)
    return tree


@pytest.fixture
def pinned(tmp_path, monkeypatch):
    """All packages, tiny, as files that are downloaded already, with their pins."""
    write_queen(tmp_path / "queen", queen_files())
    for language in ("cs", "nl"):
        lines = {f"level{i}": {f"id-{i}": ("small", f"slova {'abcdefgh'[i]} tady")} for i in range(6)}
        write_fillets(tmp_path / "script", tmp_path / f"sound-{language}", language, lines)
    write_festvox(tmp_path / "festvox", {f"ru_{i}": f"Слово {'абвгд'[i]} и ещё слова." for i in range(5)})
    write_stamp(tmp_path / "stamps" / "animals", "cat", {"es": "Un gato muy negro.", "fr": "Un chat noir."})
    folders = {
        "flight-of-the-amazon-queen": "queen",
        "fillets-ng-data": "script",
        "fillets-ng-data-cs": "sound-cs",
        "fillets-ng-data-nl": "sound-nl",
        "festvox-ru": "festvox",
        "tuxpaint-stamps-default": "stamps",
    }
    downloads = tmp_path / "packages"
    downloads.mkdir()
    pins = {}
    for name, folder in folders.items():
        sounds = packages.PACKAGES[name].sounds
        tree = lay_package_tree(tmp_path / folder, name, sounds)
        archive = downloads / f"{name}_1.0_all.deb"
        subprocess.run(["dpkg-deb", "--build", "--root-owner-group", tree, archive], check=True, capture_output=True)
        sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
        pins[name] = SoundPackage(name, "1.0", sha256, packages.PACKAGES[name].licence, sounds)
    monkeypatch.setattr(packages, "PACKAGES", pins)
    monkeypatch.setattr("open_corpus.corpus.PACKAGES", pins)
    monkeypatch.setattr("open_corpus.data_card.PACKAGES", pins)
    return downloads


def test_packages_become_a_corpus_with_its_data_card(tmp_path, pinned, monkeypatch, capsys):
    verdicts = tmp_path / "verdicts.json"
    calibration = {"cs": {"pairs": 6, "median": 0.2, "limit": 0.7, "rejected": 1 / 6, "dealt_accepted": 0.0}}
    pairs.write_verdicts({"fillets-cs-level3-id-3": 0.9}, calibration, verdicts)
    monkeypatch.setattr(pairs, "VERDICTS", verdicts)
    output = tmp_path / "open"
    monkeypatch.setattr(sys, "argv", ["open_speech.py", "--output", str(output), "--packages", str(pinned)])
    open_speech.main()

    rows = {
        path.stem: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in output.glob("*.jsonl")
    }
    everything = [member for members in rows.values() for member in members]
    assert {"fillets-cs-level0-id-0", "queen-02001FP1", "festvox-ru_0"} <= {member["id"] for member in everything}
    assert "fillets-cs-level3-id-3" not in {member["id"] for member in everything}
    assert {member["language"] for name in ("train", "validation", "test") for member in rows[name]} <= {
        *("en", "cs", "nl", "ru")
    }
    assert [member["text"] for member in rows["phrases-es"]] == ["un gato muy negro"]
    for member in everything:
        info = soundfile.info(output / member["audio"])
        assert (info.samplerate, info.channels) == (16_000, 1)
        assert info.duration == pytest.approx(member["duration"], abs=1e-3)
        assert member["package"].endswith("=1.0")
    card = (output / "README.md").read_text(encoding="utf-8")
    assert "LicenseRef-Flight-of-the-Amazon-Queen" in card
    assert "| fillets-cs | cs | the recogniser hears another text | 1 |" in card
    assert "| cs | 6 | 0.2 | 0.7 | 0.167 | 0 |" in card
    printed = capsys.readouterr().out
    assert "fillets-cs: the recogniser hears another text" in printed
    assert "phrases-es" in printed


def test_a_package_with_another_checksum_is_refused(tmp_path, pinned):
    (pinned / "festvox-ru_1.0_all.deb").write_bytes(b"something else")
    with pytest.raises(RuntimeError, match="sha256"):
        packages.fetch_packages(pinned, ["festvox-ru"])


def test_files_without_sound_are_counted_by_reason(tmp_path):
    lines = {f"id-{i}": ("small", text) for i, text in enumerate(["Ano, takhle.", "Taky.", "Ne."])}
    write_fillets(tmp_path / "script", tmp_path / "sound", "cs", {"city": lines})
    sounds = tmp_path / "sound" / "city" / "cs"
    (sounds / "id-0.ogg").write_bytes(b"no sound" * 100)
    (sounds / "id-1.ogg").write_bytes(sound_bytes(0.1, kind="OGG"))
    (sounds / "id-2.ogg").write_bytes(sound_bytes(9.0, kind="OGG"))
    corpus = read_corpus(fillets.read_clips(tmp_path / "script", tmp_path / "sound", "cs"), tmp_path / "open")
    assert not corpus.rows
    assert {reason: count for (_, _, reason), count in corpus.rejected.items()} == {
        "no sound": 1,
        "not between 0.4 and 20.0 s": 1,
        "not between 4 and 25 characters a second": 1,
    }


def test_phrases_of_the_training_set_are_removed_from_the_test(tmp_path):
    write_festvox(tmp_path / "festvox", {"ru_0": "Вот белая кошка."})
    write_stamp(tmp_path / "stamps", "cat", {"ru": "вот белая кошка"})
    write_stamp(tmp_path / "stamps", "dog", {"ru": "вот чёрная собака"})
    clips = [*festvox.read_clips(tmp_path / "festvox"), *tuxpaint.read_clips(tmp_path / "stamps", ["ru"])]
    corpus = read_corpus(clips, tmp_path / "open")
    # Nothing is held out, so that the sentence trains.
    files = divide(corpus, {"validation": 0, "test": 0})
    assert [member["text"] for member in files["train"]] == ["вот белая кошка"]
    assert [member["text"] for member in files["phrases-ru"]] == ["вот черная собака"]
    assert corpus.rejected["tuxpaint", "ru", "text of another split"] == 1


def write_page(folder, language, name, *sentences):
    page = folder / language / "gnome-help" / f"{name}.page"
    page.parent.mkdir(parents=True, exist_ok=True)
    body = "".join(f"<p>{sentence}</p>" for sentence in sentences)
    page.write_text(f'<page xmlns="http://projectmallard.org/1.0/">{body}</page>', encoding="utf-8")


@pytest.fixture
def sentences_to_say(tmp_path, monkeypatch):
    """The game's lines and pages in all languages: a level and a page of each split, and one line that all have."""
    splits = {f"{split}-{kind}": split for split in ("train", "validation", "test") for kind in ("level", "page")}
    monkeypatch.setattr(gnome_texts, "split_of", splits.__getitem__)
    numbers = {"train": "uno due tre", "validation": "quattro cinque sei", "test": "sette otto nove"}
    for language in synthetic.VOICES:
        folder = synthetic.DOCUMENTATION[language].folder
        for split, words in numbers.items():
            lines = {"own": ("small", f"Ecco {words} {language}!"), "same": ("big", f"Sempre {language} uguale.")}
            write_fillets(tmp_path / "script", tmp_path / "sound", language, {f"{split}-level": lines})
            write_page(tmp_path / "help", folder, f"{split}-page", f"Apri {words} {language} ancora.", "Sono 3.")
    return tmp_path / "script", tmp_path / "help"


def test_synthetic_sentences_are_in_one_split_and_not_among_recordings_of_people(tmp_path, sentences_to_say):
    pytest.importorskip("py_nanotts")
    people = {"phrases-es": [{"language": "es", "text": "ecco uno due tre es"}]}
    files = synthetic.speak_corpus(*sentences_to_say, people, tmp_path / "open", takes=2)
    texts = {name: {row["text"] for row in rows if row["language"] == "es"} for name, rows in files.items()}
    assert texts == {
        "synthetic-train": {"apri uno due tre es ancora"},
        "synthetic-validation": {"ecco quattro cinque sei es", "apri quattro cinque sei es ancora"},
        # A sentence of several splits is in the test.
        "synthetic-test": {"ecco sette otto nove es", "apri sette otto nove es ancora", "sempre es uguale"},
    }
    takes = [soundfile.read(tmp_path / "open" / row["audio"])[0] for row in files["synthetic-train"][:2]]
    assert files["synthetic-train"][0]["text"] == files["synthetic-train"][1]["text"]
    assert len(takes[0]) != len(takes[1])
    for name, rows in files.items():
        assert {row["language"] for row in rows} == set(synthetic.VOICES)
        for row in rows:
            assert row["duration"] > 0.5
            # The British voice is heard in the test alone.
            assert (
                row["new_speaker"]
                == (row["speaker"] == "pico-en-GB")
                == (name == "synthetic-test" and row["language"] == "en")
            )
    # The engine adds noise, so samples and durations differ a little from run to run.
    again = synthetic.speak_corpus(*sentences_to_say, people, tmp_path / "again", takes=2)
    for name, rows in files.items():
        assert [{**row, "duration": 0} for row in again[name]] == [{**row, "duration": 0} for row in rows]


def test_given_rows_are_made_again_from_their_packages_alone(tmp_path, pinned, monkeypatch, capsys):
    rows = [
        {"id": "fillets-cs-level1-id-1", "source": "fillets-cs", "text": "slova b tady"},
        {"id": "queen-02001FP1", "source": "queen", "text": "i am bob", "audio": "audio/queen/queen-02001FP1.flac"},
    ]
    file = tmp_path / "sentences.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    output = tmp_path / "try"
    options = ["--output", str(output), "--packages", str(pinned), "--rows", str(file)]
    monkeypatch.setattr(sys, "argv", ["open_speech.py", *options])
    open_speech.main()
    assert (output / "sentences.jsonl").read_text(encoding="utf-8") == file.read_text(encoding="utf-8")
    assert {path.stem for path in output.rglob("*.flac")} == {row["id"] for row in rows}
    assert soundfile.info(output / rows[1]["audio"]).samplerate == 16_000
    assert not (pinned / "festvox-ru").exists()

    rows[0]["text"] = "jiná slova"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(ValueError, match="fillets-cs-level1-id-1"):
        open_speech.main()
