"""Tables of an evaluation for the terminal and for Markdown."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table


class Tables:
    """Prints tables on the terminal and collects the same tables in Markdown."""

    def __init__(self, console: Console):
        self.console = console
        self.markdown: list[str] = []

    def add(self, title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        table = Table(*headers, title=title)
        for row in rows:
            table.add_row(*map(escape, row))
        self.console.print(table)
        lines = [headers, ["---"] * len(headers), *rows]
        cells = [[" ".join(cell.replace("|", "\\|").split()) for cell in line] for line in lines]
        self.markdown.append("\n".join([f"## {title}", "", *(f"| {' | '.join(line)} |" for line in cells)]))

    def add_examples(self, rows: list[dict], count: int) -> None:
        """Add the references and hypotheses of the first `count` recordings of each language."""
        shown: dict[str, int] = {}
        examples = []
        for row in rows:
            language = row.get("language") or ""
            shown[language] = shown.get(language, 0) + 1
            if shown[language] <= count:
                examples.append([language, row["text"], row["output"]["text"]])
        self.add("Held-out recordings", ["language", "reference", "hypothesis"], examples)

    def add_report(self, report: dict[str, dict[str, float]], title: str, headers: dict[str, str]) -> None:
        """Add a table with a row for each language, `"all"` last, and a column for each of `headers`."""
        rows = []
        for language in sorted(report, key=lambda name: (name == "all", name)):
            cells = (report[language][name] for name in headers)
            rows.append([language, *(str(cell) if isinstance(cell, int) else f"{cell:.1f}" for cell in cells)])
        self.add(title, ["language", *headers.values()], rows)

    def add_error_rates(self, report: dict[str, dict], title: str, group: str) -> None:
        """
        Add a table of error rates with 95 % intervals. Substitutions, insertions and deletions are in percent of the
        reference length.
        """
        rows = []
        for name, found in report.items():
            # For text without spaces, the word error rate would repeat the character error rate.
            rates = [
                f"{found[rate]:.1f} [{', '.join(f'{end:.1f}' for end in found[f'{rate}_interval'])}]"
                if rate in ("cer", found["headline"])
                else "–"
                for rate in ("wer", "cer")
            ]
            kinds = [
                f"{100 * found[kind] / found['reference_length']:.1f}"
                for kind in ("substitutions", "insertions", "deletions")
            ]
            rows.append([name, str(found["recordings"]), *rates, "/".join(kinds)])
        self.add(title, [group, "recordings", "WER %", "CER %", "S/I/D %"], rows)

    def add_usage(self, usage: dict) -> None:
        """Add a table of the experts' shares of frames, with a row for each language and a column for each expert."""
        title = f"Share of frames by expert, % (mutual information {usage['mutual_information']:.2f} bits)"
        headers = ["language", *map(str, range(len(usage["shares"]["all"]))), "entropy"]
        rows = [
            [language, *(f"{100 * share:.1f}" for share in shares), f"{usage['entropy'][language]:.2f}"]
            for language, shares in usage["shares"].items()
        ]
        self.add(title, headers, rows)


__all__ = ["Tables"]
