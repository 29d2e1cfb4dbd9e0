"""Evaluates a checkpoint on a dataset: transcripts, error rates and measures of the projector."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from rich.console import Console
from tqdm.auto import tqdm
from transformers import Pipeline, pipeline

from .. import registration  # noqa: F401 (registers the model for `pipeline`)
from ..datasets_asr import load_asr_dataset
from ..file_stamps import file_stamps
from ..processing.cpu_precision import loaded_dtype, set_dtype
from ..processing.tasks import TASKS
from .audio_measures import measure_audio
from .dataset_report import write_report, write_translation_report
from .hypothesis_files import HypothesisFiles
from .keyword_evaluation import draw_keywords
from .normalization import NORMALIZERS


# All processes wait for the one that takes longest.
PATIENCE = timedelta(days=1)


@dataclass
class EvaluationOptions:
    """
    Options of an evaluation.

    Args:
        model (`str`): Folder or Hub id of a checkpoint.
        dataset (`str`): JSON Lines, CSV, TSV or Parquet file, or a Hub id.
        split (`str`, *optional*, defaults to `"test"`): Split of a Hub dataset.
        batch_size (`int`, *optional*, defaults to 16): Number of segments in a batch.
        tell_language (`bool`, *optional*, defaults to `False`): Whether to name the language of each recording in the
            prompt.
        task (`str`, *optional*, defaults to `"transcribe"`): With `"translate"`, the recordings are translated into the languages
            of the column `target_language`, and BLEU and chrF against the column `translation` are reported, and nothing else.
        keywords (`tuple[int, ...]`, *optional*): Numbers of keywords. For each of them, the dataset is transcribed once more with
            lists of keywords, and error rates on listed and other words, recall and leakage are reported. 0 means the
            transcripts without keywords, scored with the words of the longest lists.
        dtype (`str`, *optional*, defaults to `"auto"`): Dtype of the model, or `"int8"` on a CPU; see [`quantize_int8`]. By default
            that of the checkpoint.
        normalizer (`str`, *optional*, defaults to `"basic"`): See [`~normalization.get_normalizer`].
        examples (`int`, *optional*, defaults to 3): Number of recordings of each language to print.
        output (`Path`, *optional*): JSON file for the report. Markdown tables and hypotheses are written beside it.
        overwrite (`bool`, *optional*, defaults to `False`): Whether to discard the hypotheses of an earlier run with the
            same `output` and transcribe again.

    Raises:
        `ValueError`: If `output` does not end in `.json`, or another option has an invalid value.
    """

    model: str
    dataset: str
    split: str = "test"
    batch_size: int = 16
    tell_language: bool = False
    task: str = "transcribe"
    keywords: tuple[int, ...] = ()
    dtype: str = "auto"
    normalizer: str = "basic"
    examples: int = 3
    output: Path | None = None
    overwrite: bool = False

    def __post_init__(self):
        if self.output is not None and self.output.suffix != ".json":
            raise ValueError(f"`output` {str(self.output)!r} must end in .json; other files are named after it.")
        if self.batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {self.batch_size}.")
        if self.task not in TASKS:
            raise ValueError(f"`task` must be one of {list(TASKS)}, got {self.task!r}.")
        if self.task == "translate" and self.keywords:
            raise ValueError("`keywords` measures transcripts; leave it out with `task='translate'`.")
        if any(size < 0 for size in self.keywords):
            raise ValueError(f"`keywords` must be numbers of keywords, got {list(self.keywords)}.")
        if self.normalizer not in NORMALIZERS:
            raise ValueError(f"`normalizer` must be one of {list(NORMALIZERS)}, got {self.normalizer!r}.")


def evaluate_dataset(options: EvaluationOptions) -> None:
    """
    Transcribe a dataset and report error rates, in one process or in several processes of `torchrun`.

    Hypotheses are saved while the dataset is transcribed. An interrupted evaluation continues from them, with any number of
    processes.

    Args:
        options ([`EvaluationOptions`]): What to evaluate.

    Raises:
        `ValueError`: If the dataset cannot be read or lacks a column.
        `OSError`: If there is no such checkpoint.
        `ImportError`: If matplotlib is missing for a picture of the experts.
    """
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    silent = not state.is_main_process
    with state.local_main_process_first():
        dataset = load_asr_dataset(options.dataset, split=options.split)
    if options.tell_language and "language" not in dataset.column_names:
        raise ValueError(f"`tell_language` needs a column 'language', but {options.dataset!r} has none.")
    is_translation = options.task == "translate"
    if is_translation:
        missing = {"translation", "target_language"} - set(dataset.column_names)
        if missing:
            raise ValueError(f"`task='translate'` needs columns {sorted(missing)}, which {options.dataset!r} lacks.")
        if find_spec("sacrebleu") is None:
            raise ImportError('BLEU and chrF need sacreBLEU: `pip install "llm-asr[translation]"`.')
    if options.dtype == "int8" and state.device.type != "cpu":
        raise ValueError(
            "`dtype='int8'` is for CPUs, and the evaluation runs on a GPU; hide it (CUDA_VISIBLE_DEVICES='')."
        )
    transcriber = pipeline(
        "automatic-speech-recognition", model=options.model, device=state.device, dtype=loaded_dtype(options.dtype)
    )
    set_dtype(transcriber.model, options.dtype)
    processor: Any = transcriber.processor
    if any(options.keywords):
        # Fail before transcribing if the template has no place for keywords.
        processor.apply_transcription_request("", keywords=["keyword"], tokenize=False)
    if is_translation:
        # Fail before translating if the template has no place for translations.
        processor.apply_transcription_request("", task="translate", target_language="English", tokenize=False)
    uses_experts = transcriber.model.config.projector_config.uses_experts
    if options.output is not None and uses_experts and find_spec("matplotlib") is None:
        raise ImportError(
            'Pictures of experts need matplotlib: `pip install "llm-asr[train]"`, or omit the report (`output=None`, no '
            "`--output`)."
        )
    console = Console(quiet=silent)
    everything = dataset.remove_columns("audio").to_list()
    if is_translation:
        everything = [row for row in everything if row["translation"]]
        if not everything:
            raise ValueError(f"{options.dataset!r} has no row with a `translation`.")

    def share(rows: list[dict]) -> list[dict]:
        """
        The rows of this process. Neighbouring rows often have similar durations, so each process takes every n-th row.
        """
        return rows[state.process_index :: state.num_processes]

    def transcribe_everything(
        output: Path | None, keywords: dict[int, list[str]] | None, size: int
    ) -> dict[int, dict]:
        """Transcriptions of all rows by their number. Those of an interrupted run are kept in files named after `output`."""
        files = None
        if output is not None:
            made_from = {
                "model": options.model,
                "model files": file_stamps(options.model),
                "model commit": getattr(transcriber.model.config, "_commit_hash", None),
                "dataset": options.dataset,
                "dataset files": file_stamps(options.dataset),
                "split": options.split,
                "number of recordings": len(everything),
                "--tell-language": options.tell_language,
                "--dtype": options.dtype,
                "--task": options.task,
            }
            if keywords is not None:
                made_from["keywords"] = size
            files = HypothesisFiles(output, made_from)
        done = files.collect(options.overwrite, console) if files and state.is_main_process else {}
        (done,) = broadcast_object_list([done])
        if files is not None and done:
            console.print(
                f"{len(done)} of {len(everything)} hypotheses are in {files.file()}; use --overwrite to transcribe again."
            )
        remaining = share([row for row in everything if row["row"] not in done])
        hypotheses = transcribe(transcriber, dataset, remaining, options, silent, keywords)
        kept = list(files.keep(hypotheses, state.process_index) if files else hypotheses)
        return done | dict(gather_object(kept))

    done = transcribe_everything(options.output, None, 0)
    runs = {}
    for size in sorted(set(options.keywords)):
        keywords = draw_keywords(everything, size or max(options.keywords), processor)
        output = options.output and options.output.with_name(f"{options.output.stem}-keywords-{size}.json")
        runs[size] = (keywords, transcribe_everything(output, keywords, size) if size else done)
    everything = [{**row, "output": done[row["row"]]} for row in everything]
    if is_translation:
        if state.is_main_process:
            write_translation_report(options, everything, console)
        state.destroy_process_group()
        return
    # Recordings without speech have no words, so they have no error rate.
    rows = [row for row in everything if row["text"].strip()]
    config = transcriber.model.config.projector_config
    measures = []
    if config.has_dynamic_rate or config.uses_experts:
        measures = gather_object(measure_audio(transcriber, dataset, share(rows), options.batch_size, silent))
        measures.sort(key=lambda measure: measure["row"])
    if state.is_main_process:
        write_report(options, transcriber, everything, measures, console, runs)
    state.destroy_process_group()


def transcribe(
    transcriber: Pipeline,
    dataset: Dataset,
    rows: list[dict],
    run_options: EvaluationOptions,
    silent: bool,
    keywords: dict[int, list[str]] | None = None,
) -> Iterator[tuple[int, dict]]:
    """
    Transcribe or translate `rows`, with `keywords` by the number of the row, and yield the number of each row with its `text`,
    `language` and, for transcripts with CIF, `chunks`. Recordings are read from `dataset` one after the other, because all of
    them together may not fit into memory.
    """
    is_translation = run_options.task == "translate"
    options: dict[str, Any] = {"batch_size": run_options.batch_size, "task": run_options.task}
    if transcriber.model.config.projector_config.uses_cif and not is_translation:
        options["return_timestamps"] = "word"
    groups: dict[tuple[str | None, str | None], list[dict]] = {}
    for row in rows:
        language = row["language"] if run_options.tell_language else None
        groups.setdefault((language, row["target_language"] if is_translation else None), []).append(row)
    with tqdm(total=len(rows), desc="Transcribing", unit="recording", disable=silent) as progress:
        for (language, target_language), members in groups.items():
            sources = (dataset[row["row"]]["audio"] for row in members)
            if keywords is not None:
                options["keywords"] = [keywords[row["row"]] for row in members]
            results = transcriber(sources, language=language, target_language=target_language, **options)
            for row, output in zip(members, results, strict=True):
                yield row["row"], output
                progress.update()


__all__ = ["EvaluationOptions", "evaluate_dataset"]
