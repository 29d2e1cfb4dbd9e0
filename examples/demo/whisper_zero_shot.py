"""
Error rates of Whisper-base with its own decoder, untrained on our data: what a model of the open corpus is compared with.

    python examples/demo/whisper_zero_shot.py --dataset data/open/test.jsonl --output data/open/whisper-base-test.json

Whisper runs in 8 bits on one thread, with greedy decoding and the language of each recording given. An interrupted run goes
on where it was. Needs the extra `corpus`.
"""

import argparse
import json
from pathlib import Path

from open_corpus.recogniser import LONG_MARGIN, hear
from open_corpus.texts import normalize
from rich.console import Console

from llm_asr.atomic_writing import write_text
from llm_asr.evaluation.metrics import error_report
from llm_asr.evaluation.tables import Tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, default=Path("data/open/test.jsonl"))
    parser.add_argument("--recogniser", type=Path, default=Path("data/whisper-base-int8"), help="Folder for Whisper.")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the report.")
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.dataset.read_text(encoding="utf-8").splitlines()]
    recordings = {row["id"]: (args.dataset.parent / row["audio"], row["language"]) for row in rows}
    heard = hear(recordings, args.output.with_suffix(".heard.jsonl"), args.recogniser, LONG_MARGIN)
    languages = [row["language"] for row in rows]
    # References are normalised in the same way.
    hypotheses = [normalize(heard[row["id"]], row["language"]) for row in rows]
    report = error_report([row["text"] for row in rows], hypotheses, languages)
    Tables(Console()).add_error_rates(report, "Whisper-base, zero-shot", "language")
    write_text(args.output, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
