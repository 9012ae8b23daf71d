"""Import a network from PyTorch, check it, train it further in JAX, and export it as an ONNX model.

Read `quickstart.py` first for the training loop, then `learn` in this file.

    python examples/from_torch_to_onnx.py
    python examples/from_torch_to_onnx.py --weights examples/forecaster.safetensors --steps 500

The network, an LSTM and a linear layer, forecasts a sum of sines one step ahead. If PyTorch is installed, the
network is trained there first. Otherwise its weights and outputs are read from a file, which this program
wrote in an environment with PyTorch (--write). Then

1. the weights are converted (lstm_jax.interop), and the outputs in JAX are compared with PyTorch's;
2. the network is trained further in JAX, and its error on unseen sines is compared with that before;
3. the network is written as an ONNX model (forecaster.onnx), and the outputs of onnxruntime are compared with
   those in JAX, including rows of different lengths.

The program prints each comparison, and stops if the outputs differ. torch, onnx and onnxruntime are optional.
"""

from __future__ import annotations

import training.start  # isort: skip  # noqa: F401  (first: Ctrl-C is quiet during the slow imports)

import argparse
import importlib.util
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm
from training import Parser, UserError, integer, main

import lstm_jax
from lstm_jax import interop

UNITS, T, B = 24, 60, 32
WEIGHTS = Path(__file__).with_name("forecaster.safetensors")
TOLERANCE = 1e-5


def sines(seed: int, rows: int = B) -> np.ndarray:
    """Sums of two sines of random period and phase, with a little noise: (T + 1, rows, 1), float32."""
    rng = np.random.default_rng(seed)
    t = np.arange(T + 1)[:, None, None]
    periods, phases = rng.uniform(8, 40, (1, rows, 2)), rng.uniform(0, 2 * np.pi, (1, rows, 2))
    waves = np.sin(2 * np.pi * t / periods + phases).sum(axis=2, keepdims=True) / 2
    return (waves + 0.02 * rng.normal(size=waves.shape)).astype(np.float32)


# --- PyTorch ------------------------------------------------------------------------------------


def train_in_torch(steps: int, seed: int) -> dict[str, np.ndarray]:
    """The state dict of a trained ``ModuleDict(lstm, head)``, and its outputs for one batch."""
    import torch

    torch.manual_seed(seed)
    module = torch.nn.ModuleDict({"lstm": torch.nn.LSTM(1, UNITS), "head": torch.nn.Linear(UNITS, 1)})
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)

    def forecast(xs: Any) -> Any:
        return module["head"](module["lstm"](xs)[0])

    for step in tqdm(range(steps), desc="training in PyTorch", unit="batch", disable=None):
        batch = torch.from_numpy(sines(seed + step))
        loss = torch.mean((forecast(batch[:-1]) - batch[1:]) ** 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        outputs = forecast(torch.from_numpy(sines(10_000_000)[:-1])).numpy()
    state = {f"weights.{name}": value.detach().numpy() for name, value in module.state_dict().items()}
    return state | {"outputs": outputs}


# --- JAX ----------------------------------------------------------------------------------------


def network_of(given: dict[str, np.ndarray]) -> tuple[lstm_jax.Stack, Any]:
    """The network in JAX: the LSTM by its converter, the linear layer by transposing its matrix."""
    cell, params = interop.from_torch(given, prefix="weights.lstm.")
    readout = lstm_jax.ReadoutParams(
        jnp.asarray(given["weights.head.weight"].T), jnp.asarray(given["weights.head.bias"])
    )
    return lstm_jax.Stack((cell, lstm_jax.Readout(cell.hidden_size, 1))), (params, readout)


def mean_squared_error(network: Any, params: Any, batch: jax.Array) -> jax.Array:
    """The mean squared error of the forecasts."""
    _, forecasts = lstm_jax.unroll(network, params, batch[:-1])
    return jnp.mean((forecasts - batch[1:]) ** 2)


def train_further(network: Any, params: Any, steps: int, seed: int) -> Any:
    """Train with Adam on new sines in every step."""
    optimizer = optax.adam(3e-3)

    @jax.jit
    def train_step(params: Any, state: Any, batch: jax.Array) -> tuple[Any, Any]:
        updates, state = optimizer.update(
            jax.grad(partial(mean_squared_error, network))(params, batch), state
        )
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for step in tqdm(range(steps), desc="training in JAX", unit="batch", disable=None):
        params, state = train_step(params, state, jnp.asarray(sines(seed + 5_000_000 + step)))
    return params


# --- ONNX ---------------------------------------------------------------------------------------


def onnxruntime_difference(path: Path, network: Any, params: Any) -> float:
    """The largest difference between onnxruntime and JAX, on rows of different lengths, one of them 0."""
    import onnxruntime

    xs, lengths = sines(20_000_000, 5)[:-1], np.array([T, 40, 7, 1, 0], np.int32)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs = session.run(["ys"], {"xs": xs, "lengths": lengths})[0]
    expected = lstm_jax.unroll(network, params, xs, lengths=lengths)[1]
    return float(np.max(np.abs(outputs - np.asarray(expected))))


# --- the program --------------------------------------------------------------------------------


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def torch_outputs(args: argparse.Namespace) -> tuple[dict[str, np.ndarray], str]:
    """PyTorch's weights and outputs, and a description of their source."""
    if args.weights is None and installed("torch"):
        return train_in_torch(args.torch_steps, args.seed), "trained in PyTorch in this run"
    path = args.weights or WEIGHTS
    try:
        given = interop.load(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    missing = {"outputs", "weights.head.weight", "weights.head.bias"} - set(given)
    if missing:
        raise UserError(f"{path} has no {', '.join(sorted(missing))}: create the file with --write")
    return given, f"from {path}"


def check(difference: float, what: str) -> None:
    """Print the largest difference between two outputs; raise a UserError if it is too large."""
    if not difference < TOLERANCE:
        raise UserError(f"the outputs of {what} differ by {difference:.1e}, more than {TOLERANCE:.0e}")
    print(f"The outputs of {what} differ by at most {difference:.1e}")


def learn(args: argparse.Namespace) -> None:
    """Import, check, train, export, check."""
    try:
        convert(args)
    except ValueError as error:  # lstm_jax.interop raises it for files that it cannot convert
        raise UserError(str(error)) from None


def convert(args: argparse.Namespace) -> None:
    if args.write and not installed("torch"):
        raise UserError("--write needs PyTorch, which is not installed")
    given, source = torch_outputs(args)
    if args.write:
        interop.save(args.write, given)
        print(f"PyTorch's weights and outputs: {args.write}")
    network, params = network_of(given)
    _, outputs = lstm_jax.unroll(network, params, sines(10_000_000)[:-1])
    check(float(np.max(np.abs(np.asarray(outputs) - given["outputs"]))), f"PyTorch ({source}) and JAX")

    unseen = jnp.asarray(sines(30_000_000, 256))
    before = float(mean_squared_error(network, params, unseen))
    params = train_further(network, params, args.steps, args.seed)
    after = float(mean_squared_error(network, params, unseen))
    print(f"Error on unseen sines: {before:.5f}; after {args.steps} steps in JAX: {after:.5f}")

    if not installed("onnx"):
        print("No ONNX model is written, because onnx is not installed: pip install onnx onnxruntime")
        return
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "forecaster.onnx"
    interop.save_onnx(path, network, params, lengths=True)
    print(f"ONNX model: {path}")
    if not installed("onnxruntime"):
        print("The model is not checked, because onnxruntime is not installed: pip install onnxruntime")
        return
    check(
        onnxruntime_difference(path, network, params), "JAX and onnxruntime (rows of lengths 60, 40, 7, 1, 0)"
    )


def make_parser() -> Parser:
    parser = Parser("from_torch_to_onnx", __doc__)
    parser.set_defaults(resume=None)
    add, size = parser.add_argument, integer(0)
    add("--weights", type=Path, metavar="FILE", help="read PyTorch's weights and outputs from this file")
    add("--write", type=Path, metavar="FILE", help="write PyTorch's weights and outputs to this file")
    add("--torch-steps", type=size, default=200, help="training steps in PyTorch")
    add("--steps", type=size, default=200, help="training steps in JAX")
    add("--seed", type=size, default=0, help="seed of weights and data")
    out = Path("runs/from_torch_to_onnx")
    add("--out", type=Path, metavar="FOLDER", default=out, help="folder for the ONNX model")
    return parser


if __name__ == "__main__":
    sys.exit(main(make_parser(), learn))
