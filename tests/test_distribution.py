"""The source distribution and the wheel, built as a release builds them, and the wheel in an environment of its own."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import llm_asr


ROOT = Path(__file__).parents[1]
README_TEST = f"{ROOT}/tests/docs/test_snippets.py::test_the_snippets_of_a_page_run[README.md]"
# Anything but an address or a place on the same page.
RELATIVE_LINK = re.compile(r"""(?:\]\(|\b(?:src|href)=["'])(?!https://|mailto:|#)([^)"'\s]+)""")
# What setuptools writes itself, and the files that metadata and the build read.
SDIST_FILES = {"CHANGELOG.md", "LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}


def run(*command, **options) -> str:
    # The environment's packages alone: no `PYTHONPATH` that leads to the checkout.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, env=environment, **options
    )
    assert ended.returncode == 0, f"{command}: {ended.stdout[-6000:]}{ended.stderr[-6000:]}"
    return ended.stdout


def checkout_files() -> list[str]:
    """Paths of the files that a clone would hold."""
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def package_files() -> set[str]:
    return {name.removeprefix("src/") for name in checkout_files() if name.startswith("src/llm_asr/")}


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """Folder of the two distributions of a copy of the checkout, which stays without build folders."""
    folder = tmp_path_factory.mktemp("distributions")
    for name in checkout_files():
        copy = folder / "checkout" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy)
    # Isolation would fetch setuptools from the network.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "checkout", cwd=folder)
    return folder / "dist"


@pytest.fixture(scope="module")
def wheel(distributions):
    return distributions / f"llm_asr-{llm_asr.__version__}-py3-none-any.whl"


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """
    A virtual environment with the wheel. Its dependencies are the packages of this environment, without the editable
    install, because Python does not read the `.pth` files of a folder that a `.pth` file adds.
    """
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin/python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return folder


def test_twine_accepts_the_distributions(distributions):
    files = sorted(distributions.iterdir())
    assert len(files) == 2
    run(sys.executable, "-m", "twine", "check", "--strict", *files)


def test_the_sdist_contains_only_the_package_and_its_metadata(distributions):
    with tarfile.open(distributions / f"llm_asr-{llm_asr.__version__}.tar.gz") as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    names = {name for name in names if ".egg-info/" not in name}
    assert names == SDIST_FILES | {f"src/{name}" for name in package_files()}


def test_the_wheel_contains_only_the_package(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert "llm_asr/py.typed" in names
    assert names == package_files()


@pytest.mark.slow
def test_the_wheel_runs_the_readme(environment, tmp_path):
    python = environment / "bin/python"
    module = run(python, "-c", "import llm_asr; print(llm_asr.__file__)", cwd=tmp_path).strip()
    assert Path(module).is_relative_to(environment)
    assert "transcribe" in run(environment / "bin/llm-asr", "--help", cwd=tmp_path)
    options = ("-q", "-p", "no:cacheprovider", "-o", "addopts=", "-c", ROOT / "setup.cfg", "--rootdir", ROOT)
    assert "1 passed" in run(python, "-m", "pytest", *options, README_TEST, cwd=tmp_path)


def test_links_of_the_readme_work_on_pypi():
    assert RELATIVE_LINK.findall("[a](docs/b.md) <img src='c.png'> [d](https://e) [f](#g)") == ["docs/b.md", "c.png"]
    assert RELATIVE_LINK.findall((ROOT / "README.md").read_text()) == []


def test_the_newest_version_of_the_changelog_equals_the_package_version():
    versions = re.findall(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert versions[0] == llm_asr.__version__
