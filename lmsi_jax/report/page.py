"""The page: turns a summary into one HTML file without network or JavaScript."""

import importlib.resources
from collections.abc import Callable

from lmsi_jax.report import accuracy_sections, change_sections, training_sections, vote_sections
from lmsi_jax.report.comparison import (
    count_of,
    evaluated_rounds,
    format_count,
    headline_words,
    upper_bound_words,
)
from lmsi_jax.report.html import Html, element, join_html, table
from lmsi_jax.report.summary import Summary

# Nothing is ever loaded, whatever a model wrote into a question.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def render(summary: Summary) -> str:
    """Returns the report as one HTML file."""
    sections = [(name, title, section(summary)) for name, title, section in _SECTIONS]
    sections = [row for row in sections if row[2]]
    links = [element("a", title, href=f"#{name}") for name, title, _ in sections]
    main = [
        element("section", element("h2", element("a", t, href=f"#{n}")), content, id=n)
        for n, t, content in sections
    ]
    body = element(
        "body",
        _header(summary),
        element("nav", *links, aria_label="Contents"),
        element("main", *main),
    )
    return render_document(f"{summary.name}: LMSI report", body)


def render_document(title: str, body: Html, policy: str = _POLICY) -> str:
    """Returns a whole page in the report's style.

    Args:
      title: the window's title.
      body: the element `body`.
      policy: the content security policy; by default the page needs and loads no other file.
    """
    style = importlib.resources.files("lmsi_jax.report").joinpath("page.css")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Html(style.read_text(encoding="utf-8"))),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _header(summary: Summary) -> Html:
    words, basis = headline_words(summary)
    bound = upper_bound_words(summary)
    model = summary.model
    facts = [
        ("Model", f"{model.name}, {format_count(model.parameters)} parameters"),
        ("Rounds", _rounds(summary)),
        ("Trained on", _trained_on(summary)),
        ("Seed", str(summary.seed)),
        ("Made", summary.created[:16].replace("T", " ")),
    ]
    cells = [element("div", element("dt", n), element("dd", v)) for n, v in facts]
    return element(
        "header",
        element("p", f"Self-improvement report: {summary.name}", cls="kicker"),
        element("h1", words.replace("-", "\N{NON-BREAKING HYPHEN}")),
        element("p", basis, cls="basis"),
        element("p", element("strong", bound), cls="basis") if bound else "",
        training_sections.alarms(summary),
        element("dl", *cells, cls="facts"),
    )


def _rounds(summary: Summary) -> str:
    rounds = summary.rounds
    if not rounds:
        return "none of its own" if max(evaluated_rounds(summary), default=0) else "none yet"
    starts = sorted({row.start_from for row in rounds})
    started = f", each from the {starts[0]} model" if len(starts) == 1 and len(rounds) > 1 else ""
    return f"{len(rounds)}{started}"


def _trained_on(summary: Summary) -> str:
    rounds = summary.rounds
    if not rounds:
        return (
            "another run's samples" if max(evaluated_rounds(summary), default=0) else "nothing yet"
        )
    human = sum(row.sources.human for row in rounds)
    labels = "with gold labels" if any(row.gold for row in rounds) else "without labels"
    labels = f"and {count_of(human, 'human row')}" if human else labels
    return f"{count_of(rounds[-1].questions, 'question')} {labels}"


def _configuration(summary: Summary) -> Html:
    model = summary.model
    notes = [element("li", note) for note in summary.notes]
    terms = [
        element("dt", "Command"),
        element("dd", element("code", summary.command)),
        element("dt", "Base model"),
        element("dd", f"{model.name} from {model.source}"),
    ]
    gin = element("pre", summary.config or "(empty)", cls="config")
    versions = table(("Package", "Version"), sorted(summary.versions.items()))
    return join_html(
        [
            join_html([element("h3", "Notes"), element("ul", *notes)]) if notes else "",
            element("dl", *terms, cls="plain"),
            element("details", element("summary", "Operative gin configuration"), gin),
            element("details", element("summary", "Versions"), versions),
        ]
    )


_SECTIONS: tuple[tuple[str, str, Callable[[Summary], Html]], ...] = (
    ("result", "Result", accuracy_sections.overview),
    ("tasks", "Task by task", accuracy_sections.by_task),
    ("confidence", "Accuracy and confidence", accuracy_sections.confidence),
    ("probe", "Contamination probe", accuracy_sections.probe),
    ("changes", "Question by question", change_sections.by_question),
    ("samples", "Accuracy and the number of samples", vote_sections.curves),
    ("rounds", "Round by round", training_sections.by_round),
    ("collapse", "Collapse monitor", training_sections.collapse),
    ("augmentation", "The model’s own questions and prompts", training_sections.augmentation),
    ("positions", "Places of the named options", change_sections.positions),
    ("votes", "From samples to training rows", vote_sections.training_rows),
    ("adaptive-consistency", "Adaptive consistency", vote_sections.adaptive_consistency),
    ("training", "Training", training_sections.training),
    ("examples", "Questions, samples and votes", vote_sections.examples),
    ("time", "Time and throughput", training_sections.times),
    ("configuration", "Configuration", _configuration),
)
"""Name, title and content of each section; one without content is left out."""
