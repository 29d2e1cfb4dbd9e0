"""Fills a feature cache with several processes: `torchrun cache_features.py DATASET OUTPUT`."""

import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState


sys.path.append(str(Path(__file__).parents[1]))


def count(encode, encoded, model, processor, batch) -> None:
    encoded += batch
    encode(model, processor, batch)


def main(dataset_file: str, output: str) -> None:
    from tiny_models import compose, save_tiny_qwen2, save_tiny_whisper

    from llm_asr.datasets_asr import load_asr_dataset
    from llm_asr.training import feature_cache

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        parts = {"whisper": f"{folder}/whisper", "qwen2": f"{folder}/qwen2"}
        torch.manual_seed(0)
        save_tiny_whisper(parts["whisper"])
        save_tiny_qwen2(parts["qwen2"])
        model, processor = compose(parts, "conv")
    # Create the state only now. With a state, only one of the processes would write the parts.
    state = PartialState(cpu=True)
    with state.main_process_first():
        dataset = load_asr_dataset(dataset_file)
    # All recordings are different, so there is a file for each.
    encode = feature_cache._encode
    for name, options in (("", {}), ("bounded-", {"max_gigabytes": 1.0})):
        encoded: list = []
        feature_cache._encode = partial(count, encode, encoded)
        cached = feature_cache.cache_audio_hidden_states(
            dataset, model, processor, Path(output, f"{name}cache"), batch_size=2, **options
        )
        assert all(Path(file).is_file() for file in cached["audio_hidden_states"])
        Path(output, f"{name}{state.process_index}.txt").write_text(str(len(encoded)))
        state.wait_for_everyone()
    state.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
