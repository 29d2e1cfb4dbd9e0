"""
Transcribes files of yours, or sentences that the model of the open-vocabulary demo has not been trained on.

    python examples/demo/try_open_model.py [FILE ...]                                                # after `make try`
    python examples/demo/try_open_model.py --model runs/open --dataset data/open/test.jsonl [FILE ...]   # after `make open-demo`
"""

import argparse
import json
import random
from pathlib import Path

from open_backbones import MODEL, fetch_backbones
from transformers import pipeline

import llm_asr  # noqa: F401 (registers the model for `pipeline`)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="FILE", help="Recordings; without any, sentences of the dataset.")
    parser.add_argument("--model", type=Path, default=MODEL, help="Checkpoint; by default the one of this repository.")
    parser.add_argument("--backbones", type=Path, default=Path("data/try"), help="Frozen parts of the default model.")
    parser.add_argument("--dataset", type=Path, default=Path("data/try/sentences.jsonl"))
    parser.add_argument("--sentences", type=int, default=12, help="Number of sentences; by default 12.")
    args = parser.parse_args()
    model_kwargs = {"backbone_paths": fetch_backbones(args.backbones, MODEL)} if args.model == MODEL else {}
    transcriber = pipeline(
        "automatic-speech-recognition", model=str(args.model), dtype="float32", model_kwargs=model_kwargs
    )
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
