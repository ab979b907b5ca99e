"""The JSON of a summary that looks like a run's, made by a seeded generator."""

import copy
import random

import pytest

FORMATS = ("few_shot_cot", "few_shot_direct", "zero_shot_cot", "zero_shot_direct")
PROMPT_STYLES = ("standard", "cot", "zero_shot_cot", "self_consistency")
TASKS = (
    ("addition_words", "number", "in", "hard", 0.46),
    ("shopping", "number", "in", "easy", 0.52),
    ("leg_counting", "choice", "in", "hard", 0.55),
    ("parity", "yes_no", "in", "hard", 0.5),
    ("syllogism", "nli", "in", "easy", 0.42),
    ("gsm_symbolic", "number", "out", "easy", 0.08),
    ("subtraction_words", "number", "out", "hard", 0.38),
)
LEVELS = {"standard": -0.24, "cot": 0.0, "zero_shot_cot": -0.06, "self_consistency": 0.14}
GAINS = {"standard": 0.07, "cot": 0.11, "zero_shot_cot": 0.12, "self_consistency": 0.05}


def evaluation(draw, number, task, prompt_style, chance, n=200):
    vote = prompt_style == "self_consistency"
    skill = random.Random(task)
    correct, sure = [], []
    for _ in range(n):
        hardness = skill.random()
        right = hardness + draw.gauss(0, 0.12) < chance
        correct.append(int(right))
        agreeing = round(32 * draw.gauss(0.72 if right else 0.42, 0.2))
        sure.append(min(32, max(1, agreeing)) / 32)
    return {
        "round": number,
        "task": task,
        "prompt_style": prompt_style,
        "correct": correct,
        "parsed": 0.97,
        "tied": draw.randrange(9) if vote else 0,
        "samples": 32 if vote else 1,
        "temperature": 0.7 if vote else 0.0,
        "single": sum(correct) / n,
        "mean_tokens": 9.0 if prompt_style == "standard" else 61.4,
        "confidence": sure if vote else [],
    }


def adaptive_consistency(draw, source, number, task, n, labels=True):
    """A set on which the rule takes 4 to 32 of 32 samples, and seldom moves the vote."""
    taken = [min(32, 4 * draw.randint(1, 9)) for _ in range(n)]
    same = [int(t == 32 or draw.random() < 0.95) for t in taken]
    correct = [int(draw.random() < 0.7) for _ in taken]
    moved = [c if s else int(draw.random() < 0.4) for c, s in zip(correct, same, strict=True)]
    return {
        "source": source,
        "round": number,
        "task": task,
        "samples": 32,
        "taken": taken,
        "same": same,
        "correct": correct if labels else [],
        "correct_stopped": moved if labels else [],
    }


def adaptive_consistency_sets(draw, rounds, n):
    tests = [
        adaptive_consistency(draw, "test", r, t[0], n) for r in range(rounds + 1) for t in TASKS
    ]
    trains = [
        adaptive_consistency(draw, "train", r, name, 400, labels=False)
        for r in range(1, rounds + 1)
        for name, _, domain, _, _ in TASKS
        if domain == "in"
    ]
    return {"threshold": 0.95, "every": 4, "on": False, "sets": [*tests, *trains]}


def training_round(draw, number):
    train = []
    for step in range(10, 401, 10):
        row = {"step": step, "learning_rate": 5e-5, "grad_norm": 0.4 + draw.random() / 5}
        row["tokens_per_second"] = 16800.0
        for i, name in enumerate(FORMATS):
            start = (0.32, 0.61, 0.36, 0.68)[i] - 0.03 * number
            row[f"loss/{name}"] = start * (0.75 + 0.25 * 0.99**step) + draw.gauss(0, 0.008)
        row["loss"] = sum(row[f"loss/{name}"] for name in FORMATS) / 4
        train.append(row)
    kept = 30100 + 2600 * number
    votes = {
        name: {
            "questions": 400,
            "mean_confidence": level + 0.12 + 0.03 * number,
            "distinct_kept_per_question": 9.4 - 0.8 * number + 4 * level,
            "empty": draw.randrange(4),
            "tied": draw.randrange(30),
        }
        for name, _, domain, _, level in TASKS
        if domain == "in"
    }
    return {
        "round": number,
        "start_from": "base",
        "seconds": {"sample": 171.2, "vote": 1.1, "mix": 0.8, "train": 143.9, "evaluate": 88.0},
        "tokens_per_second": {"sample": 24210.0, "train": 16800.0, "evaluate": 22950.0},
        "questions": 2000,
        "samples": 64000,
        "parsed": 61240,
        "unfinished": 1310,
        "empty_votes": 7,
        "tied_votes": 83,
        "kept": kept,
        "distinct_kept": 19400 - 1500 * number,
        "mean_confidence": 0.58 + 0.05 * number,
        "mean_entropy": 1.12 - 0.12 * number,
        "votes_by_task": votes,
        "generated": {},
        "prompts": {},
        "examples": {
            "few_shot_cot": {"rows": 17900, "weight": float(kept)},
            "few_shot_direct": {"rows": 1993, "weight": float(kept)},
            "zero_shot_cot": {"rows": 17900, "weight": float(kept)},
            "zero_shot_direct": {"rows": 1993, "weight": float(kept)},
        },
        "sources": {"self_generated": 39786, "human": 0},
        "train": train,
        "alarms": [],
    }


def shown(task, question, gold, winner, paths, tied=False):
    total = sum(count for _, _, count in paths)
    kept = sum(count for _, key, count in paths if key is not None and key == winner)
    return {
        "task": task,
        "question": question,
        "gold": gold,
        "winner": winner,
        "confidence": kept / total if total else 0.0,
        "tied": tied,
        "total": total,
        "samples": [
            {"text": text, "key": key, "kept": key is not None and key == winner, "count": count}
            for text, key, count in paths
        ],
    }


QUESTIONS = [
    shown(
        "addition_words",
        "Q: What is twenty-seven plus sixty-four plus thirty-five plus eighteen?",
        "144",
        "144",
        [
            ("27 + 64 is 91. 91 + 35 is 126. 126 + 18 is 144. The answer is 144.", "144", 14),
            ("35 + 18 is 53. 53 + 64 is 117. 117 + 27 is 144. The answer is 144.", "144", 9),
            ("27 + 64 is 81. 81 + 35 is 116. 116 + 18 is 134. The answer is 134.", "134", 6),
            ("64 + 18 is 82 and 82 + 35 is 117, 117", None, 3),
        ],
    ),
    shown(
        "gsm_symbolic",
        "Q: Ana has 12 boxes with 15 pencils each. She gives away 38 pencils and then buys two "
        "more boxes.\nHow many pencils does she have?",
        "$172",
        "180",
        [
            ("12 boxes with 15 pencils are 180. The answer is 180.", "180", 11),
            ("12 + 15 is 27. The answer is 27.", "27", 10),
            ("She has 12 and 15 and 38. She has", None, 11),
        ],
    ),
    shown(
        "parity", "Q: Yes or no: is 91 + 46 odd?", None, "yes", [("The answer is yes.", "yes", 32)]
    ),
    shown(
        "syllogism",
        "Premise: All glims are tov. No tov is red.\nBased on this premise, can we conclude the "
        'hypothesis "No glim is red" is true?\nOPTIONS:\n- yes\n- no\n- it is not possible to tell',
        "yes",
        None,
        [("Glims are tov and tov are", None, 32)],
    ),
]


def make(rounds=1, n=200):
    draw = random.Random(7)
    evals = []
    for number in range(rounds + 1):
        for task, _, _, _, level in TASKS:
            for prompt_style in PROMPT_STYLES:
                gain = GAINS[prompt_style] * (1 - 0.4**number)
                chance = max(
                    0.02, level + LEVELS[prompt_style] + gain * (1.4 if level > 0.1 else 0.3)
                )
                evals.append(evaluation(draw, number, task, prompt_style, chance, n))
    return {
        "name": "quickstart",
        "seed": 0,
        "created": "2025-06-14T10:21:43+00:00",
        "versions": {"lmsi_jax": "0.1.0", "jax": "0.10.0", "python": "3.12.4"},
        "command": "lmsi run quickstart --seed=0",
        "config": "Run.rounds = 1\nSampling.num_samples = 32\nSampling.temperature = 0.7\n",
        "model": {"name": "embedded", "parameters": 1843200, "source": "lmsi_jax/models/embedded"},
        "tasks": [
            {"name": t, "kind": kind, "domain": domain, "level": level, "test_questions": n}
            for t, kind, domain, level, _ in TASKS
        ],
        "evals": evals,
        "rounds": [training_round(draw, number) for number in range(1, rounds + 1)],
        "adaptive_consistency": adaptive_consistency_sets(random.Random(11), rounds, n),
        "examples": copy.deepcopy(QUESTIONS),
        "notes": ["Evaluated on 200 test questions of each task."],
    }


_ONE, _THREE = make(1), make(3)


@pytest.fixture
def summary():
    """One round."""
    return copy.deepcopy(_ONE)


@pytest.fixture
def three_rounds():
    """Three rounds, with an alarm."""
    several = copy.deepcopy(_THREE)
    several["rounds"][2]["alarms"] = ["confidence rose to 0.73 while diversity fell by 21 %"]
    return several
