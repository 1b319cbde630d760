r"""Online SGD of the real softmax layer that `Peaked` predicts: same classes, labels, start, schedules and clock.

W <- W - (eta s(t)/sqrt d) mean_B beta g(beta lam, y) x^T - (w/N) W,    lam = W x/sqrt d,  x ~ N(0, I_d) fresh every step
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from odescale.cache.aside import Aside
from odescale.clock import Clock, ConstantSchedule, Schedule, schedule_samples
from odescale.errors import InputError, whole
from odescale.networks.softmax_layer import SoftmaxHead
from odescale.optimizers.muon import Muon
from odescale.systems.peaked import Peaked
from odescale.systems.peaked_unit import UNIT
from odescale.training.experiment import AbstractTraining, Carry
from odescale.training.softmax_population import FieldNodes

"""Decay of Adam's two moments and the number added to its square root: the defaults of the common implementations."""
BLOCK = 65_536
"""Numbers that one call of the generator draws: a single step's thousand would cost three times as much each."""
LARGEST_BATCH = 200_000_000
"""Numbers in one minibatch, batch times dimension, that are held at once."""


class LayerStep(eqx.Module):
    """One step of SGD, Adam, normalised gradient descent, signs or Muon on rows W of K logits, with the scalars that it needs."""

    head: SoftmaxHead
    learning_rate: Float[Array, ""]
    decay: Float[Array, ""]
    schedule: Callable | None
    logit_schedule: Callable | None
    steps_per_unit: float = eqx.field(static=True)
    batch: int = eqx.field(static=True)
    optimizer: Literal["sgd", "adam", "normalised", "sign", "muon"] = eqx.field(static=True)
    betas: tuple[float, float] = eqx.field(static=True, default=(0.9, 0.999))
    eps: float = eqx.field(static=True, default=1e-8)
    muon: tuple[tuple[str, Any], ...] = eqx.field(static=True, default=())

    def __call__(
        self,
        rows: Float[Array, "K d"],
        moments: Float[Array, "m d"],
        teacher: Float[Array, "K d"],
        x: Float[Array, "B d"],
        gumbel: Float[Array, "B K"] | None,
        step: Int[Array, ""],
    ) -> tuple[Float[Array, "K d"], Float[Array, "m d"], Float[Array, ""]]:
        """(rows, moments, mean loss of the batch before the step)."""
        K, d = rows.shape
        dtype, root = rows.dtype, d**0.5
        t = step.astype(dtype) / self.steps_per_unit

        def at(schedule: Callable | None) -> Array | float:
            return 1.0 if schedule is None else jnp.asarray(schedule(t), dtype)

        beta, rate = at(self.logit_schedule), self.learning_rate * at(self.schedule)
        fields = x @ jnp.concatenate([rows, teacher]).T / root
        loss, g = self.head.value_and_gradient(beta * fields[:, :K], self.head.target(fields[:, K:], gumbel))
        if self.optimizer in UNIT:
            g = _kept_digits(g)
        gradient = beta * g.T @ x / self.batch  # by the weights of logits that are plain inner products, W/sqrt d
        if self.optimizer == "adam":
            beta1, beta2 = self.betas
            first = beta1 * moments[:K] + (1 - beta1) * gradient
            second = beta2 * moments[K:] + (1 - beta2) * gradient**2
            moments, count = jnp.concatenate([first, second]), step.astype(dtype) + 1
            first, second = first / (1 - beta1**count), second / (1 - beta2**count)
            move = root * rate * first / (jnp.sqrt(second) + self.eps)
        elif self.optimizer == "sign":
            move = root * rate * jnp.sign(gradient)
        elif self.optimizer == "muon":
            numbers = dict(self.muon)
            if numbers["momentum"] == 0:  # scale-free: late gradients would drown in the eps of its norm
                gradient = gradient / jnp.maximum(jnp.max(jnp.abs(gradient)), jnp.finfo(dtype).tiny)
            coefficients = jnp.asarray(numbers["coefficients"], dtype)
            state = optax.contrib.MuonState(jnp.asarray(step, jnp.int32), moments, coefficients)  # type: ignore[arg-type]
            found, state = Muon.transformation(numbers).update(gradient, state)
            move, moments = root * rate * jnp.asarray(found, dtype), jnp.asarray(state.mu, dtype)  # type: ignore[attr-defined]
        elif self.optimizer == "normalised":
            norm = jnp.sqrt(jnp.sum(gradient**2))
            move = rate / root * gradient / jnp.where(norm > 0, norm, 1.0)
        else:
            move = rate / root * gradient
        return rows - move - (self.decay / self.steps_per_unit) * rows, moments, jnp.mean(loss)


def _kept_digits(g: Float[Array, "B K"]) -> Float[Array, "B K"]:
    """p - y whose largest entry is minus the sum of the others: p - 1 has no digits left beyond 17 nats, in float32."""
    label = jnp.arange(g.shape[1]) == jnp.argmin(g, axis=1)[:, None]
    return jnp.where(label, -jnp.sum(jnp.where(label, 0.0, g), axis=1, keepdims=True), g)


class LayerState(NamedTuple):
    """Student W, the optimiser's moments (none for sgd and normalised), teacher W*."""

    student: Float[Array, "K d"]
    moments: Float[Array, "m d"]
    teacher: Float[Array, "K d"]


class PeakedExperiment(AbstractTraining):
    r"""W <- W - (eta s(t)/sqrt d) M - (w/N) W, M = mean_B beta(t) g(beta(t) lam, y) x^T, lam = W x/sqrt d.

        normalised: M/|M|_F instead of M         adam: W <- W - sqrt(d) lr s(t) m^/(sqrt v^ + eps), moments of M, beta1 and beta2
        sign: W <- W - sqrt(d) lr s(t) sgn M     muon: W <- W - sqrt(d) lr s(t) (optax's update of M)

    One unit of t is N SGD steps: N = d for "sgd" and "normalised", 1 for "adam", "sign" and "muon". Records, with
    R = W W*^T/d and Q = W W^T/d:

    - `overlap` D = tr(P R)/(K-1) and `spread` Delta = tr(P Q)/(K-1) - D^2, in float64.
    - `loss`: excess cross-entropy of softmax(beta lam) at the measured overlaps (KL to the teacher for soft and sampled labels),
      whatever loss was trained; `error`: P(argmax lam != argmax lam*). `loss_common_stderr`, `error_common_stderr`: standard
      errors of their nodes, common to all seeds and times.
    - `asymmetry`: |P R P - D P|_F/|D P|_F, how far from the class symmetry that the theory assumes (nan at D = 0).

    **Failure regime**: a finite d shifts D, Delta and losses by O(K/d). float32 is enough while a row grows by more than 1e-7 of
    itself in d steps; signs and Muon need margins below 88 nats, where float32 has no smaller slopes.
    """

    system: Aside[Peaked]
    update: LayerStep
    nodes: Aside[FieldNodes]
    asked_nodes: int | None = eqx.field(static=True)

    subject: ClassVar[str] = "peaked"

    @property
    def clock(self) -> Clock:
        return self.system.value.clock

    def config(self, t1: float) -> dict[str, Any]:
        system = self.system.value
        numbers = ("weight_decay", "memory", "overlap", "spread", "smoothing", "focusing", "inverse_temperature")
        return (
            ({} if system.unit is None else system.unit.settings)
            | {
                "label": system.label,
                "classes": int(system.classes),
                "dimension": int(system.dimension),
                "labels": system.labels,
                "loss": system.loss,
                "optimizer": system.optimizer,
                "tokens": 0,
                "nodes": self.asked_nodes,
                "logit_schedule": schedule_samples(system.logit_schedule, t1),
            }
            | {name: float(getattr(system, name)) for name in numbers}
        )

    def start(self, seed: int) -> LayerState:
        system = self.system.value
        K, d = int(system.classes), int(system.dimension)
        student, teacher = layer_start(K, d, float(system.overlap), float(system.spread), seed)
        moments = np.zeros(({"adam": 2 * K, "muon": K}.get(system.optimizer, 0), d))
        return LayerState(student, moments, teacher)  # type: ignore[arg-type]

    def advance(self, carry: Carry, key: Array, first: Int[Array, ""], count: Int[Array, ""]) -> Carry:
        """Steps share a draw by blocks of fixed length, counted from step 0: how steps are cut into calls changes nothing."""
        (K, d), batch = carry.state.student.shape, self.update.batch
        dtype = carry.state.student.dtype
        length = max(1, min(64, BLOCK // (batch * d)))
        sampled = self.update.head.labels == "sampled"

        def block(number: Array, carry: Carry) -> Carry:
            inputs, labels = jax.random.split(jax.random.fold_in(key, number))
            x = jax.random.normal(inputs, (length, batch, d), dtype)
            gumbel = jax.random.gumbel(labels, (length, batch, K), dtype) if sampled else None

            def body(place: Array, carry: Carry) -> Carry:
                n, (student, moments, teacher) = number * length + place, carry.state
                noise = None if gumbel is None else gumbel[place]
                student, moments, loss = self.update(student, moments, teacher, x[place], noise, n)
                return carry.after(LayerState(student, moments, teacher), loss, n)

            begin = jnp.maximum(first - number * length, 0)
            end = jnp.minimum(first + count - number * length, length)
            return jax.lax.fori_loop(begin, end, body, carry)

        return jax.lax.fori_loop(first // length, (first + count + length - 1) // length, block, carry)

    def measure(self, states: list[LayerState], seeds: list[int], step: int) -> dict[str, np.ndarray]:
        system, t = self.system.value, step / self.update.steps_per_unit
        beta = 1.0 if _constant(system.logit_schedule) else float(system.logit_schedule(jnp.asarray(t)))
        soft, P = system.labels != "hard", np.eye(int(system.classes)) - 1 / int(system.classes)

        def one(state: LayerState) -> dict[str, float]:
            student, teacher = np.asarray(state.student, float), np.asarray(state.teacher, float)
            K, d = student.shape
            R, Q = student @ teacher.T / d, student @ student.T / d
            D = np.trace(P @ R) / (K - 1)
            found = self.nodes.value.population(
                R, Q, soft=soft, inverse_temperature=float(system.inverse_temperature), scale=beta
            )
            return {
                "loss": found.loss,
                "loss_common_stderr": found.loss_stderr,
                "error": found.error,
                "error_common_stderr": found.error_stderr,
                "overlap": D,
                "spread": np.trace(P @ Q) / (K - 1) - D**2,
                "asymmetry": np.linalg.norm(P @ R @ P - D * P) / (abs(D) * np.sqrt(K - 1)) if D != 0 else np.nan,
            }

        each = [one(state) for state in states]
        return {name: np.array([found[name] for found in each]) for name in each[0]}

    def model(self, states: list[LayerState]) -> dict[str, Any]:
        """`rows` (s, 2 K, d): W and W*."""
        return {"rows": np.stack([np.concatenate([state.student, state.teacher]) for state in states])}


def layer_start(
    classes: int, dimension: int, overlap: float, spread: float, seed: int
) -> tuple[Float[np.ndarray, "K d"], Float[np.ndarray, "K d"]]:
    """(W, W*) with W* W*^T/d = I, P R = D P and P Q = (D^2 + Delta) P exactly; rows of W sum to zero. Haar-random."""
    K, d = classes, dimension
    random = np.random.default_rng([seed, 0x50F73A])
    directions, triangle = np.linalg.qr(random.normal(size=(d, 2 * K)))
    basis = np.sqrt(d) * (directions * np.sign(np.diag(triangle))).T
    W = overlap * basis[:K] + np.sqrt(spread) * basis[K:]
    return W - W.mean(axis=0), basis[:K]


def experiment(system: Peaked, *, nodes: int | None = None) -> PeakedExperiment:
    """The real layer of a system with d >= 2 K and a whole batch; `nodes` per scramble of the population's loss and error."""
    K, d = whole("classes", system.classes, 2), whole("dimension", system.dimension, remedy="round it")
    if d < 2 * K:
        raise InputError(
            "dimension", expected=f"at least 2 K = {2 * K}: orthonormal rows for teacher and student", got=d,
            remedy="raise it",
        )  # fmt: skip
    whole("batch", system.batch, 1, LARGEST_BATCH // d, remedy="a whole number; lower d or B")
    return PeakedExperiment(Aside(system), layer_step(system), Aside(FieldNodes(K, nodes=nodes)), nodes)


def layer_step(system: Peaked) -> LayerStep:
    """The update of a system's real layer."""
    head = SoftmaxHead(
        jnp.asarray(system.inverse_temperature, float), jnp.asarray(system.smoothing, float),
        jnp.asarray(system.focusing, float), labels=cast(Any, system.labels), loss=cast(Any, system.loss),
    )  # fmt: skip
    return LayerStep(
        head, jnp.asarray(system.learning_rate, float), jnp.asarray(system.weight_decay, float),
        None if _constant(system.schedule) else system.schedule,
        None if _constant(system.logit_schedule) else system.logit_schedule,
        float(system.clock.steps_per_unit), int(system.batch), cast(Any, system.optimizer),
        (system.beta1, float(system.memory)), system.eps, () if system.unit is None else system.unit.muon,
    )  # fmt: skip


def _constant(schedule: Schedule | None) -> bool:
    return schedule is None or isinstance(schedule, ConstantSchedule)
