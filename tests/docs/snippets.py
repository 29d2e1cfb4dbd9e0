"""Reads and runs the snippets of Markdown pages."""

import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from live_server import serve

from llm_asr.cli import main


ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"(?P<indent> *)```(?P<language>[\w-]*)(?: title=\"(?P<title>[^\"]+)\")?$")
MARKER = re.compile(r"<!-- not run: (?P<reason>.+) -->$")
ADDRESS_IN_PAGES = "localhost:8000"


@dataclass(frozen=True)
class Snippet:
    """
    A fenced block of code.

    Attributes:
        page (`Path`): Page of the snippet.
        line (`int`): Line of its fence, starting from one.
        language (`str`): Language of its fence; may be empty.
        code (`str`): Code without the fences.
        title (`str`, *optional*): Name of the file that the snippet shows.
        reason (`str`, *optional*): Reason for not running it, from the line above its fence.
    """

    page: Path
    line: int
    language: str
    code: str
    title: str | None
    reason: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def read_snippets(page: Path) -> list[Snippet]:
    """
    Read the snippets of a page.

    Raises:
        `ValueError`: If a fence is not closed or has an unknown form.
    """
    lines = iter(enumerate(page.read_text(encoding="utf-8").splitlines(), 1))
    snippets, previous = [], ""
    for number, line in lines:
        if line.lstrip().startswith("```"):
            opening = FENCE.match(line)
            if opening is None or opening["indent"]:
                raise ValueError(f"{page}:{number}: the fence {line!r} is not understood.")
            marker = MARKER.match(previous)
            code = "".join(f"{text}\n" for text in _until_fence(lines, f"{page}:{number}"))
            reason = marker["reason"] if marker else None
            snippets.append(Snippet(page, number, opening["language"], code, opening["title"], reason))
        previous = line
    return snippets


def _until_fence(lines: Iterator[tuple[int, str]], where: str) -> Iterator[str]:
    for _, line in lines:
        if line == "```":
            return
        yield line
    raise ValueError(f"{where}: the fence is not closed.")


class PageRunner:
    """
    Runs the snippets of a page in order, as a reader would, in the working directory. Python snippets share one namespace.
    `llm-asr` and `python FILE` run in this process, because each import of Transformers takes seconds. `bash` runs other
    commands. A YAML snippet with a title is written to the file of that name. `llm-asr serve` serves until the page ends, on a
    free port instead of 8000.
    """

    def __init__(self, environment: dict[str, str]):
        self.environment = environment
        self.namespace = {"__name__": "__main__"}
        self.address = None
        self.stack = ExitStack()

    def __enter__(self) -> "PageRunner":
        return self

    def __exit__(self, *error) -> None:
        self.stack.close()

    def run(self, snippet: Snippet) -> None:
        if snippet.language == "python":
            self._run_python(snippet)
        elif snippet.language == "bash":
            for command in split_commands(self._with_address(snippet.code)):
                self._run_command(command, snippet)
        elif snippet.title is not None:
            Path(snippet.title).write_text(snippet.code, encoding="utf-8")

    def _with_address(self, code: str) -> str:
        return (
            code
            if self.address is None
            else code.replace(f"http://{ADDRESS_IN_PAGES}", self.address).replace(ADDRESS_IN_PAGES, self.address)
        )

    def _run_python(self, snippet: Snippet) -> None:
        # Empty lines make tracebacks name the line of the page.
        code = "\n" * snippet.line + self._with_address(snippet.code)
        exec(compile(code, str(snippet.page), "exec"), self.namespace)

    def _run_command(self, command: str, snippet: Snippet) -> None:
        words = shlex.split(command, comments=True)
        if words[:2] == ["llm-asr", "serve"]:
            self.address = self.stack.enter_context(serve(words[2], "exports", *words[3:]))
        elif words[0] == "llm-asr":
            status = exit_status(lambda: main(words[1:]))
            assert status == 0, f"{snippet}: {command!r} ended with status {status}."
        elif words[0] == "python" and words[1].endswith(".py"):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", words[1:])
                status = exit_status(lambda: runpy.run_path(words[1], run_name="__main__") and None)
            assert status == 0, f"{snippet}: {command!r} ended with status {status}."
        else:
            ended = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", command],
                env={**os.environ, **self.environment},
                capture_output=True,
                text=True,
                check=False,
            )
            assert ended.returncode == 0, f"{snippet}: {command!r}: {ended.stdout}{ended.stderr}"
            # curl succeeds with any answer, so check for an error.
            assert '"error"' not in ended.stdout, f"{snippet}: {command!r}: {ended.stdout}"


def exit_status(run) -> int:
    """The exit status of the program that `run` stands for."""
    try:
        return run() or 0
    except SystemExit as end:
        return end.code or 0


def split_commands(code: str) -> list[str]:
    """Split a shell snippet into commands: join continued lines, and remove comments."""
    lines = code.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def recipe_options(snippet: Snippet) -> set[str]:
    """Names of the options in a YAML snippet."""
    options = yaml.safe_load(snippet.code)
    assert isinstance(options, dict), f"{snippet} must hold options with their values."
    return set(options)
