"""Prompts and training rows in chat templates: ids of transformers, hostile texts, ends."""

import datetime
import json

import pytest

pytest.importorskip("jinja2", reason="needs the extra [hf]")
pytest.importorskip("tokenizers", reason="needs the extra [hf]")

import chat_templates as forms
from test_chat_template import ASKED, HOSTILE, their_tokenizer, write_tokenizer

from lmsi_jax.config import Chat
from lmsi_jax.errors import LmsiError
from lmsi_jax.interop.chat_prompts import BASE, INSTRUCT, choose_prompting, open_writer
from lmsi_jax.models.tokenizers import encode_text, open_tokenizer
from lmsi_jax.records import Exemplar, Question, join_texts, plain_text

EXEMPLARS = (
    Exemplar(question="Q: Ben has 2 hats, 3 caps. How many?", reasoning="2 + 3 = 5.", answer="5"),
    Exemplar(question="Q: Eva has 1 pen. How many?", reasoning="It is 1.", answer="1"),
)
SOLUTION = "3 + 12 = 15. The answer is 15."


def question(text=ASKED):
    return Question(uid="a", task="t", text=f"Q: {text}", kind="number")


def folder_of(name, folder):
    """Writes the folder of a model whose template has one of the published forms."""
    source, start, end, controls, _ = forms.FORMS[name]
    strips = (end, *controls) if name == "phi3" else ()
    write_tokenizer(folder, controls, end, start, strips)
    (folder / "chat_template.jinja").write_text(source)
    choose_prompting(folder)  # as the import does
    return folder


def writer_of(name, folder, chat=None):
    tokenizer = open_tokenizer(folder_of(name, folder))
    return open_writer(chat or Chat(), tokenizer), tokenizer


def row_ids(tokenizer, *texts):
    """Returns the ids of the parts of a row, each encoded apart, one behind the other."""
    before, ids = "", []
    for text in texts:
        ids += encode_text(tokenizer, text, before)
        before = text or before
    return ids


@pytest.mark.parametrize("style", ["cot", "standard", "zero_shot_cot", "zero_shot_direct"])
@pytest.mark.parametrize("name", forms.FORMS)
def test_the_parts_of_a_row_have_the_ids_of_transformers(name, style, tmp_path):
    theirs, _ = their_tokenizer(name, tmp_path)
    today = Chat(date=datetime.date.today().isoformat())
    writer, ours = writer_of(name, tmp_path, today)
    prefix, inputs = writer.prompt(question(), EXEMPLARS, style)
    shown = EXEMPLARS if not style.startswith("zero") else ()
    messages = []
    for one in shown:
        reasoning = f"{one.reasoning} " if style == "cot" else ""
        messages += [
            {"role": "user", "content": one.question.removeprefix("Q: ")},
            {"role": "assistant", "content": f"{reasoning}The answer is {one.answer}."},
        ]
    requests = {
        "zero_shot_cot": "\nLet's think step by step.",
        "zero_shot_direct": '\nReply with "The answer is ..." alone, without any reasoning.',
    }
    messages.append({"role": "user", "content": ASKED + requests.get(style, "")})
    wanted = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert plain_text(prefix) + plain_text(inputs) == wanted
    assert row_ids(ours, prefix, inputs) == theirs(wanted, add_special_tokens=False).input_ids
    assert bool(prefix) == bool(shown)

    messages.append({"role": "assistant", "content": SOLUTION})
    row = theirs.apply_chat_template(messages, tokenize=False)
    target = writer.target(SOLUTION)
    assert row.startswith(wanted + plain_text(target))
    assert target[-2:] == (writer.end, "") and encode_text(ours, target)[-1] in ours.end_ids


@pytest.mark.parametrize("name", forms.FORMS)
def test_questions_of_a_task_share_the_prefix(name, tmp_path):
    writer, _ = writer_of(name, tmp_path)
    for chat in (Chat(), Chat(exemplars="one_turn")):
        writer.chat = chat
        prompts = [writer.prompt(question(text), EXEMPLARS, "cot") for text in (ASKED, *HOSTILE)]
        (prefix,) = {prefix for prefix, _ in prompts}
        assert "Eva has 1 pen" in plain_text(prefix) and ASKED not in plain_text(prefix)
        assert ASKED in plain_text(prompts[0][1])


@pytest.mark.parametrize("name", forms.FORMS)
def test_no_question_and_no_solution_writes_a_control_token(name, tmp_path):
    writer, ours = writer_of(name, tmp_path)
    controls = {control.id for control in ours.controls.values()}

    def counted(*texts):
        return [i for i in row_ids(ours, *texts) if i in controls]

    plain = counted(*writer.prompt(question("x"), EXEMPLARS, "cot"), writer.target("y"))
    for text in HOSTILE:
        prompt = writer.prompt(question(text), EXEMPLARS, "cot")
        assert counted(*prompt, writer.target(f"{text} The answer is 1.")) == plain


def test_exemplars_in_one_turn_are_a_document_before_the_question(tmp_path):
    writer, ours = writer_of("chatml", tmp_path, Chat(exemplars="one_turn", system="Be brief."))
    prefix, inputs = writer.prompt(question(), EXEMPLARS[:1], "cot")
    assert plain_text(prefix) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
        "Q: Ben has 2 hats, 3 caps. How many?\nA: 2 + 3 = 5. The answer is 5.\n\n"
    )
    assert plain_text(inputs) == f"Q: {ASKED}<|im_end|>\n<|im_start|>assistant\n"
    assert ours.decode(row_ids(ours, prefix, inputs)) == ours.decode(
        encode_text(ours, join_texts(prefix, inputs))
    )


def test_a_system_text_goes_where_the_template_has_a_place_for_it(tmp_path):
    writer, _ = writer_of("gemma", tmp_path, Chat(system="Be brief."))
    with pytest.raises(LmsiError, match="No system turn here; leave out the system text"):
        writer.prompt(question(), (), "zero_shot_cot")
    writer.chat = Chat(system="Be brief.", system_turn=False)
    _, inputs = writer.prompt(question(), (), "zero_shot_cot")
    assert f"<start_of_turn>user\nBe brief.\n\n{ASKED}" in plain_text(inputs)


def thinking_writer(folder, thinking):
    write_tokenizer(folder, ("<|im_start|>", "<|im_end|>"), "<|im_end|>")
    (folder / "chat_template.jinja").write_text(forms.THINKING)
    return open_writer(Chat(thinking=thinking), open_tokenizer(folder))


@pytest.mark.parametrize(
    ("thinking", "asked_end", "solution", "target"),
    [
        (False, "<think>\n\n</think>\n\n", "It is 15.", "It is 15.<|im_end|>"),
        (
            True,
            "assistant\n",
            "<think>\n3 + 12\n</think>\n\nIt is 15.",
            "<think>\n3 + 12\n</think>\n\nIt is 15.<|im_end|>",
        ),
    ],
)
def test_thoughts_are_asked_for_and_learnt_as_the_template_writes_them(
    thinking, asked_end, solution, target, tmp_path
):
    writer = thinking_writer(tmp_path, thinking)
    _, inputs = writer.prompt(question(), (), "zero_shot_cot")
    assert plain_text(inputs).endswith(asked_end)
    assert plain_text(writer.target(solution)) == target


def test_thinking_cannot_be_set_for_a_template_without_it(tmp_path):
    with pytest.raises(LmsiError, match="Chat.thinking = True, and .* has no enable_thinking"):
        writer_of("chatml", tmp_path, Chat(thinking=True))


def test_a_judge_and_a_writer_of_questions_are_asked_in_the_template(tmp_path):
    writer, _ = writer_of("chatml", tmp_path, Chat(system="S"))
    judged = writer.judgement("Q: 1 + 1?", "It is 2.", "Q: How good?", "The rating is")
    assert plain_text(judged) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n1 + 1?<|im_end|>\n"
        "<|im_start|>assistant\nIt is 2.<|im_end|>\n<|im_start|>user\nHow good?<|im_end|>\n"
        "<|im_start|>assistant\nThe rating is"
    )
    listed = plain_text(writer.more_questions(["Q: a?", "Q: b?"], "Q:"))
    assert "<|im_start|>assistant\nQ: a?<|im_end|>" in listed
    assert listed.endswith("<|im_start|>assistant\nQ:")
    assert plain_text(writer.no_question()).endswith(
        "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n"
    )


def test_an_answer_without_its_end_is_the_target_up_to_the_end(tmp_path):
    writer, _ = writer_of("llama2", tmp_path)
    assert plain_text(writer.target(SOLUTION)) == f" {SOLUTION} </s>"
    assert plain_text(writer.target(SOLUTION, ended=False)) == f" {SOLUTION} "


def test_the_import_chooses_the_template_and_has_its_end_end_samples(tmp_path):
    write_tokenizer(tmp_path, ("<|im_start|>", "<|im_end|>", "</s>"), "</s>")
    lines = []
    assert choose_prompting(tmp_path, lines.append) == BASE
    assert "as a base model, for it has no chat template" in lines[-1]
    (tmp_path / "chat_template.jinja").write_text(forms.CHATML)
    before = open_tokenizer(tmp_path)
    with pytest.raises(LmsiError, match=r"ends a turn with '<\|im_end\|>', at which no sample"):
        open_writer(Chat(), before)
    assert choose_prompting(tmp_path, lines.append) == INSTRUCT
    assert "a turn ends with <|im_end|>; --gin_file=prompting/base.gin" in lines[-1]
    after = open_tokenizer(tmp_path)
    assert after.end_ids == {after.controls["</s>"].id, after.controls["<|im_end|>"].id}
    stored = json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"]
    assert stored == [after.eos_id, after.controls["<|im_end|>"].id]
    (tmp_path / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content[:2] }}")
    assert choose_prompting(tmp_path, lines.append) == BASE
    assert "its chat template cannot be used" in lines[-1]
