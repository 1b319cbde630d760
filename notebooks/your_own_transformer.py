# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A transformer of your own: its ODE, its phases, its training
#
# Two blocks that no library has, attention by distance and a gated unit, put together into a network. odescale needs nothing
# more to write down the ODE of SGD on it: this notebook gets that ODE with its error bar, asks which phases its loss has, trains
# the real network in d dimensions, and compares.
#
# Theory: `docs/mean_field.md`; when a network is outside of it: `docs/coverage.md`; clocks and units: `docs/conventions.md`.

# %%
import os

import jax

jax.config.update("jax_enable_x64", True)  # odescale never changes this for you

import equinox as eqx
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import odescale

# %% [markdown]
# ## Parameters
#
# `ODESCALE_NOTEBOOK_SIZE=small` is what the tests run: fewer nodes and dimensions for a shorter time, so that errors are large. One
# unit of t is `dimension` SGD steps.

# %%
small = os.environ.get("ODESCALE_NOTEBOOK_SIZE", "full") == "small"

tokens = 3
learning_rate, batch = 0.4, 4
alignment = 0.3  # cosine of every student row with its teacher row at the start
dimension = 60 if small else 400
nodes = 256 if small else 8192  # of one replicate; there are four
t1 = 4.0 if small else 24.0
points = 24 if small else 80
seeds, records = (2, 6) if small else (16, 20)

# %% [markdown]
# ## Two blocks of one's own
#
# A block is a function of a stream of tokens. It may **read** the local field of a row on every token, **mix** tokens with weights,
# and **write** a row back. Written with these operations it works on local fields, where the theory lives, and on real tokens of d
# numbers alike. `reads` and `writes` name its rows, so that fields that nobody needs can be dropped.
#
# The first is attention by distance, $a_{ts} \propto \exp(-(q\cdot h_t - k\cdot h_s)^2/2)$: a kernel, not a product.


# %%
class DistanceAttention(eqx.Module):
    """h_t <- h_t + sum_s a_ts h_s, a_ts = exp(-(phi_qt - phi_ks)^2/2), normalised over s."""

    query: str = eqx.field(static=True)
    key: str = eqx.field(static=True)

    @property
    def reads(self):
        return (self.query, self.key)

    writes = ()  # it mixes tokens, and writes no row back

    def __call__(self, stream):
        gap = stream.read(self.query)[:, None] - stream.read(self.key)[None, :]
        weights = jnp.exp(-(gap**2) / 2)
        return stream.plus(stream.mix(weights / weights.sum(axis=1, keepdims=True)))


# %% [markdown]
# The second is a gated unit, $h_t \leftarrow h_t + o\,\sigma(2 g\cdot h_t)\,(v\cdot h_t)$: one row opens the gate for another.


# %%
class GatedUnit(eqx.Module):
    """h_t <- h_t + A_o sigmoid(2 phi_gt) phi_vt / sqrt(N)."""

    gate: str = eqx.field(static=True)
    value: str = eqx.field(static=True)
    output: str = eqx.field(static=True)

    @property
    def reads(self):
        return (self.gate, self.value)

    @property
    def writes(self):
        return (self.output,)

    def __call__(self, stream):
        return stream.write(self.output, jax.nn.sigmoid(2 * stream.read(self.gate)) * stream.read(self.value))


# %%
network = odescale.networks.RowNetwork(
    ("q", "k", "g", "v", "o", "r"),
    (DistanceAttention("q", "k"), GatedUnit("g", "v", "o")),
    odescale.networks.QueryToken(("r",)),
)
problem = odescale.teacher_student(network, tokens=tokens)
print("rows, student's first:", ", ".join(problem.rows))

# %% [markdown]
# ## The check that everything rests on
#
# The network on d-dimensional tokens and the network on local fields are the same function. Random weights and tokens; fields
# phi = x A^T / sqrt(d) and overlaps R = A A^T / d of these:

# %%
rng = np.random.default_rng(0)
A, x = rng.standard_normal((len(network.rows), dimension)), rng.standard_normal((tokens, dimension))
real = network.real(jnp.asarray(A), float(dimension))(jnp.asarray(x))
by_fields = network.on_fields(jnp.asarray(x @ A.T / np.sqrt(dimension)), jnp.asarray(A @ A.T / dimension))
print(f"d-dimensional {float(real[0, 0]):+.15f}")
print(f"from fields   {float(by_fields[0, 0]):+.15f}")
assert np.allclose(real, by_fields, rtol=1e-12)

# %% [markdown]
# ## The ODE
#
# The start is a matrix of overlaps: lengths and cosines of the teacher's rows, and how well the student is aligned with it. Key,
# value and output rows have to see the readout, else attention and gate would hardly reach the loss. All but the readout are short:
# the readout is learned first, exponentially, and attention and gate slowly afterwards.

# %%
start = odescale.aligned_overlaps(
    problem,
    alignment=alignment,
    lengths=dict.fromkeys(["q", "k", "g", "v", "o"], 0.3),  # squared; the readout has length 1
    cosines={("k", "r"): 0.6, ("q", "r"): 0.3, ("o", "r"): 0.6, ("v", "r"): 0.3, ("g", "r"): 0.2, ("k", "o"): 0.36},
)
system = odescale.mean_field(
    problem, initial_overlaps=start, learning_rate=learning_rate, batch=batch, dimension=dimension, nodes=nodes
)
print(system.clock.describe())
print(odescale.coverage(system))

# %% [markdown]
# No closed form exists for these blocks: expectations over the fields are averages over fixed random nodes, four independent
# sets of them. Each set is integrated by itself; the mean is the prediction, the scatter its error bar for the whole trajectory.

# %%
theory = odescale.integrate(system, t1, points=points)
entry = theory.meta["ladder"][-1]
print(f"{entry['solver']}: {entry['accepted']} steps; loss {theory.loss[0]:.4f} -> {theory.loss[-1]:.3e}")
print(f"relative 95 % half width of the loss: {theory.error[0]:.1e} at the start, {np.max(theory.error):.1e} at most")

# %% [markdown]
# ## The phases
#
# q = dlog p/dlog t with p = -dlog L/dlog t is 1 for exponential decay and 0 for a power law. A phase keeps q near one of these for
# long enough; a t_x exists only where a power law follows an exponential; `docs/transition.md` has the definition. The loss is
# an average over nodes, known to a few digits, so its phases are those of the model that fits it best. A readout that is learned
# first makes a fast fall; whether that is an exponential phase is what the verdict says, and the pictures below bear it.

# %%
transition = odescale.find_transition(system, t1, points=points)
print(f"verdict: {transition.name}")
print(transition)

# %%
figure, axes = plt.subplots(1, 3, figsize=(18, 4.6), layout="constrained")
odescale.plot(theory, axes[0], transition=transition).set_ylabel("excess loss L  (band: 95 % interval)")
odescale.plot(theory, axes[1], kind="index").set_title(transition.name, loc="left")
axes[2].plot(theory.t[1:], theory.error[1:], label=f"{nodes} nodes in each of 4 sets")
axes[2].set(xscale="log", yscale="log", ylabel="relative 95 % half width of L")
axes[2].set_xlabel(f"t  (one unit = {dimension} SGD steps)")
axes[2].legend()
plt.close(figure)  # shown once, by the next line
figure

# %% [markdown]
# More nodes make the band narrower; `nodes=None` chooses them from an `accuracy`.

# %% [markdown]
# ## Train the real network
#
# The same blocks as layers of a network on d-dimensional tokens, plain SGD on fresh sequences, seeds side by side. Every seed
# starts at exactly the theory's overlaps.

# %%
run = odescale.train(system, t1, seeds=seeds, records=records, progress=False)
print(f"{seeds} seeds, {run.step[-1]} SGD steps each; loss {run.mean()[0]:.4f} -> {run.mean()[-1]:.3e}")

# %% [markdown]
# ## Compare
#
# Three errors apart: the scatter of the seeds, the scatter of the theory's node sets, and the size of what a finite dimension
# changes.

# %%
comparison = odescale.compare(system, run, tolerance=0.05)
print(comparison)
for name, error in {**comparison.loss.errors, **comparison.loss.neglected}.items():
    print(f"    {name:<12} at most {error.max():.3f}")

# %%
odescale.plot(comparison, title="Distance attention and a gated unit: theory and training")["loss"].figure

# %% [markdown]
# The loss sums up a motion of overlaps. What each row learns, and when:

# %%
pairs = [("q", "q*"), ("k", "k*"), ("g", "g*"), ("v", "v*"), ("o", "o*"), ("r", "r*")]
odescale.plot(theory, kind="overlaps", names=problem.rows, pairs=pairs, run=run).figure
