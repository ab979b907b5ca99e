"""The `lmsi` command: which stages to run, and with which gin configuration.

Nothing heavy is imported before the arguments are understood, so that help and most mistakes take
a fraction of a second.
"""

import argparse
import contextlib
import os
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NoReturn

from lmsi_jax import __version__
from lmsi_jax.cli.commands import Command, Load, commands
from lmsi_jax.config import gin_edge, gin_errors
from lmsi_jax.errors import LmsiError, TryAgain
from lmsi_jax.runtime.signals import Terminated, signals_as_exceptions

if TYPE_CHECKING:
    from lmsi_jax.config.run import Run

STAGES = (
    *("generate", "prompts", "sample", "vote", "path_scores"),
    *("mix", "score", "train", "eval", "report"),
)

# command: (its stages, one line of help, an example's arguments)
_COMMANDS: dict[str, tuple[tuple[str, ...], str, str]] = {
    "run": (STAGES, "the whole loop: every stage of every round", "quickstart"),
    "generate": (("generate",), "real questions -> the model's own, where asked for", "generated"),
    "prompts": (
        ("prompts",),
        "zero-shot answers -> few-shot prompts, where asked for",
        "generated",
    ),
    "sample": (
        ("sample",),
        "questions -> reasoning paths",
        "quickstart --gin.Sampling.num_samples=8",
    ),
    "vote": (("vote",), "paths -> the majority's answer and its confidence", "quickstart"),
    "mix": (("path_scores", "mix"), "votes -> training examples in the four formats", "quickstart"),
    "train": (("score", "train"), "examples -> a fine-tuned model", "quickstart"),
    "eval": (("eval",), "accuracy before and after, per prompt style and task", "quickstart"),
    "report": (("report",), "the table and report.html of what is there", "quickstart"),
    "distill": (
        ("mix", "score", "train", "eval", "distill"),
        "a student learns a finished run's selected paths",
        "distill_tiny",
    ),
    "pretrain": (("pretrain",), "train a base model by its recipe", "pretrain"),
}
_GIN_HELP = """\
gin flags, as in T5X:
  --gin_file=F              a gin file, repeatable; later ones override earlier ones
  --gin.NAME=VALUE          one parameter (Run.rounds) or macro; VALUE in gin syntax or plain text
  --gin_search_paths=A,B    folders where gin files and their includes are looked for
"""
_PROCESS_HELP = """\
several processes, as in T5X; all of them see one output_dir:
  --coordinator_address=HOST:PORT   of process 0; "auto" alone on TPU pods, Slurm, Open MPI
  --process_count=N                 how many there are
  --process_index=I                 which of them this is, from 0
"""
# gRPC and older TensorFlow write pages to stderr unless they are told before they are imported.
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "GRPC_VERBOSITY": "ERROR"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      argv: the arguments after `lmsi`; those of the process by default.
    Returns:
      The exit code: 0; 2 for what the user can mend, 75 where another process is gone; 130 when
      interrupted, 143 when terminated.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    with contextlib.ExitStack() as last:  # what is left to do once the message is out
        try:
            _execute(words, as_command=argv is None, last=last)
        except LmsiError as error:
            _print_error(error)
            if isinstance(error, TryAgain):
                _abandon(error.exit_code)
            return error.exit_code
        except KeyboardInterrupt:
            print("\ninterrupted; the same command goes on where it was", file=sys.stderr)
            return 130
        except Terminated:
            print("terminated; the same command goes on where it was", file=sys.stderr)
            return 143
    return 0


def _execute(words: list[str], as_command: bool, last: contextlib.ExitStack) -> None:
    gin_args, rest = gin_edge.parse(words)
    parser = _parser()
    args = parser.parse_args(rest)
    if args.command is None:
        parser.print_help()
        return
    other = commands().get(args.command)
    kind = "runs" if other is None else other.CONFIGS
    if kind:
        _check_config(args, gin_args, kind)
    if other is None:
        _check_processes(args)
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if as_command:
        from lmsi_jax.runtime.progress import quiet_libraries

        quiet_libraries()
    if other is not None:
        _use(other, args, gin_args)
        return
    from lmsi_jax.pipeline.rounds import execute

    with _configured(args.config, gin_args) as load:
        run = load(())
        stages = _COMMANDS[args.command][0]
        if args.dry_run:
            from lmsi_jax.cli.dry_run import dry_run

            dry_run(run, stages)
            return
        command = shlex.join(["lmsi", *words])
        if args.coordinator_address is not None:
            _connect(args, last)
        with (
            signals_as_exceptions()
        ):  # after connecting, where JAX puts a handler of its own on SIGTERM
            execute(run, stages, command, gin_edge.operative_config())


@contextlib.contextmanager
def _configured(config: str | None, gin_args: gin_edge.GinArgs) -> Iterator[Load]:
    """Reads gin's files and flags; gives what builds the `Run` that they describe."""
    from lmsi_jax.config.configurables import load_run

    def load(bindings: Sequence[str]) -> "Run":
        """Builds it; with further bindings all is read anew, and they come last."""
        if bindings:
            gin_edge.load(config, gin_edge.with_bindings(gin_args, bindings))
        return _build(load_run)

    gin_edge.load(config, gin_args)
    with gin_errors.readable_calls():
        yield load


def _use(command: Command, args: argparse.Namespace, gin_args: gin_edge.GinArgs) -> None:
    """Carries out a command that is no stage of a run."""
    if command.CONFIGS:
        config = args.config and gin_edge.find_config(
            args.config, gin_args.search_paths, command.CONFIGS
        )
        with _configured(config, gin_args) as load:
            command.run(args, load)
        return
    if gin_args != gin_edge.GinArgs():
        raise LmsiError(f"lmsi {command.NAME} takes no gin flags; see lmsi {command.NAME} --help")
    command.run(args, _no_run)


def _no_run(bindings: Sequence[str]) -> "Run":
    del bindings
    raise LmsiError("this command has no configuration")


def _connect(args: argparse.Namespace, last: contextlib.ExitStack) -> None:
    """Joins this process to the run's others; at last it waits for them to leave."""
    from lmsi_jax.runtime import processes

    processes.connect(args.coordinator_address, args.process_count, args.process_index)
    last.callback(processes.disconnect)


def _abandon(code: int) -> None:
    """Leaves the run's other processes behind, where this one was connected to some."""
    from lmsi_jax.runtime import processes

    processes.abandon(code)


def _check_processes(args: argparse.Namespace) -> None:
    """Finds a wrong set of process flags before the slow imports."""
    address, count, index = args.coordinator_address, args.process_count, args.process_index
    given = [value is not None for value in (address, count, index)]
    if not any(given) or (address == "auto" and not any(given[1:])):
        return
    if address == "auto" or not all(given):
        raise LmsiError(
            "several processes want --coordinator_address=HOST:PORT, --process_count=N and "
            "--process_index=I together, or --coordinator_address=auto alone"
        )
    if not 0 <= index < count:
        raise LmsiError(
            f"--process_index={index}: with --process_count={count} it is 0 to {count - 1}"
        )


def _build(load_run: Callable[[], "Run"]) -> "Run":
    """Builds the configuration; a value that one of its classes refuses is the user's to mend."""
    try:
        return load_run()
    except ValueError as error:
        raise LmsiError(str(error).strip().splitlines()[0]) from None


def _check_config(args: argparse.Namespace, gin_args: gin_edge.GinArgs, kind: str) -> None:
    """Finds what is wrong with the configuration's name before the slow imports."""
    if args.config is not None:
        gin_edge.find_config(args.config, gin_args.search_paths, kind)
    elif not (gin_args.files or gin_args.bindings):
        names = ", ".join(gin_edge.packaged_configs(kind)) or "none packaged"
        raise LmsiError(f"which configuration? lmsi {args.command} NAME ({names}) or --gin_file=F")


class _Parser(argparse.ArgumentParser):
    """Reports its errors the way of all others, with the nearest command where one is near."""

    def error(self, message: str) -> NoReturn:
        word = message.split("invalid choice: '")[-1].split("'")[0]
        known = (*_COMMANDS, *commands())
        near = gin_errors.suggestion(word, known) if "invalid choice" in message else ""
        raise LmsiError(f"{message}; see {self.prog} --help{near}")


def _parser() -> _Parser:
    shape = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="lmsi",
        description="A language model improves its own reasoning, without labels.",
        epilog=f"{_GIN_HELP}\n{_PROCESS_HELP}\nexample:\n"
        "  lmsi run quickstart --gin.Run.output_dir=runs/first",
        formatter_class=shape,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"lmsi_jax {__version__}")
    group = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, (_, text, example) in _COMMANDS.items():
        command = group.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}. A finished stage is not done again; "
            "an interrupted one goes on.",
            epilog=f"{_GIN_HELP}\n{_PROCESS_HELP}\nexample:\n  lmsi {name} {example}",
            formatter_class=shape,
            allow_abbrev=False,
        )
        _add_config(command)
        command.add_argument(
            "--dry_run",
            action="store_true",
            help="print every parameter, say what is wrong or missing, and run nothing",
        )
        command.add_argument("--coordinator_address", help=argparse.SUPPRESS)
        command.add_argument("--process_count", type=int, help=argparse.SUPPRESS)
        command.add_argument("--process_index", type=int, help=argparse.SUPPRESS)
    for name, other in commands().items():
        command = group.add_parser(
            name,
            help=other.HELP,
            description=f"{other.HELP[0].upper()}{other.HELP[1:]}.",
            epilog=f"{_GIN_HELP if other.CONFIGS else ''}\nexample:\n  lmsi {name} {other.EXAMPLE}",
            formatter_class=shape,
            allow_abbrev=False,
        )
        if other.CONFIGS:
            _add_config(command)
        other.add_arguments(command)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", nargs="?", help="a packaged configuration's name, or the path of a .gin file"
    )


def _print_error(error: LmsiError) -> None:
    width = min(shutil.get_terminal_size().columns, 100)
    for line in f"lmsi: error: {error}".splitlines():
        wrapped = textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False)
        print("\n".join(wrapped), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
