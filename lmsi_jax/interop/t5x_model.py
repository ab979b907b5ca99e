"""Our decoder behind the signature that T5X's `DecoderOnlyModel` asks of its module.

The parameter tree is `decoder.Decoder`'s own, so checkpoints interchange. T5X puts a start token
(id 0) before every text; our model has none and counts positions from the first real token. Here
the start token is a token that sees itself alone and is seen by nobody, so each further one gets
the scores that our own trainer and engine give it. The scores *at* the start token mean nothing:
whoever trains gives the first token of a text no weight (`lmsi_jax.tasks.seqio_rounds` does).

Shapes: B rows, T positions, L cache positions, H query heads, G kv heads, K head dim, V vocabulary.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmsi_jax.config import ModelConfig
from lmsi_jax.models.attention import packed_attention
from lmsi_jax.models.params import soft_cap
from lmsi_jax.models.transformer import Attend, Decoder

_MASKED = -1e9


class T5XDecoder(nn.Module):
    """What `t5x.models.DecoderOnlyModel` calls to initialise, score, prefill and step.

    The cache has rows on axis 0: keys [B, G, K, L] and values [B, G, L, K] of each layer, and
    `cache_index` [B], the place of the token that the next step reads. The start token counts.

    Attributes:
      config: the model's shape.
      first_id: T5X's id of the model's token 0. T5X takes 0 for padding, so where a text may hold
        the model's token 0, all ids are one higher there and nothing has the id 0
        (`lmsi_jax.interop.seqio_vocabularies` moves them likewise); V is then one more too.
    """

    config: ModelConfig
    first_id: int = 0

    def setup(self) -> None:
        """Puts the decoder's parameters at the top, without a name of their own."""
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
        """Tokens [B, T], each row or segment after a start token -> logits [B, T, V].

        Args:
          decoder_input_tokens: the tokens that are read.
          decoder_target_tokens: not needed; nor is `decoder_causal_attention`, all is causal, nor
            `enable_dropout`, there is none, nor `max_decode_length`, the cache has its length.
          decoder_segment_ids: [B, T] which packed example a token belongs to; None: one a row.
          decoder_positions: [B, T] its place in the example, 0 for the start token.
          decode: one step, T = 1, at the cache's index; without a cache, makes an empty one of T.
          prefill: fills the cache with whole prompts.
          prefill_lengths: [B] the place of each prompt's last token, which the first step reads.
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
            attend = self._keeping(attend)
        return self._scores(tokens, places, attend)

    def _scores(self, tokens: jax.Array, places: jax.Array, attend: Attend) -> jax.Array:
        """Scores of T5X's ids, from T5X's ids: tokens, places [B, T] -> [B, T, V]."""
        own = jnp.maximum(tokens - self.first_id, 0)  # the start token sees itself alone anyway
        scores = self.decoder(own, _counted(places), attend)
        nobody = ((0, 0), (0, 0), (self.first_id, 0))
        return jnp.pad(scores, nobody, constant_values=_MASKED)

    def _declare(self, rows: int, length: int) -> None:
        """Makes an empty cache where there is none."""
        c = self.config
        for layer in range(c.num_layers):
            shape = (rows, c.num_kv_heads, c.head_dim, length)
            self.variable("cache", f"cached_key_{layer}", jnp.zeros, shape)
            self.variable("cache", f"cached_value_{layer}", jnp.zeros, (*shape[:2], *shape[:1:-1]))
        self.variable("cache", "cache_index", jnp.zeros, (rows,), jnp.int32)

    def _keeping(self, attend: Attend) -> Attend:
        """`attend`, and keys and values go into the cache."""

        def kept(layer: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            self.put_variable("cache", f"cached_key_{layer}", k.transpose(0, 2, 3, 1))
            self.put_variable("cache", f"cached_value_{layer}", v.transpose(0, 2, 1, 3))
            return attend(layer, q, k, v)

        return kept

    def _stepping(self, index: jax.Array) -> Attend:
        """Attention of one token per row, at the places `index` [B], over the cache."""

        def attend(layer: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            """q [B, 1, H, K], k and v [B, 1, G, K] -> [B, 1, H, K]."""
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
    """The model's positions: from the token after the start token."""
    return jnp.maximum(places - 1, 0)


def _seen(index: jax.Array, length: int, window: int) -> jax.Array:
    """[B, L] which places a token at `index` [B] sees; the start token itself alone."""
    places = jnp.arange(length)[None]
    seen = (places <= index[:, None]) & ((places > 0) | (index == 0)[:, None])
    return seen & (places > index[:, None] - window) if window else seen


def _put(cache: jax.Array, new: jax.Array, index: jax.Array, axis: int) -> jax.Array:
    """Writes each row's new entry at the row's own index; `axis` without the rows'."""
    write = jax.lax.dynamic_update_slice_in_dim
    return jax.vmap(lambda c, n, i: write(c, n, i, axis))(cache, new, index)
