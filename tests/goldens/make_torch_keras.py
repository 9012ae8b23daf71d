"""Writes torch.safetensors and keras.safetensors: weights, inputs and outputs of the real libraries.

    KERAS_BACKEND=jax python tests/goldens/make_torch_keras.py

Entries are named case/weights/name, case/xs and case/ys, time-major. The metadata holds the versions
that wrote them, and for each case the arguments of its conversion.
"""

import json
import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import numpy as np
import safetensors.numpy

HERE = Path(__file__).parent
T, B, D, H = 4, 2, 3, 4


def torch_cases():
    """Name, module, options of from_torch."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    yield "rnn_relu", nn.RNN(D, H, nonlinearity="relu"), {"activation": "relu"}
    yield "lstm", nn.LSTM(D, H), {}
    yield "lstm_projected_stack_both", nn.LSTMVariant(D, H, 2, bidirectional=True, proj_size=2), {}
    yield "gru_both", nn.GRU(D, H, bidirectional=True), {}
    yield "gru_stack_without_bias", nn.GRU(D, H, 2, bias=False), {}
    yield "rnn_cell", nn.RNNCell(D, H), {"activation": "tanh"}
    yield "lstm_cell", nn.LSTMCell(D, H), {}
    yield "gru_cell", nn.GRUCell(D, H), {}


def run_torch(module, xs):
    import torch

    xs = torch.from_numpy(xs)
    with torch.no_grad():
        if not isinstance(module, torch.nn.RNNCellBase):
            return module(xs)[0].numpy()
        ys, state = [], None
        for x in xs:
            state = module(x, state)
            ys.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(ys).numpy()


def keras_cases():
    """Name, layers, shape of one input, options of from_keras."""
    from keras import layers

    def all_of(layer, *arguments, **options):
        return layer(*arguments, return_sequences=True, **options)

    def both(layer, mode):
        return layers.Bidirectional(layer, merge_mode=mode)

    vector = (D,)
    yield "simple_rnn", [all_of(layers.SimpleRNN, H)], vector, {"activation": "tanh"}
    yield "lstm", [all_of(layers.LSTM, H)], vector, {}
    yield "gru", [all_of(layers.GRU, H)], vector, {}
    yield "gru_reset_before", [all_of(layers.GRU, H, reset_after=False)], vector, {}
    bare = all_of(layers.GRU, H, use_bias=False)
    yield "gru_without_bias", [bare], vector, {"reset_after": True}
    yield "both", [both(all_of(layers.GRU, H), "ave")], vector, {"merge": "ave"}
    stack = [both(all_of(layers.LSTM, H), "concat"), all_of(layers.GRU, 2)]
    yield "stack", stack, vector, {"merge": "concat"}
    conv = all_of(layers.ConvLSTM1D, 2, 3, strides=2)
    yield "conv_lstm", [conv], (7, 2), {"input_shape": [7, 2], "strides": [2], "padding": "valid"}


def run_keras(layers, xs):
    ys = np.swapaxes(xs, 0, 1)
    for layer in layers:
        ys = np.asarray(layer(ys))
    return np.swapaxes(ys, 0, 1)


def write(peer, version, arrays, options):
    metadata = {peer: version, "numpy": np.__version__, "options": json.dumps(options)}
    arrays = {name: np.array(array, order="C") for name, array in arrays.items()}
    path = HERE / f"{peer}.safetensors"
    safetensors.numpy.save_file(arrays, path, metadata)
    print(path.name, path.stat().st_size, "bytes")


def main():
    import keras
    import torch

    rng = np.random.default_rng(0)

    def normal(shape):
        return rng.normal(size=shape).astype(np.float32)

    arrays, options = {}, {}
    for name, module, options[name] in torch_cases():
        arrays |= {f"{name}/weights/{key}": value.numpy() for key, value in module.state_dict().items()}
        arrays[f"{name}/xs"] = xs = normal((T, B, D))
        arrays[f"{name}/ys"] = run_torch(module, xs)
    write("torch", torch.__version__, arrays, options)

    arrays, options = {}, {}
    for name, layers, shape, options[name] in keras_cases():
        arrays[f"{name}/xs"] = xs = normal((T, B, *shape))
        run_keras(layers, xs)  # which builds them
        for index, layer in enumerate(layers):
            layer.set_weights([0.5 * normal(w.shape) for w in layer.get_weights()])
            own = {f"{name}/weights/{index}/{at}": w for at, w in enumerate(layer.get_weights())}
            arrays |= own
        arrays[f"{name}/ys"] = run_keras(layers, xs)
    write("keras", keras.__version__, arrays, options)


if __name__ == "__main__":
    main()
