"""A corrector's questions from a finished run: files of questions with candidates, and a gin file.

The corrector (LMCor, `lmsi_jax.correction`) is then an ordinary run on these files, of any model:
it learns their solutions, and answers the test questions that the run's base model has answered.
"""

import io
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from etils import epath

from lmsi_jax.config import Run
from lmsi_jax.correction import Shows, Target, candidates, corrections, question_text
from lmsi_jax.errors import LmsiError
from lmsi_jax.pipeline.context import Context, Round, read_samples
from lmsi_jax.pipeline.sample import GREEDY
from lmsi_jax.prompts import solution
from lmsi_jax.records import Exemplar, Question, Sample, Vote
from lmsi_jax.runtime.files import new_folder
from lmsi_jax.selection.rows import voted_rows
from lmsi_jax.tasks.row_answers import reasoning_of

From = Literal["majority", "given"]
"""What a corrector learns to write: samples of the majority, or given solutions."""


class Written(NamedTuple):
    """The files that were written, and their rows."""

    config: epath.Path
    train: int
    test: int


def export_candidates(
    run: Run,
    out: epath.PathLike,
    *,
    round_index: int = 1,
    count: int = 4,
    rows: int = 4,
    target: From = "majority",
    shows: Shows = "both",
    longest: int = 80,
) -> Written:
    """Writes a run's questions with candidates, and `corrector.gin`, into a new folder.

    Train questions have the samples of a round; test questions those of the base model's
    evaluation.

    Args:
      run: a run that has finished its samples, votes and the base model's evaluation, with
        `Sampling.greedy`.
      out: the folder.
      round_index: the round.
      count: random samples among a question's candidates, beside the greedy one.
      rows: most training rows of a question, each with other random candidates.
      target: what is learnt. "given" sees labels.
      shows: what the questions have.
      longest: most words of a candidate.

    Raises:
      LmsiError: the run lacks samples for this, or the folder exists.
    """
    if run.voting.rotate_options:
        raise LmsiError(
            "with Voting.rotate_options samples name letters of rotated options, and those of one "
            "question's candidates must mean the same options; sample without it"
        )
    context = Context(run, frozenset())
    base, now = context.round(0), context.round(round_index)
    if not now.finished("vote"):
        raise LmsiError(
            f"the votes of round {round_index} are not cast in {context.output}; finish its run, "
            "or name another round"
        )
    tasks: dict[str, tuple[str, list[dict[str, Any]], list[dict[str, Any]]]] = {}
    for task in dict.fromkeys(context.questions.train):
        questions, votes = now.questions[task], now.votes()[task]
        drawn, greedy = now.samples(task), read_samples(now.store("sample"), f"{GREEDY}-{task}")
        if not greedy:
            raise LmsiError(
                f"round {round_index} has no greedy samples of {task}, which are among the "
                "candidates; sample with Sampling.greedy = True"
            )
        given = _given(context, task, len(questions)) if target == "given" else {}
        train = [
            {"question": row.text, "answer": row.answer, "solution": reasoning_of(row.solution)}
            for question, vote in zip(questions, votes, strict=True)
            for row in corrections(
                question,
                greedy[question.uid][0],
                drawn[question.uid],
                _targets(question, vote, drawn[question.uid], given, target),
                count=count,
                rows=rows,
                shows=shows,
                longest=longest,
            )
        ]
        train = list({row["question"]: row for row in train}.values())
        test = list(_test_rows(base, task, count, shows, longest))
        tasks[task] = (questions[0].kind, train, test)
    if not any(train for _, train, _ in tasks.values()):
        raise LmsiError(
            f"no question of round {round_index} has a solution with reasoning to learn, and "
            f"{count} samples beside the greedy one; draw more samples (Sampling.num_samples), or "
            "show fewer"
        )
    with new_folder(epath.Path(out)) as folder:
        for task, (_, train, test) in tasks.items():
            for split, some in (("train", train), ("test", test)):
                lines = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in some)
                (folder / f"{task}.{split}.jsonl").write_text(lines, encoding="utf-8")
        (folder / "corrector.gin").write_text(_gin(tasks, target), encoding="utf-8")
    sizes = [sum(len(rows) for rows in column) for column in _columns(tasks)]
    return Written(epath.Path(out) / "corrector.gin", *sizes)


def _columns(tasks: Mapping[str, tuple[str, list[Any], list[Any]]]) -> tuple[list[Any], list[Any]]:
    return [train for _, train, _ in tasks.values()], [test for _, _, test in tasks.values()]


def _targets(
    question: Question,
    vote: Vote,
    samples: Sequence[Sample],
    given: Mapping[str, Exemplar],
    target: From,
) -> list[Target]:
    if target == "given":
        worked = given.get(question.text)
        if worked is None:
            return []
        return [Target(None, solution(worked.reasoning, worked.answer), worked.answer)]
    targets = [
        Target(row.sample.sample_index, row.solution, row.answer)
        for row in voted_rows(question, samples, vote)
        if row.answer
    ]
    return [one for one in targets if reasoning_of(one.solution)]


def _given(context: Context, task: str, count: int) -> dict[str, Exemplar]:
    """Returns the given solutions of a task's training questions, by the question's text."""
    from lmsi_jax.tasks import registry

    config = context.questions
    source = registry.find(config, task)
    worked = source.worked("train", config.level, config.seed)
    found: dict[str, Exemplar] = {}
    try:
        # Contaminated questions were left out of the run's, so a few more are looked at.
        for row in itertools.islice(worked, 2 * count):
            found[row.question] = row
    except LmsiError:  # the source has no more
        if not found:
            raise
    return found


def _test_rows(
    base: Round, task: str, count: int, shows: Shows, longest: int
) -> Iterator[dict[str, Any]]:
    """Yields the test questions that the base model answered greedily and with several samples.

    Raises:
      LmsiError: there are none, or they have too few samples.
    """
    greedy = base.test_samples(task, "cot")
    drawn = base.test_samples(task, "self_consistency")
    questions = base.context.load_questions("test").get(task, [])
    asked = [question for question in questions if question.uid in greedy and question.uid in drawn]
    if questions and not asked:
        raise LmsiError(
            f"the base model's evaluation of {task} has no greedy samples and vote to show; "
            "evaluate with 'cot' and 'self_consistency' in Evaluation.prompt_styles"
        )
    for question in asked:
        if len(drawn[question.uid]) < count:
            raise LmsiError(
                f"a test question of {task} has {len(drawn[question.uid])} samples, and {count} "
                "are to be shown; raise Evaluation.num_samples, or show fewer"
            )
        shown = candidates(greedy[question.uid][0], drawn[question.uid], count)
        yield {
            "question": question_text(question, shown, shows, longest),
            "answer": [question.gold, *question.also] if question.also else question.gold,
        }


def _gin(tasks: Mapping[str, tuple[str, list[Any], list[Any]]], target: From) -> str:
    """Returns the gin file that makes a corrector's run of another one."""
    learnt = "samples of the majority" if target == "majority" else "given solutions (labels)"
    text = io.StringIO()
    text.write(
        f"""# A corrector (LMCor) on the questions with candidates beside this file.
# It learns {learnt}.
#
#   lmsi run CONFIG --gin_file=PATH/corrector.gin --gin.Run.output_dir=runs/corrector
#
# CONFIG is a run of the corrector's own model. The rows of `train` are learnt, none is sampled but
# one question of each task, which the loop wants to see.

"""
    )
    for task, (kind, train, _) in tasks.items():
        if train:
            text.write(
                f"{task}/FileTask.name = 'corrected_{task}'\n{task}/FileTask.kind = {kind!r}\n"
                f"{task}/FileTask.train = '{task}.train.jsonl'\n"
                f"{task}/FileTask.test = '{task}.test.jsonl'\n"
                f"{task}/FileTask.solution = 'solution'\n{task}/FileTask.shots = 0\n"
                # The questions were compared with each other before they had candidates.
                f"{task}/FileTask.contamination_ngram = 0\n\n"
            )
    named = [task for task, (_, train, _) in tasks.items() if train]
    tests = [task for task, (_, train, test) in tasks.items() if train and test]
    least = min(len(train) for _, train, _ in tasks.values() if train)
    text.write(
        f"""Questions.tasks = ({" ".join(f"@{task}/FileTask()," for task in named)})
Questions.train = ({" ".join(f"'corrected_{task}'," for task in named)})
Questions.test = ({" ".join(f"'corrected_{task}'," for task in tests)})
Questions.train_count = 1
Questions.test_count = 100000  # all
Mixing.human_examples = {least}  # of each task, as many as the one with the fewest rows has
Mixing.formats = ('zero_shot_cot',)
Training.human_rate = 1.0
Sampling.num_samples = 1
Evaluation.prompt_styles = ('zero_shot_cot', 'self_consistency')
"""
    )
    return text.getvalue()
