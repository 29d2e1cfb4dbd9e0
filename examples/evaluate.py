"""
Transcribe a dataset with a checkpoint and report error rates by language, how often the language was found, and what was
made up where nobody speaks; with CIF, also how exact its token counts and word boundaries are and how much it compresses;
with experts, also which of them work for which languages.

    python examples/evaluate.py --model runs/demo --dataset data/demo/test.jsonl
"""

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm
from transformers import Pipeline, pipeline

from llm_asr import LlmAsrProjectorConfig
from llm_asr.evaluation.alignment import boundary_errors, length_report
from llm_asr.evaluation.expert_usage import expert_usage, plot_expert_usage
from llm_asr.evaluation.metrics import error_rates, silence_report
from llm_asr.modeling.expert_balance import count_expert_load
from llm_asr.training.datasets_asr import load_asr_dataset


def transcribe(transcriber: Pipeline, recordings: list, batch_size: int, languages: list[str] | None) -> list[dict]:
    """`text` and, with CIF, `chunks` of recordings; `languages` names each one's language, if the model is to be told."""
    options = {"return_timestamps": "word"} if transcriber.model.config.projector_config.uses_cif else {}
    outputs: list[dict] = [{}] * len(recordings)
    groups: dict[str | None, list[int]] = {}
    for index in range(len(recordings)):
        groups.setdefault(None if languages is None else languages[index], []).append(index)
    with tqdm(total=len(recordings), desc="Transcribing", unit="recording") as progress:
        for language, indices in groups.items():
            sources = (recordings[index] for index in indices)
            results = transcriber(sources, batch_size=batch_size, language=language, **options)
            for index, output in zip(indices, results, strict=True):
                outputs[index] = output
                progress.update()
    return outputs


@dataclass
class AudioMeasures:
    """What the projector made of each recording."""

    lengths: list[int] = field(default_factory=list)
    durations: list[float] = field(default_factory=list)
    expert_load: list[list[float]] = field(default_factory=list)


@torch.no_grad()
def measure_audio(transcriber: Pipeline, recordings: list, batch_size: int) -> AudioMeasures:
    """Embeddings, seconds and, with experts, their load, of each recording."""
    model, processor = transcriber.model, transcriber.processor
    measures = AudioMeasures()
    for start in tqdm(range(0, len(recordings), batch_size), desc="Projecting", unit="batch"):
        waveforms = [processor.load_recording(source) for source in recordings[start : start + batch_size]]
        measures.durations += [len(waveform) / processor.sampling_rate for waveform in waveforms]
        outputs = model.get_audio_features(**processor(audio=waveforms).to(model.device))
        lengths = outputs.audio_lengths.tolist()
        measures.lengths += lengths
        if outputs.router_logits is not None:
            routing = zip(outputs.router_logits.split(lengths), outputs.selected_experts.split(lengths), strict=True)
            measures.expert_load += [count_expert_load(*rows).tolist() for rows in routing]
    return measures


def boundary_report(rows: list[dict], outputs: list[dict]) -> dict[str, dict[str, float]]:
    """Mean absolute error of word boundaries, in milliseconds, where every word was recognised."""
    errors: dict[str, list[float]] = {}
    correct: dict[str, int] = {}
    for row, output in zip(rows, outputs, strict=True):
        found = boundary_errors(row["words"], output["chunks"])
        for group in (row.get("language", ""), "all"):
            errors.setdefault(group, []).extend(found)
            correct[group] = correct.get(group, 0) + bool(found)
    return {
        group: {"recordings": correct[group], "boundary_error_ms": 1000 * sum(found) / len(found)}
        for group, found in errors.items()
        if found
    }


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


def print_report(report: dict[str, dict[str, float]], title: str, headers: dict[str, str], console: Console) -> None:
    """A row for each language, `"all"` last, and a column for each of `headers`."""
    table = Table("language", *headers.values(), title=title)
    for language in sorted(report, key=lambda name: (name == "all", name)):
        cells = (report[language][name] for name in headers)
        table.add_row(language, *(str(cell) if isinstance(cell, int) else f"{cell:.1f}" for cell in cells))
    console.print(table)


def print_usage(usage: dict, console: Console) -> None:
    """Shares of frames, a row for each language and a column for each expert."""
    num_experts = len(usage["shares"]["all"])
    title = f"Share of frames by expert, % (mutual information {usage['mutual_information']:.2f} bits)"
    table = Table("language", *map(str, range(num_experts)), "entropy", title=title)
    for language, shares in usage["shares"].items():
        table.add_row(language, *(f"{100 * share:.1f}" for share in shares), f"{usage['entropy'][language]:.2f}")
    console.print(table)


def language_report(rows: list[dict], outputs: list[dict], names: dict[str, str]) -> dict[str, dict[str, float]]:
    """How often the model, left to itself, named the language that was spoken."""
    correct: dict[str, list[bool]] = {}
    for row, output in zip(rows, outputs, strict=True):
        for group in (row["language"], "all"):
            correct.setdefault(group, []).append(output["language"] == names.get(row["language"], row["language"]))
    return {
        group: {"recordings": len(found), "language_found": 100 * sum(found) / len(found)}
        for group, found in correct.items()
    }


def by_language(rates: dict[str, float], rows: list[dict]) -> dict[str, dict[str, float]]:
    """Error rates in the form of the other reports."""
    languages = [name.removeprefix("wer_") for name in rates if name.startswith("wer_")]
    report = {
        language: {
            "recordings": sum(row["language"] == language for row in rows),
            "wer": rates[f"wer_{language}"],
            "cer": rates[f"cer_{language}"],
        }
        for language in languages
    }
    return {**report, "all": {"recordings": len(rows), "wer": rates["wer"], "cer": rates["cer"]}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Folder or Hub id of a checkpoint.")
    parser.add_argument("--dataset", required=True, help="JSON Lines, CSV, TSV or Parquet file, or a Hub id.")
    parser.add_argument("--split", default="test", help="Split of a Hub dataset.")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--tell-language", action="store_true", help="Name each recording's language in the prompt.")
    parser.add_argument("--examples", type=int, default=3, help="Recordings to show of each language.")
    parser.add_argument("--output", type=Path, help="JSON file for all of it and hypotheses.")
    args = parser.parse_args()

    dataset = load_asr_dataset(args.dataset, split=args.split)
    transcriber = pipeline(
        "automatic-speech-recognition", model=args.model, device=0 if torch.cuda.is_available() else -1
    )
    told = dataset["language"] if args.tell_language else None
    found = transcribe(transcriber, dataset["audio"], args.batch_size, told)
    everything = [{**row, "output": output} for row, output in zip(dataset.to_list(), found, strict=True)]
    # Where nobody speaks there are no words to count errors by.
    silent = [row for row in everything if not row["text"].strip()]
    rows = [row for row in everything if row["text"].strip()]
    outputs = [row["output"] for row in rows]
    recordings, texts = [row["audio"] for row in rows], [row["text"] for row in rows]
    languages = [row["language"] for row in rows] if "language" in dataset.column_names else None

    hypotheses = [output["text"] for output in outputs]
    report = {"error_rates": by_language(error_rates(texts, hypotheses, languages), rows)}
    console = Console()
    print_examples(
        [{**row, "hypothesis": text} for row, text in zip(rows, hypotheses, strict=True)], args.examples, console
    )
    print_report(
        report["error_rates"], "Error rates", {"recordings": "recordings", "wer": "WER %", "cer": "CER %"}, console
    )
    if languages is not None and not args.tell_language:
        report["languages"] = language_report(rows, outputs, transcriber.processor.languages)
        headers = {"recordings": "recordings", "language_found": "found %"}
        print_report(report["languages"], "Languages, not told", headers, console)
    if silent:
        report["silence"] = silence_report([row["output"]["text"] for row in silent])
        headers = {"recordings": "recordings", "hallucinated": "with a transcript %", "words_per_recording": "words"}
        print_report({"all": report["silence"]}, "Recordings without speech", headers, console)
    config = transcriber.model.config
    measures = measure_audio(transcriber, recordings, args.batch_size)
    if config.projector_config.uses_cif:
        targets = transcriber.processor.tokenize_requests([""] * len(texts), texts)["target_lengths"].tolist()
        fixed_rate = config.audio_frame_rate / LlmAsrProjectorConfig(projector_type="conv").downsampling
        report["lengths"] = length_report(measures.lengths, targets, measures.durations, languages, fixed_rate)
        headers = {
            "length_error": "length error %",
            "embeddings_per_second": "embeddings/s",
            "prefill_saved": "audio prefill saved %",
        }
        print_report(report["lengths"], "Token counts of CIF", headers, console)
        if "words" in dataset.column_names:
            report["boundaries"] = boundary_report(rows, outputs)
            headers = {"recordings": "recordings", "boundary_error_ms": "mean error (ms)"}
            print_report(report["boundaries"], "Word boundaries where all words are right", headers, console)
    if measures.expert_load:
        usage = expert_usage(np.array(measures.expert_load), languages)
        report["expert_usage"] = {"projector.moe": usage}
        print_usage(usage, console)
    if args.output is not None:
        named = [name for name in ("id", "language", "text") if name in dataset.column_names]
        report["recordings"] = [{**{name: row[name] for name in named}, **row["output"]} for row in everything]
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(report, ensure_ascii=False, indent=1), encoding="utf-8")
        for layer, usage in report.get("expert_usage", {}).items():
            plot_expert_usage(usage, args.output.with_name(f"{args.output.stem}-{layer}.png"))


if __name__ == "__main__":
    main()
