"""
Compares transcription by PyTorch with that by the ONNX graphs of a checkpoint, on a CPU, one recording at a time.

    llm-asr export runs/demo-moe_cif exported-onnx --format onnx
    llm-asr export runs/demo-moe_cif exported-onnx-int8 --format onnx --dtype int8
    python benchmarks/export_onnx.py --model runs/demo-moe_cif --dataset data/demo/test.jsonl \
        --onnx exported-onnx --onnx-int8 exported-onnx-int8 --output docs/benchmarks/onnx.json

`float32` and `int8` are `generate()`, with drafts if the checkpoint has a draft head; `greedy` is without them. `onnx` and `onnx-int8` are
`examples/llm_asr_onnx.py`. Times are CPU seconds from the waveform to the tokens; a part of the recordings warms up.
"""

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jiwer
import onnxruntime
import torch

from llm_asr import LlmAsrForConditionalGeneration, LlmAsrProcessor
from llm_asr.datasets_asr import load_asr_dataset
from llm_asr.processing.cpu_int8 import quantize_int8


sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from llm_asr_onnx import OnnxTranscriber


NUM_WARM = 3


def find_ways(args: argparse.Namespace) -> dict[str, tuple[Callable, float]]:
    """For each way, what makes the tokens of a waveform, and its size on disk in MB."""
    processor = LlmAsrProcessor.from_pretrained(args.model)
    model = LlmAsrForConditionalGeneration.from_pretrained(args.model, dtype=torch.float32).eval()
    quantized = copy.deepcopy(model)
    quantize_int8(quantized)

    def write(model, waveform, **options):
        inputs = processor.apply_transcription_request(waveform, identify_language=True)
        return model.generate(**inputs, **options)[0].tolist()

    size = sum(parameter.nbytes for parameter in model.parameters()) / 1e6
    ways: dict[str, tuple[Callable, float]] = {
        "float32": (lambda waveform: write(model, waveform), size),
        "greedy": (lambda waveform: write(model, waveform, use_draft=False), size),
        # Its weights are quantised when they are loaded.
        "int8": (lambda waveform: write(quantized, waveform), size),
    }
    for name, folder in (("onnx", args.onnx), ("onnx-int8", args.onnx_int8)):
        transcriber = OnnxTranscriber(folder, threads=args.threads)
        size = sum(file.stat().st_size for file in folder.glob("*.onnx*")) / 1e6
        ways[name] = (lambda waveform, runner=transcriber: runner.generate(waveform, "identify"), size)
    return ways


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Checkpoint.")
    parser.add_argument("--dataset", required=True, help="JSON Lines, CSV, TSV or Parquet file, or a Hub id.")
    parser.add_argument("--onnx", required=True, type=Path, help="Its graphs in float32.")
    parser.add_argument("--onnx-int8", required=True, type=Path, help="Its graphs in 8 bits.")
    parser.add_argument("--limit", type=int, help="Recordings; by default all.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSON file for the figures.")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    processor = LlmAsrProcessor.from_pretrained(args.model)
    rows = [row for row in load_asr_dataset(args.dataset, split="test").to_list() if row["text"]][: args.limit]
    waveforms = [processor.load_recording(row["audio"]) for row in rows]
    expected: list[list[int]] = []
    figures = []
    for way, (write, size) in find_ways(args).items():
        for waveform in waveforms[:NUM_WARM]:
            write(waveform)
        began = time.process_time()
        tokens = [write(waveform) for waveform in waveforms]
        seconds = time.process_time() - began
        expected = expected or tokens
        figures.append(
            {
                "way": way,
                "mb": size,
                "cpu_s": seconds,
                "faster": figures[0]["cpu_s"] / seconds if figures else 1.0,
                "wer": 100 * jiwer.wer([row["text"] for row in rows], processor.batch_decode(tokens)),
                "same_tokens": sum(map(list.__eq__, tokens, expected)),
            }
        )
        print(json.dumps(figures[-1]), flush=True)
    print(f"\n| way | MB | CPU s | faster | WER, % | same tokens of {len(rows)} |\n|---|---:|---:|---:|---:|---:|")
    for row in figures:
        print(
            f"| {row['way']} | {row['mb']:.0f} | {row['cpu_s']:.2f} | {row['faster']:.2f}× | {row['wer']:.2f} | "
            f"{row['same_tokens']} |"
        )
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        versions = {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__}
        setting = {**versions, "threads": args.threads, "model": args.model, "recordings": len(rows)}
        args.output.write_text(json.dumps({**setting, "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
