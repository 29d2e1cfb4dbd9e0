"""Draws the curves of training runs."""

import json
import re
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..modeling.configuration_llm_asr import LOSS_PARTS


if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Titles of the panels, and patterns of the names in the logs. A group in the pattern distinguishes the lines of a panel.
PANELS = {
    "loss": r"(eval_)?loss",
    **{part: part for part in LOSS_PARTS},
    "gradient norm": r"grad_norm",
    "learning rate": r"learning_rate(?:_(\w+))?",
    "WER (%)": r"eval_wer(?:_(\w+))?",
    "CER (%)": r"eval_cer(?:_(\w+))?",
    "CIF length error (%)": r"length_error",
    "expert entropy": r"expert_entropy",
    "smallest share of an expert": r"expert_min_share",
    "largest load over the mean": r"expert_max_violation",
    "dead experts": r"dead_experts",
    "audio hours per second": r"audio_hours_per_second",
}
NUM_COLUMNS = 3


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def read_history(run: Path) -> list[dict]:
    """
    Read the logs of a training run from the saved state with the most steps.

    Raises:
        `ValueError`: If there is no saved state of a run in the folder.
    """
    states = []
    for file in [run / "trainer_state.json", *run.glob("checkpoint-*/trainer_state.json")]:
        # A killed run may leave an incomplete file.
        with suppress(FileNotFoundError, json.JSONDecodeError):
            states.append(json.loads(file.read_text(encoding="utf-8")))
    if not states:
        raise ValueError(f"{run} and its checkpoints hold no trainer_state.json; pass the `output_dir` of a run.")
    return max(states, key=lambda state: state["global_step"])["log_history"]


def has_curves(history: list[dict]) -> bool:
    """Whether the logs have a curve for [`plot_curves`]. A run that is shorter than `logging_steps` has none."""
    return any(select_curves(history, pattern) for pattern in PANELS.values())


def plot_curves(histories: dict[str, list[dict]], output: Path) -> "Figure":
    """
    Draw the curves of one or several training runs. Each quantity in the logs gets a panel.

    Args:
        histories (`dict[str, list[dict]]`): Results of [`read_history`], by the name of the run.
        output (`Path`): Picture to write. The suffix selects the format.

    Raises:
        `ValueError`: If the logs have nothing to draw.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    panels = {
        title: {run: curves for run, history in histories.items() if (curves := select_curves(history, pattern))}
        for title, pattern in PANELS.items()
    }
    panels = {title: runs for title, runs in panels.items() if runs}
    if not panels:
        raise ValueError(f"There is nothing to draw: the logs of {', '.join(histories)} are empty.")
    num_columns = min(NUM_COLUMNS, len(panels))
    num_rows = -(-len(panels) // num_columns)
    figure = Figure(figsize=(5 * num_columns, 3.2 * num_rows), layout="constrained")
    for index, (title, runs) in enumerate(panels.items()):
        axis = figure.add_subplot(num_rows, num_columns, index + 1)
        axis.set_prop_cycle(color=[colormaps["tab20"](color) for color in range(20)])
        for run, curves in runs.items():
            for name, (steps, values) in curves.items():
                label = ", ".join(part for part in (run if len(histories) > 1 else "", name) if part)
                axis.plot(
                    steps,
                    values,
                    marker="." if len(steps) < 50 else None,
                    label=label or (title if len(curves) > 1 else "_"),
                )
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[1]:
            axis.legend(fontsize="small")
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=120)
    return figure


def select_curves(history: list[dict], pattern: str) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of all logged names that match `pattern`, by the text of the pattern's group."""
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for entry in history:
        for name, value in entry.items():
            match = re.fullmatch(pattern, name)
            if match and isinstance(value, int | float):
                steps, values = curves.setdefault((match.groups("") or ("",))[0].strip("_"), ([], []))
                steps.append(entry["step"])
                values.append(value)
    return curves


__all__ = ["can_draw", "has_curves", "plot_curves", "read_history", "select_curves"]
