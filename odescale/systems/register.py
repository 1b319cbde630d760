"""The register: every system by name, with its builder, its parameters and what a command needs to know of it. Open to others.

    @odescale.register("phase_retrieval", t1=40.0, description="one row learns the modulus of another")
    def phase_retrieval(alignment: float = 0.2, learning_rate: float = 0.1): ...

The library's own systems stand in a table, and their modules are imported when one is built. A package of somebody else's joins by
the entry-point group `odescale.systems`, a script by its path: `odescale solve my_theory.py:phase_retrieval`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from odescale.errors import InputError
from odescale.systems import tables
from odescale.systems.parameters import Parameter, complete, parameters_of

if TYPE_CHECKING:
    from odescale.systems.base import AbstractSystem

GROUP = "odescale.systems"
"""Entry points of this group are imported when a name is not known: importing them registers what they have."""


@dataclass(frozen=True)
class Entry:
    """A named system.

    - `builder`: a function of the parameters, or where it is ("module:function"). `parameters`: their table.
    - `description`: one line. `t1`: an end time (units of t) that shows it; `run_t1`: that of a training, None for the same.
    - `points`: output times of a solve on the command line; fewer where every one is an average over nodes.
    - `unit`: what one unit of t is; empty where only the clock of a built system says it.
    - `fields`: of a builder that computes with its numbers (a kernel of a real network), the parameters that stand in the built
      system as its own numbers, up to a factor: only these can be swept, on one system. None: all numbers can.
    """

    name: str
    builder: Callable[..., Any] | str
    parameters: tuple[Parameter, ...]
    description: str
    t1: float
    run_t1: float | None = None
    points: int = 200
    unit: str = ""
    fields: tuple[str, ...] | None = None

    @property
    def build(self) -> Callable[..., AbstractSystem]:
        """The builder itself, imported now."""
        return located(self.builder) if isinstance(self.builder, str) else self.builder


_BY_SPECTRUM = "tr Sigma SGD steps: `dimension` for isotropic tokens, one with a `capacity`"

_OWN = (
    Entry("attention", "odescale.systems.attention_build:attention", tables.ATTENTION,
          "softmax transformer at infinite context: any depth, heads, spectrum", 40.0, unit=_BY_SPECTRUM),
    Entry("quickstart", "odescale.systems.attention_build:quickstart", tables.QUICKSTART,
          "a trained readout and two surplus layers: exponential decay, then t^-2", 85.0,
          unit="tr Sigma = `dimension` SGD steps"),
    Entry("logistic_pair", "odescale.systems.attention_build:logistic_pair", tables.LOGISTIC_PAIR,
          "two layers, frozen readouts: a logistic rise without an exponential phase, then t^-2", 30.0,
          unit="tr Sigma = `dimension` SGD steps"),
    Entry("transformer", "odescale.systems.transformer:transformer", tables.TRANSFORMER,
          "any transformer at finite context: heads, MLPs, masks, norms, correlated tokens, cross-entropy; with an error bar",
          10.0, points=60, unit=_BY_SPECTRUM),
    Entry("committee", "odescale.systems.transformer:committee", tables.COMMITTEE,
          "soft committee machine against a teacher committee (Saad & Solla)", 40.0, points=60, unit=_BY_SPECTRUM),
    Entry("peaked", "odescale.systems.peaked:peaked", tables.PEAKED,
          "softmax cross-entropy on peaked targets, any number of classes: the one-third law", 1e5, run_t1=20.0,
          unit="`dimension` SGD steps; one step of adam"),
    Entry("kernel", "odescale.systems.kernel_build:kernel", tables.KERNEL,
          "full-batch gradient descent of a real transformer at its tangent kernel", 200.0,
          unit="one step of gradient descent", fields=("learning_rate",)),
    Entry("spectral", "odescale.systems.spectral:spectral", tables.SPECTRAL,
          "one-pass SGD of a linear model on any spectrum, every mode exact: scaling laws", 1e6, run_t1=2000.0,
          unit="one SGD step"),
    Entry("pruning", "odescale.systems.pruning:pruning", tables.PRUNING,
          "one pass of logistic SGD on examples kept by their margin: easy, hard or any", 40.0, unit="`dimension` SGD steps"),
    Entry("rollout", "odescale.systems.rollout.fluid:rollout", tables.ROLLOUT,
          "a rollout of answers with a long tail: live requests, time, idle slots, speculation below a threshold", 32768.0,
          unit="one token of every live request"),
    Entry("drafter", "odescale.systems.rollout.drafter:drafter", tables.DRAFTER,
          "a drafter that learns while workers wait, across updates of the policy", 40.0, unit="one update of the policy"),
)  # fmt: skip
SYSTEMS: dict[str, Entry] = {entry.name: entry for entry in _OWN}
HOOKS: dict[str, dict[str, Any]] = {}
"""By `name` of a theory, what outsiders bring to the verbs: "experiment" (`train`), "rules" (`compare`), "judge" (`coverage`)."""


def register(
    name: str,
    *,
    t1: float,
    description: str,
    parameters: Sequence[Parameter] | None = None,
    run_t1: float | None = None,
    points: int = 200,
    experiment: Any = None,
    rules: Any = None,
    judge: Any = None,
    theory: str | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator of a builder: from then on its system has a name for every verb and for the command line.

    One unit of t is what the built system's clock says.

    **Arguments**

    - `name`: of the system, letters, digits and underscores. `t1` > 0: an end time that shows it. `description`: one line.
    - `parameters`: table of names, defaults, domains and units; None reads names and defaults off the builder's signature.
    - `run_t1`: end time of a training where that is another. `points`: output times of a solve on the command line.
    - `experiment`: function of a system that returns the `AbstractExperiment` behind it, for `train`; `rules`: the `Rules` of
      `compare`; `judge`: function of (system, t1) to the sizes of what the theory neglects by name, admissible below 1, for
      `coverage`. They hold for all systems whose class attribute `name` is `theory` (default: the name of the system).

    **Returns** the builder as it is. **Errors**: `InputError` for a name that is taken by another builder.
    **Good values**: see docs/add_a_theory.md, which registers one from a derivation.
    """
    if not (isinstance(name, str) and name.isidentifier()):
        raise InputError("name", expected="letters, digits and underscores", got=name, remedy="e.g. phase_retrieval")
    if not (isinstance(t1, int | float) and 0 < t1 < float("inf")):
        raise InputError("t1", expected="a positive finite time", got=t1, remedy="an end time that shows the system")

    def into_register(build: Callable[..., Any]) -> Callable[..., Any]:
        taken = SYSTEMS.get(name)
        if taken is not None and not _homes(taken.builder) & _homes(build):
            raise InputError("name", expected="a new name", got=f"{name}, which is taken", remedy="rename yours")
        table = parameters_of(build) if parameters is None else tuple(parameters)
        SYSTEMS[name] = Entry(name, build, table, description, float(t1), run_t1, points)
        hooks = {"experiment": experiment, "rules": rules, "judge": judge}
        HOOKS.setdefault(theory or name, {}).update({key: value for key, value in hooks.items() if value is not None})
        return build

    return into_register


def find_system(name: str) -> Entry:
    """The entry of a system by its name, by "file.py:builder" or by "package.module:builder"; others are refused with a hint."""
    if name in SYSTEMS:
        return SYSTEMS[name]
    if ":" in name:
        return entry_of(located(name))
    _load_entry_points()
    if name not in SYSTEMS:
        if name in _failed:
            raise InputError("system", expected=f"the package of {name} to import", got=_failed[name],
                             remedy="mend or remove that package")  # fmt: skip
        close = get_close_matches(name, SYSTEMS, n=1)
        hint = f"did you mean {close[0]}?" if close else "run `odescale systems`, or name a file: my_theory.py:builder"
        raise InputError("system", expected=f"one of {', '.join(SYSTEMS)}", got=name, remedy=hint)
    return SYSTEMS[name]


def systems() -> dict[str, str]:
    """Names of the systems and what they are, those of installed packages included."""
    _load_entry_points()
    return {name: entry.description for name, entry in SYSTEMS.items()}


def failed_entry_points() -> dict[str, str]:
    """Entry points whose module did not import, by name, with the error: their systems are left out of the register."""
    _load_entry_points()
    return dict(_failed)


def entry_of(subject: Any) -> Entry:
    """The entry of a name or of a builder; one that was never registered gets its table from its signature."""
    if isinstance(subject, str):
        return find_system(subject)
    if not callable(subject):
        raise InputError(
            "system", expected="a system, its name or its builder", got=subject, remedy="e.g. 'quickstart'"
        )
    for entry in SYSTEMS.values():
        if _homes(entry.builder) & _homes(subject):
            return entry
    name = getattr(subject, "__name__", "system")
    words = (getattr(subject, "__doc__", None) or name).strip().splitlines()[0]
    return Entry(name, subject, parameters_of(subject), words, t1=10.0)


def as_system(subject: Any, **given: Any) -> AbstractSystem:
    """A system as it is; or the one behind a name, a "file.py:builder" or a builder, with its defaults and what is `given`."""
    from odescale.systems.base import AbstractSystem

    if isinstance(subject, AbstractSystem):
        if given:
            raise InputError(next(iter(given)), expected="nothing beside a built system", got=given,
                             remedy="give it to the builder")  # fmt: skip
        return subject
    entry = entry_of(subject)
    known = {parameter.name for parameter in entry.parameters}
    checked = {name: value for name, value in given.items() if name in known}
    if checked:
        table = tuple(parameter for parameter in entry.parameters if parameter.name in checked)
        checked = complete(table, checked, entry.name)
    built = entry.build(**(given | checked))
    if not isinstance(built, AbstractSystem):
        raise InputError("system", expected=f"a system from the builder {entry.name}", got=type(built).__name__,
                         remedy="return an AbstractSystem")  # fmt: skip
    return built


def located(where: str) -> Callable[..., Any]:
    """The function behind "package.module:name" or "path/to/file.py:name"."""
    place, _, name = where.rpartition(":")
    if not place or not name.isidentifier():
        raise InputError(
            "system", expected="module:builder or file.py:builder", got=where, remedy="e.g. theory.py:build"
        )
    module = _module_of_file(Path(place)) if place.endswith(".py") else _module_of_name(place)
    if not callable(getattr(module, name, None)):
        known = sorted(
            n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__
        )
        raise InputError("system", expected=f"a builder of {place}: {', '.join(known) or 'it has none'}", got=name,
                         remedy="name one of them")  # fmt: skip
    return getattr(module, name)


def _module_of_name(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise InputError(
            "system", expected="a module that imports", got=f"{name}: {error}", remedy="check it"
        ) from error


def _module_of_file(path: Path) -> Any:
    import sys
    from importlib.util import module_from_spec, spec_from_file_location

    if not path.is_file():
        raise InputError("system", expected="a Python file", got=str(path), remedy="check the path")
    # One module a file and process: loaded again it would make new classes, and everything compiled for the old would be lost.
    name = f"odescale_file_{path.stem}_{abs(hash(str(path.resolve())))}"
    if name not in sys.modules:
        spec = spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException as error:
            del sys.modules[name]
            if isinstance(error, InputError) or not isinstance(error, Exception):
                raise
            raise InputError("system", expected=f"a file that runs: {path}", got=f"{type(error).__name__}: {error}",
                             remedy="mend it") from error  # fmt: skip
    return sys.modules[name]


def _homes(builder: Callable[..., Any] | str) -> set[str]:
    """Where a builder is from, by module and by file: one file may be loaded as two modules, a cell of a notebook run twice."""
    if isinstance(builder, str):
        return {builder}
    name = getattr(builder, "__qualname__", repr(builder))
    places = (getattr(builder, "__module__", ""), getattr(getattr(builder, "__code__", None), "co_filename", ""))
    return {f"{place}:{name}" for place in places if place}


_loaded: set[str] = set()
_failed: dict[str, str] = {}


def _load_entry_points() -> None:
    from importlib.metadata import entry_points

    for point in entry_points(group=GROUP):
        if point.value not in _loaded:
            _loaded.add(point.value)
            try:
                point.load()
            except (Exception, SystemExit) as error:  # somebody else's package must not take the others with it
                _failed[point.name] = f"{point.value}: {type(error).__name__}: {error}"
