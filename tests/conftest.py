"""A micro model and a tokenizer that tests share; nothing here needs a network."""

import ctypes
import os
import pathlib
import sys

import hypothesis
import jax
import jaxlib
import pytest
from etils.epath import backend, gpath

from lmsi_jax.config import ModelConfig
from lmsi_jax.models.tokenizers import SentencePiece
from lmsi_jax.models.transformer import init_params

# The same examples in every run; `--hypothesis-profile=search` looks for new ones.
hypothesis.settings.register_profile("search", deadline=None, max_examples=1000)
hypothesis.settings.register_profile("fixed", deadline=None, derandomize=True)
hypothesis.settings.load_profile("fixed")

_LINES = [
    "Q: Ann has 3 pens and 4 cups. How many things does Ann have?",
    "A: 3 + 4 = 7. The answer is 7.",
    "Premise: Ben has some hats. Yes or no? (a) 1 (b) 2",
    "Let's think step by step. The answer is it is not possible to tell.",
]


# Most of the time of most tests is XLA's compiler, so it optimises little: an eighth of the time.
# A flag that this jaxlib does not know would end the process.
_FAST_COMPILATION = {
    "xla_backend_optimization_level": "0",
    "xla_cpu_parallel_codegen_split_count": "1",
    "xla_cpu_use_fusion_emitters": "false",
}


def pytest_configure(config):
    """Makes compilation cheap, and keeps compiled programs in pytest's cache, because modules,
    workers, subprocesses and the next run compile the same ones.

    `XLA_FLAGS= pytest` compiles as users do.
    """
    if "XLA_FLAGS" not in os.environ and jaxlib.__version__.startswith("0.10."):
        os.environ["XLA_FLAGS"] = " ".join(f"--{k}={v}" for k, v in _FAST_COMPILATION.items())
    os.fsync = lambda fd: None  # no test pulls the plug, and each call waits for the disk
    if (cache := getattr(config, "cache", None)) is None:
        return
    settings = {
        "jax_compilation_cache_dir": str(cache.mkdir("jax")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)  # for subprocesses


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Capabilities(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable"))


@pytest.fixture
def ordinary_user():
    """Makes the permissions of files count for this thread, as they do not for root (capset(2))."""
    if os.geteuid() != 0:
        yield
        return
    if not sys.platform.startswith("linux"):
        pytest.skip("root gives up its rights over files on Linux alone")
    libc = ctypes.CDLL(None, use_errno=True)
    header, capabilities = _Header(0x20080522, 0), (_Capabilities * 2)()  # version 3, this thread
    assert libc.capget(ctypes.byref(header), capabilities) == 0
    before = capabilities[0].effective
    capabilities[0].effective &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(ctypes.byref(header), capabilities) == 0
    try:
        yield
    finally:
        capabilities[0].effective = before
        assert libc.capset(ctypes.byref(header), capabilities) == 0


@pytest.fixture(scope="module", autouse=True)
def _forgotten_programs():
    """Lets compiled programs go before they are too many: a process may map 65,530 areas of memory
    on Linux, a program takes several, and XLA crashes without one."""
    yield
    areas = pathlib.Path("/proc/self/maps")
    if not areas.exists() or areas.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()


class _Bucket:
    """Stands in for the back end of gs://: a local folder, and every call that it got."""

    def __init__(self, root):
        self.root, self.calls = root, []

    def __getattr__(self, name):
        def call(path, *args, **kwargs):
            assert path.startswith("gs://bucket/")
            self.calls.append(name)
            local = os.fspath(self.root / path.removeprefix("gs://bucket/"))
            return getattr(backend.os_backend, name)(local, *args, **kwargs)

        return call


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """gs://bucket/, which lies in `bucket.root`."""
    (tmp_path / "bucket").mkdir()
    made, real = _Bucket(tmp_path / "bucket"), gpath.PosixGPath._backend.fget
    chosen = property(lambda path: made if str(path).startswith("gs://") else real(path))
    monkeypatch.setattr(gpath.PosixGPath, "_backend", chosen)
    return made


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory):
    """A SentencePiece model with bytes as fallback, trained on four lines."""
    from lmsi_jax.pipeline.pretrain import train_pieces

    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(train_pieces(_LINES * 20, 320, ["\n"]))
    return str(path)


@pytest.fixture(scope="session")
def tokenizer(tokenizer_path):
    return SentencePiece(tokenizer_path)


@pytest.fixture(scope="session")
def micro_config():
    """Two layers, four heads in two groups, so that every axis has its own size."""
    return ModelConfig(
        vocab_size=320,
        num_layers=2,
        embed_dim=24,
        num_heads=4,
        num_kv_heads=2,
        head_dim=6,
        mlp_dim=40,
        max_length=256,
    )


@pytest.fixture(scope="session")
def micro_params(micro_config):
    return init_params(micro_config, jax.random.key(0))
