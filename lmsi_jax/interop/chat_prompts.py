"""Ask a model in its chat template, and write what it learns as the assistant's turn.

    writer = open_writer(Chat(), tokenizer)
    prefix, inputs = writer.prompt(question, exemplars, "cot")
    target = writer.target("3 and 4 is 7. The answer is 7.")

Prompts are `records.Text`: control tokens are apart, so that no question can write one. The prefix
ends with the last control token before the question, where the ids of the whole conversation can be
cut, and is shared by all questions of a task.
"""

import dataclasses
import datetime
import functools
import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from lmsi_jax.config import Chat
from lmsi_jax.errors import LmsiError
from lmsi_jax.interop.chat_template import ChatTemplate, Turn, read_tokens, to_text
from lmsi_jax.models.tokenizers import FileTokenizer, end_text, open_tokenizer
from lmsi_jax.prompts import (
    PLAIN,
    PROMPT_STYLES,
    STEP_BY_STEP,
    PlainPrompts,
    PromptStyle,
    PromptWriter,
    few_shot_prefix,
    is_direct,
    question_list,
    solution,
)
from lmsi_jax.records import Exemplar, Question, Text, join_texts, plain_text
from lmsi_jax.runtime.files import read_bytes, read_json, write_json

# Small models asked to end with "The answer is ..." begin with it, so only direct answers say so.
_DIRECT = 'Reply with "The answer is ..." alone, without any reasoning.'
_ASK_QUESTION = "Write a question of this kind, without its answer."
_ASK_MORE = "Write another question of this kind, without its answer."
_LABEL = re.compile(r"Q:\s*")
_THOUGHTS = re.compile(r"\s*<think>\n?(.*?)\n?</think>\s*", re.DOTALL)


def make_writer(chat: Chat | None, end: str, tokenizer: FileTokenizer) -> PromptWriter:
    """Returns what asks a run's models, and writes what they learn.

    Args:
      chat: `Run.chat`.
      end: `Mixing.end`.
      tokenizer: the model's tokenizer.

    Raises:
      LmsiError: as `open_writer`.
    """
    if chat is not None:
        return open_writer(chat, tokenizer)
    return PlainPrompts(end=end_text(tokenizer)) if end == "end_token" else PLAIN


def open_writer(chat: Chat, tokenizer: FileTokenizer) -> "ChatPrompts":
    """Reads the template that `Run.chat` asks for.

    Args:
      chat: the settings.
      tokenizer: the model's tokenizer.

    Raises:
      LmsiError: there is no template, jinja2 is not installed, the template has no
        `enable_thinking` though that is set, or the token that ends its turns does not end a
        sample.
    """
    return ChatPrompts(chat, tokenizer, open_template(chat, tokenizer))


def open_template(chat: Chat, tokenizer: FileTokenizer) -> ChatTemplate:
    """Reads a chat template, and finds the token that ends the assistant's turn in it.

    Raises:
      LmsiError: there is none, or jinja2 is not installed.
    """
    template = read_template(chat, tokenizer.path)
    return template.ends_of_turn([turn_end(template, tokenizer)])


def chat_record(chat: Chat, tokenizer_path: epath.PathLike) -> dict[str, Any]:
    """Returns the settings and the template's digest, for the identity of stages.

    Raises:
      LmsiError: there is no template.
    """
    template = read_template(chat, tokenizer_path)
    digest = hashlib.sha256(template.source.encode()).hexdigest()
    return {**dataclasses.asdict(chat), "template_sha256": digest}


def read_template(chat: Chat, tokenizer_path: epath.PathLike) -> ChatTemplate:
    """Reads a chat template.

    Args:
      chat: names its file, if it is not in the tokenizer's folder.
      tokenizer_path: `Run.tokenizer`, a file or a folder.

    Raises:
      LmsiError: there is none, or jinja2 is not installed.
    """
    place = epath.Path(tokenizer_path)
    folder = place if place.is_dir() else place.parent
    today = datetime.date.fromisoformat(chat.date)
    template = ChatTemplate.from_folder(folder, today=today)
    if chat.template:
        file = epath.Path(chat.template)
        if not file.exists():
            raise LmsiError(f"there is no file {file}; set Chat.template to a chat template")
        _, tokens = read_tokens(folder)
        template = ChatTemplate(read_bytes(file).decode(), tokens, origin=str(file), today=today)
    if template is None:
        raise LmsiError(
            f"{folder} has no chat template; set Chat.template to a file with one, or Run.chat to "
            "None to prompt as base models are"
        )
    return template


def turn_end(template: ChatTemplate, tokenizer: FileTokenizer) -> str:
    """Returns the control token that a template writes after the assistant's text.

    It is the tokenizer's own end if the template writes none.
    """
    turns = [Turn(role="user", text="1 + 1?"), Turn(role="assistant", text="2")]
    parts = template.render(turns).parts
    last = max(number for number, part in enumerate(parts) if part.turn == 1)
    controls = to_text(parts[last + 1 :], tokenizer.controls)[1::2]
    if controls:
        return controls[0]
    return end_text(tokenizer)


INSTRUCT, BASE = "prompting/instruct.gin", "prompting/base.gin"
"""The packaged gin files that say how a model is prompted."""


def choose_prompting(folder: Path, note: Callable[[str], object] = lambda line: None) -> str:
    """Returns the gin file that suits an imported model, and has its turns' end end a sample.

    Args:
      folder: its tokenizer; the end is added to its generation_config.json.
      note: called with a line on what was chosen and how to change it.
    """
    tokenizer = open_tokenizer(folder)
    try:
        if ChatTemplate.from_folder(folder) is None:
            note(
                "prompts: as a base model, for it has no chat template; see Chat.template to give "
                "it one"
            )
            return BASE
        template = open_template(Chat(), tokenizer)
    except LmsiError as error:
        note(f"prompts: as a base model, for its chat template cannot be used: {error}")
        return BASE
    end = turn_end(template, tokenizer)
    if (added := tokenizer.controls[end].id) not in tokenizer.end_ids:
        file = folder / "generation_config.json"
        settings = read_json(file) if file.exists() else {}
        write_json(file, settings | {"eos_token_id": [*sorted(tokenizer.end_ids), added]})
    thinks = ", Chat.thinking = True or False" if template.can_think else ""
    note(
        f"prompts: in its chat template, a turn ends with {end}; --gin_file={BASE} after model.gin "
        f"asks it as a base model{thinks}"
    )
    return INSTRUCT


class ChatPrompts:
    """Asks in a chat template; a `prompts.PromptWriter`.

    Args:
      chat: the settings.
      tokenizer: the model's tokenizer, whose control tokens are kept apart.
      template: the template.

    Attributes:
      chat: the settings.
      end: the control token that ends the assistant's turn.

    Raises:
      LmsiError: the template has no `enable_thinking` though that is set, or `end` does not end a
        sample.
    """

    def __init__(self, chat: Chat, tokenizer: FileTokenizer, template: ChatTemplate):
        self.chat, self._template = chat, template
        self._controls = tokenizer.controls
        self.end = turn_end(template, tokenizer)
        if chat.thinking is not None and not template.can_think:
            raise LmsiError(
                f"Chat.thinking = {chat.thinking}, and {template.origin} has no enable_thinking; "
                "set Chat.thinking = None"
            )
        if self._controls[self.end].id not in tokenizer.end_ids:
            raise LmsiError(
                f"{template.origin} ends a turn with {self.end!r}, at which no sample of "
                f"{tokenizer.path} ends; add {self._controls[self.end].id} to the eos_token_id of "
                "generation_config.json beside it"
            )

    def prompt(
        self, question: Question, exemplars: Sequence[Exemplar], prompt_style: PromptStyle
    ) -> tuple[Text, Text]:
        """Returns (prefix, inputs) for one question; the prefix is "" for zero-shot prompting.

        Raises:
          LmsiError: an unknown prompt style, few-shot prompting without exemplars, or turns that
            the template refuses.
        """
        if prompt_style not in PROMPT_STYLES or not prompt_style.startswith("zero_shot"):
            PLAIN.prompt(question, exemplars, prompt_style)  # for its errors
        if question.rules is not None and question.rules.prompt is not None:
            shown, rest = PLAIN.prompt(question, exemplars, prompt_style)
            return self._asked([self._user(plain_text(join_texts(shown, rest)))], plain_text(shown))
        asked = question.text.rstrip()
        if prompt_style.startswith("zero_shot"):
            request = _DIRECT if is_direct(prompt_style) else STEP_BY_STEP
            return "", self._asked([self._user(f"{_unlabelled(asked)}\n{request}")])[1]
        reasoning = not is_direct(prompt_style)
        if self.chat.exemplars == "one_turn":
            shown = few_shot_prefix(exemplars, reasoning)
            return self._asked([self._user(f"{shown}{asked}")], shown)
        turns = [
            turn
            for one in exemplars
            for turn in (
                self._user(_unlabelled(one.question)),
                Turn(
                    role="assistant",
                    text=solution(one.reasoning if reasoning else "", one.answer),
                ),
            )
        ]
        return self._asked([*turns, self._user(_unlabelled(asked))])

    def no_question(self) -> Text:
        """Returns the template around a user's turn without a text."""
        return self.request("")

    def target(self, solution: str, ended: bool = True) -> Text:
        """Returns the assistant's turn after a prompt, with the token that ends it.

        Thoughts in <think> tags are handed to the template as such. If it does not write them as
        the model did, the text is taken as it is.
        """
        whole = self._target(solution)
        if ended:
            return whole
        return whole[: max(_places(whole, self.end))]

    def judgement(self, question: str, solution: str, ask: str, opening: str) -> Text:
        """Returns a conversation about a solution, up to the beginning of the reply."""
        turns = [
            self._user(_unlabelled(question)),
            Turn(role="assistant", text=solution),
            self._user(_unlabelled(ask)),
        ]
        return self._opened(turns, opening)

    def more_questions(self, texts: Sequence[str], opening: str) -> Text:
        """Returns a conversation in which the assistant writes questions, one a turn."""
        if self.chat.exemplars == "one_turn":
            turns = [self._user(f"{question_list(texts)}{_ASK_MORE}")]
        else:
            turns = [
                turn
                for number, text in enumerate(texts)
                for turn in (
                    self._user(_ASK_MORE if number else _ASK_QUESTION),
                    Turn(role="assistant", text=text),
                )
            ]
            turns.append(self._user(_ASK_MORE if texts else _ASK_QUESTION))
        return self._opened(turns, opening)

    def request(self, text: str) -> Text:
        """Returns the conversation that a request begins."""
        return self._asked([self._user(_unlabelled(text))])[1]

    def _user(self, text: str) -> Turn:
        return Turn(role="user", text=text)

    def _turns(self, turns: Sequence[Turn]) -> list[Turn]:
        """Returns turns with the system text."""
        system = self.chat.system
        if not system:
            return list(turns)
        if self.chat.system_turn:
            return [Turn(role="system", text=system), *turns]
        first, *rest = turns
        return [dataclasses.replace(first, text=f"{system}\n\n{first.text}"), *rest]

    def _opened(self, turns: Sequence[Turn], opening: str) -> Text:
        """Returns a prompt whose reply is begun; no thoughts come before it."""
        thinking = False if opening and self._template.can_think else self.chat.thinking
        rendered = self._template.render(self._turns(turns), True, thinking)
        text = to_text(rendered.parts, self._controls)
        return join_texts(text, (opening,)) if opening else text

    def _asked(self, turns: Sequence[Turn], shown: str = "") -> tuple[Text, Text]:
        """Returns (prefix, inputs) of a conversation whose last turn is the question.

        Args:
          turns: without the system text.
          shown: the exemplars before the question in that turn.
        """
        whole = self._turns(turns)
        parts = self._template.render(whole, True, self.chat.thinking).parts
        last = len(whole) - 1
        place = next((n for n, part in enumerate(parts) if part.turn == last), 0)
        before, after = list(parts[:place]), list(parts[place:])
        if len(turns) == 1 and not shown:
            return "", to_text(parts, self._controls)
        if shown:
            text = after[0].text
            end = text.find(shown.strip()) + len(shown.strip())
            end += len(text[end:]) - len(text[end:].lstrip())
            before.append(after[0]._replace(text=text[:end]))
            after[0] = after[0]._replace(text=text[end:])
            return to_text(before, self._controls), to_text(after, self._controls)
        shared = to_text(before, self._controls)
        inputs = join_texts(shared[-1:], to_text(after, self._controls))
        return ((*shared[:-1], ""), inputs) if len(shared) > 1 else ("", inputs)

    @functools.lru_cache(maxsize=4096)  # noqa: B019  (a run has one writer)
    def _target(self, solution: str) -> tuple[str, ...]:
        thoughts = _THOUGHTS.match(solution)
        turn = Turn(role="assistant", text=solution)
        if thoughts:
            text, reasoning = solution[thoughts.end() :], thoughts.group(1)
            turn = Turn(role="assistant", text=text, reasoning=reasoning)
        turns = self._turns([self._user("1 + 1?"), turn])
        _, answer = self._template.row(turns, self.chat.thinking)
        learnt = to_text(answer.parts, self._controls)
        if not answer.exact or (thoughts and thoughts.group(1).strip() not in "".join(learnt)):
            return solution, self.end, ""
        return *learnt[: max(_places(learnt, self.end)) + 1], ""


def _places(text: tuple[str, ...], control: str) -> list[int]:
    return [place for place in range(1, len(text), 2) if text[place] == control]


def _unlabelled(question: str) -> str:
    """Returns a question without the "Q:" that begins it in a document."""
    return _LABEL.sub("", question, count=1) if _LABEL.match(question) else question
