"""Parse the command line of `lmsi`: its commands, their arguments, and the help texts."""

import argparse
from typing import NamedTuple, NoReturn

from lmsi_jax import __version__
from lmsi_jax.cli import info_commands, run_commands, subcommands
from lmsi_jax.cli.subcommands import Command, add_allow_imports
from lmsi_jax.config import gin_errors, gin_loader
from lmsi_jax.errors import LmsiError

STAGES = (
    *("generate", "prompts", "paraphrase", "sample", "vote", "filter_scores"),
    *("mix", "teacher_scores", "train", "eval", "report"),
)
"""All stages of a round, in order."""


class StageCommand(NamedTuple):
    """A command that runs stages of a run."""

    stages: tuple[str, ...]
    """The stages, in order."""
    help: str
    """One line of help, in the imperative."""
    example: str
    """Arguments of the help's example."""


STAGE_COMMANDS: dict[str, StageCommand] = {
    "run": StageCommand(STAGES, "run the whole loop: every stage of every round", "quickstart"),
    "generate": StageCommand(
        ("generate",), "write new questions with the model, if configured", "generated"
    ),
    "prompts": StageCommand(
        ("prompts",), "build few-shot prompts from zero-shot answers, if configured", "generated"
    ),
    "sample": StageCommand(
        ("paraphrase", "sample"),
        "draw chain-of-thought samples for the questions",
        "quickstart --gin.Sampling.num_samples=8",
    ),
    "vote": StageCommand(("vote",), "find each question's majority answer", "quickstart"),
    "mix": StageCommand(
        ("filter_scores", "mix"), "turn the voted samples into training examples", "quickstart"
    ),
    "train": StageCommand(
        ("teacher_scores", "train"), "fine-tune the model on the examples", "quickstart"
    ),
    "eval": StageCommand(("eval",), "measure accuracy before and after training", "quickstart"),
    "report": StageCommand(("report",), "print the results and write report.html", "quickstart"),
    "probe": StageCommand(
        ("probe",), "test if the base model knows the test questions by heart", "quickstart"
    ),
    "distill": StageCommand(
        ("mix", "teacher_scores", "train", "eval", "distill"),
        "train a student on the selected samples of a finished run",
        "distill_tiny",
    ),
    "pretrain": StageCommand(("pretrain",), "train a base model from scratch", "pretrain"),
}

COMMANDS: dict[str, Command] = {
    **run_commands.COMMANDS,
    **subcommands.COMMANDS,
    **info_commands.COMMANDS,
}
"""All other commands by name."""

_GIN_HELP = """\
gin flags, as in T5X:
  --gin_file=F              read a gin file; repeatable, later ones override
  --gin.NAME=VALUE          set a parameter (Run.rounds) or a macro; VALUE is in
                            gin syntax or plain text
  --gin_search_paths=A,B    look in these folders for gin files and includes
"""
_PROCESS_HELP = """\
several processes, as in T5X, which all see one output folder:
  --coordinator_address=HOST:PORT   address of process 0; "auto", without the
                                    other flags, on TPU pods, Slurm, Open MPI
  --process_count=N                 number of processes
  --process_index=I                 index of this process, from 0
"""
_WIDTH = 80


class _Parser(argparse.ArgumentParser):
    """Raises its errors as LmsiErrors, with the nearest command if one is near."""

    def error(self, message: str) -> NoReturn:
        word = message.split("invalid choice: '")[-1].split("'")[0]
        known = (*STAGE_COMMANDS, *COMMANDS)
        if "invalid choice" in message and self.prog == "lmsi":
            message = f"there is no command {word!r}"
            raise LmsiError(f"{message}; see lmsi --help{gin_errors.suggestion(word, known)}")
        raise LmsiError(f"{message}; see {self.prog} --help")


def _formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=24, width=_WIDTH)


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the whole command line, gin flags aside."""
    lines = ["Improve a language model's reasoning with its own samples, without labels.", ""]
    for title, commands in _groups().items():
        lines.append(f"{title}:")
        lines += [f"  {name:<16}{text}" for name, text in commands.items()]
        lines.append("")
    parser = _Parser(
        prog="lmsi",
        usage="lmsi COMMAND [CONFIG] [flags]",
        description="\n".join(lines).rstrip(),
        epilog=f"{_GIN_HELP}\n{_PROCESS_HELP}\nexample:\n"
        "  lmsi run quickstart --gin.Run.output_dir=runs/first",
        formatter_class=_formatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"lmsi_jax {__version__}")
    group = parser.add_subparsers(
        dest="command", prog="lmsi", metavar="COMMAND", help=argparse.SUPPRESS
    )
    for name, stage_command in STAGE_COMMANDS.items():
        _add_stage_command(group, name, stage_command)
    for name, command in COMMANDS.items():
        sub = group.add_parser(
            name,
            description=_sentence(command.help),
            epilog=f"{_GIN_HELP if command.configs else ''}\nexample:\n  lmsi {name} "
            f"{command.example}",
            formatter_class=_formatter,
            allow_abbrev=False,
        )
        if command.configs:
            _add_config(sub)
        command.add_arguments(sub)
    return parser


def _groups() -> dict[str, dict[str, str]]:
    """Returns the help's list of commands, by heading."""
    stages = {name: command.help for name, command in STAGE_COMMANDS.items()}
    others = {name: stages.pop(name) for name in ("probe", "distill", "pretrain")}
    runs = {name: COMMANDS[name].help for name in run_commands.COMMANDS}
    info = {name: COMMANDS[name].help for name in info_commands.COMMANDS}
    others |= {name: one.help for name, one in COMMANDS.items() if name not in {**runs, **info}}
    return {
        "the loop": {"run": stages.pop("run")},
        "its stages, in order": stages,
        "runs that are there": runs,
        "other commands": others,
        "help": info,
    }


def _add_stage_command(
    group: "argparse._SubParsersAction[_Parser]", name: str, command: StageCommand
) -> None:
    parser = group.add_parser(
        name,
        usage=f"lmsi {name} [CONFIG] [--dry_run] [flags]",
        description=f"{_sentence(command.help)}\nFinished stages are kept, interrupted ones are "
        "continued.",
        epilog=f"{_GIN_HELP}\n{_PROCESS_HELP}\nexample:\n  lmsi {name} {command.example}",
        formatter_class=_formatter,
        allow_abbrev=False,
    )
    _add_config(parser)
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="print every parameter and what is wrong or missing; run nothing",
    )
    parser.add_argument("--coordinator_address", help=argparse.SUPPRESS)
    parser.add_argument("--process_count", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--process_index", type=int, help=argparse.SUPPRESS)


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config",
        metavar="CONFIG",
        nargs="?",
        help="name of a packaged configuration, path of a .gin file, or folder of a run",
    )
    add_allow_imports(parser)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


# --- checks before the slow imports ---------------------------------------------------------------


def check_config(args: argparse.Namespace, gin_args: gin_loader.GinArgs, kind: str) -> None:
    """Raises LmsiError if the configuration does not exist, or none was named.

    Args:
      args: the parsed command line.
      gin_args: its gin flags.
      kind: the folder of gin_configs, see `gin_loader.find_config`.
    """
    if args.config is not None:
        gin_loader.find_config(args.config, gin_args.search_paths, kind)
    elif not (gin_args.files or gin_args.bindings):
        names = ", ".join(gin_loader.packaged_configs(kind)) or "none packaged"
        raise LmsiError(
            f"which configuration? lmsi {args.command} NAME ({names}) or --gin_file=F; lmsi "
            "configs says what each is for"
        )


def check_processes(args: argparse.Namespace) -> None:
    """Raises LmsiError if the process flags are incomplete or contradict each other."""
    address, count, index = args.coordinator_address, args.process_count, args.process_index
    given = [value is not None for value in (address, count, index)]
    if not any(given) or (address == "auto" and not any(given[1:])):
        return
    if address == "auto" or not all(given):
        raise LmsiError(
            "several processes need --coordinator_address=HOST:PORT, --process_count=N and "
            "--process_index=I together, or --coordinator_address=auto alone"
        )
    if not 0 <= index < count:
        raise LmsiError(
            f"--process_index={index}: with --process_count={count} it is 0 to {count - 1}"
        )
