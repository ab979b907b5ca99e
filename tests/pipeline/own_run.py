"""A micro model that writes questions and answers, and the gin file of a run with both."""

import json

from lmsi_jax.training import checkpoints

PIECES = (":", "▁ha", "Th", "e", "▁an", "sw", "er", "▁is", "▁", "12347", ".", "\n", "Q")
DIGITS = {"train": "15680", "test": "29"}
# "Let's think step by step." ends in a full stop, behind which the model says nothing.
TRIGGER = "Think:"


def text(digit):
    """A question of that shape."""
    return f"Q: haThe answer is {digit}."


def write_gin(folder, gin_text, speaker, settings, lines=()):
    """Writes model, questions and gin file into a folder; returns the file."""
    made = checkpoints.Checkpoints(folder / "base")
    made.save(1, speaker(PIECES, [*range(1, len(PIECES)), 0]))
    made.close()
    for split, digits in DIGITS.items():
        rows = [{"question": text(digit)[3:], "answer": "So.\n#### 5"} for digit in digits]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = {
        "Run.init_checkpoint": str(folder / "base"),
        "Questions.data_dir": str(folder),
        **settings,
    }
    written = [f"{name} = {value!r}" for name, value in settings.items()]
    path = folder / "own.gin"
    path.write_text(
        gin_text + "\n".join([*written, *lines, "Run.augmentation = @Augmentation()", ""])
    )
    return str(path)
