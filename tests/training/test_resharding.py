"""A checkpoint saved from one mesh is read straight onto another; 8 virtual devices."""

import subprocess
import sys

from virtual_devices import environment

_PROGRAM = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from lmsi_jax.training.checkpoints import Checkpoints, digest, load_params

def placed(shape, tree):
    mesh = Mesh(np.array(jax.devices()).reshape(shape), ("data", "model"))
    return jax.tree.map(
        lambda leaf: NamedSharding(mesh, P("data", "model") if leaf.ndim == 2 else P()), tree)

params = {"w": jnp.arange(128.0).reshape(8, 16), "b": jnp.arange(3.0)}
state = (jnp.int32(5), {"w": -params["w"], "b": params["b"] + 1})
like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (params, state))
wanted = digest((params, state))
made = Checkpoints(sys.argv[1], background=True)
made.save(1, *jax.device_put((params, state), placed((4, 2), (params, state))))
made.wait()
for shape in ((2, 4), (8, 1), (1, 8)):
    shardings = placed(shape, (params, state))
    found = made.restore(1, *like, shardings)
    assert digest(found) == wanted, shape
    assert all(jax.tree.leaves(jax.tree.map(lambda a, s: a.sharding == s, found, shardings)))
    assert found[0]["w"].addressable_shards[0].data.shape == (8 // shape[0], 16 // shape[1])
    assert load_params(sys.argv[1], like[0], shardings[0])["w"].sharding == shardings[0]["w"]
assert digest(made.restore(1, *like)) == wanted
print("same")
"""


def test_arrays_go_straight_to_their_place_on_another_mesh(tmp_path):
    command = [sys.executable, "-c", _PROGRAM, str(tmp_path)]
    done = subprocess.run(command, env=environment(8), capture_output=True, text=True, timeout=600)
    assert done.stdout == "same\n", done.stderr[-3000:]
