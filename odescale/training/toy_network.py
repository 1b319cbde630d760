r"""The toy network of the one-third law: a linear layer and a softmax, distilled from a random teacher at low temperature.

q = softmax(W* x/T),   p = softmax(W x),   minimise KL(q || p) over W from zero on fresh x,   |x|^2 = number of inputs
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from odescale.clock import Clock
from odescale.errors import InputError, SolveError
from odescale.systems.peaked import Peaked, peaked
from odescale.training.loop import check_seeds, require_positive
from odescale.training.sgd import cores, seed_key

CLASSES, INPUTS, BATCH, STEPS = 128, 32, 1024, 2000
"""Sizes of the published experiment."""


class ToyRun(eqx.Module):
    r"""Seeds s, record steps n of the toy network.

    - `step`, `t` (n,): optimiser steps and t = step/`clock.steps_per_unit` (`inputs` steps for SGD, one for Adam).
    - `loss` (s, n): KL(q || p) on held-out inputs, the same at all steps of a seed; `loss_stderr` its standard error.
    - `row_norm` (s, n): s = sqrt(tr(P W W^T)/(K-1)), the root mean square norm of the centred rows, which is the logit scale
      on unit inputs; `overlap` (s, n): D = tr(P W w*^T)/(K-1) with the teacher's rows w* = sqrt(3) W* of mean square norm 1;
      `logit_scale` (s, n): standard deviation over classes of W x, root mean square over held-out inputs.
    - `config`, `meta`: what was trained; machine and seconds.
    """

    step: Int[np.ndarray, " n"]
    t: Float[np.ndarray, " n"]
    seeds: Int[np.ndarray, " s"]
    loss: Float[np.ndarray, "s n"]
    loss_stderr: Float[np.ndarray, "s n"]
    row_norm: Float[np.ndarray, "s n"]
    overlap: Float[np.ndarray, "s n"]
    logit_scale: Float[np.ndarray, "s n"]
    clock: Clock
    config: dict[str, Any] = eqx.field(static=True)
    meta: dict[str, Any] = eqx.field(static=True)

    def mean(self, name: str) -> Float[np.ndarray, " n"]:
        """Mean over seeds of one of the measured quantities."""
        return getattr(self, name).mean(axis=0)

    def stderr(self, name: str) -> Float[np.ndarray, " n"]:
        """Standard error of `mean` from the scatter of the seeds (each with its own teacher and test set); 2 or more."""
        if len(self.seeds) < 2:
            raise InputError("seeds", expected="at least two", got=len(self.seeds), remedy="train more seeds")
        return getattr(self, name).std(axis=0, ddof=1) / np.sqrt(len(self.seeds))


class _Measured(NamedTuple):
    loss: Array
    loss_stderr: Array
    row_norm: Array
    overlap: Array
    logit_scale: Array


def rms_normalised(key: Array, shape: tuple[int, ...], dtype: Any) -> Float[Array, "... d"]:
    """Gaussian vectors scaled to |x|^2 = d each, so that components have mean square one."""
    x = jax.random.normal(key, shape, dtype)
    return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True))


def divergence(layer: eqx.nn.Linear, teacher: eqx.nn.Linear, temperature: Array, x: Array) -> Float[Array, " B"]:
    """KL(softmax(W* x/T) || softmax(W x)) of every input."""
    log_q = jax.nn.log_softmax(jax.vmap(teacher)(x) / temperature)
    log_p = jax.nn.log_softmax(jax.vmap(layer)(x))
    return jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1)


def _optimiser(name: str, rate: Any) -> optax.GradientTransformation:
    return optax.adam(rate) if name == "adam" else optax.sgd(rate)


@eqx.filter_jit
def _train_one(
    key: Array,
    temperature: Float[Array, ""],
    rate: Float[Array, ""],
    records: Int[Array, " n"],
    sizes: tuple[int, int, int, int],
    optimizer: str,
) -> _Measured:
    classes, inputs, batch, test = sizes
    dtype = rate.dtype
    teacher_key, test_key, data_key = jax.random.split(key, 3)
    teacher = eqx.nn.Linear(inputs, classes, use_bias=False, key=teacher_key, dtype=dtype)  # U(-1/sqrt d, 1/sqrt d)
    layer = eqx.tree_at(lambda one: one.weight, teacher, jnp.zeros_like(teacher.weight))
    rule = _optimiser(optimizer, rate)
    held_out = rms_normalised(test_key, (test, inputs), dtype)

    def body(step: Array, carry: tuple) -> tuple:
        layer, memory = carry
        x = rms_normalised(jax.random.fold_in(data_key, step), (batch, inputs), dtype)
        gradient = jax.grad(lambda one: jnp.mean(divergence(one, teacher, temperature, x)))(layer)
        updates, memory = rule.update(gradient, memory)
        return optax.apply_updates(layer, updates), memory

    def measure(layer: eqx.nn.Linear) -> _Measured:
        # Summed in double precision where it is on: late losses are small next to the logits.
        loss = divergence(layer, teacher, temperature, held_out).astype(float)
        W = (layer.weight - layer.weight.mean(axis=0)).astype(float)
        target = np.sqrt(3) * (teacher.weight - teacher.weight.mean(axis=0)).astype(float)
        logits = jax.vmap(layer)(held_out).astype(float)
        return _Measured(
            loss.mean(),
            loss.std() / np.sqrt(test),
            jnp.sqrt(jnp.sum(W**2) / (classes - 1)),
            jnp.sum(W * target) / (classes - 1),
            jnp.sqrt(jnp.mean(jnp.var(logits, axis=1, ddof=1))),
        )

    def stretch(carry: tuple, ends: tuple[Array, Array]) -> tuple[tuple, _Measured]:
        carry = jax.lax.fori_loop(*ends, body, carry)
        return carry, measure(carry[0])

    begins = jnp.concatenate([jnp.zeros_like(records[:1]), records[:-1]])
    return jax.lax.scan(stretch, (layer, rule.init(layer)), (begins, records))[1]


def train_toy(
    temperature: float,
    optimizer: Literal["sgd", "adam"] = "sgd",
    learning_rate: float = 10.0,
    *,
    seeds: int | Sequence[int] = 3,
    steps: int = STEPS,
    records: int = 40,
    classes: int = CLASSES,
    inputs: int = INPUTS,
    batch: int = BATCH,
    test_inputs: int = 16_384,
) -> ToyRun:
    r"""W <- W - lr grad_W mean_B KL(softmax(W* x/T) || softmax(W x)) or Adam's step, W(0) = 0, `steps` fresh batches.

    W* has entries uniform in (-1, 1)/sqrt(inputs); x Gaussian, scaled to |x|^2 = inputs. One unit of t is `inputs` steps for
    SGD and one step for Adam.

    **Arguments** (sizes default to the published experiment: 128 classes, 32 inputs, batches of 1024, 2000 steps)

    - `temperature`: T > 0, from 1e-3 (labels nearly hard) to 1 (flat). `optimizer`: "sgd" or "adam" (betas .9, .999).
    - `learning_rate`: lr > 0 of logits W x: published grids are 1e-2 to 10 (SGD) and 1e-3 to 1 (Adam).
    - `seeds`: how many or which; each has its own teacher, data and held-out inputs. `records`: log-spaced steps.

    **Returns** a `ToyRun`; float32 as published. **Errors**: `InputError`; `SolveError` naming the seed and step from which the
    loss is no number. **Good values**: seconds per seed. Source: Liu, Liu, Pehlevan & Gore, arXiv 2602.03685.
    """
    for name, value in (("temperature", temperature), ("learning_rate", learning_rate)):
        require_positive(name, value)
    if optimizer not in ("sgd", "adam"):
        raise InputError("optimizer", expected="sgd or adam", got=optimizer, remedy="sgd is the default")
    sizes = {"classes": classes, "inputs": inputs, "batch": batch, "test_inputs": test_inputs, "steps": steps}
    for name, value in sizes.items():
        least = 2 if name in ("classes", "test_inputs") else 1
        if isinstance(value, bool) or int(value) != value or value < least:
            raise InputError(name, expected=f"a whole number >= {least}", got=value, remedy="see the defaults")
    seed_list = check_seeds(range(seeds) if isinstance(seeds, int) else seeds)
    at = np.unique(np.rint(np.geomspace(1, steps, records)).astype(np.int32))
    fixed = (jnp.asarray(temperature, jnp.float32), jnp.asarray(learning_rate, jnp.float32), jnp.asarray(at))
    shape = (int(classes), int(inputs), int(batch), int(test_inputs))
    began = monotonic()

    def one(seed: int) -> _Measured:
        return jax.block_until_ready(_train_one(seed_key(seed), *fixed, shape, optimizer))

    found = [one(seed_list[0])]  # alone first: it compiles
    with ThreadPoolExecutor(cores()) as pool:
        found += list(pool.map(one, seed_list[1:]))
    for seed, run in zip(seed_list, found, strict=True):
        bad = np.flatnonzero(~np.isfinite(np.asarray(run.loss)))
        if bad.size:
            raise SolveError(
                f"training diverged: seed {seed} at step {int(at[bad[0]])}; likely cause: learning_rate too large; halve it"
            )
    scale = float(inputs) if optimizer == "sgd" else 1.0
    eta = learning_rate * inputs if optimizer == "sgd" else learning_rate
    measured = {name: np.stack([np.asarray(getattr(run, name)) for run in found]) for name in _Measured._fields}
    config = {
        "temperature": temperature,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "seeds": seed_list,
    } | sizes
    return ToyRun(
        step=at, t=at / scale, seeds=np.asarray(seed_list), **measured,
        clock=Clock(scale, eta, batch=float(batch), tokens=0.0),
        config=config, meta={"seconds": monotonic() - began, "device": str(jax.devices()[0])},
    )  # fmt: skip


def toy_theory(
    temperature: float,
    optimizer: Literal["sgd", "adam"] = "sgd",
    learning_rate: float = 10.0,
    *,
    classes: int = CLASSES,
    inputs: int = INPUTS,
    batch: int = BATCH,
    noise: float = 1.0,
) -> Peaked:
    r"""The `Peaked` system of a toy network: soft labels, b* = 1/(sqrt 3 T), eta = lr inputs for SGD, lr per step for Adam.

    Teacher entries have variance 1/(3 inputs T^2) and inputs mean square one, hence teacher fields of deviation 1/(sqrt 3 T).
    **Arguments** as for `train_toy`; `noise` as for `peaked`, 0 for the flow without SGD noise. One unit of t is `inputs`
    steps (Adam: one step).
    **Failure regime**: K rows in fewer than K dimensions are not orthogonal as the theory has them, and |x| does not vary.
    """
    eta = learning_rate * inputs if optimizer == "sgd" else learning_rate
    return peaked(
        classes=classes, labels="soft", inverse_temperature=1 / (np.sqrt(3) * temperature), learning_rate=eta,
        batch=batch, optimizer=optimizer, dimension=inputs, noise=noise,
    )  # fmt: skip
