"""
Compares a training step of this package with a plain one, which pads the encoder's input to 30 s, computes the logits of all
positions, and has batches with a fixed number of recordings.

    python benchmarks/train_step.py --threads 2 --output docs/benchmarks/train_step.json

Weights are random and have the sizes of Whisper-base and SmolLM2-135M. The encoder and the language model are frozen. All ways
train on the same recordings with log-normal durations. Each way adds one improvement to the previous one.
"""

import argparse
import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, WhisperConfig

from llm_asr import LlmAsrConfig, LlmAsrForConditionalGeneration
from llm_asr.modeling.batch_numbers import read_batch_numbers
from llm_asr.training.duration_batches import DurationBatchSampler


GOAL_SPEED, GOAL_MEMORY = 3.5, 0.4
TOKENS_PER_SECOND = 3.5
SIZES = {
    "whisper-base, smollm2-135m": (
        {"d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048},
        {
            "vocab_size": 49_152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
        },
    ),
    "tiny": (
        {"d_model": 64, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 128},
        {
            "vocab_size": 4096,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
        },
    ),
}
# Each way adds one improvement to the previous one.
WAYS = {
    "plain": {"encoder_padding": "max_length", "skip_logits": False, "by_duration": False},
    "+ encoder at the length of the batch": {"encoder_padding": "longest", "skip_logits": False, "by_duration": False},
    "+ logits at labels alone": {"encoder_padding": "longest", "skip_logits": True, "by_duration": False},
    "+ batches by duration": {"encoder_padding": "longest", "skip_logits": True, "by_duration": True},
}


def build(size: str, encoder_padding: str, options: argparse.Namespace) -> LlmAsrForConditionalGeneration:
    torch.manual_seed(0)
    audio, text = SIZES[size]
    config = LlmAsrConfig(
        audio_config=WhisperConfig(**audio, num_mel_bins=80),
        text_config=LlamaConfig(**text, pad_token_id=0, eos_token_id=2),
        projector_config={"projector_type": options.projector, "hidden_size": 512, "expert_hidden_size": 512},
        audio_token_id=text["vocab_size"] - 1,
        encoder_padding=encoder_padding,
    )
    model = LlmAsrForConditionalGeneration(config).to(options.device, getattr(torch, options.dtype))
    model.freeze_audio_tower()
    model.freeze_language_model()
    if options.activation_checkpointing:
        model.gradient_checkpointing_enable()
    return model.train()


def make_batches(by_duration: bool, options: argparse.Namespace) -> list[list[float]]:
    """
    Durations of the recordings in each batch. A batch has a fixed number of recordings in random order, or recordings of
    similar duration with the same number of padded seconds.
    """
    rng = np.random.default_rng(0)
    durations = rng.lognormal(np.log(5.0), 0.6, size=options.recordings).clip(1.0, 25.0).tolist()
    if not by_duration:
        return [durations[i : i + options.batch_size] for i in range(0, len(durations), options.batch_size)]
    budget = options.batch_size * float(np.mean(durations))
    return [[durations[row] for row in batch] for batch in DurationBatchSampler(durations, budget)]


def make_inputs(durations: list[float], model: LlmAsrForConditionalGeneration) -> dict[str, Any]:
    config, device = model.config, model.device
    frames = torch.tensor([int(100 * duration) for duration in durations])
    mask = (torch.arange(int(frames.max())) < frames[:, None]).long()
    features = torch.randn(len(durations), 80, mask.shape[1]) * mask[:, None]
    prompt = torch.cat(
        [torch.full((len(durations), 1), config.audio_token_id), torch.full((len(durations), 16), 5)], 1
    )
    lengths = torch.tensor([1 + int(TOKENS_PER_SECOND * duration) for duration in durations])
    is_answer = torch.arange(int(lengths.max())) < lengths[:, None]
    answer = torch.randint(3, config.text_config.vocab_size - 1, is_answer.shape) * is_answer
    labels = torch.cat([torch.full_like(prompt, -100), answer.masked_fill(~is_answer, -100)], 1)
    inputs = {
        "input_ids": torch.cat([prompt, answer], 1),
        "attention_mask": torch.cat([torch.ones_like(prompt), is_answer.long()], 1),
        "input_features": features,
        "input_features_mask": mask,
        "labels": labels,
        "target_lengths": lengths,
    }
    numbers = read_batch_numbers(
        inputs["input_ids"] == config.audio_token_id,
        inputs["attention_mask"],
        inputs["input_features_mask"],
        labels=inputs["labels"],
        target_lengths=lengths,
    )
    return {**{name: tensor.to(device) for name, tensor in inputs.items()}, "numbers": numbers}


def peak_memory(device: str) -> int:
    """Peak memory so far in bytes."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def measure(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Measure the seconds and the peak extra bytes of an epoch in a separate process."""
    torch.set_num_threads(options.threads)
    way = WAYS[name]
    model = build(options.size, way["encoder_padding"], options)
    batches = make_batches(way["by_duration"], options)
    torch.manual_seed(0)
    inputs = [make_inputs(durations, model) for durations in batches]
    skip_logits = way["skip_logits"]
    synchronize = torch.cuda.synchronize if options.device == "cuda" else lambda: None
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        # Resets the peak to the current use, before the allocator keeps freed memory.
        Path("/proc/self/clear_refs").write_text("5")
    before = peak_memory(options.device)
    model(**inputs[0], skip_logits=skip_logits).loss.backward()  # warms up, and allocates the gradients
    synchronize()
    start = time.perf_counter()
    for batch in inputs:
        model(**batch, skip_logits=skip_logits).loss.backward()
    synchronize()
    seconds = time.perf_counter() - start
    audio_seconds = sum(map(sum, batches))
    tokens = sum(int((batch["labels"] != -100).sum()) for batch in inputs)
    memory = peak_memory(options.device) - before
    return {
        "seconds": seconds,
        "audio_seconds": audio_seconds,
        "tokens": tokens,
        "memory": memory,
        "steps": len(batches),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="whisper-base, smollm2-135m")
    parser.add_argument("--projector", choices=["conv", "moe", "cif", "moe_cif"], default="moe_cif")
    parser.add_argument("--recordings", type=int, default=48)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--activation-checkpointing", action="store_true")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="JSON file for the figures.")
    options = parser.parse_args()

    context = multiprocessing.get_context("spawn")
    found = {}
    for name in WAYS:
        with context.Pool(1) as pool:
            found[name] = pool.apply(measure, (name, options))
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {options.threads} thread(s)"
    print(f"torch {torch.__version__}, {device}, {options.dtype}, {options.size}, {options.projector}\n")
    plain = found["plain"]
    print("| | steps | tokens a second | | peak activations, MiB | |\n|---|---:|---:|---:|---:|---:|")
    for name, figures in found.items():
        speed, memory = plain["seconds"] / figures["seconds"], figures["memory"] / plain["memory"]
        print(
            f"| {name} | {figures['steps']} | {figures['tokens'] / figures['seconds']:.0f} | {speed:.2f}× | "
            f"{figures['memory'] / 2**20:.0f} | {100 * memory:.0f} % |"
        )
    print(f"\nThroughput: {speed:.1f}× (goal of {GOAL_SPEED}×: {'met' if speed >= GOAL_SPEED else 'not met'}).")
    met = "met" if memory <= GOAL_MEMORY else "not met"
    print(f"Peak activation memory: {100 * memory:.0f} % (goal of {100 * GOAL_MEMORY:.0f} %: {met}).")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        setting = {"device": device, "dtype": options.dtype, "size": options.size, "projector": options.projector}
        options.output.write_text(json.dumps({**setting, "ways": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
