"""
Runs tests and benchmarks on a GPU, one part after the other, each with a time limit:

    python tests/gpu/gpu_checks.py --output docs/benchmarks/gpu
    python tests/gpu/gpu_checks.py --device cpu --small --output /tmp/gpu-checks    # the same parts, small, without a GPU

Each part is written when it is there: PART.log is its output, and README.md is the table of all parts. A program that is cut off
loses only the part that runs. `--parts` chooses parts. The exit status is 1 if a part has failed.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers


ROOT = Path(__file__).parents[2]
TIMED_OUT = 124


@dataclass(frozen=True)
class Part:
    """
    A command with a time limit.

    Attributes:
        command: Arguments after `python`. `{device}` and `{output}` are filled in.
        small: Further arguments with `--small`. `None` leaves the part out.
        seconds: Time limit on a GPU.
    """

    command: tuple[str, ...]
    small: tuple[str, ...] | None
    seconds: int


PARTS = {
    "model": Part(("-m", "pytest", "-q", "tests/gpu/test_on_device.py"), (), 100),
    "two-devices": Part(("-m", "pytest", "-q", "tests/modeling/test_devices.py", "-k", "device_map"), (), 20),
    "distributed": Part(
        (
            "-m",
            "torch.distributed.run",
            "--nproc_per_node",
            "1",
            "tests/gpu/one_process.py",
            "{device}",
            "{output}/parts",
        ),
        (),
        40,
    ),
    "cif": Part(
        ("benchmarks/cif.py", "--device", "{device}", "--output", "{output}/cif.json"), ("--sizes", "small"), 50
    ),
    "moe": Part(
        ("benchmarks/moe.py", "--device", "{device}", "--dtype", "bfloat16", "--output", "{output}/moe.json"),
        ("--sizes", "small", "--repeats", "1"),
        50,
    ),
    "encode": Part(
        ("benchmarks/encode.py", "--device", "{device}", "--dtype", "bfloat16", "--output", "{output}/encode.json"),
        ("--repeats", "1", "--batch-size", "2", "--seconds", "1"),
        30,
    ),
    "train_step": Part(
        ("benchmarks/train_step.py", "--device", "{device}", "--output", "{output}/train_step.json"),
        ("--size", "tiny", "--recordings", "4", "--batch-size", "2"),
        50,
    ),
    "transcribe": Part(
        (
            *("benchmarks/transcribe.py", "--size", "whisper-base, qwen2.5-0.5b", "--dtype", "bfloat16"),
            *("--device", "{device}", "--output", "{output}/transcribe.json"),
        ),
        None,
        70,
    ),
    "vllm": Part(("-m", "pytest", "-q", "tests/serving/test_vllm_engine.py"), None, 60),
}


def run_part(name: str, part: Part, options: argparse.Namespace) -> dict:
    """Run a part, and return its row of the table."""
    arguments = [*part.command, *(part.small or () if options.small else ())]
    places = {"device": options.device, "output": str(options.output)}
    command = [sys.executable, *(each.format(**places) for each in arguments)]
    environment = {**os.environ, "LLM_ASR_TEST_DEVICE": options.device, "TOKENIZERS_PARALLELISM": "false"}
    paths = [str(ROOT / "src"), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    began = time.monotonic()
    with (options.output / f"{name}.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            status = process.wait(timeout=part.seconds * (10 if options.small else 1))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            status = TIMED_OUT
    return {
        "part": name,
        "command": " ".join(["python", *command[1:]]),
        "status": status,
        "seconds": round(time.monotonic() - began, 1),
    }


def write_table(rows: list[dict], options: argparse.Namespace) -> None:
    """Write the parts that have run."""
    device = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or "CPU"
    lines = [f"{device}, PyTorch {torch.__version__}, Transformers {transformers.__version__}", ""]
    lines += ["| part | result | seconds | command |", "|---|---|---:|---|"]
    for row in rows:
        result = {0: "passed", TIMED_OUT: "timed out"}.get(row["status"], f"failed ({row['status']})")
        lines.append(f"| [{row['part']}]({row['part']}.log) | {result} | {row['seconds']} | `{row['command']}` |")
    (options.output / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (options.output / "parts.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--small", action="store_true", help="Small sizes, and no parts that need a GPU.")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--output", type=Path, required=True, help="Folder for logs, figures and the table.")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; pass --device cpu --small.")
    options.output = options.output.resolve()
    options.output.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in options.parts:
        part = PARTS[name]
        if options.small and part.small is None:
            continue
        rows.append(run_part(name, part, options))
        print(f"{name}: status {rows[-1]['status']} after {rows[-1]['seconds']} s", flush=True)
        write_table(rows, options)
    return int(any(row["status"] != 0 for row in rows))


if __name__ == "__main__":
    sys.exit(main())
