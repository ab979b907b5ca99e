"""The contamination probe: does the base model know the test questions by heart? (2507.10532)

The model continues the first part of each test question, greedily and without any prompt. A model
that saw the questions in pre-training completes them word by word, and may go on to the answer.

round_0/probe/TASK-60-00000-of-00002    continuations of the first 60 %
              probe.json                the table
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from lmsi_jax.config import Sampling
from lmsi_jax.errors import LmsiError
from lmsi_jax.evaluation.statistics import bootstrap, wilson
from lmsi_jax.pipeline.context import Context, Round, read_samples
from lmsi_jax.pipeline.questions import draw_questions
from lmsi_jax.pipeline.sample import Job, draw_samples
from lmsi_jax.pipeline.step import DECODING, Fields, Step, custom_code
from lmsi_jax.prompts import STOP_STRINGS
from lmsi_jax.records import Question
from lmsi_jax.report.terminal import open_console, print_probe
from lmsi_jax.runtime.files import read_json, write_json
from lmsi_jax.runtime.store import ShardStore, check_output
from lmsi_jax.voting import read_answers, right_keys

_FILE = "probe.json"
# The layout's own word before a question, which no published question has.
_LAYOUT = re.compile(r"Q:\s+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeRow:
    """One task's questions, continued from one share of their words.

    Attributes:
      task: its name.
      share: of a question's words that the model is shown.
      questions: how many.
      exact: questions whose rest the model writes word by word, with the Wilson interval of their
        share.
      rouge: mean ROUGE-L F1 of the continuation, as long as the rest, and its bootstrap interval.
      right: continuations whose answer is right, with the Wilson interval of their share.
    """

    task: str
    share: float
    questions: int
    exact: tuple[int, float, float]
    rouge: tuple[float, float, float]
    right: tuple[int, float, float]


class ProbeStep(Step):
    """Has the base model continue the first words of the test questions.

    Raises:
      LmsiError: no test question has two words.
    """

    name = "probe"
    settings = (
        Fields(part="evaluation", names=("probe_shares",)),
        Fields(part="sampling", names=("max_new_tokens",)),
        *DECODING,
    )
    inputs = ("model", "questions")

    def derived(self, round: Round) -> dict[str, Any]:
        return custom_code(round, "read", "equal")

    def share(self, round: Round) -> None:
        sampling = Sampling(
            num_samples=1,
            temperature=0.0,
            max_new_tokens=round.settings.sampling.max_new_tokens,
            stop=STOP_STRINGS,
        )
        draw_samples(
            round,
            [
                Job(
                    name=_job_name(task, share),
                    prefix="",
                    questions={question.uid: shown for question, shown, _ in parts},
                    sampling=sampling,
                )
                for task, share, parts in _asked(round)
            ],
            {},
            round.folder(self.name),
            model=0,
            label="base model: contamination probe",
        )

    def write(self, round: Round, store: ShardStore) -> None:
        from lmsi_jax.tasks.contamination import completion_overlap

        rows = []
        for task, share, parts in _asked(round):
            samples = read_samples(store, _job_name(task, share))
            overlaps, right = [], 0
            for question, _, rest in parts:
                (sample,) = samples[question.uid]
                overlaps.append(completion_overlap(rest, sample.text))
                (reading,) = read_answers(question, [sample], round.settings.voting.conclusions)
                right += reading.key is not None and reading.key in right_keys(question)
            n, exact = len(parts), sum(one.exact for one in overlaps)
            similar = [one.rouge for one in overlaps]
            row = ProbeRow(
                task=task,
                share=share,
                questions=n,
                exact=(exact, *wilson(exact, n)),
                rouge=(sum(similar) / n, *bootstrap(similar, 0)),
                right=(right, *wilson(right, n)),
            )
            rows.append(dataclasses.asdict(row))
        write_json(store.directory / _FILE, rows)


def _job_name(task: str, share: float) -> str:
    return f"{task}-{100 * share:g}"


def _asked(round: Round) -> Iterator[tuple[str, float, list[tuple[Question, str, str]]]]:
    """Yields (task, share, its questions with what is shown and what is not)."""
    from lmsi_jax.tasks.contamination import split_question

    for task, questions in round.context.load_questions("test").items():
        for share in round.settings.evaluation.probe_shares:
            parts = []
            for question in questions:
                halves = split_question(_LAYOUT.sub("", question.text, count=1), share)
                if halves is not None:
                    parts.append((question, *halves))
            if not parts:
                raise LmsiError(
                    f"no test question of {task!r} has two words, so none can be completed; leave "
                    "the task out of Questions.test"
                )
            yield task, share, parts


def probe(context: Context) -> dict[str, str]:
    """Runs the probe unless it is finished, prints its table, and returns what it read, by name.

    Raises:
      LmsiError: there are no test questions.
    """
    if not context.questions.test:
        raise LmsiError("the probe completes test questions; set Questions.test")
    questions = draw_questions(context)
    round = context.round(0)
    read = {"questions": questions, "base": context.base_fingerprint}
    ProbeStep().execute(round, {"model": read["base"], "questions": questions})
    print_probe(read_probe(round), open_console())
    print(f"table: {round.folder(ProbeStep.name) / _FILE}")
    return read


def read_probe(round: Round) -> list[dict[str, Any]]:
    """Reads the table of a finished probe; [] if there was none."""
    if not round.finished(ProbeStep.name):
        return []
    path = round.folder(ProbeStep.name) / _FILE
    check_output(path)
    return read_json(path)
