"""README: short, its links lead somewhere, and its Python example runs."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_short_and_narrow():
    lines = README.splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 100] == []


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs"])
def test_links_between_the_documents_lead_somewhere(page):
    files = [ROOT / page] if page.endswith(".md") else sorted((ROOT / page).rglob("*.md"))
    missing = []
    for file in files:
        for link in re.findall(r"\]\(([^)\s]+)\)", file.read_text(encoding="utf-8")):
            if "://" in link:
                continue
            name, _, anchor = link.partition("#")
            target = file.parent / name if name else file
            headings = target.read_text(encoding="utf-8") if target.suffix == ".md" else ""
            anchors = {
                re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
                for line in headings.splitlines()
                if line.startswith("#")
            }
            if not target.exists() or (anchor and anchor not in anchors):
                missing.append(f"{file.name}: {link}")
    assert missing == []


def test_every_page_is_in_the_site_s_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    docs = ROOT / "docs"
    pages = {file.relative_to(docs).as_posix() for file in docs.rglob("*.md")}
    assert pages == set(re.findall(r"([\w/]+\.md)$", navigation, re.M))


def test_the_python_example_runs_on_fewer_questions(tmp_path, monkeypatch, capsys):
    code, votes = re.findall(r"```python\n(.*?)```", README, re.S)
    smaller = {
        "count=200": "count=3",
        "count=100": "count=2",
        "num_samples=16": "num_samples=4",
        "steps=40": "steps=2, sequence_length=192, sequences_per_prefix=2, microbatches=1",
    }
    for old, new in smaller.items():
        assert code.count(old) == 1
        code = code.replace(old, new)
    assert len(code.strip().splitlines()) <= 15
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    before, after = eval(capsys.readouterr().out.splitlines()[-1])
    exec(compile(votes, "README.md", "exec"), names)
    assert capsys.readouterr().out == "18\n"
    assert 0 <= before <= 1 and 0 <= after <= 1
    assert list(tmp_path.glob("runs/example/checkpoint_2"))
