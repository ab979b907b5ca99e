"""Our decoder as T5X's module, and T5X's commands with our gin files.

    python -m lmsi_jax.interop.t5x train --gin_file=...    # runs T5X's own t5x/train.py

The command (train, infer or eval) finds our packaged gin files on its search path, and substitutes
replace two packages that T5X imports but that neither training nor decoding needs. Folders in the
flags may be relative, and a checkpoint may be "embedded", our embedded model; Orbax takes absolute
paths alone.

`T5XDecoder` has the signature that T5X's `DecoderOnlyModel` calls and the parameter tree of
`models.transformer.Decoder`, so checkpoints interchange. T5X puts a start token (id 0) before every
text; our model has none and counts positions from the first real token. Here the start token
attends to itself alone and no other token attends to it, so every other token gets the same logits
as in our trainer and engine. The logits *at* the start token are meaningless: training gives the
first token of a text no weight (`lmsi_jax.tasks.seqio_rounds` does).

Shapes: B rows, T positions, L cache positions, H query heads, G kv heads, K head dim, V vocabulary.
"""

import ast
import importlib.resources
import importlib.util
import os
import runpy
import sys
import types

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmsi_jax.config import ModelConfig
from lmsi_jax.errors import LmsiError
from lmsi_jax.models.attention import packed_attention
from lmsi_jax.models.params import soft_cap
from lmsi_jax.models.transformer import Attend, Decoder
from lmsi_jax.runtime.files import embedded_path
from lmsi_jax.training import checkpoints

_MASKED = -1e9


class T5XDecoder(nn.Module):
    """The module that `t5x.models.DecoderOnlyModel` calls to initialise, score, prefill and step.

    The cache has rows on axis 0: keys [B, G, K, L] and values [B, G, L, K] of each layer, and
    `cache_index` [B], the position of the next token to read, counted from the start token.

    Attributes:
      config: the model's shape.
      first_id: T5X's id of the model's token 0. T5X takes 0 for padding, so if a text may contain
        the model's token 0, all ids are one higher in T5X and no token has the id 0, as in
        `lmsi_jax.interop.seqio_vocabularies`; V is then one more too.
    """

    config: ModelConfig
    first_id: int = 0

    def setup(self) -> None:
        """Shares the scope with the decoder, whose parameters are then at the top level."""
        self.decoder = Decoder(self.config)
        nn.share_scope(self, self.decoder)

    @nn.compact
    def __call__(
        self,
        decoder_input_tokens: jax.Array,
        decoder_target_tokens: jax.Array,
        decoder_segment_ids: jax.Array | None = None,
        decoder_positions: jax.Array | None = None,
        decoder_causal_attention: jax.Array | None = None,
        *,
        enable_dropout: bool = True,
        decode: bool = False,
        max_decode_length: int | None = None,
        prefill: bool = False,
        prefill_lengths: jax.Array | None = None,
    ) -> jax.Array:
        """Returns logits [B, T, V] of tokens [B, T]; a start token begins each row or segment.

        Args:
          decoder_input_tokens: the input tokens.
          decoder_target_tokens: unused, as are `decoder_causal_attention` (all attention is
            causal), `enable_dropout` (there is none) and `max_decode_length` (the cache has it).
          decoder_segment_ids: [B, T] the packed example of a token; None for one example per row.
          decoder_positions: [B, T] the position in the example, 0 for the start token.
          decode: runs one step, T = 1, at the cache's index; without a cache, makes one of T.
          prefill: fills the cache with whole prompts.
          prefill_lengths: [B] the position of each prompt's last token, read by the first step.
        """
        tokens = decoder_input_tokens.astype(jnp.int32)
        step = decode and self.has_variable("cache", "cache_index")
        if decode or prefill:
            self._declare(*tokens.shape)
        if step:
            index: jax.Array = self.get_variable("cache", "cache_index")
            self.put_variable("cache", "cache_index", index + 1)
            return self._scores(tokens, index[:, None], self._stepping(index))
        places = decoder_positions
        if places is None:
            places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        segments = jnp.ones_like(tokens) if decoder_segment_ids is None else decoder_segment_ids
        # The start token is a segment of its own, between the examples' odd numbers.
        segments = 2 * segments + (places > 0)
        attend = packed_attention(self.config, segments, _counted(places), None)
        if prefill:
            self.put_variable("cache", "cache_index", prefill_lengths)
            attend = self._caching(attend)
        return self._scores(tokens, places, attend)

    def _scores(self, tokens: jax.Array, places: jax.Array, attend: Attend) -> jax.Array:
        """Returns logits [B, T, V] over T5X's ids of tokens and places [B, T]."""
        ids = jnp.maximum(tokens - self.first_id, 0)  # the start token attends to itself alone
        scores = self.decoder(ids, _counted(places), attend)
        unused = ((0, 0), (0, 0), (self.first_id, 0))
        return jnp.pad(scores, unused, constant_values=_MASKED)

    def _declare(self, rows: int, length: int) -> None:
        """Makes an empty cache unless there is one."""
        c = self.config
        for layer in range(c.num_layers):
            shape = (rows, c.num_kv_heads, c.head_dim, length)
            self.variable("cache", f"cached_key_{layer}", jnp.zeros, shape)
            self.variable("cache", f"cached_value_{layer}", jnp.zeros, (*shape[:2], *shape[:1:-1]))
        self.variable("cache", "cache_index", jnp.zeros, (rows,), jnp.int32)

    def _caching(self, attend: Attend) -> Attend:
        """Wraps `attend` so that keys and values are written to the cache."""

        def kept(layer: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            self.put_variable("cache", f"cached_key_{layer}", k.transpose(0, 2, 3, 1))
            self.put_variable("cache", f"cached_value_{layer}", v.transpose(0, 2, 1, 3))
            return attend(layer, q, k, v)

        return kept

    def _stepping(self, index: jax.Array) -> Attend:
        """Returns attention over the cache of one token per row, at the places `index` [B]."""

        def attend(layer: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            # q [B, 1, H, K], k and v [B, 1, G, K]; returns [B, 1, H, K]
            c = self.config
            keys: jax.Array = self.get_variable("cache", f"cached_key_{layer}")
            values: jax.Array = self.get_variable("cache", f"cached_value_{layer}")
            keys = _put(keys, k.transpose(0, 2, 3, 1), index, axis=2)
            values = _put(values, v.transpose(0, 2, 1, 3), index, axis=1)
            self.put_variable("cache", f"cached_key_{layer}", keys)
            self.put_variable("cache", f"cached_value_{layer}", values)
            seen = _seen(index, keys.shape[-1], c.window(layer))[:, None, None]
            rows = q.reshape(q.shape[0], c.num_kv_heads, -1, c.head_dim)
            scores = soft_cap((rows @ keys).astype(jnp.float32), c.attention_softcap)
            shares = jax.nn.softmax(jnp.where(seen, scores, _MASKED), axis=-1)
            return (shares.astype(values.dtype) @ values).reshape(q.shape)

        return attend


def _counted(places: jax.Array) -> jax.Array:
    """Converts places to the model's positions, which begin after the start token."""
    return jnp.maximum(places - 1, 0)


def _seen(index: jax.Array, length: int, window: int) -> jax.Array:
    """Returns the mask [B, L] of the places that a token at `index` [B] attends to."""
    places = jnp.arange(length)[None]
    seen = (places <= index[:, None]) & ((places > 0) | (index == 0)[:, None])
    return seen & (places > index[:, None] - window) if window else seen


def _put(cache: jax.Array, new: jax.Array, index: jax.Array, axis: int) -> jax.Array:
    """Writes the new entry of each row at its index; `axis` does not count the axis of rows."""
    write = jax.lax.dynamic_update_slice_in_dim
    return jax.vmap(lambda c, n, i: write(c, n, i, axis))(cache, new, index)


_COMMANDS = ("train", "infer", "eval")
_FOLDERS = (
    *("CHECKPOINT_PATH", "INITIAL_CHECKPOINT_PATH", "MODEL_DIR"),
    *("RUN_DIR", "INFER_OUTPUT_DIR", "EVAL_OUTPUT_DIR"),
)


def _module(name: str, **contents: object) -> types.ModuleType:
    """Creates a module and registers it by its name and in its parent."""
    module = types.ModuleType(name)
    vars(module).update(contents)
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)
    return module


def _fails(name: str) -> bool:
    """Tries to import a package, which may be absent or not work with the installed JAX."""
    try:
        importlib.import_module(name)
    # A package may raise anything while it is imported, which would stop T5X too.
    except Exception:
        for loaded in [m for m in sys.modules if m.split(".")[0] == name.split(".")[0]]:
            del sys.modules[loaded]
        return True
    return False


def missing() -> str | None:
    """Installs the substitutes; returns the reason why T5X cannot be imported, or None."""
    for name in ("t5x", "tensorboard"):  # T5X needs tensorboard and does not declare it
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed: pip install 'lmsi_jax[t5x]'"
    install()
    return None


def install() -> None:
    """Puts substitutes into `sys.modules` for the packages that cannot be imported."""
    # airio is on GitHub alone; T5X checks arguments against its classes.
    if _fails("airio.core"):
        names = ("DatasetProviderBase", "Task", "Mixture", "AirIODatasetIterator")
        _module("airio")
        _module("airio.core", **{name: type(name, (), {}) for name in names})
    # jestimator's release does not import with a current JAX; it has the Amos optimizer only.
    if _fails("jestimator.amos"):
        _module("jestimator")
        state = type("ScaleByAmosState", (), {})
        _module("jestimator.amos", ScaleByAmosState=state, amos=lambda *args, **kwargs: None)
        _module("jestimator.amos_helper", state_partition_rule=lambda *args, **kwargs: None)


def absolute(word: str) -> str:
    """Returns a flag with the folder that it sets absolute; other flags unchanged."""
    name, equals, value = word.partition("=")
    if not equals or name.removeprefix("--gin.") not in _FOLDERS:
        return word
    try:
        folder = ast.literal_eval(value)
    except (SyntaxError, ValueError):
        folder = value  # quotation marks that the shell took
    if not isinstance(folder, str) or value[:1] in "@%":
        return word
    if folder == "embedded":
        folder = str(checkpoints.find(embedded_path("")))
    elif "://" not in folder:
        folder = os.path.abspath(os.path.expanduser(folder))
    return f"{name}={folder!r}"


def main(words: list[str]) -> None:
    """Runs a command of T5X as its own script would.

    Raises:
      LmsiError: no such command, or T5X is not installed.
    """
    if not words or words[0] not in _COMMANDS:
        raise LmsiError(f"name a command of T5X: {', '.join(_COMMANDS)}")
    reason = missing()
    if reason:
        raise LmsiError(reason)
    packaged = importlib.resources.files("lmsi_jax.gin_configs")
    paths = [word for word in words[1:] if word.startswith("--gin_search_paths=")]
    rest = [word for word in words[1:] if word not in paths]
    search_paths = ",".join([*(path.partition("=")[2] for path in paths), str(packaged), "."])
    rest = [absolute(word) for word in rest]
    sys.argv = [f"t5x.{words[0]}", f"--gin_search_paths={search_paths}", *rest]
    runpy.run_module(f"t5x.{words[0]}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except LmsiError as error:
        sys.exit(f"{error}")
