"""The report of an evaluation: error rates, languages, recordings without speech, lengths, times and experts."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from transformers import Pipeline

from ..modeling.configuration_projector import LlmAsrProjectorConfig
from ..processing.languages import LANGUAGE_SEPARATOR
from ..processing.processing_llm_asr import LlmAsrProcessor
from .alignment import boundary_errors, length_report
from .expert_usage import expert_usage, plot_expert_usage
from .keyword_evaluation import KeywordRuns, report_keywords
from .metrics import silence_report
from .mixed_metrics import word_language_report
from .modules.error_report.error_report import ErrorReport
from .tables import Tables
from .translation_metrics import translation_report


if TYPE_CHECKING:
    from .dataset_evaluation import EvaluationOptions


def write_report(
    options: "EvaluationOptions",
    transcriber: Pipeline,
    everything: list[dict],
    measures: list[dict],
    console: Console,
    keyword_runs: KeywordRuns,
) -> None:
    """
    Print the tables and, with `options.output`, write the report.

    Args:
        options ([`EvaluationOptions`]): Options of the evaluation.
        transcriber (`Pipeline`): The pipeline that transcribed the dataset.
        everything (`list[dict]`): All rows, each with its transcription as `output`.
        measures (`list[dict]`): What [`~audio_measures.measure_audio`] returns for the rows with speech.
        console (`Console`): Prints the tables.
        keyword_runs (`dict`): Runs with keywords; see [`~keyword_evaluation.report_keywords`].
    """
    silent = [row for row in everything if not row["text"].strip()]
    rows = [row for row in everything if row["text"].strip()]
    outputs, texts = [row["output"] for row in rows], [row["text"] for row in rows]
    columns = everything[0].keys()
    languages = [row["language"] for row in rows] if "language" in columns else None
    tables = Tables(console)
    processor: Any = transcriber.processor
    report: dict[str, Any] = {**_describe(options), "normalizer": options.normalizer}
    if rows:
        scored = {
            "references": texts,
            "predictions": [output["text"] for output in outputs],
            "languages": languages,
            "normalizer": options.normalizer,
        }
        module = ErrorReport(keep_in_memory=True)
        report["error_rates"] = module.compute(**scored)
        tables.add_examples(rows, options.examples)
        tables.add_error_rates(report["error_rates"], "Error rates", "language")
        if "dataset" in columns:
            report["error_rates_by_dataset"] = module.compute(**scored, groups=[row["dataset"] for row in rows])
            tables.add_error_rates(report["error_rates_by_dataset"], "Error rates by dataset", "dataset")
        if "word_languages" in columns:
            words = [row["word_languages"] or [] for row in rows]
            report["word_languages"] = word_language_report(
                words, [output["text"] for output in outputs], options.normalizer
            )
            headers = {"words": "words", "errors": "errors", "wer": "error rate %"}
            tables.add_report(report["word_languages"], "Errors by the language of the word", headers)
        if languages is not None and not options.tell_language:
            report["languages"] = language_report(rows, outputs, processor)
            headers = {"recordings": "recordings", "language_found": "found %"}
            tables.add_report(report["languages"], "Languages identified by the model", headers)
    if silent:
        report["silence"] = silence_report([row["output"]["text"] for row in silent])
        headers = {"recordings": "recordings", "hallucinated": "with a transcript %", "words_per_recording": "words"}
        tables.add_report({"all": report["silence"]}, "Recordings without speech", headers)
    if keyword_runs:
        report["keywords"] = report_keywords(everything, keyword_runs, options.normalizer, tables)
    config = transcriber.model.config
    if rows and config.projector_config.has_dynamic_rate:
        targets = processor.tokenize_requests([""] * len(texts), texts)["target_lengths"].tolist()
        fixed_rate = config.audio_frame_rate / LlmAsrProjectorConfig(projector_type="conv").downsampling
        lengths, durations = ([measure[name] for measure in measures] for name in ("length", "duration"))
        report["lengths"] = length_report(lengths, targets, durations, languages, fixed_rate)
        headers = {
            "length_error": "length error %",
            "embeddings_per_second": "embeddings/s",
            "prefill_saved": "audio prefill saved %",
        }
        tables.add_report(report["lengths"], "Numbers of embeddings", headers)
        if "words" in columns and config.projector_config.uses_cif:
            headers = {"recordings": "recordings", "boundary_error_ms": "mean error (ms)"}
            report["boundaries"] = boundary_report(rows, [output["chunks"] for output in outputs])
            tables.add_report(report["boundaries"], "Word boundaries where all words are right", headers)
            given = [measure.get("given_words", []) for measure in measures]
            report["given_boundaries"] = boundary_report(rows, given)
            tables.add_report(report["given_boundaries"], "Word boundaries of the given transcripts", headers)
    if rows and config.projector_config.uses_experts:
        usage = expert_usage(np.array([measure["expert_load"] for measure in measures]), languages)
        report["expert_usage"] = {"projector.moe": usage}
        tables.add_usage(usage)
    if options.output is None:
        return
    for layer, usage in report.get("expert_usage", {}).items():
        plot_expert_usage(usage, options.output.with_name(f"{options.output.stem}-{layer}.png"))
    note = (
        f"Normaliser: {options.normalizer}. In brackets, 95 % intervals from 1000 bootstrap resamples of the recordings. S, I and "
        "D are\nof words, or of characters in languages written without spaces."
    )
    _write(options, options.output, report, everything, note, tables)


def write_translation_report(options: "EvaluationOptions", everything: list[dict], console: Console) -> None:
    """
    Print BLEU and chrF of translations by direction and, with `options.output`, write the report.

    Args:
        options, console: See [`write_report`].
        everything (`list[dict]`): All rows with a translation, each with the model's translation as `output`.
    """
    tables = Tables(console)
    report = {**_describe(options), "task": "translate"}
    report["translations"] = translation_report(
        [row["translation"] for row in everything],
        [row["output"]["text"] for row in everything],
        [row["target_language"] for row in everything],
        [row.get("language") for row in everything],
    )
    tables.add_examples([{**row, "text": row["translation"]} for row in everything], options.examples)
    cells = [
        [direction, str(found["recordings"]), f"{found['bleu']:.1f}", f"{found['chrf']:.1f}"]
        for direction, found in report["translations"].items()
    ]
    tables.add("Translations", ["direction", "recordings", "BLEU", "chrF"], cells)
    if options.output is not None:
        signatures = sorted({found["bleu_signature"] for found in report["translations"].values()})
        _write(options, options.output, report, everything, f"sacreBLEU: {', '.join(signatures)}", tables)


def _describe(options: "EvaluationOptions") -> dict[str, Any]:
    return {
        "dataset": {"name": options.dataset, "split": options.split, "on_hub": not os.path.exists(options.dataset)},
        "language_told": options.tell_language,
    }


def _write(
    options: "EvaluationOptions",
    output: Path,
    report: dict[str, Any],
    everything: list[dict],
    note: str,
    tables: Tables,
) -> None:
    """Write the report as JSON, and its tables in Markdown beside it."""
    wanted = ("id", "dataset", "language", "text", *(("target_language", "translation") if "task" in report else ()))
    named = [name for name in wanted if name in everything[0]]
    report["recordings"] = [{**{name: row[name] for name in named}, **row["output"]} for row in everything]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, ensure_ascii=False, indent=1), encoding="utf-8")
    heading = f"# {options.model} on {options.dataset}\n\n{note}"
    output.with_suffix(".md").write_text("\n\n".join([heading, *tables.markdown]) + "\n", encoding="utf-8")


def boundary_report(rows: list[dict], words: list[list[dict]]) -> dict[str, dict[str, float]]:
    """Mean absolute error of boundaries of `words` in milliseconds, over the recordings whose words are all correct."""
    errors: dict[str, list[float]] = {}
    correct: dict[str, int] = {}
    for row, found_words in zip(rows, words, strict=True):
        found = boundary_errors(row["words"], found_words)
        for group in (row.get("language", ""), "all"):
            errors.setdefault(group, []).extend(found)
            correct[group] = correct.get(group, 0) + bool(found)
    return {
        group: {"recordings": correct[group], "boundary_error_ms": 1000 * sum(found) / len(found)}
        for group, found in errors.items()
        if found
    }


def language_report(rows: list[dict], outputs: list[dict], processor: LlmAsrProcessor) -> dict[str, dict[str, float]]:
    """Percentage of recordings whose languages the model identified correctly."""
    correct: dict[str, list[bool]] = {}
    for row, output in zip(rows, outputs, strict=True):
        spoken = set((processor.language_name(row["language"]) or "").split(LANGUAGE_SEPARATOR)) - {""}
        # Hypotheses that were saved before there could be several languages have one.
        is_correct = set(output.get("languages", [output["language"]])) == spoken
        for group in (row["language"], "all"):
            correct.setdefault(group, []).append(is_correct)
    return {
        group: {"recordings": len(found), "language_found": 100 * sum(found) / len(found)}
        for group, found in correct.items()
    }


__all__ = ["write_report", "write_translation_report"]
