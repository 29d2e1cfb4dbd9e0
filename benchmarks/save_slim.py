"""
Measures the memory for saving a slim checkpoint, relative to the size of the model.

    python benchmarks/save_slim.py --layers 12

Linux only, because the kernel records the peak. The parts are random and are written to a temporary folder.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, WhisperConfig, WhisperFeatureExtractor, WhisperModel
from transformers.models.qwen2 import Qwen2Tokenizer

from llm_asr import LlmAsrForConditionalGeneration, LlmAsrProcessor
from llm_asr.publishing.checkpoint_forms import save_checkpoint


def memory(field: str) -> float:
    """A field of `/proc/self/status`, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def write_parts(folder: Path, layers: int) -> None:
    audio = WhisperConfig(vocab_size=64, decoder_layers=1, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    WhisperModel(audio).half().save_pretrained(folder / "audio")
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder / "audio")
    tokenizer = Qwen2Tokenizer(vocab={chr(97 + i): i for i in range(26)} | {"<|endoftext|>": 26}, merges=[])
    tokenizer.save_pretrained(folder / "text")
    text = Qwen2Config(
        vocab_size=32_000,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=4,
    )
    Qwen2ForCausalLM(text).bfloat16().save_pretrained(folder / "text")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--layers", type=int, default=12, help="Layers of the language model; by default 12.")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_parts(folder, args.layers)
        parts = str(folder / "audio"), str(folder / "text")
        processor = LlmAsrProcessor.from_audio_text_pretrained(*parts)
        model = LlmAsrForConditionalGeneration.from_audio_text_pretrained(*parts, projector_type="conv")
        size = sum(tensor.nbytes for tensor in model.state_dict().values()) / 2**20
        with torch.no_grad():
            # Copy the tensors into memory; loading only maps them from the files.
            for tensor in model.state_dict().values():
                tensor.copy_(tensor.clone())
        before = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        save_checkpoint(model, processor, folder / "slim", form="slim")
        extra = memory("VmHWM") - before
        slim = sum(file.stat().st_size for file in (folder / "slim").iterdir()) / 2**20
    print(f"model {size:.0f} MiB, slim checkpoint {slim:.0f} MiB")
    print(
        f"saving takes {extra:.0f} MiB in addition to the model: a peak of {(size + extra) / size:.2f} times the model"
    )


if __name__ == "__main__":
    main()
