"""
Runs every snippet of the README and the documentation on tiny models and small data, unless the page gives a reason.

We have our own runner, because `pytest-markdown-docs` only runs Python, does not support reasons for skipping a snippet, and
pins an older `markdown-it-py` than `rich` needs.
"""

import os
import shutil
import sys
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pytest
from hub_client import loopback_hub
from snippets import PAGES, ROOT, PageRunner, Snippet, read_snippets, recipe_options
from workspace import make_workspace, upload_parts

from llm_asr.training.arguments import DataArguments, LlmAsrTrainingArguments, ModelArguments


SNIPPETS = {page: read_snippets(page) for page in PAGES}
EXECUTED = ("python", "bash", "yaml")
# Numbers of snippets that are not run, by reason. A new one must be added here on purpose.
NOT_RUN = {
    "installs packages": 6,
    "takes more than a minute": 20,
    "needs several GPUs": 3,
    "needs vLLM": 2,
    "needs the checkpoint of the demo": 5,
    "needs the parts that `make try` fetches": 2,
    "needs bitsandbytes": 1,
    "needs Docker": 1,
    "needs llama.cpp": 1,
    "needs a microphone": 2,
    "runs until it is stopped": 1,
}


def is_run(snippet: Snippet) -> bool:
    return snippet.language in EXECUTED and snippet.reason is None


@pytest.fixture(scope="module")
def hub(parts, tmp_path_factory):
    with loopback_hub(tmp_path_factory.mktemp("cache")) as server:
        upload_parts(server, parts)
        yield server


@pytest.fixture(scope="module")
def workspace(hub, parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("workspace")
    make_workspace(folder, parts)
    return folder


@pytest.fixture
def reader(hub, workspace, tmp_path, monkeypatch):
    """A reader in a separate workspace."""
    folder = tmp_path / "workspace"
    shutil.copytree(workspace, folder, symlinks=True)
    monkeypatch.chdir(folder)
    # The home folder gets the modules that a snippet loads from a checkpoint, and exports.
    monkeypatch.setenv("HOME", str(tmp_path))
    with PageRunner({"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}) as runner:
        yield runner


@pytest.mark.parametrize(
    "page",
    [page for page, snippets in SNIPPETS.items() if any(map(is_run, snippets))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_the_snippets_of_a_page_run(page, reader):
    for snippet in filter(is_run, SNIPPETS[page]):
        reader.run(snippet)


@pytest.mark.parametrize(
    ("snippet", "error"),
    [
        ("```python\nnumber = 1\nraise ValueError(number)\n```\n", ValueError),
        ("```bash\nllm-asr transcribe nowhere.wav --model my-model\n```\n", AssertionError),
        ("```bash\npython examples/plot_training.py nowhere\n```\n", ValueError),
        ("```bash\nls nowhere\n```\n", AssertionError),
    ],
)
def test_a_snippet_that_fails_is_detected(snippet, error, reader, tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n{snippet}")
    monkeypatch.setattr("snippets.ROOT", tmp_path)
    with pytest.raises(error) as raised:
        reader.run(*read_snippets(page))
    if snippet.startswith("```python"):
        assert (str(page), 5) in [(str(entry.path), entry.lineno + 1) for entry in raised.traceback]


def test_snippets_that_are_not_run_state_the_reason():
    reasons = Counter(snippet.reason for snippets in SNIPPETS.values() for snippet in snippets if snippet.reason)
    assert reasons == NOT_RUN


def test_no_snippet_has_an_unknown_language():
    languages = {snippet.language for snippets in SNIPPETS.values() for snippet in snippets}
    # A fence without a language, or with one of the following languages, shows output.
    assert languages <= {*EXECUTED, "", "text", "mermaid", "bibtex"}


def test_options_in_snippets_of_recipes_exist():
    known = {field.name for cls in (ModelArguments, DataArguments, LlmAsrTrainingArguments) for field in fields(cls)}
    recipes = [snippet for snippets in SNIPPETS.values() for snippet in snippets if snippet.language == "yaml"]
    assert recipes
    unknown = {str(snippet): recipe_options(snippet) - known - {"include"} for snippet in recipes}
    assert not {where: options for where, options in unknown.items() if options}
