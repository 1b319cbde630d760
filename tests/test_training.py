"""SGD on the real transformer: its drift and noise are the theory's, and a run can be cut, resumed and reloaded."""

import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import oracle_closure, oracle_loss

import odescale.training.loop as loop_module
from odescale.errors import CheckpointError, InputError, SolveError
from odescale.networks.architecture import build_architecture, logistic_pair_architecture
from odescale.run import Run
from odescale.training.attention import attention_experiment
from odescale.training.initial import rows_from_overlaps
from odescale.training.train import train

ONE_LAYER = build_architecture(1)


def start_overlaps(architecture=ONE_LAYER):
    """A student that shares half of its teacher's directions: readouts of length 1, all other rows of length 1/2.

    Weak attention keeps 2 K C_qq near 1/8, so that finite-context corrections stay of order 1/T.
    """
    n_student, size = architecture.size // 2, architecture.size
    directions = np.linalg.qr(np.random.default_rng(3).normal(size=(size, size)))[0][:, : n_student + 2]
    teacher, own = directions[:n_student], directions[n_student:]
    rows = np.concatenate([0.5 * teacher + 0.8 * own, teacher])
    lengths = [1.0 if name.startswith("r") else 0.5 for name in architecture.rows]
    rows *= (np.asarray(lengths) / np.linalg.norm(rows, axis=1))[:, None]
    return rows @ rows.T


SMALL = dict(dimension=20, tokens=6, batch=2, learning_rate=0.3, seeds=(0, 1), test_sequences=64, progress=False)
TIMES = (0.5, 1.0, 2.0)


SETTINGS = (
    "dimension",
    "tokens",
    "batch",
    "learning_rate",
    "eigenvalues",
    "schedule",
    "weight_decay",
    "test_sequences",
)


def small_run(architecture=ONE_LAYER, overlaps=None, t1=TIMES[-1], **options):
    given = {**SMALL, "record_times": TIMES, **options}
    settings = {name: given.pop(name) for name in SETTINGS if name in given}
    start = start_overlaps(architecture) if overlaps is None else overlaps
    return train(attention_experiment(architecture, start, **settings), t1, **given)


@pytest.fixture(scope="module")
def whole():
    return small_run()


def same(a, b):
    for name in a.records:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    for name, values in a.model.items():
        np.testing.assert_array_equal(values, b.model[name], err_msg=name)
    np.testing.assert_array_equal(a.step, b.step)


def ode(architecture, q, eta, batch, times, noise=1.0):
    """Runge-Kutta on the oracle's closure, isotropic tokens: overlaps at the times."""

    def rhs(q):
        G, H, V = oracle_closure(q, q, architecture)
        M = -eta * (G + H)
        return M @ q + q @ M.T + noise * eta**2 / batch * V

    @jax.jit
    def advance(q, h):
        def step(_, q):
            a = rhs(q)
            b = rhs(q + h / 2 * a)
            c = rhs(q + h / 2 * b)
            return q + h / 6 * (a + 2 * b + 2 * c + rhs(q + h * c))

        return jax.lax.fori_loop(0, 50, step, q)

    out, previous = [], 0.0
    for t in times:
        q = advance(q, (t - previous) / 50)
        previous = t
        out.append(np.asarray(q))
    return np.stack(out)


@pytest.mark.parametrize(
    ("value", "heads", "rank"),
    [("identity", 1, 1), ("rows", 1, 1), ("identity", 2, 2)],
    ids=["identity", "rows", "rank 2"],
)
def test_mean_gradient_is_the_drift_of_the_theory(value, heads, rank):
    """E[grad A^T] = (G C + H R): 2000 samples, T = 32 and 128 extrapolated as 1/T, every entry within 4.5 errors."""
    architecture = build_architecture(1, heads, value=value, rank=rank, key_value_heads=1)  # two heads share their keys
    d, q = 30, start_overlaps(architecture)
    rows = jnp.asarray(rows_from_overlaps(q, dimension=d))
    moved = np.flatnonzero(architecture.trained_mask)

    def products(tokens, samples, seed):
        step = attention_experiment(architecture, q, tokens=tokens, batch=1, dimension=d, learning_rate=1.0)

        def one(i):
            key = jax.random.fold_in(jax.random.key(seed), i)
            return jax.grad(step.sample_loss)(rows[moved], rows, key) @ rows.T

        out = np.asarray(jax.jit(lambda: jax.lax.map(one, jnp.arange(samples), batch_size=50))())
        return out.mean(axis=0), out.std(axis=0) / np.sqrt(samples)

    (short, short_error), (long, long_error) = products(32, 2000, 0), products(128, 2000, 1)
    limit, error = (4 * long - short) / 3, np.hypot(4 * long_error, short_error) / 3
    G, H, _ = oracle_closure(jnp.asarray(q), jnp.asarray(q), architecture)
    expected = np.asarray((G + H) @ q)[moved]
    z = (limit - expected) / error
    assert np.abs(z).max() < 4.5, z
    assert np.abs(expected / error).max() > 8  # there is a drift to be seen


@pytest.mark.slow
def test_gradient_noise_is_the_noise_of_the_theory():
    """E[grad grad^T] = V, T = 256, d = 200: within 4.5 errors and what 1/T and 1/d leave (P/d + 5/T of the largest)."""
    d, tokens, samples, q = 200, 256, 1500, start_overlaps()
    rows = jnp.asarray(rows_from_overlaps(q, dimension=d), jnp.float32)
    moved = np.flatnonzero(ONE_LAYER.trained_mask)
    step = attention_experiment(ONE_LAYER, q, tokens=tokens, batch=1, dimension=d, learning_rate=1.0)

    def one(i):
        key = jax.random.fold_in(jax.random.key(5), i)
        gradient = jax.grad(step.sample_loss)(rows[moved], rows, key)
        return gradient @ gradient.T

    out = np.asarray(jax.jit(lambda: jax.lax.map(one, jnp.arange(samples), batch_size=20))())
    expected = np.asarray(oracle_closure(jnp.asarray(q), jnp.asarray(q), ONE_LAYER)[2])[np.ix_(moved, moved)]
    error = out.std(axis=0) / np.sqrt(samples)
    left = (ONE_LAYER.size / d + 5 / tokens) * np.abs(expected).max()
    assert (np.abs(out.mean(axis=0) - expected) < 4.5 * error + left).all()
    assert np.abs(expected / (error + left)).max() > 5


def test_short_run_follows_the_ode_with_its_noise():
    """Mean over 8 seeds at d = 100, T = 128 within its errors; frozen overlaps and a noise-free theory are far off."""
    eta, batch, times = 1.0, 1, np.array([0.5, 1.0, 2.0])
    q = start_overlaps()
    run = small_run(dimension=100, tokens=128, batch=batch, learning_rate=eta, record_times=times, seeds=8)
    np.testing.assert_allclose(run.t, times)
    theory = ode(ONE_LAYER, jnp.asarray(q), eta, batch, times)
    mean, error = run.mean("overlaps"), run.scatter("overlaps")
    moving = np.ix_(range(3), range(3), range(6))
    rms = lambda reference: np.sqrt(np.mean(np.square((mean - reference)[moving] / error[moving])))  # noqa: E731
    assert rms(theory) < 2.0
    assert rms(q) > 8

    # Most of the last loss is the noise term of the theory: without it the loss would be 6 times smaller. Measured: the
    # run is 12 % below at d = 100 and within its error of 2 % at d = 400; a noise term wrong by a factor 1.3 would show.
    loss = lambda c: float(oracle_loss(jnp.asarray(c), jnp.asarray(c), ONE_LAYER))  # noqa: E731
    quiet = loss(ode(ONE_LAYER, jnp.asarray(q), eta, batch, times, noise=0.0)[-1])
    assert abs(run.mean("loss_infinite")[-1] - loss(theory[-1])) < 0.25 * (loss(theory[-1]) - quiet)
    for i in range(3):
        np.testing.assert_allclose(
            run["loss_infinite"][0, i],
            oracle_loss(jnp.asarray(run["overlaps"][0, i]), jnp.asarray(q), ONE_LAYER),
            rtol=1e-10,
        )


def test_how_steps_are_cut_into_calls_changes_nothing(monkeypatch, whole):
    monkeypatch.setattr(loop_module, "SECONDS_PER_CALL", 1e-9)
    same(small_run(), whole)


def test_frozen_rows_stay_and_only_they(precision="float64"):
    architecture = logistic_pair_architecture()
    q = start_overlaps(architecture)
    initial = rows_from_overlaps(q, dimension=20, seed=0)
    run = small_run(architecture, t1=7 / 20, record_times=None, seeds=(0,), precision=precision)
    assert run.step[-1] == 7
    rows = run.model["rows"][0]
    np.testing.assert_array_equal(rows[4:], initial[4:])
    assert (np.abs(rows[:4] - initial[:4]).max(axis=1) > 1e-4).all()


def test_schedule_and_weight_decay():
    """A schedule that ends stops the run; weights alone decay as exp(-w t) when the learning rate is nothing."""
    run = small_run(schedule=lambda t: jnp.where(t < 1.0, 1.0, 0.0), seeds=(0,))
    C = run["overlaps"][0]
    np.testing.assert_array_equal(C[1], C[2])
    assert np.abs(C[0] - C[1]).max() > 1e-3
    w = 0.7
    decayed = small_run(learning_rate=1e-12, weight_decay=w, seeds=(0,), precision="float64")
    shrink = (1 - w / 20) ** decayed.step
    C = decayed["overlaps"][0]
    np.testing.assert_allclose(C[:, 2, 2] / start_overlaps()[2, 2], shrink**2, rtol=1e-9)
    np.testing.assert_allclose(C[:, 2, 5] / start_overlaps()[2, 5], shrink, rtol=1e-9)
    np.testing.assert_allclose(C[:, 5, 5], start_overlaps()[5, 5], rtol=1e-12)


def test_spectrum_runs_on_its_own_clock():
    lam = np.repeat([4.0, 1.0], [4, 16]) / 32  # trace 1: one unit of t is one step
    run = small_run(dimension=None, eigenvalues=lam, t1=3.0, record_times=(1.0, 3.0), learning_rate=0.01)
    np.testing.assert_array_equal(run.step, [1, 3])
    np.testing.assert_allclose(run.t, [1.0, 3.0])
    rows = run.model["rows"][0].astype(float)
    np.testing.assert_allclose(run["overlaps"][0, -1], rows * lam @ rows.T, rtol=1e-12)
    np.testing.assert_allclose(run["row_overlaps"][0, -1], rows @ rows.T, rtol=1e-12)


def test_divergence_names_seed_step_and_remedy():
    with pytest.raises(SolveError, match=r"seed \d at step \d+ .*learning_rate"):
        small_run(learning_rate=1e4)


class Stop(Exception):
    pass


def test_resume_after_an_exception_gives_the_same_numbers(tmp_path, whole):
    path = tmp_path / "run.npz"

    def stop(step, model):
        if step == 20:
            raise Stop

    with pytest.raises(Stop):
        small_run(checkpoint=path, callback=stop)
    resumed = small_run(checkpoint=path)
    assert resumed.meta["steps_this_session"] == 20
    same(resumed, whole)
    again = small_run(checkpoint=path)  # finished already: read back, nothing trained
    assert again.meta["steps_this_session"] == 0
    same(again, whole)


def test_checkpoint_between_records(tmp_path, monkeypatch, whole):
    """With checkpoint_seconds = 0 every call writes; a run that stops between records resumes from there."""
    path = tmp_path / "run.npz"
    monkeypatch.setattr(loop_module, "SECONDS_PER_CALL", 1e-9)
    calls = []
    real = loop_module.save

    def stop(*arguments):
        real(*arguments)
        calls.append(1)
        if len(calls) == 15:
            raise Stop

    monkeypatch.setattr(loop_module, "save", stop)
    with pytest.raises(Stop):
        small_run(checkpoint=path, checkpoint_seconds=0.0)
    monkeypatch.setattr(loop_module, "save", real)
    resumed = small_run(checkpoint=path)
    assert 0 < resumed.meta["steps_this_session"] < 40
    same(resumed, whole)


CHILD = """
import sys
sys.path.insert(0, {tests!r})
import jax
jax.config.update("jax_enable_x64", True)
import time
import test_training as t
t.small_run(checkpoint={path!r}, callback=lambda step, model: step == 20 and time.sleep(600))
"""


@pytest.mark.slow
def test_resume_after_sigkill_gives_the_same_numbers(tmp_path, whole):
    path = str(tmp_path / "run.npz")
    child = subprocess.Popen([sys.executable, "-c", CHILD.format(tests=os.path.dirname(__file__), path=path)])
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (os.path.exists(path) and _records(path) >= 2):
            assert child.poll() is None, "the child ended by itself"
            time.sleep(0.1)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    resumed = small_run(checkpoint=path)
    assert 0 < resumed.meta["steps_this_session"] < 40
    same(resumed, whole)


def _records(path):
    with np.load(path) as file:
        return file["record:loss"].shape[1] if "record:loss" in file else 0


def test_bad_checkpoints_are_refused(tmp_path, whole):
    path = tmp_path / "run.npz"
    small_run(checkpoint=path)
    good = path.read_bytes()
    with pytest.raises(CheckpointError, match="another learning_rate.*resume=False") as raised:
        small_run(checkpoint=path, learning_rate=0.2)
    assert str(path) in str(raised.value)
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 255
    for content in (good[: len(good) // 2], b"", b"not a file of numbers", bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="checkpoint: expected a complete odescale training checkpoint"):
            small_run(checkpoint=path)
    same(small_run(checkpoint=path, resume=False), whole)


def test_run_saves_and_loads(tmp_path):
    run = small_run(schedule=lambda t: 1 / (1 + t))
    back = Run.load(run.save(tmp_path / "result.npz"))
    same(back, run)
    assert back.config == run.config
    np.testing.assert_array_equal(back.seeds, run.seeds)
    np.testing.assert_allclose(back.clock.tau(2.0), run.clock.tau(2.0), rtol=1e-4)
    assert back.clock.steps_per_unit == 20
    np.testing.assert_allclose(run.mean(), run["loss"].mean(axis=0))
    assert (run.stderr() > 0).all()
    with pytest.raises(CheckpointError, match="path"):
        Run.load(tmp_path / "none.npz")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"learning_rate": np.nan}, "learning_rate"),
        ({"batch": 0}, "batch"),
        ({"tokens": 0}, "tokens"),
        ({"seeds": (0, 0)}, "seeds"),
        ({"seeds": 0}, "seeds"),
        ({"seeds": 2.5}, "seeds"),
        ({"t1": 0.0}, "t1"),
        ({"t1": np.inf}, "t1"),
        ({"t1": 1.0}, "record_times"),
        ({"record_times": (-1.0, 1.0)}, "record_times"),
        ({"record_times": None, "records": 1}, "records"),
        ({"keep_at": (1.0,)}, "checkpoint"),
        ({"keep_at": (3.0,), "checkpoint": "none.npz"}, "keep_at"),
        ({"checkpoint_seconds": -1.0}, "checkpoint_seconds"),
        ({"moment": 0.9}, "moment"),
        ({"precision": "float16"}, "precision"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"dimension": 3}, "dimension"),
    ],
)
def test_bad_arguments(options, word):
    with pytest.raises(InputError, match=f"^{word}"):
        small_run(**options)


def test_bad_overlaps():
    bad = start_overlaps()
    bad[0, 1] = bad[1, 0] = 10.0
    with pytest.raises(InputError, match="positive semi-definite"):
        small_run(overlaps=bad)
    with pytest.raises(InputError, match="initial_overlaps"):
        small_run(overlaps=np.eye(4))
