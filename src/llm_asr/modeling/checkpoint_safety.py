"""Checks of a checkpoint before any of its weights is read."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_NAME, cached_file


# Digests of the weight files, in the format of the command `sha256sum`.
CHECKSUMS_NAME = "SHA256SUMS"
# `sha256sum --binary` writes an asterisk before the name.
CHECKSUM = re.compile(r"(?P<digest>[0-9a-fA-F]{64}) [ *]?(?P<name>.+)")
JSON_FILES = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
)
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def find_file(name_or_path: str | os.PathLike, file_name: str, **hub_kwargs) -> str | None:
    """Return the path of a file in a local folder or a repository of the Hub, or `None` if there is no such file."""
    return cached_file(name_or_path, file_name, _raise_exceptions_for_missing_entries=False, **hub_kwargs)


def check_json_files(name_or_path: str | os.PathLike, names: Iterable[str] = JSON_FILES, **hub_kwargs) -> None:
    """
    Raise a `ValueError` that names the file if one of a checkpoint's configurations is cut short or no JSON object.
    Transformers silently ignores some of them.

    Args:
        name_or_path (`str` or `os.PathLike`): Local folder or Hub id.
        names (`Iterable[str]`, *optional*): Names of the files. Files that do not exist are skipped.
        hub_kwargs: `revision`, `token`, ... as in `from_pretrained`.
    """
    for name in names:
        path = find_file(name_or_path, name, **hub_kwargs)
        if path is None:
            continue
        try:
            with open(path, encoding="utf-8") as file:
                settings = json.load(file)
        # The JSON parser raises an error if brackets are nested too deeply.
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise ValueError(
                f"{name} of {str(name_or_path)!r} is cut short or damaged ({error}); fetch it again."
            ) from error
        if not isinstance(settings, dict):
            raise ValueError(f"{name} of {str(name_or_path)!r} must be a JSON object, got {settings!r:.40}.")


@contextmanager
def naming_file(name: str, source: str | os.PathLike) -> Iterator[None]:
    """
    Name the file where a field of a configuration has a wrong type or value, and say what is wrong in one sentence.

    Raises:
        `ValueError`: In place of the `TypeError`s, `KeyError`s and others that wrong values lead to.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        reasons = [line.strip() for line in str(error).splitlines() if line.strip()]
        # The last line of a field's error has the name of the error class and then the reason.
        reason = (
            reasons[-1].removeprefix("TypeError: ").removeprefix("ValueError: ") if reasons else "it cannot be read"
        )
        raise ValueError(f"{name} of {str(source)!r} is not valid: {reason}") from error


def check_config(settings: Mapping, model_type: str, class_names: set[str], source: str | os.PathLike) -> None:
    """
    Raise a `ValueError` if a configuration is of another model or names another class.

    Args:
        settings (`Mapping`): What `config.json` says.
        model_type (`str`): The expected type.
        class_names (`set[str]`): Classes that the weights may be of.
        source (`str` or `os.PathLike`): Where the configuration is from.
    """
    if settings.get("model_type") != model_type:
        raise ValueError(
            f"config.json of {str(source)!r} is that of a model of type {settings.get('model_type')!r}, and {model_type!r} is "
            "expected; name another checkpoint, or load this one by its own class."
        )
    architectures = settings.get("architectures")
    if architectures is not None and not class_names.issuperset(architectures):
        raise ValueError(
            f"config.json of {str(source)!r} says that its weights are of {architectures}, and one of "
            f"{sorted(class_names)} is expected; load them by their own class."
        )


def is_piece(file_name: str) -> bool:
    """Return whether a file holds the piece of one process of distributed training (Transformers 5.20 and newer)."""
    return re.fullmatch(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors", file_name) is not None


def find_weights(
    name_or_path: str | os.PathLike, weights_name: str = SAFE_WEIGHTS_NAME, variant: str | None = None, **hub_kwargs
) -> dict[str, str]:
    """
    Fetch the weight files of a checkpoint, and check all that can be checked without checksums.

    Names must stay within the checkpoint. No file may be cut short, or lack a tensor that the index lists.

    Args:
        name_or_path (`str` or `os.PathLike`): Local folder or Hub id.
        weights_name (`str`, *optional*, defaults to `"model.safetensors"`): Name of the file if there is only one.
        variant (`str`, *optional*): As in `from_pretrained`.
        hub_kwargs: `revision`, `token`, ... as in `from_pretrained`.

    Returns:
        `dict[str, str]`: Paths by name, the index among them.

    Raises:
        `OSError`: If there are none, in the safetensors format.
        `ValueError`: If they cannot be trusted to be whole.
    """
    index_name = f"{weights_name}.index.json"
    if variant is not None:
        weights_name, index_name = (
            f"{name.rpartition('.')[0]}.{variant}.{name.rpartition('.')[2]}" for name in (weights_name, index_name)
        )
    folder = os.path.join(name_or_path, hub_kwargs.get("subfolder") or "")
    pieces = sorted(filter(is_piece, os.listdir(folder))) if os.path.isdir(folder) else []
    if weights_name == SAFE_WEIGHTS_NAME and pieces:
        # Transformers reads these before all others.
        paths = {name: os.path.join(folder, name) for name in pieces}
        for name, path in paths.items():
            _tensor_names(path, name)
        return paths
    single = find_file(name_or_path, weights_name, **hub_kwargs)
    if single is not None:
        _tensor_names(single, weights_name)
        return {weights_name: single}
    index_path = find_file(name_or_path, index_name, **hub_kwargs)
    if index_path is None:
        raise OSError(
            f"{str(name_or_path)!r} has neither {weights_name} nor {index_name}; weights are read in the safetensors format "
            "alone, which `save_pretrained` writes."
        )
    shards = _read_index(index_path, index_name)
    paths = {index_name: index_path}
    for shard, expected in shards.items():
        shard_path = find_file(name_or_path, shard, **hub_kwargs)
        if shard_path is None:
            raise OSError(
                f"{index_name} names the file {shard}, which {str(name_or_path)!r} does not have; fetch it again."
            )
        paths[shard] = shard_path
        lacking = expected - _tensor_names(shard_path, shard)
        if lacking:
            raise ValueError(
                f"{shard} of {str(name_or_path)!r} lacks {len(lacking)} tensor(s) that {index_name} says it has, "
                f"{min(lacking)!r} among them; fetch the checkpoint again."
            )
    return paths


def _read_index(path: str, index_name: str) -> dict[str, set[str]]:
    """Read the names of the tensors of each shard."""
    try:
        with open(path, encoding="utf-8") as file:
            weight_map = json.load(file)["weight_map"]
        shards: dict[str, set[str]] = {}
        for tensor, shard in weight_map.items():
            shards.setdefault(shard, set()).add(tensor)
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index_name} ({path}) is not an index of weights; fetch the checkpoint again.") from error
    for shard in shards:
        check_file_name(shard, index_name)
    return shards


def check_file_name(name: str, source: str) -> None:
    """Raise a `ValueError` if a name, read in `source`, is not the name of a safetensors file in the same folder."""
    if not isinstance(name, str) or not name.endswith(".safetensors") or any(mark in name for mark in "/\\:\0"):
        raise ValueError(
            f"{source} names the file {name!r}; only safetensors files beside it are read, so this checkpoint is not to be "
            "trusted."
        )


def _tensor_names(path: str, name: str) -> set[str]:
    try:
        # Reads the header, and compares it with the file's length.
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except SafetensorError as error:
        raise ValueError(f"{name} ({path}) is cut short or damaged ({error}); fetch it again.") from error


def hash_files(paths: Mapping[str, str]) -> dict[str, str]:
    """Compute the SHA-256 digest of each file, by the given names."""

    def digest(path):
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return dict(zip(paths, pool.map(digest, paths.values()), strict=True))


def check_digests(paths: Mapping[str, str], expected: Mapping[str, str], source: str, mend: str) -> None:
    """
    Raise a `ValueError` if files are not those whose digests were written down.

    Args:
        paths (`Mapping[str, str]`): Paths by name.
        expected (`Mapping[str, str]`): SHA-256 by name.
        source (`str`): Name of the place that the digests come from, for the error.
        mend (`str`): What is to be done if they differ.
    """
    unknown = sorted(set(paths) - set(expected))
    if unknown:
        raise ValueError(f"{source} says nothing of {unknown[0]} ({paths[unknown[0]]}), which would be read; {mend}.")
    for name, found in hash_files(paths).items():
        if found != expected[name]:
            raise ValueError(
                f"{name} ({paths[name]}) is not the file that {source} names: expected SHA-256 {expected[name]}, found "
                f"{found}; {mend}."
            )


def check_checksums(name_or_path: str | os.PathLike, paths: Mapping[str, str], **hub_kwargs) -> None:
    """Raise a `ValueError` if files of a checkpoint differ from its `SHA256SUMS`, which is optional."""
    path = find_file(name_or_path, CHECKSUMS_NAME, **hub_kwargs)
    if path is None:
        return
    digests = read_checksums(path)
    check_digests(
        paths,
        digests,
        f"{CHECKSUMS_NAME} of {str(name_or_path)!r}",
        f"fetch the checkpoint again or, if you have changed it yourself, remove {CHECKSUMS_NAME}",
    )


def read_checksums(path: str | os.PathLike) -> dict[str, str]:
    """
    Read the digests from a file that `sha256sum` has written, by name.

    Raises:
        `OSError`: If the file does not exist.
        `ValueError`: If a line does not have the format of `sha256sum`.
    """
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line for line in file.read().splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{CHECKSUMS_NAME} ({path}) is damaged: {error}; fetch it again.") from error
    digests = {}
    for line in lines:
        found = CHECKSUM.fullmatch(line)
        if found is None:
            raise ValueError(
                f"{CHECKSUMS_NAME} ({path}) holds {line!r:.80}, which is no line of `sha256sum`; fetch it again."
            )
        digests[found["name"]] = found["digest"].lower()
    return digests
