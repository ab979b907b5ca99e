"""Prepares what `bench.kills` kills: a micro model that answers by construction, and commands."""

import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

_LINES = (
    "Q: Ann has 3 pens and 4 cups. How many things does Ann have?",
    "A: 3 + 4 = 7. The answer is 7.",
    "Q: Ben buys 5 hats for 2 coins each. How many coins does he pay?",
)
# What the model writes after "A:"; of the digits it draws one.
_SAYS = (":", "▁The▁answer▁is▁", "12347", ".", "\n", "\n")
_VOCABULARY = 340
_SHAPE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": _VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e4,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_SETTINGS = {
    "Run.seed": 5,
    "Run.questions_per_shard": 2,
    "Decoding.slots": 8,
    "Decoding.adaptive_batch": False,
    "Questions.train": ("purchases", "legs"),
    "Questions.test": ("purchases",),
    "Questions.level": "easy",
    "Questions.train_count": 4,
    "Questions.test_count": 4,
    "Sampling.num_samples": 4,
    "Sampling.temperature": 0.7,
    "Sampling.max_new_tokens": 8,
    "Evaluation.prompt_styles": ("cot", "self_consistency"),
    "Evaluation.num_samples": 4,
    "Evaluation.temperature_after": 0.7,
    "Training.steps": 3,
    "Training.microbatches": 1,
    "Training.sequences_per_prefix": 2,
    "Training.sequence_length": 128,
    "Training.max_prefix_length": 640,
    "Training.log_every": 1,
    "Training.save_every": 1,
    "Optimizer.learning_rate": 1e-3,
}
_PARTS = (
    *("Questions", "Decoding", "Sampling", "Voting", "Mixing", "Training", "Evaluation"),
    "CollapseMonitor",
)
_FIELDS = {"CollapseMonitor": "collapse_monitor"}
_STUDY = """
Study.name = 'kills'
Study.question = 'Which format does it?'
Study.variants = (@all/Variant(), @direct/Variant())
Study.reference = 'all'
Study.seeds = (3,)
Study.seconds = 100
all/Variant.name = 'all'
direct/Variant.name = 'direct'
direct/Variant.bindings = ("Mixing.formats = ('zero_shot_direct',)",)
"""
_STUDENT = {
    "Run.distillation": "@Distillation()",
    "Training.loss": "@Loss()",
    "Run.init_checkpoint": "fresh",
    "ModelConfig.embed_dim": 12,
}


class Scenario(NamedTuple):
    """A command that is killed and repeated.

    Attributes:
      words: the command's arguments, given the folder of what is prepared and an empty one.
      processes: the number of processes that carry it out together.
      needs: names of commands in `PREPARED` that make what it reads.
    """

    words: Callable[[pathlib.Path, pathlib.Path], list[str]]
    processes: int = 1
    needs: tuple[str, ...] = ("base",)


def _flags(settings: dict[str, Any]) -> list[str]:
    return [
        f"--gin.{name}={value if str(value).startswith('@') else repr(value)}"
        for name, value in settings.items()
    ]


def _run(command: str = "run", **changes: Any) -> Callable[[pathlib.Path, pathlib.Path], list[str]]:
    """Returns the arguments of a command that reads the micro run's configuration.

    In the names of changed parameters "__" stands for a full stop.
    """

    def words(ready: pathlib.Path, out: pathlib.Path) -> list[str]:
        settings = {name.replace("__", "."): value for name, value in changes.items()}
        settings = {"Run.output_dir": str(out / "run"), **settings}
        if command == "distill":
            settings |= {"Distillation.teacher_dir": str(ready / "teacher" / "run")}
        if command == "study":
            settings = {"Study.output_dir": str(out)}
        config = ready / ("study.gin" if command == "study" else "run.gin")
        return [command, str(config), *_flags(settings)]

    return words


def _import(ready: pathlib.Path, out: pathlib.Path) -> list[str]:
    return ["import-hf", str(ready / "hub"), str(out / "out")]


def _export(ready: pathlib.Path, out: pathlib.Path) -> list[str]:
    base = ready / "base" / "out"
    return ["export-hf", str(base), str(out / "out"), "--max_shard_size=8KB"]


PREPARED = {
    "base": Scenario(_import, needs=()),
    "teacher": Scenario(_run()),
}
SCENARIOS = {
    "run": Scenario(_run(Run__rounds=2)),
    "lora": Scenario(
        _run(Run__rounds=2, Run__start_from="last", Training__lora="@Lora()", Lora__rank=2)
    ),
    "study": Scenario(_run("study")),
    "distill": Scenario(
        _run("distill", **{name.replace(".", "__"): value for name, value in _STUDENT.items()}),
        needs=("base", "teacher"),
    ),
    "import": Scenario(_import, needs=()),
    "export": Scenario(_export),
    "two": Scenario(_run(), processes=2),
    "four": Scenario(_run(), processes=4),
}


def write_inputs(folder: pathlib.Path) -> None:
    """Writes the micro model as a Hugging Face folder, and the configurations of its run."""
    from safetensors.numpy import save_file

    from lmsi_jax.pipeline.pretrain import train_pieces

    hub = folder / "hub"
    hub.mkdir(parents=True)
    tokenizer = train_pieces(_LINES * 20, _VOCABULARY, ["\n", _SAYS[1]])
    (hub / "tokenizer.model").write_bytes(tokenizer)
    (hub / "config.json").write_text(json.dumps(_SHAPE), encoding="utf-8")
    save_file(_tensors(tokenizer), hub / "model.safetensors")
    lines = [f"include {str(folder / 'base' / 'out' / 'model.gin')!r}"]
    lines += [f"{name} = {value!r}" for name, value in _SETTINGS.items()]
    lines += [f"Run.{_FIELDS.get(part, part.lower())} = @{part}()" for part in _PARTS]
    lines.append("Training.optimizer = @Optimizer()")
    text = "\n".join(lines) + "\n"
    (folder / "run.gin").write_text(text, encoding="utf-8")
    (folder / "study.gin").write_text(text + _STUDY, encoding="utf-8")


def _tensors(tokenizer: bytes) -> dict[str, np.ndarray]:
    """Returns the weights: each piece of `_SAYS` makes the next one likely, layers add noise."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
    draw = np.random.default_rng(0)
    size, inner, half = _SHAPE["hidden_size"], _SHAPE["intermediate_size"], _SHAPE["head_dim"]

    def noise(*shape: int) -> np.ndarray:
        return (0.1 * draw.standard_normal(shape)).astype(np.float32)

    embedding, head = noise(_VOCABULARY, size), noise(_VOCABULARY, size)
    for state, pieces in enumerate(_SAYS):
        for number, piece in enumerate(pieces if pieces.isdigit() else [pieces]):
            row = processor.piece_to_id(piece)
            if pieces != _SAYS[state - 1]:  # a line feed follows itself
                embedding[row] = 0.0
                embedding[row, state] = 4.0
            if state:
                head[row, state - 1] = 8.0 + 0.1 * number
    line_feed = processor.piece_to_id("\n")
    head[line_feed, len(_SAYS) - 2] = 8.0
    layer = "model.layers.0."
    shapes = {
        "self_attn.q_proj": (size, size),
        "self_attn.k_proj": (half, size),
        "self_attn.v_proj": (half, size),
        "self_attn.o_proj": (size, size),
        "mlp.gate_proj": (inner, size),
        "mlp.up_proj": (inner, size),
        "mlp.down_proj": (size, inner),
    }
    ones = np.ones(size, np.float32)
    return {
        "model.embed_tokens.weight": embedding,
        "lm_head.weight": head,
        "model.norm.weight": ones,
        f"{layer}input_layernorm.weight": ones,
        f"{layer}post_attention_layernorm.weight": ones,
        **{f"{layer}{name}.weight": noise(*shape) for name, shape in shapes.items()},
    }


_UNREAD = ("checkpoint_", "tensorboard")  # folders; each start adds an event file


def digests(folder: pathlib.Path) -> dict[str, str]:
    """Returns a SHA-256 of each file below a folder, without what may depend on kills.

    Those are times, and how a checkpoint's arrays are laid out in its files: their values count.
    Needs JAX, so call it in a process of its own.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        parts = pathlib.PurePath(name).parts
        if path.is_dir():
            if path.name.startswith("checkpoint_") and (path / "state").is_dir():
                found[name] = _checkpoint_digest(path)
        elif not any(part.startswith(_UNREAD) for part in parts):
            found[name] = hashlib.sha256(_comparable_bytes(path)).hexdigest()
    return found


def _checkpoint_digest(folder: pathlib.Path) -> str:
    from etils import epath

    from lmsi_jax.training import checkpoints

    _, metadata = checkpoints.open_checkpoint(epath.Path(folder))
    tree = checkpoints.flatten_tree(checkpoints.read(epath.Path(folder), metadata, None))
    total = hashlib.sha256()
    for name, leaf in sorted(tree.items()):
        array = np.ascontiguousarray(leaf)
        total.update(f"{name} {array.shape} {array.dtype}\n".encode() + array.tobytes())
    for file in sorted((folder / "data_state").rglob("*")):
        if file.is_file():
            total.update(file.name.encode() + file.read_bytes())
    return total.hexdigest()


# Times, and the command, which has the port of the leading process.
_UNCOMPARED = (
    *("created", "seconds", "minutes", "tokens_per_second", "record_sha256"),
    "command",
)
_SPEED = ("speed.jsonl", "report.html", "study.html")


def _comparable_bytes(path: pathlib.Path) -> bytes:
    """Returns a file's bytes, JSON without times and commands; nothing of files that show times."""
    if path.name in _SPEED:
        return b""
    data = path.read_bytes()
    if path.suffix != ".json":
        return data
    return json.dumps(_comparable(json.loads(data)), sort_keys=True).encode()


def _comparable(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _comparable(one) for name, one in value.items() if name not in _UNCOMPARED}
    return [_comparable(one) for one in value] if isinstance(value, list) else value
