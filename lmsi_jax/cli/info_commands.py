"""Define the commands that explain: settings, packaged configurations, this machine, completion.

This module is imported for `lmsi --help`, so whatever is heavy is imported when a command runs.
"""

import argparse
import os
import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lmsi_jax.cli.subcommands import Command, Load
from lmsi_jax.config import gin_errors, gin_loader
from lmsi_jax.errors import LmsiError

_WIDTH = 80

# --- help -----------------------------------------------------------------------------------------


def _add_help_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "topic",
        metavar="TOPIC",
        help="a setting (Sampling.temperature, or temperature), a class of settings (Sampling), or "
        "a command (sample)",
    )


def _print_help(args: argparse.Namespace, load: Load) -> None:
    print(explain_topic(args.topic))


def explain_topic(topic: str) -> str:
    """Returns the documentation of a setting, of all settings of a class, or of a command.

    Args:
      topic: a gin name, a field's name alone, a class, or a command; capitals do not matter.

    Raises:
      LmsiError: nothing has this name; the nearest one is in the message.
    """
    from lmsi_jax.cli.parser import make_parser
    from lmsi_jax.config.reference import GROUPS, field_entries

    entries = {
        f"{cls.__name__}.{entry.name}": entry
        for classes in GROUPS.values()
        for cls in classes
        for entry in field_entries(cls)
    }
    classes = {cls.__name__: cls for group in GROUPS.values() for cls in group}
    wanted = topic.strip().lower().removeprefix("--gin.")
    if cls := {name.lower(): cls for name, cls in classes.items()}.get(wanted):
        about = " ".join((cls.__doc__ or "").split("\n\n")[0].split())
        names = [name for name in entries if name.startswith(f"{cls.__name__}.")]
        settings = "\n\n".join(_explained(name, entries[name]) for name in names)
        return f"{_filled(about)}\n\n{settings}"
    found = [name for name in entries if wanted in (name.lower(), name.partition(".")[2].lower())]
    if found:
        return "\n\n".join(_explained(name, entries[name]) for name in found)
    commands = command_parsers(make_parser())
    if wanted in commands:
        return commands[wanted].format_help().rstrip()
    fields = {name.partition(".")[2] for name in entries}
    near = gin_errors.suggestion(topic, [*entries, *fields, *classes, *commands])
    raise LmsiError(
        f"nothing is called {topic!r}{near or '; docs/configuration.md has all settings'}"
    )


def _explained(name: str, entry: Any) -> str:
    facts = f"{entry.type}; {entry.default}"
    return f"{name}\n{_filled(facts, '  ')}\n{_filled(entry.text, '  ')}"


def _filled(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def command_parsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Returns the parser of each command."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


# --- configs --------------------------------------------------------------------------------------

_KINDS = {
    "runs": "lmsi run NAME",
    "studies": "lmsi study NAME",
    "models": "--gin_file=models/NAME.gin",
}


def _add_configs_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="a configuration whose whole header to print"
    )


def _print_configs(args: argparse.Namespace, load: Load) -> None:
    if args.name:
        print(describe_config(args.name))
        return
    for kind, use in _KINDS.items():
        print(f"{kind} ({use}):")
        for name in gin_loader.packaged_configs(kind):
            print(_entry(name, _first_sentence(_header(gin_loader.find_config(name, (), kind)))))
        print()


def describe_config(name: str) -> str:
    """Returns the header of a packaged configuration and the path of its file.

    Raises:
      LmsiError: there is none of this name.
    """
    known = {kind: gin_loader.packaged_configs(kind) for kind in _KINDS}
    for kind, names in known.items():
        if name in names:
            path = gin_loader.find_config(name, (), kind)
            return f"{_header(path) or '(no header)'}\n\n{path}"
    near = gin_errors.suggestion(name, [one for names in known.values() for one in names])
    raise LmsiError(f"there is no packaged configuration {name!r}{near}; lmsi configs lists them")


def _header(path: str) -> str:
    """Returns the comment that a gin file begins with, without its number signs."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    head = [*_leading_comments(lines)]
    return "\n".join(re.sub(r"^# ?", "", line).rstrip() for line in head).strip()


def _leading_comments(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        if not line.startswith("#"):
            return
        yield line


def _first_sentence(text: str) -> str:
    paragraph = " ".join(text.partition("\n\n")[0].split())
    return re.split(r"(?<!\bal)\.\s", paragraph, maxsplit=1)[0].rstrip(".")


def _entry(name: str, text: str) -> str:
    """Returns a name and a text beside it, in 80 columns."""
    lines = textwrap.wrap(text, _WIDTH - 22, break_on_hyphens=False) or [""]
    first = f"  {name:<19} {lines[0]}".rstrip()
    return "\n".join([first, *(f"{'':22}{line}" for line in lines[1:])])


# --- completion -----------------------------------------------------------------------------------

SHELLS = ("bash", "zsh", "fish")


def _add_completion_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help="bash, zsh or fish")


def _print_completion(args: argparse.Namespace, load: Load) -> None:
    print(completion_script(args.shell), end="")


def completion_script(shell: str) -> str:
    """Returns the script that completes commands, flags, configurations and settings.

    Args:
      shell: of `SHELLS`.
    """
    from lmsi_jax.cli.parser import COMMANDS, STAGE_COMMANDS, make_parser
    from lmsi_jax.config.reference import GROUPS, field_entries

    parser = make_parser()
    gin = ["--gin_file=", "--gin_search_paths="]
    settings = [
        f"--gin.{cls.__name__}.{entry.name}="
        for classes in GROUPS.values()
        for cls in classes
        for entry in field_entries(cls)
    ]
    flags, configs = {}, {}
    for name, sub in command_parsers(parser).items():
        kind = "runs" if name in STAGE_COMMANDS else COMMANDS[name].configs
        configs[name] = [*gin_loader.packaged_configs(kind)] if kind else []
        if name in ("configs", "help", "completion"):
            configs[name] = _topics(name)
        flags[name] = [*_flags(sub), *(gin if kind else [])]
    write = {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]
    return write(flags, configs, settings)


def _topics(command: str) -> list[str]:
    from lmsi_jax.config.reference import GROUPS

    if command == "completion":
        return [*SHELLS]
    if command == "help":
        return [cls.__name__ for group in GROUPS.values() for cls in group]
    return [name for kind in _KINDS for name in gin_loader.packaged_configs(kind)]


def _flags(parser: argparse.ArgumentParser) -> list[str]:
    """Returns a parser's flags, with "=" if they take a value."""
    return [
        option + ("" if action.nargs == 0 else "=")
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--")
    ]


def _bash(flags: dict[str, list[str]], configs: dict[str, list[str]], settings: list[str]) -> str:
    cases = "\n".join(
        f'    {name}) words="{" ".join([*flags[name], *configs[name]])}" ;;' for name in flags
    )
    return f"""\
# Completion of lmsi; in ~/.bashrc: source <(lmsi completion bash)
_lmsi() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
  COMPREPLY=()
  # Bash breaks words at "="; what comes after it is a value, for which it completes files.
  if [[ "$current" == "=" || "$before" == "=" ]]; then return; fi
  if (( COMP_CWORD == 1 )); then
    words="{" ".join(flags)} --help --version"
  else
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
    case "${{COMP_WORDS[1]}}" in
    {_gin_commands(flags)})
      if [[ "$current" == --gin.* ]]; then words="{" ".join(settings)}"; fi ;;
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
  if [[ "${{COMPREPLY[0]}}" == *= ]]; then compopt -o nospace 2>/dev/null; fi
}}
complete -o default -o bashdefault -F _lmsi lmsi
"""


def _gin_commands(flags: dict[str, list[str]]) -> str:
    return "|".join(name for name in flags if "--gin_file=" in flags[name])


def _zsh(flags: dict[str, list[str]], configs: dict[str, list[str]], settings: list[str]) -> str:
    cases = "\n".join(
        f"    {name}) choices=({' '.join([*flags[name], *configs[name]])}) ;;" for name in flags
    )
    return f"""\
#compdef lmsi
# Completion of lmsi; in ~/.zshrc, after compinit: source <(lmsi completion zsh)
_lmsi() {{
  local -a choices
  if (( CURRENT == 2 )); then
    compadd -- {" ".join(flags)} --help --version
    return
  fi
  case "${{words[2]}}" in
{cases}
  esac
  if [[ "${{words[2]}}" == ({_gin_commands(flags)}) && "${{words[CURRENT]}}" == --gin.* ]]; then
    choices=({" ".join(settings)})
  fi
  compadd -S '' -- ${{(M)choices:#*=}}
  compadd -- ${{choices:#*=}}
  _files
}}
compdef _lmsi lmsi
"""


def _fish(flags: dict[str, list[str]], configs: dict[str, list[str]], settings: list[str]) -> str:
    lines = ["# Completion of lmsi; in ~/.config/fish/config.fish: lmsi completion fish | source"]
    first = "__fish_use_subcommand"
    lines.append(f"complete -c lmsi -n {first} -f -a '{' '.join(flags)} --help --version'")
    for name in flags:
        here = f"'__fish_seen_subcommand_from {name}'"
        words = " ".join([*flags[name], *configs[name]])
        if words:
            lines.append(f"complete -c lmsi -n {here} -a '{words}'")
    gin = _gin_commands(flags).replace("|", " ")
    typed = (
        f"'__fish_seen_subcommand_from {gin}; and string match -q -- \"--gin.*\" (commandline -ct)'"
    )
    lines.append(f"complete -c lmsi -n {typed} -a '{' '.join(settings)}'")
    return "\n".join(lines) + "\n"


# --- doctor ---------------------------------------------------------------------------------------

_PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "seqio", "tensorflow"),
    *("sentencepiece", "tokenizers", "gguf", "jinja2", "peft", "huggingface-hub", "reasoning-gym"),
)
_MATMUL = 1024
"""Rows and columns of the product that is timed."""
_SLOW_PRODUCT = 50e9  # FLOP/s of an ordinary core of the last ten years
_SMALL_DISK, _SMALL_MEMORY = 5e9, 2.5e9  # a run of the embedded model, with room to spare


def _add_doctor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--folder",
        metavar="DIR",
        type=Path,
        default=Path(),
        help="folder that runs will be written to (default: the current one)",
    )


def _examine(args: argparse.Namespace, load: Load) -> None:
    facts, findings = examine_machine(args.folder)
    for name, value in facts.items():
        text = _filled(value, " " * 12)[12:]
        print(f"{name:<11} {text}")
    print()
    for finding in findings:
        print(textwrap.fill(f"! {finding}", _WIDTH, subsequent_indent="  "))
    if not findings:
        print("nothing here slows lmsi down")


def examine_machine(folder: Path) -> tuple[dict[str, str], list[str]]:
    """Returns facts about this installation and machine, and what is slow or missing here.

    A product of two matrices is timed on the first device, which takes a second.

    Args:
      folder: where runs will be written.

    Raises:
      LmsiError: there is no such folder.
    """
    if not folder.is_dir():
        raise LmsiError(f"there is no folder {folder}; name one with --folder=DIR")
    import platform

    from lmsi_jax import __version__
    from lmsi_jax.runtime.files import in_bytes
    from lmsi_jax.runtime.run_folders import size_of

    versions = {name: _version(name) for name in _PACKAGES}
    total, available = _memory()
    cores, load = _cores(), os.getloadavg()[0]
    free = shutil.disk_usage(folder).free
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", "")
    facts = {
        "lmsi_jax": f"{__version__}, Python {platform.python_version()}, {platform.platform()}",
        "packages": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "not here": ", ".join(name for name, version in versions.items() if not version) or "–",
        "cores": f"{cores}, {load:.1f} of them busy",
        "memory": f"{in_bytes(available)} of {in_bytes(total)} available",
        "disk": f"{in_bytes(free)} free at {folder.resolve()}",
        "cache": f"{cache}, {in_bytes(size_of(Path(cache)))} of compiled programs"
        if cache
        else "–",
    }
    findings = []
    if load > 0.7 * cores:
        findings.append("other work keeps the cores busy; a run takes as much longer")
    if not cache:
        findings.append(
            "compiled programs are not kept, so each start compiles anew; make ~/.cache writable, "
            "or set JAX_COMPILATION_CACHE_DIR to a folder"
        )
    if available < _SMALL_MEMORY:
        findings.append("little memory is available; even the quick start takes 2.5 GB")
    if free < _SMALL_DISK:
        findings.append(f"the disk is nearly full; runs and checkpoints go to {folder.resolve()}")
    devices, more = _examine_devices(cores)
    return {**facts, **devices}, [*findings, *more]


def _examine_devices(cores: int) -> tuple[dict[str, str], list[str]]:
    """Returns JAX's devices and the rates of a product, and what is wrong with them."""
    import time

    import jax
    import jax.numpy as jnp

    from lmsi_jax.runtime.files import in_bytes

    try:
        devices = jax.devices()
    except RuntimeError as error:  # of a driver that does not answer
        return {"devices": "none"}, [f"JAX finds no device: {str(error).splitlines()[0]}"]
    kind = f"{len(devices)} {devices[0].platform} ({devices[0].device_kind})"
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    rates = {}
    for name in ("float32", "bfloat16"):
        side = jnp.ones((_MATMUL, _MATMUL), name)
        multiply = jax.jit(lambda x: jnp.matmul(x, x, preferred_element_type=jnp.float32))
        multiply(side).block_until_ready()
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            multiply(side).block_until_ready()
            seconds.append(time.perf_counter() - start)
        rates[name] = 2 * _MATMUL**3 / min(seconds)
    facts = {
        "devices": kind + (f", {in_bytes(limit)} each" if limit else ""),
        "products": ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in rates.items()),
    }
    findings = []
    if devices[0].platform == "cpu":
        if shutil.which("nvidia-smi"):
            findings.append(
                "this machine has an NVIDIA driver, but JAX uses the CPU; install 'jax[cuda13]', "
                "or 'jax[cuda12]' for an older driver"
            )
        if rates["float32"] < _SLOW_PRODUCT * cores:
            findings.append(
                f"float32 products reach {rates['float32'] / cores / 1e9:,.0f} GFLOP/s a core, "
                "which is little; other work, or a virtual machine without AVX2, may be why"
            )
        faster = rates["bfloat16"] / rates["float32"]
        if faster > 1.5:
            findings.append(
                f"bfloat16 products are {faster:.1f} times as fast here: Decoding.dtype='bfloat16' "
                "and Training.compute_dtype='bfloat16' use them"
            )
    return facts, findings


def _version(package: str) -> str | None:
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> tuple[float, float]:
    """Returns the bytes of memory in all and available; of other systems than Linux, in all."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = float(os.sysconf("SC_PHYS_PAGES") * page)
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return total, total
    found = re.search(r"MemAvailable:\s+(\d+) kB", text)
    return total, 1024.0 * int(found[1]) if found else total


COMMANDS: dict[str, Command] = {
    "help": Command(
        "explain a setting, a class of settings or a command",
        "Sampling.temperature",
        "",
        _add_help_arguments,
        _print_help,
    ),
    "configs": Command(
        "list packaged configurations, or print the header of one",
        "quickstart",
        "",
        _add_configs_arguments,
        _print_configs,
    ),
    "doctor": Command(
        "check this machine: versions, devices, memory, what is slow",
        "--folder=runs",
        "",
        _add_doctor_arguments,
        _examine,
    ),
    "completion": Command(
        "print the completion script of a shell: bash, zsh or fish",
        "bash",
        "",
        _add_completion_arguments,
        _print_completion,
    ),
}
"""All commands of this module by name."""
