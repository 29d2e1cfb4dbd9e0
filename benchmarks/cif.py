"""
Time, memory and error of `integrate_and_fire` and of published implementations of Continuous Integrate-and-Fire.

    python benchmarks/cif.py --install --threads 1 --output docs/benchmarks/cif.json
"""

import argparse
import contextlib
import json
import math
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


PEERS = Path(__file__).with_name(".peers")
TORCH_CIF, FUNASR = "torch-cif==0.2.0", "funasr==1.4.16"
SIZES = {"small": [(2, 60, 16)], "all": [(8, 1500, 1280), (32, 500, 512), (1, 30000, 512)]}
LONG = 10_000  # for this many frames or more, slow loops are left out and there is no goal
GOAL = 8.0
PASSES = ("forward", "forward+backward")

# Takes hidden states and alphas; returns embeddings, padded (3 dimensions) or packed (2). The threshold is 1.
Function = Callable[[Tensor, Tensor], Tensor]


def ours(hidden: Tensor, alphas: Tensor) -> Tensor:
    from llm_asr.modeling.cif import integrate_and_fire

    return integrate_and_fire(hidden, alphas, tail_threshold=math.inf).embeds


def torch_cif(hidden: Tensor, alphas: Tensor) -> Tensor:
    from torch_cif import cif_function

    return cif_function(hidden, alphas, tail_thres=math.inf, unbound_alpha=True)["cif_out"][0]


def funasr(hidden: Tensor, alphas: Tensor, name: str) -> Tensor:
    # Importing FunASR prints missing packages, which this module does not need.
    with contextlib.redirect_stdout(None):
        from funasr.models.paraformer import cif_predictor
    return getattr(cif_predictor, name)(hidden, alphas, 1.0)[0]


def frame_loop(hidden: Tensor, alphas: Tensor, unbind: bool) -> Tensor:
    """
    Compute equations 1-4 of arXiv 1905.11235 frame by frame. The result is packed.

    Indexing the frames, as CIF-PyTorch and FunASR do, makes backward quadratic in the number of frames, because the gradient
    of each frame is as large as `hidden`. `unbind` avoids this.
    """
    indexed = ((hidden[:, index], alphas[:, index]) for index in range(hidden.shape[1]))
    level, state = torch.zeros_like(alphas[:, 0]), torch.zeros_like(hidden[:, 0])
    states, fires = [], []
    for frame, weight in zip(hidden.unbind(1), alphas.unbind(1), strict=True) if unbind else indexed:
        fires.append(level + weight >= 1.0)
        used = torch.where(fires[-1], 1.0 - level, weight)
        states.append(state + used[:, None] * frame)
        level = torch.where(fires[-1], weight - used, level + weight)
        state = torch.where(fires[-1][:, None], (weight - used)[:, None] * frame, states[-1])
    return torch.stack(states, 1)[torch.stack(fires, 1)]


class Implementation(NamedTuple):
    """A row of the tables. A slow implementation runs only once, in the process that measures its memory."""

    function: Function
    requirement: str | None = None
    is_slow: bool = False


OURS = "`integrate_and_fire` (ours)"
IMPLEMENTATIONS = {
    OURS: Implementation(ours),
    "torch-cif 0.2.0 `cif_function`": Implementation(torch_cif, TORCH_CIF),
    "FunASR 1.4.16 `cif_v1`": Implementation(partial(funasr, name="cif_v1"), FUNASR),
    "FunASR 1.4.16 `cif` (loop)": Implementation(partial(funasr, name="cif"), FUNASR, is_slow=True),
    "loop as CIF-PyTorch's (re-implemented)": Implementation(partial(frame_loop, unbind=False), is_slow=True),
    "the same loop over unbound frames (re-implemented)": Implementation(partial(frame_loop, unbind=True)),
}


def make_inputs(size: tuple[int, int, int], device: str, mean: float = 0.1) -> tuple[Tensor, Tensor]:
    """
    Create frames and weights. Each row ends with a quarter of an embedding, so that rounding does not change the number of
    fires.
    """
    generator = torch.Generator().manual_seed(0)
    alphas = torch.rand(size[:2], generator=generator) * 2 * mean
    total = alphas.sum(1, keepdim=True)
    alphas = alphas * (total.floor() + 0.25) / total
    hidden = torch.randn(size, generator=generator)
    return hidden.to(device).requires_grad_(), alphas.to(device).requires_grad_()


def run(function: Function, hidden: Tensor, alphas: Tensor, backward: bool) -> float:
    """Measure the seconds of one call. The loss is the sum of squares, so that every embedding has a gradient."""
    hidden.grad = alphas.grad = None
    synchronize = torch.cuda.synchronize if hidden.is_cuda else lambda: None
    synchronize()
    start = time.perf_counter()
    with torch.set_grad_enabled(backward):
        embeds = function(hidden, alphas)
        if backward:
            embeds.square().sum().backward()
    synchronize()
    return time.perf_counter() - start


def peak_memory(device: str) -> int:
    """Peak memory so far in bytes. On a CPU, `ru_maxrss` is not usable, because a process inherits it from its parent."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status["VmHWM"].split()[0])


def measure_once(name: str, size: tuple[int, int, int], device: str, threads: int, backward: bool) -> dict[str, float]:
    """Measure the seconds and the peak extra bytes of one call in a separate process."""
    torch.set_num_threads(threads)
    function = IMPLEMENTATIONS[name].function
    run(function, *make_inputs((2, 60, 16), device), backward)
    inputs = make_inputs(size, device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the current use
    before = peak_memory(device)
    seconds = run(function, *inputs, backward)
    return {"seconds": seconds, "memory": peak_memory(device) - before}


def measure(names: list[str], size: tuple[int, int, int], options: argparse.Namespace) -> dict[str, dict]:
    """Measure memory and time of each implementation. The time is the median of interleaved repeats."""
    rows = {name: {} for name in names}
    functions = {name: IMPLEMENTATIONS[name].function for name in names if not IMPLEMENTATIONS[name].is_slow}
    inputs = make_inputs(size, options.device)
    for key in PASSES:
        backward = key != "forward"
        for name in names:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                task = (name, size, options.device, options.threads, backward)
                rows[name][key] = pool.apply(measure_once, task)
        repeats = [[run(each, *inputs, backward) for each in functions.values()] for _ in range(options.repeats + 1)]
        for name, seconds in zip(functions, zip(*repeats[1:], strict=True), strict=True):  # the first repeat warms up
            rows[name][key]["seconds"] = median(seconds)
    return rows


def error(function: Function, mean: float, device: str) -> str:
    """Largest difference from the sequential definition in float64, for a small case with weights of the given mean."""
    hidden, alphas = (tensor.detach() for tensor in make_inputs((4, 200, 16), device, mean))
    rows = []
    for frames, weights in zip(hidden.double(), alphas.double().tolist(), strict=True):
        level, state = 0.0, torch.zeros_like(frames[0])
        rows.append([])
        for frame, weight in zip(frames, weights, strict=True):
            while level + weight >= 1.0:
                rows[-1].append(state + (1.0 - level) * frame)
                level, state, weight = 0.0, torch.zeros_like(frame), weight - (1.0 - level)
            level, state = level + weight, state + weight * frame
    expected, embeds = pad_sequence([torch.stack(row) for row in rows], batch_first=True), function(hidden, alphas)
    if embeds.ndim == 2 and len(embeds) == sum(map(len, rows)):
        embeds = pad_sequence(embeds.split([len(row) for row in rows]), batch_first=True)
    return f"{(embeds - expected).abs().max():.0e}" if embeds.shape == expected.shape else "wrong number"


def least_traffic(size: tuple[int, int, int], device: str) -> list[str]:
    """
    Table cells for reading inputs and writing outputs and gradients exactly once: times at the speed of a copy, and bytes.
    """
    hidden, alphas = (tensor.detach() for tensor in make_inputs(size, device))
    target = torch.empty_like(hidden)
    copies = [run(lambda frames, _: target.copy_(frames), hidden, alphas, backward=False) for _ in range(9)]
    inputs, outputs = 4 * (hidden.numel() + alphas.numel()), 4 * size[2] * int(alphas.sum(1).floor().sum())
    traffic = (inputs + outputs, 3 * inputs + 2 * outputs)  # backward reads the inputs and writes their gradients
    times = [each * median(copies) / (8 * hidden.numel()) for each in traffic]
    return [f"{seconds * 1e3:.1f}" for seconds in times] + [f"{each / 2**20:.0f}" for each in traffic]


def report(size: tuple[int, int, int], rows: dict[str, dict], errors: dict[str, list[str]], device: str) -> str:
    """A Markdown table for one size, and whether the goal is met."""
    lines = [
        f"\n### {' × '.join(map(str, size))}\n",
        "| | forward, ms | forward+backward, ms | memory, MiB | with backward | error | if α > 1 |",
        "|---|" + "---:|" * 6,
        f"| {' | '.join(['reading and writing once, as fast as a copy', *least_traffic(size, device)])} | | |",
    ]
    ratios = {name: [row[key]["seconds"] / rows[OURS][key]["seconds"] for key in PASSES] for name, row in rows.items()}
    for name in IMPLEMENTATIONS:
        cells = ["left out (run with --slow)" if name in errors else "not installed (run with --install)", "", "", ""]
        if name in rows:
            times = zip((rows[name][key]["seconds"] for key in PASSES), ratios[name], strict=True)
            cells = [f"{seconds * 1e3:.1f} ({ratio:.1f}×)" for seconds, ratio in times]
            cells += [f"{rows[name][key]['memory'] / 2**20:.0f}" for key in PASSES]
        lines.append(f"| {' | '.join([name, *cells, *errors.get(name, ['', ''])])} |")
    for label, is_peer in (("package", lambda each: each.requirement), ("of all", lambda each: each.function != ours)):
        peers = [(ratios[name][1], name) for name in ratios if is_peer(IMPLEMENTATIONS[name])]
        for ratio, name in sorted(peers)[:1]:
            verdict = "no goal" if size[1] >= LONG else f"goal of {GOAL:.0f}×: {'met' if ratio >= GOAL else 'not met'}"
            lines.append(f"\nForward+backward, fastest {label}: {name}, {ratio:.1f}× ({verdict}).")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--install", action="store_true", help="install the other implementations in .peers, without dependencies"
    )
    parser.add_argument("--sizes", choices=SIZES, default="all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--slow", action="store_true", help="also run the slow loops at the long size")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    if options.install:
        PEERS.mkdir(exist_ok=True)
        (PEERS / ".gitignore").write_text("*\n")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--no-deps", "--target", str(PEERS)]
        subprocess.run([*pip, TORCH_CIF, FUNASR], check=True)
    packages = {f"{package.name}=={package.version}" for package in metadata.distributions()} | {None}
    installed = {name: each for name, each in IMPLEMENTATIONS.items() if each.requirement in packages}

    device = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {options.threads} thread(s)"
    setting = {"torch": torch.__version__, "device": device, "dtype": "float32", "repeats": options.repeats}
    print(*(f"{key} {value}" for key, value in setting.items()), "mean α 0.1", sep=", ")
    results, errors = [], {}
    for name, each in installed.items():
        errors[name] = [error(each.function, mean, options.device) for mean in (0.1, 1.3)]
    for size in SIZES[options.sizes]:
        names = [name for name, each in installed.items() if options.slow or size[1] < LONG or not each.is_slow]
        results.append({"size": size, "rows": measure(names, size, options)})
        print(report(size, results[-1]["rows"], errors, options.device), flush=True)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps({**setting, "errors": errors, "results": results}, indent=2) + "\n")


# At the end of the path, the other implementations shadow no package. The line is outside the guard below, because the
# processes that measure memory need it too.
sys.path.append(str(PEERS))
if __name__ == "__main__":
    main()
