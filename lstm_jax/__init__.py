"""Recurrent networks in JAX as pure functions.

A cell is a frozen set of hyperparameters; its parameters are a ``NamedTuple`` of arrays; its
mathematics is a pure function that goes straight into :func:`jax.lax.scan`:

>>> import jax, jax.numpy as jnp, lstm_jax
>>> cell = lstm_jax.LSTM(input_size=3, hidden_size=2)
>>> params = cell.init(jax.random.key(0))
>>> xs = jnp.ones((5, 4, 3))  # 5 steps of 4 rows of 3 features
>>> (h, c), ys = lstm_jax.unroll(cell, params, xs, lengths=[5, 3, 1, 0])
>>> ys.shape
(5, 4, 2)

Where to look: ``cells`` has the equations, ``unrolling`` the loop over time, ``networks`` stacks and both
directions, ``regularizers`` cells that wrap cells, ``sharding`` networks over devices.
"""

from lstm_jax.cells._named import flatten_params as flatten_params, unflatten_params as unflatten_params
from lstm_jax.cells._peer_init import keras_init as keras_init, torch_init as torch_init
from lstm_jax.cells._protocols import (
    Cell as Cell,
    NoisyCell as NoisyCell,
    ParallelCell as ParallelCell,
    SplitCell as SplitCell,
)
from lstm_jax.cells.conv_lstm import (
    ConvLSTM as ConvLSTM,
    ConvLSTMParams as ConvLSTMParams,
    conv_lstm_step as conv_lstm_step,
)
from lstm_jax.cells.full_gate_lstm import (
    FullGateLSTM as FullGateLSTM,
    FullGateLSTMParams as FullGateLSTMParams,
    full_gate_lstm_step as full_gate_lstm_step,
    greff2017 as greff2017,
)
from lstm_jax.cells.gru import GRU as GRU, GRUGates as GRUGates, GRUParams as GRUParams, gru_step as gru_step
from lstm_jax.cells.gru_variant import GRUVariant as GRUVariant, GRUVariantParams as GRUVariantParams
from lstm_jax.cells.indrnn import IndRNN as IndRNN, IndRNNParams as IndRNNParams, indrnn_step as indrnn_step
from lstm_jax.cells.leaky_rnn import (
    LeakyRNN as LeakyRNN,
    LeakyRNNParams as LeakyRNNParams,
    leaky_rnn_step as leaky_rnn_step,
)
from lstm_jax.cells.lstm import (
    LSTM as LSTM,
    LSTMGates as LSTMGates,
    LSTMParams as LSTMParams,
    lstm_gates as lstm_gates,
    lstm_step as lstm_step,
)
from lstm_jax.cells.lstm_variant import (
    LSTMNorm as LSTMNorm,
    LSTMVariant as LSTMVariant,
    LSTMVariantParams as LSTMVariantParams,
)
from lstm_jax.cells.minimal import (
    MinGRU as MinGRU,
    MinGRUParams as MinGRUParams,
    MinLSTM as MinLSTM,
    MinLSTMParams as MinLSTMParams,
    min_gru_step as min_gru_step,
    min_lstm_step as min_lstm_step,
)
from lstm_jax.cells.mlstm import MLSTM as MLSTM, MLSTMParams as MLSTMParams, mlstm_step as mlstm_step
from lstm_jax.cells.readout import Readout as Readout, ReadoutParams as ReadoutParams
from lstm_jax.cells.rnn import RNN as RNN, RNNParams as RNNParams, rnn_step as rnn_step
from lstm_jax.cells.slstm import SLSTM as SLSTM, SLSTMParams as SLSTMParams, slstm_step as slstm_step
from lstm_jax.networks.bidirectional import (
    Bidirectional as Bidirectional,
    BidirectionalParams as BidirectionalParams,
)
from lstm_jax.networks.stack import Stack as Stack
from lstm_jax.regularizers.dropout import (
    CandidateDropout as CandidateDropout,
    VariationalDropout as VariationalDropout,
)
from lstm_jax.regularizers.penalties import (
    activation_regularization as activation_regularization,
    temporal_activation_regularization as temporal_activation_regularization,
)
from lstm_jax.regularizers.weight_drop import WeightDrop as WeightDrop
from lstm_jax.regularizers.zoneout import Zoneout as Zoneout
from lstm_jax.sharding.cell import Sharded as Sharded
from lstm_jax.sharding.network import (
    Communication as Communication,
    communication as communication,
    shard as shard,
    shardings as shardings,
)
from lstm_jax.unrolling.api import (
    Plan as Plan,
    explain as explain,
    reset_carry as reset_carry,
    unroll as unroll,
)
from lstm_jax.unrolling.registry import (
    Implementation as Implementation,
    LayerPlan as LayerPlan,
    implementations as implementations,
)

__version__ = "0.2.0"
