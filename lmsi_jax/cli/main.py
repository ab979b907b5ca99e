"""Run the `lmsi` command: choose the stages, load the gin configuration, report errors.

Nothing heavy is imported before the arguments are understood, so that help and most mistakes take
a fraction of a second.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import os
import pathlib
import platform
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lmsi_jax.cli.parser import (
    COMMANDS,
    STAGE_COMMANDS,
    check_config,
    check_processes,
    make_parser,
)
from lmsi_jax.cli.subcommands import Command, Load
from lmsi_jax.config import gin_errors, gin_loader
from lmsi_jax.errors import LmsiError, TryAgain
from lmsi_jax.runtime import console
from lmsi_jax.runtime.signals import (
    Terminated,
    exit_at_signals,
    signals_as_exceptions,
    watched_signals,
)

if TYPE_CHECKING:
    from lmsi_jax.config import Run

_SIGNALLED = (130, 143)  # exit codes after Ctrl-C and after SIGTERM or SIGHUP
# gRPC and older TensorFlow write pages to stderr unless told otherwise before they are imported.
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "GRPC_VERBOSITY": "ERROR"}
_PROCESSOR = ("model name", "flags", "Features")  # lines of /proc/cpuinfo, on x86 and on Arm


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      argv: the arguments after `lmsi`; those of the process by default.
    Returns:
      The exit code: 0; 2 for mistakes that the user can fix, 3 if a run does not fit, 75 if another
      process of the run is gone; 130 when interrupted, 143 when terminated.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is not None:
        return _main(words, as_command=False)
    console.guard_streams()
    code = _main(words, as_command=True)
    if code in _SIGNALLED:  # at an orderly exit the threads of a compiler may crash
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    exit_at_signals(code)
    return code


def _main(words: list[str], as_command: bool) -> int:
    with contextlib.ExitStack() as at_exit:  # runs after the message is out
        try:
            _execute(words, as_command=as_command, at_exit=at_exit)
            sys.stdout.flush()
        except LmsiError as error:
            _print_error(error)
            if isinstance(error, TryAgain):
                from lmsi_jax.runtime import processes

                processes.abandon(error.exit_code)
            return error.exit_code
        except OSError as error:
            from lmsi_jax.runtime.files import cannot, is_of_disk

            if not is_of_disk(error):
                raise
            _print_error(cannot("write", error.filename or "the output", error))
            return LmsiError.exit_code
        except KeyboardInterrupt:
            print("\ninterrupted; the same command continues where it stopped", file=sys.stderr)
            return _SIGNALLED[0]
        except Terminated:
            print("terminated; the same command continues where it stopped", file=sys.stderr)
            return _SIGNALLED[1]
    return 0


def _execute(words: list[str], as_command: bool, at_exit: contextlib.ExitStack) -> None:
    gin_args, rest = gin_loader.parse(words)
    parser = make_parser()
    args = parser.parse_args(rest)
    if args.command is None:
        parser.print_help()
        return
    other = COMMANDS.get(args.command)
    kind = "runs" if other is None else other.configs
    if kind:
        check_config(args, gin_args, kind)
    if other is None:
        check_processes(args)
    if getattr(args, "allow_imports", False):
        gin_args = dataclasses.replace(gin_args, allow_imports=True)
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    with contextlib.ExitStack() as watched:
        if as_command:
            keep_programs()
            from lmsi_jax.runtime.progress import quiet_libraries

            quiet_libraries()  # first, since it forks and the other starts a thread
            watched.enter_context(watched_signals())
        _run(words, args, gin_args, at_exit)


def _run(
    words: list[str],
    args: argparse.Namespace,
    gin_args: gin_loader.GinArgs,
    at_exit: contextlib.ExitStack,
) -> None:
    """Runs the command that the arguments name."""
    other = COMMANDS.get(args.command)
    if other is not None:
        _run_other(other, args, gin_args)
        return
    stages = STAGE_COMMANDS[args.command].stages
    with _configured(args.config, gin_args) as load:
        run = load(())
        if args.dry_run:
            from lmsi_jax.cli.dry_run import dry_run

            dry_run(run, stages)
            return
        from lmsi_jax.pipeline.rounds import execute

        if args.coordinator_address is not None:
            _connect(args, at_exit)
        command = shlex.join(["lmsi", *words])
        with signals_as_exceptions():  # after connecting, because JAX sets a handler for SIGTERM
            execute(run, stages, command, gin_loader.operative_config())


@contextlib.contextmanager
def _configured(config: str | None, gin_args: gin_loader.GinArgs) -> Iterator[Load]:
    """Reads gin's files and flags; yields the function that builds the `Run` they describe."""
    from lmsi_jax.config.configurables import load_run

    def load(bindings: Sequence[str]) -> "Run":
        """Builds the run; with further bindings everything is read anew, and they come last."""
        if bindings:
            gin_loader.load(config, gin_loader.with_bindings(gin_args, bindings))
        return load_run()

    gin_loader.load(config, gin_args)
    with gin_errors.readable_calls():
        yield load


def _run_other(command: Command, args: argparse.Namespace, gin_args: gin_loader.GinArgs) -> None:
    """Runs a command that is no stage of a run."""
    if command.configs:
        config = args.config
        if config and not (command.configs == "runs" and gin_loader.is_run_folder(config)):
            config = gin_loader.find_config(config, gin_args.search_paths, command.configs)
        with _configured(config, gin_args) as load:
            command.run(args, load)
        return
    if gin_args.files or gin_args.bindings or gin_args.search_paths:
        raise LmsiError(f"lmsi {args.command} takes no gin flags; see lmsi {args.command} --help")

    def load_nothing(bindings: Sequence[str]) -> "Run":
        raise LmsiError(f"lmsi {args.command} has no configuration")

    command.run(args, load_nothing)


def keep_programs() -> None:
    """Has JAX keep compiled programs, so that the next start of a command does not compile them.

    They are in the user's cache folder, apart for each kind of processor: the program of another
    one may have instructions that this one lacks. JAX_COMPILATION_CACHE_DIR names another folder,
    or none if it is empty. A folder that cannot be written is left out. Programs that compile in
    less than a second are kept too, unlike JAX does: a command has a hundred of them.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    processor = platform.machine()
    with contextlib.suppress(OSError):
        lines = pathlib.Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        processor += str(sorted({line for line in lines if line.startswith(_PROCESSOR)}))
    digest = hashlib.sha256(processor.encode()).hexdigest()[:12]
    folder = pathlib.Path(cache) / "lmsi_jax" / f"programs-{digest}"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if os.access(folder, os.W_OK):
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def _connect(args: argparse.Namespace, at_exit: contextlib.ExitStack) -> None:
    """Connects this process to the run's others; at exit it waits for them to leave."""
    from lmsi_jax.runtime import processes

    processes.connect(args.coordinator_address, args.process_count, args.process_index)
    at_exit.callback(processes.disconnect)


def _print_error(error: LmsiError) -> None:
    width = min(shutil.get_terminal_size().columns, 100)
    for line in console.printable(f"lmsi: error: {error}").splitlines():
        wrapped = textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False)
        print("\n".join(wrapped), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
