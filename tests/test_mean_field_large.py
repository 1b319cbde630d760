"""What is large or late on the engine: memory of 2^18 nodes, and a transition with its error bar."""

import json
import subprocess
import sys

import numpy as np
import pytest

from odescale import InputError, find_transition, integrate, mean_field, quickstart, teacher_student
from odescale.networks import HeadRows, QueryToken, RowNetwork, SelfAttention
from odescale.systems.initial import quickstart_overlaps

MEMORY = """
import json, resource, sys
sys.path[:0] = json.loads(sys.argv[1])
import jax
jax.config.update("jax_enable_x64", True)
from engine_cases import two_layers
from odescale.solve.integrate import integrate
from odescale.systems.mean_field_build import mean_field
from odescale.systems.mean_field_start import aligned_overlaps
problem = two_layers(int(sys.argv[2]))
start = aligned_overlaps(problem, alignment=0.5, common=0.3)
system = mean_field(problem, initial_overlaps=start, nodes=2**18, replicates=2, memory=2.5 * 2**30, learning_rate=0.1)
run = integrate(system, 0.02, points=3)
print(json.dumps([float(run.loss[-1]), float(run.error[-1]), 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [3, 16])
def test_two_to_the_eighteen_nodes_run_within_four_gibibytes(tokens):
    """T = 16 has 160 dimensions; everything in the process counts, JAX and the compiler included."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, json.dumps(sys.path), str(tokens)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    loss, error, peak = json.loads(done.stdout)
    print(f"T = {tokens}: loss {loss:.6f} +- {error:.1e}, peak {peak / 2**30:.2f} GiB")
    assert np.isfinite(loss) and error < 0.05  # two node sets: Student with one degree of freedom
    assert peak < 4 * 2**30


def surplus_layer(tokens: int):
    """The quickstart's network as the engine sees it: a surplus layer, two frozen readouts, a uniform second teacher layer."""

    def network(rows, *heads):
        first, second = heads
        blocks = (SelfAttention((first,)), SelfAttention((second,), asking="last"))
        return RowNetwork(rows, blocks, QueryToken(("r1", "r2")))

    student = network(("q0", "k0", "q1", "k1", "r1", "r2"), HeadRows("q0", "k0"), HeadRows("q1", "k1"))
    teacher = network(("q0", "k0", "r1", "r2"), HeadRows("q0", "k0"), HeadRows(None, None))
    return teacher_student(student, teacher, tokens=tokens, shared=("r1", "r2"))


def start_of_surplus():
    return np.asarray(quickstart_overlaps(strength=1.0, aligned=0.05, surplus=0.3, readout_scale=4.0))[0]


def transition(nodes, seed):
    system = mean_field(surplus_layer(4), initial_overlaps=start_of_surplus(), learning_rate=0.2, batch=4, dimension=200,
                        nodes=nodes, seed=seed)  # fmt: skip
    return find_transition(system, 30.0, min_depth=1.5, points=80)


@pytest.mark.slow
def test_transition_carries_an_interval():
    found = transition(1024, 0)
    assert found.found and found.interval is not None and found.stderr is not None
    assert found.interval[0] < found.t_x < found.interval[1]
    # 4 node sets: half width = t(3, .975) standard errors
    np.testing.assert_allclose((found.interval[1] - found.interval[0]) / 2, 3.182446 * found.stderr, rtol=1e-6)
    assert "4 independent node sets" in found.estimator


@pytest.mark.slow
def test_transition_of_an_engine_network_with_its_error_bar():
    """Exponential, then a power law, at T = 4: two independent estimates agree within their bars, far from infinite context."""
    coarse, fine = transition(2048, 0), transition(8192, 1)
    print(coarse, fine, sep="\n")
    assert coarse.found and fine.found
    assert fine.stderr < 0.05 * fine.t_x
    assert abs(coarse.t_x - fine.t_x) < 4 * np.hypot(coarse.stderr, fine.stderr)
    # Four tokens of context learn sooner than infinitely many, by more than the bar.
    infinite = find_transition(quickstart(), 30.0, min_depth=2)
    assert fine.t_x + 4 * fine.stderr < infinite.t_x


@pytest.mark.slow
def test_no_exponential_phase_is_an_answer():
    start = np.asarray(quickstart_overlaps(strength=1.0, aligned=0.9, surplus=0.9, readout_scale=4.0))[0]
    system = mean_field(surplus_layer(3), initial_overlaps=start, learning_rate=0.2, nodes=256, dimension=200)
    found = find_transition(system, 10.0, points=60)
    assert not found.found and found.interval is None


@pytest.mark.slow
def test_one_node_set_has_no_error_bar_and_says_so():
    start = np.asarray(quickstart_overlaps(strength=1.0, aligned=0.05, surplus=0.3, readout_scale=4.0))[0]
    system = mean_field(surplus_layer(3), initial_overlaps=start, nodes=256, replicates=1, dimension=200)
    found = find_transition(system, 30.0, min_depth=2, points=60)
    assert found.interval is None and "one node set" in found.estimator
    with pytest.raises(InputError):
        integrate(mean_field(surplus_layer(3), initial_overlaps=start, nodes=256, replicates=0, dimension=200), 1.0)
