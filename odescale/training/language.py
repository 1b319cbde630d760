"""Training of a language model, on a language of known conditionals or on real text: probes, checkpoints, branches, seeds."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree
from tqdm import tqdm

from odescale.errors import InputError, SolveError
from odescale.networks.language_model import LanguageModel
from odescale.training.grammar import Grammar
from odescale.training.language_checkpoint import (
    branch_run,
    identity,
    kept_checkpoint,
    resume_run,
    save,
    schedule_samples,
)
from odescale.training.language_probe import PROBES, measure_language
from odescale.training.loop import Finished, check_seeds, choose_record_steps, require_positive, session
from odescale.training.sgd import cores, seed_key
from odescale.training.source_text import SourceText
from odescale.training.text_probe import KERNEL_OUTPUTS, NOISE_BATCHES, TextProbe, measure_text, sampled_kernel

Language = Grammar | SourceText

OPTIMIZERS = ("sgd", "adamw")
SECONDS_PER_CALL = 1.0  # of one compiled loop: how often the bar moves and a divergence is seen
# Streams of a seed's key: held-out sequences, initial weights, training data.
HELD_OUT, WEIGHTS, DATA, NOISE = 2**32 - 2, 2**32 - 3, 2**32 - 4, 2**32 - 5


class LanguageRun(eqx.Module):
    """Seeds s, record steps n of a language-model training; one unit of time is one step.

    - `step` (n,), `seeds` (s,).
    - `records`: by name an array (s, n). `train_loss`: mean sample cross-entropy since the last record; the others, on held-out
      contexts, are those of `odescale.training.language_probe.LanguageProbe`, or on real text of
      `odescale.training.text_probe.TextProbe`.
    - `models`: the trained model of every seed. `config`: what was trained; `meta`: machine, versions, seconds.
    """

    step: Int[np.ndarray, " n"]
    seeds: Int[np.ndarray, " s"]
    records: dict[str, Float[np.ndarray, "s n"]]
    models: tuple[LanguageModel, ...]
    config: dict[str, Any] = eqx.field(static=True)
    meta: dict[str, Any] = eqx.field(static=True)

    def mean(self, name: str) -> Float[np.ndarray, " n"]:
        """Mean of a record over seeds."""
        return self.records[name].mean(axis=0)

    def stderr(self, name: str) -> Float[np.ndarray, " n"]:
        """Standard error of `mean` from the spread over seeds; 2+ seeds."""
        if len(self.seeds) < 2:
            raise InputError("seeds", expected="at least two for a spread", got=len(self.seeds), remedy="train more")
        return self.records[name].std(axis=0, ddof=1) / np.sqrt(len(self.seeds))


class SeedState(NamedTuple):
    """What one seed carries: arrays of the model, optimizer state, summed loss since the last record, first bad step or -1."""

    arrays: PyTree
    optimizer: PyTree
    loss_sum: Array
    diverged_at: Array


class LanguageRates(eqx.Module):
    """Numbers of the update as arrays, so that another learning rate compiles nothing; the optimizer's kind is static."""

    learning_rate: Float[Array, ""]
    momentum: Float[Array, ""]
    weight_decay: Float[Array, ""]
    kind: str = eqx.field(static=True)

    def direction(self) -> optax.GradientTransformation:
        """From the gradient to u, the decoupled decay included."""
        rule = optax.scale_by_adam() if self.kind == "adamw" else optax.trace(self.momentum)  # pyright: ignore[reportArgumentType]
        return optax.chain(rule, optax.add_decayed_weights(self.weight_decay))


@eqx.filter_jit
def _advance(
    state: SeedState,
    static: LanguageModel,
    grammar: Language,
    rates: LanguageRates,
    schedule: Callable | None,
    batch: int,
    key: Array,
    first: Int[Array, ""],
    count: Int[Array, ""],
) -> SeedState:
    """`count` more steps; step n draws from `fold_in(key, n)`, however steps are cut into calls."""
    rule = rates.direction()

    def loss(arrays: PyTree, tokens: Array) -> Array:
        logits = jax.vmap(eqx.combine(arrays, static))(tokens[:, :-1])[:, grammar.order - 1 :]
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, grammar.order :]).mean()

    def body(i: Array, state: SeedState) -> SeedState:
        step = first + i
        tokens = grammar.sample(jax.random.fold_in(key, step), batch)
        value, gradient = jax.value_and_grad(loss)(state.arrays, tokens)
        direction, memory = rule.update(gradient, state.optimizer, state.arrays)
        rate = rates.learning_rate if schedule is None else rates.learning_rate * schedule(step)
        arrays = jax.tree.map(lambda w, u: w - (rate * u).astype(w.dtype), state.arrays, direction)
        bad = (state.diverged_at < 0) & ~jnp.isfinite(value)
        loss_sum = state.loss_sum + value.astype(state.loss_sum.dtype)
        return SeedState(arrays, memory, loss_sum, jnp.where(bad, step, state.diverged_at))

    with jax.default_matmul_precision("highest"):  # else an accelerator rounds float32 products to 10 bits
        return jax.lax.fori_loop(0, count, body, state)


def train_language(
    build: Callable[[Array], LanguageModel],
    grammar: Language,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    optimizer: str = "sgd",
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    schedule: Callable | None = None,
    record_steps: Sequence[int] | Int[np.ndarray, " n"] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    held_out: int = 512,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_seconds: float = 60.0,
    resume: bool = True,
    keep_at: Sequence[int] = (),
    branch: str | os.PathLike | None = None,
    progress: bool = True,
    callback: Callable[[int, tuple[LanguageModel, ...]], None] | None = None,
) -> LanguageRun:
    r"""theta <- theta - lr s(step) u,  u from the gradient of the mean of -log p(x_{t+1} | x_<=t).

    The mean runs over B sequences and their full contexts. Fresh sequences of the grammar every step; one unit of time is
    **one step**. For the unembedding of a model without gains the clock of the one-third law is eta t = lr step.

    **Arguments**

    - `build`: from a JAX key to a fresh `LanguageModel`; a seed's key decides its weights, its data come from another stream.
    - `grammar`: the language, a `Grammar` or a `SourceText`; the model must have its vocabulary and a context of its length.
    - `steps`, `batch` >= 1. `learning_rate` > 0.
    - `optimizer`: "sgd" (u <- momentum u + gradient, 0 <= momentum < 1) or "adamw" (beta 0.9, 0.999, momentum ignored);
      `weight_decay` w >= 0, decoupled: theta loses lr s w theta per step. `schedule`: JAX-traceable s(step), None constant.
    - `record_steps`: default 41 log-spaced from steps/1000 on. `held_out`: sequences of the probes, the same for all seeds.
    - `checkpoint`: path of an npz, written at every record and every `checkpoint_seconds`; with `resume` a run found there
      goes on to the same numbers bit for bit on the same machine. `progress`: a bar on stderr when that is a terminal.
    - `keep_at`: steps at which a copy of the checkpoint stays, with ".STEP" before its suffix. `branch`: such a copy to begin from
      instead of step 0; what that run recorded up to there comes with it. Everything but steps, record_steps and the schedule's
      later part must be that run's: optimizer, data order and weights go on as if it had always been this run.
    - `callback(step, models)`: after each record.

    **Returns** a `LanguageRun`. **Errors**: `InputError` before anything is compiled; `CheckpointError` for a checkpoint of
    another configuration; `SolveError` when the loss of a seed is no longer finite (seed, step and remedy).

    **Good values**: width 64, depth 2, V = 32, B = 32, SGD at lr .3: 4 ms a step and seed on a CPU core. **Failure regime**:
    the probes are exact averages over the held-out contexts, whose number (held_out (T - n + 1)) sets their sampling error.
    """
    for name, value in (("batch", batch), ("held_out", held_out)):
        if isinstance(value, bool) or int(value) != value or value < 1:
            raise InputError(name, expected="an integer >= 1", got=value, remedy="pass 1 or more")
    require_positive("learning_rate", learning_rate)
    if optimizer not in OPTIMIZERS:
        raise InputError("optimizer", expected=" or ".join(OPTIMIZERS), got=optimizer, remedy="use sgd")
    if not 0 <= momentum < 1:
        raise InputError("momentum", expected="a number in [0, 1)", got=momentum, remedy="0 is plain SGD")
    if not (np.isfinite(weight_decay) and weight_decay >= 0):
        raise InputError("weight_decay", expected="a number >= 0", got=weight_decay, remedy="0 switches it off")
    seed_list = check_seeds(seeds)
    records_at = choose_record_steps(steps, None, _record_times(steps, record_steps), 1.0)
    if len(keep_at) and checkpoint is None:
        raise InputError("checkpoint", expected="a path beside keep_at", got=None, remedy="name the file to copy")
    if any(not 0 < step <= steps for step in keep_at):
        raise InputError("keep_at", expected=f"steps from 1 to {steps}", got=list(keep_at), remedy="drop the others")
    models = [build(jax.random.fold_in(seed_key(seed), WEIGHTS)) for seed in seed_list]
    _check_model(models[0], grammar)
    dtype = models[0].unembedding.dtype
    eta, memory, decay = (jnp.asarray(x, dtype) for x in (learning_rate, momentum, weight_decay))
    rates = LanguageRates(eta, memory, decay, optimizer)
    config = {
        "grammar": grammar.config,
        "start": identity(models),
        "steps": int(steps),
        "batch": int(batch),
        "learning_rate": float(learning_rate),
        "optimizer": optimizer,
        "momentum": float(momentum),
        "weight_decay": float(weight_decay),
        "schedule": schedule_samples(schedule, steps),
        "record_steps": records_at.tolist(),
        "seeds": seed_list,
        "held_out": int(held_out),
    }
    loop = _Loop(models, grammar, rates, schedule, int(batch), seed_list)
    probes = (
        _grammar_probes(grammar, held_out) if isinstance(grammar, Grammar) else _text_probes(loop, int(batch), held_out)
    )
    done, trained = _run(
        loop, probes, records_at, config, checkpoint=checkpoint, checkpoint_seconds=checkpoint_seconds, resume=resume,
        keep_at=sorted(int(step) for step in keep_at), branch=branch, schedule=schedule, progress=progress, callback=callback,
    )  # fmt: skip
    meta = session(done)
    return LanguageRun(records_at, np.asarray(seed_list), done.records, trained, config, meta)


class _Probes(NamedTuple):
    """Names of the records, how to take them from the model of seed number i, and the one that the bar shows."""

    names: tuple[str, ...]
    measure: Callable[[int, LanguageModel], Any]
    shown: str

    @property
    def records(self) -> tuple[str, ...]:
        return ("train_loss", *self.names)


def _grammar_probes(grammar: Grammar, held_out: int) -> _Probes:
    sequences = grammar.sample(jax.random.fold_in(seed_key(0), HELD_OUT), held_out)
    return _Probes(PROBES, lambda number, model: measure_language(model, grammar, sequences), "excess_loss")


def _text_probes(loop: _Loop, batch: int, held_out: int) -> _Probes:
    """On real text; the kernel at the start is that of the fresh weights, whatever checkpoint the run goes on from."""
    text = loop.grammar
    assert isinstance(text, SourceText)
    sequences = text.held_out(max(held_out, KERNEL_OUTPUTS))
    keys = [jax.random.fold_in(seed_key(seed), NOISE) for seed in loop.seeds]
    shape = (NOISE_BATCHES, batch, text.length + 1)
    batches = [text.sample(key, NOISE_BATCHES * batch).reshape(shape) for key in keys]
    references = [sampled_kernel(loop.model(number), sequences) for number in range(len(loop.seeds))]

    def measure(number: int, model: LanguageModel) -> TextProbe:
        return measure_text(model, sequences, batches[number], references[number])

    return _Probes(tuple(TextProbe.__dataclass_fields__), measure, "loss")


class _Loop:
    """Compiled steps of all seeds, one thread each: on a CPU XLA runs one small loop on one core."""

    def __init__(
        self,
        models: list[LanguageModel],
        grammar: Language,
        rates: LanguageRates,
        schedule: Callable | None,
        batch: int,
        seeds: list[int],
    ) -> None:
        self.grammar, self.seeds = grammar, seeds
        arrays = [eqx.partition(model, eqx.is_array)[0] for model in models]
        self.static = eqx.partition(models[0], eqx.is_array)[1]
        # The sum of sample losses is carried in double precision where JAX has it, else a long record would round it.
        zero, rule = jnp.zeros((), jnp.result_type(float)), rates.direction()
        self.states = [SeedState(a, rule.init(a), zero, jnp.full((), -1, jnp.int32)) for a in arrays]
        self.keys = [jax.random.fold_in(seed_key(seed), DATA) for seed in seeds]
        self._fixed = (self.static, grammar, rates, schedule, batch)
        self._compiled = False

    def advance(self, first: int, count: int) -> None:
        """`count` more steps of every seed."""

        def one(number: int, steps: int = count) -> SeedState:
            numbers = (jnp.asarray(n, jnp.int32) for n in (first, steps))
            return jax.block_until_ready(_advance(self.states[number], *self._fixed, self.keys[number], *numbers))

        if not self._compiled:  # once, with no steps, before the threads: else each of them would compile for itself
            one(0, 0)
            self._compiled = True
        with ThreadPoolExecutor(min(len(self.states), cores())) as pool:
            self.states = list(pool.map(one, range(len(self.states))))

    def model(self, number: int) -> LanguageModel:
        """The model of seed `number` as it stands."""
        return eqx.combine(self.states[number].arrays, self.static)

    def take_losses(self, steps: int) -> Float[np.ndarray, " s"]:
        """Mean sample losses over the `steps` since the last record; begins a new sum. NaN over no steps."""
        sums = np.array([float(state.loss_sum) for state in self.states])
        self.states = [state._replace(loss_sum=jnp.zeros_like(state.loss_sum)) for state in self.states]
        return sums / steps if steps else np.full(len(sums), np.nan)

    def leaves(self) -> dict[str, np.ndarray]:
        """Everything the seeds carry, stacked over seeds, for a checkpoint."""
        each = [jax.tree.leaves(state) for state in self.states]
        return {f"leaf_{i}": np.stack([np.asarray(x) for x in leaf]) for i, leaf in enumerate(zip(*each, strict=True))}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """The way back from `leaves`."""
        structure, count = jax.tree.structure(self.states[0]), len(jax.tree.leaves(self.states[0]))
        self.states = [
            jax.tree.unflatten(structure, [jnp.asarray(arrays[f"leaf_{i}"][s]) for i in range(count)])
            for s in range(len(self.states))
        ]

    def stop_if_diverged(self) -> None:
        """`SolveError` naming the first seed and step at which a sample loss was not finite."""
        for seed, state in zip(self.seeds, self.states, strict=True):
            if int(state.diverged_at) >= 0:
                raise SolveError(
                    f"training diverged: seed {seed} at step {int(state.diverged_at)} (t = {int(state.diverged_at)}); "
                    "likely cause: learning_rate above the stability limit; halve it, raise batch or warm up"
                )


def _run(
    loop: _Loop,
    probes: _Probes,
    record_steps: Int[np.ndarray, " n"],
    config: dict[str, Any],
    *,
    checkpoint: str | os.PathLike | None,
    checkpoint_seconds: float,
    resume: bool,
    keep_at: list[int],
    branch: str | os.PathLike | None,
    schedule: Callable | None,
    progress: bool,
    callback: Callable[[int, tuple[LanguageModel, ...]], None] | None,
) -> tuple[Finished, tuple[LanguageModel, ...]]:
    records: dict[str, list] = {name: [] for name in probes.records}
    step = 0
    if checkpoint is not None and resume and Path(checkpoint).exists():
        step, records = resume_run(checkpoint, loop, config, probes.records)
    elif branch is not None:
        step, records = branch_run(branch, loop, config, record_steps, schedule, probes.records)
    stops = [kept for kept in keep_at if kept > step]
    began, first_step, saved, per_second = time.monotonic(), step, time.monotonic(), 8.0
    numbers = range(len(loop.seeds))
    bar = tqdm(
        total=int(record_steps[-1]), initial=step, unit="step", desc=f"train {len(loop.seeds)} seeds", file=sys.stderr,
        disable=not (progress and sys.stderr.isatty()),
    )  # fmt: skip
    with bar:
        while len(records["train_loss"]) < len(record_steps):
            number = len(records["train_loss"])
            target = int(record_steps[number])
            while step < target:
                until = min([target, *stops[:1]])
                count = min(until - step, max(1, int(per_second * SECONDS_PER_CALL)))
                call = time.monotonic()
                loop.advance(step, count)
                # The first call compiles: let the length of a call grow at most fourfold, never trust one timing.
                per_second = min(count / max(time.monotonic() - call, 1e-6), 4 * max(per_second, count))
                loop.stop_if_diverged()
                step += count
                bar.update(count)
                if checkpoint is not None and stops[:1] == [step]:
                    save(kept_checkpoint(checkpoint, stops.pop(0)), loop, config, step, records)
                elif checkpoint is not None and time.monotonic() - saved > checkpoint_seconds:
                    save(checkpoint, loop, config, step, records)
                    saved = time.monotonic()
            records["train_loss"].append(loop.take_losses(target - (int(record_steps[number - 1]) if number else 0)))
            models = tuple(loop.model(i) for i in numbers)
            measured = [probes.measure(number, model) for number, model in enumerate(models)]
            for name in probes.names:
                records[name].append(np.array([float(getattr(probe, name)) for probe in measured]))
            bar.set_postfix({probes.shown: f"{records[probes.shown][-1].mean():.4g}"}, refresh=False)
            if checkpoint is not None:
                save(checkpoint, loop, config, step, records)
                saved = time.monotonic()
            if callback is not None:
                callback(step, models)
    stacked = {name: np.stack(values, axis=1) for name, values in records.items()}
    # Rows of `Finished` are those of teacher tasks; a language model has none.
    done = Finished(np.zeros(0), stacked, time.monotonic() - began, step - first_step)
    return done, tuple(loop.model(i) for i in numbers)


def _record_times(steps: int, record_steps: Any) -> Any:
    if record_steps is not None:
        return record_steps
    return (
        np.geomspace(max(1.0, steps / 1000), steps, 41) if isinstance(steps, int | np.integer) and steps > 0 else None
    )


def _check_model(model: LanguageModel, grammar: Language) -> None:
    if model.vocabulary != grammar.vocabulary or model.context < grammar.length:
        raise InputError(
            "build", expected=f"{grammar.vocabulary} tokens and a context of {grammar.length} or more",
            got=f"{model.vocabulary} tokens, context {model.context}", remedy="match the language",
        )  # fmt: skip
