"""Sentences, voices and reproducibility of the synthetic corpus."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile


pytest.importorskip("espeakng_loader")

import espeak_speech
import gnome_texts
from espeak_speech import HELD_OUT_VOICES, TRAINED_VOICES, Espeak
from gnome_texts import LANGUAGES, is_sayable, plain, read_language, read_sentences, split_of


PAGE = '<page xmlns="http://projectmallard.org/1.0/"><info><desc>{}</desc></info>{}</page>'
# One page of each split, by its name.
PAGES = {"train": "about-hostname", "validation": "a11y-bouncekeys", "test": "a11y"}


def write_pages(folder):
    """
    Write documentation in all languages: each page has its own sentence, a sentence that is on all pages, and an untranslated
    sentence.
    """
    for code, language in LANGUAGES.items():
        pages = folder / language.folder / "gnome-help"
        pages.mkdir(parents=True)
        name, shared, *words = (
            ["ру", "все", "раз", "два", "три"] if code == "ru" else [code, "all", "one", "two", "three"]
        )
        for word, page in zip(words, PAGES.values(), strict=True):
            sentences = (f"{word} {word} {name}.", f"{shared} {shared} {name}.", "Not translated at all.")
            body = "".join(f"<p>{sentence}</p>" for sentence in (*sentences, "Press <key>Esc</key> to go back."))
            (pages / f"{page}.page").write_text(PAGE.format("", body), encoding="utf-8")
    return folder


@pytest.fixture
def pages(tmp_path, monkeypatch):
    splits = {name: split for split, name in PAGES.items()}
    monkeypatch.setattr(gnome_texts, "split_of", splits.__getitem__)
    return write_pages(tmp_path / "help")


def test_pages_are_divided_into_sentences_and_typed_text_is_left_out(tmp_path):
    page = tmp_path / "a.page"
    body = "<p>One  <em>two</em>\n three. Four: five?</p><p>Type <cmd>ls</cmd> here.</p><item><p>Six!</p></item>"
    page.write_text(PAGE.format("What it is.", body))
    assert list(read_sentences(page)) == ["One two three.", "Four:", "five?", "Six!", "What it is."]


@pytest.mark.parametrize(
    ("sentence", "language", "sayable"),
    [
        ("Öffnen Sie die Übersicht.", "de", True),
        ("N’ouvrez pas l'application !", "fr", True),
        ("Нажмите на кнопку «Выход».", "ru", True),
        ("Нажмите на кнопку Exit.", "ru", False),
        ("Click on the КНОПКА here.", "en", False),
        ("Connect a USB stick.", "en", False),
        ("Wait for 10 seconds.", "en", False),
        ("Open a file (or two).", "en", False),
        ("And so on and on...", "en", False),
        ("Not a sentence", "en", False),
        ("Too short.", "en", False),
        ("word " * 15 + "end.", "en", False),
        ("A I do.", "en", True),
    ],
)
def test_only_sentences_with_an_unambiguous_pronunciation_are_used(sentence, language, sayable):
    assert is_sayable(sentence, LANGUAGES[language]) == sayable


def test_a_transcript_has_only_letters_and_apostrophes():
    assert plain("N’ouvrez pas l'aperçu – « Activités » !") == "n'ouvrez pas l'aperçu activités"


def test_some_pages_are_held_out_and_most_are_for_training():
    splits = [split_of(f"page-{index}") for index in range(2000)]
    assert [round(20 * splits.count(split) / 2000) for split in ("train", "validation", "test")] == [17, 1, 2]


def test_no_sentence_is_in_two_splits_or_untranslated(pages):
    for code, language in LANGUAGES.items():
        found = {split: len(sentences) for split, sentences in read_language(pages, language).items()}
        # The common sentence is in the training set, and the untranslated one is only in English.
        assert found == {"train": 3 if code == "en" else 2, "validation": 1, "test": 1}, code


def test_voices_differ_and_unknown_ones_are_refused():
    espeak = Espeak()
    man, woman = (espeak.speak("Guten Tag.", f"de+{variant}", 160, 50) for variant in ("m1", "f1"))
    assert 0.4 < len(man) / 16000 < 2
    assert abs(man).max() > 0.1
    assert len(man) != len(woman) or abs(man - woman).max() > 0.1
    slow = espeak.speak("Guten Tag.", "de+m1", 100, 50)
    assert len(slow) > 1.2 * len(man)
    for voice in ("xx+m1", "de+nobody"):
        with pytest.raises(ValueError, match="is not one of eSpeak NG's"):
            espeak.speak("Guten Tag.", voice, 160, 50)
    for language in LANGUAGES.values():
        for variant in (TRAINED_VOICES + HELD_OUT_VOICES)[::3]:
            assert len(espeak.speak("a", f"{language.voice}+{variant}", 160, 50))


def test_the_corpus_is_reproducible_and_holds_out_voices(tmp_path):
    write_pages(tmp_path / "help")
    # eSpeak NG's random state belongs to the process, so use new processes.
    script = (
        "import sys, espeak_speech, gnome_texts\nfrom pathlib import Path\n"
        f"gnome_texts.split_of = {dict(zip(PAGES.values(), PAGES, strict=True))}.__getitem__\n"
        "espeak_speech.make_corpus(Path(sys.argv[1]), Path(sys.argv[2]), takes=2)\n"
    )
    checksums = []
    for output in (tmp_path / "first", tmp_path / "second"):
        command = [sys.executable, "-c", script, str(output), str(tmp_path / "help")]
        subprocess.run(command, check=True, cwd=Path(espeak_speech.__file__).parent)
        checksums.append(json.loads((output / "checksums.json").read_text()))
    assert checksums[0] == checksums[1]
    rows = {
        split: [json.loads(line) for line in (output / f"{split}.jsonl").read_text().splitlines()]
        for split in ("train", "validation", "test", "voices")
    }
    assert {row["voice"].split("+")[1] for row in rows["voices"]} <= set(HELD_OUT_VOICES)
    assert {row["voice"].split("+")[1] for row in rows["train"] + rows["test"]} <= set(TRAINED_VOICES)
    assert [row["text"] for row in rows["test"]] == [row["text"] for row in rows["voices"]]
    assert not {row["text"] for row in rows["test"]} & {row["text"] for row in rows["train"]}
    by_text = {}
    for row in rows["train"]:
        by_text.setdefault((row["language"], row["text"]), set()).add(row["voice"])
        info = soundfile.info(output / row["audio"])
        assert info.samplerate == 16000
        assert info.duration == pytest.approx(row["duration"])
    assert {len(voices) for voices in by_text.values()} == {2}
