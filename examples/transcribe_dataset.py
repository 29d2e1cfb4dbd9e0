"""
Transcribes a dataset of any size into Parquet files, with any number of processes and machines.

    python examples/transcribe_dataset.py --model runs/demo --dataset data/demo/test.jsonl --output transcripts
    torchrun --nproc_per_node 8 --max-restarts 3 examples/transcribe_dataset.py --model MODEL --dataset google/fleurs \
        --name es_419 --split train --streaming --output transcripts

An interrupted run continues when it is started again. Read the files with
`load_dataset("parquet", data_files="transcripts/*.parquet")`.
"""

import argparse
from pathlib import Path

from llm_asr.dataset_transcription import DatasetTranscription, transcribe_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Folder or Hub id of a checkpoint.")
    parser.add_argument("--dataset", required=True, help="JSON Lines, CSV, TSV or Parquet file, or a Hub id.")
    parser.add_argument("--name", help="Configuration of a Hub dataset.")
    parser.add_argument("--split", default="train", help="Split of a Hub dataset.")
    parser.add_argument("--streaming", action="store_true", help="Read rows without saving the dataset on disk.")
    parser.add_argument("--audio-column", default="audio")
    parser.add_argument("--language-column", help="Column with languages; by default the model identifies them.")
    parser.add_argument("--language", help="Language of all rows.")
    parser.add_argument("--timestamps", choices=["segment", "word"], help="Times of segments or, with CIF, of words.")
    parser.add_argument(
        "--timing", action="store_true", help="Add the duration and the computing time of each recording in seconds."
    )
    parser.add_argument("--batch-size", type=int, default=16, help="Number of segments in a batch.")
    parser.add_argument("--shard-size", type=int, default=256, help="Number of rows in a file.")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    parser.add_argument("--output", type=Path, required=True, help="Folder for Parquet files.")
    args = parser.parse_args()
    try:
        options = DatasetTranscription(**vars(args))
    except ValueError as error:
        parser.error(str(error))
    transcribe_dataset(options)


if __name__ == "__main__":
    main()
