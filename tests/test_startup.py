"""Modules that are imported at startup."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


PROGRAM = Path(sys.executable).with_name("llm-asr")
# Packages that take seconds to import, or that no command needs for parsing its arguments.
SLOW = {"torch", "transformers", "datasets", "pandas", "peft", "scipy", "matplotlib", "accelerate"}


def run_and_list_modules(*arguments):
    """Run a program, and return its exit status, its output and the imported packages."""
    code = (
        "import atexit, json, sys\n"
        "atexit.register(lambda: print('MODULES', json.dumps(sorted(sys.modules)), file=sys.stderr))\n"
        f"sys.argv = ['llm-asr', *{list(arguments)!r}]\n"
        "from llm_asr.cli import main\n"
        "sys.exit(main())"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    printed, _, modules = ended.stderr.partition("MODULES")
    return ended.returncode, ended.stdout + printed, set(json.loads(modules))


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--help"], 0, "usage: llm-asr"),
        (["transcribe", "--help"], 0, "--timestamps"),
        (["listen", "--help"], 0, "--pcm-rate"),
        (["listen", "--model", "nowhere", "--pcm-rate", "8000"], 2, "--pcm-rate is for a pipe"),
        (["align", "--help"], 0, "--text-file"),
        (["align", "nowhere.wav", "uno", "--model", "nowhere"], 2, "'nowhere.wav' is not a file"),
        (["serve", "--help"], 0, "--cors-origins"),
        (["push", "--help"], 0, "--dry-run"),
        (["inspect", "--help"], 0, "--json"),
        (["card", "--help"], 0, "--license-of"),
        (["export", "--help"], 0, "--dtype"),
        (["trim-vocabulary", "--help"], 0, "--text-column"),
        (["trim-vocabulary", "nowhere", "nowhere.txt", "--output", "out"], 2, "'nowhere.txt' cannot be read"),
        (["leaderboard", "--help"], 0, "--sources"),
        ([], 2, "the following arguments are required"),
        (["transcribe"], 2, "the following arguments are required"),
        (["transcribe", "nowhere.wav", "--model", "nowhere"], 2, "'nowhere.wav' is not a file"),
        (["inspect", "nowhere"], 2, "'nowhere' is not a folder"),
        (["push", "nowhere", "someone/asr"], 2, "'nowhere' is not a folder"),
        (["card", "nowhere"], 2, "'nowhere' is not a folder"),
        (["serve", "nowhere", "--port", "99999"], 2, "'99999' is not a port"),
        (["serve", "nowhere", "--engine-args", "[1]"], 2, "must be a JSON object"),
        (
            ["serve", "nowhere", "--engine", "transformers", "--max-upload-mb", "inf"],
            2,
            "--max-upload-mb must be positive",
        ),
        (
            ["serve", "nowhere", "--engine", "transformers", "--drain-s", "inf"],
            2,
            "--drain-s must be positive and finite",
        ),
        (
            ["serve", "nowhere", "--engine", "transformers", "--max-requests", "0"],
            2,
            "--max-requests must be at least 1",
        ),
    ],
)
def test_the_command_line_answers_before_it_imports_pytorch(arguments, status, message):
    returned, printed, modules = run_and_list_modules(*arguments)
    assert returned == status, printed
    assert message in " ".join(printed.replace("`", "").split())
    assert not SLOW & modules
    assert "Traceback" not in printed


@pytest.mark.parametrize("command", [[str(PROGRAM)], [sys.executable, "-m", "llm_asr"]])
def test_both_entry_points_start_the_command_line(command):
    """The installed script and the module both work."""
    ended = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    assert ended.stdout.startswith("usage: llm-asr")
    modules = subprocess.run(
        [sys.executable, "-X", "importtime", *(command[1:] or command), "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    assert "torch" not in {line.rpartition("|")[2].strip() for line in modules.splitlines()}


def imported_by(code):
    code += "\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(ended.stdout))


def test_importing_the_package_loads_only_its_transformers_classes():
    needed = imported_by(
        "from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor, AutomaticSpeechRecognitionPipeline\n"
        "from transformers import PreTrainedModel, ProcessorMixin, WhisperModel, WhisperFeatureExtractor\n"
        "from transformers.generation import GenerationMixin"
    )
    imported = imported_by("import llm_asr; llm_asr.LlmAsrPipeline")
    slow = {"transformers.trainer", "datasets", "pandas", "peft", "scipy", "matplotlib", "sklearn", "pyarrow", "httpx"}
    assert slow & imported <= slow & needed


def test_every_public_name_is_available_to_commands():
    code = (
        "import sys; sys.argv = ['llm-asr']; import llm_asr; assert 'torch' not in sys.modules\n"
        "assert all(hasattr(llm_asr, name) for name in llm_asr.__all__)\n"
        "from transformers import AutoConfig; assert AutoConfig.for_model('llm_asr').__class__ is llm_asr.LlmAsrConfig"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
