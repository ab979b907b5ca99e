"""The page itself: `render` turns a summary into one HTML file without network or JavaScript."""

import importlib.resources
from collections.abc import Callable, Iterator
from typing import Any

from lmsi_jax.report import accuracy_section, training_sections, vote_sections
from lmsi_jax.report.accuracy_section import rounds_measured
from lmsi_jax.report.html import Html, count_of, element, format_count, join_html, table
from lmsi_jax.report.summary import Summary, validate

# Nothing is ever loaded, whatever a model wrote into a question.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def render(summary: dict[str, Any]) -> str:
    """Returns the report as one HTML file.

    Args:
      summary: as `lmsi_jax.report.summary.Summary` describes it.

    Raises:
      LmsiError: the summary is not one.
    """
    checked = validate(summary)
    sections = [(name, title, body) for name, title, body in _sections(checked) if body]
    main = [_section(name, title, body) for name, title, body in sections]
    links = [element("a", title, href=f"#{name}") for name, title, _ in sections]
    body = element(
        "body",
        _header(checked),
        element("nav", *links, aria_label="Contents"),
        element("main", *main),
    )
    return document(f"{summary['name']}: LMSI report", body)


def document(title: str, body: Html) -> str:
    """Returns a whole page in the report's style; its file needs nothing beside it."""
    page = element("html", _head(title), body, lang="en")
    return f"<!doctype html>\n{page}\n"


def _head(title: str) -> Html:
    style = importlib.resources.files("lmsi_jax.report").joinpath("page.css")
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Html(style.read_text(encoding="utf-8"))),
    )


def _header(summary: Summary) -> Html:
    words, basis = accuracy_section.headline_words(summary)
    model = summary["model"]
    facts = [
        ("Model", f"{model['name']}, {format_count(model['parameters'])} parameters"),
        ("Rounds", _rounds(summary)),
        ("Trained on", _trained_on(summary)),
        ("Seed", str(summary["seed"])),
        ("Made", summary["created"][:16].replace("T", " ")),
    ]
    cells = [element("div", element("dt", n), element("dd", v)) for n, v in facts]
    return element(
        "header",
        element("p", f"Self-improvement report: {summary['name']}", cls="kicker"),
        element("h1", words.replace("-", "\N{NON-BREAKING HYPHEN}")),
        element("p", basis, cls="basis"),
        training_sections.alarms(summary["rounds"]),
        element("dl", *cells, cls="facts"),
    )


def _sections(summary: Summary) -> Iterator[tuple[str, str, Html]]:
    rounds = summary["rounds"]
    measured = rounds_measured(summary)
    if measured:
        yield "result", "Result", accuracy_section.overview(summary)
        yield "tasks", "Task by task", accuracy_section.by_task(summary)
        yield "confidence", "Accuracy and confidence", accuracy_section.confidence(summary)
        yield "paths", "Accuracy and the number of paths", vote_sections.curves_section(summary)
    if len(rounds) > 1:
        yield "rounds", "Round by round", training_sections.by_round(summary)
    yield "collapse", "Collapse monitor", training_sections.watch_section(summary)
    if rounds:
        yield (
            "generation",
            "The model’s own questions and prompts",
            training_sections.generation_section(rounds),
        )
        yield "votes", "From paths to training rows", _votes(summary)
    yield "adaptive-consistency", "Adaptive consistency", vote_sections.early_stop_section(summary)
    if rounds:
        yield "training", "Training", training_sections.losses(rounds)
    yield "examples", "Questions, paths and votes", _examples(summary)
    if rounds:
        yield "time", "Time and throughput", training_sections.times(rounds)
    yield "configuration", "Configuration", _configuration(summary)


def _votes(summary: Summary) -> Html:
    rounds = summary["rounds"]
    parts: list[Callable[..., Html]] = [
        vote_sections.funnel,
        vote_sections.selection,
        vote_sections.by_task,
    ]
    mix = [element("h3", "Mix of formats"), vote_sections.format_mix(rounds)]
    return join_html([*(part(rounds) for part in parts), *mix])


def _examples(summary: Summary) -> Html:
    note = (
        "The vote sees no label; the gold answer is shown here to judge it. Equal paths are shown "
        "once with their number. Kept paths agree with the vote."
    )
    return join_html([element("p", note, cls="note"), vote_sections.examples(summary)])


def _configuration(summary: Summary) -> Html:
    model = summary["model"]
    rows = [(name, version) for name, version in sorted(summary["versions"].items())]
    notes = [element("li", note) for note in summary["notes"]]
    listed = [
        element("dt", "Command"),
        element("dd", element("code", summary["command"])),
        element("dt", "Base model"),
        element("dd", f"{model['name']} from {model['source']}"),
    ]
    gin = element("pre", summary["config"] or "(empty)", cls="config")
    return join_html(
        [
            join_html([element("h3", "Notes"), element("ul", *notes)]) if notes else Html(""),
            element("dl", *listed, cls="plain"),
            element("details", element("summary", "Operative gin configuration"), gin),
            element("details", element("summary", "Versions"), table(("Package", "Version"), rows)),
        ]
    )


def _section(name: str, title: str, body: Html) -> Html:
    return element("section", element("h2", title), body, id=name)


def _rounds(summary: Summary) -> str:
    rounds = summary["rounds"]
    if not rounds:
        return "none of its own" if max(rounds_measured(summary), default=0) else "none yet"
    starts = sorted({row["start_from"] for row in rounds})
    started = f", each from the {starts[0]} model" if len(starts) == 1 and len(rounds) > 1 else ""
    return f"{len(rounds)}{started}"


def _trained_on(summary: Summary) -> str:
    rounds = summary["rounds"]
    if not rounds:
        return "another run's paths" if max(rounds_measured(summary), default=0) else "nothing yet"
    questions = count_of(rounds[-1]["questions"], "question")
    human = sum(row["sources"]["human"] for row in rounds)
    labels = f"and {count_of(human, 'human row')}" if human else "without labels"
    return f"{questions} {labels}"
