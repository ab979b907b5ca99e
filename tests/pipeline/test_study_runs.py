"""A study's variants are ordinary runs that share what is equal; its table is what they found."""

import html.parser
import json
import pathlib
import re
import shutil

import numpy as np
import pytest
from micro_run import contents, snapshot

from lmsi_jax.cli.main import main
from lmsi_jax.config import gin_loader
from lmsi_jax.pipeline import context
from lmsi_jax.runtime.store import ShardStore

_STUDY = """
include '{gin_file}'

Study.name = 'formats'
Study.question = 'Which format does it?'
Study.source = 'a paper'
Study.variants = (@all/Variant(), @direct/Variant())
Study.reference = 'all'
Study.seeds = (3,)
Study.output_dir = '{output}'
Study.seconds = 100
Evaluation.num_samples = 4

all/Variant.name = 'all'
all/Variant.label = 'all four'
all/Variant.seconds = 20
all/Variant.paper = (('cot', '56.5 to 73.5'),)

direct/Variant.name = 'direct'
direct/Variant.bindings = ("Mixing.formats = ('zero_shot_direct',)",)
direct/Variant.seconds = 20
"""


def _study_file(folder, gin_file, output, more=""):
    path = folder / "formats.gin"
    path.write_text(_STUDY.format(gin_file=gin_file, output=output) + more)
    return str(path)


@pytest.fixture(scope="module")
def study(tmp_path_factory, gin_file):
    """A finished study of two variants and one seed: its gin file and its folder."""
    folder = tmp_path_factory.mktemp("study")
    file = _study_file(folder, gin_file, folder / "studies")
    assert main(["study", file]) == 0
    return file, folder / "studies" / "formats"


@pytest.fixture
def again(study, gin_file, tmp_path):
    """A copy of it: its gin file and its folder."""
    shutil.copytree(study[1].parent, tmp_path / "studies")
    file = _study_file(tmp_path, gin_file, tmp_path / "studies")
    return file, tmp_path / "studies" / "formats"


def test_a_variant_that_shares_stages_has_the_bytes_of_a_run_by_itself(study, words, tmp_path):
    seeds = {"Run.seed": 3, "Questions.seed": 3}
    alone = seeds | {"Mixing.formats": ("zero_shot_direct",)}
    assert main(words("run", tmp_path / "run", alone)) == 0
    assert contents(study[1] / "direct" / "seed3") == contents(tmp_path / "run")
    # The time in it shows that a stage was copied, not repeated.
    for stage in ("questions", "round_0/eval", "round_1/sample", "round_1/vote"):
        records = [(study[1] / v / "seed3" / stage / "stage.json") for v in ("all", "direct")]
        assert records[0].read_bytes() == records[1].read_bytes()
    models = [study[1] / v / "seed3" / "round_1/train/digest.json" for v in ("all", "direct")]
    assert models[0].read_text() != models[1].read_text()


def test_the_table_is_what_the_runs_scored(study):
    result = json.loads((study[1] / "study.json").read_text())
    assert [row["variant"] for row in result["rows"]] == ["all"] * 2 + ["direct"] * 2
    right = {
        (variant, number): {
            row["prompt_style"]: np.mean(row["correct"])
            for row in json.loads(
                (study[1] / variant / f"seed3/round_{number}/eval/scores.json").read_text()
            )
        }
        for variant in ("all", "direct")
        for number in (0, 1)
    }
    for row in result["rows"]:
        before, after = (right[row["variant"], n][row["prompt_style"]] for n in (0, 1))
        assert (row["before"][0], row["after"][0]) == (before, after)
        assert row["change"]["difference"] == pytest.approx(after - before)
        if row["variant"] == "direct":
            wanted = after - right["all", 1][row["prompt_style"]]
            assert row["against"]["difference"] == pytest.approx(wanted)
        else:
            assert row["against"] is None


def test_the_table_goes_into_a_document_and_is_a_whole_page(study, tmp_path, capsys):
    capsys.readouterr()
    assert main(["study", study[0], "--table"]) == 0
    table = capsys.readouterr().out
    assert "| all four | Chain of thought | trained |" in table and "56.5 to 73.5" in table
    document = tmp_path / "results.md"
    document.write_text("# A\n<!-- study formats -->\nnot run yet\n<!-- end -->\nB\n")
    for _ in range(2):  # a second time changes nothing
        assert main(["study", study[0], f"--into={document}"]) == 0
        assert document.read_text() == (
            f"# A\n<!-- study formats -->\n{table.rstrip()}\n<!-- end -->\nB\n"
        )
    document.write_text("# A\n")
    assert main(["study", study[0], f"--into={document}"]) == 2
    assert "<!-- study formats -->" in capsys.readouterr().err
    page = (study[1] / "study.html").read_text()
    html.parser.HTMLParser().feed(page)
    assert page.count('class="chart"') == 2 and "Which format does it?" in page
    assert "<h3>Chain of thought, trained tasks</h3>" in page and "before the rounds" in page


_SHIFT = """
Study.name = 'shift'
Study.measure = 'shift'
Study.variants = (@all/Variant(),)
Study.reference = ''
Study.seeds = (3, 4)
all/Variant.command = 'mix'
Mixing.selection = (@DistributionShift(),)
DistributionShift.validation = 'confident'
DistributionShift.surest = 0.5
Training.sequence_length = 256
"""


def test_a_study_of_rows_trains_nothing_and_counts_right_rows_by_weight(gin_file, tmp_path, capsys):
    file = _study_file(tmp_path, gin_file, tmp_path / "studies", _SHIFT)
    assert main(["study", file]) == 0
    folder = tmp_path / "studies" / "shift"
    assert not list(folder.rglob("train/metrics.jsonl"))
    result = json.loads((folder / "study.json").read_text())
    tasks = {row["task"] for row in result["rows"]}
    bins = ["[1, 1.1)", "[1.1, 1.3)", "[1.3, 1.5)", "[1.5, 2)", f"[2, {chr(0x221E)})"]
    assert tasks == {"purchases", "compare"}
    assert [row["bin"] for row in result["rows"] if row["task"] == "purchases"] == bins
    kept = 0
    for path in folder.rglob("funnel-*.jsonl.gz"):
        (step,) = ShardStore(path.parent).read(path.name.removesuffix(".jsonl.gz"))
        kept += step["rows"]
    assert sum(row["rows"] for row in result["rows"]) == kept > 0
    assert all((row["right"] is None) == (row["rows"] == 0) for row in result["rows"])
    table = capsys.readouterr().out
    assert "| purchases |" in table and "| [1, 1.1) |" in table


def test_a_finished_study_is_looked_over_and_not_done_again(study, capsys):
    before = snapshot(study[1])
    capsys.readouterr()
    assert main(["study", study[0]]) == 0
    assert "2 of them finished: they are only checked, which takes s" in capsys.readouterr().out
    unchanged = {path for path, stand in snapshot(study[1]).items() if before[path] == stand}
    written = {path.name for path in before.keys() - unchanged}
    assert written <= {"config.gin", "manifest.json", "study.json", "study.html"}


def test_the_plan_says_how_long_it_takes_and_runs_nothing(gin_file, tmp_path, capsys):
    file = _study_file(tmp_path, gin_file, tmp_path / "studies", "Study.seeds = (0, 1)\n")
    assert main(["study", file, "--plan"]) == 0
    # 2 seeds of 100 s for what is shared, 2 x 2 runs of 20 s.
    out = capsys.readouterr().out
    assert "4 runs (2 variants, 2 seeds): about 4 min 40 s on two idle cores" in out
    assert not (tmp_path / "studies").exists()


def test_interrupted_while_a_stage_is_copied_it_goes_on_to_the_same_bytes(
    again, study, monkeypatch
):
    file, folder = again
    shutil.rmtree(folder / "direct")
    copytree, copied = shutil.copytree, []

    def interrupted(found, made, **how):
        copytree(found, made, **how)
        copied.append(pathlib.Path(found).name)
        if copied == ["questions", "eval", "sample"]:
            sorted(pathlib.Path(made).glob("*.jsonl.gz"))[0].unlink()  # half of it is there
            raise KeyboardInterrupt

    monkeypatch.setattr(context.shutil, "copytree", interrupted)
    assert main(["study", file]) == 130
    assert not (folder / "direct" / "seed3" / "round_1" / "sample").exists()
    assert not (folder / "direct" / "seed3" / "unit.json").exists()
    assert main(["study", file]) == 0
    assert copied[3:] == ["sample", "vote"]
    assert contents(folder) == contents(study[1])


def test_a_damaged_stage_of_another_run_is_not_believed(again, study):
    file, folder = again
    shutil.rmtree(folder / "direct")
    shard = next((folder / "all/seed3/round_1/sample").glob("purchases-*.jsonl.gz"))
    shard.write_bytes(shard.read_bytes()[:-9])
    # As if this variant came first: the study would mend the other run before it is asked.
    (folder / "all").rename(folder / "zero")
    words = ["--gin.Study.variants=(@direct/Variant(),)", "--gin.Study.reference=''"]
    assert main(["study", file, *words]) == 0
    assert contents(folder / "direct") == contents(study[1] / "direct")


def test_a_changed_setting_is_named_and_not_mixed_with_what_is_there(again, capsys):
    file, folder = again
    capsys.readouterr()
    assert main(["study", file, "--gin.Sampling.temperature=0.9"]) == 2
    assert "Sampling.temperature was 0.7, is now 0.9" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gin.Study.reference='none'"], "'none' is none of its variants: all, direct"),
        (["--gin.Study.seeds=(1, 1)"], "name one or more different seeds"),
        (["--gin.all/Variant.bindings=('Run.rounds',)"], "'Run.rounds' has no value"),
        (["--gin.all/Variant.bindings=('Run.round = 2',)"], "did you mean rounds"),
        (["--gin.all/Variant.name='a b'"], "use letters, digits"),
        (["--gin.all/Variant.command='mix'"], "'all' leaves nothing for a table"),
        (["--gin.Study.output_dir='gs://bucket/studies'"], "choose a local one"),
        (["--table"], "no seed is finished yet"),
    ],
)
def test_what_a_person_can_mend_is_said_in_a_line(words, message, gin_file, tmp_path, capsys):
    file = _study_file(tmp_path, gin_file, tmp_path / "studies")
    assert main(["study", file, *words]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert message in error and len(error) < 400
    assert not list((tmp_path / "studies").glob("*/*/*/*"))


def test_a_misspelt_study_is_met_with_the_nearest_and_not_with_a_run(capsys):
    assert main(["study", "fromats"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "did you mean formats?" in error and "iwsi" not in error


def test_stages_are_shared_between_local_folders_alone(lmsi, tmp_path):
    code, _, error = lmsi("run", tmp_path / "run", {"Run.reuse": ("gs://bucket/run",)})
    assert code == 2 and "Run.reuse copies between local folders" in error


@pytest.mark.parametrize("name", gin_loader.packaged_configs("studies"))
def test_every_run_of_a_packaged_study_has_a_configuration(name, tmp_path):
    from lmsi_jax.config.configurables import load_run, load_study
    from lmsi_jax.tools.study_results import units

    arguments, _ = gin_loader.parse([f"--gin.Study.output_dir={str(tmp_path)!r}"])
    file = gin_loader.find_config(name, kind="studies")
    gin_loader.load(file, arguments)
    study = load_study()
    assert study.name == name and len(study.seeds) >= 3 and study.source
    head = pathlib.Path(file).read_text().partition("\ninclude")[0]
    assert f"#   lmsi study {name}\n" in head
    for unit in units(study):
        gin_loader.load(file, gin_loader.with_bindings(arguments, unit.bindings))
        run = load_run()
        assert run.output_dir == unit.folder and unit.variant.seconds > 0
        assert unit.seed is None or run.seed == run.questions.seed == unit.seed
        for folder in re.findall(r"^.*/once", run.init_checkpoint):
            assert any(folder == other.folder for other in units(study))
