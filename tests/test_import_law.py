"""The import law: which packages may import which. Read from the syntax trees; nothing is run.

The layers of docs/architecture.md, lowest first. A module imports its own layer and those below.
Within a layer, packages import each other without circles. The pure layers use the standard
library alone and touch no files; JAX, TensorFlow and gin have their packages.
"""

import ast
import pathlib
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

LAYERS = (
    {"errors", "records"},
    {"prompts", "answers", "voting", "augmentation", "selection", "mixing", "pairing"}
    | {"correction"}
    | {"config", "evaluation"},
    {"runtime", "report"},
    {"models"},
    {"rollout", "training", "interop"},
    {"tasks", "gin_configs"},
    {"pipeline", "api", "integrations"},
    {"tools"},
    {"cli", "__main__"},
)
PURE = {*LAYERS[0], *LAYERS[1]} - {"evaluation"}  # statistics use NumPy and SciPy
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}
JAX_PACKAGES = {"models", "rollout", "training", "interop", "tools"}
# The processes of a run are those of jax.distributed; progress reports what JAX compiles; a study
# clears JAX's caches, and `lmsi doctor` examines the devices.
JAX_MODULES = {"runtime.processes", "runtime.progress", "cli.subcommands", "cli.info_commands"}
TENSORFLOW = {"tensorflow", "tensorflow_datasets", "tensorflow_text", "seqio"}
TENSORFLOW_MODULES = {
    "training.data",
    "interop.seqio_vocabularies",
    *("tasks.seqio_prompts", "tasks.seqio_rounds", "tasks.seqio_suite"),
    *("tasks.registry", "tasks.dataset"),
}
GIN_MODULES = {
    *("config.gin_loader", "config.gin_errors", "config.configurables"),
    "cli.main",
}
FILES = {
    *("io", "os", "pathlib", "shutil", "tempfile", "glob", "gzip", "etils", "orbax"),
    *("lmsi_jax.runtime.files", "lmsi_jax.runtime.store"),
}
# Functions of their arguments alone: no files, although they may know JAX.
FILELESS = {
    *(PURE - {"config"}),
    *(f"config.{name}" for name in ("model_config", "training_config", "sampling", "row_filters")),
    *(f"config.{name}" for name in ("run", "steps", "value_checks")),
    "rollout",
    *(f"models.{name}" for name in ("attention", "params", "transformer")),
    *(f"training.{name}" for name in ("forward", "losses", "optimizers", "scoring")),
    *("evaluation.accuracy", "evaluation.collapse", "evaluation.statistics"),
}


def _modules() -> dict[str, pathlib.Path]:
    """Returns the file of every module of lmsi_jax/ and tasks/ by its import name."""
    files = [*(ROOT / "lmsi_jax").rglob("*.py"), *(ROOT / "tasks").rglob("*.py")]
    names = {}
    for file in sorted(files):
        parts = file.relative_to(ROOT).with_suffix("").parts
        parts = parts if parts[0] == "lmsi_jax" else ("lmsi_jax", *parts)
        names[".".join(parts).removesuffix(".__init__")] = file
    return names


MODULES = _modules()


def _imports(module: str, tree: ast.AST) -> Iterator[tuple[str, int, bool]]:
    """Yields (imported name, line, whether at the top); names of ours in full."""
    top = set(map(id, getattr(tree, "body", ())))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".")[: -node.level]
                base = ".".join([*package, base]).rstrip(".")
            ours = base.split(".")[0] in ("lmsi_jax", "tasks")
            for alias in node.names:
                # "from lmsi_jax import voting" imports the module lmsi_jax.voting.
                name = f"{base}.{alias.name}" if ours else base
                yield name, node.lineno, id(node) in top


def _package(module: str) -> str:
    """Returns the package of a module of ours: "lmsi_jax.rollout.engine" -> "rollout"."""
    return (module.split(".") + [""])[1]


def _layer(package: str) -> int:
    return next((i for i, layer in enumerate(LAYERS) if package in layer), -1)


def _is_within(name: str, names: set[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[: i + 1]) in names for i in range(len(parts)))


def violations(module: str, source: str) -> list[str]:
    """Returns a readable line for each import or call that breaks the law."""
    tree = ast.parse(source)
    broken = []
    for name, line, _ in _imports(module, tree):
        reason = _forbidden(module, name)
        if reason:
            broken.append(f"{module}, line {line}: imports {name}; {reason}")
    if _is_within(module.removeprefix("lmsi_jax."), FILELESS):
        broken += [
            f"{module}, line {node.lineno}: opens a file; leave that to pipeline and runtime.store"
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "open"
        ]
    return broken


def _forbidden(module: str, name: str) -> str | None:
    package, top, short = _package(module), name.split(".")[0], module.removeprefix("lmsi_jax.")
    if top in ("tasks", "gin_configs"):
        return f"its one import name is lmsi_jax.{top}"
    if top == "lmsi_jax":
        other = _package(name)
        if other and _layer(package) >= 0 and _layer(other) > _layer(package):
            return f"{package} lies below {other}"
    elif package in PURE and short not in GIN_MODULES and top not in sys.stdlib_module_names:
        return f"{package} is pure: the standard library alone"
    if _is_within(short, FILELESS) and _is_within(name, FILES):
        return "this module touches no files; leave that to pipeline and runtime.store"
    if top in JAX and package not in JAX_PACKAGES and short not in JAX_MODULES:
        return f"JAX belongs into {', '.join(sorted(JAX_PACKAGES))}"
    if top in TENSORFLOW and short not in TENSORFLOW_MODULES:
        return "TensorFlow and SeqIO belong into interop, training's reader and the SeqIO tasks"
    if top == "gin" and short not in GIN_MODULES:
        return "gin belongs to the edge: library functions stay plain"
    if package == "training" and _is_within(name, {"lmsi_jax.rollout"}):
        return "training knows no decode engine"
    if package == "rollout" and _is_within(name, {"lmsi_jax.training"}):
        return "the decode engine knows no training"
    return None


@pytest.mark.parametrize("module", MODULES)
def test_the_module_keeps_the_law(module):
    broken = violations(module, MODULES[module].read_text(encoding="utf-8"))
    assert not broken, "\n".join(broken)


def test_every_package_has_a_layer():
    assert {_package(name) for name in MODULES} - {""} - set().union(*LAYERS) == set()


def test_no_imports_go_in_a_circle():
    graph: dict[str, set[str]] = {}
    for module, file in MODULES.items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        names = [name for name, _, top in _imports(module, tree) if top]
        modules = (
            name if name in MODULES else name.rpartition(".")[0]
            for name in names
            if name.startswith("lmsi_jax.")
        )
        graph[module] = {name for name in modules if name in MODULES and name != module}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for name in sorted(graph[module]):
                visit(name, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_there_are_few_modules_none_is_long_and_no_two_have_one_name():
    # The loop itself fits in 140; the rest is room for optional integrations and tools on runs.
    assert len(MODULES) <= 165
    lines = {name: len(file.read_text().splitlines()) for name, file in MODULES.items()}
    assert {name: count for name, count in lines.items() if count > 700} == {}
    classes = [
        (name, node.name, (node.end_lineno or 0) - node.lineno + 1)
        for name, file in MODULES.items()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ClassDef)
    ]
    assert [row for row in classes if row[2] > 250] == []
    names = [name.split(".")[-1] for name, file in MODULES.items() if file.stem != "__init__"]
    assert sorted(names) == sorted(set(names))


def test_no_module_is_called_utils():
    assert [name for name in MODULES if "utils" in name.split(".")] == []


@pytest.mark.parametrize(
    ("module", "source", "message"),
    [
        ("voting", "import numpy", "voting is pure: the standard library alone"),
        ("mixing", "def f():\n    import jax.numpy as jnp", "line 2: imports jax.numpy"),
        ("answers", "from lmsi_jax import models", "answers lies below models"),
        ("answers", "from . import pipeline", "answers lies below pipeline"),
        ("models.params", "from ..training import losses", "models lies below training"),
        ("prompts", "import pathlib", "touches no files"),
        ("voting", "text = open('x').read()", "opens a file"),
        ("rollout.engine", "from lmsi_jax.runtime.store import ShardStore", "touches no files"),
        ("pipeline.rounds", "import jax", "JAX belongs into"),
        ("tasks.word_sums", "from jax import numpy", "JAX belongs into"),
        ("tasks.word_sums", "from lmsi_jax.pipeline import vote", "tasks lies below pipeline"),
        ("pipeline.sample", "import seqio", "TensorFlow and SeqIO belong into"),
        ("training.trainer", "import gin", "gin belongs to the edge"),
        ("training.trainer", "from lmsi_jax.pipeline.rounds import execute", "lies below pipeline"),
        ("training.trainer", "from lmsi_jax.rollout import engine", "knows no decode engine"),
        ("runtime.store", "from lmsi_jax.cli import main", "runtime lies below cli"),
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
        ("selection.filters", "from lmsi_jax.selection.rows import Row"),
        ("rollout.engine", "import jax"),
        ("pipeline.sample", "from lmsi_jax.runtime.store import ShardStore"),
        ("cli.main", "from lmsi_jax.pipeline import rounds"),
        ("config.configurables", "import gin"),
    ],
)
def test_what_is_allowed_is_not_reported(module, source):
    assert violations(f"lmsi_jax.{module}", source) == []
