"""The documentation site, and the README's links to it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
REPOSITORY = re.compile(
    r"https://(?:github\.com/llm-asr/llm-asr/(?:blob|tree)|raw\.githubusercontent\.com/llm-asr/llm-asr)/main/([^)#\s]*)"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Builds the site as `make docs` does."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_no_link_anchor_or_docstring_of_the_site_is_broken(site):
    """A broken one gives a warning, and a strict build fails with a warning."""
    assert (site / "index.html").is_file()


def test_the_reference_shows_types_and_no_markup_of_docstrings(site):
    pages = {page.parent.name: page.read_text(encoding="utf-8") for page in site.glob("api/*/index.html")}
    assert 'id="llm_asr.training.lora.add_lora"' in pages["training"]
    # Types are in the table of arguments, without the markup of the docstring.
    assert "*optional*" not in "".join(pages.values())
    assert not re.search(r"\[<code>[\w.]+</code>\]", "".join(pages.values()))


@pytest.mark.parametrize(
    "page", sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")]), ids=lambda page: page.name
)
def test_links_into_the_repository_refer_to_existing_files(page):
    text = page.read_text(encoding="utf-8")
    assert [path for path in REPOSITORY.findall(text) if not (ROOT / path).exists()] == []


def test_the_readme_has_only_absolute_links():
    """PyPI also shows the README, and relative links do not work there."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert targets
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []
