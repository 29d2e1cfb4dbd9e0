"""The command `llm-asr`."""

import argparse
import os
import sys

from .commands import (
    align,
    card,
    convert,
    evaluate,
    export,
    inspect,
    leaderboard,
    listen,
    push,
    serve,
    train,
    transcribe,
    trim_vocabulary,
)
from .commands.options import UsageError, describe_error


# With this variable set, unexpected errors show their traceback.
TRACEBACK_VARIABLE = "LLM_ASR_TRACEBACK"

# Each module has `add_arguments(parser)` and `run(args) -> exit status`. Its docstring gives the help text.
COMMANDS = {
    "transcribe": transcribe,
    "listen": listen,
    "align": align,
    "train": train,
    "evaluate": evaluate,
    "leaderboard": leaderboard,
    "serve": serve,
    "inspect": inspect,
    "card": card,
    "push": push,
    "convert": convert,
    "export": export,
    "trim-vocabulary": trim_vocabulary,
}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llm-asr", description="Multilingual, LLM-based speech recognition.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in COMMANDS.items():
        described = (module.__doc__ or "").partition(": ")[2].strip()
        command = commands.add_parser(name, help=described, description=described)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a command. The exit status is 0 for success, 1 for a failure, and 2 for a request that cannot be fulfilled."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["train"] and argv[1:2] not in (["-h"], ["--help"]):
        # The options of `train` include those of the `Trainer`, whose import takes seconds, so `train` parses them itself.
        args = argparse.Namespace(command="train", arguments=argv[1:], run=train.run)
    else:
        args = make_parser().parse_args(argv)
    try:
        return args.run(args)
    except UsageError as error:
        # Quoted messages of Transformers may have several lines.
        print(f"llm-asr {args.command}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except Exception as error:
        if args.command == "train" or os.environ.get(TRACEBACK_VARIABLE):
            raise
        hint = f"set {TRACEBACK_VARIABLE}=1 to see the traceback."
        print(f"llm-asr {args.command}: error: {describe_error(error)} ({hint})", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"llm-asr {args.command}: stopped; finished results are kept.", file=sys.stderr)
        return 130
