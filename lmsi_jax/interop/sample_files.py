"""Read samples that other engines drew: batch outputs, chat completions, a plain form, T5X's infer.

Each line of a file is one JSON object in one of these forms, which may be mixed:

    {"uid": "q1", "samples": ["So 7.", {"text": "...", "logprob": -9.5, "finish_reason": "stop"}]}
    {"question": "Ann has ...?", "text": "So 7.", "logprob": -9.5}          one sample a line
    {"custom_id": "q1", "response": {"body": {"choices": [...]}}}           batches of OpenAI, vLLM
    {"id": "chatcmpl-1", "messages": [...], "choices": [...]}               chat completions
    {"inputs": {"uid": "q1", ...}, "prediction": [...], "aux": {...}}       T5X's infer

Lines of a batch's input file ({"custom_id": ..., "body": {"messages": [...]}}) say which question a
`custom_id` has. A file may be compressed with gzip.
"""

import dataclasses
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any, get_args

from etils import epath

from lmsi_jax.errors import LmsiError
from lmsi_jax.records import End
from lmsi_jax.runtime.files import parse_json, read_data

# Reasons of vLLM, OpenAI, Anthropic, SGLang, TGI and llama.cpp.
_ENDS: dict[str, End] = {
    **dict.fromkeys(("stop", "eos", "eos_token", "end_turn", "stop_sequence"), "end_token"),
    **dict.fromkeys(("length", "max_tokens", "abort", "content_filter", "refusal"), "limit"),
}
_NAMES = ("uid", "custom_id")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForeignSample:
    """A sample as its file describes it.

    Attributes:
      text: what the model wrote.
      end: why it ended; None if the file does not say.
      stop: the stop string that cut it, if the file says.
      tokens: how many tokens; None if the file does not say.
      logprob: their summed log-probability, minus infinity too; None if it is missing or no number.
      logprobs: of each token.
      index: its number among the question's samples; None if the file does not say.
    """

    text: str
    end: End | None = None
    stop: str | None = None
    tokens: int | None = None
    logprob: float | None = None
    logprobs: tuple[float, ...] | None = None
    index: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForeignRow:
    """A line with samples of one question.

    Attributes:
      place: "samples.jsonl, line 12".
      name: the question's uid or the `custom_id`; None without one.
      question: the question's text, or a prompt that ends with it; None without one.
      samples: at least one.
      response: the identifier of the server's response; None without one.
    """

    place: str
    name: str | None
    question: str | None
    samples: tuple[ForeignSample, ...]
    response: str | None = None


@dataclasses.dataclass(kw_only=True)
class SampleFile:
    """The contents of files of samples, as far as they are read.

    Attributes:
      rows: the lines with samples, in their order.
      prompts: the prompt of each `custom_id`, from the lines of a batch's input.
      failed: requests that the server did not answer, each as "place: reason".
      broken: lines that cannot be read, each as "place: reason".
    """

    rows: list[ForeignRow] = dataclasses.field(default_factory=list)
    prompts: dict[str, str] = dataclasses.field(default_factory=dict)
    failed: list[str] = dataclasses.field(default_factory=list)
    broken: list[str] = dataclasses.field(default_factory=list)


class _Broken(Exception):
    """A line cannot be read; the message says why."""


class _Failed(Exception):
    """The server did not answer a request; the message says why."""


def read_sample_file(path: epath.PathLike, contents: SampleFile) -> None:
    """Adds the lines of a file to `contents`.

    Args:
      path: the file, local or on a bucket.
      contents: takes the rows, and the places of lines that are broken or failed.

    Raises:
      LmsiError: the file cannot be read.
    """
    path = epath.Path(path)
    try:
        data = read_data(path)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise LmsiError(f"cannot read {path}: {reason}; check the path") from error
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        if not line.strip():
            continue
        place = f"{path.name}, line {number}"
        try:
            _read_line(line, place, contents)
        except _Broken as broken:
            contents.broken.append(f"{place}: {broken}")
        except _Failed as failed:
            contents.failed.append(f"{place}: {failed}")


def _read_line(line: bytes, place: str, contents: SampleFile) -> None:
    try:
        row = parse_json(line)
    except UnicodeDecodeError:
        raise _Broken("not UTF-8") from None
    except ValueError:
        raise _Broken("no JSON; the line may be cut") from None
    if not isinstance(row, dict):
        raise _Broken("no JSON object")
    if "body" in row and "custom_id" in row and "response" not in row:
        prompt = _prompt(_mapping(row["body"], "body"))
        if prompt is None:
            raise _Broken("a request without messages or prompt")
        contents.prompts[_text(row["custom_id"], "custom_id")] = prompt
        return
    for key, read in _FORMS.items():
        if key in row:
            contents.rows.append(read(row, place))
            return
    raise _Broken(f"none of {', '.join(map(repr, _FORMS))} is among its fields")


def _batch_row(row: Mapping[str, Any], place: str) -> ForeignRow:
    name = _text(row.get("custom_id"), "custom_id")
    response = row["response"]
    if isinstance(response, str):
        raise _Broken("'response' is a text; call the field 'text'")
    body = response.get("body") if isinstance(response, dict) else None
    error = row.get("error") or (body.get("error") if isinstance(body, dict) else None)
    if error or not isinstance(body, dict) or not body.get("choices"):
        message = error.get("message") if isinstance(error, dict) else error
        status = response.get("status_code") if isinstance(response, dict) else None
        raise _Failed(f"{name!r} has no answer ({message or f'status {status}'})")
    completion = _completion_row(body, place)
    return dataclasses.replace(completion, name=name)


def _completion_row(row: Mapping[str, Any], place: str) -> ForeignRow:
    choices = row["choices"]
    if not isinstance(choices, list) or not choices:
        raise _Broken("'choices' is no list with an answer in it")
    usage = row.get("usage")
    total = usage.get("completion_tokens") if isinstance(usage, dict) else None
    samples = [_choice(_mapping(one, "a choice")) for one in choices]
    if len(samples) == 1 and samples[0].tokens is None and isinstance(total, int):
        samples[0] = dataclasses.replace(samples[0], tokens=total)
    question = row.get("question")
    metadata = row.get("metadata")
    return ForeignRow(
        place=place,
        name=_name(row) or (_name(metadata) if isinstance(metadata, dict) else None),
        question=_prompt(row) if question is None else _text(question, "question"),
        samples=tuple(samples),
        response=row["id"] if isinstance(row.get("id"), str) else None,
    )


def _choice(choice: Mapping[str, Any]) -> ForeignSample:
    if "message" in choice:
        text = _content(_mapping(choice["message"], "message").get("content"))
    else:
        text = choice.get("text")
    logprobs = choice.get("logprobs")
    values: Any = None
    if isinstance(logprobs, dict):  # of chats, or of completions
        content = logprobs.get("content")
        if isinstance(content, list):
            values = [one.get("logprob") if isinstance(one, dict) else None for one in content]
        else:
            values = logprobs.get("token_logprobs")
    stop = choice.get("stop_reason", choice.get("matched_stop"))
    return _sample(
        text,
        end=_end(choice.get("finish_reason")),
        stop=stop if isinstance(stop, str) else None,
        logprobs=values,
    )


def _plain_row(row: Mapping[str, Any], place: str) -> ForeignRow:
    samples = row.get("samples", [row])
    if not isinstance(samples, list) or not samples:
        raise _Broken("'samples' is no list with a sample in it")
    question = row.get("question")
    return ForeignRow(
        place=place,
        name=_name(row),
        question=_prompt(row) if question is None else _text(question, "question"),
        samples=tuple(map(_plain_sample, samples)),
    )


def _plain_sample(value: Any) -> ForeignSample:
    if isinstance(value, str):
        return _sample(value)
    value = _mapping(value, "a sample")
    end = value.get("end")
    if end is not None and end not in get_args(End):
        raise _Broken(f"'end' is {end!r}, none of {', '.join(get_args(End))}")
    stop, index = value.get("stop_reason"), value.get("sample_index")
    return _sample(
        value.get("text"),
        end=end or _end(value.get("finish_reason")),
        stop=stop if isinstance(stop, str) else None,
        logprob=value.get("logprob", value.get("cumulative_logprob")),
        logprobs=value.get("logprobs"),
        tokens=_count(value.get("tokens"), "tokens"),
        index=_count(index, "sample_index"),
    )


def _t5x_row(row: Mapping[str, Any], place: str) -> ForeignRow:
    inputs = _mapping(row.get("inputs"), "inputs")
    texts = row["prediction"]
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not texts:
        raise _Broken("'prediction' is no text and no list of texts")
    aux = row.get("aux")
    scores = aux.get("scores") if isinstance(aux, dict) else None
    scores = (
        scores if isinstance(scores, list) and len(scores) == len(texts) else [None] * len(texts)
    )
    question = inputs.get("question", inputs.get("inputs_pretokenized"))
    return ForeignRow(
        place=place,
        name=_name(inputs),
        question=None if question is None else _text(question, "question"),
        samples=tuple(_sample(t, logprob=s) for t, s in zip(texts, scores, strict=True)),
    )


_FORMS: dict[str, Callable[[Mapping[str, Any], str], ForeignRow]] = {
    "response": _batch_row,
    "choices": _completion_row,
    "samples": _plain_row,
    "text": _plain_row,
    "prediction": _t5x_row,
}
"""The reader of each form, by the field that tells it."""


def _sample(
    text: Any,
    *,
    logprob: Any = None,
    logprobs: Any = None,
    tokens: int | None = None,
    **others: Any,
) -> ForeignSample:
    """Returns a sample; what its tokens' log-probabilities say of length and sum is filled in."""
    each = None
    if isinstance(logprobs, list) and logprobs:
        tokens = len(logprobs) if tokens is None else tokens
        values = [_logprob(value) for value in logprobs]
        known = tuple(value for value in values if value is not None)
        each = known if len(known) == len(values) else None
    total = _logprob(logprob)
    if total is None and each is not None:
        total = round(math.fsum(each), 4)
    return ForeignSample(
        text=_text(text, "the text of a sample"),
        tokens=tokens,
        logprob=total,
        logprobs=each,
        **others,
    )


def _logprob(value: Any) -> float | None:
    """Returns a log-probability, None if the value is none: not a number, above 0, or missing."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if value <= 1e-3 else None  # NaN compares False


def _end(reason: Any) -> End | None:
    if reason is None:
        return None
    if not isinstance(reason, str) or reason not in _ENDS:
        raise _Broken(f"finish_reason is {reason!r}, none of {', '.join(_ENDS)}")
    return _ENDS[reason]


def _name(row: Mapping[str, Any]) -> str | None:
    name = next((row[key] for key in _NAMES if row.get(key) is not None), None)
    return None if name is None else _text(name, "uid")


def _prompt(row: Mapping[str, Any]) -> str | None:
    """Returns the last user message of a request, or its prompt; None without either."""
    messages = row.get("messages")
    if isinstance(messages, list):
        asked = [one for one in messages if isinstance(one, dict) and one.get("role") == "user"]
        prompt = _content(asked[-1].get("content")) if asked else None
    else:
        prompt = row.get("prompt")
    return prompt if isinstance(prompt, str) else None


def _content(content: Any) -> Any:
    """Returns the text of a message, which may come in parts."""
    if not isinstance(content, list):
        return content
    parts = [one.get("text") for one in content if isinstance(one, dict)]
    return "".join(part for part in parts if isinstance(part, str))


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _Broken(f"{name} is no JSON object")
    return value


def _text(value: Any, name: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # a number as identifier
    if not isinstance(value, str):
        raise _Broken(f"{name} is {'missing' if value is None else 'no text'}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise _Broken(f"{name} has half a character (a lone surrogate)")
    return value


def _count(value: Any, name: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _Broken(f"{name} is no whole number")
    return value
