"""Shares of the experts by language."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np


def expert_usage(expert_load: np.ndarray, languages: Sequence[str] | None = None) -> dict:
    """
    Compute the shares of the experts by language, and the mutual information of expert and language.

    Args:
        expert_load (`np.ndarray` of shape `(num_recordings, num_experts)`): Frames of each recording that each expert
            received, or sums of router probabilities; see [`~modeling.expert_balance.count_expert_load`].
        languages (`Sequence[str]`, *optional*): Language of each recording.

    Returns:
        `dict`: `shares`, for each language and for `"all"` a list with each expert's share of the load; `entropy`, for each
        language and for `"all"` the entropy of the shares, from 0 (one expert gets all frames) to 1 (equal shares);
        `min_share`, the smallest share among `"all"`; `mutual_information` of expert and language in bits. It is 0 if all
        languages have the same shares. Its upper bound is the logarithm of the number of experts or of languages, whichever
        is smaller.

    Raises:
        `ValueError`: If there is no load, or the length of `languages` differs from that of `expert_load`.
    """
    expert_load = np.asarray(expert_load, dtype=float)
    if not expert_load.sum() > 0:
        raise ValueError("`expert_load` is empty: no frame was routed.")
    languages = [""] * len(expert_load) if languages is None else list(languages)
    if len(languages) != len(expert_load):
        raise ValueError(f"`languages` has {len(languages)} entries for {len(expert_load)} recordings.")
    names = sorted(set(languages))
    joint = np.stack([expert_load[np.array(languages) == name].sum(0) for name in names]) / expert_load.sum()
    independent = joint.sum(1, keepdims=True) * joint.sum(0)
    used = joint > 0
    rows = {name: row / row.sum() for name, row in zip(names, joint, strict=True) if name and row.sum() > 0}
    rows["all"] = joint.sum(0)
    return {
        "shares": {name: row.tolist() for name, row in rows.items()},
        "entropy": {name: normalized_entropy(row) for name, row in rows.items()},
        "min_share": float(rows["all"].min()),
        "mutual_information": float((joint[used] * np.log2(joint[used] / independent[used])).sum()),
    }


def normalized_entropy(shares: np.ndarray) -> float:
    """Entropy of shares that sum to one, divided by the entropy of equal shares. It is 1 for a single expert."""
    if len(shares) == 1:
        return 1.0
    used = shares[shares > 0]
    return float(abs(-(used * np.log(used)).sum() / np.log(len(shares))))


def plot_expert_usage(usage: dict, file: str | Path, title: str = "Share of frames by expert") -> None:
    """
    Draw the shares of [`expert_usage`] as a heat map with a row for each language and a column for each expert.

    Args:
        usage (`dict`): Result of [`expert_usage`].
        file (`str` or `Path`): Picture to write. The suffix selects the format.
        title (`str`, *optional*): Heading.
    """
    from matplotlib.figure import Figure

    shares = np.array(list(usage["shares"].values()))
    figure = Figure(figsize=(1.5 + 0.7 * shares.shape[1], 1.2 + 0.45 * len(shares)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(100 * shares, vmin=0, cmap="viridis", aspect="auto")
    axes.set_xticks(range(shares.shape[1]))
    axes.set_yticks(range(len(shares)), usage["shares"])
    axes.set(xlabel="expert", ylabel="language", title=title)
    for row, column in np.ndindex(shares.shape):
        color = "black" if shares[row, column] > shares.max() / 2 else "white"
        axes.text(column, row, f"{100 * shares[row, column]:.0f}", ha="center", va="center", color=color)
    figure.colorbar(image, label="% of frames")
    figure.text(0.01, 0.01, f"mutual information {usage['mutual_information']:.2f} bits", fontsize=7)
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)


__all__ = ["expert_usage", "normalized_entropy", "plot_expert_usage"]
