"""The vote over a question's paths (LMSI, section 3.1; Wang et al. 2022, section 2).

Pure functions of the paths as a set: the order in which they come never matters. A path has one
vote (LMSI, the default), or a weight: see `Voting`.
"""

from lmsi_jax.voting.stopping import adaptive_stop, paths_needed, settled
from lmsi_jax.voting.votes import (
    cast,
    entropy,
    margin,
    path_keys,
    right_keys,
    tally,
    vote,
    winner_of_first,
)
from lmsi_jax.voting.weights import EQUAL, Ties, Voting, Weights, check_ranker, weigh

__all__ = [
    "EQUAL",
    "Ties",
    "Voting",
    "Weights",
    "adaptive_stop",
    "cast",
    "check_ranker",
    "entropy",
    "margin",
    "path_keys",
    "paths_needed",
    "right_keys",
    "settled",
    "tally",
    "vote",
    "weigh",
    "winner_of_first",
]
