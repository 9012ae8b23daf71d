"""Rows of the table of ``cell_cases.py``: variants, regularisers and the other cells."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import oracle
import oracle_conv
import oracle_leaky
import oracle_lstm
import oracle_minimal
import oracle_newer
from cell_case import CellCase, D, H

from lstm_jax import (
    LSTM,
    MLSTM,
    RNN,
    SLSTM,
    Bidirectional,
    CandidateDropout,
    ConvLSTM,
    FullGateLSTM,
    GRUVariant,
    IndRNN,
    LeakyRNN,
    LSTMVariant,
    MinGRU,
    MinLSTM,
    Stack,
    VariationalDropout,
    WeightDrop,
    Zoneout,
)

# --- the LSTM's options, and heads --------------------------------------------------------------


def _lstm(name, options, *, H=H, P=None, variant=True, **equations):
    """A row for an LSTM with options; ``equations`` are the options of the oracle."""
    return CellCase(
        f"lstm_{name}",
        partial(LSTMVariant, D, H, proj_size=P, **options),
        oracle.Cell(partial(oracle_lstm.lstm, **equations), oracle_lstm.zeros_of((P or H, H))),
        variant=variant,
    )


TFA, HASTE = {"norm": "carried", "epsilon": 1e-3}, {"norm": "output", "epsilon": 1e-5}
LSTMS = (
    _lstm("peepholes", {"peepholes": True}, variant=False),
    _lstm("projected", {}, H=4, P=2, variant=False),
    _lstm("coupled", {"coupled": True, "peepholes": True}, coupled=True, variant=False),
    _lstm("heads", {"heads": 2}, H=4, variant=False),
    _lstm("norm_tfa", {"layer_norm": "tfa"}, variant=False, **TFA),
    _lstm("norm_haste", {"layer_norm": "haste"}, **HASTE),
    _lstm("clipped", {"clip": 0.5, "cell_clip": 0.25}, clip=0.5, cell_clip=0.25),
    *(
        _lstm(ablation, {"ablation": ablation, "peepholes": True}, without=name)
        for name, ablation in (
            ("NIG", "no_input_gate"),
            ("NFG", "no_forget_gate"),
            ("NOG", "no_output_gate"),
            ("NIAF", "no_input_activation"),
            ("NOAF", "no_output_activation"),
        )
    ),
    _lstm(
        "all_options",
        {
            "peepholes": True,
            "coupled": True,
            "ablation": "no_output_activation",
            "heads": 2,
            "clip": 1.0,
            "cell_clip": 0.75,
            "layer_norm": "tfa",
            "use_bias": False,
        },
        H=4,
        P=2,
        coupled=True,
        without="NOAF",
        clip=1.0,
        cell_clip=0.75,
        **TFA,
    ),
    _lstm(
        "many_options",
        {"peepholes": True, "ablation": "no_forget_gate", "heads": 2, "layer_norm": "haste"},
        H=4,
        P=4,
        without="NFG",
        **HASTE,
    ),
)

HEADS = (
    CellCase(
        "full_gate_lstm",
        partial(FullGateLSTM, D, H),
        oracle.Cell(oracle_lstm.full_gate_lstm, oracle_lstm.zeros_of((H, H, 3 * H))),
    ),
    CellCase(
        "rnn_heads",
        partial(RNN, D, 4, heads=2),
        oracle.Cell(oracle_lstm.with_heads(oracle.rnn, 1), lambda params: np.zeros(4)),
        variant=True,
    ),
    CellCase(
        "gru_heads",
        partial(GRUVariant, D, 4, heads=2),
        oracle.Cell(oracle_lstm.with_heads(oracle.gru_reset_after, 3), lambda params: np.zeros(4)),
        variant=True,
    ),
    CellCase(
        "gru_reset_before_heads",
        partial(GRUVariant, D, 4, heads=2, reset_after=False),
        oracle.Cell(oracle_lstm.with_heads(oracle.gru_reset_before, 3), lambda params: np.zeros(4)),
        "scan",
        variant=True,
    ),
)

# --- regularisers without a key -------------------------------------------------------------------


def _zoneout(**dtypes):
    return Zoneout(LSTMVariant(D, H, peepholes=True, **dtypes), rates=(0.25, 0.5))


def _regularised(**dtypes):
    inner = VariationalDropout(CandidateDropout(LSTM(D, H, **dtypes), 0.5), inputs=0.5, recurrent=0.5)
    return WeightDrop(Zoneout(inner, rates=(0.0, 0.5)), 0.5)


REGULARISED = (
    CellCase(
        "zoneout",
        _zoneout,
        oracle.Cell(oracle_lstm.zoneout(oracle_lstm.lstm, (0.25, 0.5)), oracle_lstm.zeros_of((H, H))),
    ),
    CellCase(
        "regularised",
        _regularised,
        oracle.Cell(oracle_lstm.zoneout(oracle_lstm.lstm, (0.0, 0.5)), oracle_lstm.zeros_of((H, H))),
        variant=True,
    ),
    CellCase(
        "zoneout_projected",
        lambda **dtypes: Zoneout(LSTMVariant(D, 4, proj_size=H, **dtypes), rates=0.5),
        oracle.Cell(oracle_lstm.zoneout(oracle_lstm.lstm, (0.5, 0.5)), oracle_lstm.zeros_of((H, 4))),
        "scan",
        variant=True,
    ),
)

# --- IndRNN, sLSTM, mLSTM -----------------------------------------------------------------------


def _normalised(carry):
    """The normaliser of an sLSTM is 1 or more after the first step."""
    h, c, n, m = carry
    return h, c, 1 + np.abs(n), m


NEWER = (
    CellCase("indrnn", partial(IndRNN, D, H), oracle.Cell(oracle_newer.indrnn, oracle.zeros)),
    CellCase(
        "slstm",
        partial(SLSTM, D, 4, heads=2, learn_initial_carry=True),
        oracle.Cell(oracle_newer.slstm, oracle_newer.slstm_initial),
        carry=_normalised,
    ),
    CellCase(
        "slstm_exp",
        partial(SLSTM, D, H, forget_gate="exp", use_bias=False),
        oracle.Cell(partial(oracle_newer.slstm, forget="exp"), oracle_newer.slstm_initial),
        variant=True,
        carry=_normalised,
    ),
    CellCase(
        "mlstm",
        partial(MLSTM, D, 4, heads=2),
        oracle.Cell(oracle_newer.mlstm, partial(oracle_newer.mlstm_initial, heads=2)),
    ),
    CellCase(
        "mlstm_exp",
        partial(MLSTM, D, H, forget_gate="exp", use_bias=False),
        oracle.Cell(partial(oracle_newer.mlstm, forget="exp"), partial(oracle_newer.mlstm_initial, heads=1)),
        variant=True,
    ),
)

MINIMAL = (
    CellCase("min_gru", partial(MinGRU, D, H), oracle_minimal.MIN_GRU),
    CellCase(
        "min_gru_learned",
        partial(MinGRU, D, H, use_bias=False, learn_initial_carry=True),
        oracle_minimal.MIN_GRU_LEARNED,
        variant=True,
    ),
    CellCase(
        "min_lstm",
        partial(MinLSTM, D, H, learn_initial_carry=True),
        oracle_minimal.MIN_LSTM_LEARNED,
    ),
    CellCase(
        "min_lstm_no_bias",
        partial(MinLSTM, D, H, use_bias=False),
        oracle_minimal.MIN_LSTM,
        variant=True,
    ),
    CellCase(
        "min_both_ways",
        lambda **dtypes: Stack((Bidirectional(MinLSTM(D, H, **dtypes)), MinGRU(2 * H, H, **dtypes))),
        oracle.Stack((oracle.Bidirectional(oracle_minimal.MIN_LSTM), oracle_minimal.MIN_GRU)),
    ),
)

# --- convolutional and leaky cells ---------------------------------------------------------------


def _conv_oracle(*shape, **options):
    return oracle.Cell(partial(oracle_conv.conv_lstm, **options), oracle_conv.zeros(*shape))


def _conv_stack(**dtypes):
    lower = Bidirectional(ConvLSTM((4, 2), H, (3,), **dtypes))
    upper = ConvLSTM((4, 2 * H + 2), 2 * H, (2,), learn_initial_carry=True, **dtypes)
    return Stack((lower, upper), residual=True, skip=True)


CONV = (
    CellCase("conv_lstm", partial(ConvLSTM, (5, D), H, (3,)), _conv_oracle(5, H), event=(5, D)),
    CellCase(
        "conv_lstm_2d",
        partial(ConvLSTM, (5, 4, D), H, (2, 3), strides=(2, 1), padding="VALID", use_bias=False),
        _conv_oracle(2, 2, H, strides=(2, 1), padding="VALID"),
        variant=True,
        event=(5, 4, D),
    ),
    CellCase(
        "conv_lstm_2d_same",
        partial(ConvLSTM, (5, 4, D), H, (4, 2), strides=(2, 3)),
        _conv_oracle(3, 2, H, strides=(2, 3)),
        variant=True,
        event=(5, 4, D),
    ),
    CellCase(
        "conv_lstm_3d",
        partial(ConvLSTM, (2, 3, 2, D), H, (2, 3, 1)),
        _conv_oracle(2, 3, 2, H),
        variant=True,
        event=(2, 3, 2, D),
    ),
    CellCase(
        "conv_lstm_stack",
        _conv_stack,
        oracle.Stack(
            (
                oracle.Bidirectional(_conv_oracle(4, H)),
                oracle.Cell(oracle_conv.conv_lstm, oracle_conv.learned(4)),
            ),
            residual=True,
            skip=True,
        ),
        variant=True,
        event=(4, 2),
    ),
)

LEAKY = (
    CellCase(
        "leaky_rnn",
        # Random log_tau is about 0, so tau is about dt.
        partial(LeakyRNN, D, H, tau=2.0, dt=1.0, learn_tau=True, integration="exponential"),
        oracle.Cell(partial(oracle_leaky.current, dt=1.0), oracle_leaky.current_initial()),
    ),
    CellCase(
        "leaky_rnn_euler",
        partial(LeakyRNN, D, H, tau=50, dt=30, activation=jnp.cos, learn_initial_carry=True),
        oracle.Cell(
            partial(oracle_leaky.current, tau=50, dt=30, f=np.cos), oracle_leaky.current_initial(np.cos)
        ),
        variant=True,
    ),
    CellCase(
        "leaky_rnn_rate",
        partial(LeakyRNN, D, H, form="rate", use_bias=False),
        oracle.Cell(oracle_leaky.rate, oracle_leaky.rate_initial),
        variant=True,
    ),
    CellCase(
        "leaky_rnn_rate_exponential",
        partial(LeakyRNN, D, H, form="rate", integration="exponential", dt=150.0, learn_initial_carry=True),
        oracle.Cell(
            partial(oracle_leaky.rate, integration="exponential", dt=150.0), oracle_leaky.rate_initial
        ),
        variant=True,
    ),
)

ROWS = (*LSTMS, *HEADS, *REGULARISED, *NEWER, *MINIMAL, *CONV, *LEAKY)
