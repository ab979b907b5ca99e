"""`lmsi aot` on a real compiler for TPUs, where libtpu is installed; its messages everywhere."""

import importlib.metadata
import importlib.util
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading

import pytest

from lmsi_jax.cli.main import main
from lmsi_jax.config import Decoding, ModelConfig, Optimizer, Training
from lmsi_jax.errors import DoesNotFit, LmsiError
from lmsi_jax.runtime import progress
from lmsi_jax.runtime.progress import doing
from lmsi_jax.runtime.signals import signals_as_exceptions
from lmsi_jax.tools import aot_report
from lmsi_jax.tools.aot_costs import CHIPS, _refusal, chip_of, chips_in, slice_of, slice_shapes
from lmsi_jax.tools.aot_report import for_sampling, for_training

ROOT = pathlib.Path(__file__).resolve().parents[2]
_HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None
# Every share of a matrix is whole tiles of a TPU's memory, so that no padding is counted.
_GIN = """
Run.output_dir = 'none'
Run.model = @ModelConfig()
Run.training = @Training()
Run.decoding = @Decoding()
Run.sampling = @Sampling()
Run.name = 'micro'
ModelConfig.vocab_size = 1024
ModelConfig.num_layers = 2
ModelConfig.embed_dim = 256
ModelConfig.num_heads = 4
ModelConfig.head_dim = 128
ModelConfig.mlp_dim = 512
ModelConfig.max_length = 1024
Training.steps = 10
Training.microbatches = 1
Training.sequences_per_prefix = 2
Training.sequence_length = 128
Training.max_prefix_length = 128
Training.data = 2
Training.model = 2
Training.fsdp = True
Decoding.dtype = 'bfloat16'
Decoding.data = 2
Decoding.model = 2
Decoding.slots = 32
Decoding.chunk = 8
Decoding.page = 64
Sampling.num_samples = 16
Sampling.max_new_tokens = 64
"""


def _lmsi(tmp_path, *arguments, without=()):
    config = tmp_path / "micro.gin"
    config.write_text(_GIN)
    code = "import sys; sys.modules.update(dict.fromkeys(sys.argv.pop(1).split(',')[1:]));"
    code += "from lmsi_jax.cli.main import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, ",".join(["", *without]), "aot", str(config), *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(not _HAS_LIBTPU, reason="libtpu is not installed (pip install 'lmsi_jax[tpu]')")
@pytest.mark.slow
def test_a_micro_run_is_compiled_for_four_chips(tmp_path):
    """Bytes of arguments a chip, counted by hand; what must be gathered and added up is."""
    done = _lmsi(
        tmp_path, "--topology=v5e:2x2", "--json=found.json",
        "--prompt_tokens=64", "--question_tokens=33",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    vocab, width, heads, head, mlp, layers = 1024, 256, 4, 128, 512, 2
    spread = vocab * width + layers * width * (2 * heads * head + 3 * mlp)  # over both axes
    single = layers * width * 2 * head  # one kv head: over "data" with fsdp alone
    norms = (layers + 1) * width
    # Parameters and AdamW's two moments, float32.
    weights = 3 * 4 * (spread // 4 + single // 2 + norms // 2)
    assert abs(found["train"]["arguments"] - weights) < 2**15
    caches = 2 * layers * head * (32 * 64 + 2 * 2 * 32 + 64)  # pages, questions in slots, prompt
    weights = spread // 2 + single + norms  # not over "data"
    assert abs(found["sample"]["arguments"] - 2 * (caches + weights)) < 2**15
    train, sample = found["train"]["collectives"], found["sample"]["collectives"]
    assert train["all-gather"]["count"] and train["reduce-scatter"]["count"]
    # Each step of a chunk adds up at least once a layer, and gathers no weights.
    assert sample["all-reduce"]["count"] >= 8 * layers
    largest = max(size / times for _, _, times, size in found["sample"]["largest"])
    assert largest < 2 * 32 * vocab * 4
    assert found["sample"]["rate"]["questions_per_hour"] > 0
    assert "fits" in done.stdout
    assert set(found["versions"]) == {"jax", "jaxlib", "libtpu", "commit"}


def test_without_libtpu_the_message_names_what_to_install(tmp_path):
    done = _lmsi(tmp_path, "--topology=v5e:2x2", without=["libtpu"])
    assert done.returncode == 2
    assert "pip install 'lmsi_jax[tpu]'" in " ".join(done.stderr.split())


@pytest.mark.parametrize("topology", ["v5e", "v3:4x4", "v5p:8xx8", "v5e:4"])
def test_a_topology_that_does_not_exist_is_refused_with_an_example(topology):
    with pytest.raises(LmsiError, match="v5e:4x4"):
        chip_of(topology)


@pytest.mark.parametrize(
    ("topology", "offered"),
    [
        ("v5e:3x5", "v5e has 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16$"),
        ("v5p:4x4x6", "v5p has 2x2x1, .* at most 6,144 chips$"),
        ("v4:8x16x64", "v4 has 2x2x1, .* at most 4,096 chips$"),
        ("v6e:2x2x1", "v6e has 1x1, "),
    ],
)
def test_a_slice_that_is_not_offered_is_refused_with_those_that_are(topology, offered):
    with pytest.raises(LmsiError, match=f"there is no such slice; {offered}"):
        chip_of(topology)


def test_the_offered_slices_are_those_of_google_s_tables():
    """The tables list every shape below a cube, and most (not all) boxes of cubes."""
    listed = {  # of cloud.google.com/tpu/docs/v4 and v5p
        "v4": "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x12 8x8x16 4x16x16 8x16x16",
        "v5p": "2x2x1 2x2x2 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16 16x16x24",
    }
    for kind, shapes in listed.items():
        offered = slice_shapes(kind)
        assert set(shapes.split()) <= set(offered)
        chips = [chips_in(f"{kind}:{shape}") for shape in offered]
        assert chips == sorted(chips)
        assert chips[-1] == CHIPS[kind].most
        assert not {number for number in chips if number > 32 and number % 64}


def test_chips_are_counted_from_the_shape():
    assert (chips_in("v5p:8x8x8"), chips_in("v5e:4x8")) == (512, 32)


@pytest.mark.parametrize(
    ("topology", "chips", "part"),
    [
        ("v5e:4x8", 32, "v5e:4x8"),
        ("v5e:4x8", 8, "v5e:2x4"),
        ("v5p:8x8x8", 16, "v5p:2x2x4"),
        ("v5p:8x8x8", 4, "v5p:2x2x1"),
        ("v6e:16x16", 4, "v6e:2x2"),
    ],
)
def test_a_smaller_mesh_is_a_slice_of_the_topology(topology, chips, part):
    assert slice_of(topology, chips) == part


def test_a_mesh_that_no_slice_has_is_refused():
    with pytest.raises(LmsiError, match="no slice of 12 chips"):
        slice_of("v5p:8x8x8", 12)
    with pytest.raises(LmsiError, match="larger"):
        slice_of("v5e:2x2", 8)


def test_a_program_that_does_not_fit_ends_the_command_with_its_own_code(monkeypatch, tmp_path):
    figures = {"chip": {"memory": 100}, "train": {"fits": True, "peak": 99}}
    monkeypatch.setattr(aot_report, "check", lambda *_args: dict(figures))
    config = tmp_path / "micro.gin"
    config.write_text(_GIN)
    words = ["aot", str(config), "--topology=v5e:2x2", f"--json={tmp_path / 'found.json'}"]
    assert main(words) == 0
    for other in ({"fits": False, "peak": 0}, {"fits": True, "peak": 101}):
        figures["sample"] = other
        assert main(words) == DoesNotFit.exit_code == 3
        assert json.loads((tmp_path / "found.json").read_text())["sample"] == other


def test_a_signal_does_not_wait_for_the_compiler(monkeypatch, tmp_path, capsys):
    begun, ended = threading.Event(), threading.Event()

    def check(*_args):
        begun.set()
        ended.wait(60)  # as a compiler does that holds its thread for minutes
        return {}

    monkeypatch.setattr(aot_report, "check", check)
    config = tmp_path / "micro.gin"
    config.write_text(_GIN)

    def terminate():
        begun.wait(60)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate, daemon=True).start()
    with signals_as_exceptions():  # as the command does
        assert main(["aot", str(config), "--topology=v5e:2x2"]) == 143
    assert not ended.is_set()
    ended.set()
    assert "terminated" in capsys.readouterr().err


def test_the_command_says_what_takes_long(monkeypatch, tmp_path):
    lines, said = [], threading.Event()

    class Said(progress.SlowWork):
        def __init__(self):
            super().__init__(after=0.0, clock=lambda: 0.0)

        def _print(self, line):
            lines.append(line)
            said.set()

    def check(*_args):
        with doing("tracing a training step"):
            said.wait(60)
        return {"chip": {"memory": 100}}

    monkeypatch.setattr(progress, "SlowWork", Said)
    monkeypatch.setattr(aot_report, "check", check)
    config = tmp_path / "micro.gin"
    config.write_text(_GIN)
    assert main(["aot", str(config), "--topology=v5e:2x2"]) == 0
    assert lines == ["tracing a training step ...", "tracing a training step in 0:00"]


def test_the_figures_name_the_compilers_and_the_commit():
    found = aot_report.versions()
    assert found["jax"] == importlib.metadata.version("jax")
    root = pathlib.Path(aot_report.__file__).resolve().parents[2]
    if (root / ".git").exists() and shutil.which("git"):
        head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True)
        assert found["commit"].split()[0] == head.stdout.decode().strip()


def test_clocks_are_the_published_peak_over_what_the_matrix_units_multiply():
    """v4, v5p: two cores of four units of 128 x 128; v5e: one (Google's documents of each)."""
    for name, units in (("v4", 8), ("v5e", 4), ("v5p", 8)):
        per_cycle = units * 128 * 128 * 2
        assert CHIPS[name].clock == pytest.approx(CHIPS[name].flops / per_cycle, rel=0.01)


def test_advice_names_only_what_is_not_done_yet():
    config = ModelConfig(
        vocab_size=64, num_layers=2, embed_dim=32, num_heads=6, head_dim=8, mlp_dim=64
    )
    tight = Training(sequences_per_prefix=4, data=4, model=2, fsdp=True, compute_dtype="bfloat16",
                     optimizer=Optimizer(name="adafactor"))  # fmt: skip
    assert [line.split(":")[0].split(" =")[0] for line in for_training(config, tight)] == [
        "ModelConfig.remat", "ModelConfig.scan_layers", "Training.model", "a larger topology",
    ]  # fmt: skip
    assert "Training.model = 6" in " ".join(for_training(config, tight))
    loose = for_training(config, Training(sequences_per_prefix=8, data=4))
    assert {
        "Training.fsdp",
        "Training.compute_dtype",
        "Training.sequences_per_prefix",
        "Optimizer.name",
    } < {line.split(" =")[0] for line in loose}
    sampling = for_sampling(config, Decoding(slots=64))
    assert any("Decoding.slots = 32" in line for line in sampling)


def test_the_compiler_s_own_words_say_by_how_much_it_does_not_fit():
    error = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
        "hbm. Used 21.07G of 15.75G hbm. Exceeded hbm capacity by 5.32G.\n\nTotal hbm usage"
    )
    assert _refusal(error) == "Used 21.07G of 15.75G hbm. Exceeded hbm capacity by 5.32G."
