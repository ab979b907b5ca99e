"""An independent forward pass: NumPy, float64, one token and one head at a time.

What each family does is written as Hugging Face's models have it: Gemma 2 scales, caps, masks, then
takes the softmax; norms of heads come before rotation.
"""

import math

import numpy as np


def reference_logits(config, params, tokens):
    """Logits [T, V] of one sequence."""
    p = _float64(params)
    gain = config.embed_dim**0.5 if config.scale_embeddings else 1.0
    gain *= config.embedding_multiplier
    grow = config.residual_multiplier
    states = [p["embedding"][token] * gain for token in tokens]
    for layer in range(config.num_layers):
        w = p[f"layer_{layer}"]
        if config.block == "parallel":
            normed = [_norm(config, x, w["norm"]) for x in states]
            attended = _attention(config, w, layer, normed)
            states = [
                x + a + _mlp(config, w, y) for x, a, y in zip(states, attended, normed, strict=True)
            ]
            continue
        inputs = states
        if config.pre_norms:
            inputs = [_norm(config, x, w["attention_norm"]) for x in states]
        attended = _attention(config, w, layer, inputs)
        if config.post_norms:
            attended = [_norm(config, a, w["attention_post_norm"]) for a in attended]
        states = [x + grow * a for x, a in zip(states, attended, strict=True)]
        inputs = states
        if config.pre_norms:
            inputs = [_norm(config, x, w["mlp_norm"]) for x in states]
        outputs = [_mlp(config, w, x) for x in inputs]
        if config.post_norms:
            outputs = [_norm(config, y, w["mlp_post_norm"]) for y in outputs]
        states = [x + grow * y for x, y in zip(states, outputs, strict=True)]
    normed = np.stack([_norm(config, x, p["final_norm"]["scale"]) for x in states])
    table = p["embedding"] if config.tied_embeddings else p["lm_head"]
    return _cap(normed @ table.T / config.logits_divisor, config.logits_softcap)


def _norm(config, x, scale):
    return x / np.sqrt(np.mean(x**2) + config.norm_epsilon) * (scale + config.norm_plus_one)


def _times(w, name, x):
    return x @ w[name] + w.get(f"{name}_bias", 0.0)


def _mlp(config, w, x):
    gate = _times(w, "gate", x)
    if config.activation == "silu":
        active = gate / (1 + np.exp(-gate))
    else:
        active = gate / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (gate + 0.044715 * gate**3)))
    return _times(w, "down", active * _times(w, "up", x))


def _attention(config, w, layer, normed):
    """Each token's attention, projected back."""
    per = config.num_heads // config.num_kv_heads
    window = config.windows[layer % len(config.windows)]
    turns, sharp = _turns(config, local=bool(window))
    if not config.rotary_layers[layer % len(config.rotary_layers)]:
        turns, sharp = [], 1.0
    scale = (config.query_scalar or config.head_dim) ** 0.5

    def heads(name, x, norm=None):
        joined = _times(w, name, x)
        if norm and config.joint_qk_norm:
            return _norm(config, joined, w[norm]).reshape(-1, config.head_dim)
        split = joined.reshape(-1, config.head_dim)
        return [_norm(config, h, w[norm]) for h in split] if norm and config.qk_norm else split

    q = [[_rotate(h, t, turns, sharp) for h in heads("query", x, "query_norm")]
         for t, x in enumerate(normed)]  # fmt: skip
    k = [[_rotate(h, t, turns, sharp) for h in heads("key", x, "key_norm")]
         for t, x in enumerate(normed)]  # fmt: skip
    v = [heads("value", x) for x in normed]
    q, k, v = np.array(q), np.array(k), np.array(v)  # [T, heads, K], [T, groups, K] twice
    outputs = []
    for t in range(len(normed)):
        first = max(0, t + 1 - (window or len(normed)))
        mixed = []
        for head in range(config.num_heads):
            seen_k, seen_v = k[first : t + 1, head // per], v[first : t + 1, head // per]
            scores = _cap(seen_k @ q[t, head] / scale, config.attention_softcap)
            weights = np.exp(scores - scores.max())
            mixed.append(weights / weights.sum() @ seen_v)
        outputs.append(_times(w, "attention_out", np.concatenate(mixed)))
    return outputs


def _turns(config, local):
    """Angles per position of each pair of dimensions, and what queries and keys grow by."""
    width, scaling = config.rotary_dim or config.head_dim, config.rope_scaling
    half = width // 2
    theta = config.rope_theta
    if local and config.local_rope_theta:
        theta, scaling = config.local_rope_theta, None
    plain = [theta ** (-i / half) for i in range(half)]
    kind = scaling.kind if scaling else "none"
    if kind == "none":
        return plain, 1.0
    if kind == "linear":
        return [f / scaling.factor for f in plain], 1.0
    if kind == "longrope":
        turns = [f / d for f, d in zip(plain, scaling.divisors, strict=True)]
        return turns, scaling.attention_factor
    if kind == "llama3":
        return [_llama3(f, scaling) for f in plain], 1.0
    dimension = lambda turns: (  # noqa: E731
        width * math.log(scaling.original_length / (turns * 2 * math.pi)) / (2 * math.log(theta))
    )
    low = max(math.floor(dimension(scaling.beta_fast)), 0)
    high = min(math.ceil(dimension(scaling.beta_slow)), width - 1)
    ramp = [min(max((i - low) / max(high - low, 0.001), 0), 1) for i in range(half)]
    turns = [f / scaling.factor * r + f * (1 - r) for f, r in zip(plain, ramp, strict=True)]
    return turns, 0.1 * math.log(scaling.factor) + 1


def _llama3(f, scaling):
    wavelength = 2 * math.pi / f
    if wavelength < scaling.original_length / scaling.high_freq_factor:
        return f
    if wavelength > scaling.original_length / scaling.low_freq_factor:
        return f / scaling.factor
    smooth = (scaling.original_length / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    return (1 - smooth) * f / scaling.factor + smooth * f


def _rotate(x, position, turns, sharp):
    """Turns the pairs that have an angle, and multiplies them by `sharp`."""
    half = len(turns)
    out = np.array(x)
    for i in range(half):
        angle = position * turns[i]
        out[i] = sharp * (x[i] * np.cos(angle) - x[i + half] * np.sin(angle))
        out[i + half] = sharp * (x[i + half] * np.cos(angle) + x[i] * np.sin(angle))
    return out


def _cap(x, cap):
    return np.tanh(x / cap) * cap if cap else x


def _float64(tree):
    if isinstance(tree, dict):
        return {name: _float64(value) for name, value in tree.items()}
    return np.asarray(tree, np.float64)
