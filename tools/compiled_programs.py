"""Record what XLA makes of about fifty programs, to see whether a change to the code changed any of them.

Each program is a network with options of ``unroll``, forward alone or with gradients. Its record is the
multiset of (opcode, shape) in the optimised HLO and the bytes of temporary memory. Two equal records mean
equal speed and memory, without a measurement. Records depend on the versions of jax and jaxlib, on the
device and on the processor, so compare only records made on one machine:

    python tools/compiled_programs.py before.json          # on the old code
    python tools/compiled_programs.py after.json           # on the new code
    python tools/compiled_programs.py --compare before.json after.json
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp

import lstm_jax
from lstm_jax import (
    GRU,
    LSTM,
    MLSTM,
    RNN,
    SLSTM,
    Bidirectional,
    CandidateDropout,
    ConvLSTM,
    FullGateLSTM,
    IndRNN,
    LeakyRNN,
    MinGRU,
    MinLSTM,
    Readout,
    Sharded,
    Stack,
    VariationalDropout,
    WeightDrop,
    Zoneout,
)

T, B, D, H = 12, 4, 6, 8

#: One instruction of HLO text: its shape (an array with its layout, or a tuple) and its opcode.
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?[\w.\-]+ = (\(.*?\)|\S+) ([\w\-]+)\(", re.MULTILINE)


def sharded(cell):
    """The cell on a mesh of one device."""
    return Sharded(cell, jax.make_mesh((1, 1), ("data", "model")))


def programs():
    """``name -> (network, options, sizes)``; sizes are (T, batch, features)."""
    sizes = (T, (B,), (D,))
    lengths, resets, mask = ("lengths",), ("resets",), ("mask",)
    cells = {
        "rnn": RNN(D, H),
        "lstm": LSTM(D, H),
        "gru": GRU(D, H),
        "gru_reset_before": lstm_jax.GRUVariant(D, H, reset_after=False),
        "gru_heads": lstm_jax.GRUVariant(D, H, heads=2),
        "indrnn": IndRNN(D, H),
        "leaky_rnn": LeakyRNN(D, H, noise=0.1),
        "slstm": SLSTM(D, H, heads=2),
        "mlstm": MLSTM(D, H, heads=2),
        "min_gru": MinGRU(D, H),
        "min_lstm": MinLSTM(D, H),
        "full_gate_lstm": FullGateLSTM(D, H),
        "lstm_learned_carry": LSTM(D, H, learn_initial_carry=True, use_bias=False),
        "lstm_bfloat16": LSTM(D, H, dtype=jnp.bfloat16),
        "lstm_peepholes": lstm_jax.LSTMVariant(D, H, peepholes=True),
        "lstm_projection": lstm_jax.LSTMVariant(D, H, proj_size=4),
        "lstm_heads": lstm_jax.LSTMVariant(D, H, heads=2),
        "lstm_coupled": lstm_jax.LSTMVariant(D, H, coupled=True),
        "lstm_clip": lstm_jax.LSTMVariant(D, H, clip=1.0, cell_clip=2.0),
        "lstm_layer_norm": lstm_jax.LSTMVariant(D, H, layer_norm="tfa"),
        "lstm_no_output_gate": lstm_jax.LSTMVariant(D, H, ablation="no_output_gate"),
        "bidirectional_lstm": Bidirectional(LSTM(D, H)),
        "bidirectional_sum": Bidirectional(GRU(D, H), merge="sum"),
        "stack": Stack((LSTM(D, H), GRU(H, H), Readout(H, 3))),
        "stack_residual_skip": Stack((LSTM(D, H), LSTM(H + D, H)), residual=True, skip=True),
        "sharded_lstm": sharded(LSTM(D, H)),
    }
    for name, cell in cells.items():
        yield name, cell, {}, (), sizes
    yield "conv_lstm", ConvLSTM((5, 4, 2), 3, (3, 3)), {}, (), (T, (B,), (5, 4, 2))
    noisy = {
        "variational_dropout": VariationalDropout(LSTM(D, H), inputs=0.2, recurrent=0.3),
        "candidate_dropout": CandidateDropout(LSTM(D, H), 0.25),
        "zoneout": Zoneout(LSTM(D, H), rates=(0.1, 0.2)),
        "weight_drop": WeightDrop(LSTM(D, H), 0.5),
        "stack_dropout": Stack((LSTM(D, H), LSTM(H, H)), dropout=0.5),
        "leaky_rnn_noise": LeakyRNN(D, H, noise=0.1),
    }
    for name, cell in noisy.items():
        yield name, cell, {}, ("key",), sizes
    lstm, both = LSTM(D, H), Bidirectional(LSTM(D, H))
    yield "lstm_lengths", lstm, {}, lengths, sizes
    yield "lstm_mask_resets", lstm, {}, mask + resets, sizes
    yield "lstm_reverse_lengths_resets", lstm, {"reverse": True}, lengths + resets, sizes
    yield "lstm_truncate", lstm, {"truncate": 5}, (), sizes
    yield "lstm_checkpoint", lstm, {"checkpoint": 5}, lengths, sizes
    yield "lstm_checkpoint_sqrt", lstm, {"checkpoint": "sqrt"}, (), sizes
    yield "lstm_return_carries", lstm, {"return_carries": True}, lengths, sizes
    yield "lstm_plain_scan", lstm, {"implementation": "scan"}, lengths + resets, sizes
    yield "lstm_given_carry", lstm, {}, ("carry", *lengths), sizes
    yield "lstm_single_row", lstm, {}, (), (T, (), (D,))
    yield "lstm_two_batch_axes", lstm, {}, lengths, (T, (2, B), (D,))
    yield "min_gru_parallel", MinGRU(D, H), {"implementation": "parallel"}, lengths + resets, sizes
    yield "gru_lengths_resets", GRU(D, H), {}, lengths + resets, sizes
    yield "bidirectional_lengths_resets", both, {}, lengths + resets, sizes
    yield "bidirectional_gru_scan", Bidirectional(GRU(D, H)), {"implementation": "scan"}, lengths, sizes
    # Large enough for chunks of time, and for splits of the batch.
    yield "lstm_chunks", LSTM(64, 64), {}, (), (512, (64,), (64,))
    yield "lstm_batch_splits", LSTM(64, 128), {}, lengths, (24, (64,), (64,))
    yield "bidirectional_batch_splits", Bidirectional(LSTM(64, 128)), {}, (), (24, (64,), (64,))


def lower(network, static, given, sizes, gradients):
    """The lowered program, from shapes alone."""
    T, batch, features = sizes
    spec = jax.ShapeDtypeStruct
    arrays = {
        "params": jax.eval_shape(network.init, jax.random.key(0)),
        "xs": spec((T, *batch, *features), jnp.float32),
    }
    shapes = {
        "lengths": spec(batch, jnp.int32),
        "mask": spec((T, *batch), jnp.bool_),
        "resets": spec((T, *batch), jnp.bool_),
        "key": jax.eval_shape(lambda: jax.random.key(0)),
        "carry": jax.eval_shape(lambda p: network.initial_carry(batch, p), arrays["params"]),
    }
    flags = {name: shapes[name] for name in given}

    def forward(arrays, flags):
        return lstm_jax.unroll(network, arrays["params"], arrays["xs"], **flags, **static)

    def loss(arrays, flags):
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(forward(arrays, flags)))

    return jax.jit(jax.value_and_grad(loss) if gradients else forward).lower(arrays, flags)


def record(compiled):
    """Opcodes with their shapes and how often they occur, and the temporary memory."""
    found = Counter(f"{opcode} {shape}" for shape, opcode in INSTRUCTION.findall(compiled.as_text()))
    return {
        "instructions": dict(sorted(found.items())),
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
    }


def compare(before, after):
    """Print what differs; the number of programs that do."""
    changed = 0
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if old is None or new is None:
            print(f"{name}: only in the {'second' if old is None else 'first'} file")
        elif old != new:
            counts = [Counter(one["instructions"]) for one in (old, new)]
            less, more = (sum((a - b).values()) for a, b in (counts, counts[::-1]))
            print(
                f"{name}: {less} instructions gone, {more} new; temporary bytes "
                f"{old['temporary_bytes']} -> {new['temporary_bytes']}"
            )
        else:
            continue
        changed += 1
    print(f"{changed} of {len(before.keys() | after.keys())} programs differ")
    return changed


def main():
    """Write a record, or compare two."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--compare", action="store_true", help="compare two files instead of writing one")
    parser.add_argument("--only", default="", help="programs whose name contains this")
    parser.add_argument("files", nargs="+", type=Path)
    args = parser.parse_args()
    if args.compare:
        before, after = (json.loads(path.read_text())["programs"] for path in args.files)
        sys.exit(compare(before, after) > 0)
    found = {}
    for name, network, static, given, sizes in programs():
        if args.only not in name:
            continue
        for end, gradients in (("forward", False), ("gradients", True)):
            found[f"{name}/{end}"] = record(lower(network, static, given, sizes, gradients).compile())
    versions = {"jax": jax.__version__, "jaxlib": jax.lib.__version__, "backend": jax.default_backend()}
    args.files[0].write_text(json.dumps({"versions": versions, "programs": found}, indent=1) + "\n")
    print(f"{len(found)} programs in {args.files[0]}")


if __name__ == "__main__":
    main()
