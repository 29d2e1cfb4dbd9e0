"""
Creates a corpus of sentences in English, Russian, Czech and Dutch, and of test phrases in five languages, spoken by people.

    python examples/demo/open_speech.py --output data/open

The recordings are from Debian packages, which are pinned by version and SHA-256. `apt-get` downloads them without root. The
script pairs each recording with its normalised text, and leaves out pairs that an independent recogniser found wrong. Two splits
of the rest share no text, no dialogue and, where roles are known, no minor speaker. `README.md` in the output is the data card,
with counts, hours, rejected recordings and licences. `--check` runs the recogniser on all recordings again (15 minutes on one
thread) instead of using the verdicts in `open_corpus`. An interrupted check continues where it stopped. `--synthetic TAKES` adds
sentences in German, English, Spanish, French and Italian that SVOX Pico speaks (extra `corpus`), in `synthetic-train.jsonl`,
`synthetic-validation.jsonl` and `synthetic-test.jsonl`. `--rows FILE` makes only the recordings that a file of rows names, in a
few seconds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from gnome_texts import TEXTS
from open_corpus import pairs
from open_corpus.corpus import Corpus, divide, drop_wrong_pairs, read_corpus, summarize, write_files
from open_corpus.data_card import write_card
from open_corpus.packages import SOURCES, fetch_packages, read_source
from open_corpus.recogniser import hear
from open_corpus.synthetic import speak_corpus
from speech import install_package

from llm_asr.atomic_writing import write_text


def check_pairs(corpus: Corpus, output: Path, verdicts: Path) -> None:
    """Write the wrong pairs to the file ``verdicts``, and the transcripts to the folder ``check`` of the output."""

    def listen(rows: Sequence[dict], margin: float) -> dict[str, str]:
        recordings = {row["id"]: (output / row["audio"], row["language"]) for row in rows}
        return hear(recordings, output / "check" / f"heard-{margin:g}s.jsonl", output / "check" / "recogniser", margin)

    pairs.check_pairs(corpus.rows, listen, verdicts)


def speak(output: Path, packages: Path, people: dict[str, list[dict]], takes: int) -> dict[str, list[dict]]:
    """Create the synthetic speech, and return its rows by file. See :func:`open_corpus.synthetic.speak_corpus`."""
    documentation = packages.resolve() / TEXTS.name
    if not documentation.is_dir():
        install_package(TEXTS, packages.resolve(), documentation)
    scripts = fetch_packages(packages, ["fillets-cs"])["fillets-ng-data"]
    return speak_corpus(scripts, documentation, people, output, takes)


def make_corpus(
    output: Path, packages: Path, sources: list[str], verdicts: Path, check: bool = False, takes: int = 0
) -> dict:
    """Write the corpus, and return its summary.

    Args:
        output: folder of the corpus.
        packages: folder of the downloads.
        sources: keys of ``SOURCES``.
        verdicts: file of the wrong pairs. If ``check`` is true, it is written first.
        check: whether the recogniser transcribes every recording.
        takes: number of times that a synthetic voice speaks each training sentence. With 0 there is no synthetic speech.
    """
    folders = fetch_packages(packages, sources)
    corpus = read_corpus((clip for source in sources for clip in read_source(source, folders)), output)
    if check:
        check_pairs(corpus, output, verdicts)
    drop_wrong_pairs(corpus, pairs.read_verdicts(verdicts))
    files = divide(corpus)
    if takes:
        files |= speak(output, packages, files, takes)
    write_files(files, output)
    summary = summarize(files, corpus.rejected)
    write_text(output / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    write_text(output / "README.md", write_card(summary, pairs.read_calibration(verdicts), sources))
    return summary


def make_rows(rows_file: Path, output: Path, packages: Path) -> Path:
    """
    Write the recordings of rows of an earlier corpus again.

    Args:
        rows_file: JSON lines with "id" and "source". Only the packages of these sources are downloaded.
        output: folder of the recordings, and of a copy of ``rows_file``.
        packages: folder of the downloads.

    Raises:
        ValueError: a package does not have a recording of ``rows_file``, or its text is another.
    """
    rows = {row["id"]: row for row in map(json.loads, rows_file.read_text(encoding="utf-8").splitlines())}
    sources = list(dict.fromkeys(row["source"] for row in rows.values()))
    folders = fetch_packages(packages, sources)
    clips = (clip for source in sources for clip in read_source(source, folders) if clip.id in rows)
    found = {row["id"]: row["text"] for row in read_corpus(clips, output).rows}
    different = [row_id for row_id, row in rows.items() if found.get(row_id) != row["text"]]
    if different:
        raise ValueError(f"{rows_file} has rows that the packages do not have, or with another text: {different}.")
    write_text(output / rows_file.name, rows_file.read_text(encoding="utf-8"))
    return output / rows_file.name


def print_summary(summary: dict) -> None:
    """Print counts and hours, and rejected recordings by reason."""
    for row in summary["files"]:
        print(
            f"{row['file']:20} {row['language']}  {row['rows']:5} rows  {row['hours']:6.2f} h  {row['words']:6} words"
        )
    for row in summary["rejected"]:
        print(f"rejected             {row['language']}  {row['recordings']:5}  {row['source']}: {row['reason']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("data/open"), help="Folder of the corpus.")
    parser.add_argument("--packages", type=Path, default=Path("data/packages"), help="Folder of what is downloaded.")
    parser.add_argument("--sources", nargs="+", choices=sorted(SOURCES), default=list(SOURCES))
    parser.add_argument("--check", action="store_true", help="Listen to every recording again.")
    parser.add_argument(
        "--synthetic", metavar="TAKES", type=int, default=0, help="Add sentences that synthetic voices say so often."
    )
    parser.add_argument("--rows", metavar="FILE", type=Path, help="Make only the recordings of these rows.")
    args = parser.parse_args()
    if args.rows is not None:
        print(make_rows(args.rows, args.output, args.packages))
        return
    if args.synthetic < 0:
        parser.error(f"--synthetic must not be negative, got {args.synthetic}.")
    verdicts = args.output / "check" / "wrong_pairs.json" if args.check else pairs.VERDICTS
    print_summary(make_corpus(args.output, args.packages, args.sources, verdicts, args.check, args.synthetic))


if __name__ == "__main__":
    main()
