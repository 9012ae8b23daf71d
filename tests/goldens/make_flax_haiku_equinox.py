"""Writes what flax, haiku and equinox compute, so that the everyday tests need none of them.

    PYTHONPATH=.:tests python tests/goldens/make_flax_haiku_equinox.py

One file a case of ``tests/jax_peers.py``: random weights under their full names behind ``weights/``, an
input ``xs`` (T, batch, D) and the peer's outputs ``ys``; the versions are in the file's metadata.
"""

from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
from jax_peers import CASES, READ_ALONE, filled, flat
from safetensors.numpy import save_file

HERE = Path(__file__).parent
D, H = 3, 4


def main():
    names = ("jax", "flax", "dm-haiku", "equinox")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    for seed, (name, case) in enumerate((CASES | READ_ALONE).items()):
        shapes, run = case.peer(D, H)
        weights, xs = filled(shapes, seed), case.xs(D, seed=seed)
        tensors = {f"weights/{path}": array for path, array in flat(weights)}
        tensors |= {"xs": xs, "ys": np.asarray(run(jax.tree.map(jax.numpy.asarray, weights), xs))}
        save_file(tensors, HERE / f"{name.replace(' ', '_')}.safetensors", metadata={"versions": versions})


if __name__ == "__main__":
    main()
