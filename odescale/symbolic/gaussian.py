"""Expectations over jointly Gaussian fields, in closed form: Isserlis, Stein, exponential tilts, arcsine laws.

One verb, `Gaussian.expect`, takes sums of products of

- monomials of the fields (Isserlis / Stein),
- `exp` of a polynomial of degree two in the fields (tilts),
- at most two `erf` of linear forms without constant (arcsine laws; with monomials and tilts, the Saad-Solla integrals),

and refuses the rest by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sympy
from sympy import S

from odescale.errors import InputError

Vector = tuple[sympy.Expr, ...]


def covariance_symbols(fields: Sequence[sympy.Symbol], letter: str = "C") -> sympy.Matrix:
    """A symmetric matrix of symbols `C_uv`, one for each pair of fields, named in the order given; variances
    positive."""
    names = [f.name for f in fields]
    n = len(names)
    entry = {
        (i, j): sympy.Symbol(f"{letter}_{names[i]}{names[j]}", **({"positive": True} if i == j else {"real": True}))
        for i in range(n)
        for j in range(i, n)
    }
    return sympy.Matrix(n, n, lambda i, j: entry[min(i, j), max(i, j)])


def quadratic_tilt(covariance: sympy.Matrix, omega: sympy.Matrix) -> tuple[sympy.Expr, sympy.Matrix]:
    """(n, M) of `E[p(phi) exp(phi^T Omega phi / 2)] = n E_M[p]`, `n = det(1 - C Omega)^(-1/2)`, `M = (1 - C Omega)^-1 C`.

    Only the fields that `Omega` touches are inverted. Holds where `C^-1 - Omega` is positive definite.
    """
    size = covariance.shape[0]
    touched = [i for i in range(size) if any(omega[i, j] != 0 for j in range(size))]
    if not touched:
        return S.One, covariance
    block = covariance.extract(touched, touched)
    weight = omega.extract(touched, touched)
    resolvent = sympy.eye(len(touched)) - block * weight
    determinant = resolvent.det(method="berkowitz")
    inverse = resolvent.adjugate() / determinant
    left = covariance.extract(list(range(size)), touched)
    right = covariance.extract(touched, list(range(size)))
    tilted = covariance + left * weight * inverse * right
    # M is symmetric; the two triangles come out in different forms, so one is mirrored.
    return determinant ** sympy.Rational(-1, 2), sympy.Matrix(size, size, lambda i, j: tilted[min(i, j), max(i, j)])


@dataclass(frozen=True)
class Gaussian:
    """Jointly Gaussian fields with zero mean (or `mean`) and a covariance of numbers or symbols.

    **Arguments**

    - `fields`: n sympy symbols.
    - `covariance`: n x n symmetric sympy matrix; `covariance_symbols(fields)` makes one of symbols.
    - `mean`: n expressions, zero by default.
    """

    fields: tuple[sympy.Symbol, ...]
    covariance: sympy.ImmutableMatrix
    mean: Vector | None = None

    def __post_init__(self) -> None:
        n = len(self.fields)
        if self.covariance.shape != (n, n):
            raise InputError(
                "covariance", expected=f"a {n} x {n} matrix", got=self.covariance.shape, remedy="one row per field"
            )
        if self.covariance != self.covariance.T:
            raise InputError(
                "covariance", expected="a symmetric matrix", got="an asymmetric one", remedy="symmetrise it"
            )

    def expect(self, expression: sympy.Expr) -> sympy.Expr:
        """E[expression] over the fields, term by term; raises `InputError` naming what has no closed form here."""
        mean = self.mean or (S.Zero,) * len(self.fields)
        terms = sympy.Add.make_args(sympy.expand(expression, power_exp=False, deep=True))
        return sympy.Add(*(self._term(term, mean) for term in terms))

    def _term(self, term: sympy.Expr, mean: Vector) -> sympy.Expr:
        coefficient, monomial, exponent, errors = S.One, [], S.Zero, []
        known = set(self.fields)
        for factor in sympy.Mul.make_args(term):
            if not factor.free_symbols & known:
                coefficient *= factor
                continue
            base, power = (factor.args[0], factor.args[1]) if isinstance(factor, sympy.Pow) else (factor, S.One)
            if isinstance(factor, sympy.exp):
                exponent += factor.args[0]
            elif base in known and power.is_Integer and power > 0:
                monomial += [self.fields.index(base)] * int(power)
            elif isinstance(base, sympy.exp):
                exponent += base.args[0] * power
            elif isinstance(base, sympy.erf) and power.is_Integer and power > 0:
                errors += [self._linear_form(base.args[0])] * int(power)
            else:
                raise InputError(
                    "expression",
                    expected="monomials, exp(quadratic) and erf(linear) of the fields",
                    got=str(factor),
                    remedy="use numerical quadrature for this loss",
                )
        omega, linear, constant = self._quadratic_form(exponent)
        return (
            coefficient
            * sympy.exp(constant)
            * _moment(tuple(sorted(monomial)), tuple(errors), omega, linear, mean, sympy.Matrix(self.covariance))
        )

    def _linear_form(self, argument: sympy.Expr) -> Vector:
        form = tuple(sympy.diff(argument, f) for f in self.fields)
        rest = sympy.expand(argument - sum(c * f for c, f in zip(form, self.fields, strict=True)))
        if rest != 0 or any(c.free_symbols & set(self.fields) for c in form):
            raise InputError(
                "erf", expected="a linear form without constant", got=str(argument), remedy="shift the field instead"
            )
        return form

    def _quadratic_form(self, exponent: sympy.Expr) -> tuple[sympy.Matrix, Vector, sympy.Expr]:
        n = len(self.fields)
        zero = dict.fromkeys(self.fields, 0)
        omega = sympy.Matrix(n, n, lambda i, j: sympy.diff(exponent, self.fields[i], self.fields[j]))
        if omega.free_symbols & set(self.fields):
            raise InputError(
                "exp", expected="an exponent of degree two in the fields", got=str(exponent), remedy="expand it first"
            )
        linear = tuple(sympy.diff(exponent, f).subs(zero) for f in self.fields)
        return omega, linear, sympy.sympify(exponent).subs(zero)

    def tilt(self, exponent: sympy.Expr) -> tuple[sympy.Expr, Gaussian]:
        """(weight, tilted Gaussian) of `E[p exp(exponent)] = weight E_tilted[p]`, exponent of degree at most two."""
        mean = self.mean or (S.Zero,) * len(self.fields)
        omega, linear, constant = self._quadratic_form(sympy.expand(exponent))
        weight, mean, covariance = _tilt(omega, linear, mean, sympy.Matrix(self.covariance))
        return sympy.exp(constant) * weight, Gaussian(self.fields, sympy.ImmutableMatrix(covariance), mean)


def _tilt(omega: sympy.Matrix, linear: Vector, mean: Vector, covariance: sympy.Matrix):
    n = len(mean)
    m = sympy.Matrix(mean)
    force = sympy.Matrix(linear) + omega * m
    constant = (sympy.Matrix(linear).T * m)[0] + (m.T * omega * m)[0] / 2
    weight, tilted = quadratic_tilt(covariance, omega)
    if any(f != 0 for f in force):
        shift = tilted * force
        constant += (force.T * shift)[0] / 2
        mean = tuple(mean[i] + shift[i] for i in range(n))
    return weight * sympy.exp(sympy.expand(constant)), mean, tilted


def _moment(
    monomial: tuple[int, ...],
    errors: tuple[Vector, ...],
    omega: sympy.Matrix,
    linear: Vector,
    mean: Vector,
    covariance: sympy.Matrix,
) -> sympy.Expr:
    """E[prod phi_i prod erf(w.phi) exp(linear.phi + phi Omega phi/2)]: tilt first, then Stein, then the arcsine law."""
    if any(x != 0 for x in omega) or any(x != 0 for x in linear):
        weight, mean, covariance = _tilt(omega, linear, mean, covariance)
        return weight * _moment(monomial, errors, sympy.zeros(len(mean)), (S.Zero,) * len(mean), mean, covariance)
    n = len(mean)
    none = (S.Zero,) * n
    centred = all(x == 0 for x in mean)
    if centred and (len(monomial) + len(errors)) % 2:
        return S.Zero
    if monomial:
        # Stein: E[phi_i F] = m_i E[F] + sum_j C_ij E[dF/dphi_j].
        i, rest = monomial[0], monomial[1:]
        total = S.Zero
        if mean[i] != 0:
            total += mean[i] * _moment(rest, errors, omega, linear, mean, covariance)
        for position, j in enumerate(rest):
            if covariance[i, j] != 0:
                left = rest[:position] + rest[position + 1 :]
                total += covariance[i, j] * _moment(left, errors, omega, linear, mean, covariance)
        for position, form in enumerate(errors):
            slope = sum((covariance[i, j] * form[j] for j in range(n)), S.Zero)
            if slope != 0:
                left = errors[:position] + errors[position + 1 :]
                density = sympy.Matrix(n, n, lambda a, b, w=form: -2 * w[a] * w[b])
                total += slope * 2 / sympy.sqrt(sympy.pi) * _moment(rest, left, density, none, mean, covariance)
        return total
    if not errors:
        return S.One
    if len(errors) == 1:
        w = sympy.Matrix(errors[0])
        return sympy.erf((w.T * sympy.Matrix(mean))[0] / sympy.sqrt(1 + 2 * (w.T * covariance * w)[0]))
    if len(errors) == 2 and centred:
        return arcsine_law(*errors, covariance)
    raise InputError(
        "erf",
        expected="at most two erf of centred fields in one product",
        got=f"{len(errors)} factors" + ("" if centred else " with a mean"),
        remedy="use numerical quadrature for this loss",
    )


def arcsine_law(u: Vector, v: Vector, covariance: sympy.Matrix) -> sympy.Expr:
    """`E[erf(u.phi) erf(v.phi)] = (2/pi) asin(2 C_uv / sqrt((1 + 2 C_uu)(1 + 2 C_vv)))`, `C_uv = u^T C v`.

    Write `erf(x/sqrt 2)` as the form with coefficients `1/sqrt 2`. Source: Williams 1997; Saad & Solla 1995.
    """
    a, b = sympy.Matrix(u), sympy.Matrix(v)
    uv, uu, vv = ((x.T * covariance * y)[0] for x, y in ((a, b), (a, a), (b, b)))
    # The roots are kept apart, so that u = v leaves none.
    roots = [sympy.sqrt(sympy.factor(1 + 2 * square)) for square in (uu, vv)]
    return 2 / sympy.pi * sympy.asin(2 * sympy.factor(uv) / (roots[0] * roots[1]))


def stein(gaussian: Gaussian, i: int, function: sympy.Expr) -> sympy.Expr:
    """`E[phi_i F] = sum_j C_ij E[dF/dphi_j]` for centred fields: the right-hand side."""
    return sympy.Add(
        *(
            gaussian.covariance[i, j] * gaussian.expect(sympy.diff(function, f))
            for j, f in enumerate(gaussian.fields)
            if gaussian.covariance[i, j] != 0
        )
    )
