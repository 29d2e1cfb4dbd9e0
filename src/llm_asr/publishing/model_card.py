"""Writes the model card of a checkpoint from the files of its training run and its evaluations."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.repocard import metadata_load
from transformers.utils import PROCESSOR_NAME

from ..evaluation.expert_usage import plot_expert_usage
from ..modeling.backbone_references import BACKBONES
from ..training.run_record import RUN_RECORD_NAME
from .inspect import CARD_NAME, inspect_checkpoint, read_json
from .pictures import can_draw, has_curves, plot_curves, read_history


TASK = "automatic-speech-recognition"
# Training options that name places. The card shows them in other sections, or they are paths on the publisher's machine.
PLACES = {
    "model",
    "audio_model",
    "text_model",
    "projector_type",
    "projector",
    "train_dataset",
    "train_datasets",
    "eval_dataset",
    "eval_datasets",
    "dataset_name",
    "train_split",
    "feature_cache",
    "feature_cache_gigabytes",
}
# The file name is a constant of Transformers' `trainer` module, whose import would take half a second.
TRAINER_STATE_NAME = "trainer_state.json"

# Parts with a separate licence, and their names in the card.
LICENSED = {
    "audio_tower": "speech encoder",
    "language_model": "language model",
    "projector": "projector and other trained parts",
    "data": "training data",
}

TEMPLATE = """---
{{ card_data }}
---

# {{ name }}

Speech recognition: a {{ audio_type }} encoder, a `{{ projector_type }}` projector and a {{ text_type }} language model.
Trained with llm-asr.{% if source %} Converted from {{ source.name_or_path }}, whose licence applies.{% endif %}

## Usage
{% if not repo_id %}
In the folder of the checkpoint:
{% endif %}
```python
{{ snippet }}
```

## Languages

{% if languages %}| code | language |
|---|---|
{% for code, language in languages %}| {{ code }} | {{ language }} |
{% endfor %}{% else %}Not stated.
{% endif %}
## Results

{% for report in reports %}{{ report.title }}

| {{ report.group }} | recordings | WER % | CER % |
|---|---:|---:|---:|
{% for row in report.rows %}| {{ row | join(" | ") }} |
{% endfor %}
Brackets contain 95 % intervals from bootstrap resamples of the recordings.{% for fact in report.facts %} {{ fact }}{% endfor %}

{% if report.picture %}![Share of frames that each expert received, by language]({{ report.picture }})

{% endif %}{% else %}Not evaluated.

{% endfor %}{% for report in translations %}{{ report.title }}

| direction | recordings | BLEU | chrF |
|---|---:|---:|---:|
{% for row in report.rows %}| {{ row | join(" | ") }} |
{% endfor %}
{% endfor %}## Parts

| part | origin | parameters in this repository | precision |
|---|---|---:|---|
{% for row in parts %}| {{ row | join(" | ") }} |
{% endfor %}
{% if projector %}The projector's options:

| option | value |
|---|---|
{% for option, value in projector.items() %}| `{{ option }}` | `{{ value }}` |
{% endfor %}
{% endif %}## Training

- Data: {{ data }}
- Hardware: {{ hardware }}
- Time: {{ hours }}
- Length: {{ length }}

{% if arguments %}| argument | value |
|---|---|
{% for argument, value in arguments.items() %}| `{{ argument }}` | `{{ value }}` |
{% endfor %}
{% else %}Training arguments: not recorded.

{% endif %}{% if curves %}![Curves of the training run]({{ curves }})

{% endif %}## Limits

{% for limit in limits %}- {{ limit }}
{% endfor %}
## Licences

| part | licence |
|---|---|
{% for part, license in licenses.items() %}| {{ part }} | {{ license }} |
{% endfor %}"""

SNIPPET = """from transformers import pipeline

transcriber = pipeline("automatic-speech-recognition", model="{model}", trust_remote_code=True)
print(transcriber("speech.wav")["text"])"""

ADAPTER_SNIPPET = """import llm_asr  # pip install llm-asr
from transformers import pipeline

transcriber = pipeline("automatic-speech-recognition", model="{model}")
print(transcriber("speech.wav")["text"])"""


def write_model_card(
    folder: str | os.PathLike,
    output: str | os.PathLike | None = None,
    *,
    run: str | os.PathLike | None = None,
    repo_id: str | None = None,
    evaluations: Sequence[str | os.PathLike] | None = None,
    languages: Sequence[str] | None = None,
    datasets: Sequence[str] | None = None,
    backbones: Mapping[str, str] | None = None,
    license: str | None = None,
    licenses: Mapping[str, str] | None = None,
    hardware: str | None = None,
    hours: float | None = None,
    limits: Sequence[str] = (),
    pictures: bool = True,
    overwrite: bool = False,
) -> Path:
    """
    Write `README.md` with metadata for the Hub and pictures of the training run and of the experts.

    The card is made from the checkpoint, from `training_run.json` and `trainer_state.json` of the run, and from the reports
    of `llm-asr evaluate`. Facts that neither these files nor the arguments contain are called unknown or left out.

    Args:
        folder (`str` or `os.PathLike`):
            Folder of a checkpoint in any form.
        output (`str` or `os.PathLike`, *optional*):
            Folder to write to. Defaults to `folder`.
        run (`str` or `os.PathLike`, *optional*):
            The `output_dir` of the training run. Defaults to `folder`.
        repo_id (`str`, *optional*):
            Future Hub id of the checkpoint. By default the title is the folder's name, and the snippet has no id.
        evaluations (`Sequence[str]`, *optional*):
            JSON reports of `llm-asr evaluate`. Defaults to the JSON files in `run` that have a Markdown file beside them.
        languages (`Sequence[str]`, *optional*):
            Language codes. Defaults to the languages of the evaluations.
        datasets (`Sequence[str]`, *optional*):
            Training datasets, by Hub id or name. Defaults to the datasets in the run's record.
        backbones (`Mapping[str, str]`, *optional*):
            Hub ids of `"audio_tower"` and `"language_model"`. Defaults to the ids in the checkpoint or in the run's record.
        license (`str`, *optional*):
            Licence of the whole checkpoint, as an identifier of the Hub such as `"apache-2.0"`.
        licenses (`Mapping[str, str]`, *optional*):
            Licences of the parts: `"audio_tower"`, `"language_model"`, `"projector"` (with all other trained parts) and
            `"data"`. The licences of speech encoder and language model default to those in their own model cards, on the Hub
            or in their folders.
        hardware (`str`, *optional*), hours (`float`, *optional*):
            Hardware and duration of the training. Default to the values in the run's record.
        limits (`Sequence[str]`, *optional*):
            Further sentences on the limits of the model.
        pictures (`bool`, *optional*, defaults to `True`):
            Whether to draw pictures. This needs matplotlib.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether to replace an existing card.

    Returns:
        `Path`: Path of the card.

    Raises:
        `ValueError`: If there is no checkpoint in `folder`, a card exists already, or an argument names an unknown part.
        `ImportError`: If there is a picture to draw and matplotlib is not installed.
    """
    folder = Path(folder)
    output = folder if output is None else Path(output)
    run = folder if run is None else Path(run)
    for name, given, known in (("backbones", backbones, BACKBONES), ("licenses", licenses, LICENSED)):
        unknown = sorted(set(given or {}) - set(known))
        if unknown:
            raise ValueError(f"`{name}` has {unknown}; its keys are among {list(known)}.")
    card = output / CARD_NAME
    if card.exists() and not overwrite:
        raise ValueError(f"{card} exists already, perhaps edited by hand; move it away or pass `overwrite=True`.")
    checkpoint = inspect_checkpoint(folder)
    record = read_json(run / RUN_RECORD_NAME) or {}
    all_reports = _read_reports(run, evaluations)
    reports = {stem: report for stem, report in all_reports.items() if "error_rates" in report}
    name = (repo_id or folder.resolve().name).rpartition("/")[2]
    codes = _find_languages(reports) if languages is None else list(languages)
    data: list[dict[str, Any]] = (
        [{"name": one, "on_hub": "/" in one} for one in datasets] if datasets else record.get("datasets", [])
    )
    origins = _find_origins(checkpoint, record, backbones or {})
    told = _find_licenses(checkpoint, origins, licenses or {})
    curves, heat_maps = _draw(run, output, reports) if pictures else (None, {})
    results = [result for report in reports.values() if "dataset" in report for result in _list_results(report)]
    card_data = ModelCardData(
        language=sorted({code.partition("-")[0] for code in codes if re.fullmatch("[a-z]{2,3}(-.*)?", code)}) or None,
        license=license,
        library_name="transformers",
        pipeline_tag=TASK,
        tags=_list_tags(checkpoint),
        base_model=_list_bases(checkpoint, origins),
        datasets=[one["name"] for one in data if one["on_hub"]] or None,
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=name if results else None,
        eval_results=results or None,
    )
    projector = checkpoint["projector"]
    snippet = ADAPTER_SNIPPET if checkpoint["form"] == "adapter" else SNIPPET
    content = ModelCard.from_template(
        card_data,
        template_str=TEMPLATE,
        name=name,
        audio_type=_type(checkpoint["speech_encoder"]),
        text_type=_type(checkpoint["language_model"]),
        projector_type=projector["projector_type"] if projector else "trained",
        repo_id=repo_id,
        source=checkpoint["provenance"]["converted_from"],
        snippet=snippet.format(model=repo_id or "."),
        languages=[(code, _name_language(folder, code)) for code in codes],
        reports=[
            {**_describe_report(stem, report), "picture": heat_maps.get(stem)} for stem, report in reports.items()
        ],
        translations=[
            _describe_translations(stem, report) for stem, report in all_reports.items() if "translations" in report
        ],
        parts=_describe_parts(checkpoint, origins),
        projector=projector,
        data=", ".join(_name_dataset(one) for one in data) or "not recorded",
        hardware=hardware or record.get("hardware", "not recorded"),
        hours=_format_hours(record.get("hours") if hours is None else hours),
        length=_describe_length(run),
        arguments=_list_arguments(record),
        curves=curves,
        limits=[*_list_limits(reports), *limits],
        licenses={
            "the whole": license or "not stated",
            **{label: told.get(part, "unknown") for part, label in LICENSED.items()},
            "code": "apache-2.0",
        },
    )
    content.save(card)
    return card


def _read_reports(run: Path, evaluations: Sequence[str | os.PathLike] | None) -> dict[str, dict]:
    """
    Reports of error rates and of translations, by the names of their files. A Markdown file beside a JSON file tells that it is a report of
    `llm-asr evaluate`.
    """
    if evaluations is None:
        evaluations = sorted(path for path in run.glob("*.json") if path.with_suffix(".md").is_file())
    reports = {}
    for path in map(Path, evaluations):
        report = read_json(path)
        if report is None or not {"error_rates", "translations"} & report.keys():
            raise ValueError(f"{str(path)!r} is not a report of `llm-asr evaluate` on recordings with speech.")
        reports[path.stem] = report
    return reports


def _find_languages(reports: Mapping[str, dict]) -> list[str]:
    return sorted({name for report in reports.values() for name in report["error_rates"]} - {"all"})


def _find_origins(checkpoint: dict, record: dict, backbones: Mapping[str, str]) -> dict[str, dict]:
    """Name of each backbone, its revision, and whether it is known to be on the Hub."""
    described = {"audio_tower": checkpoint["speech_encoder"], "language_model": checkpoint["language_model"]}
    source = checkpoint["provenance"]["converted_from"]
    origins = {}
    for part in BACKBONES:
        found, recorded = described[part] or {}, record.get("started_from", {}).get(part)
        if part in backbones:
            origins[part] = {"name": backbones[part], "revision": None, "on_hub": True}
        elif found.get("revision"):
            origins[part] = {"name": found["name_or_path"], "revision": found["revision"], "on_hub": True}
        elif source is not None:
            revision = source["revision"]
            origins[part] = {"name": source["name_or_path"], "revision": revision, "on_hub": revision is not None}
        elif recorded is not None:
            origins[part] = {**recorded, "revision": None}
        elif found.get("name_or_path"):
            # The name may be that of a folder on another machine, even if it looks like a Hub id.
            origins[part] = {"name": found["name_or_path"], "revision": None, "on_hub": False}
    return origins


def _find_licenses(checkpoint: dict, origins: Mapping[str, dict], licenses: Mapping[str, str]) -> dict[str, str]:
    source = checkpoint["provenance"]["converted_from"]
    if source is None:
        found = {part: _read_license(**origin) for part, origin in origins.items() if part not in licenses}
    else:
        found = dict.fromkeys(BACKBONES, source["license"])
    return {**{part: license for part, license in found.items() if license}, **licenses}


def _read_license(name: str, revision: str | None, on_hub: bool) -> str | None:
    """The licence in the model card of a backbone. `None` if there is none or the card cannot be read."""
    if not on_hub:
        card = Path(name, CARD_NAME)
        return (metadata_load(card) or {}).get("license") if card.is_file() else None
    try:
        data = HfApi().model_info(name, revision=revision).card_data
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError):
        # Without access or network, the card calls the licence unknown.
        return None
    return data.get("license") if data else None


def _list_bases(checkpoint: dict, origins: Mapping[str, dict]) -> list[str] | None:
    base = checkpoint["provenance"]["base"]
    if base is not None:
        return [base["base_model_name_or_path"]] if base["revision"] else None
    return list(dict.fromkeys(origin["name"] for origin in origins.values() if origin["on_hub"])) or None


def _list_tags(checkpoint: dict) -> list[str]:
    projector = checkpoint["projector"]
    return ["llm-asr", "speech", *([projector["projector_type"]] if projector else [])]


def _list_results(report: dict) -> list[EvalResult]:
    """Results for `model-index`. Languages that are written without spaces get no word error rate."""
    dataset = _name_dataset(report["dataset"])
    results = []
    for language, rates in report["error_rates"].items():
        for metric in ("wer", "cer"):
            if metric == "cer" or rates["headline"] == "wer":
                results.append(
                    EvalResult(
                        task_type=TASK,
                        task_name="Automatic Speech Recognition",
                        dataset_type=dataset,
                        dataset_name=dataset,
                        dataset_config=language,
                        dataset_split=report["dataset"]["split"],
                        metric_type=metric,
                        metric_name=metric.upper(),
                        metric_value=round(rates[metric], 2),
                    )
                )
    return results


def _title(stem: str, report: dict) -> str:
    dataset = report.get("dataset")
    if dataset is None:
        return f"Report `{stem}`, whose dataset is not recorded"
    told = "names" if report["language_told"] else "does not name"
    return f"{_name_dataset(dataset)}, {dataset['split']}; the prompt {told} the language"


def _describe_translations(stem: str, report: dict) -> dict:
    rows = [
        [direction, str(found["recordings"]), f"{found['bleu']:.1f}", f"{found['chrf']:.1f}"]
        for direction, found in report["translations"].items()
    ]
    signatures = sorted({found["bleu_signature"] for found in report["translations"].values()})
    return {"title": f"Translations of {_title(stem, report)}. sacreBLEU: {', '.join(signatures)}.", "rows": rows}


def _describe_report(stem: str, report: dict) -> dict:
    rows = []
    for name, rates in report["error_rates"].items():
        cells = [
            f"{rates[metric]:.1f} [{', '.join(f'{end:.1f}' for end in rates[f'{metric}_interval'])}]"
            if metric == "cer" or rates["headline"] == "wer"
            else "–"
            for metric in ("wer", "cer")
        ]
        rows.append([name, str(rates["recordings"]), *cells])
    facts = []
    if "languages" in report:
        facts.append(
            "The model identified the language correctly in "
            f"{report['languages']['all']['language_found']:.1f} % of the recordings."
        )
    if "lengths" in report:
        facts.append(f"Error of CIF's token counts: {report['lengths']['all']['length_error']:.1f} %.")
    return {
        "title": f"{_title(stem, report)}. Text normaliser: {report['normalizer']}.",
        "group": "language",
        "rows": rows,
        "facts": facts,
    }


def _draw(run: Path, output: Path, reports: Mapping[str, dict]) -> tuple[str | None, dict[str, str]]:
    """
    Draw the pictures and return their file names: the curves if the run has any, and a heat map of the experts for each
    report with expert usage.
    """
    history = read_history(run) if (run / TRAINER_STATE_NAME).is_file() else []
    draws_curves = has_curves(history)
    usages = {stem: report["expert_usage"] for stem, report in reports.items() if "expert_usage" in report}
    if (draws_curves or usages) and not can_draw():
        raise ImportError(
            'Pictures need matplotlib: `pip install "llm-asr[train]"`, or omit the pictures (`pictures=False`, '
            "`--no-pictures`)."
        )
    curves = None
    if draws_curves:
        curves = "training_curves.png"
        plot_curves({run.name: history}, output / curves)
    heat_maps = {}
    for stem, layers in usages.items():
        (usage,) = layers.values()
        heat_maps[stem] = f"expert_usage_{re.sub('[^A-Za-z0-9]+', '_', stem)}.png"
        plot_expert_usage(usage, output / heat_maps[stem])
    return curves, heat_maps


def _describe_parts(checkpoint: dict, origins: Mapping[str, dict]) -> list[list[str]]:
    rows = []
    for part in dict.fromkeys([*BACKBONES, *checkpoint["parts"]]):
        held = checkpoint["parts"].get(part, {"parameters": 0, "dtypes": []})
        origin = origins.get(part)
        if origin is not None:
            shown = origin["name"] if origin["on_hub"] else f"{Path(origin['name']).name} (a local folder)"
            shown = f"`{shown}`" + (f" at `{origin['revision']}`" if origin["revision"] else "")
        elif part in BACKBONES:
            base = checkpoint["provenance"]["base"]
            shown = f"`{base['base_model_name_or_path']}`" if base else "not recorded"
        else:
            shown = "this training"
        rows.append([_label(part), shown, f"{held['parameters']:,}", ", ".join(held["dtypes"]) or "–"])
    return rows


def _list_arguments(record: dict) -> dict[str, object]:
    options = {name: value for name, value in record.get("options", {}).items() if name not in PLACES}
    return {**record.get("arguments", {}), **options}


def _list_limits(reports: Mapping[str, dict]) -> list[str]:
    limits = [
        "A language model writes the transcripts, so errors read fluently; check important passages against the recording."
    ]
    if reports:
        limits.append(
            "The results hold for the languages, speakers and recording conditions of the datasets above; others have not "
            "been measured."
        )
    else:
        limits.append("The error rate has not been measured in any language.")
    silences = [report["silence"] for report in reports.values() if "silence" in report]
    if silences:
        limits += [
            f"The model wrote a transcript for {silence['hallucinated']:.1f} % of {silence['recordings']} recordings without "
            "speech."
            for silence in silences
        ]
    else:
        limits.append("Hallucinations in recordings without speech have not been measured.")
    return limits


def _name_language(folder: Path, code: str) -> str:
    names = (read_json(folder / PROCESSOR_NAME) or {}).get("languages", {})
    return names.get(code) or names.get(code.partition("-")[0], "–")


def _name_dataset(dataset: dict) -> str:
    """A Hub id, or the name of a file or folder without its path."""
    return dataset["name"] if dataset["on_hub"] else Path(dataset["name"]).name


def _describe_length(run: Path) -> str:
    state = read_json(run / TRAINER_STATE_NAME)
    return "not recorded" if state is None else f"{state['global_step']} steps, {state['epoch']:.4g} epochs"


def _format_hours(hours: float | None) -> str:
    return "not recorded" if hours is None else f"{hours:.2g} hours"


def _label(part: str) -> str:
    return part.replace("audio_tower", "speech encoder").replace("_", " ")


def _type(backbone: dict | None) -> str:
    return "frozen" if backbone is None else backbone["model_type"]


__all__ = ["write_model_card"]
