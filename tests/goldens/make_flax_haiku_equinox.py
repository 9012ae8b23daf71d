"""Writes weights and outputs of Flax, Haiku and Equinox, for tests that run without these libraries.

    PYTHONPATH=.:tests python tests/goldens/make_flax_haiku_equinox.py

One file per case of ``tests/jax_peers.py``: random weights under their full names behind ``weights/``, an
input ``xs`` (T, batch, D) and the peer's outputs ``ys``; the versions are in the file's metadata.
"""

from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
from jax_peers import CASES, READ_ONLY, filled, flat
from safetensors.numpy import save_file

HERE = Path(__file__).parent
D, H = 3, 4


def main():
    names = ("jax", "flax", "dm-haiku", "equinox")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    for seed, (name, case) in enumerate((CASES | READ_ONLY).items()):
        shapes, run = case.peer(D, H)
        weights, xs = filled(shapes, seed), case.xs(D, seed=seed)
        tensors = {f"weights/{path}": array for path, array in flat(weights)}
        tensors |= {"xs": xs, "ys": np.asarray(run(jax.tree.map(jax.numpy.asarray, weights), xs))}
        save_file(tensors, HERE / f"{name.replace(' ', '_')}.safetensors", metadata={"versions": versions})


if __name__ == "__main__":
    main()
