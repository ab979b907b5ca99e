"""Explain gin's errors in one or two lines: where, which name, and the nearest right one."""

import contextlib
import difflib
import inspect
import os
import re
import tokenize
import typing
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from lmsi_jax.config.value_checks import fits, remedy
from lmsi_jax.errors import LmsiError

_LOCATION = re.compile(r'\n  In (?:file "(?P<file>.*?)",|bindings string),? line (?P<line>\d+)')
_CALL = re.compile(r"\n  In call to configurable '(?P<name>[^']*)'.*", re.DOTALL)
_MISSING = re.compile(
    r"missing \d+ required (?:positional|keyword-only) arguments?: (?P<names>[^\n]*)"
)
_REQUIRED = re.compile(
    r"Required bindings for `(?P<name>.*)` not provided in config: (?P<names>.*)"
)
_CONFIGURABLE = re.compile(
    r"No configurable matching (?:reference )?'@?(?P<name>[^'()]*)(?:\(\))?'"
)
_PARAMETER = re.compile(
    r"Configurable '(?P<name>.*?)' doesn't have a parameter named '(?P<arg>.*?)'"
)
_FILE = re.compile(r"Unable to open file: (?P<name>.*)\. Searched config paths", re.DOTALL)


def suggestion(name: str, options: Iterable[str]) -> str:
    """Returns "; did you mean X?" for the option nearest to `name`, or "" if none is near."""
    by_lower = {option.lower(): option for option in options}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean {by_lower[near[0]]}?" if near else ""


# --- while gin parses -----------------------------------------------------------------------------


@contextlib.contextmanager
def readable(source: str) -> Iterator[None]:
    """Turns gin's errors while it parses `source` (a file or a flag) into an LmsiError."""
    try:
        yield
    except LmsiError as error:
        raise LmsiError(_LOCATION.split(str(error))[0]) from None  # names its place itself
    except SyntaxError as error:
        raise LmsiError(_explain_syntax(error, source)) from None
    except (tokenize.TokenError, StopIteration):
        # A bracket or quotation mark is open at the end of the text; TokenError is no SyntaxError.
        raise LmsiError(f"{_short(source)}: a bracket or a quotation mark is not closed") from None
    except (ValueError, OSError, ImportError, KeyError, TypeError, RuntimeError) as error:
        text = str(error)
        place, explanation = f"{_place(text, source)}: ", _explain(text)
        if f"no file {source};" in explanation:
            raise LmsiError(explanation) from None
        raise LmsiError(place + explanation) from None


def _explain_syntax(error: SyntaxError, source: str) -> str:
    if not error.filename or error.filename.startswith("<"):  # Python's tokenizer names no file
        line = f", line {error.lineno}" if error.filename else ""
        return f"{_short(source)}{line}: {_first_line(error.msg)}"
    line = f"\n  {error.text.strip()}" if error.text else ""
    return f"{_short(error.filename)}, line {error.lineno}: {_first_line(error.msg)}{line}"


def _place(text: str, source: str) -> str:
    match = _LOCATION.search(text)
    if match is None or match["file"] is None:
        return _short(source)
    return f"{_short(match['file'])}, line {match['line']}"


def _short(path: str) -> str:
    """Returns a path relative to the current folder, if that is shorter."""
    if not os.path.isabs(path):
        return path
    return min(path, os.path.relpath(path), key=len)


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0].rstrip(".") if text.strip() else "not understood"


def _explain(text: str) -> str:
    if match := _CONFIGURABLE.search(text):
        name = match["name"]
        if change := renamed(name.rpartition("/")[2].rpartition(".")[2]):
            return change
        return f"there is no configurable {name!r}{suggestion(name, _configurables())}"
    if match := _PARAMETER.search(text):
        cls, arg = match["name"], match["arg"]
        if change := renamed(f"{cls.rpartition('.')[2]}.{arg}"):
            return change
        names = _parameters(cls)
        advice = suggestion(arg, names) or f"; it has {', '.join(names)}"
        return f"{cls} has no parameter {arg!r}{advice}"
    if match := _FILE.search(text):
        name = match["name"]
        advice = "check its name" if "://" in name else "give its folder with --gin_search_paths"
        return f"there is no file {name}; {advice}"
    return _first_line(text)


def _configurables() -> list[str]:
    from gin import config

    names = [name for name, _ in config._REGISTRY.items() if not name.startswith("gin.")]
    return [config._REGISTRY.minimal_selector(name) for name in names]


def _parameters(selector: str) -> list[str]:
    from gin import config

    match = config._REGISTRY.get_match(selector)
    if match is None:
        return []
    return [name for name in inspect.signature(match.wrapped).parameters if name != "self"]


# --- mistakes that gin accepts --------------------------------------------------------------------


def check_config(flags: Sequence[str]) -> None:
    """Checks the whole configuration that was loaded.

    Args:
      flags: the names bound by flags; a macro among them that nothing uses is a misspelling.
    Raises:
      LmsiError: a value is REQUIRED and not given, a macro is used but not set, or set by a flag
        but not used, or a value does not fit the annotation of its parameter.
    """
    from gin import config

    used: set[str] = set()
    required = []
    for key, bindings in config._CONFIG.items():
        for arg, value in bindings.items():
            name = _binding_name(key, arg)
            for reference in _references(value):
                if reference == "%gin.REQUIRED":
                    required.append(name)
                elif reference[0] == "%" and not _is_set(reference[1:]):
                    macro = reference[1:]
                    near = suggestion(macro, _macros())
                    raise LmsiError(
                        f"{name} uses %{macro}, which is not set; add --gin.{macro}=VALUE{near}"
                    )
                used.add(reference[1:])
            _check_type(key[1], arg, value, name)
    if required:
        are = "is" if len(required) == 1 else "are"
        missing_flags = " ".join(f"--gin.{name}=VALUE" for name in required)
        raise LmsiError(f"{', '.join(required)} {are} required and not set; add {missing_flags}")
    for flag in flags:
        if (flag, "gin.macro") in config._CONFIG and flag not in used:
            near = suggestion(flag, [*used, *_binding_names()])
            raise LmsiError(f"--gin.{flag}: nothing uses %{flag}{near or '; see the gin file'}")


def _binding_name(key: tuple[str, str], arg: str) -> str:
    from gin import config

    scope, selector = key
    if selector == "gin.macro":
        return scope
    return f"{scope}{'/' * bool(scope)}{config._REGISTRY.minimal_selector(selector)}.{arg}"


def _references(value: Any) -> Iterator[str]:
    """Yields "%MACRO", "@name" for all references within a value."""
    from gin import config

    if isinstance(value, config.ConfigurableReference):
        yield repr(value)
    elif isinstance(value, dict):
        for item in (*value.keys(), *value.values()):
            yield from _references(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _references(item)


def _is_set(name: str) -> bool:
    from gin import config

    return (name, "gin.macro") in config._CONFIG or bool(config._CONSTANTS.matching_selectors(name))


def _macros() -> list[str]:
    from gin import config

    return [scope for scope, selector in config._CONFIG if selector == "gin.macro"]


def _binding_names() -> list[str]:
    return [f"{name}.{arg}" for name in _configurables() for arg in _parameters(name)]


def _check_type(selector: str, arg: str, value: Any, name: str) -> None:
    from gin import config

    wrapped = config._REGISTRY[selector].wrapped
    try:
        hints = typing.get_type_hints(wrapped)
    except (NameError, TypeError, AttributeError):
        return  # annotations that only a type checker can read
    if arg in hints and not fits(value, hints[arg]):
        new = RENAMED_VALUES.get(f"{config._REGISTRY.minimal_selector(selector)}.{arg} = {value!r}")
        advice = f"it was renamed to {new!r}" if new else remedy(value, hints[arg])
        raise LmsiError(f"{name} = {value!r}; {advice}")


# --- while configured objects are built -----------------------------------------------------------


@contextlib.contextmanager
def readable_calls() -> Iterator[None]:
    """Turns errors of configured objects that are the user's to fix into short LmsiErrors.

    These are parameters without a value, and LmsiErrors that gin has made longer. All others are
    bugs and keep their traceback.
    """
    try:
        yield
    except LmsiError as error:
        text = str(error)
        if _CALL.search(text) is None:
            raise  # not gin's: of a class with an exit code of its own, perhaps
        raise LmsiError(_CALL.sub("", text)) from None
    except (TypeError, RuntimeError) as error:
        text = str(error)
        missing, call = _MISSING.search(text), _CALL.search(text)
        required = _REQUIRED.search(text)
        if required:
            raise LmsiError(_not_set(required["name"], required["names"])) from None
        if missing and call:
            raise LmsiError(_not_set(call["name"], missing["names"])) from None
        raise


def _not_set(configurable: str, quoted: str) -> str:
    names = re.findall(r"'(.*?)'", quoted)
    flags = " ".join(f"--gin.{configurable}.{name}=VALUE" for name in names)
    return f"{configurable} needs {', '.join(names)}; set it in the gin file or add {flags}"


RENAMED: dict[str, str] = {
    "Run.generation": "Run.augmentation",
    "Run.watch": "Run.collapse_monitor",
    "Run.by_round": "Run.schedule",
    "Questions.overlap": "Questions.contamination",
    "Generation": "Augmentation",
    "Decoding.lanes": "Decoding.slots",
    "Decoding.resident": "Decoding.prompt_cache_factor",
    "Decoding.shrink": "Decoding.adaptive_batch",
    "Sampling.paths": "Sampling.num_samples",
    "Sampling.early_stop": "Sampling.adaptive_consistency",
    "Sampling.early_stop_every": "Sampling.adaptive_consistency_every",
    "Voting.ranker": "Voting.scorer",
    "Mixing.strong_count": "Mixing.human_examples",
    "Cap.paths": "Cap.num_samples",
    "Ranked": "ExternalScore",
    "Ranked.ranker": "ExternalScore.scorer",
    "Training.rows": "Training.sequences_per_prefix",
    "Training.length": "Training.sequence_length",
    "Training.prefix_length": "Training.max_prefix_length",
    "Training.rows_at_once": "Training.sequences_at_once",
    "Training.strong_rate": "Training.human_rate",
    "Optimizer.clip": "Optimizer.max_grad_norm",
    "Optimizer.matrix_rate": "Optimizer.muon_learning_rate",
    "Evaluation.promptings": "Evaluation.prompt_styles",
    "Evaluation.paths": "Evaluation.num_samples",
    "Watch": "CollapseMonitor",
    "Watch.sure": "CollapseMonitor.saturated",
    "Watch.same": "CollapseMonitor.no_diversity",
    "Watch.gap": "CollapseMonitor.calibration_gap",
    "Watch.pass_fall": "CollapseMonitor.pass_at_m_drop",
}
"""Old configurables and `Class.parameter` names -> the new ones."""

RENAMED_VALUES: dict[str, str] = {
    "Mixing.normalise = 'path'": "sample",
    "Study.measure = 'paths'": "samples",
}
"""`Class.parameter = 'old value'` -> the new value."""


def renamed(name: str) -> str:
    """Returns "OLD was renamed to NEW" for an old configurable or parameter, else "".

    Args:
      name: "Class" or "Class.parameter", with the class's old or new name.
    """
    new = RENAMED.get(name) or _BY_NEW_CLASS.get(name)
    return f"{name} was renamed to {new}" if new else ""


_BY_NEW_CLASS = {
    f"{new.partition('.')[0]}.{old.partition('.')[2]}": new
    for old, new in RENAMED.items()
    if "." in old
}
"""Old parameters under the new name of their class -> the new names."""
