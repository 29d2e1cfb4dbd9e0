"""
Transcribe a dataset with a checkpoint and report error rates by language, how often the language was found, and what was
made up where nobody speaks; with CIF, also how exact its token counts and word boundaries are and how much it compresses;
with experts, also which of them work for which languages.

    python examples/evaluate.py --model runs/demo --dataset data/demo/test.jsonl --output runs/demo/test.json
    torchrun --nproc_per_node 8 examples/evaluate.py --model runs/demo --dataset data/demo/test.jsonl

With --output, the tables are also written as Markdown, and hypotheses are kept as they are made: a run that was
interrupted goes on where it stopped, with any number of processes.
"""

import argparse
import glob
import json
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tqdm.auto import tqdm
from transformers import Pipeline, pipeline

from llm_asr import LlmAsrProjectorConfig
from llm_asr.evaluation.alignment import boundary_errors, length_report
from llm_asr.evaluation.expert_usage import expert_usage, plot_expert_usage
from llm_asr.evaluation.metrics import error_report, silence_report
from llm_asr.evaluation.normalization import NORMALIZERS
from llm_asr.modeling.expert_balance import count_expert_load
from llm_asr.training.datasets_asr import load_asr_dataset


# Processes wait for the one with the longest recordings.
PATIENCE = timedelta(days=1)


def transcribe(
    transcriber: Pipeline, rows: list[dict], batch_size: int, tell_language: bool, silent: bool
) -> Iterator[tuple[int, dict]]:
    """Number of each row and its `text`, `language` and, with CIF, `chunks`, as they are made."""
    options = {"return_timestamps": "word"} if transcriber.model.config.projector_config.uses_cif else {}
    groups: dict[str | None, list[dict]] = {}
    for row in rows:
        groups.setdefault(row["language"] if tell_language else None, []).append(row)
    with tqdm(total=len(rows), desc="Transcribing", unit="recording", disable=silent) as progress:
        for language, members in groups.items():
            sources = (row["audio"] for row in members)
            results = transcriber(sources, batch_size=batch_size, language=language, **options)
            for row, output in zip(members, results, strict=True):
                yield row["row"], output
                progress.update()


def file_stamps(path: str) -> list[list]:
    """Name, size and time of a file, or of the weights, configurations and tables in a folder; of a Hub id, nothing."""
    folder = Path(path)
    files = [file for pattern in ("*.safetensors", "*config.json", "**/*.parquet") for file in folder.glob(pattern)]
    return [
        [file.name, file.stat().st_size, file.stat().st_mtime_ns]
        for file in ([folder] if folder.is_file() else sorted(files))
    ]


class HypothesisFiles:
    """
    Hypotheses on disk, one a line under a line that says what they were made from.

    Args:
        output (`Path`): Report that they belong to; they are kept beside it, each process its own.
        made_from (`dict`): Whatever decides what a hypothesis is.
    """

    def __init__(self, output: Path, made_from: dict):
        self.stem = output.with_suffix(".hypotheses")
        self.made_from = made_from

    def file(self, process_index: int = 0) -> Path:
        return self.stem.with_name(f"{self.stem.name}{f'-{process_index}' if process_index else ''}.jsonl")

    def collect(self, overwrite: bool, console: Console) -> dict[int, dict]:
        """
        Take over what earlier runs left, of however many processes, and put it into the file of the main process.

        Returns:
            `dict[int, dict]`: Hypotheses by the number of their row.
        """
        self.stem.parent.mkdir(parents=True, exist_ok=True)
        found: dict[int, dict] = {}
        # Not the files of a report whose name is longer.
        files = [self.file(), *map(Path, glob.glob(f"{glob.escape(str(self.stem))}-[0-9]*.jsonl"))]
        for file in filter(Path.exists, [] if overwrite else files):
            lines = [line for line in map(_parse, file.read_bytes().split(b"\n")) if line]
            if not lines:
                continue
            made_from = lines[0].get("made_from", {})
            differences = [name for name, value in self.made_from.items() if made_from.get(name) != value]
            if differences:
                console.print(f"{file} was made with another {', '.join(differences)}: starting anew.")
                found = {}
                break
            found |= {line["row"]: line["output"] for line in lines[1:]}
        collected = self.file().with_suffix(".tmp")
        with collected.open("w", encoding="utf-8") as stream:
            _write(stream, {"made_from": self.made_from})
            for row, output in found.items():
                _write(stream, {"row": row, "output": output})
        os.replace(collected, self.file())
        for file in files[1:]:
            file.unlink()
        return found

    def keep(self, hypotheses: Iterator[tuple[int, dict]], process_index: int) -> Iterator[tuple[int, dict]]:
        """Write hypotheses as they are made, once [`HypothesisFiles.collect`] has run in the main process."""
        file = self.file(process_index)
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w" if process_index else "a", encoding="utf-8") as stream:
            if process_index:
                _write(stream, {"made_from": self.made_from})
            for row, output in hypotheses:
                _write(stream, {"row": row, "output": output})
                stream.flush()
                yield row, output


def _write(stream, line: dict) -> None:
    stream.write(json.dumps(line, ensure_ascii=False) + "\n")


def _parse(line: bytes) -> dict | None:
    """A line, or nothing if a run was killed while it wrote it."""
    try:
        return json.loads(line)
    except ValueError:
        return None


@torch.no_grad()
def measure_audio(transcriber: Pipeline, rows: list[dict], batch_size: int, silent: bool) -> list[dict]:
    """`row`, `length` in embeddings, `duration` in seconds and, with experts, `expert_load` of each recording."""
    model, processor = transcriber.model, transcriber.processor
    measures = []
    for start in tqdm(range(0, len(rows), batch_size), desc="Projecting", unit="batch", disable=silent):
        batch = rows[start : start + batch_size]
        waveforms = [processor.load_recording(row["audio"]) for row in batch]
        outputs = model.get_audio_features(**processor(audio=waveforms).to(model.device))
        lengths = outputs.audio_lengths.tolist()
        loads = [{}] * len(batch)
        if outputs.router_logits is not None:
            routing = zip(outputs.router_logits.split(lengths), outputs.selected_experts.split(lengths), strict=True)
            loads = [{"expert_load": count_expert_load(*frames).tolist()} for frames in routing]
        measures += [
            {"row": row["row"], "length": length, "duration": len(waveform) / processor.sampling_rate, **load}
            for row, length, waveform, load in zip(batch, lengths, waveforms, loads, strict=True)
        ]
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


class Tables:
    """Tables on the terminal, and the same in Markdown."""

    def __init__(self, console: Console):
        self.console = console
        self.markdown: list[str] = []

    def add(self, title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        table = Table(*headers, title=title)
        for row in rows:
            table.add_row(*map(escape, row))
        self.console.print(table)
        lines = [headers, ["---"] * len(headers), *rows]
        cells = [[" ".join(cell.replace("|", "\\|").split()) for cell in line] for line in lines]
        self.markdown.append("\n".join([f"## {title}", "", *(f"| {' | '.join(line)} |" for line in cells)]))

    def add_examples(self, rows: list[dict], count: int) -> None:
        """Reference and hypothesis of the first recordings of each language."""
        shown: dict[str, int] = {}
        examples = []
        for row in rows:
            language = row.get("language") or ""
            shown[language] = shown.get(language, 0) + 1
            if shown[language] <= count:
                examples.append([language, row["text"], row["output"]["text"]])
        self.add("Held-out recordings", ["language", "reference", "hypothesis"], examples)

    def add_report(self, report: dict[str, dict[str, float]], title: str, headers: dict[str, str]) -> None:
        """A row for each language, `"all"` last, and a column for each of `headers`."""
        rows = []
        for language in sorted(report, key=lambda name: (name == "all", name)):
            cells = (report[language][name] for name in headers)
            rows.append([language, *(str(cell) if isinstance(cell, int) else f"{cell:.1f}" for cell in cells)])
        self.add(title, ["language", *headers.values()], rows)

    def add_error_rates(self, report: dict[str, dict], title: str, group: str) -> None:
        """Rates with their 95 % intervals, and substitutions, insertions and deletions in percent of the reference."""
        rows = []
        for name, found in report.items():
            # Where there are no spaces, words are characters, and their rate says nothing more.
            rates = [
                f"{found[rate]:.1f} [{', '.join(f'{end:.1f}' for end in found[f'{rate}_interval'])}]"
                if rate in ("cer", found["headline"])
                else "–"
                for rate in ("wer", "cer")
            ]
            kinds = [
                f"{100 * found[kind] / found['reference_length']:.1f}"
                for kind in ("substitutions", "insertions", "deletions")
            ]
            rows.append([name, str(found["recordings"]), *rates, "/".join(kinds)])
        self.add(title, [group, "recordings", "WER %", "CER %", "S/I/D %"], rows)

    def add_usage(self, usage: dict) -> None:
        """Shares of frames, a row for each language and a column for each expert."""
        title = f"Share of frames by expert, % (mutual information {usage['mutual_information']:.2f} bits)"
        headers = ["language", *map(str, range(len(usage["shares"]["all"]))), "entropy"]
        rows = [
            [language, *(f"{100 * share:.1f}" for share in shares), f"{usage['entropy'][language]:.2f}"]
            for language, shares in usage["shares"].items()
        ]
        self.add(title, headers, rows)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Folder or Hub id of a checkpoint.")
    parser.add_argument("--dataset", required=True, help="JSON Lines, CSV, TSV or Parquet file, or a Hub id.")
    parser.add_argument("--split", default="test", help="Split of a Hub dataset.")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--tell-language", action="store_true", help="Name each recording's language in the prompt.")
    parser.add_argument(
        "--normalizer",
        choices=NORMALIZERS,
        default="basic",
        help="'basic' removes case and punctuation. 'whisper' is that of Whisper's paper, for comparison with published "
        "numbers; its English writes spoken numbers in digits, and several in a row as one word.",
    )
    parser.add_argument("--examples", type=int, default=3, help="Recordings to show of each language.")
    parser.add_argument(
        "--output", type=Path, help="JSON file for all of it and hypotheses; tables in Markdown are put beside it."
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="Transcribe anew what an earlier run left beside --output."
    )
    args = parser.parse_args()
    if args.output is not None and args.output.suffix != ".json":
        parser.error(f"argument --output: {args.output} must end in .json; other files are named after it.")

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    silent = not state.is_main_process
    with state.local_main_process_first():
        dataset = load_asr_dataset(args.dataset, split=args.split)
    if args.tell_language and "language" not in dataset.column_names:
        parser.error(f"argument --tell-language: {args.dataset} has no column 'language'.")
    transcriber = pipeline("automatic-speech-recognition", model=args.model, device=state.device)
    console = Console(quiet=silent)
    everything = dataset.to_list()

    def share(rows: list[dict]) -> list[dict]:
        """What this process does of `rows`: every so many, for neighbours are often of like length."""
        return rows[state.process_index :: state.num_processes]

    files = args.output and HypothesisFiles(
        args.output,
        {
            "model": args.model,
            "model files": file_stamps(args.model),
            "model commit": getattr(transcriber.model.config, "_commit_hash", None),
            "dataset": args.dataset,
            "dataset files": file_stamps(args.dataset),
            "split": args.split,
            "number of recordings": len(everything),
            "--tell-language": args.tell_language,
        },
    )
    done = files.collect(args.overwrite, console) if files and state.is_main_process else {}
    (done,) = broadcast_object_list([done])
    if done:
        console.print(
            f"{len(done)} of {len(everything)} hypotheses are in {files.file()}; --overwrite makes them anew."
        )
    remaining = share([row for row in everything if row["row"] not in done])
    hypotheses = transcribe(transcriber, remaining, args.batch_size, args.tell_language, silent)
    hypotheses = list(files.keep(hypotheses, state.process_index) if files else hypotheses)
    done |= dict(gather_object(hypotheses))
    everything = [{**row, "output": done[row["row"]]} for row in everything]
    # Where nobody speaks there are no words to count errors by.
    rows = [row for row in everything if row["text"].strip()]
    config = transcriber.model.config.projector_config
    measures = []
    if config.uses_cif or config.uses_experts:
        measures = gather_object(measure_audio(transcriber, share(rows), args.batch_size, silent))
        measures.sort(key=lambda measure: measure["row"])
    if state.is_main_process:
        write_report(args, transcriber, everything, measures, console)
    state.destroy_process_group()


def write_report(
    args: argparse.Namespace, transcriber: Pipeline, everything: list[dict], measures: list[dict], console: Console
) -> None:
    """Print tables and, with --output, write all of it; `measures` are of the recordings with speech."""
    silent = [row for row in everything if not row["text"].strip()]
    rows = [row for row in everything if row["text"].strip()]
    outputs, texts = [row["output"] for row in rows], [row["text"] for row in rows]
    columns = everything[0].keys()
    languages = [row["language"] for row in rows] if "language" in columns else None
    tables = Tables(console)
    report = {
        "dataset": {"name": args.dataset, "split": args.split, "on_hub": not os.path.exists(args.dataset)},
        "language_told": args.tell_language,
        "normalizer": args.normalizer,
    }
    if rows:
        scored = {
            "references": texts,
            "hypotheses": [output["text"] for output in outputs],
            "languages": languages,
            "normalizer": args.normalizer,
        }
        report["error_rates"] = error_report(**scored)
        tables.add_examples(rows, args.examples)
        tables.add_error_rates(report["error_rates"], "Error rates", "language")
        if "dataset" in columns:
            report["error_rates_by_dataset"] = error_report(**scored, groups=[row["dataset"] for row in rows])
            tables.add_error_rates(report["error_rates_by_dataset"], "Error rates by dataset", "dataset")
        if languages is not None and not args.tell_language:
            report["languages"] = language_report(rows, outputs, transcriber.processor.languages)
            headers = {"recordings": "recordings", "language_found": "found %"}
            tables.add_report(report["languages"], "Languages, not told", headers)
    if silent:
        report["silence"] = silence_report([row["output"]["text"] for row in silent])
        headers = {"recordings": "recordings", "hallucinated": "with a transcript %", "words_per_recording": "words"}
        tables.add_report({"all": report["silence"]}, "Recordings without speech", headers)
    config = transcriber.model.config
    if rows and config.projector_config.uses_cif:
        targets = transcriber.processor.tokenize_requests([""] * len(texts), texts)["target_lengths"].tolist()
        fixed_rate = config.audio_frame_rate / LlmAsrProjectorConfig(projector_type="conv").downsampling
        lengths, durations = ([measure[name] for measure in measures] for name in ("length", "duration"))
        report["lengths"] = length_report(lengths, targets, durations, languages, fixed_rate)
        headers = {
            "length_error": "length error %",
            "embeddings_per_second": "embeddings/s",
            "prefill_saved": "audio prefill saved %",
        }
        tables.add_report(report["lengths"], "Token counts of CIF", headers)
        if "words" in columns:
            report["boundaries"] = boundary_report(rows, outputs)
            headers = {"recordings": "recordings", "boundary_error_ms": "mean error (ms)"}
            tables.add_report(report["boundaries"], "Word boundaries where all words are right", headers)
    if rows and config.projector_config.uses_experts:
        usage = expert_usage(np.array([measure["expert_load"] for measure in measures]), languages)
        report["expert_usage"] = {"projector.moe": usage}
        tables.add_usage(usage)
    if args.output is None:
        return
    named = [name for name in ("id", "dataset", "language", "text") if name in columns]
    report["recordings"] = [{**{name: row[name] for name in named}, **row["output"]} for row in everything]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, ensure_ascii=False, indent=1), encoding="utf-8")
    for layer, usage in report.get("expert_usage", {}).items():
        plot_expert_usage(usage, args.output.with_name(f"{args.output.stem}-{layer}.png"))
    heading = f"""# {args.model} on {args.dataset}

Normaliser: {args.normalizer}. In brackets, 95 % intervals from 1000 bootstrap resamples of the recordings. S, I and D are
of words, or of characters in languages written without spaces."""
    args.output.with_suffix(".md").write_text("\n\n".join([heading, *tables.markdown]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
