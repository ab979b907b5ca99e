"""Samples questions that share a task prompt, and keys the responses by uid."""

from lmsi_jax.rollout.requests import Request


def sample_all(engine, prefix, questions, sampling, *, numbers=None, limit=None, **how):
    """Returns the samples by uid, in the order in which the questions are completed.

    Args:
      engine: a `Rollout`.
      prefix: the task prompt.
      questions: (uid, text) pairs.
      sampling: how samples are drawn.
      numbers: their indices, by default the first ones.
      limit: `limit(uid, k)` returns the most tokens of sample k.
      **how: further arguments of `generate`.
    """
    indices = range(sampling.num_samples) if numbers is None else numbers
    requests = [
        Request(
            uid=uid,
            prefix=prefix,
            text=text,
            sampling=sampling,
            sample_indices=None if numbers is None else tuple(numbers),
            limits=None if limit is None else tuple(limit(uid, k) for k in indices),
        )
        for uid, text in questions
    ]
    responses = engine.generate(requests, **how)
    return {requests[response.number].uid: list(response.samples) for response in responses}
