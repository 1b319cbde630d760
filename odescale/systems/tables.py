"""The parameters of every theory in the library: names, defaults, domains, units, meanings, as data.

Read by the builders (what they accept), by the command line (`--set`, `odescale systems`) and by signatures. Nothing here needs
JAX, so that a list of systems is printed at once.
"""

from __future__ import annotations

from math import inf

from odescale.systems.parameters import Parameter, at_least_one, non_negative, positive

ACTIVATIONS = ("erf", "gelu", "relu", "tanh", "linear", "quadratic")
READOUTS = ("query", "per_token", "mean_pool")
"""The names of `odescale.networks`; a test holds the two together."""

ATTENTION_NUMBERS = (
    Parameter("learning_rate", 0.2, "a positive finite number", positive, "1", "plain SGD learning rate eta"),
    Parameter("batch", 4.0, "a number >= 1", at_least_one, "sequences", "sequences averaged in one step"),
    Parameter("weight_decay", 0.0, "a number >= 0", non_negative, "per unit of t", "W <- W - (w/N) W each step"),
    Parameter("noise", 1.0, "a number in [0, 1]", lambda x: 0 <= x <= 1, "1", "1 keeps the SGD noise, 0 drops it"),
    Parameter("tokens", 64.0, "a number >= 2, inf allowed", lambda x: x >= 2, "tokens", "context length T"),
)


MEAN_FIELD = (
    Parameter("learning_rate", 0.2, "a positive finite number", positive, "1", "plain SGD learning rate eta"),
    Parameter("batch", 1.0, "a number >= 1", at_least_one, "sequences", "sequences averaged in one step"),
    Parameter("weight_decay", 0.0, "a number >= 0", non_negative, "per unit of t", "W <- W - (w/N) W each step"),
    Parameter("momentum", 0.0, "a number in [0, 1)", lambda x: 0 <= x < 1, "1", "heavy ball, fixed as d grows"),
    Parameter("friction", 0.0, "a number >= 0", non_negative, "per unit of t", "gamma of mu = 1 - gamma/N; 0: off"),
    Parameter("noise", 1.0, "a number in [0, 1]", lambda x: 0 <= x <= 1, "1", "1 keeps the SGD noise V, 0 drops it"),
    Parameter("write_back", 1.0, "a number in [0, 1]", lambda x: 0 <= x <= 1, "1", "1 keeps H, 0 drops it"),
)


OPTIMIZER_WORDS = ("sgd", "adam", "muon", "sign", "lion")

OPTIMIZER = (
    Parameter("optimizer", "sgd", f"one of {', '.join(OPTIMIZER_WORDS)}", lambda x: x in OPTIMIZER_WORDS, "word",
              "learning_rate is then per step times sqrt(N) (adam, sign, lion) or the length of a step (muon)", str),
    Parameter("beta1", 0.9, "a number in [0, 1)", lambda x: 0 <= x < 1, "1", "of adam, lion: memory of gradients"),
    Parameter("beta2", 0.999, "a number in [0, 1)", lambda x: 0 <= x < 1, "1", "of adam: of squared gradients; lion: .99"),
    Parameter("eps", 1e-8, "a number >= 0", non_negative, "1", "of adam: m/(sqrt(v) + eps)"),
    Parameter("nesterov", True, "true or false", lambda x: True, "1", "look-ahead of muon's momentum", bool),
    Parameter("clip", inf, "a positive number, inf allowed", lambda x: x > 0, "1", "largest norm of a batch's gradient"),
)  # fmt: skip

PEAKED = (
    Parameter("classes", 10, "an integer from 2 to 1e5", lambda x: 2 <= x <= 1e5, "1", "K", int),
    Parameter(
        "labels",
        "hard",
        "hard, soft or sampled",
        lambda x: x in ("hard", "soft", "sampled"),
        "word",
        "argmax of the teacher's fields, their softmax, or a draw from it",
        str,
    ),
    Parameter("inverse_temperature", inf, "a positive number, inf allowed", lambda x: x > 0, "1", "b* of the teacher"),
    Parameter(
        "learning_rate",
        1.0,
        "a positive finite number",
        positive,
        "1",
        "eta; per weight for adam, sign; length of the step for normalised, muon",
    ),
    Parameter("batch", 1.0, "a number >= 1", at_least_one, "samples", "samples averaged in one step"),
    Parameter(
        "optimizer",
        "sgd",
        "sgd, adam, normalised, sign or muon",
        lambda x: x in ("sgd", "adam", "normalised", "sign", "muon"),
        "word",
        "normalised: the gradient divided by its Frobenius norm",
        str,
    ),
    Parameter("weight_decay", 0.0, "a number >= 0", non_negative, "per unit of t", "W <- W - (w/d) W each step"),
    Parameter("noise", 1.0, "a number in [0, 1]", lambda x: 0 <= x <= 1, "1", "1 keeps the SGD noise, 0 drops it"),
    Parameter("overlap", 0.0, "a number >= 0", non_negative, "1", "D at t = 0"),
    Parameter("spread", 0.0, "a number >= 0", non_negative, "1", "Delta at t = 0"),
    Parameter("dimension", 1000.0, "a positive finite number", positive, "1", "d, SGD steps in one unit of t"),
    Parameter("smoothing", 0.0, "a number in [0, 1)", lambda x: 0 <= x < 1, "1", "label smoothing: (1 - e) y + e/K"),
    Parameter(
        "loss",
        "cross_entropy",
        "cross_entropy; focal, brier or square with two classes",
        lambda x: x in ("cross_entropy", "focal", "brier", "square"),
        "word",
        "what is trained; brier on probabilities, square on logits",
        str,
    ),
    Parameter("focusing", 2.0, "a number >= 0", non_negative, "1", "exponent of the focal loss"),
    Parameter(
        "memory",
        0.999,
        "a number in [0, 1)",
        lambda x: 0 <= x < 1,
        "1",
        "beta2 of adam, its memory of squared gradients",
    ),
    Parameter("schedule", "constant", "a schedule such as power:0.3", lambda x: True, "times in t", "eta(t)/eta", str),
    Parameter(
        "logit_schedule",
        "constant",
        "a schedule such as growth:0.6:10",
        lambda x: True,
        "times in t",
        "beta(t): p = softmax(beta lam)",
        str,
    ),
)


KERNEL = (
    Parameter("width", 32, "an integer from 8 to 4096", lambda x: 8 <= x <= 4096, "1", "width, heads of 8", int),
    Parameter("depth", 2, "an integer from 1 to 16", lambda x: 1 <= x <= 16, "layers", "attention + MLP blocks", int),
    Parameter("samples", 16, "an integer from 1 to 4096", lambda x: 1 <= x <= 4096, "1", "training sequences", int),
    Parameter("test_samples", 16, "an integer from 0 to 4096", lambda x: 0 <= x <= 4096, "1", "test sequences", int),
    Parameter("tokens", 4, "an integer from 1 to 1024", lambda x: 1 <= x <= 1024, "tokens", "length", int),
    Parameter("inputs", 8, "an integer from 1 to 1024", lambda x: 1 <= x <= 1024, "1", "entries of a token", int),
    Parameter("outputs", 4, "an integer from 1 to 1024", lambda x: 1 <= x <= 1024, "1", "outputs per token", int),
    Parameter(
        "loss",
        "square",
        "one of square, cross_entropy",
        lambda x: x in ("square", "cross_entropy"),
        "word",
        "what is descended",
        str,
    ),
    Parameter(
        "learning_rate",
        0.0,
        "0 (a quarter of the largest stable one) or a positive number",
        non_negative,
        "per step",
        "eta of the network at scale 1; divided by scale^2",
    ),
    Parameter("scale", 1.0, "a positive finite number", positive, "1", "lazy scale alpha of the outputs"),
    Parameter("centred", True, "true or false", lambda x: True, "flag", "subtract the outputs at the start", bool),
    Parameter("seed", 0, "an integer from 0 to 2^32", lambda x: 0 <= x < 2**32, "1", "of weights and data", int),
)


SPECTRAL_OPTIMIZERS = ("sgd", "adam", "sign")

SPECTRAL = (
    Parameter("modes", 1024, "an integer from 1 to 1e8", lambda x: 1 <= x <= 1e8, "1", "d, number of features", int),
    Parameter("spectrum_exponent", 1.5, "a positive finite number", positive, "1", "b of lam_j = j^-b"),
    Parameter("risk_exponent", 2.0, "a positive finite number", positive, "1", "a of lam_j rho_j(0) = j^-a"),
    Parameter("learning_rate", 0.1, "a positive finite number", positive, "1", "eta"),
    Parameter("batch", 1.0, "a number >= 1, inf allowed", lambda x: x >= 1, "samples", "samples averaged in one step"),
    Parameter("noise", 0.0, "a number >= 0", non_negative, "target^2", "s^2, variance of the label noise"),
    Parameter(
        "per_decade",
        0.0,
        "0 (every mode) or a number from 1 to 1000",
        lambda x: x == 0 or 1 <= x <= 1000,
        "1",
        "bins per decade of the spectrum",
    ),
    Parameter(
        "bin_nodes", 3, "an integer from 1 to 4", lambda x: 1 <= x <= 4, "1", "Gauss nodes per bin and measure", int
    ),
    Parameter(
        "schedule", "constant", "a schedule such as cosine:1e6", lambda x: True, "times in steps", "eta(t)/eta", str
    ),
    Parameter("optimizer", "sgd", f"one of {', '.join(SPECTRAL_OPTIMIZERS)}", lambda x: x in SPECTRAL_OPTIMIZERS, "word",
              "learning_rate is then that of adam or sign, .001 by default", str),
    Parameter("basis", "eigen", "eigen or rotated", lambda x: x in ("eigen", "rotated"), "word",
              "coordinates of adam and sign: eigenvectors, or all of one variance", str),
    Parameter("beta1", 0.9, "a number in [0, 1)", lambda x: 0 <= x < 1, "1", "of adam: memory of gradients"),
    Parameter("beta2", 0.999, "a number in [0, 1)", lambda x: 0 <= x < 1, "1", "of adam: of squared gradients"),
    Parameter("eps", 1e-8, "a number >= 0", non_negative, "1", "of adam: m/(sqrt(v) + eps)"),
    Parameter("weight_decay", 0.0, "a number >= 0", non_negative, "1/step", "of adam and sign: decoupled, per step"),
)  # fmt: skip


_SHARED = (
    *ATTENTION_NUMBERS,
    Parameter(
        "sequences", 1024, "an integer from 64 to 1e6", lambda x: 64 <= x <= 1e6, "1", "nodes of context=sampled", int
    ),
    Parameter("dimension", 200, "an integer >= 4", lambda x: x >= 4, "1", "d, SGD steps in one unit of t", int),
    Parameter(
        "schedule", "constant", "a schedule such as cosine:30:0.1", lambda x: True, "times in t", "eta(t)/eta", str
    ),
)


_HEADS = (
    Parameter("rank", 1, "an integer from 1 to 16", lambda x: 1 <= x <= 16, "1", "query and key rows of a head", int),
    Parameter(
        "key_value_heads",
        0,
        "0 (one per head) or a divisor of heads",
        lambda x: 0 <= x <= 8,
        "1",
        "sets of key and value rows, each shared by equally many heads",
        int,
    ),
)  # fmt: skip


ATTENTION = (
    Parameter("depth", 2, "an integer from 1 to 8", lambda x: 1 <= x <= 8, "layers", "attention layers", int),
    Parameter("heads", 1, "an integer from 1 to 8", lambda x: 1 <= x <= 8, "1", "softmax heads per layer", int),
    *_HEADS,
    Parameter("outputs", 1, "an integer from 1 to 16", lambda x: 1 <= x <= 16, "1", "readout rows", int),
    Parameter(
        "value",
        "identity",
        "identity or rows",
        lambda x: x in ("identity", "rows"),
        "word",
        "value = identity, or value and output rows",
        str,
    ),  # fmt: skip
    Parameter("train_readouts", True, "true or false", lambda x: True, "flag", "false: frozen, shared readouts", bool),
    Parameter("strength", 0.5, "a positive finite number", positive, "1", "squared length of the teacher's rows"),
    Parameter("alignment", 0.3, "a number in [-1, 1]", lambda x: -1 <= x <= 1, "cosine", "student/teacher cosine at 0"),
    Parameter("scale", 1.0, "a positive finite number", positive, "1", "student/teacher row length at 0"),
    Parameter(
        "context",
        "infinite",
        "infinite, finite or sampled",
        lambda x: x in ("infinite", "finite", "sampled"),
        "word",
        "finite: add the O(1/tokens) correction (one layer); sampled: all orders (isotropic, value = identity)",
        str,
    ),  # fmt: skip
    Parameter(
        "capacity",
        0.0,
        "0 (isotropic) or a number > 1",
        lambda x: x == 0 or 1 < x < 10,
        "1",
        "a in lam_k ~ k^-a, normalised to trace 1, so that t counts steps",
    ),  # fmt: skip
    Parameter(
        "modes", 1e8, "a number from 1e2 to 1e15", lambda x: 1e2 <= x <= 1e15, "1", "eigenvalues, with capacity", int
    ),
    Parameter("source", 0.5, "a positive number", positive, "1", "s in lam_k beta_k^2 ~ k^(-s a - 1), with capacity"),
    *_SHARED,
    *(parameter for parameter in OPTIMIZER if parameter.name != "clip"),
)


LOGISTIC_PAIR = (
    Parameter("strength", 1.0, "a positive finite number", positive, "1", "beta, the teacher's attention y*"),
    Parameter("aligned", 0.05, "a positive finite number", positive, "1", "y0(0), the layer that must learn beta"),
    Parameter("surplus", 0.3, "a positive finite number", positive, "1", "y1(0), the layer that must vanish"),
    Parameter("readout_scale", 4.0, "a positive finite number", positive, "1", "R = |r|^2/d of the frozen readouts"),
    Parameter(
        "context",
        "infinite",
        "infinite or sampled",
        lambda x: x in ("infinite", "sampled"),
        "word",
        "sampled: dynamics and loss at `tokens` context tokens, by fixed random nodes",
        str,
    ),  # fmt: skip
    *_SHARED,
)


QUICKSTART = (
    Parameter(
        "readout",
        14.0,
        "a positive finite number",
        positive,
        "1",
        "A = |r0*|^2/d, what the trained readout starts off by",
    ),
    Parameter("surplus", 0.3, "a positive finite number", positive, "1", "y(0) of the two layers that must vanish"),
    Parameter("value_scale", 4.0, "a positive finite number", positive, "1", "R = |v|^2/d of the frozen value rows"),
    Parameter("learning_rate", 0.4, "a positive finite number", positive, "1", "plain SGD learning rate eta"),
    Parameter("batch", 8.0, "a number >= 1", at_least_one, "sequences", "sequences averaged in one step"),
    *(one for one in ATTENTION_NUMBERS if one.name not in ("learning_rate", "batch", "tokens")),
    Parameter("tokens", 32.0, "a number >= 2, inf allowed", lambda x: x >= 2, "tokens", "context length T of a run"),
    Parameter("dimension", 64, "an integer >= 8", lambda x: x >= 8, "1", "d, SGD steps in one unit of t", int),
    Parameter(
        "schedule", "constant", "a schedule such as cosine:30:0.1", lambda x: True, "times in t", "eta(t)/eta", str
    ),
)


def _words(name: str, default: str, allowed: tuple[str, ...], meaning: str) -> Parameter:
    return Parameter(name, default, f"one of {', '.join(allowed)}", lambda x: x in allowed, "word", meaning, str)


def _count(name: str, default: int, least: int, most: int, meaning: str, unit: str = "1") -> Parameter:
    domain = f"an integer from {least} to {most}"
    return Parameter(name, default, domain, lambda x: least <= x <= most, unit, meaning, int)


CLASSES = 3
"""Classes of cross_entropy where `outputs` is left to the system."""


_START = (
    Parameter(
        "strength", 0.3, "a positive finite number", positive, "1", "squared length of the teacher's rows but readouts"
    ),
    Parameter("alignment", 0.3, "a number in [-1, 1]", lambda x: -1 <= x <= 1, "cosine", "student/teacher cosine at 0"),
    Parameter("scale", 1.0, "a positive finite number", positive, "1", "student/teacher row length at 0"),
)


_LABELS = (
    Parameter("label_noise", 0.0, "a number >= 0", non_negative, "1", "sigma of noise on the labels, square loss"),
)


_SPECTRUM = (
    Parameter("dimension", 500, "an integer >= 4", lambda x: x >= 4, "1", "d, SGD steps in one unit of t", int),
    Parameter(
        "capacity", 0.0, "0 (isotropic) or a number > 1", lambda x: x == 0 or 1 < x < 10, "1",
        "a in lam_k ~ k^-a, normalised to trace 1, so that t counts steps",
    ),
    Parameter("modes", 1e8, "a number from 1e2 to 1e15", lambda x: 1e2 <= x <= 1e15, "1", "eigenvalues, with capacity",
              int),
    Parameter("source", 0.5, "a positive number", positive, "1", "s in lam_k beta_k^2 ~ k^(-s a - 1), with capacity"),
)  # fmt: skip


BATCH = 4


LEARNING_RATE = 0.3


_TRAINING = (
    Parameter("learning_rate", LEARNING_RATE, "a positive finite number", positive, "1", "plain SGD learning rate eta"),
    Parameter("batch", BATCH, "a number >= 1", at_least_one, "sequences", "sequences averaged in one step"),
    *(parameter for parameter in MEAN_FIELD if parameter.name not in ("learning_rate", "batch")),
    *OPTIMIZER,
    Parameter(
        "schedule", "constant", "a schedule such as cosine:30:0.1", lambda x: True, "times in t", "eta(t)/eta", str
    ),
)


_NODES = (
    Parameter(
        "nodes", 0, "0 (automatic) or a power of two from 16 to 4194304",
        lambda x: x == 0 or (16 <= x <= 2**22 and x == int(x) and int(x) & (int(x) - 1) == 0), "1",
        "quadrature nodes of one replicate", int,
    ),
    Parameter("accuracy", 0.02, "a number in (0, 1)", lambda x: 0 < x < 1, "relative",
              "half width of the drift that nodes=0 aims at"),
    _count("budget", 8192, 64, 2**22, "most nodes of one replicate that nodes=0 may take"),
    _count("replicates", 4, 2, 64, "independent node sets behind the error bar"),
    _count("seed", 0, 0, 2**31, "of the nodes"),
    _words("closure", "auto", ("auto", "quadrature", "closed"), "auto: a closed form where there is one, else quadrature"),
)  # fmt: skip


TRANSFORMER = (
    _count("depth", 2, 1, 8, "attention layers", "layers"),
    _count("heads", 1, 1, 8, "attention heads per layer"),
    *_HEADS,
    _count("tokens", 3, 1, 256, "T, tokens of a sequence", "tokens"),
    _words("value", "identity", ("identity", "rows"), "value = identity, or value and output rows"),
    _words("attention", "softmax", ("softmax", "linear"), "kernel of attention"),
    Parameter("causal", False, "true or false", lambda x: True, "flag", "attend to s <= t only", bool),
    _count("mlp", 0, 0, 64, "units after the attention of each layer, 0: none"),
    _words("activation", "erf", ACTIVATIONS, "of the units"),
    _words("norm", "none", ("none", "rms"), "rms: blocks read normalised tokens"),
    Parameter("positions", False, "true or false", lambda x: True, "flag", "one trained row per position", bool),
    _words("readout", "query", READOUTS, "last token, every token, or the average token"),
    _count("outputs", 0, 0, 16, f"readout rows; 0: one, or {CLASSES} classes with cross_entropy"),
    _words("loss", "square", ("square", "cross_entropy"), "against the teacher's outputs"),
    _words("labels", "soft", ("soft", "hard", "sampled"), "labels of cross_entropy"),
    *_LABELS,
    Parameter(
        "correlation", 0.0, "a number in (-1, 1)", lambda x: -1 < x < 1, "1", "r of tokens with rho_ts = r^|t-s|"
    ),
    *_START,
    *_SPECTRUM,
    *_TRAINING,
    *_NODES,
)


COMMITTEE = (
    _count("units", 2, 1, 16, "K, units of the student"),
    _count("teacher_units", 2, 1, 16, "M, units of the teacher"),
    _words("activation", "erf", ACTIVATIONS, "of the units"),
    *_LABELS,
    *(parameter for parameter in _START if parameter.name != "strength"),
    Parameter("strength", 1.0, "a positive finite number", positive, "1", "squared length of the teacher's rows"),
    *_SPECTRUM,
    *_TRAINING,
    *_NODES,
)

DERIVED = (
    Parameter("learning_rate", 0.1, "a positive finite number", positive, "1", "plain SGD learning rate eta"),
    Parameter("batch", 1.0, "a number >= 1", at_least_one, "samples", "samples averaged in one step"),
    Parameter("weight_decay", 0.0, "a number >= 0", non_negative, "per unit of t", "W <- W - (w/N) W each step"),
    Parameter("noise", 1.0, "a number in [0, 1]", lambda x: 0 <= x <= 1, "1", "1 keeps the SGD noise, 0 drops it"),
    Parameter("dimension", 1000, "an integer >= 2", lambda x: x >= 2, "1", "d, SGD steps in one unit of t", int),
    Parameter(
        "schedule", "constant", "a schedule such as cosine:30:0.1", lambda x: True, "times in t", "eta(t)/eta", str
    ),
)


PRUNING = (
    Parameter("keep", 0.4, "a share in (0, 1]", lambda x: 0 < x <= 1, "1", "share of the examples that is kept"),
    Parameter("rule", "easy", "easy, hard or random", lambda x: x in ("easy", "hard", "random"), "word",
              "the largest margins |B.x|, the smallest, or any", str),
    Parameter("learning_rate", 1.0, "a positive finite number", positive, "1", "eta of J <- J + (eta/sqrt d) g y x"),
    Parameter("overlap", 0.1, "a number in (-1, 1)", lambda x: -1 < x < 1, "1", "cosine of student and teacher at the start"),
    Parameter("norm", 1.0, "a positive finite number", positive, "1", "Q(0) = |J|^2/d"),
    Parameter("dimension", 500.0, "a number >= 2", lambda x: 2 <= x < inf, "1", "d, SGD steps in one unit of t"),
    Parameter("schedule", "constant", "a schedule such as power:0.5", lambda x: True, "times in t", "eta(t)/eta", str),
)  # fmt: skip

_COSTS = (
    Parameter(
        "saturation",
        256.0,
        "a positive finite number",
        positive,
        "tokens",
        "m_0, tokens of a pass where computing takes over",
    ),
    Parameter("sharpness", 2.0, "a positive finite number", positive, "1", "q of the roofline (1 + (m/m_0)^q)^(1/q)"),
    Parameter(
        "context", 0.008, "a number >= 0", non_negative, "plain rounds", "k_v, keys and values of one more request"
    ),
    Parameter("fixed", 0.1, "a number >= 0", non_negative, "plain rounds", "c_0 of a speculative round"),
    Parameter("draft", 0.03, "a number >= 0", non_negative, "plain rounds", "c_1, one pass of the drafter"),
    Parameter("crowding", 0.0, "a number >= 0", non_negative, "1", "c_2, growth of a drafter's pass with the batch"),
)
_STRATEGY = (
    Parameter("hazard", 0.02, "a number >= 0", non_negative, "1", "h, fall of log acceptance from place to place"),
    Parameter("threshold", 32.0, "a number >= 0", non_negative, "requests", "speculate while so many or fewer are live"),
    Parameter("depth", 6.0, "a number in [0, 64]", lambda x: 0 <= x <= 64, "tokens", "d, drafted one after another; 0: none"),
    Parameter("verified", 16.0, "a number >= 1", at_least_one, "tokens", "V of a request in one pass, at least d"),
    Parameter("policy", "", "text such as 8:12x64,32:6x16", lambda x: True, "word",
              "depths and verified tokens by live requests, in the place of threshold, depth and verified; plain: none", str),
)  # fmt: skip
_LENGTHS = (
    Parameter("lengths", "capped", "lognormal, pareto, capped, or a file of lengths", lambda x: bool(x.strip()), "word",
              "law of answer lengths", str),
    Parameter("body", 2000.0, "a positive finite number", positive, "tokens",
              "mean of the exponential body (capped), median (lognormal), scale (pareto)"),
    Parameter("spread", 1.0, "a positive finite number", positive, "1", "sigma (lognormal) or index of the tail (pareto)"),
    Parameter("at_cap", 0.03, "a share in [0, 1)", lambda x: 0 <= x < 1, "1", "share that runs into the cap (capped)"),
    Parameter("cap", 32768.0, "a positive finite number", positive, "tokens", "longest answer"),
)  # fmt: skip
ROLLOUT = (
    Parameter(
        "requests",
        128,
        "an integer from 1 to 100000",
        lambda x: 1 <= x <= 1e5,
        "requests",
        "of a worker, on average",
        int,
    ),
    Parameter(
        "workers",
        1,
        "an integer from 1 to 4096",
        lambda x: 1 <= x <= 4096,
        "1",
        "devices that wait for each other",
        int,
    ),
    Parameter(
        "imbalance",
        0.0,
        "a share in [0, 1)",
        lambda x: 0 <= x < 1,
        "1",
        "workers get 1 - this to 1 + this of the requests",
    ),
    *_LENGTHS,
    *_COSTS,
    Parameter(
        "first",
        0.85,
        "a probability in [0, 1]",
        lambda x: 0 <= x <= 1,
        "1",
        "a_1, acceptance of the first drafted token",
    ),
    *_STRATEGY,
)
DRAFTER = (
    Parameter("kappa", 0.3, "a positive finite number", positive, "nats", "KL(target || drafter) at the start"),
    Parameter("floor", 0.02, "a number >= 0", non_negative, "nats", "kappa_inf, that training cannot get below"),
    Parameter("drift", 0.03, "a number >= 0", non_negative, "nats", "delta of one update of the policy"),
    Parameter(
        "rate", 1e-4, "a number >= 0", non_negative, "1/plain round", "r, relaxation in the idle time of a worker"
    ),
    Parameter("shape", 0.85, "a number in (0, 1.2533]", lambda x: 0 < x <= 1.2534, "1", "c of TV = c sqrt(kappa/pi)"),
    Parameter(
        "requests",
        32,
        "an integer from 1 to 4096",
        lambda x: 1 <= x <= 4096,
        "requests",
        "of a worker, on average",
        int,
    ),
    Parameter(
        "workers", 8, "an integer from 2 to 256", lambda x: 2 <= x <= 256, "1", "devices that wait for each other", int
    ),
    Parameter(
        "imbalance",
        0.0,
        "a share in [0, 1)",
        lambda x: 0 <= x < 1,
        "1",
        "workers get 1 - this to 1 + this of the requests",
    ),
    *_LENGTHS,
    *_COSTS,
    *_STRATEGY,
)
