"""Pushing checkpoints with the real Hub client to a server on loopback, over HTTP."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from peft import PeftModel
from tiny_models import compose
from transformers import AutoModelForSpeechSeq2Seq, pipeline

from llm_asr import LlmAsrForConditionalGeneration, LlmAsrProcessor
from llm_asr.cli import main
from llm_asr.publishing import push
from llm_asr.publishing.checkpoint_forms import save_checkpoint
from llm_asr.publishing.push import push_checkpoint, push_to_hub
from llm_asr.publishing.remote_code import REMOTE_CODE
from llm_asr.training.lora import add_lora


REPO = "someone/asr"


@pytest.fixture(scope="module")
def saved(parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "run"
    model, processor = compose(parts, "moe_cif")
    model.save_pretrained(folder, max_shard_size="100kB")
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """The output folder of a training run: a checkpoint in at least two shards, and other files."""
    folder = Path(shutil.copytree(saved, tmp_path / "run"))
    (folder / "training_args.bin").write_bytes(b"\x80pickled")
    (folder / "checkpoint-5").mkdir()
    for name in ("checkpoint-5/model.safetensors", "trainer_state.json.tmp", "notes.json", "model-old.safetensors"):
        (folder / name).write_bytes(b"\0" * 9)
    return folder


def content(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def without_record(found: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in found.items() if not name.startswith(".cache")}


def edit(path: Path, **settings) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def test_one_commit_contains_exactly_the_checkpoint(hub, folder):
    before = content(folder)
    report = push_checkpoint(folder, REPO)
    files = hub.files(REPO)
    shards = {path.name for path in folder.glob("model-0*.safetensors")}
    assert len(shards) > 1
    assert set(files) - {".gitattributes"} == {
        *shards,
        *REMOTE_CODE,
        "model.safetensors.index.json",
        "config.json",
        "generation_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "SHA256SUMS",
        "README.md",
    }
    for name in shards:
        assert files[name] == (folder / name).read_bytes()
    for name, source in REMOTE_CODE.items():
        assert files[name] == source.read_bytes()
    assert b"pipeline_tag: automatic-speech-recognition" in files["README.md"]
    assert hub.history(REPO) == ["Upload full checkpoint", "initial commit"]
    assert report.commit.oid == hub.head(REPO)
    assert without_record(content(folder)) == before


@pytest.mark.slow
def test_a_checkpoint_loaded_by_revision_gives_the_same_transcripts(hub, folder, recordings, tmp_path):
    expected = []
    commits = []
    for seed in (1, 2):
        model = LlmAsrForConditionalGeneration.from_pretrained(folder)
        processor = LlmAsrProcessor.from_pretrained(folder)
        torch.manual_seed(seed)
        torch.nn.init.normal_(model.model.projector.get_parameter(next(iter(model.model.projector.state_dict()))))
        model.save_pretrained(folder)
        commits.append(push_checkpoint(folder, REPO).commit.oid)
        inputs = processor.apply_transcription_request([recordings[1]])
        transcriber = pipeline("automatic-speech-recognition", model=str(folder))
        expected.append(
            {
                "tokens": model.generate(**inputs, max_new_tokens=8).tolist(),
                "text": transcriber(recordings[1], max_new_tokens=8)["text"],
            }
        )
    assert expected[0] != expected[1]
    np.savez(tmp_path / "recording.npz", recordings[1])
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "home"),
        "OMP_NUM_THREADS": "1",
    }
    script = Path(__file__).with_name("load_from_hub.py")
    places = [f"{REPO}@{revision}" for revision in (commits[0], "main")]
    command = [sys.executable, str(script), str(tmp_path / "recording.npz"), *places]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1]) == expected


def test_an_update_uploads_only_changed_files(hub, folder):
    push_checkpoint(folder, REPO)
    uploaded = hub.count("PUT")
    edit(folder / "processor_config.json", transcription_template="{{ audio_token }} Anew.")
    report = push_checkpoint(folder, REPO, commit_message="Another prompt")
    assert set(report.uploads) == {"processor_config.json"}
    assert hub.count("PUT") == uploaded
    assert b"Anew" in hub.files(REPO)["processor_config.json"]
    assert hub.history(REPO) == ["Another prompt", "Upload full checkpoint", "initial commit"]
    head = hub.head(REPO)
    report = push_checkpoint(folder, REPO)
    assert report.commit.oid == head == hub.head(REPO)
    assert "0 files, 0 B" in str(report)


def push_from_elsewhere(repo_id: str, saved: Path, tmp_path: Path) -> None:
    """Push as another person with the newest commit would."""
    folder = tmp_path / "elsewhere"
    snapshot_download(repo_id, local_dir=folder)
    edit(folder / "generation_config.json", max_new_tokens=3)
    push_checkpoint(folder, repo_id, commit_message="From elsewhere")


def test_a_newer_remote_is_not_overwritten(hub, folder, saved, tmp_path):
    push_checkpoint(folder, REPO)
    # This also tests that a downloaded checkpoint may be pushed.
    push_from_elsewhere(REPO, saved, tmp_path)
    head = hub.head(REPO)
    edit(folder / "generation_config.json", max_new_tokens=5)
    before = content(folder)
    for options in ({}, {"dry_run": True}, {"parent_commit": "0" * 40}):
        with pytest.raises(ValueError, match=f"not based on {head}, .* would replace generation_config.json"):
            push_checkpoint(folder, REPO, **options)
    assert hub.head(REPO) == head
    assert content(folder) == before
    push_checkpoint(folder, REPO, parent_commit=head)
    assert json.loads(hub.files(REPO)["generation_config.json"])["max_new_tokens"] == 5
    assert hub.history(REPO)[1] == "From elsewhere"


def test_force_overwrites_and_keeps_the_history(hub, folder, saved, tmp_path):
    push_checkpoint(folder, REPO)
    push_from_elsewhere(REPO, saved, tmp_path)
    edit(folder / "generation_config.json", max_new_tokens=5)
    push_checkpoint(folder, REPO, force=True)
    assert json.loads(hub.files(REPO)["generation_config.json"])["max_new_tokens"] == 5
    assert "From elsewhere" in hub.history(REPO)


def test_a_folder_of_other_origin_is_not_pushed_over_a_checkpoint(hub, folder, parts, tmp_path):
    push_checkpoint(folder, REPO)
    head = hub.head(REPO)
    save_checkpoint(*compose(parts, "conv"), tmp_path / "other")
    with pytest.raises(ValueError, match=r"This checkpoint is not based on .* would replace .*\d+ others"):
        push_checkpoint(tmp_path / "other", REPO)
    assert hub.head(REPO) == head


def test_a_repository_without_a_checkpoint_keeps_its_files(hub, folder):
    api = HfApi()
    api.create_repo(REPO)
    api.upload_file(path_or_fileobj=b"mine", path_in_repo="notes.txt", repo_id=REPO)
    push_checkpoint(folder, REPO)
    assert hub.files(REPO)["notes.txt"] == b"mine"
    assert "config.json" in hub.files(REPO)


def test_a_commit_made_in_the_meantime_is_not_overwritten(hub, folder, monkeypatch):
    push_checkpoint(folder, REPO)
    edit(folder / "generation_config.json", max_new_tokens=5)

    def list_files(api, repo_id, commit):
        found = original(api, repo_id, commit)
        api.upload_file(path_or_fileobj=b"mine", path_in_repo="notes.txt", repo_id=repo_id)
        return found

    original = push._list_files
    monkeypatch.setattr(push, "_list_files", list_files)
    with pytest.raises(ValueError, match="Somebody has pushed to someone/asr, branch main, meanwhile"):
        push_checkpoint(folder, REPO)
    assert hub.history(REPO)[0] == "Upload notes.txt with huggingface_hub"


def test_a_dry_run_lists_the_upload_and_changes_nothing(hub, folder, capsys):
    before = content(folder)
    assert main(["push", str(folder), REPO, "--dry-run"]) == 0
    assert {method for method, _ in hub.requests} == {"GET"}
    assert hub.repositories == {}
    assert content(folder) == before
    printed = capsys.readouterr().out
    told = push_checkpoint(folder, REPO, dry_run=True)
    assert printed == f"{told}\n"
    done = push_checkpoint(folder, REPO)
    assert done.uploads == told.uploads
    assert {name for name, (_, large) in done.uploads.items() if large} == {
        name for name, file in hub.repositories[REPO].find("main").files.items() if file.sha256
    }
    for name, (size, _) in done.uploads.items():
        assert len(hub.files(REPO)[name]) == size
    largest = max((folder / name).stat().st_size for name in done.uploads if (folder / name).exists())
    assert f"LFS {largest / 1000:>7.1f} kB" in printed
    assert "Would push to someone/asr, branch main, a new repository:" in printed


def test_an_interrupted_upload_is_continued(hub, folder, capsys):
    push_checkpoint(folder, REPO)
    head = hub.head(REPO)
    shutil.rmtree(folder / ".cache")
    model = LlmAsrForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    model.save_pretrained(folder, max_shard_size="100kB")
    before = content(folder)
    uploads = len(list(folder.glob("model-0*.safetensors")))
    started = hub.count("PUT")
    fault = hub.fail("PUT", number=2, status=507, lasting=True)
    assert main(["push", str(folder), REPO, "--parent", head]) == 1
    assert "507" in capsys.readouterr().err
    assert hub.head(REPO) == head
    assert content(folder) == before
    assert fault.seen >= 2
    hub.faults.clear()
    kept = len(hub.repositories[REPO].large)
    tried = hub.count("PUT")
    push_checkpoint(folder, REPO, parent_commit=head)
    assert hub.count("PUT") - tried == uploads - 1
    assert len(hub.repositories[REPO].large) == kept + uploads - 1
    assert tried > started


@pytest.mark.parametrize("path", ["*/preupload/*", "*/info/lfs/objects/batch", "*/verify", "*/commit/*"])
def test_a_server_error_leaves_both_sides_as_they_were(hub, folder, path):
    push_checkpoint(folder, REPO)
    model = LlmAsrForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        model.model.projector.get_parameter(next(iter(model.model.projector.state_dict()))).add_(1)
    model.save_pretrained(folder, max_shard_size="100kB")
    head, before = hub.head(REPO), content(folder)
    hub.fail("POST", path=path, status=507, lasting=True)
    # The client wraps some errors to name the file.
    with pytest.raises((HfHubHTTPError, RuntimeError)):
        push_checkpoint(folder, REPO)
    assert hub.head(REPO) == head
    assert content(folder) == before
    hub.faults.clear()
    push_checkpoint(folder, REPO)
    assert hub.head(REPO) != head


def test_a_branch_is_created_only_after_the_upload(hub, folder):
    push_checkpoint(folder, REPO)
    head = hub.head(REPO)
    edit(folder / "generation_config.json", max_new_tokens=5)
    fault = hub.fail("POST", path="*/preupload/*", status=507)
    with pytest.raises(HfHubHTTPError):
        push_checkpoint(folder, REPO, revision="experiment")
    assert fault.seen == 1
    assert list(hub.repositories[REPO].branches) == ["main"]
    push_checkpoint(folder, REPO, revision="experiment")
    assert hub.head(REPO) == head
    assert hub.repositories[REPO].find("experiment").parent == head
    edit(folder / "generation_config.json", max_new_tokens=6)
    push_checkpoint(folder, REPO, revision="experiment")
    assert len(hub.history(REPO, "experiment")) == 4


def test_a_private_repository(hub, folder, monkeypatch):
    assert main(["push", str(folder), REPO, "--private", "--message", "Mine"]) == 0
    assert hub.repositories[REPO].private
    assert hub.history(REPO)[0] == "Mine"


def test_without_rights_nothing_is_pushed(hub, folder, capsys):
    assert main(["push", str(folder), "somebody/asr"]) == 1
    assert "You have no right to create a model under somebody" in capsys.readouterr().err
    assert hub.repositories == {}


@pytest.fixture
def backbones(hub, parts):
    names = {"audio_tower": "whisper", "language_model": "qwen2"}
    for name in names.values():
        HfApi().create_repo(f"someone/{name}")
        HfApi().upload_folder(repo_id=f"someone/{name}", folder_path=parts[name])
    return {part: f"someone/{name}" for part, name in names.items()}


def test_forms_replace_each_other(hub, backbones, parts, recordings, tmp_path):
    """Pushes a slim checkpoint with LoRA, then an adapter, and then all weights. Each push removes the previous files."""
    model, processor = compose(parts, "cif")
    push_to_hub(model, processor, "someone/base")
    base = AutoModelForSpeechSeq2Seq.from_pretrained("someone/base")
    model = add_lora(base, 2, 4, 0.0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    inputs = processor.apply_transcription_request([recordings[1]])
    expected = model.generate(**inputs, max_new_tokens=8).tolist()
    for form in ("slim", "adapter", "full"):
        options = {"backbones": backbones} if form == "slim" else {}
        push_to_hub(model, processor, REPO, form, force=True, **options)
        files = set(hub.files(REPO))
        assert ("adapter/adapter_model.safetensors" in files) == (form == "slim")
        assert ("adapter_model.safetensors" in files) == (form == "adapter")
        assert ("config.json" in files) == ("modeling_llm_asr.py" in files) == (form != "adapter")
        loaded = AutoModelForSpeechSeq2Seq.from_pretrained(REPO)
        assert loaded.generate(**inputs, max_new_tokens=8).tolist() == expected


def test_a_folder_is_pushed_in_another_form(hub, backbones, folder, tmp_path):
    arguments = [f"{part}={name}" for part, name in backbones.items()]
    assert main(["push", str(folder), REPO, "--form", "slim", "--backbone", *arguments]) == 0
    config = json.loads(hub.files(REPO)["config.json"])
    commits = {part: reference["revision"] for part, reference in config["backbones"].items()}
    assert commits == {part: hub.head(name) for part, name in backbones.items()}
    size = len(hub.files(REPO)["model.safetensors"])
    assert size < sum(path.stat().st_size for path in folder.glob("model-0*.safetensors")) / 2
    original = LlmAsrForConditionalGeneration.from_pretrained(folder).state_dict()
    loaded = LlmAsrForConditionalGeneration.from_pretrained(REPO).state_dict()
    assert all(torch.equal(original[name], loaded[name]) for name in original)


def test_references_to_this_machine_are_refused(hub, parts, tmp_path):
    model, processor = compose(parts, "cif")
    save_checkpoint(model, processor, tmp_path / "slim", "slim")
    with pytest.raises(ValueError, match=r"The audio_tower of this slim checkpoint, .* on this machine.*`backbones="):
        push_checkpoint(tmp_path / "slim", REPO)
    save_checkpoint(model, processor, tmp_path / "base")
    adapted = add_lora(LlmAsrForConditionalGeneration.from_pretrained(tmp_path / "base"), 2, 4, 0.0)
    save_checkpoint(adapted, processor, tmp_path / "adapter", "adapter")
    with pytest.raises(ValueError, match=r"The base of this adapter checkpoint, .* on this machine.*`base`"):
        push_checkpoint(tmp_path / "adapter", REPO)
    assert hub.requests == []


def truncate(folder: Path) -> None:
    shard = next(folder.glob("model-0*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])


def tamper(folder: Path) -> None:
    lines = [f"{'0' * 64}  {path.name}\n" for path in folder.glob("model*.safetensors*")]
    (folder / "SHA256SUMS").write_text("".join(lines))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (truncate, "is cut short or damaged"),
        (tamper, "is not the file that SHA256SUMS"),
        (lambda folder: (folder / "processor_config.json").unlink(), "has no processor_config.json"),
        (lambda folder: (folder / "config.json").unlink(), "has neither config.json nor adapter_config.json"),
        (lambda folder: edit(folder / "config.json", model_type="whisper"), "'whisper', and 'llm_asr' is expected"),
        (
            lambda folder: (folder / "README.md").write_text("![Curves](curves.png)"),
            "shows curves.png, which does not exist",
        ),
    ],
)
def test_a_checkpoint_that_cannot_be_loaded_is_refused_before_the_upload(hub, folder, spoil, message):
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        push_checkpoint(folder, REPO)
    assert hub.requests == []


def test_a_card_is_uploaded_with_its_pictures(hub, folder):
    (folder / "README.md").write_text(
        "---\nlicense: mit\n---\n# Mine\n![Curves](curves.png) ![no](https://a.b/c.png)\n"
    )
    (folder / "curves.png").write_bytes(b"\x89PNG\0")
    (folder / "other.png").write_bytes(b"\x89PNG\0")
    (folder / "LICENSE").write_text("MIT")
    push_checkpoint(folder, REPO)
    files = hub.files(REPO)
    assert files["README.md"] == (folder / "README.md").read_bytes()
    assert files["curves.png"] == b"\x89PNG\0"
    assert files["LICENSE"] == b"MIT"
    assert "other.png" not in files


def test_a_card_on_the_hub_is_kept(hub, folder):
    HfApi().create_repo(REPO)
    HfApi().upload_file(path_or_fileobj=b"---\nlicense: mit\n---\n# Mine\n", path_in_repo="README.md", repo_id=REPO)
    push_checkpoint(folder, REPO)
    assert hub.files(REPO)["README.md"] == b"---\nlicense: mit\n---\n# Mine\n"


def test_a_card_that_the_hub_refuses_stops_the_push(hub, folder, capsys):
    (folder / "README.md").write_text("---\nlanguage: [1]\n---\n")
    assert main(["push", str(folder), REPO]) == 2
    assert '"language" must hold strings' in capsys.readouterr().err
    assert "config.json" not in hub.files(REPO)


def test_the_method_of_a_model_pushes_a_whole_checkpoint(hub, folder, tmp_path):
    model = LlmAsrForConditionalGeneration.from_pretrained(folder)
    model.push_to_hub(REPO)
    files = hub.files(REPO)
    assert {"model.safetensors", "processor_config.json", "tokenizer.json", "README.md", *REMOTE_CODE} <= set(files)
    assert b"pipeline_tag: automatic-speech-recognition" in files["README.md"]
    assert json.loads(files["config.json"])["auto_map"]["AutoConfig"] == "configuration_llm_asr.LlmAsrConfig"
    assert hub.history(REPO) == ["Upload model", "initial commit"]
    head = hub.head(REPO)
    LlmAsrProcessor.from_pretrained(folder).push_to_hub(REPO)
    assert hub.head(REPO) == head

    loaded = LlmAsrForConditionalGeneration.from_pretrained(REPO)
    loaded.generation_config.max_new_tokens = 7
    loaded.push_to_hub(REPO, commit_message="Shorter")
    assert hub.history(REPO)[0] == "Shorter"
    with pytest.raises(ValueError, match="is not based on"):
        LlmAsrForConditionalGeneration.from_pretrained(REPO, revision=head).push_to_hub(REPO)
    loaded.generation_config.max_new_tokens = 8
    loaded.push_to_hub(REPO, commit_message="Shorter still")
    assert hub.history(REPO)[0] == "Shorter still"
    loaded.generation_config.max_new_tokens = 9
    loaded.push_to_hub(REPO, commit_message="A proposal", create_pr=True)
    assert hub.history(REPO)[0] == "Shorter still"
    assert hub.history(REPO, "refs/pr/1")[0] == "A proposal"


def test_saving_can_push_too(hub, folder, tmp_path):
    model = LlmAsrForConditionalGeneration.from_pretrained(folder)
    model.save_pretrained(tmp_path / "again", push_to_hub=True, repo_id=REPO)
    assert {"model.safetensors", "processor_config.json", *REMOTE_CODE} <= set(hub.files(REPO))
    assert not list((tmp_path / "again").glob("*.py"))


def test_a_processor_alone_keeps_its_code(hub, folder):
    processor = LlmAsrProcessor.from_pretrained(folder)
    processor.push_to_hub(REPO)
    files = hub.files(REPO)
    assert json.loads(files["processor_config.json"])["auto_map"]["AutoProcessor"].endswith(".LlmAsrProcessor")
    assert set(REMOTE_CODE) <= set(files)
    assert "README.md" not in files
    LlmAsrForConditionalGeneration.from_pretrained(folder).push_to_hub(REPO)
    assert "config.json" in hub.files(REPO)


def test_a_model_without_a_processor_is_refused(hub, parts):
    model, _ = compose(parts, "conv")
    with pytest.raises(ValueError, match=r"Push both with `llm_asr.publishing.push.push_to_hub"):
        model.push_to_hub(REPO)
    assert "config.json" not in hub.files(REPO)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"form": "small"}, "`form` must be one of"), ({"base": "someone/base"}, "is full already; leave them out")],
)
def test_contradictory_options_are_refused(hub, folder, options, message):
    with pytest.raises(ValueError, match=message):
        push_checkpoint(folder, REPO, **options)
    assert hub.requests == []


def test_an_adapter_folder_is_pushed_merged(hub, folder, recordings, tmp_path):
    push_checkpoint(folder, "someone/base")
    processor = LlmAsrProcessor.from_pretrained(folder)
    model = add_lora(LlmAsrForConditionalGeneration.from_pretrained("someone/base"), 2, 4, 0.0)
    assert isinstance(model, PeftModel)
    save_checkpoint(model, processor, tmp_path / "adapter", "adapter")
    push_checkpoint(tmp_path / "adapter", REPO, "full")
    inputs = processor.apply_transcription_request([recordings[1]])
    loaded = LlmAsrForConditionalGeneration.from_pretrained(REPO)
    assert "adapter_config.json" not in hub.files(REPO)
    tokens = [one.generate(**inputs, max_new_tokens=8).tolist() for one in (model, loaded)]
    assert tokens[0] == tokens[1]
