# SPDX-License-Identifier: Apache-2.0
"""Templates of Cube Confidential and one strict render()."""

from collections.abc import Mapping
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

__all__ = ["render"]


@cache
def _environment() -> Environment:
    # Output is configuration for programs (units, mkosi, Envoy), never HTML: escaping would corrupt it.
    return Environment(
        loader=PackageLoader("cube_templates"),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(name: str, values: Mapping[str, object]) -> str:
    """Render the template *name* (a path below ``templates/``) with *values*.

    Raises ``jinja2.UndefinedError`` for a value that the template needs and *values* lacks, and
    ``jinja2.TemplateNotFound`` for an unknown name: a template never renders to something silently empty.
    """
    return _environment().get_template(name).render(values)
