"""Files with the hypotheses of an evaluation, from which an interrupted evaluation continues."""

import glob
import json
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from ..atomic_writing import atomic_path


class HypothesisFiles:
    """
    Saves hypotheses as JSON Lines. The first line of a file holds `made_from`, and each further line holds one hypothesis.

    Args:
        output (`Path`): Report of the evaluation. Each process writes its own file beside it.
        made_from (`dict`): Everything that determines the hypotheses, such as model, dataset and options. Hypotheses of
            earlier runs are kept only if all values are equal.
    """

    def __init__(self, output: Path, made_from: dict):
        self.stem = output.with_suffix(".hypotheses")
        self.made_from = made_from

    def file(self, process_index: int = 0) -> Path:
        return self.stem.with_name(f"{self.stem.name}{f'-{process_index}' if process_index else ''}.jsonl")

    def collect(self, overwrite: bool, console: Console) -> dict[int, dict]:
        """
        Move the hypotheses of earlier runs, from the files of all their processes, into the file of the main process.

        Returns:
            `dict[int, dict]`: Hypotheses by the number of their row.
        """
        self.stem.parent.mkdir(parents=True, exist_ok=True)
        found: dict[int, dict] = {}
        # The pattern has a digit, so that it does not match the files of a report with a longer name.
        files = [self.file(), *map(Path, glob.glob(f"{glob.escape(str(self.stem))}-[0-9]*.jsonl"))]
        for file in filter(Path.exists, [] if overwrite else files):
            lines = [line for line in map(_parse, file.read_bytes().split(b"\n")) if line]
            if not lines:
                continue
            made_from = lines[0].get("made_from", {})
            differences = [name for name, value in self.made_from.items() if made_from.get(name) != value]
            if differences:
                console.print(f"{file} was made with another {', '.join(differences)}: starting from the beginning.")
                found = {}
                break
            found |= {line["row"]: line["output"] for line in lines[1:]}
        with atomic_path(self.file()) as collected, collected.open("w", encoding="utf-8") as stream:
            _write(stream, {"made_from": self.made_from})
            for row, output in found.items():
                _write(stream, {"row": row, "output": output})
        for file in files[1:]:
            file.unlink()
        return found

    def keep(self, hypotheses: Iterator[tuple[int, dict]], process_index: int) -> Iterator[tuple[int, dict]]:
        """
        Write each hypothesis to the file of this process and pass it on. [`HypothesisFiles.collect`] must have run in the
        main process before.
        """
        file = self.file(process_index)
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w" if process_index else "a", encoding="utf-8") as stream:
            if process_index:
                _write(stream, {"made_from": self.made_from})
            for row, output in hypotheses:
                _write(stream, {"row": row, "output": output})
                stream.flush()
                yield row, output


def _write(stream, line: dict) -> None:
    stream.write(json.dumps(line, ensure_ascii=False) + "\n")


def _parse(line: bytes) -> dict | None:
    """Parse a line. An incomplete line of a killed run gives `None`."""
    try:
        return json.loads(line)
    except ValueError:
        return None


__all__ = ["HypothesisFiles"]
