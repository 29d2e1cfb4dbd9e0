"""
Measures the time from features to text of our four projectors and of Transformers' audio language models of equal size.

    python benchmarks/transcribe.py --threads 2 --output docs/benchmarks/transcribe.json

Weights are random. Encoders have the same depth and widths, and all models share one language model. So models only differ in
how they encode recordings and in the number of audio embeddings in the prompt. All models get the same recordings, have the
same number of text tokens in the prompt, and generate the same number of tokens. `--compile` adds our decoding with a static
cache, with and without `torch.compile`.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    CompileConfig,
    GenerationConfig,
    GraniteSpeechCTCEncoder,
    PreTrainedModel,
    Qwen2Config,
    Qwen3ASRFeatureExtractor,
    WhisperConfig,
    WhisperFeatureExtractor,
)

from llm_asr import LlmAsrConfig, LlmAsrForConditionalGeneration
from llm_asr.modeling.configuration_projector import PROJECTOR_TYPES


SAMPLING_RATE = 16_000
PROMPT_TOKENS = 32  # text tokens in the prompt, half of them before the audio
TOKENS_PER_SECOND = 3.0  # rate of CIF, similar to that of speech


class Size(NamedTuple):
    """Dimensions that all models share, and dimensions of our projectors that differ from the defaults."""

    audio: dict[str, int]
    text: dict[str, int]
    projector: dict[str, int]


def sizes(width: int, feed_forward: int, layers: int, heads: int, **kwargs: int) -> dict[str, int]:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return dict(zip(names, (width, feed_forward, layers, heads), strict=True)) | kwargs


SMALL_PROJECTOR = {"hidden_size": 512, "intermediate_size": 1024, "expert_hidden_size": 512}
SIZES = {
    # Whisper-tiny's encoder and a language model that decodes on two cores in reasonable time.
    "small": Size(
        sizes(384, 1536, 4, 6, num_mel_bins=80),
        sizes(512, 1408, 8, 8, num_key_value_heads=2, vocab_size=16_384),
        SMALL_PROJECTOR,
    ),
    "whisper-base, qwen2.5-0.5b": Size(
        sizes(512, 2048, 6, 8, num_mel_bins=80),
        sizes(896, 4864, 24, 14, num_key_value_heads=2, vocab_size=151_936),
        SMALL_PROJECTOR,
    ),
    "whisper-large-v3, qwen2.5-7b": Size(
        sizes(1280, 5120, 32, 20, num_mel_bins=128),
        sizes(3584, 18_944, 28, 28, num_key_value_heads=4, vocab_size=152_064),
        {},
    ),
}

MEASURES = ("encode, ms", "prefill, ms", "decode, ms a token", "end to end, ms")
_, PREFILL, DECODE, END_TO_END = MEASURES

Features = dict[str, Tensor]
Rows = dict[str, dict[str, float]]


def whisper_features(audio: list[np.ndarray], mel_bins: int, padding: str) -> Features:
    features = WhisperFeatureExtractor(feature_size=mel_bins)(
        audio, sampling_rate=SAMPLING_RATE, padding=padding, return_attention_mask=True, return_tensors="pt"
    )
    return {"input_features": features["input_features"], "input_features_mask": features["attention_mask"]}


def our_features(audio: list[np.ndarray], mel_bins: int) -> Features:
    return whisper_features(audio, mel_bins, "longest")


def qwen3_asr_features(audio: list[np.ndarray], mel_bins: int) -> Features:
    features = Qwen3ASRFeatureExtractor(feature_size=mel_bins)(
        audio, sampling_rate=SAMPLING_RATE, padding=True, return_attention_mask=True
    )
    return {"input_features": features["input_features"], "input_features_mask": features["attention_mask"]}


def fun_asr_nano_features(audio: list[np.ndarray], mel_bins: int) -> Features:
    """
    Random features of the right shape, because extracting them needs torchaudio: a frame every 10 ms, with 7 frames stacked
    every 6 frames.
    """
    lengths = torch.tensor([-(-(1 + (len(each) - 400) // 160) // 6) for each in audio])
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    return {"input_features": torch.randn(*mask.shape, 7 * mel_bins), "input_features_mask": mask}


def glmasr_features(audio: list[np.ndarray], mel_bins: int) -> Features:
    return whisper_features(audio, mel_bins, "max_length")


def voxtral_features(audio: list[np.ndarray], mel_bins: int) -> Features:
    return {"input_features": glmasr_features(audio, mel_bins)["input_features"]}


class Peer(NamedTuple):
    """An audio language model of Transformers, with its feature extraction and a description of its cost."""

    features: Callable[[list[np.ndarray], int], Features]
    difference: str


PEERS = {
    "qwen3_asr": Peer(
        qwen3_asr_features,
        "three 2-D convolutions make 13 frames of each second ahead of the layers; each frame is an embedding",
    ),
    "fun_asr_nano": Peer(
        fun_asr_nano_features,
        "stacks mel frames to 16.7 a second ahead of the layers, and has two more layers of the language model's "
        "width behind; each frame is an embedding",
    ),
    "glmasr": Peer(glmasr_features, "encodes 30 s at 50 frames a second; 12.5 embeddings a second of speech"),
    "voxtral": Peer(voxtral_features, "encodes 30 s at 50 frames a second; all 375 embeddings, padding among them"),
}
OUR_DIFFERENCE = (
    "encodes at the length of the longest recording, 50 frames a second; 12.5 embeddings a second, or what CIF fires"
)


def ours(projector_type: str) -> str:
    return f"`{projector_type}` (ours)"


def build_ours(projector_type: str, size: Size, text_model: PreTrainedModel) -> PreTrainedModel:
    projector_config = {"projector_type": projector_type, "expected_tokens_per_second": TOKENS_PER_SECOND}
    config = LlmAsrConfig(
        audio_config=WhisperConfig(**size.audio, encoder_ffn_dim=size.audio["intermediate_size"]),
        text_config=text_model.config,
        projector_config={**projector_config, **size.projector},
        audio_token_id=size.text["vocab_size"] - 1,
        # A new configuration loses the attention implementation that the language model has resolved.
        attn_implementation={"audio_config": "sdpa", "text_config": "sdpa"},
    )
    return LlmAsrForConditionalGeneration(config, text_model=text_model)


def build_peer(name: str, size: Size, text_model: PreTrainedModel) -> PreTrainedModel:
    """
    Build a model of Transformers. Parts that our model lacks have the same relative width as in the published checkpoint.
    """
    audio_width, text_width = size.audio["hidden_size"], size.text["hidden_size"]
    audio, others = {"model_type": f"{name}_encoder", **size.audio}, {}
    if name == "qwen3_asr":
        audio |= {"downsample_hidden_size": 480 * audio_width // 1024, "output_dim": text_width}
    elif name == "fun_asr_nano":
        adaptor = sizes(text_width, text_width // 4, 2, size.text["num_attention_heads"])
        others["adaptor_config"] = {**adaptor, "projector_hidden_size": 2 * text_width}
        audio["num_timestamp_prediction_layers"] = 0
    config = AutoConfig.for_model(
        name,
        audio_config=audio,
        text_config=text_model.config,
        audio_token_id=size.text["vocab_size"] - 1,
        **others,
    )
    if name == "fun_asr_nano":
        config.adaptor_config._attn_implementation = "sdpa"  # the default here would be the slower "eager"
    model = AutoModelForMultimodalLM.from_config(config)
    model.model.language_model, model.lm_head = text_model.model, text_model.lm_head
    return model


def millions(module: nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def why_not_granite_speech(size: Size) -> str:
    """Why granite_speech is left out: with the same dimensions it has another size."""
    with torch.device("meta"):
        config = GraniteSpeechCTCEncoder.config_class(
            hidden_dim=size.audio["hidden_size"],
            num_layers=size.audio["num_hidden_layers"],
            num_heads=size.audio["num_attention_heads"],
            feedforward_mult=size.audio["intermediate_size"] // size.audio["hidden_size"],
        )
        encoder = GraniteSpeechCTCEncoder(config)
    return (
        "its Conformer layers have two feed-forward networks and a convolution: at the same depth and widths its "
        f"encoder has {millions(encoder):.1f}M parameters, about twice ours"
    )


class Contestant:
    """A model with the features and prompts of one batch."""

    def __init__(self, model: PreTrainedModel, audio: list[np.ndarray], extract: Callable, mel_bins: int):
        self.model = model
        self.seconds = sum(map(len, audio)) / SAMPLING_RATE
        self.features = self._move(extract(audio, mel_bins))
        is_ours = isinstance(model, LlmAsrForConditionalGeneration)
        # Our model expands one audio token itself. A peer needs as many audio tokens as embeddings.
        alone = {len(each): self._move(extract([each], mel_bins)) for each in audio}
        counts = {length: 1 if is_ours else len(self._encode(features)) for length, features in alone.items()}
        audio_token = model.config.audio_token_id
        before, after = torch.randint(audio_token, (2, PROMPT_TOKENS // 2))
        prompts = [torch.cat([before, before.new_full((counts[len(each)],), audio_token), after]) for each in audio]
        masks = [torch.ones_like(prompt) for prompt in prompts]
        self.prompt = {
            name: pad_sequence(rows, batch_first=True, padding_side="left").to(model.device)
            for name, rows in (("input_ids", prompts), ("attention_mask", masks))
        }
        # Without an end token, all models generate the maximum number of tokens.
        model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)

    def _move(self, features: Features) -> Features:
        dtypes = {"input_features": self.model.dtype, "input_features_mask": torch.long}
        return {name: tensor.to(self.model.device, dtypes[name]) for name, tensor in features.items()}

    def _encode(self, features: Features) -> Tensor:
        return self.model.get_audio_features(**features, return_dict=True).pooler_output

    def encode(self) -> Tensor:
        """Compute the packed embeddings of all recordings."""
        return self._encode(self.features)

    def write(self, num_tokens: int, **kwargs) -> Tensor:
        """Generate, and return only the new tokens. Peers return the prompt before them."""
        tokens = self.model.generate(**self.features, **self.prompt, max_new_tokens=num_tokens, **kwargs)
        return tokens[:, -num_tokens:]

    def facts(self) -> dict[str, float]:
        """Properties that influence the times. Numbers of parameters are in millions."""
        parts = self.model.model
        projector = parts.projector if hasattr(parts, "projector") else parts.multi_modal_projector
        return {
            "embeddings a second": len(self.encode()) / self.seconds,
            "encoder, M": millions(parts.audio_tower),
            "projector, M": millions(projector),
        }


def run(function: Callable[[], Tensor], device: str) -> float:
    """Measure the seconds of one call."""
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    function()
    synchronize()
    return time.perf_counter() - start


def measure(contestants: dict[str, Contestant], options: argparse.Namespace) -> Rows:
    """Measure each model: medians of interleaved repeats in milliseconds, and properties that influence them."""
    repeats = {name: [] for name in contestants}
    for _ in range(options.repeats + 1):
        for name, each in contestants.items():
            encode = run(each.encode, options.device)
            first = run(partial(each.write, 1), options.device)
            whole = run(partial(each.write, options.tokens), options.device)
            decode = (whole - first) / (options.tokens - 1)
            repeats[name].append((encode, first - encode, decode, whole))
    rows = {}
    for name, values in repeats.items():
        medians = (1e3 * median(column) for column in zip(*values[1:], strict=True))  # the first repeat warms up
        rows[name] = dict(zip(MEASURES, medians, strict=True)) | contestants[name].facts()
    return rows


def report(batch_size: int, rows: Rows) -> str:
    """A Markdown table for one batch size. Ratios are relative to our `conv`."""
    baseline = rows[ours("conv")]
    facts = [key for key in baseline if key not in MEASURES]
    heads = [*MEASURES, *facts]
    lines = [f"\n### Batches of {batch_size}\n", f"| | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
    for name, row in rows.items():
        cells = [f"{row[key]:.1f} ({row[key] / baseline[key]:.2f}×)" for key in MEASURES]
        cells += [f"{row[key]:.1f}" for key in facts]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)


def verdicts(results: dict[int, Rows]) -> list[str]:
    """Check two goals: our models are never slower end to end than a peer, and `cif` has a faster prefill than `conv`."""
    lines = []
    for name in map(ours, PROJECTOR_TYPES):
        ratios = {
            f"{peer} in batches of {batch_size}": rows[peer][END_TO_END] / rows[name][END_TO_END]
            for batch_size, rows in results.items()
            for peer in PEERS
        }
        fastest = min(ratios, key=ratios.get)
        verdict = "met" if ratios[fastest] >= 1 else "not met"
        lines.append(
            f"End to end, {name} against the fastest peer of equal size, {fastest}, which takes "
            f"{ratios[fastest]:.2f}× as long (goal: never slower: {verdict})."
        )
    for batch_size, rows in results.items():
        ratio = rows[ours("conv")][PREFILL] / rows[ours("cif")][PREFILL]
        verdict = "met" if ratio > 1 else "not met"
        lines.append(
            f"Prefill in batches of {batch_size}: `conv` takes {ratio:.2f}× as long as `cif` "
            f"(goal: longer: {verdict})."
        )
    return lines


def measure_caches(contestant: Contestant, options: argparse.Namespace) -> Rows:
    """Measure our decoding in milliseconds per token, and compare the greedy tokens with those of the dynamic cache."""
    compile_config = CompileConfig(dynamic=False)
    compile_config._compile_all_devices = True  # by default `generate` does not compile on a CPU
    ways = {
        "dynamic cache": {},
        "static cache": {"cache_implementation": "static", "disable_compile": True},
        "static cache, compiled": {"cache_implementation": "static", "compile_config": compile_config},
    }
    torch.compiler.reset()  # another batch size needs another graph
    rows = {}
    for name, kwargs in ways.items():
        start = time.perf_counter()
        tokens = contestant.write(options.tokens, **kwargs)
        rows[name] = {"first call, s": time.perf_counter() - start, "tokens": tokens}
    repeats = {name: [] for name in ways}
    for _ in range(options.repeats):
        for name, kwargs in ways.items():
            first, whole = (
                run(partial(contestant.write, num_tokens, **kwargs), options.device)
                for num_tokens in (1, options.tokens)
            )
            repeats[name].append(1e3 * (whole - first) / (options.tokens - 1))
    expected = rows["dynamic cache"]["tokens"]
    for name, row in rows.items():
        row[DECODE] = median(repeats[name])
        row["same tokens"] = torch.equal(row.pop("tokens"), expected)
    return rows


def report_caches(batch_size: int, rows: Rows) -> str:
    lines = [f"\n### `conv` with other caches, batches of {batch_size}\n"]
    lines += ["| | decode, ms a token | same tokens | first call, s |", "|---|---:|---:|---:|"]
    for name, row in rows.items():
        ratio = row[DECODE] / rows["dynamic cache"][DECODE]
        same = "yes" if row["same tokens"] else "no"
        lines.append(f"| {name} | {row[DECODE]:.1f} ({ratio:.2f}×) | {same} | {row['first call, s']:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument(
        "--seconds", type=float, nargs="+", default=[4.0], help="Duration of recordings in seconds, or its range."
    )
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--tokens", type=int, default=32, help="Number of new tokens for each recording.")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="Compare caches, with and without `torch.compile`.")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)

    device = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {options.threads} thread(s)"
    setting = {"torch": torch.__version__, "transformers": transformers.__version__, "device": device}
    setting |= {"dtype": options.dtype, "size": options.size, "seconds of a recording": options.seconds}
    setting |= {"tokens of prompt": PROMPT_TOKENS, "new tokens": options.tokens, "repeats": options.repeats}
    print(*(f"{key} {value}" for key, value in setting.items()), sep=", ")
    size, dtype = SIZES[options.size], getattr(torch, options.dtype)
    with torch.device(options.device):
        text_model = AutoModelForCausalLM.from_config(Qwen2Config(**size.text, tie_word_embeddings=False)).to(dtype)
        models = {ours(each): (build_ours(each, size, text_model), our_features) for each in PROJECTOR_TYPES}
        for name, peer in PEERS.items():
            models[name] = (build_peer(name, size, text_model), peer.features)
    for model, _ in models.values():
        model.to(dtype).eval()

    print(f"\nThe language model has {millions(text_model):.1f}M parameters. What else differs:\n")
    print(f"- ours: {OUR_DIFFERENCE}.")
    print(*(f"- {name}: {peer.difference}." for name, peer in PEERS.items()), sep="\n")
    print(f"- granite_speech is left out: {why_not_granite_speech(size)}.")
    results, caches = {}, {}
    for batch_size in options.batch_sizes:
        seconds = np.linspace(options.seconds[0], options.seconds[-1], batch_size + 2)[1:-1]
        generator = np.random.default_rng(0)
        audio = [generator.normal(0, 0.1, int(SAMPLING_RATE * each)).astype(np.float32) for each in seconds]
        mel_bins = size.audio["num_mel_bins"]
        contestants = {name: Contestant(model, audio, extract, mel_bins) for name, (model, extract) in models.items()}
        results[batch_size] = measure(contestants, options)
        print(report(batch_size, results[batch_size]), flush=True)
        if options.compile:
            caches[batch_size] = measure_caches(contestants[ours("conv")], options)
            print(report_caches(batch_size, caches[batch_size]), flush=True)
    goals = verdicts(results)
    print(*(f"\n{goal}" for goal in goals), sep="\n")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        figures = {**setting, "batches": results, "caches": caches, "goals": goals}
        options.output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
