"""Language models on languages of known conditionals: the network, the language, the training loop, the probes."""

from __future__ import annotations

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.peaked_language import boundary_layer, train_case
from odescale.errors import InputError, SolveError
from odescale.networks.language_model import LanguageModel, TokenNorm, rotate
from odescale.training.grammar import Grammar
from odescale.training.language import DATA, language
from odescale.training.language_probe import excess_losses, measure_language, true_fields
from odescale.training.runner import seed_key
from odescale.training.train import train

SMALL = Grammar(8, order=2, inverse_temperature=3.0, length=8)
build = partial(LanguageModel, 8, 16, 1, 2, 8)
RUN = ("seeds", "checkpoint", "callback", "resume")


def fit(make, grammar, *, steps, record_steps=None, **options):
    """A run of `language(make, grammar, ...)` with records at these steps."""
    given = {name: options.pop(name) for name in RUN if name in options}
    experiment = language(make, grammar, **({"batch": 4, "held_out": 8} | options))
    return train(experiment, steps, record_times=record_steps, progress=False, **given)


def small_model(seed: int = 0, **options) -> LanguageModel:
    """A model whose unembedding is not zero: at the start all its logits are."""
    model = build(key=jax.random.key(seed), **options)
    weights = jax.random.normal(jax.random.key(seed + 1), model.unembedding.shape, model.unembedding.dtype)
    return eqx.tree_at(lambda m: m.unembedding, model, weights)


# --- the network


@pytest.mark.parametrize(("positions", "norm", "gains"), [("learned", "rms", True), ("rotary", "layer", False)])
def test_the_future_does_not_change_the_past(positions, norm, gains):
    """Logits up to t are the same to the bit whatever follows, and every earlier token matters."""
    model = eqx.filter_jit(small_model(positions=positions, norm=norm, gains=gains))
    tokens = jnp.asarray([0, 5, 1, 7, 2, 2, 6, 3])
    logits = np.asarray(model(tokens))
    for place in range(8):
        changed = np.asarray(model(tokens.at[place].set(4)))
        np.testing.assert_array_equal(changed[:place], logits[:place])
        assert (np.abs(changed[place:] - logits[place:]).max(axis=1) > 1e-4).all()
    np.testing.assert_allclose(model(tokens[:5]), logits[:5], rtol=1e-5, atol=1e-5)  # a shorter sequence is a prefix


def test_positions_matter_as_their_kind_says():
    """Rotary products depend on t - s alone; learned positions tell the same token at two places apart."""
    q, k = jax.random.normal(jax.random.key(0), (2, 4))
    products = jnp.einsum("thi,shi->ts", *(rotate(jnp.broadcast_to(x, (6, 1, 4))) for x in (q, k)))
    for shift in range(-5, 6):
        assert np.ptp(np.diagonal(products, shift)) < 1e-12
    assert np.ptp(products[0]) > 0.1
    repeated = jnp.full(6, 3)
    assert np.ptp(small_model(positions="rotary")(repeated), axis=0).max() < 1e-4
    assert np.ptp(small_model()(repeated), axis=0).max() > 0.1


def test_attention_and_norms_against_loops():
    """One block of the network by loops over heads, positions and features in numpy, float64."""
    model = small_model(dtype=jnp.float64, norm="layer", activation="relu")
    tokens, block = np.array([1, 4, 4, 0, 7]), model.blocks[0]
    norm = lambda h: (h - h.mean()) / np.sqrt(((h - h.mean()) ** 2).mean() + 1e-6)  # noqa: E731
    h = np.asarray(model.embedding)[tokens] + np.asarray(model.position_rows)[:5]
    n, attention = np.array([norm(row) for row in h]), block.attention
    q, k, v = (n @ np.asarray(w).T for w in (attention.query, attention.key, attention.value))
    mixed = np.zeros_like(h)
    for head in (slice(0, 8), slice(8, 16)):
        for t in range(5):
            weights = np.exp([q[t, head] @ k[s, head] / np.sqrt(8) for s in range(t + 1)])
            mixed[t, head] = weights @ v[: t + 1, head] / weights.sum()
    h = h + mixed @ np.asarray(attention.output).T
    hidden = np.maximum(np.array([norm(row) for row in h]) @ np.asarray(block.rise).T, 0)
    h = h + hidden @ np.asarray(block.fall).T
    expected = np.array([norm(row) for row in h]) @ np.asarray(model.unembedding).T
    np.testing.assert_allclose(model(jnp.asarray(tokens)), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("argument", "bad"),
    [
        ("vocabulary", {"vocabulary": 1}), ("depth", {"depth": 0}), ("context", {"context": 2.0}), ("heads", {"heads": 3}),
        ("heads", {"heads": 16, "positions": "rotary"}), ("positions", {"positions": "sine"}), ("norm", {"norm": "batch"}),
        ("mlp_ratio", {"mlp_ratio": 0.0}), ("activation", {"activation": "swish"}), ("width", {"width": True}),
    ],
)  # fmt: skip
def test_bad_sizes_are_refused(argument, bad):
    sizes = {"vocabulary": 8, "width": 16, "depth": 1, "heads": 2, "context": 8} | bad
    with pytest.raises(InputError) as error:
        LanguageModel(**sizes, key=jax.random.key(0))
    assert error.value.argument == argument


def test_sequences_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="tokens: expected one sequence of 1 to 8"):
        small_model()(jnp.zeros(9, int))
    with pytest.raises(InputError, match="norm"):
        TokenNorm(None, "batch")  # type: ignore[arg-type]


# --- the language


@pytest.mark.parametrize("order", [1, 2])
def test_entropy_is_that_of_sampled_text(order):
    """-log p of sampled tokens and H(p) of their contexts average to the exact entropy; that of another language does not."""
    grammar = Grammar(6, order=order, memory=0.7, inverse_temperature=2.0, length=120, seed=1, dtype=jnp.float64)
    tokens = grammar.sample(jax.random.key(0), 2000)
    fields = jax.vmap(grammar.fields)(tokens[:, :-1])[:, 20:]
    surprise = -jnp.take_along_axis(grammar.log_conditionals(fields), tokens[:, order + 20 :, None], axis=-1)[..., 0]
    exact, colder = (
        grammar.entropy_rate(),
        Grammar(6, order=order, memory=0.7, inverse_temperature=2.1, seed=1).entropy_rate(),
    )
    for estimate in (surprise, grammar.conditional_entropy(fields)):
        each = np.asarray(estimate.mean(axis=1))  # sequences are independent, tokens of one are not
        z = lambda value: (each.mean() - value) / (each.std(ddof=1) / np.sqrt(len(each)))  # noqa: B023, E731
        assert abs(z(exact)) < 4
        assert abs(z(colder)) > 8


def test_entropy_of_a_chain_from_its_eigenvector():
    """Order one: the stationary distribution is the left eigenvector of the V x V transition matrix."""
    grammar = Grammar(7, order=1, inverse_temperature=1.5, length=4, dtype=jnp.float64)
    p = np.exp(np.asarray(grammar.log_conditionals(grammar.columns.T)))
    values, vectors = np.linalg.eig(p.T)
    pi = np.real(vectors[:, np.argmax(values.real)])
    expected = -(pi / pi.sum()) @ (p * np.log(p)).sum(axis=1)
    assert abs(grammar.entropy_rate() - expected) < 1e-10
    assert Grammar(7, order=1, length=4).entropy_rate() == 0.0


def test_fields_are_isotropic_over_uniform_contexts():
    """All V^2 contexts of order two: mean zero, covariance I - (what the sums to zero take), and the weights' order."""
    V = 12
    grammar = Grammar(V, order=2, memory=0.5, length=4, dtype=jnp.float64)
    contexts = jnp.asarray(np.indices((V, V)).reshape(2, -1).T)
    fields = np.asarray(jax.vmap(grammar.fields)(contexts))[:, 0]
    np.testing.assert_allclose(fields.mean(axis=0), 0, atol=1e-12)
    eigenvalues = np.linalg.eigvalsh(fields.T @ fields / len(fields))
    np.testing.assert_allclose(eigenvalues, [0.0] + [1.0] * (V - 1), atol=1e-12)
    older, newer = (np.var(fields[contexts[:, place] == 0], axis=0).sum() for place in (1, 0))
    # With one token fixed the other carries its squared weight of the variance V - 1.
    np.testing.assert_allclose([older, newer], np.array([0.2, 0.8]) * (V - 1), rtol=1e-9)


def test_gaps_of_a_long_memory_reach_zero_and_give_the_boundary_layer():
    """Aligned logits s f: L s -> pi^2/12 times the density of gaps at zero (the law's c), within 4 errors; a table of few
    contexts has a smallest gap, and L s vanishes."""
    s = 60.0
    grammar = Grammar(32, order=8, length=16, dtype=jnp.float64)
    tokens = grammar.sample(jax.random.key(3), 1500)
    log_true, fields = true_fields(grammar, tokens)
    losses = np.asarray(excess_losses(log_true, s * fields).mean(axis=1)) * s
    near = np.asarray(grammar.top_gaps(tokens[:, :-1]).reshape(losses.size, -1) < 0.05).mean(axis=1) / 0.05
    difference = losses - np.pi**2 / 12 * near
    assert abs(difference.mean()) < 4 * difference.std(ddof=1) / np.sqrt(len(difference)) + 0.03 * losses.mean()
    assert abs(losses.mean() / losses.std(ddof=1) * np.sqrt(len(losses))) > 20  # there is a loss to be explained

    table = Grammar(8, order=1, length=16, dtype=jnp.float64)
    few = table.sample(jax.random.key(3), 500)
    smallest = table.top_gaps(few[:, :-1]).min()
    log_true, fields = true_fields(table, few)
    assert smallest > 0.02
    assert float(excess_losses(log_true, 20 / smallest * fields).mean()) < 1e-7


def test_excess_loss_is_zero_for_the_truth_and_the_kl_elsewhere():
    grammar = Grammar(8, order=2, inverse_temperature=3.0, length=8, dtype=jnp.float64)
    tokens = grammar.sample(jax.random.key(0), 20)
    fields = jax.vmap(grammar.fields)(tokens[:, :-1])
    log_true, _ = true_fields(grammar, tokens)
    assert np.abs(excess_losses(log_true, 3.0 * fields + 5.0)).max() < 1e-12
    p = np.exp(3.0 * np.asarray(fields))
    q = np.exp(2.0 * np.asarray(fields))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    np.testing.assert_allclose(excess_losses(log_true, 2.0 * fields), (p * np.log(p / q)).sum(-1), rtol=1e-9)
    # A deterministic language: -log p of the only possible token, down to margins that float32 rounds away.
    hard = Grammar(3, order=1, length=2).log_conditionals(jnp.asarray([[1.0, 3.0, 2.0]]))
    np.testing.assert_allclose(excess_losses(hard, jnp.asarray([[0.0, 20.0, 0.0]])), [2 * np.exp(-20.0)], rtol=1e-6)


@pytest.mark.parametrize(
    ("argument", "bad"),
    [
        ("vocabulary", {"vocabulary": 1}), ("order", {"order": 0}), ("length", {"length": 2}), ("memory", {"memory": 0.0}),
        ("inverse_temperature", {"inverse_temperature": -1.0}), ("inverse_temperature", {"inverse_temperature": np.nan}),
    ],
)  # fmt: skip
def test_bad_languages_are_refused(argument, bad):
    with pytest.raises(InputError) as error:
        Grammar(**({"vocabulary": 8, "order": 2, "length": 8} | bad))
    assert error.value.argument == argument


def test_too_many_contexts_are_not_enumerated():
    with pytest.raises(InputError, match="order: expected at most 65536 contexts"):
        Grammar(32, order=8, inverse_temperature=2.0, length=9).entropy_rate()


# --- the probes


def test_probe_against_numpy():
    """Every number of the probe from logits and fields by numpy, and the gradient's norm as a slope of the loss."""
    model = small_model(dtype=jnp.float64)
    grammar = Grammar(8, order=2, inverse_temperature=3.0, length=8, dtype=jnp.float64)
    tokens = grammar.sample(jax.random.key(2), 16)
    probe = measure_language(model, grammar, tokens)

    @eqx.filter_jit
    def loss(model):
        logits = jax.vmap(model)(tokens[:, :-1])[:, 1:]
        return excess_losses(grammar.log_conditionals(jax.vmap(grammar.fields)(tokens[:, :-1])), logits).mean()

    fields = np.asarray(jax.vmap(grammar.fields)(tokens[:, :-1])).reshape(-1, 8)
    logits = np.asarray(jax.vmap(model)(tokens[:, :-1]))[:, 1:].reshape(-1, 8)
    fields, logits = (x - x.mean(axis=1, keepdims=True) for x in (fields, logits))
    fields = fields * np.sqrt(7 * len(fields) / (fields**2).sum())
    D = (fields * logits).sum() / (7 * len(fields))
    np.testing.assert_allclose(probe.loss, loss(model), rtol=1e-12)
    np.testing.assert_allclose(probe.overlap, D, rtol=1e-12)
    np.testing.assert_allclose(probe.spread, ((logits - D * fields) ** 2).sum() / (7 * len(fields)), rtol=1e-10)
    np.testing.assert_allclose(probe.logit_scale**2, probe.overlap**2 + probe.spread, rtol=1e-12)
    np.testing.assert_allclose(probe.error, (fields.argmax(1) != logits.argmax(1)).mean())
    gradient = eqx.filter_grad(loss)(model)
    moved = lambda h: jax.tree.map(lambda w, g: w + h * g / probe.gradient_norm, model, gradient)  # noqa: E731
    np.testing.assert_allclose((loss(moved(1e-5)) - loss(moved(-1e-5))) / 2e-5, probe.gradient_norm, rtol=1e-6)


# --- the loop


def decay(step):
    return 1 / (1 + step)


def test_update_rule_by_hand():
    """Two steps of momentum SGD with decay on the real loop: w <- w - lr s (u + decay w), u <- momentum u + gradient."""
    grammar, rate, memory, lost, seen = SMALL, 0.5, 0.8, 0.05, []
    fit(
        lambda key: build(key=key), grammar, steps=3, seeds=(0,), learning_rate=rate, momentum=memory, weight_decay=lost,
        schedule=decay, record_steps=[0, 1, 2, 3], callback=lambda step, models: seen.append(models[0]),
    )  # fmt: skip
    weights = [np.asarray(model.unembedding, float) for model in seen]
    key = jax.random.fold_in(seed_key(0), DATA)

    @eqx.filter_jit
    def batch_gradient(model, key):
        tokens = grammar.sample(key, 4)

        def loss(model):
            log_p = jax.nn.log_softmax(jax.vmap(model)(tokens[:, :-1])[:, 1:])
            return -jnp.take_along_axis(log_p, tokens[:, 2:, None], -1).mean()

        return eqx.filter_grad(loss)(model).unembedding

    velocity = np.zeros_like(weights[0])
    for n in range(3):
        velocity = memory * velocity + np.asarray(batch_gradient(seen[n], jax.random.fold_in(key, n)), float)
        expected = weights[n] - rate / (1 + n) * (velocity + lost * weights[n])
        np.testing.assert_allclose(weights[n + 1], expected, rtol=1e-4, atol=1e-6)
        assert np.abs(weights[n + 1] - weights[n]).max() > 1e-2


@pytest.mark.slow
def test_learns_a_small_table_and_stops_at_its_entropy():
    """Order one, eight contexts: the excess loss falls from log V - H to below 2 % of it, the training loss to the entropy,
    and with the tokens of another language it does not."""
    grammar = Grammar(8, order=1, inverse_temperature=2.0, length=8)
    run = fit(lambda key: build(key=key), grammar, steps=400, batch=16, seeds=(0,), learning_rate=0.01, optimizer="adamw",
              schedule=lambda n: 1 - n / 400, record_steps=[0, 300, 400], held_out=64)  # fmt: skip
    excess, entropy = run.records["loss"][0], run.records["entropy"][0, -1]
    np.testing.assert_allclose(excess[0] + entropy, np.log(8), rtol=1e-6)
    assert excess[-1] < 0.02 * excess[0]
    # 100 steps of 16 sequences of 8 predictions: the sample loss has a standard error near .01.
    assert abs(run.records["train_loss"][0, -1] - entropy) < 0.05
    assert run.records["overlap"][0, 0] == 0.0
    other = Grammar(8, order=1, inverse_temperature=2.0, length=8, seed=1)
    assert measure_language(run.model[0], other, other.sample(jax.random.key(0), 64)).loss > excess[0]


def test_a_run_that_diverges_says_so():
    with pytest.raises(SolveError, match="seed 0 at step"):
        fit(lambda key: build(key=key), SMALL, steps=12, seeds=(0, 1), learning_rate=1e30)


@pytest.mark.parametrize(
    ("argument", "bad"),
    [
        ("batch", {"batch": 0}), ("learning_rate", {"learning_rate": 0.0}), ("optimizer", {"optimizer": "lion"}),
        ("momentum", {"momentum": 1.0}), ("weight_decay", {"weight_decay": -1.0}), ("t1", {"steps": 0}),
        ("momentum", {"optimizer": "adamw", "momentum": 0.5}),
        ("record_times", {"record_steps": [20]}), ("seeds", {"seeds": (0, 0)}), ("held_out", {"held_out": 0}),
        ("build", {"build": lambda key: LanguageModel(9, 16, 1, 2, 8, key=key)}),
        ("build", {"build": lambda key: LanguageModel(8, 16, 1, 2, 7, key=key)}),
        ("schedule", {"schedule": lambda n: 1 / (0.0 * n)}),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(argument, bad):
    good = {"build": lambda key: build(key=key), "grammar": SMALL, "steps": 10, "learning_rate": 0.1} | bad
    with pytest.raises(InputError) as error:
        fit(good.pop("build"), good.pop("grammar"), **good)
    assert error.value.argument == argument


# --- the mechanism in a real transformer


@pytest.mark.slow
def test_loss_of_a_transformer_is_that_of_its_boundary_layer():
    """A trained transformer loses what logits D_b f + sqrt(Delta_b) noise lose on the same contexts, D_b and Delta_b read off
    the gap of its two top classes near zero: within 8 % for each seed. Its whole spread in place of Delta_b misses by half."""
    grammar, run = train_case("sgd", steps=4000, seeds=(0, 1), folder=None)
    layer = boundary_layer(run.model, grammar)
    predicted, measured = (np.array(layer["seeds"][name]) for name in ("loss_predicted", "loss"))
    np.testing.assert_allclose(predicted, measured, rtol=0.08)
    log_true, fields = true_fields(grammar, grammar.sample(jax.random.key(0), 1000))
    D, spread = run.mean("overlap")[-1], run.mean("spread")[-1]
    noise = jax.random.normal(jax.random.key(1), fields.shape, fields.dtype)
    isotropic = float(excess_losses(log_true, D * fields + spread**0.5 * noise).mean())
    assert isotropic > 1.5 * measured.mean()
