"""DROP's F1 (Dua et al. 2019, section 5): the overlap of an answer's words with the annotators'.

An answer is a list of spans, and a span is a set of words. Spans are paired one to one so that the
sum of their F1 is largest, a pair without a common number counts 0 if the gold span has numbers,
and the sum is divided by the larger number of spans. Of several annotators the best counts.

A model writes a list as one text. It is divided at commas, semicolons and "and" for an annotator
with several spans, and is one span for an annotator with one.
"""

import re
import string
from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_LIST = re.compile(r"\s*[,;]\s*(?:and\s+)?|\s+and\s+")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def best_drop_f1(answer: str | None, annotators: Sequence[str]) -> float:
    """Returns the F1 of an answer with the annotator that it agrees with most.

    Args:
      answer: what the model answered; None without an answer, which scores 0.
      annotators: of each annotator the spans, one a line (`Question.spans`); at least one.
    """
    if answer is None:
        return 0.0
    scores = []
    for spans in annotators:
        gold = spans.split("\n")
        scores.append(drop_f1(_LIST.split(answer) if len(gold) > 1 else [answer], gold))
    return max(scores)


def drop_f1(predicted: Sequence[str], gold: Sequence[str]) -> float:
    """Returns the F1 of predicted spans with an annotator's, in [0, 1], to two decimals.

    Args:
      predicted: at least one span.
      gold: at least one span.
    """
    predicted_bags, gold_bags = (
        [_words(span) for span in predicted],
        [_words(span) for span in gold],
    )
    scores = np.array([[_overlap(bag, right) for bag in predicted_bags] for right in gold_bags])
    rows, columns = linear_sum_assignment(scores, maximize=True)
    by_span = np.zeros(max(scores.shape))  # spans without a partner count 0
    by_span[rows] = scores[rows, columns]
    return float(np.round(np.mean(by_span), 2))


def _overlap(predicted: set[str], gold: set[str]) -> float:
    numbers = set(filter(_is_number, gold))
    if numbers and numbers.isdisjoint(predicted):
        return 0.0
    if not predicted or not gold:  # nothing but articles and punctuation
        return float(predicted == gold)
    common = len(predicted & gold)
    precision, recall = common / len(predicted), common / len(gold)
    # In this order of operations, because the result is rounded.
    return 2 * precision * recall / (precision + recall) if common else 0.0


def _words(span: str) -> set[str]:
    """Returns the words of a span: small letters, no articles or punctuation, numbers as floats."""
    words: list[str] = []
    for token in re.split("[ -]", span.lower()):
        bare = token if _is_number(token) else token.translate(_NO_PUNCTUATION)
        number = str(float(bare)) if _is_number(bare) else bare
        words += _ARTICLES.sub(" ", number).split()
    return set(words)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
