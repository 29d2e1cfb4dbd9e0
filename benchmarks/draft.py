"""
Compares decoding with verified drafts (self-speculative decoding) with greedy decoding, one by one and in batches.

    make demo
    python benchmarks/draft.py --model runs/demo-moe_cif --dataset data/demo/test.jsonl

Both decode the same batches in turn, from outputs of the speech encoder. The number of different transcripts is printed and must
be zero.

    python benchmarks/draft.py --size "whisper-base, qwen2.5-0.5b" --correct 0.95

has random weights of this size, which no draft head knows: the drafts are the greedy transcripts with a share of their tokens
replaced by others. The share is given, so passes follow from it. Times show what passes cost.

Decoding starts with the pass that reads the prompts, in which drafts are verified too. `prompts alone` is a call for one token.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm
from transcribe import SAMPLING_RATE, SIZES, Contestant, build_ours, our_features
from transformers import AutoModelForCausalLM, Qwen2Config

from llm_asr import LlmAsrForConditionalGeneration, LlmAsrProcessor
from llm_asr.datasets_asr import load_asr_dataset


FEWER, FASTER = 3.0, 2.0
PROMPTS, GREEDY, DRAFTED = "prompts alone", "greedy", "drafts, verified"
WAYS = (PROMPTS, GREEDY, DRAFTED)


class Batch(NamedTuple):
    """Arguments of `generate`, and those that add drafts, given the greedy transcripts."""

    inputs: dict[str, Any]
    draft: Callable[[torch.Tensor], dict[str, Any]]


def read_batches(args: argparse.Namespace, model, batch_size: int) -> Iterator[Batch]:
    """Yield batches of the dataset in its order."""
    processor = LlmAsrProcessor.from_pretrained(args.model)
    rows = load_asr_dataset(args.dataset, split="test").to_list()[: args.limit]
    for start in tqdm(range(0, len(rows), batch_size), unit="batch"):
        audio = [row["audio"] for row in rows[start : start + batch_size]]
        inputs = processor.apply_transcription_request(audio, identify_language=args.identify_language)
        yield Batch(dict(inputs.to(args.device)), lambda _: {"use_draft": True})


def make_batches(args: argparse.Namespace, model, batch_size: int) -> Iterator[Batch]:
    """Yield batches of noise."""
    replaced = np.random.default_rng(0)
    size = SIZES[args.size]
    for _ in range(args.repeats):
        audio = [0.1 * replaced.standard_normal(args.seconds * SAMPLING_RATE) for _ in range(batch_size)]
        contestant = Contestant(model, audio, our_features, size.audio["num_mel_bins"])
        # Random weights repeat a few tokens, which are no measure for realigning a draft.
        options = {"max_new_tokens": args.tokens, "no_repeat_ngram_size": 1}

        def draft(transcripts: torch.Tensor) -> dict[str, Any]:
            is_wrong = torch.from_numpy(replaced.random(transcripts.shape) >= args.correct).to(transcripts.device)
            others = (transcripts + 1) % size.text["vocab_size"]
            return {"draft_ids": list(others.where(is_wrong, transcripts))}

        yield Batch({**contestant.features, **contestant.prompt, **options}, draft)


def build_random(args: argparse.Namespace):
    size = SIZES[args.size]
    text_config = Qwen2Config(**size.text, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None)
    text_model = AutoModelForCausalLM.from_config(text_config, attn_implementation="sdpa")
    return build_ours("cif", size, text_model).to(args.device).eval()


def compare(model, batches: Iterator[Batch], device: str) -> dict[str, Any]:
    """Decode batches both ways, and return passes, seconds, recordings, tokens and the number of different transcripts."""
    passes = []
    hook = model.model.language_model.register_forward_hook(lambda *_: passes.append(1))
    synchronize = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    totals: dict[str, Any] = {way: {"passes": 0, "seconds": 0.0} for way in WAYS}
    totals |= {"encoding_seconds": 0.0, "batches": 0, "recordings": 0, "tokens": 0, "different": 0}
    for number, (inputs, draft) in enumerate(batches):
        start = time.perf_counter()
        features = inputs.pop("input_features"), inputs.pop("input_features_mask")
        states, mask = model.model.get_audio_hidden_states(*features)
        synchronize()
        inputs |= {"audio_hidden_states": states, "audio_hidden_states_mask": mask}
        encoding = time.perf_counter() - start
        found: dict[str, torch.Tensor] = {}
        if number == 0:
            model.generate(**inputs, use_draft=False)  # warms up
        for way in WAYS:
            options = draft(found[GREEDY]) if way == DRAFTED else {"use_draft": False}
            if way == PROMPTS:
                options["max_new_tokens"] = 1
            passes.clear()
            synchronize()
            start = time.perf_counter()
            found[way] = model.generate(**{**inputs, **options})
            synchronize()
            totals[way]["seconds"] += time.perf_counter() - start
            totals[way]["passes"] += len(passes)
        totals["encoding_seconds"] += encoding
        totals["batches"] += 1
        totals["recordings"] += len(found[GREEDY])
        totals["tokens"] += found[GREEDY].ne(model.generation_config.pad_token_id).sum().item()
        totals["different"] += sum(
            one.tolist() != other.tolist() for one, other in zip(found[GREEDY], found[DRAFTED], strict=True)
        )
    hook.remove()
    return totals


def report(batch_size: int, totals: dict[str, Any]) -> str:
    """A Markdown table and the goals of one batch size."""
    prompts, greedy, drafted = (totals[way] for way in WAYS)
    lines = [
        f"\n### Batches of {batch_size}\n",
        f"{totals['recordings']} recordings, {totals['tokens'] / totals['recordings']:.1f} tokens each.\n",
        "| | passes a batch | decoding, ms a recording | with the encoder, ms |\n|---|---:|---:|---:|",
    ]
    for way in WAYS:
        decoding, encoding = (
            1000 * seconds / totals["recordings"] for seconds in (totals[way]["seconds"], totals["encoding_seconds"])
        )
        passes = totals[way]["passes"] / totals["batches"]
        lines.append(f"| {way} | {passes:.2f} | {decoding:.1f} | {decoding + encoding:.1f} |")
    lines.append(f"\nDifferent transcripts: {totals['different']} of {totals['recordings']} (goal: none).")
    for name, measure, goal in (("passes", "fewer", FEWER), ("seconds", "faster", FASTER)):
        ratio = greedy[name] / drafted[name]
        what = "Passes" if name == "passes" else "Decoding"
        lines.append(f"{what}: {ratio:.1f}× {measure} (goal of {goal:.0f}×: {'met' if ratio >= goal else 'not met'}).")
    left = drafted["seconds"] - prompts["seconds"]
    if left > 0:
        lines.append(f"Decoding beyond the prompts: {(greedy['seconds'] - prompts['seconds']) / left:.1f}× faster.")
    else:
        lines.append("Decoding beyond the prompts: nothing is left, within the noise of the clock.")
    return "\n".join(lines)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="Folder or Hub id of a checkpoint with a draft head.")
    parser.add_argument("--dataset", help="JSON Lines, CSV, TSV or Parquet file, or a Hub id.")
    parser.add_argument("--size", choices=SIZES, help="Random weights of this size, in place of a checkpoint.")
    parser.add_argument("--correct", type=float, default=0.95, help="Share of right tokens in drafts, with --size.")
    parser.add_argument("--tokens", type=int, default=16, help="Tokens of each transcript, with --size.")
    parser.add_argument("--seconds", type=int, default=5, help="Length of each recording, with --size.")
    parser.add_argument("--repeats", type=int, default=3, help="Number of batches, with --size.")
    parser.add_argument("--limit", type=int, help="Number of recordings of the dataset.")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--identify-language", action="store_true", help="Let the model name the language first.")
    parser.add_argument("--output", type=Path, help="JSON file for the figures.")
    args = parser.parse_args()
    if (args.model is None) == (args.size is None) or (args.model is None) != (args.dataset is None):
        parser.error("pass --model and --dataset, or --size")
    return args


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    if args.size is None:
        model = LlmAsrForConditionalGeneration.from_pretrained(args.model, dtype=dtype).to(args.device)
    else:
        model = build_random(args).to(dtype)
    device = torch.cuda.get_device_name() if args.device.startswith("cuda") else f"CPU, {args.threads} thread(s)"
    print(f"torch {torch.__version__}, {device}, {args.dtype}")
    if args.size is not None:
        print(f"Random weights, {args.size}. Drafts have {100 * args.correct:g} % of the right tokens.")
    figures: dict[str, Any] = {"device": device, "dtype": args.dtype, "size": args.size, "batches": {}}
    for batch_size in args.batch_sizes:
        batches = (read_batches if args.size is None else make_batches)(args, model, batch_size)
        figures["batches"][batch_size] = totals = compare(model, batches, args.device)
        print(report(batch_size, totals))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
