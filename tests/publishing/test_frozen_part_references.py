"""References of slim checkpoints and adapters to frozen parts in folders and on the Hub."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from same_models import check_same, check_same_weights, randomize
from tiny_models import compose
from transformers import AutoModelForSpeechSeq2Seq, pipeline

from llm_asr import LlmAsrForConditionalGeneration
from llm_asr.publishing.checkpoint_forms import save_checkpoint
from llm_asr.training.lora import add_lora


def put_in_hub_cache(cache: Path, repo_id: str, revisions: dict[str, Path]) -> dict[str, str]:
    """Write revisions of a repository to the cache, as a download would, and return their commits."""
    repository = cache / f"models--{repo_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    commits = {}
    for revision, folder in revisions.items():
        commits[revision] = hashlib.sha1(f"{repo_id} {revision}".encode()).hexdigest()
        (repository / "refs" / revision).write_text(commits[revision])
        shutil.copytree(folder, repository / "snapshots" / commits[revision])
    return commits


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def movable(parts, tmp_path):
    """Copies of frozen parts, and a slim checkpoint that refers to them."""
    here = {name: str(shutil.copytree(parts[name], tmp_path / name)) for name in ("whisper", "qwen2")}
    model, processor = compose(here, "moe_cif")
    save_checkpoint(randomize(model), processor, tmp_path / "slim", form="slim")
    return tmp_path


def test_moved_parts_are_named_and_found_by_backbone_paths(movable, recordings):
    expected = LlmAsrForConditionalGeneration.from_pretrained(movable / "slim")
    (movable / "qwen2").rename(movable / "elsewhere")
    with pytest.raises(
        OSError, match=r'language_model .*qwen2\', which is not there; .*`backbone_paths=\{"language_model"'
    ):
        LlmAsrForConditionalGeneration.from_pretrained(movable / "slim")
    backbone_paths = {"language_model": movable / "elsewhere"}
    for auto_class in (LlmAsrForConditionalGeneration, AutoModelForSpeechSeq2Seq):
        loaded = auto_class.from_pretrained(movable / "slim", backbone_paths=backbone_paths)
        check_same_weights(expected, loaded)
    transcriber = pipeline(
        "automatic-speech-recognition", model=str(movable / "slim"), model_kwargs={"backbone_paths": backbone_paths}
    )
    check_same_weights(expected, transcriber.model)
    for wrong, message in (
        ({"text": movable}, r"`backbone_paths` has \['text'\]; its keys are among"),
        ({"language_model": movable / "absent"}, "absent', which is not a folder"),
    ):
        with pytest.raises(ValueError, match=message):
            LlmAsrForConditionalGeneration.from_pretrained(movable / "slim", backbone_paths=wrong)


def test_backbone_paths_are_refused_for_other_forms(saved, parts):
    _, _, root = saved["qwen2"]
    with pytest.raises(ValueError, match="`backbone_paths` is for slim checkpoints"):
        LlmAsrForConditionalGeneration.from_pretrained(root / "full", backbone_paths={"audio_tower": parts["whisper"]})
    # The base of this adapter is slim.
    LlmAsrForConditionalGeneration.from_pretrained(root / "adapter", backbone_paths={"audio_tower": parts["whisper"]})


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("moved", [False, True])
def test_a_part_that_has_changed_is_refused(movable, name, moved):
    path = movable / "qwen2" / name
    content = bytearray(path.read_bytes())
    content[-3 if name == "model.safetensors" else -1 :] = b"\0\0\0" if name == "model.safetensors" else b" "
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(content)
    options = {}
    if moved:
        (movable / "qwen2").rename(movable / "elsewhere")
        options["backbone_paths"] = {"language_model": str(movable / "elsewhere")}
    found = hashlib.sha256(content).hexdigest()
    with pytest.raises(
        ValueError, match=f"{name} .* expected SHA-256 {expected}, found {found}; the language_model must be"
    ):
        LlmAsrForConditionalGeneration.from_pretrained(movable / "slim", **options)


def test_parts_of_the_hub_are_pinned(parts, tmp_path, hub_cache):
    """The branch has changed since."""
    older = {name: str(shutil.copytree(parts[name], tmp_path / name)) for name in ("whisper", "qwen2")}
    newer = parts["qwen2-tied"]
    audio = put_in_hub_cache(hub_cache, "someone/audio", {"main": older["whisper"]})["main"]
    text = put_in_hub_cache(hub_cache, "someone/text", {"main": newer, "v1": older["qwen2"]})["v1"]
    model, processor = compose(older, "conv")
    options = {"backbones": {"audio_tower": "someone/audio", "language_model": "someone/text@v1"}}
    save_checkpoint(randomize(model), processor, tmp_path / "slim", form="slim", **options)
    for name in older:
        shutil.rmtree(older[name])
    loaded = LlmAsrForConditionalGeneration.from_pretrained(tmp_path / "slim")
    check_same_weights(model, loaded)
    references = loaded.config.backbones
    assert {name: (one["name_or_path"], one["revision"]) for name, one in references.items()} == {
        "audio_tower": ("someone/audio", audio),
        "language_model": ("someone/text", text),
    }
    # Saving the model again keeps the pinned commits.
    save_checkpoint(loaded, processor, tmp_path / "again", form="slim")
    assert json.loads((tmp_path / "again/config.json").read_text())["backbones"] == references
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "slim/model.safetensors").read_bytes()


def test_copies_of_parts_of_the_hub(parts, tmp_path, hub_cache):
    """A local copy is read without downloading the referenced repository."""
    model, processor = compose(parts, "conv")
    copies = {"audio_tower": parts["whisper"], "language_model": parts["qwen2"]}
    with pytest.raises(ValueError, match=r"a copy of 'someone/audio', is unknown"):
        save_checkpoint(
            model,
            processor,
            tmp_path / "slim",
            form="slim",
            backbones={"audio_tower": "someone/audio@main"},
            backbone_paths=copies,
        )
    commits = {"audio_tower": "a" * 40, "language_model": "b" * 40}
    save_checkpoint(
        model,
        processor,
        tmp_path / "slim",
        form="slim",
        backbones={part: f"someone/{part}@{commit}" for part, commit in commits.items()},
        backbone_paths=copies,
    )
    loaded = LlmAsrForConditionalGeneration.from_pretrained(tmp_path / "slim", backbone_paths=copies)
    check_same_weights(model, loaded)
    assert {part: reference["revision"] for part, reference in loaded.config.backbones.items()} == commits
    with pytest.raises(OSError, match="someone/audio_tower"):
        LlmAsrForConditionalGeneration.from_pretrained(tmp_path / "slim")


def test_an_adapter_refers_to_a_revision_of_its_base(saved, recordings, tmp_path, hub_cache):
    """The current state of the branch does not matter, with all ways of loading."""
    model, processor, root = saved["qwen2"]
    newer = saved["qwen2-tied"][2] / "full"
    commits = put_in_hub_cache(hub_cache, "someone/base", {"main": newer, "v1": root / "base"})
    save_checkpoint(model, processor, tmp_path / "adapter", form="adapter", base="someone/base@v1")
    settings = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["revision"]) == ("someone/base", commits["v1"])
    # By default an adapter refers to the loaded checkpoint.
    base = LlmAsrForConditionalGeneration.from_pretrained("someone/base", revision="v1")
    save_checkpoint(add_lora(base, rank=2), processor, tmp_path / "other", form="adapter")
    others = json.loads((tmp_path / "other/adapter_config.json").read_text())
    assert (others["base_model_name_or_path"], others["revision"]) == ("someone/base", commits["v1"])
    put_in_hub_cache(hub_cache, "someone/adapter", {"main": newer, "v2": tmp_path / "adapter"})
    for name, options in ((tmp_path / "adapter", {}), ("someone/adapter", {"revision": "v2"})):
        loaded = LlmAsrForConditionalGeneration.from_pretrained(name, **options)
        check_same(model, loaded, processor, recordings)
    check_same(model, AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "adapter"), processor, recordings)
    transcriber = pipeline("automatic-speech-recognition", model=str(tmp_path / "adapter"))
    check_same(model, transcriber.model, processor, recordings)


def test_a_slim_checkpoint_of_the_hub(saved, hub_cache):
    _, _, root = saved["qwen2"]
    newer = root / "full"
    put_in_hub_cache(hub_cache, "someone/asr", {"main": newer, "v1": root / "slim"})
    expected = LlmAsrForConditionalGeneration.from_pretrained(root / "slim")
    transcriber = pipeline("automatic-speech-recognition", "someone/asr", revision="v1")
    check_same_weights(expected, transcriber.model)
    assert transcriber.model.config.backbones is not None
    assert LlmAsrForConditionalGeneration.from_pretrained("someone/asr").config.backbones is None
