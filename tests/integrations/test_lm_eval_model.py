"""The harness's model: log-likelihoods against an independent decoder, shared prefixes, texts."""

import itertools

import numpy as np
import pytest
from reference_decoder import reference_logits

from lmsi_jax import api
from lmsi_jax.errors import LmsiError
from lmsi_jax.integrations import lm_eval_model
from lmsi_jax.integrations.lm_eval_model import Scorer, find_model, harness_class


@pytest.fixture(scope="module")
def scorer(micro_config, micro_params, tokenizer, tokenizer_path):
    model = api.Model(
        config=micro_config,
        params=micro_params,
        tokenizer=tokenizer,
        tokenizer_path=tokenizer_path,
    )
    return Scorer(model, slots=4)


def _reference(scorer, context, continuation):
    ids = context + continuation
    logits = reference_logits(scorer.model.config, scorer.model.params, ids[:-1])
    logprobs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    places = range(len(context) - 1, len(ids) - 1)
    total = sum(logprobs[place, ids[place + 1]] for place in places)
    return total, all(logits[place].argmax() == ids[place + 1] for place in places)


def _greedy(scorer, context, count):
    ids = list(context)
    for _ in range(count):
        ids.append(
            int(reference_logits(scorer.model.config, scorer.model.params, ids)[-1].argmax())
        )
    return ids[len(context) :]


def test_likelihoods_are_those_of_an_independent_decoder(scorer):
    context = scorer.encode("Q: Ann has 3 pens.")
    pairs = [(context, scorer.encode(text, False)) for text in (" A: 7", " 4 cups and 3", ".")]
    pairs.append((context, _greedy(scorer, context, 3)))
    found = scorer.likelihoods(pairs)
    wanted = [_reference(scorer, *pair) for pair in pairs]
    assert [score for score, _ in found] == pytest.approx([s for s, _ in wanted], abs=1e-3)
    assert [greedy for _, greedy in found] == [bool(greedy) for _, greedy in wanted]
    assert found[-1][1] is True and found[0][1] is False


def test_a_prefix_that_many_contexts_share_changes_no_likelihood(scorer, monkeypatch):
    shots = scorer.encode("Q: Ann has 3 pens and 4 cups. A: 7. " * 2)
    pairs = [(shots + scorer.encode(f"Q: {n} cups?", False), [n + 9, n + 20]) for n in range(6)]
    monkeypatch.setattr(lm_eval_model, "_MANY", 8)
    shared = scorer.likelihoods(pairs)
    assert {len(row.prefix) for row in scorer._rows(pairs)} != {0}
    monkeypatch.setattr(lm_eval_model, "_MANY", 10**9)
    alone = scorer.likelihoods(pairs)
    assert [s for s, _ in shared] == pytest.approx([s for s, _ in alone], abs=1e-4)
    assert [greedy for _, greedy in shared] == [greedy for _, greedy in alone]


@pytest.mark.slow
def test_a_context_that_is_too_long_loses_its_beginning(scorer, monkeypatch):
    monkeypatch.setattr(scorer, "max_length", 8)
    context, continuation = list(range(20, 40)), [41, 42]
    (found,) = scorer.likelihoods([(context, continuation)])
    wanted = _reference(scorer, context[-7:], continuation)  # 8 tokens are read, one predicted more
    assert found[0] == pytest.approx(wanted[0], abs=1e-3)


def test_greedy_texts_end_at_the_harness_s_stops(scorer):
    prompt = "Q: Ann has 3 pens and 4 cups."
    (whole,) = scorer.generate([prompt], {"max_gen_toks": 8, "do_sample": False})
    tokenizer = scorer.model.tokenizer
    ids = _greedy(scorer, scorer.encode(prompt), 8)
    ids = list(itertools.takewhile(lambda token: token not in tokenizer.end_ids, ids))
    assert whole == tokenizer.decode(ids) and len(whole) > 5
    stop = whole[3:5]
    (cut,) = scorer.generate([prompt], {"until": [stop], "max_gen_toks": 8})
    assert cut == whole[: whole.index(stop)]


def test_a_shared_text_is_taken_apart_only_if_ids_stay(scorer):
    prompts = [f"Q: Ann has 3 pens.\nA: 7\n\nQ: {n} cups?" for n in (1, 2)]
    prefix = scorer._shared_text(prompts)
    assert prefix in ("", "Q: Ann has 3 pens.\nA: 7\n\n")
    for prompt in prompts if prefix else ():
        assert scorer._parts(prefix, prompt[len(prefix) :]) == scorer.encode(prompt)
    assert scorer._shared_text(prompts[:1]) == ""


def test_generation_settings_of_the_harness_become_sampling():
    sampling = lm_eval_model._sampling
    greedy = sampling({"until": "Q:", "do_sample": False, "temperature": 0.7})
    assert (greedy.temperature, greedy.stop, greedy.max_new_tokens) == (0.0, ("Q:",), 256)
    drawn = sampling({"do_sample": True, "top_p": 0.9, "max_tokens": 5, "until": ["a", ""]})
    assert (drawn.temperature, drawn.top_p, drawn.max_new_tokens) == (1.0, 0.9, 5)
    assert drawn.stop == ("a",)


def test_of_a_run_the_last_trained_round_is_taken(tmp_path):
    for number in (1, 2, 10):
        (tmp_path / f"round_{number}" / "train").mkdir(parents=True)
    for number in (1, 2):
        (tmp_path / f"round_{number}" / "train" / "stage.json").touch()
    assert find_model(str(tmp_path)) == str(tmp_path / "round_2" / "train")
    assert find_model("embedded") == "embedded"
    with pytest.raises(LmsiError, match="there is no folder"):
        find_model(str(tmp_path / "none"))


def test_without_the_harness_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    harness_class.cache_clear()
    with pytest.raises(LmsiError, match=r"pip install 'lmsi_jax\[eval\]'"):
        lm_eval_model.register()
    harness_class.cache_clear()


def test_the_harness_runs_the_registered_model(scorer, monkeypatch, tmp_path):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_model

    lm_eval_model.register()
    monkeypatch.setattr(lm_eval_model.api, "load", lambda *args, **settings: scorer.model)
    lm = get_model("lmsi").create_from_arg_string("pretrained=embedded", {"batch_size": 4})

    def ask(kind, *arguments):
        return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)

    ((score, _),) = lm.loglikelihood([ask("loglikelihood", "Q: Ann has", " 3 pens")])
    whole = scorer.encode("Q: Ann has 3 pens")
    size = len(scorer.encode("Q: Ann has"))
    assert score == pytest.approx(_reference(scorer, whole[:size], whole[size:])[0], abs=1e-3)
    (rolling,) = lm.loglikelihood_rolling([ask("loglikelihood_rolling", "Q: Ann has 3 pens")])
    assert rolling == pytest.approx(_reference(scorer, [lm.prefix_token_id], whole)[0], abs=1e-3)
    (text,) = lm.generate_until([ask("generate_until", "Q: Ann has", {"max_gen_toks": 3})])
    assert isinstance(text, str)
