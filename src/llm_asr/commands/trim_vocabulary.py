"""`llm-asr trim-vocabulary`: a language model with only the tokens that some texts use."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from .options import DTYPES, UsageError, loading


OLD_IDS_FILE = "trimmed_vocabulary.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="Folder or Hub id of a causal language model.")
    parser.add_argument(
        "texts",
        metavar="TEXTS",
        nargs="+",
        type=Path,
        help="Texts as the model is to write them: JSON lines with a column of texts, or other files with a text a line.",
    )
    parser.add_argument("--output", metavar="OUT", type=Path, required=True, help="Folder to write; new or empty.")
    parser.add_argument(
        "--text-column", metavar="NAME", default="text", help='Column of JSON lines; by default "text".'
    )
    parser.add_argument(
        "--min-count",
        metavar="N",
        type=int,
        default=1,
        help="Keep only tokens that the texts use so often, and divide rarer words into more tokens.",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="Of the weights; by default as saved.")


def run(args: argparse.Namespace) -> int:
    """
    Trim the vocabulary; see [`add_arguments`].

    Raises:
        `UsageError`: If there is no such model, it cannot be trimmed, a file of texts cannot be read, or there is something in
            the output folder.
    """
    texts = [text for path in args.texts for text in read_texts(path, args.text_column)]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ..atomic_writing import atomic_folder
    from ..publishing.export import check_is_new
    from ..publishing.trim_vocabulary import trim_vocabulary

    try:
        check_is_new(args.output)
        with loading(repr(args.model)):
            tokenizer = AutoTokenizer.from_pretrained(args.model)
            model = AutoModelForCausalLM.from_pretrained(args.model, dtype=args.dtype)
        trimmed, new_tokenizer, old_ids = trim_vocabulary(model, tokenizer, texts, args.min_count)
    except (OSError, TypeError, ValueError) as error:
        raise UsageError(error) from error
    with atomic_folder(args.output) as partial:
        trimmed.save_pretrained(partial)
        new_tokenizer.save_pretrained(partial)
        (partial / OLD_IDS_FILE).write_text(json.dumps({"old_ids": old_ids}) + "\n", encoding="utf-8")
    before, after = (sum(parameter.numel() for parameter in one.parameters()) for one in (model, trimmed))
    print(
        f"{args.output}: {len(old_ids):,} of {len(tokenizer):,} tokens, {after / 1e6:.1f} of {before / 1e6:.1f} M weights"
    )
    return 0


def read_texts(path: Path, column: str) -> Iterator[str]:
    """
    Read the texts of a file.

    Raises:
        `UsageError`: If the file cannot be read, or a row has no such text. The error names file and row.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{str(path)!r} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if path.suffix not in (".jsonl", ".json"):
            yield line
            continue
        try:
            text = json.loads(line)[column]
        except (ValueError, TypeError, KeyError) as error:
            raise UsageError(f"{str(path)!r}, row {number}: no text in a column {column!r}.") from error
        if not isinstance(text, str):
            raise UsageError(f"{str(path)!r}, row {number}: {column!r} must be a string, got {text!r}.")
        yield text
