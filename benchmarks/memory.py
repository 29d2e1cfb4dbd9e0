"""
Measures the resident memory while a long recording is transcribed, with and without `trimmed_memory`, in separate processes.

    OMP_NUM_THREADS=2 python benchmarks/memory.py --minutes 20

Linux only. The model is random and has the sizes of Whisper-base and a small language model. The recording consists of bursts
of noise.
"""

import argparse
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

import numpy as np


def resident() -> float:
    """Resident memory of this process in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))


def write_model(folder: Path) -> None:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM, WhisperConfig, WhisperFeatureExtractor, WhisperModel
    from transformers.models.qwen2 import Qwen2Tokenizer

    from llm_asr import LlmAsrForConditionalGeneration, LlmAsrProcessor

    torch.manual_seed(0)
    audio = WhisperConfig(vocab_size=64, decoder_layers=1, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    WhisperModel(audio).save_pretrained(folder / "audio")
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder / "audio")
    Qwen2Tokenizer(vocab={chr(97 + i): i for i in range(26)} | {"<|endoftext|>": 26}, merges=[]).save_pretrained(
        folder / "text"
    )
    text = Qwen2Config(
        vocab_size=32_000, hidden_size=512, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=8
    )
    Qwen2ForCausalLM(text).save_pretrained(folder / "text")
    parts = str(folder / "audio"), str(folder / "text")
    model = LlmAsrForConditionalGeneration.from_audio_text_pretrained(*parts, projector_type="moe_cif")
    model.generation_config.max_new_tokens = 16
    model.save_pretrained(folder / "model")
    LlmAsrProcessor.from_audio_text_pretrained(*parts).save_pretrained(folder / "model")


def measure(folder: Path, minutes: int, is_trimmed: bool) -> None:
    """Print the resident memory after every minute of audio."""
    from transformers import pipeline

    import llm_asr  # noqa: F401
    from llm_asr.memory import trimmed_memory

    generator = np.random.default_rng(0)
    transcriber = pipeline("automatic-speech-recognition", model=str(folder / "model"))
    sizes = []
    with trimmed_memory(interval_s=2.0) if is_trimmed else nullcontext():
        for _ in range(minutes):
            # Segments of varying lengths fragment the heap.
            pieces = []
            while sum(map(len, pieces)) < 60 * 16000:
                burst = 0.1 * generator.standard_normal(int(generator.uniform(1, 28) * 16000))
                pieces += [burst.astype("float32"), np.zeros(int(generator.uniform(0.6, 2) * 16000), "float32")]
            transcriber(np.concatenate(pieces), batch_size=8)
            sizes.append(resident())
    print(" ".join(f"{size:.0f}" for size in sizes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--minutes", type=int, default=20, help="Minutes of audio; by default 20.")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--trimmed", choices=["yes", "no"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder is not None:
        measure(args.folder, args.minutes, args.trimmed == "yes")
        return
    with tempfile.TemporaryDirectory() as name:
        write_model(Path(name))
        for trimmed in ("no", "yes"):
            command = [
                sys.executable,
                __file__,
                "--minutes",
                str(args.minutes),
                "--folder",
                name,
                "--trimmed",
                trimmed,
            ]
            ended = subprocess.run(command, capture_output=True, text=True, check=True)
            sizes = [float(size) for size in ended.stdout.split()]
            print(f"trimmed: {trimmed:3}  MiB after each minute of audio: {ended.stdout.strip()}")
            print(f"              growth from the third minute to the last: {sizes[-1] / sizes[2]:.2f} times")


if __name__ == "__main__":
    main()
