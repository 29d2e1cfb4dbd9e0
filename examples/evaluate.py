"""
Transcribe a dataset with a checkpoint and report error rates by language.

    python examples/evaluate.py --model runs/demo --dataset data/demo/test.jsonl
"""

import argparse
import json
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm
from transformers import pipeline

import llm_asr  # noqa: F401  (registers the pipeline)
from llm_asr.evaluation.metrics import error_rates
from llm_asr.training.datasets_asr import load_asr_dataset


def transcribe(model: str, recordings: list, batch_size: int, languages: list[str] | None) -> list[str]:
    """Texts of recordings; `languages` names the language of each, if the model is to be told."""
    transcriber = pipeline("automatic-speech-recognition", model=model, device=0 if torch.cuda.is_available() else -1)
    texts = [""] * len(recordings)
    groups: dict[str | None, list[int]] = {}
    for index in range(len(recordings)):
        groups.setdefault(None if languages is None else languages[index], []).append(index)
    with tqdm(total=len(recordings), desc="Transcribing", unit="recording") as progress:
        for language, indices in groups.items():
            sources = (recordings[index] for index in indices)
            outputs = transcriber(sources, batch_size=batch_size, language=language)
            for index, output in zip(indices, outputs, strict=True):
                texts[index] = output["text"]
                progress.update()
    return texts


def print_examples(rows: list[dict], count: int, console: Console) -> None:
    """Reference and hypothesis of the first recordings of each language."""
    table = Table("language", "reference", "hypothesis", title="Held-out recordings")
    shown: dict[str, int] = {}
    for row in rows:
        language = row.get("language", "")
        shown[language] = shown.get(language, 0) + 1
        if shown[language] <= count:
            table.add_row(language, row["text"], row["hypothesis"])
    console.print(table)


def print_error_rates(rates: dict[str, float], rows: list[dict], console: Console) -> None:
    table = Table("language", "recordings", "WER %", "CER %", title="Error rates")
    languages = [name.removeprefix("wer_") for name in rates if name.startswith("wer_")]
    for language in languages:
        count = sum(row["language"] == language for row in rows)
        table.add_row(language, str(count), f"{rates['wer_' + language]:.1f}", f"{rates['cer_' + language]:.1f}")
    table.add_row("all", str(len(rows)), f"{rates['wer']:.1f}", f"{rates['cer']:.1f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Folder or Hub id of a checkpoint.")
    parser.add_argument("--dataset", required=True, help="JSON Lines, CSV, TSV or Parquet file, or a Hub id.")
    parser.add_argument("--split", default="test", help="Split of a Hub dataset.")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--tell-language", action="store_true", help="Name each recording's language in the prompt.")
    parser.add_argument("--examples", type=int, default=3, help="Recordings to show of each language.")
    parser.add_argument("--output", type=Path, help="JSON file for error rates and hypotheses.")
    args = parser.parse_args()

    dataset = load_asr_dataset(args.dataset, split=args.split)
    languages = dataset["language"] if "language" in dataset.column_names else None
    texts = transcribe(
        args.model, list(dataset["audio"]), args.batch_size, list(languages) if args.tell_language else None
    )
    rates = error_rates(dataset["text"], texts, languages)
    columns = [name for name in ("id", "language", "text") if name in dataset.column_names]
    rows = [
        {**row, "hypothesis": text} for row, text in zip(dataset.select_columns(columns).to_list(), texts, strict=True)
    ]
    console = Console()
    print_examples(rows, args.examples, console)
    print_error_rates(rates, rows, console)
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(
            json.dumps({"rates": rates, "rows": rows}, ensure_ascii=False, indent=1), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
