"""The command `llm-asr`."""

import argparse
import sys

from . import describing, exporting, inspecting, pushing, transcribing
from .serving import command as serving
from .transcribing import UsageError


# Each has `add_arguments(parser)` and `run(args) -> exit status`, and says in its docstring what it is.
COMMANDS = {
    "transcribe": transcribing,
    "serve": serving,
    "inspect": inspecting,
    "card": describing,
    "push": pushing,
    "export": exporting,
}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llm-asr", description="Multilingual, LLM-based speech recognition.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in COMMANDS.items():
        described = module.__doc__.partition(": ")[2].strip()
        command = commands.add_parser(name, help=described, description=described)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 if all went well, 1 if something failed, 2 if what was asked for cannot be done."""
    args = make_parser().parse_args(argv)
    try:
        return args.run(args)
    except UsageError as error:
        # Those of Transformers that are quoted have several lines.
        print(f"llm-asr {args.command}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"llm-asr {args.command}: stopped; what is finished is kept.", file=sys.stderr)
        return 130
