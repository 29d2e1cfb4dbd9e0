"""
Compares transcription on a CPU with weights in float32, bfloat16 and 8 bits.

    python benchmarks/int8.py --output docs/benchmarks/int8.json
    python benchmarks/int8.py --model runs/demo-moe_cif --dataset data/demo/test.jsonl

Without `--model`, the sizes are those of Whisper-base and Qwen2.5-0.5B, with random weights, and each recording gets 40 tokens.
`int8` is `--dtype int8` of `llm-asr transcribe`. `torchao` quantises the same layers with torchao
(`Int8DynamicActivationInt8WeightConfig`), if it is installed. With `--model` and `--dataset`, word error rates are printed too.
"""

import argparse
import copy
import json
import logging
import time
import warnings
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import jiwer
import torch
from torch import nn
from transformers import Qwen2Config, WhisperConfig

from llm_asr import LlmAsrConfig, LlmAsrForConditionalGeneration, LlmAsrProcessor
from llm_asr.datasets_asr import load_asr_dataset
from llm_asr.processing.cpu_int8 import quantize_int8


GOAL = 1.5
NUM_TOKENS, SECONDS = 40, 10


def build_model() -> LlmAsrForConditionalGeneration:
    """Whisper-base and Qwen2.5-0.5B with random weights."""
    audio = WhisperConfig(
        d_model=512, encoder_layers=6, encoder_attention_heads=8, encoder_ffn_dim=2048, decoder_layers=1
    )
    text = Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    projector = {"projector_type": "moe_cif", "num_experts": 4}
    return LlmAsrForConditionalGeneration(
        LlmAsrConfig(audio_config=audio, text_config=text, projector_config=projector, audio_token_id=151665)
    )


def quantize_by_torchao(model: LlmAsrForConditionalGeneration) -> None:
    """Quantise the layers that `quantize_int8` does."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    for part in (model.model.audio_tower, model.model.language_model):
        quantize_(part, Int8DynamicActivationInt8WeightConfig(), lambda layer, name: type(layer) is nn.Linear)


WAYS = {
    "float32": lambda model: None,
    "bfloat16": lambda model: model.bfloat16(),
    "int8": quantize_int8,
    "torchao": quantize_by_torchao,
}


def make_batch(batch_size: int) -> dict:
    """Features and prompts without a processor."""
    ids = torch.tensor([[1] * 10 + [151665] + [2] * 5] * batch_size)
    features = torch.randn(batch_size, 80, 100 * SECONDS)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "input_features": features}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="Checkpoint in place of random weights.")
    parser.add_argument("--dataset", help="JSON Lines, CSV, TSV or Parquet file, or a Hub id.")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSON file for the figures.")
    args = parser.parse_args()
    if (args.model is None) != (args.dataset is None):
        parser.error("pass --model and --dataset together.")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore")
    logging.getLogger("torchao").setLevel(logging.ERROR)
    if args.model:
        original = LlmAsrForConditionalGeneration.from_pretrained(args.model, dtype=torch.float32)
        processor = LlmAsrProcessor.from_pretrained(args.model)
        rows = load_asr_dataset(args.dataset, split="test").to_list()
    else:
        original, options = build_model(), {"max_new_tokens": NUM_TOKENS, "min_new_tokens": NUM_TOKENS}
    figures = []
    for way in args.ways:
        if way == "torchao" and find_spec("torchao") is None:
            print("torchao is not installed and left out.")
            continue
        model = copy.deepcopy(original).eval()
        WAYS[way](model)
        for batch_size in args.batch_sizes:
            row: dict = {"way": way, "batch_size": batch_size}
            if args.model:
                batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
                texts, began = [], time.process_time()
                for batch in batches:
                    inputs = processor.apply_transcription_request(
                        [each["audio"] for each in batch], identify_language=True
                    )
                    texts += processor.batch_decode(model.generate(**inputs, max_new_tokens=256))
                row["cpu_s"] = time.process_time() - began
                spoken = [(each["text"], text) for each, text in zip(rows, texts, strict=True) if each["text"]]
                row["wer"] = 100 * jiwer.wer(*map(list, zip(*spoken, strict=True)))
            else:
                seconds, inputs = [], make_batch(batch_size)
                for _ in range(args.repeats + 1):
                    began = time.process_time()
                    model.generate(**inputs, **options)
                    seconds.append(time.process_time() - began)
                row["cpu_s"] = median(seconds[1:])
            figures.append(row)
            print(json.dumps(row), flush=True)
        del model
    print_table(figures)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        setting = {"torch": torch.__version__, "threads": args.threads, "model": args.model}
        args.output.write_text(json.dumps({**setting, "figures": figures}, indent=1) + "\n")


def print_table(figures: list[dict]) -> None:
    """Print times relative to float32."""
    has_wer = "wer" in figures[0]
    print(f"\n| weights | batch | CPU s | faster |{' WER, % |' if has_wer else ''}")
    print(f"|---|---:|---:|---:|{'---:|' if has_wer else ''}")
    base = {row["batch_size"]: row["cpu_s"] for row in figures if row["way"] == "float32"}
    for row in figures:
        faster = base[row["batch_size"]] / row["cpu_s"] if base else float("nan")
        wer = f" {row['wer']:.2f} |" if has_wer else ""
        print(f"| {row['way']} | {row['batch_size']} | {row['cpu_s']:.2f} | {faster:.2f}× |{wer}")
    for row in figures:
        if row["way"] == "int8" and base:
            ratio = base[row["batch_size"]] / row["cpu_s"]
            print(f"\nint8, batch {row['batch_size']}: goal of {GOAL}×: {'met' if ratio >= GOAL else 'not met'}.")


if __name__ == "__main__":
    main()
