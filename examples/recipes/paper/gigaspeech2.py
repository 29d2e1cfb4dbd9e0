"""
Converts GigaSpeech 2 (arXiv 2406.11546), which has separate archives and transcripts, to Parquet files for a recipe.

    python examples/recipes/paper/gigaspeech2.py th id vi --output data/gigaspeech2

The script downloads the archives of `speechcolab/gigaspeech2`, some of which have hundreds of gigabytes. Accept the dataset's
terms on the Hub first. `--source FOLDER` reads a copy of the repository instead.
"""

import argparse
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import snapshot_download

from llm_asr.atomic_writing import atomic_path


ROWS_AT_A_TIME = 1000
SCHEMA = pa.schema([("audio", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("text", pa.string())])


def read_transcripts(file: Path) -> dict[str, str]:
    """Read transcripts by segment from lines of the form `segment TAB text`."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t", 1) for line in lines if line)


def read_archive(file: Path, transcripts: dict[str, str]) -> Iterator[dict]:
    """Yield the recordings of an archive that have a transcript. The refined set does not have all transcripts."""
    with tarfile.open(file, "r|*") as archive:
        for member in archive:
            segment = Path(member.name).stem
            if member.isfile() and segment in transcripts:
                contents = archive.extractfile(member).read()
                yield {"audio": {"bytes": contents, "path": member.name}, "text": transcripts[segment]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().partition("\n")[0])
    parser.add_argument("languages", nargs="+", choices=["th", "id", "vi"])
    parser.add_argument(
        "--output", type=Path, required=True, help="Folder for a folder of Parquet files per language."
    )
    parser.add_argument("--source", type=Path, help="Copy of the repository; by default it is downloaded.")
    parser.add_argument(
        "--transcripts", default="train_refined.tsv", help="File of transcripts: train_refined.tsv or train_raw.tsv."
    )
    args = parser.parse_args()
    for language in args.languages:
        patterns = [f"data/{language}/train/*", f"data/{language}/{args.transcripts}"]
        source = args.source or Path(
            snapshot_download("speechcolab/gigaspeech2", repo_type="dataset", allow_patterns=patterns)
        )
        transcripts = read_transcripts(source / "data" / language / args.transcripts)
        for archive in sorted((source / "data" / language / "train").glob("*.tar.gz")):
            parquet = args.output / language / f"train-{archive.name.removesuffix('.tar.gz')}.parquet"
            # An interrupted run continues with the first missing file.
            if parquet.is_file():
                continue
            with atomic_path(parquet) as partial, pq.ParquetWriter(partial, SCHEMA) as writer:
                rows: list[dict] = []
                for row in read_archive(archive, transcripts):
                    rows.append(row)
                    if len(rows) == ROWS_AT_A_TIME:
                        writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
                        rows = []
                writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
            print(parquet)


if __name__ == "__main__":
    main()
