"""
Draws the curves of one or several training runs.

    python examples/plot_training.py runs/first runs/second --output curves.png

Pass the `output_dir` of each run. For an unfinished run, the newest checkpoint is read. Each logged quantity gets a panel.
"""

import argparse
from pathlib import Path

from llm_asr.publishing.pictures import plot_curves, read_history


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the curves of training runs.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="`output_dir` of a run.")
    parser.add_argument("--output", type=Path, default=Path("curves.png"), help="Picture to write.")
    args = parser.parse_args()
    plot_curves({str(run): read_history(run) for run in args.runs}, args.output)


if __name__ == "__main__":
    main()
