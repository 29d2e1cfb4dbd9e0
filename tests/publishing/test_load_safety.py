"""Checkpoints that are refused with a reason before any weight is read."""

import hashlib
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import compose
from transformers import AutoModel

from llm_asr import LlmAsrConfig, LlmAsrForConditionalGeneration, LlmAsrModel
from llm_asr.modeling import slim_checkpoint
from llm_asr.publishing.checkpoint_forms import FORMS, save_checkpoint
from llm_asr.publishing.checksums import write_checksums
from llm_asr.training.lora import add_lora


@pytest.fixture(autouse=True)
def no_pickle(monkeypatch):
    """No test of this file may write or read pickled data."""

    def fail(*args, **kwargs):
        raise AssertionError("pickle was used")

    for module, name in ((torch, "save"), (torch, "load"), (pickle, "load"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, fail)


@pytest.fixture
def no_weights_read(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("weights were read")

    monkeypatch.setattr(transformers.PreTrainedModel, "_load_pretrained_model", fail)
    monkeypatch.setattr(slim_checkpoint, "load_parts", fail)
    monkeypatch.setattr(slim_checkpoint, "load_file", fail)


@pytest.fixture(scope="module")
def saved(parts, tmp_path_factory):
    """A checkpoint in each form, one in shards, and the base of the adapter."""
    root = tmp_path_factory.mktemp("safety")
    here = {name: str(shutil.copytree(parts[name], root / name)) for name in ("whisper", "qwen2")}
    model, processor = compose(here, "moe_cif")
    model.save_pretrained(root / "plain")
    model.save_pretrained(root / "shards", max_shard_size="100KB")
    write_checksums(root / "shards")
    model = add_lora(LlmAsrForConditionalGeneration.from_pretrained(root / "plain"), rank=2)
    for form in FORMS:
        save_checkpoint(model, processor, root / form, form=form)
    return root


@pytest.fixture
def folders(saved, tmp_path):
    """Copies of all checkpoints."""
    return Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def edit(path: Path, **settings) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def flip(path: Path) -> None:
    """Flip one bit of the last weight."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def grow_header(path: Path) -> None:
    path.write_bytes((2**40).to_bytes(8, "little") + path.read_bytes()[8:])


def remove(path: Path) -> None:
    path.unlink()


def weight_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def check_refused(folder: Path, message: str, error=ValueError, **kwargs) -> None:
    for auto_class in (LlmAsrForConditionalGeneration, AutoModel):
        with pytest.raises(error, match=message):
            auto_class.from_pretrained(folder, **kwargs)


CHECKPOINTS = ["plain", "shards", *FORMS]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_only_safetensors_and_text_are_written(folders, name):
    suffixes = {path.suffix for path in (folders / name).rglob("*") if path.is_file()}
    assert suffixes <= {".safetensors", ".json", ".jinja", ".md", ""}
    assert [path.name for path in (folders / name).rglob("*") if path.is_file() and not path.suffix] in (
        [],
        ["SHA256SUMS"],
    )
    LlmAsrForConditionalGeneration.from_pretrained(folders / name)


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("spoil", [cut, empty, grow_header])
def test_damaged_weights_are_refused(folders, name, spoil, no_weights_read):
    for path in weight_files(folders / name):
        content = path.read_bytes()
        spoil(path)
        check_refused(folders / name, f"{path.name} .* is cut short or damaged .*; fetch it again")
        path.write_bytes(content)


@pytest.mark.parametrize("name", CHECKPOINTS[1:])
def test_changed_weights_are_refused(folders, name, no_weights_read):
    """Checksums detect changed weights of the same length."""
    for path in weight_files(folders / name):
        expected = hashlib.sha256(path.read_bytes()).hexdigest()
        flip(path)
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        check_refused(
            folders / name, f"{path.name} .* SHA256SUMS .* expected SHA-256 {expected}, found {found}; fetch"
        )
        flip(path)


def test_a_file_without_a_checksum_is_refused(folders, no_weights_read):
    (folders / "full/SHA256SUMS").write_text(f"{'0' * 64}  other.safetensors\n")
    check_refused(folders / "full", "SHA256SUMS of .* says nothing of model.safetensors")


def test_weights_with_updated_or_removed_checksums_are_checked_for_truncation(folders):
    flip(folders / "full/model.safetensors")
    write_checksums(folders / "full")
    LlmAsrForConditionalGeneration.from_pretrained(folders / "full")
    cut(folders / "full/model.safetensors")
    (folders / "full/SHA256SUMS").unlink()
    check_refused(folders / "full", "is cut short or damaged")


@pytest.mark.parametrize("part", ["whisper", "qwen2"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [(flip, "expected SHA-256"), (cut, "cut short or damaged"), (remove, "has neither model.safetensors")],
)
def test_frozen_parts_that_have_changed_are_refused(folders, saved, part, spoil, message, no_weights_read):
    config = json.loads((folders / "slim/config.json").read_text())
    for reference in config["backbones"].values():
        reference["name_or_path"] = reference["name_or_path"].replace(str(saved), str(folders))
    edit(folders / "slim/config.json", **config)
    spoil(folders / part / "model.safetensors")
    check_refused(folders / "slim", message, error=(ValueError, OSError))


DISTRIBUTED_SHARD = "shard-00000-model-00001-of-00001.safetensors"


@pytest.mark.parametrize("name", ["adapter_config.json", "model.safetensors.index.json", DISTRIBUTED_SHARD])
def test_files_that_would_replace_frozen_parts_are_refused(folders, saved, name, no_weights_read):
    """Transformers would also load an adapter in the same folder, and prefer weights of an index or of distributed training."""
    folder = folders / "qwen2"
    if name == "adapter_config.json":
        shutil.copy(folders / "adapter" / name, folder)
        message = "has an adapter"
    elif name == DISTRIBUTED_SHARD:
        shutil.copy(folder / "model.safetensors", folder / name)
        shutil.copy(folder / name, folders / "full")
        message = f"says nothing of {name}"
        check_refused(folders / "full", message)
    else:
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
        tensors = load_file(folder / "model-1.safetensors")
        (folder / name).write_text(
            json.dumps({"metadata": {}, "weight_map": dict.fromkeys(tensors, "model-1.safetensors")})
        )
        message = "this slim checkpoint says nothing of model"
    check_refused(folders / "slim", message, backbone_paths={"language_model": folder})


@pytest.mark.parametrize(
    "name",
    [
        "../plain/model.safetensors",
        "/etc/model.safetensors",
        "..\\plain\\model.safetensors",
        "C:model.safetensors",
        "sub/model.safetensors",
        "pytorch_model.bin",
        "..",
        "",
        "a\0.safetensors",
        7,
    ],
)
def test_names_of_shards_must_stay_in_the_checkpoint(folders, name, no_weights_read):
    index = json.loads((folders / "shards/model.safetensors.index.json").read_text())
    first = min(index["weight_map"])
    edit(folders / "shards/model.safetensors.index.json", weight_map={**index["weight_map"], first: name})
    (folders / "shards/sub").mkdir()
    shutil.copy(folders / "plain/model.safetensors", folders / "shards/sub")
    check_refused(folders / "shards", "names the file .*; only safetensors files beside it are read")


def test_an_invalid_index_is_refused(folders, no_weights_read):
    path = folders / "shards/model.safetensors.index.json"
    index = json.loads(path.read_text())
    for content in (b"{", b"[]", b"{}", b'{"weight_map": []}', b'{"weight_map": {"a": {}}}', b"\xff"):
        path.write_bytes(content)
        check_refused(folders / "shards", "is not an index of weights")
    shard = index["weight_map"]["lm_head.weight"]
    path.write_text(json.dumps({**index, "weight_map": {**index["weight_map"], "other.weight": shard}}))
    check_refused(folders / "shards", f"{shard} of .* lacks 1 tensor.* 'other.weight' among them")
    path.write_text(json.dumps(index))
    (folders / "shards" / shard).unlink()
    check_refused(folders / "shards", f"names the file {shard}, which .* does not have", error=OSError)


def test_another_model_or_class_is_refused(folders, no_weights_read):
    for name in ("whisper", "qwen2"):
        for cls in (LlmAsrForConditionalGeneration, LlmAsrModel):
            with pytest.raises(ValueError, match=f"is that of a model of type '{name}', and 'llm_asr' is expected"):
                cls.from_pretrained(folders / name)
    for name in ("plain", "full", "slim"):
        edit(folders / name / "config.json", architectures=["GPT2LMHeadModel"])
        check_refused(folders / name, r"its weights are of \['GPT2LMHeadModel'\], and one of .* is expected")
    # The base of an adapter gets the same check.
    edit(folders / "adapter/adapter_config.json", base_model_name_or_path=str(folders / "plain"))
    check_refused(folders / "adapter", "'GPT2LMHeadModel'")
    edit(folders / "adapter/adapter_config.json", base_model_name_or_path=str(folders / "whisper"))
    with pytest.raises(ValueError, match="of type 'whisper'"):
        LlmAsrForConditionalGeneration.from_pretrained(folders / "adapter")


def test_adapters_with_an_invalid_base_are_refused(folders, no_weights_read):
    path = folders / "adapter/adapter_config.json"
    for base, error, message in (
        (None, ValueError, "does not say what model it is for"),
        (str(folders / "adapter"), ValueError, "is itself an adapter"),
        (str(folders / "absent"), OSError, "absent', which is not there; correct `base_model_name_or_path`"),
    ):
        edit(path, base_model_name_or_path=base)
        with pytest.raises(error, match=message):
            LlmAsrForConditionalGeneration.from_pretrained(folders / "adapter")
    shutil.copy(folders / "plain/config.json", folders / "adapter")
    edit(path, base_model_name_or_path=str(folders / "plain"))
    check_refused(folders / "adapter", "holds a model .* and an adapter")


def test_adapters_that_do_not_match_their_configuration_are_refused(folders):
    path = folders / "adapter/adapter_config.json"
    settings = json.loads(path.read_text())
    edit(path, modules_to_save=None)
    check_refused(folders / "adapter", "weights of the adapter .* are not those that its adapter_config.json says")
    path.write_text(json.dumps(settings))
    tensors = load_file(folders / "adapter/adapter_model.safetensors")
    tensors.pop(min(tensors))
    save_file(tensors, folders / "adapter/adapter_model.safetensors")
    write_checksums(folders / "adapter")
    check_refused(folders / "adapter", "1 tensors are on one side alone")


class Trap:
    """Pickled code."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["plain", "shards", "full", "slim", "adapter"])
def test_pickled_weights_are_not_read(folders, name, no_weights_read):
    sprung = folders / "sprung"
    for path in weight_files(folders / name):
        pickled = "adapter_model.bin" if path.name.startswith("adapter") else "pytorch_model.bin"
        (path.parent / pickled).write_bytes(pickle.dumps(Trap(sprung)))
        path.unlink()
    for path in (folders / name).glob("*.index.json"):
        path.unlink()
    check_refused(folders / name, "has neither .*; weights are read in the safetensors format alone", error=OSError)
    check_refused(folders / name, "`use_safetensors=False` would read pickled weights", use_safetensors=False)
    assert not sprung.exists()


GOOD = {"name_or_path": "a/b", "revision": None, "dtype": "float32", "sha256": {"config.json": "0" * 64}}


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ({"sha256": {"../model.safetensors": "0" * 64}}, "which is no file beside the others"),
        ({"sha256": {"/model.safetensors": "0" * 64}}, "which is no file beside the others"),
        ({"sha256": {"pytorch_model.bin": "0" * 64}}, "which is no file beside the others"),
        ({"sha256": {"model.safetensors": "0"}}, "must have 64 hexadecimal digits for 'model.safetensors'"),
        ({"sha256": {}}, "must have the digest of each file"),
        ({"sha256": None}, "must have the digest of each file"),
        ({"revision": "main"}, "`revision` of .* must be a commit"),
        ({"name_or_path": ""}, "must be a Hub id or a folder"),
        ({"dtype": "int8"}, "`dtype` of .* must be one of"),
        ({"code": "x.py"}, r"must have \['name_or_path', 'revision', 'dtype', 'sha256'\]"),
    ],
)
def test_malformed_references_are_refused(folders, reference, message, no_weights_read):
    backbones = {"audio_tower": GOOD, "language_model": {**GOOD, **reference}}
    edit(folders / "slim/config.json", backbones=backbones)
    check_refused(folders / "slim", message)
    with pytest.raises(ValueError, match=message):
        LlmAsrForConditionalGeneration.from_pretrained(
            folders / "slim", config=LlmAsrConfig.from_pretrained(folders / "full")
        )
    edit(folders / "slim/config.json", backbones={"audio_tower": GOOD})
    check_refused(folders / "slim", r"`backbones` must have \['audio_tower', 'language_model'\]")


def test_trained_weights_that_do_not_fit_are_refused(folders):
    """The weights have correct checksums, as an attacker would write them."""
    path = folders / "slim/model.safetensors"
    good = load_file(path)
    rows, values = (f"model.language_model.embed_tokens.weight:{end}" for end in ("rows", "values"))
    router = "model.projector.moe.router.weight"
    for changed, message in (
        ({"other.weight": torch.zeros(1)}, "'other.weight', which the model does not have"),
        ({router: torch.zeros(2, 2)}, f"'{router}', which does not fit"),
        ({rows: torch.tensor([10**6])}, f"'{rows.partition(':')[0]}:[a-z]*', which does not fit"),
        ({rows: torch.tensor([-1])}, f"'{rows.partition(':')[0]}:[a-z]*', which does not fit"),
        ({rows: torch.tensor([1.0])}, f"'{rows.partition(':')[0]}:[a-z]*', which does not fit"),
        ({values: torch.zeros(1, 3)}, f"'{rows.partition(':')[0]}:[a-z]*', which does not fit"),
        ({values: torch.zeros(1, 40, dtype=torch.int8)}, f"'{rows.partition(':')[0]}:[a-z]*', which does not fit"),
        ({values: None}, f"'{rows.partition(':')[0]}:[a-z]*', which does not fit"),
        ({rows: None}, f"'{values}', which does not fit"),
        ({router: None}, f"hold '{router}' and 0 others"),
    ):
        tensors = {name: tensor for name, tensor in {**good, **changed}.items() if tensor is not None}
        save_file(tensors, path, metadata={"format": "pt"})
        write_checksums(folders / "slim")
        with pytest.raises(ValueError, match=message):
            LlmAsrForConditionalGeneration.from_pretrained(folders / "slim")


@pytest.mark.parametrize("separator", ["  ", " *"])
def test_digests_in_the_format_of_sha256sum_are_accepted(folders, separator):
    """`sha256sum` marks text files and, with `-b`, binary files."""
    sums = folders / "full/SHA256SUMS"
    digest = hashlib.sha256((folders / "full/model.safetensors").read_bytes()).hexdigest()
    sums.write_text(f"{digest}{separator}model.safetensors\n")
    LlmAsrForConditionalGeneration.from_pretrained(folders / "full")
    sums.write_text(f"{digest[::-1]}{separator}model.safetensors\n")
    with pytest.raises(ValueError, match="model.safetensors .* is not the file that SHA256SUMS"):
        LlmAsrForConditionalGeneration.from_pretrained(folders / "full")


@pytest.mark.parametrize(
    "content", [b"\xff", b"SHA256 (model.safetensors) = " + b"0" * 64, b"0" * 63 + b"  model.safetensors"]
)
def test_invalid_checksums_are_named(folders, content, no_weights_read):
    (folders / "full/SHA256SUMS").write_bytes(content)
    check_refused(folders / "full", r"SHA256SUMS \(.*\) (is damaged|holds .* which is no line of `sha256sum`)")
