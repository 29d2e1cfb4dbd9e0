"""
Joins two languages of FLEURS (arXiv 2205.12446), which read the same sentences, to a dataset for translation.

    python examples/recipes/fleurs_pairs.py --source es_419 --target en_us --split train --output data/fleurs-es-en

The output is a folder that recipes and `llm-asr evaluate` read: `audio`, `text` and `language` of the source, `translation` and
`target_language`.
"""

import argparse
from pathlib import Path

from datasets import Dataset

from llm_asr.datasets_asr import open_dataset


def join(source: Dataset, target: Dataset, language: str, target_language: str) -> Dataset:
    """
    Add the target's sentence to each recording of the source. Recordings whose sentence the target lacks are left out.

    Args:
        source, target: Two configurations of FLEURS, with `id` and `transcription`.
        language, target_language: Their languages.
    """
    sentences = dict(zip(target["id"], target["transcription"], strict=True))
    kept = source.select([index for index, sentence in enumerate(source["id"]) if sentence in sentences])
    translations = [sentences[sentence] for sentence in kept["id"]]
    joined = kept.select_columns(["audio", "transcription"]).rename_column("transcription", "text")
    return (
        joined.add_column("language", [language] * len(kept))
        .add_column("translation", translations)
        .add_column("target_language", [target_language] * len(kept))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().partition("\n")[0])
    parser.add_argument("--source", required=True, help="Configuration of the spoken language, such as es_419.")
    parser.add_argument("--target", required=True, help="Configuration of the translations, such as en_us.")
    parser.add_argument("--split", default="train", help="train, validation or test.")
    parser.add_argument("--output", type=Path, required=True, help="Folder for the dataset.")
    parser.add_argument("--dataset", default="google/fleurs", help="Hub id, or a folder with a copy.")
    args = parser.parse_args()
    parts = [open_dataset(args.dataset, name, args.split, ("audio", "id")) for name in (args.source, args.target)]
    joined = join(*parts, language=args.source, target_language=args.target)
    joined.save_to_disk(args.output)
    print(f"{args.output}: {len(joined)} of {len(parts[0])} recordings have a translation.")


if __name__ == "__main__":
    main()
