"""Break the core in one place at a time; for each break, some test has to fail.

Each mutant replaces one piece of text in one file of a copy of the repository and runs the tests that
guard it. A mutant that survives means that the tests have lost something:

    python tools/mutants.py             # all of them, two at a time: about a quarter of an hour
    python tools/mutants.py --only gru  # those whose name contains this

When the code around a mutant changes, change its text here as well: a text that does not occur exactly
once in its file is an error.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
FOLDERS = ("lstm_jax", "tests", "benchmarks", "examples", "docs")
COPIED = (*FOLDERS, "README.md", "pyproject.toml", "CHANGELOG.md")

ORACLE = "tests/unrolling/test_oracle.py"
CONTRACT = "tests/unrolling/test_time_contract.py"
TRANSFORMS = "tests/unrolling/test_transforms.py"


class Mutant(NamedTuple):
    """One break: a file, its text before and after, and arguments of pytest for the tests that notice."""

    name: str
    path: str
    before: str
    after: str
    tests: str


MUTANTS = (
    # The cells' equations.
    Mutant(
        "lstm_forget_gate_reads_new_state",
        "lstm_jax/cells/lstm.py",
        "    c = f * c + i * g\n    h = o * jnp.tanh(c)\n    return h, c",
        "    c = f * c + (1 - f) * g\n    h = o * jnp.tanh(c)\n    return h, c",
        f"{ORACLE} -k lstm",
    ),
    Mutant(
        "lstm_gate_order",
        "lstm_jax/cells/lstm.py",
        "    i, f, g, o = jnp.split(jnp.tanh(",
        "    f, i, g, o = jnp.split(jnp.tanh(",
        f"{ORACLE} -k lstm",
    ),
    Mutant(
        "lstm_output_gate_slope",
        "lstm_jax/cells/lstm.py",
        "tanh_c * o * (1 - o) * dz_o",
        "tanh_c * o * dz_o",
        f"{TRANSFORMS} -k 'finite and lstm'",
    ),
    Mutant(
        "lstm_cell_state_tangent",
        "lstm_jax/cells/lstm.py",
        "(from_o + o * (1 - tanh_c * tanh_c) * dc_t, dc_t)",
        "(from_o + o * dc_t, dc_t)",
        f"{TRANSFORMS} -k 'finite and lstm'",
    ),
    Mutant(
        "lstm_forget_bias",
        "lstm_jax/cells/lstm.py",
        "bias.at[H : 2 * H].add(self.forget_bias)",
        "bias.at[:H].add(self.forget_bias)",
        "tests/cells/test_init.py",
    ),
    Mutant(
        "lstm_peephole_of_output_gate",
        "lstm_jax/cells/lstm_variant.py",
        'z_o = preactivation("o", c_t)',
        'z_o = preactivation("o", c)',
        f"{ORACLE} -k peepholes",
    ),
    Mutant(
        "lstm_coupled_gate",
        "lstm_jax/cells/lstm_variant.py",
        "f = 1 - i if cell.coupled",
        "f = i if cell.coupled",
        f"{ORACLE} -k coupled",
    ),
    Mutant(
        "gru_update_sign",
        "lstm_jax/cells/gru.py",
        "return (1 - z) * n + z * h.astype(z.dtype)",
        "return z * n + (1 - z) * h.astype(z.dtype)",
        f"{ORACLE} -k gru",
    ),
    Mutant(
        "gru_second_bias",
        "lstm_jax/cells/gru.py",
        "jnp.zeros_like(b_n) if bias_hn is None else bias_hn",
        "jnp.zeros_like(b_n)",
        f"{ORACLE} -k gru",
    ),
    Mutant(
        "gru_reset_before_product",
        "lstm_jax/cells/gru_variant.py",
        "head_matmul(r * carry.astype(r.dtype), w_n",
        "head_matmul(carry.astype(r.dtype), w_n",
        f"{ORACLE} -k reset_before",
    ),
    Mutant(
        "rnn_bias",
        "lstm_jax/cells/rnn.py",
        "        return add_bias(z, params.bias)",
        "        return z",
        f"{ORACLE} -k rnn",
    ),
    Mutant(
        "slstm_normaliser",
        "lstm_jax/cells/slstm.py",
        "n_t = f * n.astype(dtype) + i",
        "n_t = n.astype(dtype) + i",
        f"{ORACLE} -k slstm",
    ),
    Mutant(
        "mlstm_key_scale",
        "lstm_jax/cells/mlstm.py",
        "return (q, k / math.sqrt(shape[-1]), v, o",
        "return (q, k / shape[-1], v, o",
        f"{ORACLE} -k mlstm",
    ),
    Mutant(
        "mlstm_chunks_ignore_restarts",
        "lstm_jax/cells/mlstm.py",
        "        reads = reads & (segment[:, None] == segment[None])\n",
        "",
        "tests/unrolling/test_chunkwise.py",
    ),
    Mutant(
        "mlstm_chunks_read_later_steps",
        "lstm_jax/cells/mlstm.py",
        "reads = (step[:, None] >= step[None])",
        "reads = (step[:, None] <= step[None])",
        "tests/unrolling/test_chunkwise.py",
    ),
    Mutant(
        "filled_weights_not_guarded",
        "lstm_jax/unrolling/api.py",
        "arrays = unfilled(params), xs",
        "arrays = params, xs",
        "tests/test_fills.py -k few",
    ),
    # The time contract.
    Mutant(
        "invalid_step_changes_carry",
        "lstm_jax/unrolling/steps.py",
        "return select(flag.valid, new, held), mask_out",
        "return new, mask_out",
        f"{CONTRACT} -k lstm",
    ),
    Mutant(
        "invalid_output_not_zero",
        "lstm_jax/unrolling/steps.py",
        "select(flag.valid, new, held), mask_out(flag.valid, y)",
        "select(flag.valid, new, held), y",
        f"{CONTRACT} -k lstm",
    ),
    Mutant(
        "reset_at_invalid_step",
        "lstm_jax/unrolling/steps.py",
        "starts = resets if valid is None else resets & valid",
        "starts = resets",
        "tests/unrolling/test_associative.py",
    ),
    Mutant(
        "reset_in_reverse_not_shifted",
        "lstm_jax/unrolling/steps.py",
        "    if not reverse or resets.shape[0] == 0:",
        "    if True:",
        f"{CONTRACT} -k lstm",
    ),
    Mutant(
        "padding_reaches_gradients",
        "lstm_jax/unrolling/run.py",
        "        xs = mask_out(valid, xs)",
        "        pass",
        f"{CONTRACT} -k lstm",
    ),
    Mutant(
        "length_off_by_one",
        "lstm_jax/unrolling/steps.py",
        "(T, *batch), 0) < lengths[None]",
        "(T, *batch), 0) <= lengths[None]",
        f"{CONTRACT} -k lstm",
    ),
    Mutant(
        "truncation_off_by_one",
        "lstm_jax/unrolling/steps.py",
        "return ((start + t) % period == 0) & (start + t > 0)",
        "return ((start + t + 1) % period == 0) & (start + t > 0)",
        f"{CONTRACT} {TRANSFORMS} -k truncat",
    ),
    Mutant(
        "window_remainder_order",
        "lstm_jax/unrolling/windows.py",
        "    if rest and reverse:\n",
        "    if rest and not reverse and False:\n",
        f"{CONTRACT} -k lstm",
    ),
    Mutant(
        "noise_by_relative_time",
        "lstm_jax/unrolling/run.py",
        "time=steps.start + jnp.arange(T, dtype=jnp.int32)",
        "time=jnp.arange(T, dtype=jnp.int32)",
        "tests/regularizers/test_wrapper.py",
    ),
    # The fused scan.
    Mutant(
        "fused_restart_tangent",
        "lstm_jax/unrolling/fused_scan.py",
        "        target = dinitial if dstored is None else dstored\n",
        "        target = jax.tree.map(jnp.zeros_like, dinitial) if dstored is None else dstored\n",
        f"{CONTRACT} -k learned",
    ),
    Mutant(
        "fused_truncation_of_tangents",
        "lstm_jax/unrolling/fused_scan.py",
        "begin_step(flag, target, dcarry, stop=jnp.zeros_like)",
        "begin_step(flag, target, dcarry, stop=lambda a: a)",
        f"{CONTRACT} {TRANSFORMS} -k truncat",
    ),
    Mutant(
        "fused_second_derivative",
        "lstm_jax/unrolling/fused_scan.py",
        "dzs = _add(es, jax.jvp(recur, (_zeros(dstarts),), (dstarts,))[1])",
        "dzs = es",
        TRANSFORMS,
    ),
    Mutant(
        "fused_takes_what_is_not_affine",
        "lstm_jax/unrolling/fused_scan.py",
        "    if not _is_affine(recur, params, u, carry):",
        "    if False:",
        f"tests/unrolling/test_explain.py {TRANSFORMS} {CONTRACT}",
    ),
    Mutant(
        "associative_restart",
        "lstm_jax/unrolling/associative.py",
        "starts, read = starts | restart, jnp.where",
        "read = jnp.where",
        "tests/unrolling/test_associative.py",
    ),
    # Networks, regularisers, carries.
    Mutant(
        "stack_dropout_scale",
        "lstm_jax/networks/stack.py",
        "return jnp.where(kept, ys / jnp.asarray(keep, ys.dtype), jnp.zeros((), ys.dtype))",
        "return jnp.where(kept, ys, jnp.zeros((), ys.dtype))",
        "tests/regularizers tests/networks -k dropout",
    ),
    Mutant(
        "bidirectional_backward_not_flipped_back",
        "lstm_jax/networks/bidirectional.py",
        "flip(result.ys[i], reverse), flip(carries",
        "result.ys[i], flip(carries",
        f"{ORACLE} -k bidirectional",
    ),
    Mutant(
        "zoneout_expectation",
        "lstm_jax/regularizers/zoneout.py",
        "return (rate * old + (1 - rate) * new).astype(new.dtype)",
        "return new",
        f"{ORACLE} -k zoneout",
    ),
    Mutant(
        "low_precision_carry",
        "lstm_jax/_types.py",
        "    return np.promote_types(np.dtype(dtype), np.float32)",
        "    return np.dtype(dtype)",
        f"{CONTRACT} {ORACLE} -k 'float16 or bfloat16 or low'",
    ),
    Mutant(
        "sharded_units_not_gathered",
        "lstm_jax/sharding/cell.py",
        "h = jax.lax.all_gather(h, self.axis, axis=h.ndim - 1, tiled=True)",
        "h = jax.lax.all_gather(h[::-1], self.axis, axis=h.ndim - 1, tiled=True)",
        "tests/sharding/test_network.py",
    ),
)


def survives(mutant: Mutant) -> str | None:
    """Why the mutant counts as alive, or None where a test failed."""
    with tempfile.TemporaryDirectory() as folder:
        for name in COPIED:
            source = ROOT / name
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, Path(folder, name))
        path = Path(folder, mutant.path)
        text = path.read_text()
        if text.count(mutant.before) != 1:
            return f"its text occurs {text.count(mutant.before)} times in {mutant.path}"
        path.write_text(text.replace(mutant.before, mutant.after))
        command = (
            f"{sys.executable} -m pytest -x -q -p no:cacheprovider -m 'not peers and not slow' {mutant.tests}"
        )
        environment = os.environ | {"PYTHONPATH": folder, "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(
            command, shell=True, cwd=folder, env=environment, capture_output=True, text=True
        )
        if done.returncode == 1 and " failed" in done.stdout:
            return None
        last = done.stdout.strip().splitlines()[-1:] or [done.stderr[-300:]]
        return f"pytest ended with {done.returncode}: {last[0]}"


def main() -> None:
    """Run the mutants; exit with 1 if one survives."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="mutants whose name contains this")
    parser.add_argument("--jobs", type=int, default=2, help="how many run at a time")
    args = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if args.only in mutant.name]
    alive = 0
    with ThreadPoolExecutor(args.jobs) as pool:
        for mutant, reason in zip(chosen, pool.map(survives, chosen), strict=True):
            print(f"{mutant.name}: {'caught' if reason is None else 'SURVIVED, ' + reason}", flush=True)
            alive += reason is not None
    print(f"{len(chosen) - alive} of {len(chosen)} mutants caught")
    sys.exit(alive > 0)


if __name__ == "__main__":
    main()
