"""
Measures the CPU time of encoding a stream once, in chunks, and of encoding its unfinished segment anew for every second.

    python benchmarks/stream_encoder.py --output docs/benchmarks/stream_encoder.json
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median

import torch
from transformers import WhisperConfig

from llm_asr.modeling.chunked_attention import AttentionChunks
from llm_asr.modeling.streaming_whisper import StreamingEncoderState, encode_stream
from llm_asr.modeling.whisper_encoder import LlmAsrWhisperEncoder


GOAL = 3.0
MEL_FRAMES_PER_SECOND, FRAMES_PER_SECOND = 100, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segment-s", type=int, default=15, help="Whole seconds of a segment.")
    parser.add_argument("--left-context-s", type=int, default=10, help="Whole seconds of the left context.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    # Whisper-base with random weights.
    config = WhisperConfig(d_model=512, encoder_layers=6, encoder_attention_heads=8, encoder_ffn_dim=2048)
    config._attn_implementation = "sdpa"
    encoder = LlmAsrWhisperEncoder(config).eval()
    features = torch.randn(config.num_mel_bins, MEL_FRAMES_PER_SECOND * options.segment_s)
    chunks = AttentionChunks(FRAMES_PER_SECOND, FRAMES_PER_SECOND * options.left_context_s, 0)

    def encode_once() -> torch.Tensor:
        state = StreamingEncoderState(encoder, chunks)
        seconds = features.split(MEL_FRAMES_PER_SECOND, dim=1)
        pieces = [
            encode_stream(encoder, [state], [second], [number == len(seconds)])[0]
            for number, second in enumerate(seconds, start=1)
        ]
        return torch.cat(pieces)

    def encode_anew() -> None:
        for seconds in range(1, options.segment_s + 1):
            heard = features[None, :, : MEL_FRAMES_PER_SECOND * seconds]
            encoder(heard, torch.ones(1, heard.shape[2]))

    cpu_seconds: dict[str, list[float]] = {"each frame once, in chunks": [], "the segment anew": []}
    with torch.no_grad():
        whole = encoder(features[None], torch.ones(1, features.shape[1]), chunks=chunks).last_hidden_state[0]
        error = (encode_once() - whole).abs().max().item()
        for _ in range(options.repeats):
            for name, encode in zip(cpu_seconds, (encode_once, encode_anew), strict=True):
                start = time.process_time()
                encode()
                cpu_seconds[name].append(time.process_time() - start)
    per_second = {name: median(repeats) / options.segment_s for name, repeats in cpu_seconds.items()}

    setting = {"torch": torch.__version__, "threads": 1, "segment_s": options.segment_s}
    setting |= {"left_context_s": options.left_context_s, "repeats": options.repeats}
    print(*(f"{key} {value}" for key, value in setting.items()), sep=", ")
    print("\n| Whisper-base's encoder | CPU ms for a second of audio | |\n|---|---:|---:|")
    fastest = min(per_second.values())
    for name, each in per_second.items():
        print(f"| {name} | {1e3 * each:.0f} | {each / fastest:.1f}× |")
    once, anew = per_second.values()
    print(f"\nRatio {anew / once:.1f}× (goal of {GOAL:.0f}×: {'met' if anew / once >= GOAL else 'not met'}).")
    print(f"Largest difference from the whole segment with the same mask: {error:.1e}.")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        figures = {**setting, "cpu_seconds_per_second": per_second, "largest_difference": error}
        options.output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
