"""
Times encoding short recordings at their own length and padded to 30 s, as Whisper's encoder does.

    python benchmarks/encode.py --threads 1 --output docs/benchmarks/encode.json
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median

import torch
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from llm_asr.modeling.whisper_encoder import LlmAsrWhisperEncoder


# Encoders of published sizes, with random weights.
SIZES = {
    "whisper-base": {"d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048},
    "whisper-large-v3": {
        "d_model": 1280,
        "encoder_layers": 32,
        "encoder_attention_heads": 20,
        "encoder_ffn_dim": 5120,
        "num_mel_bins": 128,
    },
}
GOAL = 4.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="whisper-base")
    parser.add_argument("--seconds", type=float, default=4.0, help="Length of each recording.")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    kwargs = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    config = WhisperConfig(**SIZES[options.size])
    config._attn_implementation = "sdpa"
    theirs = WhisperEncoder(config).to(**kwargs).eval()
    ours = LlmAsrWhisperEncoder(config).to(**kwargs).eval()
    ours.load_state_dict(theirs.state_dict())
    features = torch.randn(options.batch_size, config.num_mel_bins, 2 * config.max_source_positions).to(**kwargs)
    mask = (torch.arange(features.shape[-1]) < 100 * options.seconds).to(options.device)[None]
    mask = mask.expand(options.batch_size, -1)
    functions = {
        "`LlmAsrWhisperEncoder`, `encoder_padding='longest'` (ours)": lambda: ours(features, mask),
        "`LlmAsrWhisperEncoder`, `encoder_padding='max_length'` (ours)": lambda: ours(features, mask, "max_length"),
        "Transformers' `WhisperEncoder`, padded to 30 s": lambda: theirs(features),
    }
    synchronize = torch.cuda.synchronize if options.device == "cuda" else lambda: None
    seconds = {name: [] for name in functions}
    with torch.no_grad():
        for _ in range(options.repeats + 1):
            for name, function in functions.items():
                synchronize()
                start = time.perf_counter()
                function()
                synchronize()
                seconds[name].append(time.perf_counter() - start)
    medians = {name: median(repeats[1:]) for name, repeats in seconds.items()}  # the first repeat warms up

    device = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {options.threads} thread(s)"
    setting = {"torch": torch.__version__, "device": device, "dtype": options.dtype, "size": options.size}
    setting |= {"recordings": options.batch_size, "seconds of each": options.seconds, "repeats": options.repeats}
    print(*(f"{key} {value}" for key, value in setting.items()), sep=", ")
    fastest = min(medians.values())
    print("\n| | ms | |\n|---|---:|---:|")
    for name, each in medians.items():
        print(f"| {name} | {1e3 * each:.0f} | {each / fastest:.1f}× |")
    ours_at_length, _, padded = medians.values()
    ratio = padded / ours_at_length
    print(f"\nAgainst padding to 30 s: {ratio:.1f}× (goal of {GOAL:.0f}×: {'met' if ratio >= GOAL else 'not met'}).")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps({**setting, "seconds": medians}, indent=2) + "\n")


if __name__ == "__main__":
    main()
