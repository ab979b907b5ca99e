"""The watch against collapse: figures of a round's paths and votes, and when they call for a look.

Label-free training fails by getting surer without getting better (TTRL, SRT): the vote's share
rises while its accuracy falls, answers and words differ less and less, pass@m falls while single
paths get better, paths get short, easy questions crowd out hard ones. Pure functions of records.
"""

from lmsi_jax.watch.alarms import Alarm, alarms
from lmsi_jax.watch.figures import EASY, Figures, Scored, distinct_kept, measure
from lmsi_jax.watch.settings import NAMES, Watch

__all__ = [
    "EASY",
    "NAMES",
    "Alarm",
    "Figures",
    "Scored",
    "Watch",
    "alarms",
    "distinct_kept",
    "measure",
]
