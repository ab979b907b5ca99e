"""The import law: who may know of what. Read from the syntax trees, so no import is run.

records <- prompts, answers <- voting, generation, selection <- solutions <- mixing, pairing and
selection <- watch use the standard library alone and touch no files; JAX, TensorFlow and gin have
their rooms; nobody imports `rounds` or `main`.
"""

import ast
import pathlib
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Room: the rooms of ours that it may import.
PURE = {
    "errors": {"errors"},
    "records": {"records", "errors"},
    "prompts": {"records", "errors"},
    "answers": {"records", "errors", "answers"},
    "voting": {"records", "errors", "prompts", "answers", "voting"},
    "generation": {"records", "errors", "prompts", "answers"},
    "selection": {"records", "errors", "prompts", "answers", "voting", "selection"},
    "solutions": {"records", "errors", "prompts", "answers", "voting", "selection"},
    "mixing": {"records", "errors", "prompts", "selection", "solutions"},
    "watch": {"records", "errors", "selection", "voting"},
    "pairing": {"records", "errors", "prompts", "selection", "solutions"},
}
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "chex", "clu"}
# "processes", "agreement": the processes of a run are those of jax.distributed, and its meshes'.
# "jax_caches": of compiled programs.
JAX_ROOMS = {
    *("decoding", "models", "training", "evaluation", "hf", "aot"),
    *("processes", "agreement", "jax_caches"),
}
TENSORFLOW = {"tensorflow", "tensorflow_datasets", "tensorflow_text", "seqio"}
GIN_ROOMS = {"main", "configurables", "gin_edge", "gin_errors", "gin_files"}
FILES = {
    *("io", "os", "pathlib", "shutil", "tempfile", "glob", "gzip", "etils", "orbax"),
    *("lmsi_jax.files", "lmsi_jax.store", "lmsi_jax.manifest"),
}
# Functions of their arguments alone: no files, although they may know JAX.
FILELESS = {
    *PURE,
    *(f"decoding.{name}" for name in ("keys", "sampling", "prefix", "loop", "engine")),
    *(f"models.{name}" for name in ("config", "decoder", "mlp", "norms", "params", "partitioning")),
    *(f"models.{name}" for name in ("positions", "products", "rope", "weights")),
    *(
        f"training.{name}"
        for name in (
            *("accumulation", "attention", "losses", "optimizers"),
            *("teacher", "preferences", "scoring"),
        )
    ),
    *(f"evaluation.{name}" for name in ("calibration", "statistics")),
}


def _modules() -> dict[str, pathlib.Path]:
    """Import name -> file, for lmsi_jax/ and tasks/."""
    files = [*(ROOT / "lmsi_jax").rglob("*.py"), *(ROOT / "tasks").rglob("*.py")]
    names = {}
    for file in sorted(files):
        parts = file.relative_to(ROOT).with_suffix("").parts
        parts = parts if parts[0] == "lmsi_jax" else ("lmsi_jax", *parts)
        names[".".join(parts).removesuffix(".__init__")] = file
    return names


MODULES = _modules()


def _imports(module: str, tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yields (imported name, line), also for imports within functions; names of ours in full."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".")[: -node.level]
                base = ".".join([*package, base]).rstrip(".")
            ours = base.split(".")[0] in ("lmsi_jax", "tasks")
            for alias in node.names:
                # "from lmsi_jax import rounds" imports the module lmsi_jax.rounds.
                yield (f"{base}.{alias.name}" if ours else base, node.lineno)


def _room(module: str) -> str:
    """The room of a module of ours: "lmsi_jax.decoding.keys" -> "decoding"."""
    return (module.split(".") + [""])[1]


def _is_within(name: str, names: set[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[: i + 1]) in names for i in range(len(parts)))


def violations(module: str, source: str) -> list[str]:
    """Returns what a module's source breaks of the law, a readable line each."""
    tree = ast.parse(source)
    found = []
    for name, line in _imports(module, tree):
        reason = _forbidden(module, name)
        if reason:
            found.append(f"{module}, line {line}: imports {name}; {reason}")
    if _is_within(module.removeprefix("lmsi_jax."), FILELESS):
        found += [
            f"{module}, line {node.lineno}: opens a file; leave that to a driver and lmsi_jax.store"
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "open"
        ]
    return found


def _forbidden(module: str, name: str) -> str | None:
    room, top = _room(module), name.split(".")[0]
    if top in ("tasks", "gin_configs"):
        return f"its one import name is lmsi_jax.{top}"
    if room in PURE:
        if top == "lmsi_jax":
            if _room(name) not in PURE[room] | {room}:
                return (
                    f"{room} may import only {', '.join(sorted(PURE[room])) or 'nothing'} of ours"
                )
        elif top not in sys.stdlib_module_names:
            return f"{room} is pure: the standard library alone"
    if _is_within(module.removeprefix("lmsi_jax."), FILELESS) and _is_within(name, FILES):
        return "this module touches no files; leave that to a driver and lmsi_jax.store"
    if top in JAX and room not in JAX_ROOMS:
        return f"JAX belongs into {', '.join(sorted(JAX_ROOMS))}"
    if top == "gin" and room not in GIN_ROOMS:
        return "gin belongs to the edge: library functions stay plain"
    # `lmsi study` runs the loop several times.
    if _is_within(name, {"lmsi_jax.rounds"}) and room not in ("rounds", "main", "commands"):
        return "nobody but the commands imports rounds"
    if _is_within(name, {"lmsi_jax.main"}) and room not in ("main", "__main__"):
        return "nobody imports main"
    return None


@pytest.mark.parametrize("module", MODULES)
def test_the_module_keeps_the_law(module):
    found = violations(module, MODULES[module].read_text(encoding="utf-8"))
    assert not found, "\n".join(found)


def test_tensorflow_and_seqio_are_in_the_tasks_and_at_most_one_loader():
    users = set()
    for module, file in MODULES.items():
        imports = _imports(module, ast.parse(file.read_text(encoding="utf-8")))
        if _room(module) != "tasks" and any(
            name.split(".")[0] in TENSORFLOW for name, _ in imports
        ):
            users.add(module)
    names = ", ".join(sorted(users))
    assert len(users) <= 1, f"TensorFlow, SeqIO belong into tasks/ and one loader, not into {names}"


def test_no_module_is_called_utils():
    assert [name for name in MODULES if "utils" in name.split(".")] == []


@pytest.mark.parametrize(
    ("module", "source", "message"),
    [
        ("voting", "import numpy", "voting is pure: the standard library alone"),
        ("mixing", "def f():\n    import jax.numpy as jnp", "line 2: imports jax.numpy"),
        (
            "answers",
            "from lmsi_jax import voting",
            "answers may import only",
        ),
        ("answers", "from . import voting", "imports lmsi_jax.voting; answers may import only"),
        ("selection.filters", "from ..mixing import mix", "imports lmsi_jax.mixing.mix"),
        ("prompts", "import pathlib", "touches no files"),
        ("voting", "text = open('x').read()", "opens a file"),
        ("decoding.loop", "from lmsi_jax.store import ShardStore", "touches no files"),
        ("rounds", "import jax", "JAX belongs into"),
        ("tasks.legs", "from jax import numpy", "JAX belongs into"),
        ("training.trainer", "import gin", "gin belongs to the edge"),
        ("training.trainer", "from lmsi_jax.rounds import execute", "nobody but the commands"),
        ("store", "from lmsi_jax import main", "nobody imports main"),
        ("training.data", "import tasks.registry", "its one import name is lmsi_jax.tasks"),
    ],
)
def test_each_kind_of_violation_is_seen_and_named(module, source, message):
    (found,) = violations(f"lmsi_jax.{module}", source)
    assert message in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("voting", "import math\nfrom lmsi_jax.answers import key"),
        ("selection.filters", "from lmsi_jax.selection.distinct import order"),
        ("decoding.loop", "import jax"),
        ("decoding.generate", "from lmsi_jax.store import ShardStore"),
        ("main", "from lmsi_jax import rounds"),
        ("configurables", "import gin"),
    ],
)
def test_what_is_allowed_is_not_reported(module, source):
    assert violations(f"lmsi_jax.{module}", source) == []
