"""The tasks in four prompt styles: what they ask and score, through SeqIO's own evaluator."""

import json

import pytest

from lmsi_jax.errors import LmsiError
from lmsi_jax.prompts import PROMPT_STYLES, build_prompt
from lmsi_jax.tasks import registry, seqio_suite

seqio = pytest.importorskip("seqio")
# noqa: E402  imports TensorFlow

_SVAMP = [
    {"Body": f"Ann has {n} pens and gets 2", "Question": "How many?", "Answer": n + 2.0}
    for n in range(5)
]
_AQUA = [
    {"question": "Which?", "options": ["A)ice", "B)a nail"], "correct": "B"},
    {"question": "What?", "options": ["A)one", "B)two"], "correct": "A"},
]


@pytest.fixture
def folders(tmp_path):
    (tmp_path / "SVAMP.json").write_text(json.dumps(_SVAMP))
    (tmp_path / "test.json").write_text("\n".join(map(json.dumps, _AQUA)))
    return {"svamp": str(tmp_path), "aqua": str(tmp_path)}


def _examples(name, split="test"):
    mixture = seqio.get_mixture_or_task(name)
    dataset = mixture.get_dataset(None, split, shuffle=False, num_epochs=1)
    return list(dataset.as_numpy_iterator())


@pytest.mark.parametrize("prompt_style", PROMPT_STYLES)
def test_a_prompt_is_that_of_the_engine(folders, prompt_style, tokenizer_path):
    seqio_suite.register(
        ("svamp",), tokenizer=tokenizer_path, data_dirs=folders, max_new_tokens=10_000
    )
    task = registry.get("svamp", folders["svamp"])
    questions = task.questions("test", "hard", 5, 0)
    vocabulary = seqio.get_mixture_or_task(f"lmsi_svamp_{prompt_style}").output_features["inputs"]
    wanted = ["".join(build_prompt(q, task.exemplars(), prompt_style)) for q in questions]
    found = [
        vocabulary.vocabulary.decode(row["inputs"].tolist())
        for row in _examples(f"lmsi_svamp_{prompt_style}")
    ]
    assert [text.split() for text in found] == [text.split() for text in wanted]


def test_registering_again_has_the_same_effect(folders):
    first = seqio_suite.register(("svamp", "aqua"), data_dirs=folders)
    assert seqio_suite.register(("svamp", "aqua"), data_dirs=folders) == first
    tasks = {f"lmsi_{name}_{p}" for name in ("svamp", "aqua") for p in PROMPT_STYLES}
    assert set(first) == tasks | {f"lmsi_out_of_domain_{p}" for p in PROMPT_STYLES}


def test_a_mixture_holds_the_tasks_of_its_domain(folders):
    name = seqio_suite.mixture("out", "cot", names=("svamp", "aqua", "gsm8k"), data_dirs=folders)
    assert {task.name for task in seqio.get_mixture_or_task(name).tasks} == {
        "lmsi_svamp_cot",
        "lmsi_aqua_cot",
    }


def test_registering_reads_no_question():
    seqio_suite.register(data_dirs=dict.fromkeys(seqio_suite.PUBLISHED, "/nowhere"))


def test_seqios_evaluator_scores_answers_by_letter_and_by_text(folders, tmp_path):
    seqio_suite.register(("aqua",), ("zero_shot_cot",), data_dirs=folders)
    said = {"Which?": " It rusts. The answer is a nail.", "What?": " So the answer is (b)."}

    def predict(dataset, *_):
        rows = list(dataset.as_numpy_iterator())
        task = seqio.get_mixture_or_task("lmsi_aqua_zero_shot_cot")
        vocabulary = task.output_features["targets"].vocabulary
        asked = [vocabulary.decode(row["encoder_input_tokens"].tolist()) for _, row in rows]
        answers = [next(said[q] for q in said if q in text) for text in asked]
        ids = [(*vocabulary.encode(text), *[0] * 32)[:32] for text in answers]
        return [(index, one) for (index, _), one in zip(rows, ids, strict=True)]

    evaluator = seqio.Evaluator(
        mixture_or_task_name="lmsi_aqua_zero_shot_cot",
        feature_converter=seqio.EncDecFeatureConverter(pack=False),
        eval_split="test",
        sequence_length={"inputs": 256, "targets": 32},
    )
    metrics, _ = evaluator.evaluate(compute_metrics=True, predict_fn=predict)
    assert metrics.result()["lmsi_aqua_zero_shot_cot"] == {"accuracy": 0.5, "parsed": 1.0}


def test_seqios_evaluator_finds_the_lengths_by_itself(folders):
    seqio_suite.register(("svamp",), ("cot",), data_dirs=folders)
    evaluator = seqio.Evaluator(
        mixture_or_task_name="lmsi_svamp_cot",
        feature_converter=seqio.EncDecFeatureConverter(pack=False),
        eval_split="test",
        sequence_length=None,
    )
    longest = max(len(row["inputs"]) for row in _examples("lmsi_svamp_cot"))
    (dataset,) = evaluator.cached_model_datasets.values()
    rows = [row for _, row in dataset.as_numpy_iterator()]
    assert {len(row["encoder_input_tokens"]) for row in rows} == {longest} and len(rows) == 5


def test_a_prompt_that_does_not_fit_is_refused_when_its_split_is_read(folders):
    seqio_suite.register(("svamp",), ("cot",), data_dirs=folders)
    task = seqio.get_mixture_or_task("lmsi_svamp_cot")
    with pytest.raises(
        LmsiError, match="lmsi_svamp_cot: the longest prompt has .* raise it.*sequence_length=None"
    ) as raised:
        task.get_dataset({"inputs": 64, "targets": 8}, "test", shuffle=False)
    assert "TASK_FEATURE_LENGTHS" not in str(raised.value)  # a user of SeqIO has no gin
