"""Draws the loop of lmsi_jax as docs/figures/loop.svg: `python docs/figures/draw_loop.py`."""

import html
import pathlib

STEPS = (
    ("questions", "no labels", "#e8eef7"),
    ("sample", "m samples each,\nchain of thought", "#dcebf7"),
    ("vote", "majority answer,\nits confidence", "#dcebf7"),
    ("select", "filters and\nloss weights", "#dcebf7"),
    ("mix", "four prompt\nformats", "#dcebf7"),
    ("train", "weighted loss,\nOrbax, T5X", "#d9efdf"),
    ("evaluate", "before and after,\nwith intervals", "#f6ead7"),
)
WIDTH, HEIGHT, GAP, TOP, MARGIN = 112, 78, 20, 62, 18


def text(x: float, y: float, words: str, style: str) -> str:
    """Returns centred lines of text, the first one at height `y`."""
    lines = (
        f'<tspan x="{x:g}" dy="{0 if i == 0 else 15}">{html.escape(line)}</tspan>'
        for i, line in enumerate(words.split("\n"))
    )
    return f'<text x="{x:g}" y="{y:g}" class="{style}">{"".join(lines)}</text>'


def arrow(path: str) -> str:
    """Returns a line with an arrow head along an SVG path."""
    return f'<path d="{path}" class="line" marker-end="url(#head)"/>'


def draw() -> str:
    """Returns the figure as SVG; its colours are readable on light and dark pages."""
    full = 2 * MARGIN + len(STEPS) * WIDTH + (len(STEPS) - 1) * GAP
    left = [MARGIN + i * (WIDTH + GAP) for i in range(len(STEPS))]
    middle = TOP + HEIGHT / 2
    parts = []
    for x, (name, note, colour) in zip(left, STEPS, strict=True):
        parts += [
            f'<rect x="{x}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" rx="9" fill="{colour}"/>',
            text(x + WIDTH / 2, TOP + 27, name, "name"),
            text(x + WIDTH / 2, TOP + 47, note, "note"),
        ]
    parts += [arrow(f"M{x - GAP + 2:g} {middle:g}H{x - 4:g}") for x in left[1:]]
    centre = [x + WIDTH / 2 for x in left]
    # The next round samples with the model that this round has trained.
    parts += [
        arrow(
            f"M{centre[5]:g} {TOP - 2}V{TOP - 22}Q{centre[5]:g} {TOP - 30} {centre[5] - 8:g} "
            f"{TOP - 30}H{centre[1] + 8:g}Q{centre[1]:g} {TOP - 30} {centre[1]:g} {TOP - 22}"
            f"V{TOP - 5}"
        ),
        text((centre[1] + centre[5]) / 2, TOP - 38, "next round: the new model samples", "note"),
    ]
    # A student of another size learns the selected samples.
    below = TOP + HEIGHT
    parts += [
        arrow(
            f"M{centre[4]:g} {below + 2}V{below + 24}Q{centre[4]:g} {below + 32} "
            f"{centre[4] + 8:g} {below + 32}H{left[5] - 5:g}"
        ),
        f'<rect x="{left[5]}" y="{below + 16}" width="{2 * WIDTH + GAP}" height="32" rx="9" '
        'fill="#ece4f5"/>',
        text(left[5] + WIDTH + GAP / 2, below + 37, "distill into a student of any size", "note"),
    ]
    title = "The loop: sample, vote, select, mix, train, evaluate, and again"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {full} {below + 62}" '
        f'role="img" aria-label="{title}"><title>{title}</title><style>'
        "text{font-family:system-ui,sans-serif;text-anchor:middle;fill:#1f2933}"
        ".name{font-size:16px;font-weight:600}.note{font-size:12px}"
        ".line{fill:none;stroke:#52606d;stroke-width:1.6}</style>"
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="#52606d"/></marker></defs>'
        f'<rect width="{full}" height="{below + 62}" rx="12" fill="#ffffff"/>'
        f"{''.join(parts)}</svg>\n"
    )


if __name__ == "__main__":
    (pathlib.Path(__file__).parent / "loop.svg").write_text(draw(), encoding="utf-8")
