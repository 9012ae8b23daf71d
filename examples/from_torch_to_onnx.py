"""A network trained in PyTorch, checked and trained further in JAX, and handed on as an ONNX model.

    python examples/from_torch_to_onnx.py
    python examples/from_torch_to_onnx.py --weights examples/forecaster.safetensors --steps 500

The network, an LSTM and a linear read-out, forecasts a sum of sines one step ahead. Where PyTorch is
installed it is trained there first; else its weights, and what PyTorch made of them, are read from a
file that this program wrote where PyTorch was (--write). Then

1. the weights are converted (lstm_jax.interop), and JAX has to give PyTorch's outputs;
2. the network is trained further in JAX, on sines it has not seen;
3. it is written as an ONNX model, of which onnxruntime has to give JAX's outputs, ragged rows included.

Needs optax and safetensors; torch, onnx and onnxruntime where they are asked to do something.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import lstm_jax
from lstm_jax import interop

UNITS, T, B = 24, 60, 32
WEIGHTS = Path(__file__).with_name("forecaster.safetensors")
AGREE = 1e-5


class UserError(Exception):
    """What the person at the keyboard can mend: told in one line, without a traceback."""


def sines(seed: int, rows: int = B) -> np.ndarray:
    """Sums of two sines of random period and phase, and a little noise: (T + 1, rows, 1), float32."""
    rng = np.random.default_rng(seed)
    t = np.arange(T + 1)[:, None, None]
    periods, phases = rng.uniform(8, 40, (1, rows, 2)), rng.uniform(0, 2 * np.pi, (1, rows, 2))
    waves = np.sin(2 * np.pi * t / periods + phases).sum(axis=2, keepdims=True) / 2
    return (waves + 0.02 * rng.normal(size=waves.shape)).astype(np.float32)


# --- PyTorch ------------------------------------------------------------------------------------


def train_in_torch(steps: int, seed: int) -> dict[str, np.ndarray]:
    """The state dict of a trained ``ModuleDict(lstm, head)``, and what it says of one batch."""
    import torch

    torch.manual_seed(seed)
    module = torch.nn.ModuleDict({"lstm": torch.nn.LSTM(1, UNITS), "head": torch.nn.Linear(UNITS, 1)})
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)

    def forecast(xs: Any) -> Any:
        return module["head"](module["lstm"](xs)[0])

    for step in tqdm(range(steps), desc="training in PyTorch", unit="batch"):
        batch = torch.from_numpy(sines(seed + step))
        loss = torch.mean((forecast(batch[:-1]) - batch[1:]) ** 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        said = forecast(torch.from_numpy(sines(10_000_000)[:-1])).numpy()
    state = {f"weights.{name}": value.detach().numpy() for name, value in module.state_dict().items()}
    return state | {"outputs": said}


# --- JAX ----------------------------------------------------------------------------------------


def network_of(given: dict[str, np.ndarray]) -> tuple[lstm_jax.Stack, Any]:
    """The same network here: the LSTM by its converter, the linear layer by hand."""
    cell, params = interop.from_torch(given, prefix="weights.lstm.")
    readout = lstm_jax.ReadoutParams(
        jnp.asarray(given["weights.head.weight"].T), jnp.asarray(given["weights.head.bias"])
    )
    return lstm_jax.Stack((cell, lstm_jax.Readout(cell.hidden_size, 1))), (params, readout)


def error(network: Any, params: Any, batch: jax.Array) -> jax.Array:
    """The mean square of the forecasts' errors."""
    _, said = lstm_jax.unroll(network, params, batch[:-1])
    return jnp.mean((said - batch[1:]) ** 2)


def train_further(network: Any, params: Any, steps: int, seed: int) -> Any:
    """Adam on fresh sines."""
    optimizer = optax.adam(3e-3)

    @jax.jit
    def train_step(params: Any, state: Any, batch: jax.Array) -> tuple[Any, Any]:
        updates, state = optimizer.update(jax.grad(partial(error, network))(params, batch), state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for step in tqdm(range(steps), desc="training in JAX", unit="batch"):
        params, state = train_step(params, state, jnp.asarray(sines(seed + 5_000_000 + step)))
    return params


# --- ONNX ---------------------------------------------------------------------------------------


def check_in_onnxruntime(path: Path, network: Any, params: Any) -> float:
    """The largest difference between what onnxruntime and JAX make of ragged rows, one of them empty."""
    import onnxruntime

    xs, lengths = sines(20_000_000, 5)[:-1], np.array([T, 40, 7, 1, 0], np.int32)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    theirs = session.run(["ys"], {"xs": xs, "lengths": lengths})[0]
    ours = lstm_jax.unroll(network, params, xs, lengths=lengths)[1]
    return float(np.max(np.abs(theirs - np.asarray(ours))))


# --- the program --------------------------------------------------------------------------------


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def given_network(args: argparse.Namespace) -> tuple[dict[str, np.ndarray], str]:
    """PyTorch's weights and outputs, and where they come from."""
    if args.weights is None and installed("torch"):
        return train_in_torch(args.torch_steps, args.seed), "trained in PyTorch just now"
    path = args.weights or WEIGHTS
    try:
        given = interop.load(path)
    except OSError as problem:
        raise UserError(f"cannot read {path}: {problem.strerror}") from None
    missing = {"outputs", "weights.head.weight", "weights.head.bias"} - set(given)
    if missing:
        raise UserError(f"{path} has no {', '.join(sorted(missing))}: write it with --write")
    return given, f"from {path}"


def run(args: argparse.Namespace) -> None:
    if args.write and not installed("torch"):
        raise UserError("--write needs PyTorch, which is not installed")
    given, source = given_network(args)
    if args.write:
        interop.save(args.write, given)
        print(f"PyTorch's weights and outputs: {args.write}")
    network, params = network_of(given)
    _, said = lstm_jax.unroll(network, params, sines(10_000_000)[:-1])
    off = float(np.max(np.abs(np.asarray(said) - given["outputs"])))
    if not off < AGREE:
        raise UserError(f"JAX is off PyTorch's outputs by {off:.1e}, more than {AGREE:.0e}")
    print(f"PyTorch's network ({source}): JAX gives the same outputs to {off:.1e}")

    unseen = jnp.asarray(sines(30_000_000, 256))
    before = float(error(network, params, unseen))
    params = train_further(network, params, args.steps, args.seed)
    after = float(error(network, params, unseen))
    print(f"Error on sines it has not seen: {before:.5f}, and {after:.5f} after {args.steps} steps in JAX")

    if not installed("onnx"):
        print("onnx is not installed, so no model was written: pip install onnx onnxruntime")
        return
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "forecaster.onnx"
    interop.save_onnx(path, network, params, lengths=True)
    print(f"ONNX model: {path}")
    if not installed("onnxruntime"):
        print("onnxruntime is not installed, so the model was not run: pip install onnxruntime")
        return
    off = check_in_onnxruntime(path, network, params)
    if not off < AGREE:
        raise UserError(f"onnxruntime is off JAX's outputs by {off:.1e}, more than {AGREE:.0e}")
    print(f"onnxruntime gives the same outputs to {off:.1e}, rows of lengths {T}, 40, 7, 1 and 0 among them")


def make_parser() -> argparse.ArgumentParser:
    def whole(word: str) -> int:
        if not word.isdecimal():
            raise argparse.ArgumentTypeError(f"{word!r} is not a whole number")
        return int(word)

    parser = argparse.ArgumentParser(
        prog="from_torch_to_onnx", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--weights", type=Path, metavar="FILE", help="weights and outputs to begin with, instead of PyTorch")
    add("--write", type=Path, metavar="FILE", help="write PyTorch's weights and outputs there")
    add("--torch-steps", type=whole, default=200, help="batches in PyTorch (default: %(default)s)")
    add("--steps", type=whole, default=200, help="batches in JAX (default: %(default)s)")
    add("--seed", type=whole, default=0, help="of weights and data (default: %(default)s)")
    out = Path("runs/from_torch_to_onnx")
    add("--out", type=Path, metavar="FOLDER", default=out, help="(default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The program; 0 if all went well, 2 after an error that was told in one line."""
    try:
        run(make_parser().parse_args(argv))
    except (UserError, ValueError) as problem:
        print(f"from_torch_to_onnx: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
