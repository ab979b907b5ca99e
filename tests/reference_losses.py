"""Independent losses: NumPy, float64, one example and one token at a time, no packing."""

import math

import numpy as np
from reference_decoder import reference_logits


def log_softmax(scores):
    shifted = scores - scores.max()
    return shifted - np.log(np.exp(shifted).sum())


def softened(scores, temperature):
    exps = np.exp(scores / temperature - (scores / temperature).max())
    return exps / exps.sum()


def cross_entropy(scores, target):
    return -log_softmax(scores)[target]


def smoothed(scores, target, smoothing, constant=False):
    size = len(scores)
    goal = [1 - smoothing if v == target else smoothing / (size - 1) for v in range(size)]
    loss = -sum(g * lp for g, lp in zip(goal, log_softmax(scores), strict=True))
    return loss - (-sum(g * math.log(g) for g in goal) if constant else 0.0)


def z_term(scores, coefficient):
    top = scores.max()
    return coefficient * (top + math.log(np.exp(scores - top).sum())) ** 2


def divergence(teacher, student, temperature):
    p, q = softened(teacher, temperature), softened(student, temperature)
    return temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def top_k_divergence(ids, logprobs, student, temperature, rest):
    q = softened(student, 1.0)
    if rest == "bucket":
        p = [math.exp(lp) for lp in logprobs]
        pairs = [(a, q[i]) for a, i in zip(p, ids, strict=True)]
        pairs.append((1 - sum(p), 1 - sum(q[i] for i in ids)))
        return sum(a * math.log(a / b) for a, b in pairs)
    p, q = softened(np.array(logprobs), temperature), softened(student[list(ids)], temperature)
    return temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def targets(config, params, row):
    """Yields (place in the row, weight, scores, target id) of each token that is learnt."""
    ids = [*row.prefix, *row.tokens]
    scores = reference_logits(config, params, ids)
    for at, weight in enumerate(row.weights):
        place = len(row.prefix) + at
        if weight and at:
            yield at, weight, scores[place - 1], ids[place]


def mean_loss(config, params, rows, token_loss):
    """Weighted mean over target tokens of `token_loss(row, place, scores, target)`."""
    total = weight = 0.0
    for row in rows:
        for at, w, scores, target in targets(config, params, row):
            total += w * token_loss(row, at, scores, target)
            weight += w
    return total / weight


def sequence_logprob(config, params, row):
    """(log-probability, number) of a row's target tokens."""
    found = [-cross_entropy(s, y) for _, _, s, y in targets(config, params, row)]
    return sum(found), len(found)


def tree_map(function, *trees):
    if isinstance(trees[0], dict):
        return {name: tree_map(function, *(t[name] for t in trees)) for name in trees[0]}
    return function(*(np.asarray(t, np.float64) for t in trees))


def dot(a, b):
    if isinstance(a, dict):
        return sum(dot(a[name], b[name]) for name in a)
    return float((np.asarray(a, np.float64) * np.asarray(b, np.float64)).sum())


def slope(function, params, direction, step=1e-4):
    """Central finite difference of a float64 function of parameters along a direction."""
    ahead = tree_map(lambda p, d: p + step * d, params, direction)
    behind = tree_map(lambda p, d: p - step * d, params, direction)
    return (function(ahead) - function(behind)) / (2 * step)


def random_direction(params, seed=0):
    rng = np.random.default_rng(seed)
    return tree_map(lambda p: rng.normal(size=p.shape), params)
