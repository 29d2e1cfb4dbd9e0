"""Trains recipes one after the other on several processes: `torchrun train_distributed.py RECIPE...`."""

import sys
from pathlib import Path

import torch


TESTS = Path(__file__).parents[1]
sys.path += [str(TESTS.parent / "examples")]


def main(recipes: list[str]) -> None:
    from llm_asr.training import program as train

    torch.set_num_threads(1)
    for recipe in recipes:
        train.main([recipe])


if __name__ == "__main__":
    main(sys.argv[1:])
