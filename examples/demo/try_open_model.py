"""
Transcribes files of yours, or sentences that the model of the open-vocabulary demo has not been trained on.

    python examples/demo/try_open_model.py --model runs/open --dataset data/open/test.jsonl [FILE ...]
"""

import argparse
import json
import random
from pathlib import Path

from transformers import pipeline

import llm_asr  # noqa: F401 (registers the model for `pipeline`)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="FILE", help="Recordings; without any, sentences of the dataset.")
    parser.add_argument("--model", default="runs/open", help="Checkpoint of `make open-demo`.")
    parser.add_argument("--dataset", type=Path, default=Path("data/open/test.jsonl"))
    parser.add_argument("--sentences", type=int, default=8, help="Number of sentences; by default 8.")
    args = parser.parse_args()
    transcriber = pipeline("automatic-speech-recognition", model=args.model, dtype="float32")
    for file in args.files:
        output = transcriber(file, batch_size=8)
        print(f"{file} ({output['language']})\n  heard: {output['text']}")
    if not args.files:
        rows = [json.loads(line) for line in args.dataset.read_text(encoding="utf-8").splitlines()]
        # The same sentences every time.
        for row in random.Random(0).sample(rows, min(args.sentences, len(rows))):
            output = transcriber(str(args.dataset.parent / row["audio"]))
            print(f"{row['language']}  said:  {row['text']}\n    heard: {output['text']}")


if __name__ == "__main__":
    main()
