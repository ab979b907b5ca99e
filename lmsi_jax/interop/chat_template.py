"""Render a model's chat template around turns, and keep its own parts apart from the texts.

A chat template is a Jinja program that comes with a model. It runs in a sandbox, with the functions
that `apply_chat_template` of transformers offers. Control tokens must arise from the template alone
("<|im_end|>" in a question is ten characters, not the end of a turn), so it is rendered twice:

1. with an unguessable number in place of each text. Cutting the result at the numbers gives the
   template's own parts, which no text can influence.
2. with the texts. Templates trim texts and look into them; the second rendering shows what became
   of each: all of it, a trimmed form, or what follows "</think>". The parts of the first rendering
   with these texts between them are the second rendering exactly; `Rendering.exact` says so.

If no choice of such forms gives the second rendering, because the template writes other parts for
this text, the parts are those of the first with whole texts, and `exact` is False. Empty texts are
never replaced, for templates leave out a turn that is empty.
"""

import copy
import dataclasses
import datetime
import json
import re
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from etils import epath

from lmsi_jax.errors import LmsiError
from lmsi_jax.runtime.files import read_bytes, read_json

TEMPLATE_FILE = "chat_template.jinja"
_MARKS = "lmsi_generation_marks"  # in a template's context: numbers around {% generation %}
Role = Literal["system", "user", "assistant"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
    """A turn of a conversation.

    Attributes:
      role: whose turn it is.
      text: its words.
      reasoning: an assistant's thoughts before them, for templates that show these.
    """

    role: Role
    text: str
    reasoning: str = ""


class Part(NamedTuple):
    """A piece of a rendered conversation.

    Attributes:
      text: its characters.
      turn: the turn whose text it is, counted from 0; None: the template wrote it, and control
        tokens in it are such.
      assistant: the assistant writes it: its text, and the token that ends its turn.
    """

    text: str
    turn: int | None
    assistant: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rendering:
    """A rendered conversation.

    Attributes:
      parts: its pieces, in order.
      exact: together they are the template's output for these texts, character by character.
    """

    parts: tuple[Part, ...]
    exact: bool

    @property
    def text(self) -> str:
        """Returns the whole conversation."""
        return "".join(part.text for part in self.parts)


class ChatTemplate:
    """A chat template.

    Args:
      source: the Jinja program.
      tokens: variables of the program: "bos_token", "eos_token".
      ends: control tokens that end a turn, as text; the assistant's turn includes the first that
        the template writes after its text.
      origin: the file, for errors.
      today: the date for templates that write it; None: the day of rendering. Give it to ask the
        same on another day.

    Attributes:
      source: the program.
      tokens: its variables.
      origin: the file.

    Raises:
      LmsiError: jinja2 is not installed, or the program is none.
    """

    def __init__(
        self,
        source: str,
        tokens: Mapping[str, str] | None = None,
        ends: Collection[str] = (),
        origin: str = "chat template",
        today: datetime.date | None = None,
    ):
        self.source, self.tokens, self.origin = source, dict(tokens or {}), origin
        self._ends = tuple(ends) or tuple(filter(None, [self.tokens.get("eos_token")]))
        self._template, self._names = _compiled(source, origin, today)

    @classmethod
    def from_folder(
        cls,
        folder: epath.PathLike,
        ends: Collection[str] = (),
        today: datetime.date | None = None,
    ) -> "ChatTemplate | None":
        """Reads the template of a model's folder; returns None without one.

        Raises:
          LmsiError: jinja2 is not installed, or a file is damaged.
        """
        settings, tokens = read_tokens(folder)
        origin = epath.Path(folder) / "tokenizer_config.json"
        source = settings.get("chat_template")
        if isinstance(source, list):  # several, by name
            source = {one["name"]: one["template"] for one in source}.get("default")
        if (epath.Path(folder) / TEMPLATE_FILE).exists():
            origin = epath.Path(folder) / TEMPLATE_FILE
            source = read_bytes(origin).decode()
        return None if not source else cls(source, tokens, ends, str(origin), today)

    def ends_of_turn(self, ends: Collection[str]) -> "ChatTemplate":
        """Returns the template with other control tokens that end a turn."""
        changed = copy.copy(self)
        changed._ends = tuple(ends)
        return changed

    @property
    def can_think(self) -> bool:
        """Returns True if the template asks whether thinking is on."""
        return "enable_thinking" in self._names

    def render(
        self,
        turns: Sequence[Turn],
        add_generation_prompt: bool = False,
        enable_thinking: bool | None = None,
    ) -> Rendering:
        """Renders a conversation.

        Args:
          turns: its turns.
          add_generation_prompt: end with the beginning of an assistant's turn.
          enable_thinking: for templates that ask; None: their default.

        Raises:
          LmsiError: the template refuses the turns, for example a system turn, or fails.
        """
        settings: dict[str, Any] = {"add_generation_prompt": add_generation_prompt}
        if enable_thinking is not None:
            settings["enable_thinking"] = enable_thinking
        texts = _Texts(turns)
        hidden = self._run(texts.messages(hidden=True), settings | {_MARKS: texts.marks})
        pieces = list(texts.pieces(hidden))
        whole = self._run(texts.messages(hidden=False), settings)
        forms = _fit(pieces, texts, whole)
        if forms is None and any(texts.is_cut(piece) for piece in pieces):
            raise LmsiError(
                f"{self.origin} takes texts apart, which is not supported; use a template that "
                "writes each text as a whole"
            )
        parts = self._parts(pieces, texts, forms)
        return Rendering(parts=tuple(_joined(parts)), exact=forms is not None)

    def row(
        self, turns: Sequence[Turn], enable_thinking: bool | None = None
    ) -> tuple[Rendering, Rendering]:
        """Renders a training row: (the prompt, the assistant's answer).

        The first is the prompt that sampling uses; the second, whose last part is the token that
        ends the turn, is the continuation that the loss is on.

        Args:
          turns: a conversation whose last turn is the assistant's.
          enable_thinking: for templates that ask; None: their default.

        Raises:
          LmsiError: the template refuses the turns, or fails.
          ValueError: the last turn is not the assistant's.
        """
        if not turns or turns[-1].role != "assistant":
            raise ValueError("a training row ends in the assistant's turn")
        asked = self.render(turns[:-1], True, enable_thinking)
        full = self.render(turns, False, enable_thinking)
        parts = list(full.parts)
        last = len(turns) - 1
        begin = next((n for n, part in enumerate(parts) if part.turn == last), len(parts))
        end = begin
        while end < len(parts) and parts[end].assistant:
            end += 1
        answer = parts[begin:end]
        if full.text.startswith(asked.text):
            # A template may write more before the text: a space, an empty thinking block.
            before = "".join(part.text for part in parts[:begin])[len(asked.text) :]
            if before:
                answer.insert(0, Part(before, None, True))
        fixed = "".join(part.text for part in answer if part.turn is None)
        if not any(end in fixed for end in self._ends):
            answer += [Part(end, None, True) for end in self._ends[:1]]
        exact = asked.exact and full.exact
        written = tuple(part._replace(assistant=True) for part in answer)
        return asked, Rendering(parts=written, exact=exact)

    def _run(self, messages: list[dict[str, str]], settings: Mapping[str, Any]) -> str:
        import jinja2

        wrong = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError)
        try:
            return self._template.render(
                messages=messages, tools=None, documents=None, **self.tokens, **settings
            )
        except (jinja2.TemplateError, RecursionError, *wrong) as error:
            roles = [message["role"] for message in messages]
            remedy = "give it other turns, or use another template"
            if "system" in roles:
                remedy = "leave out the system text, or write it into the first user turn"
            raise LmsiError(
                f"{self.origin} refuses the turns {', '.join(roles)}: {error}; {remedy}"
            ) from error

    def _parts(
        self, pieces: Sequence["_Piece"], texts: "_Texts", forms: Sequence[str] | None
    ) -> Iterator[Part]:
        """Yields the parts, with the assistant's marked."""
        tagged = any(piece.mark for piece in pieces)
        inside = False
        left = iter(forms or ())
        for number, piece in enumerate(pieces):
            if piece.mark:
                inside = piece.mark == "open"
            elif piece.text is None:
                end = 0
                if not tagged and number and texts.is_assistant(pieces[number - 1].text):
                    end = self._end_of_turn(piece.fixed)
                    following = pieces[number + 1].text if number + 1 < len(pieces) else None
                    if texts.turn(following) == texts.turn(pieces[number - 1].text):
                        end = len(piece.fixed)  # between its thoughts and its words
                yield Part(piece.fixed[:end], None, True)
                yield Part(piece.fixed[end:], None, inside)
            else:
                text = texts.values[piece.text] if forms is None else next(left)
                assistant = inside if tagged else texts.is_assistant(piece.text)
                yield Part(text, texts.turn(piece.text), assistant)

    def _end_of_turn(self, fixed: str) -> int:
        """Returns the characters up to and with the first token that ends a turn; 0 without one."""
        places = [(fixed.find(end), len(end)) for end in self._ends if end in fixed]
        return sum(min(places, default=(0, 0)))


def read_tokens(folder: epath.PathLike) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns (tokenizer_config.json, its named tokens such as "bos_token"); both {} without one.

    Raises:
      LmsiError: the file is damaged.
    """
    file = epath.Path(folder) / "tokenizer_config.json"
    settings = read_json(file) if file.exists() else {}
    tokens = {
        name: value["content"] if isinstance(value, dict) else value
        for name, value in settings.items()
        if name.endswith("_token") and isinstance(value, (str, dict))
    }
    return settings, tokens


class _Piece(NamedTuple):
    """A piece of the first rendering: fixed text, the place of a text, or a mark of a tag."""

    fixed: str = ""
    text: int | None = None
    mark: str = ""


class _Texts:
    """The texts of turns, and the numbers in their place.

    Attributes:
      values: the texts that are replaced.
      marks: the numbers around {% generation %}.
    """

    def __init__(self, turns: Sequence[Turn]):
        self._turns = turns
        fields = [
            (number, field, text)
            for number, turn in enumerate(turns)
            for field, text in (("reasoning", turn.reasoning), ("text", turn.text))
            if text.strip()
        ]
        self._places = [(number, field) for number, field, _ in fields]
        self.values = [text for _, _, text in fields]
        # Digits, for they survive templates that change letters.
        *self._numbers, opening, closing = (
            f"{secrets.randbelow(10**40):040d}" for _ in range(len(fields) + 2)
        )
        self.marks = (opening, closing)

    def turn(self, text: int | None) -> int | None:
        """Returns the turn that a text belongs to; None for no text."""
        return None if text is None else self._places[text][0]

    def is_assistant(self, text: int | None) -> bool:
        """Returns True if there is a text, and it is the assistant's."""
        turn = self.turn(text)
        return turn is not None and self._turns[turn].role == "assistant"

    def messages(self, hidden: bool) -> list[dict[str, str]]:
        """Returns the turns as templates take them, texts replaced by numbers if `hidden`."""
        numbers = dict(zip(self._places, self._numbers, strict=True)) if hidden else {}
        messages = []
        for number, turn in enumerate(self._turns):
            message: dict[str, str] = {"role": turn.role}
            message["content"] = numbers.get((number, "text"), turn.text)
            if turn.reasoning:
                thought = numbers.get((number, "reasoning"), turn.reasoning)
                message |= {"reasoning_content": thought, "thinking": thought}
            messages.append(message)
        return messages

    def pieces(self, rendered: str) -> Iterator[_Piece]:
        """Yields the pieces of the first rendering."""
        numbers = [*self._numbers, *self.marks]
        for piece in re.split(f"({'|'.join(numbers)})", rendered):
            if piece in self._numbers:
                yield _Piece(text=self._numbers.index(piece))
            elif piece in self.marks:
                yield _Piece(mark="open" if piece == self.marks[0] else "close")
            elif piece:
                yield _Piece(fixed=piece)

    def is_cut(self, piece: _Piece) -> bool:
        """Returns True if fixed text has a piece of a number."""
        return any(
            end in piece.fixed for number in self._numbers for end in (number[:9], number[-9:])
        )


def _fit(
    pieces: Sequence["_Piece"], texts: "_Texts", whole: str, number: int = 0, place: int = 0
) -> list[str] | None:
    """Returns the forms of the texts with which the pieces are `whole`; None if there are none.

    Args:
      pieces: of the first rendering.
      texts: the texts between them.
      whole: the second rendering.
      number: the first piece that is looked at.
      place: the character of `whole` that it begins at.
    """
    if number == len(pieces):
        return [] if place == len(whole) else None
    piece = pieces[number]
    if piece.text is None:
        if not whole.startswith(piece.fixed, place):
            return None
        return _fit(pieces, texts, whole, number + 1, place + len(piece.fixed))
    for form in _forms(texts.values[piece.text]):
        if whole.startswith(form, place):
            rest = _fit(pieces, texts, whole, number + 1, place + len(form))
            if rest is not None:
                return [form, *rest]
    return None


def _forms(text: str) -> dict[str, None]:
    """Returns the forms that templates give a text: itself, trimmed, or without its thoughts."""
    forms: dict[str, None] = {}
    for one in (text, text.split("</think>")[-1]):
        forms |= dict.fromkeys((one, one.strip(), one.rstrip(), one.lstrip()))
        forms |= dict.fromkeys((one.strip("\n"), one.rstrip("\n"), one.lstrip("\n")))
    return forms


def _joined(parts: Iterator[Part]) -> Iterator[Part]:
    """Yields the parts without empty ones, and neighbours of the template's as one."""
    last: Part | None = None
    for part in parts:
        if not part.text:
            continue
        if last is not None and last.turn is None and last[1:] == part[1:]:
            last = last._replace(text=last.text + part.text)
            continue
        if last is not None:
            yield last
        last = part
    if last is not None:
        yield last


def to_text(parts: Sequence[Part], controls: Collection[str]) -> tuple[str, ...]:
    """Returns parts as texts and control tokens in turn, see `records.Text`.

    Control tokens are those in the template's parts. The text between two of them is one piece, so
    that its ids are those of the whole conversation, as transformers encode it.

    Args:
      parts: of a rendering.
      controls: the texts of the tokenizer's control tokens.
    """
    longest = sorted(controls, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest))) if longest else None
    pieces = [""]
    for part in parts:
        place = 0
        for match in pattern.finditer(part.text) if pattern and part.turn is None else ():
            pieces[-1] += part.text[place : match.start()]
            pieces += [match.group(), ""]
            place = match.end()
        pieces[-1] += part.text[place:]
    return tuple(pieces)


def _compiled(source: str, origin: str, today: datetime.date | None) -> tuple[Any, set[str]]:
    """Returns the template, and the names that it takes from outside."""
    try:
        import jinja2
        import jinja2.ext
        import jinja2.meta
        import jinja2.sandbox
    except ImportError:
        raise LmsiError(f"{origin} is rendered by jinja2: pip install 'lmsi_jax[hf]'") from None

    class Generation(jinja2.ext.Extension):
        """The tags around the assistant's words."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            """Jinja's hook: makes the tag a call of `_mark` with the text within."""
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            call = self.call_method("_mark")
            return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

        @jinja2.pass_context
        def _mark(self, context: Any, caller: Callable[[], str]) -> str:
            opening, closing = context.get(_MARKS, ("", ""))
            return f"{opening}{caller()}{closing}"

    class Namespace(jinja2.utils.Namespace):
        """Jinja's, without names that lead to Python's insides."""

        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise jinja2.exceptions.SecurityError(f"a namespace must not have {name!r}")
            super().__setitem__(name, value)

    def fail(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, **form: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **form)

    def format_now(form: str) -> str:
        now = datetime.datetime.now()
        return datetime.datetime.combine(today or now.date(), now.time()).strftime(form)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals |= {"raise_exception": fail, "strftime_now": format_now}
    environment.globals["namespace"] = Namespace
    try:
        names = jinja2.meta.find_undeclared_variables(environment.parse(source))
        return environment.from_string(source), names
    except jinja2.TemplateError as error:
        raise LmsiError(f"{origin} is no Jinja template: {error}") from error
