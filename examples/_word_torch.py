"""The word model in PyTorch: compares its losses with those in JAX, step by step, from the same weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from _word_model import Model, Params
from _word_step import Window, first_state, make_step
from training import UserError

from lstm_jax.interop import to_torch


def compare(args: Any, model: Model, params: Params, window_of: Callable[[int], Window], steps: int) -> None:
    """Print the losses in JAX and in PyTorch, without dropout, for a number of steps.

    Both are computed in float64. In float32, rounding errors grow to 0.01 nats within 20 steps at these
    learning rates.
    """
    no_dropout = {name: 0.0 for name in Model.__dataclass_fields__ if "drop" in name}
    model, worst = replace(model, **no_dropout), (0.0, 0)
    print("    step             JAX         PyTorch  difference")
    with jax.enable_x64(True):
        state = jax.tree.map(in_float64, first_state(model, args, params))
        step = jax.jit(make_step(model, args, jax.random.key(0)))
        for number, expected in enumerate(torch_losses(model, state.params, window_of, steps, args), 1):
            state, measured = step(state, window_of(number - 1))
            loss = float(measured["loss"])
            difference = abs(loss - expected)
            print(f"{number:8d}  {loss:14.10f}  {expected:14.10f}  {difference:10.1e}")
            worst = max(worst, (difference, number))
    print(f"Largest difference: {worst[0]:.1e} nats per word, in step {worst[1]}")


def in_float64(array: jax.Array) -> jax.Array:
    return array.astype(np.float64) if array.dtype == np.float32 else array


def torch_losses(
    model: Model, params: Params, window_of: Callable[[int], Window], steps: int, args: Any
) -> Iterator[float]:
    """The mean nats per word in each step of training without dropout, from the given weights."""
    try:
        import torch
    except ImportError:
        raise UserError("--reference torch needs PyTorch: pip install torch") from None

    def tensor(array: Any) -> Any:
        return torch.from_numpy(np.array(array))

    embedding = torch.nn.Parameter(tensor(params["embedding"]))
    bias = torch.nn.Parameter(tensor(params["bias"]))
    softmax = embedding if model.awd else torch.nn.Parameter(tensor(params["softmax"].T))
    layers = torch.nn.ModuleList()
    for cell, weights in zip(model.cells(), params["layers"], strict=True):
        layer = torch.nn.LSTM(cell.input_size, cell.hidden_size, dtype=torch.float64)
        layer.load_state_dict({name: tensor(value) for name, value in to_torch(cell, weights).items()})
        # With two trained biases, their sum would learn twice as fast as one.
        layer.bias_hh_l0.requires_grad_(False)
        layers.append(layer)
    learned = [embedding, bias, *(p for p in layers.parameters() if p.requires_grad)]
    learned += [] if model.awd else [softmax]
    optimizer = torch.optim.SGD(learned, lr=args.lr, weight_decay=args.weight_decay)

    carries: list[Any] = []
    for step in range(steps):
        window = jax.tree.map(np.asarray, window_of(step))
        ids = torch.from_numpy(window.ids[: window.length + 1]).long()
        carries = [None] * len(layers) if window.begins else [tuple(a.detach() for a in c) for c in carries]
        ys = embedding[ids[:-1]]
        for index, layer in enumerate(layers):
            ys, carries[index] = layer(ys, carries[index])
        logits = ys @ softmax.T + bias
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[1:].flatten())
        total = loss * float(window.length) if args.sum_over_time else loss
        total = total + args.alpha * ys.square().mean() + args.beta * (ys[1:] - ys[:-1]).square().mean()
        optimizer.zero_grad()
        total.backward()
        norm = float(torch.nn.utils.get_total_norm([p.grad for p in learned]))
        for p in learned:  # torch.nn.utils.clip_grad_norm_ adds 1e-6 to the norm
            p.grad *= min(1.0, args.clip / norm)
        for group in optimizer.param_groups:
            group["lr"] = float(window.lr)
        optimizer.step()
        yield loss.item()
