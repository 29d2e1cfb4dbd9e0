"""Trains recipes one after the other, in one process of several: `torchrun train_distributed.py RECIPE...`."""

import sys
from pathlib import Path

import torch


TESTS = Path(__file__).parents[1]
sys.path += [str(TESTS.parent / "examples")]


def main(recipes: list[str]) -> None:
    import train

    torch.set_num_threads(1)
    for recipe in recipes:
        train.main([recipe])


if __name__ == "__main__":
    main(sys.argv[1:])
