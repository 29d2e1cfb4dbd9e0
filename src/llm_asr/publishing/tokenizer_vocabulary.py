"""Removes tokens from a fast tokenizer, so that texts with the remaining tokens are tokenized as before."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer, PreTrainedTokenizerBase


# Added tokens without a use, of which some vocabularies have thousands: `<unused7>`, `<|reserved_special_token_7|>`.
PLACEHOLDER = re.compile(r"unused|reserved", re.IGNORECASE)

BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")

# What stands for a space in a vocabulary that does not have bytes as characters.
SPACE = "\u2581"

KINDS = ("BPE", "Unigram", "WordLevel")

# Files from which a tokenizer could be built in place of `tokenizer.json`.
OTHER_VOCABULARY_FILES = ("vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


def read_state(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """
    The content of `tokenizer.json`.

    Raises:
        `ValueError`: If the tokenizer is not a fast one, or its algorithm is not supported.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(
            f"`tokenizer` is a {type(tokenizer).__name__} without a `tokenizer.json`; use a fast tokenizer."
        )
    state = json.loads(backend.to_str())
    kind = state["model"]["type"]
    if kind not in KINDS:
        raise ValueError(f"The tokenizer's algorithm is {kind!r}; supported are {list(KINDS)}.")
    if state["model"].get("continuing_subword_prefix") or state["model"].get("end_of_word_suffix"):
        raise ValueError("A BPE tokenizer that marks parts of words with a prefix or a suffix is not supported.")
    return state


def find_indispensable(state: Mapping[str, Any], named: Iterable[str]) -> set[str]:
    """
    Find the tokens that every text may need: bytes, single ASCII characters, added tokens and the unknown token.

    Added tokens without a use, such as `<unused7>`, are left out unless they are `named`.

    Args:
        state (`Mapping`): Content of `tokenizer.json`.
        named (`Iterable[str]`): Tokens that a configuration names.
    """
    vocabulary = _pieces(state["model"])
    named = set(named)
    tokens = {
        token["content"]
        for token in state["added_tokens"]
        if token["content"] in named or not PLACEHOLDER.search(token["content"])
    }
    tokens |= named | _required_by_post_processor(state["post_processor"])
    tokens |= {token for token in vocabulary if BYTE_TOKEN.fullmatch(token)}
    if '"ByteLevel"' in json.dumps([state["pre_tokenizer"], state["normalizer"]]):
        tokens |= set(ByteLevel.alphabet())
    tokens |= {SPACE, *map(chr, range(0x20, 0x7F)), "\n", "\t"}
    unknown = state["model"].get("unk_token")
    if state["model"]["type"] == "Unigram" and state["model"]["unk_id"] is not None:
        unknown = vocabulary[state["model"]["unk_id"]]
    if unknown is not None:
        tokens.add(unknown)
    added = {token["content"] for token in state["added_tokens"]}
    return tokens & (added | set(vocabulary))


def find_characters(state: Mapping[str, Any], texts: Iterable[str]) -> set[str]:
    """
    Find the tokens of single characters, from which all words of `texts` can be written.

    Args:
        state (`Mapping`): Content of `tokenizer.json`.
        texts (`Iterable[str]`): Texts.
    """
    return set().union(*texts) & set(_pieces(state["model"]))


def add_components(state: Mapping[str, Any], tokens: Iterable[str]) -> set[str]:
    """
    Add the tokens without which the algorithm does not arrive at `tokens`.

    BPE merges a token from smaller ones, which are all needed. In a Unigram vocabulary a text without a token for one of its
    characters gets the unknown token's score there, so that the characters are needed.

    Args:
        state (`Mapping`): Content of `tokenizer.json`.
        tokens (`Iterable[str]`): Tokens to keep.
    """
    tokens = set(tokens)
    if state["model"]["type"] == "BPE":
        ranks = {_pair(merge): rank for rank, merge in enumerate(state["model"]["merges"])}
        return tokens | {part for token in tokens for part in _merge_steps(token, ranks)} & set(
            _pieces(state["model"])
        )
    if state["model"]["type"] == "Unigram":
        return tokens | {character for token in tokens for character in token} & set(_pieces(state["model"]))
    return tokens


def _merge_steps(token: str, ranks: Mapping[tuple[str, str], int]) -> Iterable[str]:
    """The characters of a token, and what BPE makes of them on the way to it."""
    symbols = list(token)
    yield from symbols
    while True:
        pairs = [(ranks[pair], index) for index, pair in enumerate(pairwise(symbols)) if pair in ranks]
        if not pairs:
            return
        _, index = min(pairs)
        symbols[index : index + 2] = [symbols[index] + symbols[index + 1]]
        yield symbols[index]


def trim_tokenizer(
    tokenizer: PreTrainedTokenizerBase, tokens: Iterable[str]
) -> tuple[PreTrainedTokenizerBase, list[int]]:
    """
    Make a tokenizer of some of a tokenizer's tokens.

    Ids become consecutive. Their order remains.

    Args:
        tokenizer ([`PreTrainedTokenizerBase`]): A fast tokenizer.
        tokens (`Iterable[str]`): Tokens to keep, with their components; see [`add_components`].

    Returns:
        The new tokenizer, and the old id of each of its ids.

    Raises:
        `ValueError`: See [`read_state`].
    """
    state = read_state(tokenizer)
    tokens = set(tokens)
    ids = tokenizer.get_vocab()
    pieces = set(_pieces(state["model"]))
    # Tokenizers number the added tokens behind the others.
    kept = sorted(tokens, key=lambda token: (token not in pieces, ids[token]))
    new_ids = {token: index for index, token in enumerate(kept)}
    _trim_algorithm(state["model"], new_ids)
    state["added_tokens"] = sorted(
        ({**token, "id": new_ids[token["content"]]} for token in state["added_tokens"] if token["content"] in tokens),
        key=lambda token: token["id"],
    )
    state["post_processor"] = _renumber(state["post_processor"], new_ids)
    if state["padding"] is not None:
        state["padding"]["pad_id"] = new_ids[state["padding"]["pad_token"]]
    return _rebuild(tokenizer, state), [ids[token] for token in kept]


def _pieces(model: Mapping[str, Any]) -> list[str]:
    """The tokens of an algorithm's vocabulary, in the order of the file."""
    return [token for token, _ in model["vocab"]] if model["type"] == "Unigram" else list(model["vocab"])


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    """Both parts of a merge; older files have them in one string."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _trim_algorithm(model: dict[str, Any], new_ids: Mapping[str, int]) -> None:
    """Leave only the tokens of `new_ids` in the vocabulary, and in the merges those that make one of them from others."""
    if model["type"] == "Unigram":
        unknown = None if model["unk_id"] is None else model["vocab"][model["unk_id"]][0]
        model["vocab"] = sorted(
            (entry for entry in model["vocab"] if entry[0] in new_ids), key=lambda e: new_ids[e[0]]
        )
        model["unk_id"] = None if unknown is None else new_ids[unknown]
        return
    pieces = [token for token in model["vocab"] if token in new_ids]
    model["vocab"] = {token: new_ids[token] for token in sorted(pieces, key=new_ids.__getitem__)}
    if model["type"] == "BPE":
        merges = map(_pair, model["merges"])
        vocabulary = model["vocab"]
        model["merges"] = [
            [left, right]
            for left, right in merges
            if left in vocabulary and right in vocabulary and left + right in vocabulary
        ]


def _required_by_post_processor(node: Any) -> set[str]:
    """Tokens that a post-processor adds to every text."""
    if isinstance(node, list):
        return set().union(*map(_required_by_post_processor, node))
    if not isinstance(node, dict):
        return set()
    tokens = {node[name][0] for name in ("sep", "cls") if name in node}
    if isinstance(node.get("special_tokens"), dict):
        tokens |= {token for entry in node["special_tokens"].values() for token in entry["tokens"]}
    return tokens | _required_by_post_processor(node.get("processors", []))


def _renumber(node: Any, new_ids: Mapping[str, int]) -> Any:
    """A post-processor with new ids."""
    if isinstance(node, list):
        return [_renumber(part, new_ids) for part in node]
    if not isinstance(node, dict):
        return node
    node = dict(node)
    for name in ("sep", "cls"):
        if name in node:
            node[name] = [node[name][0], new_ids[node[name][0]]]
    if isinstance(node.get("special_tokens"), dict):
        node["special_tokens"] = {
            name: {**entry, "ids": [new_ids[token] for token in entry["tokens"]]}
            for name, entry in node["special_tokens"].items()
        }
    if "processors" in node:
        node["processors"] = _renumber(node["processors"], new_ids)
    return node


def _rebuild(tokenizer: PreTrainedTokenizerBase, state: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """A tokenizer like `tokenizer` with the content `state` of `tokenizer.json`, by way of its files."""
    kept = {token["content"]: token["id"] for token in state["added_tokens"]}
    with TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save_pretrained(folder)
        (folder / "tokenizer.json").write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")
        for file in OTHER_VOCABULARY_FILES:
            (folder / file).unlink(missing_ok=True)
        path = folder / "tokenizer_config.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        if "added_tokens_decoder" in settings:
            settings["added_tokens_decoder"] = {
                str(kept[token["content"]]): token
                for token in settings["added_tokens_decoder"].values()
                if token["content"] in kept
            }
        path.write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")
        return AutoTokenizer.from_pretrained(folder)
