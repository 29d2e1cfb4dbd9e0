"""A trimmed language model writes the same, and its tokenizer divides the texts as before."""

import json

import pytest
import torch
from tiny_language_models import COMMON
from tiny_models import compose, make_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from llm_asr import LlmAsrForConditionalGeneration, LlmAsrProcessor
from llm_asr.cli import main
from llm_asr.publishing.trim_vocabulary import trim_vocabulary


# What the original tokenizers have learnt, and the part of it that is kept.
CORPUS = [
    "one two three four five six seven eight nine ten eleven twelve",
    "the quick brown fox jumps over the lazy dog while thunder thunders",
    "раз два три четыре пять шесть семь восемь девять десять",
    "der schnelle braune Fuchs springt über den faulen Hund",
] * 3
TEXTS = ["one two three", "the thunder", "два три", "über den Hund"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def make_byte_level_bpe():
    """As Qwen's: bytes as characters, special tokens behind the others."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|reserved_0|>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def wrap_like_gemma(tokenizer):
    """Spaces as a character of their own, bytes for unknown characters, and a token at the beginning."""
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()],
    )
    bos = tokenizer.token_to_id("<bos>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", bos)])
    tokenizer.add_special_tokens(["<pad>", "<eos>", "<bos>", "<unk>"])
    tokenizer.add_tokens([AddedToken(f"<unused{index}>", normalized=False) for index in range(8)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )


def train_gemma_like(model, trainer):
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.train_from_iterator(CORPUS, trainer)
    return json.loads(tokenizer.to_str())["model"]


# The placeholders come first, so that the ids behind them change.
SPECIAL = [*[f"<unused{index}>" for index in range(8)], "<pad>", "<eos>", "<bos>", "<unk>"]


def make_byte_fallback_bpe():
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=[*SPECIAL, *BYTES])
    learnt = train_gemma_like(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True), trainer)
    model = models.BPE(
        vocab=learnt["vocab"],
        merges=[tuple(merge) for merge in learnt["merges"]],
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )
    return wrap_like_gemma(Tokenizer(model))


def make_unigram():
    trainer = trainers.UnigramTrainer(vocab_size=420, special_tokens=[*SPECIAL, *BYTES], unk_token="<unk>")
    learnt = train_gemma_like(models.Unigram(), trainer)
    vocabulary = [(token, score) for token, score in learnt["vocab"]]
    return wrap_like_gemma(Tokenizer(models.Unigram(vocabulary, learnt["unk_id"], byte_fallback=True)))


TOKENIZERS = {"byte-level": make_byte_level_bpe, "byte-fallback": make_byte_fallback_bpe, "unigram": make_unigram}
FAMILIES = {
    "qwen2": {},
    "gemma3_text": {"head_dim": 10, "tie_word_embeddings": True},
    # The head has a bias.
    "phi": {"num_key_value_heads": 4, "partial_rotary_factor": 0.4},
}


def make_model(family, tokenizer, padding=5, **kwargs):
    """With some rows more than there are tokens."""
    config = AutoConfig.for_model(
        family,
        **{
            **COMMON,
            **FAMILIES[family],
            "vocab_size": len(tokenizer) + padding,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **kwargs,
        },
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    head = model.get_output_embeddings()
    if head.bias is not None:
        torch.nn.init.normal_(head.bias)
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_tokens_and_outputs_of_the_given_texts_do_not_change(family, kind):
    tokenizer = TOKENIZERS[kind]()
    model = make_model(family, tokenizer)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trimmed, new_tokenizer, old_ids = trim_vocabulary(model, tokenizer, TEXTS)

    assert len(new_tokenizer) == len(old_ids) == trimmed.config.vocab_size < len(tokenizer)
    assert trimmed.get_input_embeddings().weight.shape[0] == len(old_ids)
    tied = trimmed.get_output_embeddings().weight is trimmed.get_input_embeddings().weight
    assert tied == bool(model.config.tie_word_embeddings)
    removed = sorted(set(range(model.config.vocab_size)) - set(old_ids))
    assert tokenizer.convert_ids_to_tokens(old_ids) == new_tokenizer.convert_ids_to_tokens(range(len(old_ids)))
    for text in [*TEXTS, " one", "Transcribe the speech in Russian."]:
        new = new_tokenizer(text, return_tensors="pt")
        old = tokenizer(text, return_tensors="pt")
        assert [old_ids[index] for index in new.input_ids[0]] == old.input_ids[0].tolist()
        with torch.no_grad():
            logits, new_logits = model(**old).logits[..., old_ids], trimmed(**new).logits
        torch.testing.assert_close(new_logits, logits)
        written = model.generate(**old, max_new_tokens=12, suppress_tokens=removed, do_sample=False)
        new_written = trimmed.generate(**new, max_new_tokens=12, do_sample=False)
        assert [old_ids[index] for index in new_written[0]] == written[0].tolist()
    # The model that was given is as it was.
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=0)
    assert model.config.vocab_size == len(tokenizer) + 5


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_other_texts_have_more_tokens_and_decode_to_the_same_text(kind):
    tokenizer = TOKENIZERS[kind]()
    _, trimmed, _ = trim_vocabulary(make_model("qwen2", tokenizer), tokenizer, TEXTS)
    text = "twelve lazy dogs, восемь! 日本 [x]"
    ids = trimmed(text, add_special_tokens=False).input_ids
    assert trimmed.decode(ids) == text
    assert trimmed.unk_token_id is None or trimmed.unk_token_id not in ids
    assert len(ids) > len(tokenizer(text, add_special_tokens=False).input_ids)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_rare_words_are_divided_into_tokens_that_are_frequent(kind):
    tokenizer = TOKENIZERS[kind]()
    texts = ["one two three"] * 4 + ["the thunder", "восемь"]
    model = make_model("qwen2", tokenizer)
    _, every, _ = trim_vocabulary(model, tokenizer, texts)
    trimmed, new_tokenizer, old_ids = trim_vocabulary(model, tokenizer, texts, min_count=4)

    assert len(old_ids) < len(every)
    assert new_tokenizer.tokenize("one two three") == tokenizer.tokenize("one two three")
    assert len(new_tokenizer.tokenize("the thunder")) > len(tokenizer.tokenize("the thunder"))
    for text in ("the thunder", "восемь"):
        ids = new_tokenizer(text, add_special_tokens=False).input_ids
        assert new_tokenizer.decode(ids) == text
        assert new_tokenizer.unk_token_id is None or new_tokenizer.unk_token_id not in ids
        new = new_tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            old = model(torch.tensor(old_ids)[new.input_ids], attention_mask=new.attention_mask)
            torch.testing.assert_close(trimmed(**new).logits, old.logits[..., old_ids])
    with pytest.raises(ValueError, match="`min_count` must be at least 1, got 0"):
        trim_vocabulary(model, tokenizer, texts, min_count=0)


def test_rare_tokens_that_a_word_requires_are_kept():
    words = Tokenizer(models.WordLevel({"one": 0, "two": 1, "<unk>": 2, "<eos>": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>"
    )
    with pytest.raises(ValueError, match="cannot be trimmed"):
        trim_vocabulary(make_model("qwen2", tokenizer), tokenizer, ["one one", "two"], min_count=2)


def test_a_character_is_kept_if_the_unknown_token_would_replace_it():
    # Unknown characters score 10 below the least token: without "а", "бвг" behind an unknown one would beat "аб" and "вг".
    scores = {"<unk>": 0.0, "<eos>": 0.0, "а": -40.0, "аб": -20.0, "вг": -15.0, "бвг": -3.0, "дежз": -1.0}
    tokenizer = Tokenizer(models.Unigram(list(scores.items()), unk_id=0))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>")
    tokenizer.add_special_tokens({"pad_token": "<eos>"})
    _, trimmed, _ = trim_vocabulary(make_model("qwen2", tokenizer), tokenizer, ["абвг", "бвг"])
    assert tokenizer.tokenize("абвг") == trimmed.tokenize("абвг") == ["аб", "вг"]
    assert "дежз" not in trimmed.get_vocab()


def test_placeholders_are_removed_unless_a_setting_names_them():
    tokenizer = make_byte_fallback_bpe()
    unused = tokenizer.convert_tokens_to_ids("<unused3>")
    model = make_model("gemma3_text", tokenizer, eos_token_id=[tokenizer.eos_token_id, unused])
    trimmed, new_tokenizer, _ = trim_vocabulary(model, tokenizer, TEXTS)
    assert [token for token in new_tokenizer.get_vocab() if "unused" in token] == ["<unused3>"]
    eos = [new_tokenizer.eos_token_id, new_tokenizer.convert_tokens_to_ids("<unused3>")]
    assert trimmed.config.eos_token_id == trimmed.generation_config.eos_token_id == eos


def test_settings_name_the_same_tokens_as_before():
    tokenizer = make_byte_level_bpe()
    model = make_model("qwen2", tokenizer)
    kept, removed = (tokenizer.convert_tokens_to_ids(token) for token in ("a", tokenizer.tokenize("lazy dog")[-1]))
    model.generation_config.suppress_tokens = [kept, removed]
    model.generation_config.bad_words_ids = [[kept, kept], [kept, removed]]
    trimmed, new_tokenizer, old_ids = trim_vocabulary(model, tokenizer, TEXTS)
    assert removed not in old_ids
    # They stand at the end of this tokenizer, so that their ids change.
    assert new_tokenizer.eos_token_id != tokenizer.eos_token_id
    for settings in (trimmed.config, trimmed.generation_config):
        assert settings.eos_token_id == new_tokenizer.eos_token_id == old_ids.index(tokenizer.eos_token_id)
        assert settings.pad_token_id == new_tokenizer.pad_token_id == old_ids.index(tokenizer.pad_token_id)
    assert trimmed.get_input_embeddings().padding_idx == new_tokenizer.pad_token_id
    new = old_ids.index(kept)
    assert trimmed.generation_config.suppress_tokens == [new]
    assert trimmed.generation_config.bad_words_ids == [[new, new]]
    assert model.generation_config.suppress_tokens == [kept, removed]


def test_the_command_writes_a_model_to_compose_from(tmp_path, parts, capsys):
    tokenizer = make_byte_level_bpe()
    model = make_model("qwen2", tokenizer)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = "".join(json.dumps({"sentence": text}, ensure_ascii=False) + "\n" for text in TEXTS[:2])
    (tmp_path / "rows.jsonl").write_text(rows, encoding="utf-8")
    (tmp_path / "lines.txt").write_text("\n".join(TEXTS[2:]) + "\n\n", encoding="utf-8")
    output = tmp_path / "trimmed"
    files = [str(tmp_path / "rows.jsonl"), str(tmp_path / "lines.txt")]
    command = ["trim-vocabulary", str(tmp_path / "model"), *files, "--text-column", "sentence", "--output"]
    assert main([*command, str(output)]) == 0

    old_ids = json.loads((output / "trimmed_vocabulary.json").read_text())["old_ids"]
    assert f"{len(old_ids)} of {len(tokenizer)} tokens" in capsys.readouterr().out
    new_tokenizer, trimmed = AutoTokenizer.from_pretrained(output), AutoModelForCausalLM.from_pretrained(output).eval()
    for text in TEXTS:
        old, new = (one(text, return_tensors="pt") for one in (tokenizer, new_tokenizer))
        assert [old_ids[index] for index in new.input_ids[0]] == old.input_ids[0].tolist()
        with torch.no_grad():
            torch.testing.assert_close(trimmed(**new).logits, model(**old).logits[..., old_ids])
    processor = LlmAsrProcessor.from_audio_text_pretrained(parts["whisper"], str(output))
    composed = LlmAsrForConditionalGeneration.from_audio_text_pretrained(parts["whisper"], str(output))
    assert composed.config.audio_token_id == processor.audio_token_id == len(old_ids)

    assert main([*command, str(output)]) == 2
    assert "trimmed" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "fewer"), "--min-count", "2"]) == 0
    assert len(json.loads((tmp_path / "fewer" / "trimmed_vocabulary.json").read_text())["old_ids"]) < len(old_ids)


def test_a_tokenizer_that_is_longer_than_the_embedding_is_refused():
    tokenizer = make_byte_level_bpe()
    model = make_model("qwen2", tokenizer, padding=-1)
    tokenizer.add_tokens(["<|useful|>"])
    with pytest.raises(ValueError, match="useful"):
        trim_vocabulary(model, tokenizer, TEXTS)


def test_texts_must_be_strings_and_not_empty():
    tokenizer = make_byte_level_bpe()
    model = make_model("qwen2", tokenizer)
    with pytest.raises(TypeError, match="several strings"):
        trim_vocabulary(model, tokenizer, "one two")
    with pytest.raises(TypeError, match="entry 1 is None"):
        trim_vocabulary(model, tokenizer, ["one", None])
    with pytest.raises(ValueError, match="`texts` is empty"):
        trim_vocabulary(model, tokenizer, [" ", ""])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"other": "x"}', "row 2: no text in a column 'text'"),
        ('{"text": 3}', "row 2: 'text' must be a string, got 3"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, message, capsys):
    (tmp_path / "rows.jsonl").write_text(f'{{"text": "one"}}\n{row}\n')
    command = ["trim-vocabulary", str(tmp_path), str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "out")]
    assert main(command) == 2
    assert message in capsys.readouterr().err


def test_models_that_cannot_be_trimmed_are_refused(parts):
    tokenizer = make_byte_level_bpe()
    model, processor = compose(parts, "conv", text="qwen2")
    with pytest.raises(ValueError, match="LLM-ASR model"):
        trim_vocabulary(model, processor.tokenizer, TEXTS)
    word_pieces = Tokenizer(models.WordPiece({"[UNK]": 0, "one": 1}, unk_token="[UNK]"))
    word_pieces = PreTrainedTokenizerFast(tokenizer_object=word_pieces, unk_token="[UNK]")
    with pytest.raises(ValueError, match="WordPiece"):
        trim_vocabulary(make_model("qwen2", tokenizer), word_pieces, TEXTS)


class Qwen2WithSecondTable(Qwen2ForCausalLM):
    """A second embedding of each token, as Gemma-3n has one a layer."""

    def __init__(self, config):
        super().__init__(config)
        self.second = torch.nn.Embedding(config.vocab_size, config.hidden_size)

    def forward(self, input_ids, **kwargs):
        embeds = self.get_input_embeddings()(input_ids) + self.second(input_ids)
        return super().forward(inputs_embeds=embeds, **kwargs)


def test_a_model_with_a_second_table_of_tokens_is_refused():
    tokenizer = make_byte_level_bpe()
    config = Qwen2Config(**COMMON, vocab_size=len(tokenizer))
    with pytest.raises(ValueError, match="gives other logits"):
        trim_vocabulary(Qwen2WithSecondTable(config), tokenizer, TEXTS)


def test_a_chat_template_and_its_tokens_are_kept(parts):
    tokenizer = make_tokenizer()
    _, trimmed, _ = trim_vocabulary(make_model("qwen2", tokenizer), tokenizer, ["one two"])
    messages = [{"role": "user", "content": "Transcribe the speech."}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert trimmed.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == text
    assert trimmed.tokenize(text) == tokenizer.tokenize(text)
