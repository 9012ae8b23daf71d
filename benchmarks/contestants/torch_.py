"""PyTorch: ``torch.nn.LSTM``, ``GRU`` and ``RNN``, which call oneDNN on a CPU and cuDNN on a GPU."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks import weights
from benchmarks.cases import MODES, Case, Problem, Setting
from benchmarks.contestants.contestant import Built, Contestant, imports, only

SMALL_H, PERSISTENT, STANDARD = "persistent static, small H", "persistent static", "standard"


def algorithm(
    case: Case, dtype: str, capability: tuple[int, int], processors: int, *, backward: bool = False
) -> str:
    """The cuDNN algorithm that PyTorch requests on devices since Ampere.

    Follows ``get_algo`` in PyTorch's ``aten/src/ATen/native/cudnn/RNN.cpp``.
    """
    if case.ragged:  # packed sequences
        return STANDARD
    if case.H <= (128 if backward else 192):
        return SMALL_H
    plain = case.layers == 1 and not case.bidirectional
    sizes = case.H <= 1024 and case.H % 128 == 0 and case.D % 128 == 0
    device = capability[0] >= 8 and capability[1] != 6 and processors >= 98
    rows = case.B % 8 == 0 and case.B <= 128
    return PERSISTENT if dtype == "float16" and plain and sizes and device and rows else STANDARD


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def build(case: Case, problem: Problem, mode: str, setting: Setting) -> Callable[[], Built]:
    """Time-major modules. Weights, inputs and lengths become tensors before timing."""
    import torch

    device = "cuda" if setting.platform == "gpu" else "cpu"
    dtype = getattr(torch, setting.dtype)

    def tensor(array: Any, **options: Any) -> Any:
        return torch.tensor(np.asarray(array, np.float32), dtype=dtype, device=device, **options)

    def of_network(array: Any, index: int) -> Any:
        return array[index] if case.ensemble else array

    train = mode != MODES[0]
    count = max(1, case.ensemble)
    modules = [
        make_module(torch, case, jax.tree.map(lambda a, m=m: of_network(a, m), problem.params), tensor)
        for m in range(count)
    ]
    xs = [tensor(of_network(problem.xs, m), requires_grad=train) for m in range(count)]
    loss_weights = [tensor(of_network(problem.weights, m)) for m in range(count)]
    lengths = torch.tensor(np.asarray(problem.more), dtype=torch.int64) if case.ragged else None
    carry = tuple(tensor(a) for a in problem.more) if case.streaming else None

    def forward() -> list[Any]:
        return [
            module(x, carry) if case.streaming else unroll(torch, module, x, lengths)
            for module, x in zip(modules, xs, strict=True)
        ]

    def gradients() -> Any:
        for module in modules:
            module.zero_grad(set_to_none=True)
        for x in xs:
            x.grad = None
        pairs = zip(forward(), loss_weights, strict=True)
        loss = sum((ys * w).sum(dtype=torch.float32) for ys, w in pairs)
        loss.backward()
        return loss

    def call() -> Any:
        prepare(torch, setting)  # TF32 is a setting of the process, and settings may alternate
        with torch.inference_mode(not train):
            results = gradients() if train else forward()
        synchronize(torch, setting)
        return results

    def joined(trees: list[Any]) -> Any:
        return jax.tree.map(lambda *a: np.stack(a), *trees) if case.ensemble else trees[0]

    def named_results(results: Any) -> dict[str, Any]:
        if case.streaming:
            h, c = (numpy(a) for a in results[0])
            return {"h": h, "c": c, "outputs": h}
        if not train:
            return {"outputs": joined([numpy(ys) for ys in results])}
        found = [read_layers(case, module) for module in modules]
        return {
            "gradients for weights": joined(found),
            "gradients for inputs": joined([numpy(x.grad) for x in xs]),
        }

    return lambda: Built(call, named_results, note=about(torch, case, train, setting))


def prepare(torch: Any, setting: Setting) -> None:
    """Use all cores, and set the precision of float32 products."""
    if torch.get_num_threads() != cores():
        torch.set_num_threads(cores())
    if setting.platform == "gpu":
        torch.backends.cuda.matmul.allow_tf32 = setting.tf32
        torch.backends.cudnn.allow_tf32 = setting.tf32


def synchronize(torch: Any, setting: Setting) -> None:
    """Wait for the GPU, where there is one."""
    if setting.platform == "gpu":
        torch.cuda.synchronize()


def make_module(torch: Any, case: Case, layers: Any, tensor: Any) -> Any:
    """A module with lstm_jax's weights."""
    kind = torch.nn.LSTMCell if case.streaming else getattr(torch.nn, case.cell)
    more = {} if case.streaming else {"num_layers": case.layers, "bidirectional": case.bidirectional}
    reference = tensor(0)
    module = kind(case.D, case.H, dtype=reference.dtype, device=reference.device, **more)
    with torch.no_grad():
        for index, directions in enumerate(layers):
            for suffix, params in zip(("", "_reverse"), directions, strict=False):
                for name, value in weights.to_torch(params).items():
                    full = name if case.streaming else f"{name}_l{index}{suffix}"
                    getattr(module, full).copy_(tensor(value))
    return module


def unroll(torch: Any, module: Any, xs: Any, lengths: Any) -> Any:
    """Outputs. Ragged sequences, the longest first, are packed before and padded after."""
    if lengths is None:
        return module(xs)[0]
    packed = torch.nn.utils.rnn.pack_padded_sequence(xs, lengths)
    return torch.nn.utils.rnn.pad_packed_sequence(module(packed)[0], total_length=xs.shape[0])[0]


def numpy(tensor: Any) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()


def read_layers(case: Case, module: Any) -> Any:
    """The gradients with respect to the weights in lstm_jax's layout."""
    suffixes = ("", "_reverse") if case.bidirectional else ("",)
    return tuple(
        tuple(weights.from_torch(module, layer, suffix, lambda a: numpy(a.grad)) for suffix in suffixes)
        for layer in range(case.layers)
    )


def about(torch: Any, case: Case, train: bool, setting: Setting) -> str:
    """The library that torch calls, and its options."""
    words = [f"{case.ensemble} modules, called in turn"] if case.ensemble else []
    if setting.platform != "gpu":
        return "; ".join([*words, f"{torch.get_num_threads()} threads"])
    if not case.streaming:
        device = torch.cuda.get_device_properties(0)
        facts = (case, setting.dtype, (device.major, device.minor), device.multi_processor_count)
        words.append(f"cuDNN {torch.backends.cudnn.version()}, {algorithm(*facts)}")
        words += [f"backward {algorithm(*facts, backward=True)}"] if train else []
    return "; ".join([*words, f"TF32 {'on' if setting.tf32 else 'off'}"])


def declines(case: Case, mode: str, setting: Setting) -> str | None:
    if reason := only({"LSTM", "GRU", "RNN"})(case, mode, setting):
        return reason
    import torch

    if setting.platform == "gpu":
        return None if torch.cuda.is_available() else "this build of torch finds no CUDA device"
    return None if setting.platform == "cpu" else f"no {setting.platform}"


TORCH = Contestant("torch", "torch.nn.LSTM(D, H)", "torch", imports("torch"), declines, build, spins=True)
