"""The forms of scaling laws that have a name."""

from __future__ import annotations

from odescale.analysis.tables.forms import Form, chinchilla_form
from odescale.analysis.tables.relatives import RELATIVES
from odescale.errors import InputError

FORMS: dict[str, Form] = {form.name: form for form in (chinchilla_form(), *RELATIVES)}
"""Forms by name; `form_named` reads it, and a new one is one more entry."""


def form_named(form: str | Form) -> Form:
    """The form itself, or that of `FORMS` by its name. **Errors**: `InputError` with the names there are."""
    if isinstance(form, Form):
        return form
    if form not in FORMS:
        raise InputError("form", expected=f"one of {', '.join(FORMS)}, or a Form", got=form, remedy="name one of them")
    return FORMS[form]
