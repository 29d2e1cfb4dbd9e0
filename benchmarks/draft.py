"""
Compares self-speculative decoding with greedy decoding, on a trained checkpoint with a draft head.

    make demo
    python benchmarks/draft.py --model runs/demo-moe_cif --dataset data/demo/test.jsonl

Both decode the same recordings one by one, in turn. The number of different outputs is printed and must be zero.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from tqdm.auto import tqdm

from llm_asr import LlmAsrForConditionalGeneration, LlmAsrProcessor
from llm_asr.datasets_asr import load_asr_dataset


GOAL = 3.0
WAYS = {"greedy": False, "draft, verified": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Folder or Hub id of a checkpoint with a draft head.")
    parser.add_argument("--dataset", required=True, help="JSON Lines, CSV, TSV or Parquet file, or a Hub id.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--identify-language", action="store_true", help="Let the model name the language first.")
    parser.add_argument("--output", type=Path, help="JSON file for the figures.")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    rows = load_asr_dataset(args.dataset, split="test").to_list()
    processor = LlmAsrProcessor.from_pretrained(args.model)
    model = LlmAsrForConditionalGeneration.from_pretrained(args.model).to(args.device)
    passes = 0

    def count(*_) -> None:
        nonlocal passes
        passes += 1

    model.model.language_model.register_forward_hook(count)
    synchronize = torch.cuda.synchronize if args.device.startswith("cuda") else lambda: None
    totals = {way: {"passes": 0, "seconds": 0.0, "encoding_seconds": 0.0} for way in WAYS}
    num_tokens = num_different = 0
    for row in tqdm(rows, unit="recording"):
        inputs = processor.apply_transcription_request(row["audio"], identify_language=args.identify_language)
        inputs = inputs.to(args.device)
        found = []
        for way, use_draft in WAYS.items():
            synchronize()
            start = time.perf_counter()
            states, mask = model.model.get_audio_hidden_states(inputs["input_features"], inputs["input_features_mask"])
            synchronize()
            encoded = time.perf_counter()
            passes = 0
            tokens = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                audio_hidden_states=states,
                audio_hidden_states_mask=mask,
                use_draft=use_draft,
            )
            synchronize()
            totals[way]["seconds"] += time.perf_counter() - encoded
            totals[way]["encoding_seconds"] += encoded - start
            totals[way]["passes"] += passes
            found.append(tokens[0].tolist())
        num_tokens += len(found[0])
        num_different += found[0] != found[1]

    device = torch.cuda.get_device_name() if args.device.startswith("cuda") else f"CPU, {args.threads} thread(s)"
    print(f"torch {torch.__version__}, {device}, {len(rows)} recordings, {num_tokens / len(rows):.1f} tokens each\n")
    print("| | passes of the language model | decoding, ms | with the encoder, ms |\n|---|---:|---:|---:|")
    for way, total in totals.items():
        decoding, encoding = (1000 * total[name] / len(rows) for name in ("seconds", "encoding_seconds"))
        print(f"| {way} | {total['passes'] / len(rows):.2f} | {decoding:.1f} | {decoding + encoding:.1f} |")
    greedy, drafted = totals.values()
    fewer = greedy["passes"] / drafted["passes"]
    faster = greedy["seconds"] / drafted["seconds"]
    print(f"\nDifferent output: {num_different} of {len(rows)} (goal: none).")
    print(f"Passes: {fewer:.1f}× fewer (goal of {GOAL:.0f}×: {'met' if fewer >= GOAL else 'not met'}).")
    print(f"Decoding: {faster:.1f}× faster.")
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        figures = {"device": device, "recordings": len(rows), "different": num_different, "ways": totals}
        args.output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
