"""Atomic writing: files exist only when they are complete, and other files do not change."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llm_asr import atomic_writing
from llm_asr.atomic_writing import ABANDONED_S, atomic_folder, atomic_path, write_text


@pytest.fixture(autouse=True)
def new_process(monkeypatch):
    """Simulates a process that has not searched any folder for leftovers."""
    monkeypatch.setattr(atomic_writing, "_cleaned", set())


def make_old(path: Path) -> None:
    moment = path.stat().st_mtime - 2 * ABANDONED_S
    os.utime(path, (moment, moment))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_appears_only_when_it_is_complete(tmp_path):
    path = tmp_path / "more" / "one.txt"
    with atomic_path(path) as partial:
        partial.write_text("half")
        assert not path.exists()
    assert path.read_text() == "half"
    with pytest.raises(ZeroDivisionError), atomic_path(path) as partial:
        partial.write_text(str(1 / 0))
    assert path.read_text() == "half"
    assert list(path.parent.iterdir()) == [path]


def test_permissions_are_the_defaults_of_a_new_file(tmp_path):
    write_text(tmp_path / "one.txt", "ñ")
    (tmp_path / "two.txt").write_text("ñ")
    assert (tmp_path / "one.txt").stat().st_mode == (tmp_path / "two.txt").stat().st_mode
    assert (tmp_path / "one.txt").read_bytes() == "ñ".encode()


def test_links_are_not_written_through(tmp_path):
    """An attacker may guess the name of an unfinished file and create a link with this name."""
    secret = tmp_path / "secret.txt"
    secret.write_text("mine")
    out = tmp_path / "out"
    out.mkdir()
    for name in ("one.txt.partial", "one.partial", f"one.{os.getpid()}.tmp", "one.txt.tmp", "one.txt"):
        (out / name).symlink_to(secret)
    write_text(out / "one.txt", "transcript")
    assert secret.read_text() == "mine"
    assert not (out / "one.txt").is_symlink()


def test_a_folder_is_not_replaced(tmp_path):
    (tmp_path / "one.txt").mkdir()
    with pytest.raises(IsADirectoryError, match="one.txt' is a folder"):
        write_text(tmp_path / "one.txt", "text")


def test_a_folder_appears_only_when_it_is_complete(tmp_path):
    path = tmp_path / "more" / "model"
    with atomic_folder(path) as partial:
        (partial / "config.json").write_text("{}")
        assert not path.exists()
    assert names(path) == {"config.json"}
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "other") as partial:
        (partial / "config.json").write_text(str(1 / 0))
    assert names(tmp_path) == {"more"}


KILLED = """
import os, signal, sys
from llm_asr.atomic_writing import atomic_folder, atomic_path
with atomic_folder(sys.argv[1] + "/model") as folder, atomic_path(sys.argv[1] + "/one.txt") as file:
    (folder / "half").write_text("half")
    file.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    leftovers = list(tmp_path.iterdir())
    assert len(leftovers) == 2
    write_text(tmp_path / "two.txt", "whole")
    # A new file may belong to another machine, whose lock is not visible here.
    assert names(tmp_path) == {"two.txt", *(path.name for path in leftovers)}
    for path in leftovers:
        make_old(path)
    atomic_writing._cleaned.clear()
    write_text(tmp_path / "two.txt", "whole")
    assert names(tmp_path) == {"two.txt"}


def test_files_of_a_running_process_are_kept(tmp_path):
    with atomic_folder(tmp_path / "model") as folder, atomic_path(tmp_path / "one.txt") as file:
        for path in (folder, file):
            make_old(path)
        atomic_writing._cleaned.clear()
        write_text(tmp_path / "two.txt", "whole")
        assert folder.is_dir()
        assert file.is_file()
    assert names(tmp_path) == {"model", "one.txt", "two.txt"}


def test_files_of_users_are_kept(tmp_path):
    for name in (".model.partial", "model.0123456789abcdef.partial", ".model.bak", ".model.0123.partial"):
        (tmp_path / name).write_text("mine")
        make_old(tmp_path / name)
    before = names(tmp_path)
    write_text(tmp_path / "one.txt", "text")
    assert names(tmp_path) == {*before, "one.txt"}


def test_the_longest_name_that_the_system_allows_is_accepted(tmp_path):
    name = "การ" * 27 + ".txt"
    write_text(tmp_path / name, "text")
    assert names(tmp_path) == {name}
