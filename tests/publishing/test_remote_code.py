"""Published checkpoints with code: their contents, and that they work with and without the package."""

import ast
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pytest
from clean_environment import build_environment, closure
from tiny_models import compose
from transcribe_checkpoints import transcribe
from transformers import AutoConfig, AutoModel, AutoModelForSpeechSeq2Seq, AutoProcessor, pipeline
from transformers.dynamic_module_utils import get_imports, get_relative_import_files, get_relative_imports

import llm_asr
from llm_asr.modeling.configuration_projector import PROJECTOR_TYPES
from llm_asr.publishing.checkpoint_forms import save_checkpoint
from llm_asr.publishing.remote_code import write_remote_code
from llm_asr.training.lora import add_lora


SOURCE = Path(llm_asr.__file__).parent
SHIPPED = sorted(file for file in SOURCE.glob("*ing/*.py") if file.parent.name in ("modeling", "processing"))
SHIPPED = [file for file in SHIPPED if file.name != "__init__.py"]
ALLOWED = ["transformers", "torch", "peft"]


@pytest.fixture(scope="module")
def published(parts, tmp_path_factory):
    """Folders of published checkpoints by projector type, and a slim checkpoint with LoRA."""
    root = tmp_path_factory.mktemp("published")
    folders = {}
    for projector_type in PROJECTOR_TYPES:
        folders[projector_type] = root / projector_type
        for part in compose(parts, projector_type):
            part.save_pretrained(folders[projector_type])
        write_remote_code(folders[projector_type])
    folders["slim"] = root / "slim"
    model, processor = compose(parts, "moe_cif")
    save_checkpoint(add_lora(model, rank=2, init_lora_weights=False), processor, folders["slim"], form="slim")
    write_remote_code(folders["slim"])
    return folders


@pytest.fixture
def folder(published, tmp_path):
    """A separate copy of a published checkpoint."""
    return Path(shutil.copytree(published["moe_cif"], tmp_path / "checkpoint"))


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def edit(path: Path, **settings) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def test_the_code_equals_that_of_the_package_and_every_file_is_imported(folder):
    expected = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in SHIPPED}
    assert {name: value for name, value in hashes(folder).items() if name.endswith(".py")} == expected
    config = json.loads((folder / "config.json").read_text())
    processor_config = json.loads((folder / "processor_config.json").read_text())
    references = {
        **config["auto_map"],
        **processor_config["auto_map"],
        "pipeline": config["custom_pipelines"]["automatic-speech-recognition"]["impl"],
    }
    assert references == {
        "AutoConfig": "configuration_llm_asr.LlmAsrConfig",
        "AutoModel": "modeling_llm_asr.LlmAsrModel",
        "AutoModelForSpeechSeq2Seq": "modeling_llm_asr.LlmAsrForConditionalGeneration",
        "AutoProcessor": "processing_llm_asr.LlmAsrProcessor",
        "pipeline": "pipeline_llm_asr.LlmAsrPipeline",
    }
    reached = {f"{reference.split('.')[0]}.py" for reference in references.values()}
    for entry in sorted(reached):
        reached |= {Path(file).name for file in get_relative_import_files(folder / entry)}
    assert reached == set(expected)


def test_shipped_files_do_not_clash_when_flattened():
    assert len({file.name for file in SHIPPED}) == len(SHIPPED)


@functools.cache
def importable() -> set[str]:
    """Modules of the allowed distributions and their requirements."""
    allowed = {one.name for one in closure(ALLOWED)}
    return {module for module, names in packages_distributions().items() if allowed.intersection(names)}


def violations(file: Path) -> list[str]:
    """Imports that would fail in a checkpoint's folder with only Transformers, PyTorch and PEFT installed."""
    found = []
    relative = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            relative.add(node.module)
            if node.level > 1 or node.module is None or not (file.parent / f"{node.module}.py").is_file():
                found.append(ast.unparse(node))
    # Transformers must copy exactly the modules that Python imports.
    if set(get_relative_imports(file)) != relative:
        found.append(f"{sorted(get_relative_imports(file))} for {relative}")
    return found + sorted(set(get_imports(file)) - sys.stdlib_module_names - importable())


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_shipped_files_import_only_siblings_and_required_packages(file):
    assert violations(file) == []


@pytest.mark.parametrize(
    "line",
    [
        "import soundfile",
        "def read():\n    import soxr",
        "import llm_asr",
        "from llm_asr.modeling import cif",
        "from ..modeling.cif import quantity_loss",
        "from .modeling.cif import quantity_loss",
        "from . import cif",
        "from .absent import quantity_loss",
        '"""\nfrom .cif import quantity_loss\n"""',
    ],
)
def test_an_import_that_would_fail_is_detected(line, tmp_path):
    shutil.copy(SOURCE / "modeling/cif.py", tmp_path)
    (tmp_path / "importing.py").write_text(line)
    assert violations(tmp_path / "importing.py")


def test_writing_again_changes_nothing(folder):
    before = hashes(folder)
    names = write_remote_code(folder)
    assert hashes(folder) == before
    assert names == sorted(file.name for file in SHIPPED)


def test_code_of_another_version_is_replaced(folder):
    before = hashes(folder)
    (folder / "cif.py").write_text("raise RuntimeError('old')")
    edit(folder / "config.json", auto_map={"AutoConfig": "old.Config"}, custom_pipelines={"old": {"impl": "old.Old"}})
    edit(folder / "processor_config.json", auto_map={"AutoProcessor": "someone/old--processing.Old"})
    write_remote_code(folder)
    assert hashes(folder) == before


def test_links_are_replaced_and_not_followed(folder, tmp_path):
    """In the cache of the Hub, every file is a link to a shared file."""
    blobs = tmp_path / "blobs"
    folder.rename(blobs)
    (blobs / "cif.py").write_text("shared")
    folder.mkdir()
    for path in blobs.iterdir():
        (folder / path.name).symlink_to(path)
    before = hashes(blobs)
    write_remote_code(folder)
    assert hashes(blobs) == before
    assert (folder / "cif.py").read_bytes() == (SOURCE / "modeling/cif.py").read_bytes()


def test_published_files_have_no_local_paths(parts, tmp_path):
    model, processor = compose(parts, "moe_cif")
    model.config.text_config.name_or_path = "Qwen/Qwen2.5-0.5B"
    model.save_pretrained(tmp_path / "first")
    processor.save_pretrained(tmp_path / "first")
    # A loaded model records its folder.
    folder = tmp_path / "second"
    for auto_class in (AutoModelForSpeechSeq2Seq, AutoProcessor):
        auto_class.from_pretrained(tmp_path / "first").save_pretrained(folder)
    write_remote_code(folder)
    own = [os.fsencode(place) for place in (tmp_path, parts["whisper"], Path.cwd(), Path.home(), SOURCE, sys.prefix)]
    assert os.fsencode(parts["whisper"]) in (tmp_path / "first/config.json").read_bytes()
    for path in folder.iterdir():
        assert not [place for place in own if place in path.read_bytes()], path.name
    config = json.loads((folder / "config.json").read_text())
    assert config["text_config"]["_name_or_path"] == "Qwen/Qwen2.5-0.5B"


def test_parts_of_the_model_do_not_refer_to_other_code(folder):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["auto_map"] = {"AutoConfig": "someone/model--configuration.Config"}
    (folder / "config.json").write_text(json.dumps(config))
    write_remote_code(folder)
    assert "someone" not in (folder / "config.json").read_text()


def without(name):
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without("config.json"), "has no config.json"),
        (without("processor_config.json"), "has no processor_config.json"),
        (without("tokenizer_config.json"), "has no tokenizer_config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json .* is not JSON"),
        (lambda folder: edit(folder / "config.json", model_type="whisper"), "a model of type 'whisper'"),
        (lambda folder: (folder / "train.py").touch(), r"not from the package: \['train.py'\]"),
        (
            lambda folder: ((folder / "code").mkdir(), (folder / "code/cif.py").touch()),
            r"not from the package: \['code/cif.py'\]",
        ),
        (
            lambda folder: edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", None]}),
            r"tokenizer_config.json .* code of its own for \['AutoTokenizer'\]",
        ),
        (
            lambda folder: edit(folder / "tokenizer_config.json", auto_map=["own.Own", None]),
            r"tokenizer_config.json .* code of its own for \[None, 'own.Own'\]",
        ),
        (
            lambda folder: edit(
                folder / "processor_config.json",
                feature_extractor={"auto_map": {"AutoFeatureExtractor": "own.Own"}},
            ),
            r"processor_config.json .* code of its own for \['AutoFeatureExtractor'\]",
        ),
    ],
)
def test_an_unsuitable_folder_is_refused_and_not_changed(folder, spoil, message):
    (folder / "cif.py").write_text("old")
    spoil(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=message):
        write_remote_code(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def remote_modules() -> list[str]:
    return [name for name in sys.modules if name.startswith("transformers_modules.") and "llm_asr" in name]


@pytest.mark.parametrize("trust_remote_code", [None, False, True])
def test_an_installed_package_takes_precedence_over_remote_code(folder, recordings, trust_remote_code):
    """Neither `trust_remote_code` nor the contents of the checkpoint's code matter."""
    trusted = {} if trust_remote_code is None else {"trust_remote_code": trust_remote_code}
    for path in folder.glob("*.py"):
        path.write_text("raise RuntimeError('the code of the checkpoint was run')")
    # Other tests load remote code into this process.
    before = remote_modules()
    for auto_class, expected in (
        (AutoConfig, llm_asr.LlmAsrConfig),
        (AutoModel, llm_asr.LlmAsrModel),
        (AutoModelForSpeechSeq2Seq, llm_asr.LlmAsrForConditionalGeneration),
        (AutoProcessor, llm_asr.LlmAsrProcessor),
    ):
        assert type(auto_class.from_pretrained(folder, **trusted)) is expected
    transcriber = pipeline("automatic-speech-recognition", model=str(folder), **trusted)
    assert type(transcriber) is llm_asr.LlmAsrPipeline
    assert type(transcriber.processor) is llm_asr.LlmAsrProcessor
    assert transcriber(recordings[1], max_new_tokens=8).keys() == {"text", "language", "languages"}
    assert remote_modules() == before


@pytest.mark.parametrize("reference", ["evil.Evil", "someone/else--evil.Evil", "../evil.Evil", "code/evil.Evil"])
def test_other_code_of_a_checkpoint_is_not_run(folder, reference):
    (folder / "code").mkdir()
    for place in (folder, folder.parent, folder / "code"):
        (place / "evil.py").write_text("raise RuntimeError('the code of the checkpoint was run')")
    classes = ("AutoConfig", "AutoModel", "AutoModelForSpeechSeq2Seq", "AutoProcessor", "AutoTokenizer")
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        edit(folder / name, auto_map=dict.fromkeys(classes, reference))
    edit(
        folder / "config.json",
        custom_pipelines={"automatic-speech-recognition": {"impl": reference, "pt": ["AutoModelForSpeechSeq2Seq"]}},
    )
    transcriber = pipeline("automatic-speech-recognition", model=str(folder))
    used = (transcriber, transcriber.model, transcriber.processor, transcriber.model.config)
    assert all(type(one).__module__.startswith("llm_asr.") for one in used)


def put_in_hub_cache(cache: Path, repo_id: str, revisions: dict[str, Path]) -> None:
    """Write revisions of a repository to the cache, as a download would."""
    repository = cache / f"models--{repo_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    for revision, folder in revisions.items():
        commit = hashlib.sha1(revision.encode()).hexdigest()
        (repository / "refs" / revision).write_text(commit)
        shutil.copytree(folder, repository / "snapshots" / commit)


def test_a_revision_applies_to_every_part(published, folder, tmp_path, monkeypatch):
    edit(folder / "processor_config.json", transcription_template="{{ audio_token }} Later.")
    edit(folder / "config.json", encoder_padding="max_length")
    put_in_hub_cache(tmp_path / "hub", "someone/asr", {"main": folder, "v1": published["moe_cif"]})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    transcriber = pipeline("automatic-speech-recognition", "someone/asr", revision="v1")
    assert transcriber.model.config.encoder_padding == "longest"
    assert "Later" not in transcriber.processor.transcription_template


@pytest.fixture(scope="module")
def clean_python(tmp_path_factory):
    """An interpreter with only Transformers, PyTorch and PEFT."""
    return build_environment(tmp_path_factory.mktemp("clean"), ALLOWED)


def run_python(interpreter: str, *arguments, tmp_path: Path) -> subprocess.CompletedProcess:
    """Run Python in isolated mode, without PYTHONPATH and the user's packages, and with a separate cache for remote code."""
    environment = {
        **os.environ,
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    run = subprocess.run(
        [interpreter, "-I", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    return run


@pytest.mark.slow
def test_outputs_are_equal_with_and_without_the_package(published, recordings, clean_python, tmp_path):
    recordings = recordings[1:]
    (tmp_path / "with").mkdir()
    for name, folder in published.items():
        transcribe(str(folder), recordings, tmp_path / "with" / name)

    broken = Path(shutil.copytree(published["moe_cif"], tmp_path / "broken"))
    for path in broken.iterdir():
        path.write_text("not this revision")
    put_in_hub_cache(tmp_path / "hub", "someone/asr", {"main": broken, "v1": published["moe_cif"]})
    output = tmp_path / "without"
    output.mkdir()
    np.savez(tmp_path / "recordings.npz", *recordings)
    script = Path(__file__).with_name("transcribe_checkpoints.py")
    checkpoints = [*map(str, published.values()), "someone/asr@v1"]
    run = run_python(clean_python, script, tmp_path / "recordings.npz", output, *checkpoints, tmp_path=tmp_path)

    report = json.loads((output / "report.json").read_text())
    assert report["found"] == []
    assert "trust_remote_code=True" in report["untrusted"]
    assert "Do you wish to run the custom code?" not in run.stdout
    for modules in report["modules"]:
        assert set(modules) == {
            "LlmAsrConfig",
            "LlmAsrForConditionalGeneration",
            "LlmAsrModel",
            "LlmAsrPipeline",
            "LlmAsrProcessor",
        }
        assert all(module.startswith("transformers_modules.") for module in modules.values())
    for name in (*published, "hub"):
        for file in ("tensors.safetensors", "texts.json"):
            expected = tmp_path / "with" / ("moe_cif" if name == "hub" else name) / file
            assert (output / name / file).read_bytes() == expected.read_bytes(), (name, file)
    assert "soundfile" in report["file"]
    assert "soxr" in report["rate"]
    # A checkpoint that is saved again has the code of its classes, but not of the pipeline.
    assert report["again"] == "AutomaticSpeechRecognitionPipeline"


@pytest.mark.slow
def test_the_package_takes_over_from_remote_code_when_it_is_imported(folder, recordings, tmp_path):
    np.savez(tmp_path / "recordings.npz", recordings[1])
    script = Path(__file__).with_name("import_later.py")
    run = run_python(sys.executable, script, folder, tmp_path / "recordings.npz", tmp_path=tmp_path)
    before, after = json.loads(run.stdout.splitlines()[-1])
    assert before["modules"] == ["transformers_modules"] * 3
    assert after["modules"] == ["llm_asr"] * 3
    assert before["result"] == after["result"]
