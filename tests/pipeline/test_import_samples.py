"""Samples of another engine: the same texts give the same votes and examples as a run's own."""

import dataclasses
import gzip
import json
import math

import pytest
from micro_run import contents, shard_rows

from lmsi_jax.cli.main import main
from lmsi_jax.pipeline.context import read_samples
from lmsi_jax.records import Question, Sample, Vote
from lmsi_jax.runtime.store import ShardStore

_FINISH = {"end_token": "stop", "limit": "length", "stop": "stop", "next_question": "stop"}


@pytest.fixture
def import_samples(words, capsys):
    """Runs `lmsi import-samples` of the micro run here; returns (exit code, stdout, the error)."""

    def run(output, files, changes=(), flags=()):
        command, config, *bindings = words("import-samples", output, changes)
        capsys.readouterr()
        code = main([command, config, *map(str, files), *flags, *bindings])
        captured = capsys.readouterr()
        out, error = (" ".join(text.split()) for text in (captured.out, captured.err))
        return code, out, error.partition("lmsi: error: ")[2]

    return run


@pytest.fixture(scope="module")
def questions(finished):
    store = ShardStore(finished / "questions")
    names = ("train-purchases", "train-compare")
    return [Question.from_json(row) for name in names for row in store.read(name)]


@pytest.fixture(scope="module")
def samples(finished, questions):
    """The samples of the finished run by uid."""
    store = ShardStore(finished / "round_1" / "sample")
    return {**read_samples(store, "purchases"), **read_samples(store, "compare")}


def _plain(sample):
    return {
        "text": sample.text,
        "logprob": None if sample.logprob == -math.inf else sample.logprob,
        "tokens": sample.tokens,
        "end": sample.end,
    }


def _plain_rows(samples):
    return [{"uid": uid, "samples": list(map(_plain, rows))} for uid, rows in samples.items()]


def _batch_rows(samples):
    """As `vllm run-batch` writes them: one response per request, with n choices."""
    return [
        {
            "id": f"vllm-{uid}",
            "custom_id": uid,
            "response": {
                "status_code": 200,
                "request_id": f"req-{uid}",
                "body": {
                    "id": f"chatcmpl-{uid}",
                    "object": "chat.completion",
                    "choices": [
                        {
                            "index": one.sample_index,
                            "message": {"role": "assistant", "content": one.text},
                            "logprobs": {"content": [{"token": "", "logprob": one.logprob}]},
                            "finish_reason": _FINISH[one.end],
                            "stop_reason": "\n\n" if one.end == "stop" else None,
                        }
                        for one in rows
                    ],
                    "usage": {"prompt_tokens": 9, "completion_tokens": 99},
                },
            },
            "error": None,
        }
        for uid, rows in samples.items()
    ]


def _completion_rows(samples, questions):
    """One completion a line, which knows its prompt alone."""
    texts = {question.uid: question.text for question in questions}
    return [
        {
            "id": f"cmpl-{uid}-{one.sample_index}",
            "object": "text_completion",
            "prompt": f"Q: 1 + 1?\nA: The answer is 2.\n\n{texts[uid]}\nA:",
            "choices": [
                {
                    "index": 0,
                    "text": one.text,
                    "logprobs": {"token_logprobs": [one.logprob / 2, one.logprob / 2]},
                    "finish_reason": _FINISH[one.end],
                    "stop_reason": "\n\n" if one.end == "stop" else None,
                }
            ],
        }
        for uid, rows in samples.items()
        for one in rows
    ]


def _written(path, rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def _shards(run, stage):
    folder = run / "round_1" / stage
    return {path.name: path.read_bytes() for path in folder.glob("*.jsonl.gz")}


@pytest.mark.parametrize("form", ["plain", "batch", "completions"])
def test_the_same_texts_give_the_votes_and_examples_of_the_run_that_drew_them(
    import_samples, lmsi, finished, samples, questions, tmp_path, form
):
    rows = {
        "plain": lambda: _plain_rows(samples),
        "batch": lambda: _batch_rows(samples),
        "completions": lambda: _completion_rows(samples, questions),
    }[form]()
    run = tmp_path / "run"
    code, out, error = import_samples(run, [_written(tmp_path / "samples.jsonl", rows)])
    assert (code, error) == (0, "")
    assert "round 1: 32 samples of 8 of 8 questions imported" in out
    assert "run `lmsi vote`" in out
    for stage in ("vote", "mix"):
        assert lmsi(stage, run)[0] == 0
        assert _shards(run, stage) == _shards(finished, stage) != {}


def test_a_run_goes_on_to_its_report_which_says_where_the_samples_are_from(
    import_samples, lmsi, samples, tmp_path
):
    run = tmp_path / "run"
    assert import_samples(run, [_written(tmp_path / "s.jsonl", _plain_rows(samples))])[0] == 0
    before = _shards(run, "sample")
    assert lmsi("run", run)[0] == 0
    assert _shards(run, "sample") == before
    assert "were imported" in (run / "report.html").read_text()
    after = contents(run)
    # Repeated, both commands find everything finished.
    assert import_samples(run, [tmp_path / "s.jsonl"])[0] == 0
    assert lmsi("run", run)[0] == 0
    assert contents(run) == after


def test_the_order_and_number_of_files_do_not_matter(import_samples, samples, tmp_path):
    rows = _plain_rows(samples)
    one = _written(tmp_path / "one.jsonl", rows)
    two = tmp_path / "two.jsonl.gz"
    two.write_bytes(gzip.compress("\n".join(map(json.dumps, rows[5:])).encode()))
    three = _written(tmp_path / "three.jsonl", rows[:5])
    for name, files in {"a": [one], "b": [two, three]}.items():
        assert import_samples(tmp_path / name, files)[0] == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_other_samples_and_a_sampled_round_are_refused(import_samples, lmsi, samples, tmp_path):
    rows = _plain_rows(samples)
    files = [_written(tmp_path / "s.jsonl", rows)]
    assert lmsi("sample", tmp_path / "drawn")[0] == 0
    code, _, error = import_samples(tmp_path / "drawn", files)
    assert code == 2 and "Imported.samples_sha256 was not set" in error
    assert import_samples(tmp_path / "run", files)[0] == 0
    rows[0]["samples"][0]["text"] += " And so on."
    code, _, error = import_samples(tmp_path / "run", [_written(tmp_path / "t.jsonl", rows)])
    assert code == 2 and "Imported.samples_sha256 was" in error


def test_a_damaged_shard_is_not_sampled_anew_but_imported_again(
    import_samples, lmsi, samples, tmp_path
):
    files = [_written(tmp_path / "s.jsonl", _plain_rows(samples))]
    run = tmp_path / "run"
    assert import_samples(run, files)[0] == 0
    before = contents(run)
    shard = min((run / "round_1" / "sample").glob("*.jsonl.gz"))
    shard.write_bytes(shard.read_bytes()[:-9])
    code, _, error = lmsi("vote", run)
    assert code == 2 and "repeat `lmsi import-samples` with the same files" in error
    assert import_samples(run, files)[0] == 0
    assert contents(run) == before


def test_fewer_samples_and_none_at_all_vote_as_far_as_they_go(
    import_samples, lmsi, samples, tmp_path
):
    rows = _plain_rows(samples)
    short, absent = rows[0], rows.pop()
    short["samples"] = short["samples"][:2]
    run = tmp_path / "run"
    code, out, _ = import_samples(run, [_written(tmp_path / "s.jsonl", rows)])
    assert code == 0 and "26 samples of 7 of 8 questions" in out
    assert "without a sample, and so without a winner: 1 question" in out
    assert lmsi("run", run)[0] == 0
    votes = {vote.uid: vote for vote in shard_rows(run / "round_1" / "vote", Vote)}
    assert votes[short["uid"]].total == 2
    assert (votes[absent["uid"]].total, votes[absent["uid"]].winner) == (0, None)


def test_left_out_rows_are_counted_and_named(import_samples, samples, tmp_path):
    rows = _batch_rows(samples)
    rows += [rows[0]]  # the same response, twice
    rows += [{**rows[1], "custom_id": "stranger-7"}]
    rows += [{"custom_id": "late", "response": None, "error": {"message": "timed\x1b[2J out"}}]
    code, out, _ = import_samples(tmp_path / "run", [_written(tmp_path / "s.jsonl", rows)])
    assert code == 0 and "32 samples of 8 of 8" in out
    assert "left out: 1 response that came twice" in out
    assert "1 row of no question of the run: s.jsonl, line 10: 'stranger-7'" in out
    assert "1 failed request: s.jsonl, line 11: 'late' has no answer (timed?[2J out)" in out


def test_broken_lines_are_named_and_nothing_is_imported_unless_they_are_skipped(
    import_samples, samples, tmp_path
):
    rows = [*_plain_rows(samples), '{"uid": "x", "sam', "[1]", '{"uid": "x", "samples": [7]}']
    file = _written(tmp_path / "s.jsonl", rows)
    code, _, error = import_samples(tmp_path / "run", [file])
    assert code == 2 and "3 lines cannot be read: s.jsonl, line 9: no JSON" in error
    assert "line 10: no JSON object" in error and "line 11: a sample is no JSON object" in error
    assert not (tmp_path / "run" / "round_1").exists()
    code, out, _ = import_samples(tmp_path / "run", [file], flags=["--skip_broken"])
    assert code == 0 and "left out: 3 broken lines: s.jsonl, line 9" in out


def test_no_row_of_the_run_is_an_error_that_names_both_sides(import_samples, tmp_path):
    rows = [{"question": "What is love?", "samples": ["Baby."]}]
    code, _, error = import_samples(tmp_path / "run", [_written(tmp_path / "s.jsonl", rows)])
    assert code == 2
    assert "none of 1 row is of a question of the run, such as 'purchases-" in error
    assert "s.jsonl, line 1: 'What is love?'" in error


def test_numbers_of_samples_are_kept_and_a_number_that_comes_twice_is_refused(
    import_samples, samples, tmp_path
):
    rows = [
        {"custom_id": f"{uid}#{one.sample_index}", **_plain(one)}
        for uid, drawn in samples.items()
        for one in reversed(drawn)
    ]
    assert import_samples(tmp_path / "a", [_written(tmp_path / "a.jsonl", rows)])[0] == 0
    drawn = shard_rows(tmp_path / "a" / "round_1" / "sample", Sample)
    assert {one.uid: one for one in drawn if one.sample_index == 2} == {
        uid: dataclasses.replace(rows[2], logprobs=None) for uid, rows in samples.items()
    }
    file = _written(tmp_path / "b.jsonl", [*rows, rows[5]])
    code, _, error = import_samples(tmp_path / "b", [file])
    assert code == 2 and "b.jsonl, line 6 and b.jsonl, line 33 both give sample 2" in error


def test_samples_beyond_num_samples_are_left_out_and_counted(import_samples, samples, tmp_path):
    files = [_written(tmp_path / "s.jsonl", _plain_rows(samples))]
    changes = {"Sampling.num_samples": 3}
    code, out, _ = import_samples(tmp_path / "run", files, changes)
    assert code == 0 and "24 samples of 8" in out and "out: 8 samples beyond Sampling.num" in out


def test_texts_end_where_the_runs_own_would(import_samples, samples, tmp_path, tokenizer):
    uid = next(iter(samples))
    said = [
        {"text": " So 7.\n\nQ: And?", "finish_reason": "length"},
        {"text": " So 7.\nQ: And?", "finish_reason": "length"},
        {"text": " The answer is", "finish_reason": "length"},
        {"text": " The answer is 7.", "finish_reason": "stop"},
    ]
    file = _written(tmp_path / "s.jsonl", [{"uid": uid, "samples": said}])
    code, out, _ = import_samples(tmp_path / "run", [file])
    assert code == 0 and "cut at a string of Sampling.stop: 2 texts" in out
    drawn = shard_rows(tmp_path / "run" / "round_1" / "sample", Sample)
    assert [(one.text, one.end) for one in drawn] == [
        (" So 7.", "stop"),
        (" So 7.", "next_question"),
        (" The answer is", "limit"),
        (" The answer is 7.", "end_token"),
    ]
    # The end token or the stop string counts, as with the run's own engine.
    assert drawn[3].tokens == len(tokenizer.encode(" The answer is 7.")) + 1
    assert drawn[2].tokens == len(tokenizer.encode(" The answer is"))


def test_missing_log_probabilities_break_no_tie_and_are_refused_as_weights(
    import_samples, lmsi, samples, tmp_path
):
    uid, other = list(samples)[:2]
    values = ["NaN", "null", "Infinity", "-1.0"]
    text = [f'{{"text": " The answer is {n}.", "logprob": {v}}}' for n, v in enumerate(values)]
    lines = [f'{{"uid": "{uid}", "samples": [{", ".join(text)}]}}']
    lines += [f'{{"uid": "{other}", "text": "The answer is {n}.", "logprob": {v}}}'
              for n, v in ((8, "-Infinity"), (9, "-3.5"))]  # fmt: skip
    file = _written(tmp_path / "s.jsonl", lines)
    code, out, _ = import_samples(tmp_path / "run", [file])
    assert code == 0 and "without a log-probability: 3 samples" in out
    assert lmsi("vote", tmp_path / "run")[0] == 0
    votes = {vote.uid: vote for vote in shard_rows(tmp_path / "run" / "round_1" / "vote", Vote)}
    assert votes[uid].winner == "0" and len(votes[uid].tied) == 4  # -1.0 would lose to 0.0 alone
    assert votes[other].winner == "9"  # -3.5 is more than minus infinity
    code, _, error = import_samples(tmp_path / "b", [file], {"Voting.weights": "logprob"})
    assert code == 2 and "needs log-probabilities, which 3 samples do not have" in error


def test_a_batchs_input_says_which_question_an_id_has(import_samples, samples, questions, tmp_path):
    rows = _batch_rows(samples)
    texts = {question.uid: question.text.removeprefix("Q: ") for question in questions}
    asked = []
    for number, row in enumerate(rows):
        messages = [
            {"role": "system", "content": "Reason step by step."},
            {"role": "user", "content": [{"type": "text", "text": texts[row["custom_id"]]}]},
        ]
        row["custom_id"] = f"request-{number}"
        asked.append(
            {
                "custom_id": row["custom_id"],
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {"model": "m", "messages": messages},
            }
        )
    answers = _written(tmp_path / "out.jsonl", rows)
    code, _, error = import_samples(tmp_path / "a", [answers])
    assert code == 2 and "line 1: 'request-0'" in error
    code, out, _ = import_samples(tmp_path / "b", [answers, _written(tmp_path / "in.jsonl", asked)])
    assert code == 0 and "32 samples of 8 of 8 questions" in out


@pytest.mark.parametrize(
    ("changes", "flags", "message"),
    [
        ({}, ["--round=2"], "the run has 1 rounds (Run.rounds)"),
        ({"Run.rounds": 2}, ["--round=2"], "round 1 is not finished"),
        (
            {"Augmentation.prompts": 2},
            ["--gin.Run.augmentation=@Augmentation()"],
            "set Augmentation.prompts to 0",
        ),
    ],
)
def test_what_cannot_be_imported_is_refused(
    import_samples, samples, tmp_path, changes, flags, message
):
    files = [_written(tmp_path / "s.jsonl", _plain_rows(samples))]
    code, _, error = import_samples(tmp_path / "run", files, changes, flags)
    assert code == 2 and message in error


def test_a_file_that_is_named_twice_or_not_there_is_refused(import_samples, samples, tmp_path):
    file = _written(tmp_path / "s.jsonl", _plain_rows(samples))
    copy = _written(tmp_path / "copy.jsonl", _plain_rows(samples))
    code, _, error = import_samples(tmp_path / "run", [file, copy])
    assert code == 2 and "are the same file" in error
    code, _, error = import_samples(tmp_path / "run", [tmp_path / "none.jsonl"])
    assert code == 2 and "cannot read" in error and "none.jsonl" in error


def test_a_file_of_samples_may_define_the_questions_too(import_samples, words, tmp_path):
    rows = [
        {
            "question": f"Ann has {n} pens.\n\nShe buys {n} more.  How many has she?",
            "samples": [f"She has {n} + {n}. The answer is {2 * n}."] * 3 + ["The answer is 1."],
            **({"answer": 2 * n} if n % 2 else {}),
        }
        for n in range(2, 8)
    ]
    file = _written(tmp_path / "mine.jsonl", rows)
    flags = ["--gin.Questions.tasks=(@FileTask(),)", "--gin.FileTask.kind=number"]
    flags += ["--gin.FileTask.name=mine", f"--gin.FileTask.train={file}"]
    changes = {"Questions.train": ("mine",), "Questions.test": (), "Questions.train_count": 6}
    run = tmp_path / "run"
    code, out, error = import_samples(run, [file], changes, flags)
    assert (code, error) == (0, "") and "24 samples of 6 of 6 questions imported" in out
    command, config, *bindings = words("vote", run, changes)
    assert main([command, config, *flags, *bindings]) == 0
    votes = shard_rows(run / "round_1" / "vote", Vote)
    assert sorted(int(vote.winner) for vote in votes) == [4, 6, 8, 10, 12, 14]
    assert {vote.confidence for vote in votes} == {0.75}
