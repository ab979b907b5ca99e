"""The package lmsi_jax, its console command `lmsi` and its extras.

setuptools-scm takes the version from the last tag, with the settings of pyproject.toml.
"""

import pathlib

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).resolve().parent

HF = [
    "huggingface_hub>=0.24",
    "jinja2>=3.1",
    "ml_dtypes>=0.4",
    "safetensors>=0.7",
    "tokenizers>=0.22",
]

setup(
    name="lmsi_jax",
    description="Language models improve their own reasoning without labels (LMSI), in JAX",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.14",
    # lmsi_jax/tasks and lmsi_jax/gin_configs are links to the folders beside the package: a wheel
    # with a bare top-level package called "tasks" would collide with other people's.
    packages=find_packages(include=["lmsi_jax*"]),
    package_data={
        "lmsi_jax": [
            "models/embedded/**",
            "models/embedded/**/.*",  # "**" leaves out what checkpoints call ".zarray"
            "py.typed",
            "report/*.css",
            "report/*.js",
        ],
        "lmsi_jax.gin_configs": ["**/*.gin", "*.gin"],
        "lmsi_jax.tasks": ["exemplars/*.txt", "starter/*"],
    },
    entry_points={"console_scripts": ["lmsi = lmsi_jax.cli:run_command"]},
    install_requires=[
        "absl-py>=2.1",
        "etils[epath]>=1.9.4",
        "flax>=0.11",
        "gin-config>=0.5",
        "importlib-resources>=6.0",  # TFDS imports it without declaring it
        "jax>=0.7",
        "numpy>=2.0",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.11.20",
        "reasoning-gym>=0.1.23",
        "rich>=13.7",
        "scipy>=1.14",
        "sentencepiece>=0.2",
        "seqio>=0.0.20",
        "tensorboard>=2.18",  # its event files, without TensorFlow
        "tensorflow>=2.18",
        "tensorflow-datasets>=4.9.7",
    ],
    extras_require={
        "tpu": ["jax[tpu]", "etils[epath-gcs]"],
        "gpu": ["jax[cuda12]"],
        # T5X is on GitHub alone. It imports tensorboard without declaring it.
        "t5x": ["t5x @ git+https://github.com/google-research/t5x.git", "tensorboard"],
        "hf": HF,
        "data": ["datasets>=2.19", "pyarrow>=15"],
        "gguf": [*HF, "gguf>=0.19"],
        "parquet": ["pyarrow>=15"],
        "trackers": ["mlflow>=3.1", "trackio>=0.20", "wandb>=0.19"],
        "hub": ["huggingface_hub>=0.24"],
        "eval": ["lm_eval>=0.4.9"],
        # Everything optional but what needs hardware, GitHub or a developer.
        "all": ["lmsi_jax[data,eval,gguf,hf,hub,parquet,trackers]"],
        "docs": ["mkdocs-jupyter>=0.25", "mkdocs-material>=9.5"],
        "dev": [
            "build>=1.2",
            "gguf>=0.19",
            "hypothesis>=6.100",
            "ipykernel>=6.29",
            "jinja2>=3.1",
            "mypy>=1.11",
            "nbclient>=0.10",
            "pyarrow>=15",
            "pytest>=8.2",
            "pytest-xdist>=3.6",
            "ruff>=0.8",
            "setuptools>=77",
            "setuptools-scm>=8.1",
        ],
    },
)
