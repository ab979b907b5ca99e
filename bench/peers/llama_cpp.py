"""llama.cpp by llama-cpp-python's low-level calls: python -m bench.peers.llama_cpp --workload=A

The shared prompt is evaluated once, each question once after it; a unified cache lets all samples
refer to their cells (llama_memory_seq_cp copies none). Each step evaluates one token of every
unfinished sample; a finished one leaves the batch and frees its cells. Tokens are drawn with
NumPy from the full distribution by the inverse cumulative distribution; at temperature 0 the most
probable one is taken.

--weights chooses the type of the random matrices, --gguf a file of the same shape.
"""

import argparse
import pathlib
import tempfile
from collections.abc import Sequence

import numpy as np

from bench.machine import cores
from bench.peers.llama_gguf import WEIGHTS, write
from bench.peers.measure import Ready, Skipped, groups, main, parser, require
from bench.workloads import Workload, prompts


class Context:
    """A llama.cpp model and context, with batches and sequences in a few plain calls."""

    def __init__(self, path: pathlib.Path, positions: int, batch: int, slots: int, cache: str):
        import llama_cpp

        self._llama = llama_cpp
        llama_cpp.llama_backend_init()
        # llama.cpp reports on stderr as it loads; errors come as null pointers.
        self._model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max = positions, slots
        params.n_batch = params.n_ubatch = batch
        params.n_threads = params.n_threads_batch = cores()
        params.kv_unified = True
        kind = {"f32": llama_cpp.GGML_TYPE_F32, "f16": llama_cpp.GGML_TYPE_F16}[cache]
        params.type_k = params.type_v = kind
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._model or not self._context:
            raise RuntimeError("llama.cpp could not load the model; its reason stands above")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(
            llama_cpp.llama_model_get_vocab(self._model)
        )
        self._batch = llama_cpp.llama_batch_init(batch, 0, 1)

    def evaluate(
        self, tokens: np.ndarray, positions: np.ndarray, sequences: np.ndarray, outputs: bool
    ) -> np.ndarray:
        """Runs tokens [n] of sequences [n] at positions [n] -> logits [n, V]; [0, V] if unwanted.

        The logits are llama.cpp's own memory, good until the next call.
        """
        b, n = self._batch, len(tokens)
        b.n_tokens = n
        np.ctypeslib.as_array(b.token, (n,))[:] = tokens
        np.ctypeslib.as_array(b.pos, (n,))[:] = positions
        np.ctypeslib.as_array(b.n_seq_id, (n,))[:] = 1
        np.ctypeslib.as_array(b.logits, (n,))[:] = outputs
        for i, sequence in enumerate(sequences.tolist()):
            b.seq_id[i][0] = sequence
        status = self._llama.llama_decode(self._context, b)
        if status:
            raise RuntimeError(f"llama_decode answered {status}")
        if not outputs:
            return np.empty((0, self.vocabulary), np.float32)
        logits = self._llama.llama_get_logits(self._context)
        return np.ctypeslib.as_array(logits, (n, self.vocabulary))

    def copy(self, source: int, target: int) -> None:
        """Lets a sequence refer to all cells of another."""
        self._llama.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def drop(self, sequence: int) -> None:
        """Frees what only this sequence refers to."""
        self._llama.llama_memory_seq_rm(self._memory, sequence, -1, -1)


def draw(logits: np.ndarray, temperature: float, rng: np.random.Generator) -> np.ndarray:
    """Draws a token for each row of logits [n, V]."""
    if not temperature:
        return logits.argmax(axis=1)
    scaled = logits * np.float32(1 / temperature)
    scaled -= scaled.max(axis=1, keepdims=True)
    np.exp(scaled, out=scaled)
    upto = np.cumsum(scaled, axis=1)
    target = rng.random(len(upto), np.float32) * upto[:, -1]
    return np.minimum((upto <= target[:, None]).sum(axis=1), logits.shape[1] - 1)


def _prefill(context: Context, ids: np.ndarray, start: int, sequence: int) -> None:
    """Evaluates a piece of a prompt without outputs."""
    positions = np.arange(start, start + len(ids))
    context.evaluate(ids, positions, np.full(len(ids), sequence), outputs=False)


def _sample(
    context: Context,
    workload: Workload,
    last: np.ndarray,
    lengths: Sequence[int],
    rng: np.random.Generator,
) -> list[int]:
    """Decodes sequences 1..n from their prompts' last tokens; returns how many each drew."""
    wanted, drawn = np.asarray(lengths), np.zeros(len(lengths), int)
    tokens, alive = last.copy(), np.arange(len(lengths))
    position = workload.prompt - 1
    while len(alive):
        positions = np.full(len(alive), position)
        logits = context.evaluate(tokens[alive], positions, alive + 1, outputs=True)
        tokens[alive] = draw(logits, workload.temperature, rng)
        drawn[alive] += 1
        position += 1
        for path in alive[drawn[alive] == wanted[alive]].tolist():
            context.drop(path + 1)
        alive = alive[drawn[alive] < wanted[alive]]
    return drawn.tolist()


def _decode(
    context: Context, workload: Workload, rows: np.ndarray, parts: Sequence[range], seed: int
) -> list[int]:
    """Decodes the whole workload, group by group; sequence 0 keeps the shared prompt."""
    rng, got = np.random.default_rng(seed), []
    _prefill(context, rows[0, : workload.shared], 0, 0)
    for part in parts:
        for slot, question in enumerate(part):
            first = slot * workload.samples + 1
            context.copy(0, first)
            _prefill(context, rows[question, workload.shared : -1], workload.shared, first)
            for other in range(first + 1, first + workload.samples):
                context.copy(first, other)
        lengths = [length for q in part for length in workload.of_question(q)]
        last = np.repeat(rows[part.start : part.stop, -1], workload.samples)
        got += _sample(context, workload, last, lengths, rng)
    context.drop(0)
    return got


def prepare(workload: Workload, options: argparse.Namespace) -> Ready:
    """Writes the model to a temporary file and loads it."""
    require("llama_cpp", "gguf", remedy="pip install llama-cpp-python gguf")
    # Attention looks at every cell in use, other questions' too, but a larger batch multiplies
    # faster: of 1, 2 and 4 questions at a time, 2 were the fastest on A.
    parts = groups(workload, options.group or 2)
    slots = len(parts[0]) * workload.samples
    most = max(sum(workload.of_question(q)) for q in range(workload.questions))
    positions = workload.shared + len(parts[0]) * (workload.question + most)
    batch = max(workload.shared, workload.question, slots)
    cache = options.cache or ("f32" if options.weights == "F32" and not options.gguf else "f16")
    with tempfile.TemporaryDirectory() as folder:
        path = options.gguf or pathlib.Path(folder) / "model.gguf"
        if not options.gguf:
            write(path, workload.model, workload.prompt + workload.max_new, options.weights)
        context = Context(path, positions + 256, batch, slots + 1, cache)
        if context.vocabulary != workload.model.vocabulary:
            raise Skipped(f"{path} has {context.vocabulary} ids, not those of {workload.name}")
        rows = prompts(workload)
        # The file is mapped; reading it once here keeps it when the folder goes.
        _decode(context, workload, rows[:1], [range(1)], 0)
    return Ready(
        run=lambda seed: _decode(context, workload, rows, parts, seed),
        packages=("llama-cpp-python", "gguf", "numpy"),
        notes=["the prefix is shared and ended samples leave the batch"],
        settings={
            "questions_at_once": len(parts[0]),
            "threads": cores(),
            "cache": cache,
            "weights": options.gguf.name if options.gguf else options.weights,
        },
    )


if __name__ == "__main__":
    flags = parser(__doc__)
    flags.add_argument("--cache", choices=("f32", "f16"), help="its number type; by --weights")
    flags.add_argument("--weights", choices=WEIGHTS, default="F32", help="type of the matrices")
    flags.add_argument("--gguf", type=pathlib.Path, help="a file to take in place of random ones")
    main("llama_cpp", prepare, flags)
