"""An independent forward pass: NumPy, float64, one token and one head at a time.

Windows and soft caps are written as Hugging Face's Gemma 2 has them: scale, cap, mask, softmax.
"""

import numpy as np


def _norm(x, scale, epsilon):
    return x / np.sqrt(np.mean(x**2) + epsilon) * scale


def _rotate(x, position, theta):
    half = len(x) // 2
    out = np.empty_like(x)
    for i in range(half):
        angle = position * theta ** (-i / half)
        out[i] = x[i] * np.cos(angle) - x[i + half] * np.sin(angle)
        out[i + half] = x[i + half] * np.cos(angle) + x[i] * np.sin(angle)
    return out


def _cap(x, cap):
    return np.tanh(x / cap) * cap if cap else x


def reference_logits(config, params, tokens):
    """Logits [T, V] of one sequence."""
    p = _float64(params)
    states = [p["embedding"][token] for token in tokens]
    width, per = config.head_dim, config.num_heads // config.num_kv_heads
    for layer in range(config.num_layers):
        w = p[f"layer_{layer}"]
        window = config.windows[layer % len(config.windows)] or len(tokens)
        normed = [_norm(x, w["norm"], config.norm_epsilon) for x in states]
        heads = lambda v: v.reshape(-1, width)  # noqa: E731
        theta = config.rope_theta
        q = [[_rotate(h, t, theta) for h in heads(x @ w["query"])] for t, x in enumerate(normed)]
        k = [[_rotate(h, t, theta) for h in heads(x @ w["key"])] for t, x in enumerate(normed)]
        v = [heads(x @ w["value"]) for x in normed]
        new = []
        for t, x in enumerate(normed):
            mixed = []
            for head in range(config.num_heads):
                group = head // per
                seen = [s for s in range(t + 1) if t - s < window]
                scores = np.array([q[t][head] @ k[s][group] for s in seen]) / width**0.5
                scores = _cap(scores, config.attention_softcap)
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                mixed.append(sum(a * v[s][group] for s, a in zip(seen, weights, strict=True)))
            gate = x @ w["gate"]
            hidden = gate / (1 + np.exp(-gate)) * (x @ w["up"])
            new.append(states[t] + np.concatenate(mixed) @ w["attention_out"] + hidden @ w["down"])
        states = new
    final = p["final_norm"]["scale"]
    normed = np.stack([_norm(x, final, config.norm_epsilon) for x in states])
    return _cap(normed @ p["embedding"].T, config.logits_softcap)


def _float64(tree):
    if isinstance(tree, dict):
        return {name: _float64(value) for name, value in tree.items()}
    return np.asarray(tree, np.float64)
