"""Times of words by Whisper's attention, with a tiny Whisper in CTranslate2's format."""

import json

import pytest
import torch
from speech_files import write_speech_dataset
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)


pytest.importorskip("ctranslate2", reason='needs the extra "corpus"')

import align_with_whisper
from ctranslate2.converters import TransformersConverter


SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|es|>", "<|transcribe|>", "<|notimestamps|>"]


@pytest.fixture
def recogniser(tmp_path):
    tokenizer = WhisperTokenizer(
        vocab={letter: index for index, letter in enumerate("abcdefghijklmnopqrstuvwxyzĠ")}, merges=[]
    )
    tokenizer.add_special_tokens({"extra_special_tokens": SPECIAL})
    ids = dict(zip(SPECIAL, tokenizer.convert_tokens_to_ids(SPECIAL), strict=True))
    ends = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), ids["<|endoftext|>"])
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        decoder_start_token_id=ids["<|startoftranscript|>"],
        init_std=0.5,
        **ends,
    )
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        suppress_tokens=[1], begin_suppress_tokens=[1], alignment_heads=[[0, 0], [0, 1]], lang_to_id=ids, **ends
    )
    for part in (model, tokenizer, WhisperFeatureExtractor()):
        part.save_pretrained(tmp_path / "whisper")
    TransformersConverter(str(tmp_path / "whisper"), copy_files=["tokenizer.json"]).convert(
        str(tmp_path / "converted")
    )
    # Older converters, such as that of the downloaded model, write the tokens as lines.
    tokens = json.loads((tmp_path / "converted" / "vocabulary.json").read_text(encoding="utf-8"))
    (tmp_path / "converted" / "vocabulary.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    (tmp_path / "converted" / "vocabulary.json").unlink()
    return tmp_path / "converted"


def test_words_of_the_wanted_languages_have_times_in_order(recogniser, tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    dataset = write_speech_dataset(tmp_path / "speech", size=4)
    output = dataset.parent / "words.jsonl"
    options = ["--dataset", dataset, "--output", output, "--languages", "en", "--recogniser", recogniser]
    monkeypatch.setattr("sys.argv", ["align_with_whisper.py", *map(str, options)])
    align_with_whisper.main()
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [row["text"] for row in rows] == ["one two", "three"]
    for row in rows:
        assert [word["word"] for word in row["words"]] == row["text"].split()
        times = [time for word in row["words"] for time in (word["start"], word["end"])]
        assert times == sorted(times)
        # A word of the dataset lasts 0.3 s.
        assert 0 <= times[0] < times[-1] <= 0.3 * len(row["words"])
    assert rows[0]["words"][0]["end"] == rows[0]["words"][1]["start"]
    assert "2 recordings" in capsys.readouterr().out


def test_the_output_must_be_beside_the_dataset(tmp_path, monkeypatch, capsys):
    dataset = write_speech_dataset(tmp_path / "speech", size=1)
    options = ["--dataset", str(dataset), "--output", str(tmp_path / "words.jsonl")]
    monkeypatch.setattr("sys.argv", ["align_with_whisper.py", *options])
    with pytest.raises(SystemExit):
        align_with_whisper.main()
    assert "must be in the folder" in capsys.readouterr().err


def test_the_path_goes_through_the_whole_recording(recogniser):
    aligner = align_with_whisper.Aligner(recogniser)
    samples = (0.1 * torch.randn(32_000)).numpy()
    tokens, frames = aligner.find_path(samples, [3, 4, 5], "en")
    assert (tokens[0], tokens[-1]) == (0, 3)
    assert (frames[0], frames[-1]) == (0, 99)
