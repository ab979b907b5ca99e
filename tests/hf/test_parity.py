"""Imported models against transformers, family by family: scores, greedy tokens, bytes."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from hf import hub
