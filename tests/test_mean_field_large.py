"""What is large or late on the engine: memory of 2^18 nodes, and a transition with its error bar."""

import json
import subprocess
import sys

import numpy as np
import pytest

from odescale import InputError, attention, find_transition, integrate, mean_field, teacher_student
from odescale.networks import Architecture, FieldNetwork, HeadRows, QueryToken, RowNetwork, SelfAttention
from odescale.networks.architecture import Head

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


ROWS = ("q0", "k0", "r0", "v0", "o0", "r0*")


def surplus_layer(tokens: int):
    """Half of the quickstart: a trained readout, and one surplus layer on frozen value and output rows."""

    def network(rows, query, key):
        block = SelfAttention((HeadRows(query, key, "v0", "o0"),), asking="last")
        return RowNetwork(rows, (block,), QueryToken(("r0", "o0")))

    student, teacher = network(ROWS[:5], "q0", "k0"), network(ROWS[2:5], None, None)
    problem = teacher_student(student, teacher, tokens=tokens, shared=("v0", "o0"))
    assert problem.rows == ROWS
    return problem


def start_of_surplus(surplus: float = 0.3, learned: float = 0.0):
    """|r0*|^2 = 14, r0 = `learned` r0*; k along v, |v|^2 = 4, |q|^2 = |k|^2 = surplus/2."""
    own, small, far = np.eye(4), np.sqrt(surplus / 2), np.sqrt(14.0)
    rows = np.stack([small * own[0], small * own[1], learned * far * own[2], 2 * own[1], own[3], far * own[2]])
    return rows @ rows.T


def surplus_system(**given):
    settings = {"tokens": 4, "initial_overlaps": start_of_surplus(), "dimension": 200, "learning_rate": 0.4, "batch": 8}
    settings |= given
    return mean_field(surplus_layer(settings.pop("tokens")), **settings)


def transition(nodes, seed):
    return find_transition(surplus_system(nodes=nodes, seed=seed), 85.0, points=80)


@pytest.mark.slow
def test_transition_carries_an_interval():
    found = transition(512, 0)
    assert found.name == "exponential, then power law" and found.interval is not None and found.stderr is not None
    assert found.interval[0] < found.t_x < found.interval[1]
    # 4 node sets: half width = t(3, .975) standard errors
    np.testing.assert_allclose((found.interval[1] - found.interval[0]) / 2, 3.182446 * found.stderr, rtol=1e-6)
    assert "4 independent node sets" in found.estimator


@pytest.mark.slow
def test_transition_of_an_engine_network_with_its_error_bar():
    """Exponential, then a power law, at T = 4: two independent estimates agree within their bars, away from infinite context."""
    coarse, fine = transition(2048, 0), transition(8192, 1)
    print(coarse, fine, sep="\n")
    assert coarse.found and fine.found
    assert fine.stderr < 0.05 * fine.t_x
    assert abs(coarse.t_x - fine.t_x) < 4 * np.hypot(coarse.stderr, fine.stderr)
    # With four tokens of context the hand-over comes sooner than with infinitely many, by more than the bar.
    at = ROWS.index
    heads = [Head(*rows, at("v0"), at("o0")) for rows in ((at("q0"), at("k0")), (None, None))]
    reads = [(at(row), at("o0")) for row in ("r0", "r0*")]
    student, teacher = (FieldNetwork(((head,),), read) for head, read in zip(heads, reads, strict=True))
    trained = tuple(row in ("q0", "k0", "r0") for row in ROWS)
    rows = Architecture(ROWS, trained, student, teacher, ((at("r0"), at("r0*")),))
    infinite = find_transition(
        attention(
            architecture=rows, initial_overlaps=start_of_surplus()[None], learning_rate=0.4, batch=8, dimension=200
        ),
        85.0,
    )
    assert infinite.found and fine.t_x + 4 * fine.stderr < infinite.t_x


@pytest.mark.slow
def test_no_exponential_phase_is_an_answer():
    """A readout that is nearly learned, beside a layer nine times as strong: the exponential is as good as over when it begins."""
    start = start_of_surplus(surplus=2.7, learned=0.9)
    found = find_transition(surplus_system(initial_overlaps=start, nodes=256), 10.0, points=60)
    assert not found.found and found.reason.startswith("no exponential phase") and found.interval is None


@pytest.mark.slow
def test_one_node_set_has_no_error_bar_and_says_so():
    found = find_transition(surplus_system(nodes=256, replicates=1), 85.0, points=60)
    assert found.found and found.interval is None and "one node set" in found.estimator
    with pytest.raises(InputError):
        integrate(surplus_system(nodes=256, replicates=0), 1.0)
