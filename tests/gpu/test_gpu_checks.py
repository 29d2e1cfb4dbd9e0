"""The program of `make test-gpu` on the CPU: its parts run, are written one by one, and have time limits."""

import json
import sys

import gpu_checks
import pytest


def execute(monkeypatch, tmp_path, *arguments):
    command = ["gpu_checks.py", "--device", "cpu", "--small", "--output", str(tmp_path / "gpu"), *arguments]
    monkeypatch.setattr(sys, "argv", command)
    return gpu_checks.main()


def test_parts_are_run_and_written(monkeypatch, tmp_path, capsys):
    assert execute(monkeypatch, tmp_path, "--parts", "distributed", "vllm") == 0
    (row,) = json.loads((tmp_path / "gpu" / "parts.json").read_text())
    # The other part needs a GPU.
    assert (row["part"], row["status"]) == ("distributed", 0)
    log = (tmp_path / "gpu" / "distributed.log").read_text()
    assert "DDP: same loss and gradients" in log
    assert "FSDP2: same loss and gradients" in log
    assert "| [distributed](distributed.log) | passed |" in (tmp_path / "gpu" / "README.md").read_text()


def test_a_part_that_fails_or_takes_too_long_does_not_stop_the_others(monkeypatch, tmp_path):
    parts = {
        "slow": gpu_checks.Part(("-c", "import time; print('begun', flush=True); time.sleep(60)"), (), 1),
        "wrong": gpu_checks.Part(("-c", "raise SystemExit(3)"), (), 20),
        "good": gpu_checks.Part(("-c", "print('{device}')"), (), 20),
    }
    monkeypatch.setattr(gpu_checks, "PARTS", parts)
    assert execute(monkeypatch, tmp_path) == 1
    rows = json.loads((tmp_path / "gpu" / "parts.json").read_text())
    assert [row["status"] for row in rows] == [gpu_checks.TIMED_OUT, 3, 0]
    assert (tmp_path / "gpu" / "slow.log").read_text() == "begun\n"
    assert (tmp_path / "gpu" / "good.log").read_text() == "cpu\n"


@pytest.mark.parametrize("name", list(gpu_checks.PARTS))
def test_files_of_parts_exist(name):
    files = [each for each in gpu_checks.PARTS[name].command if each.endswith(".py")]
    assert files
    assert all((gpu_checks.ROOT / file).is_file() for file in files)
