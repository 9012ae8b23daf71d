"""The API reference: every public name must be in it, and NamedTuples show the shapes of their fields."""

import importlib
import inspect
import re
from types import ModuleType
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)

FIELD = re.compile(r"^    (\w+): [^#\n]+?(?:  # (.+))?$", re.MULTILINE)


def public_names(module: ModuleType) -> list[str]:
    """Functions and classes of a package, or those that a module defines itself; without private names."""
    owner = "lstm_jax" if hasattr(module, "__path__") else module.__name__
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__.startswith(owner)
    ]


def check_complete(app: Sphinx, env: Any) -> None:
    """Warn, which fails the build, where a public name has no entry or no docstring."""
    documented = env.domains["py"].objects
    for module_name in app.config.reference_modules:
        module = importlib.import_module(module_name)
        for name in public_names(module):
            if f"{module_name}.{name}" not in documented:
                logger.warning("%s.%s is public and has no entry in docs/api", module_name, name)
            elif not inspect.getdoc(getattr(module, name)):
                logger.warning("%s.%s has no docstring", module_name, name)


def edit_docstring(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Append the fields of a NamedTuple, and escape the asterisk of shapes such as (*batch, D).

    The fields have the comments of the source, most of which are shapes.
    """
    if what == "class" and hasattr(value, "_fields"):
        body = inspect.getsource(value).split('"""')[-1]
        lines.append("")
        lines += [f"- ``{field}``" + (f": {text}" if text else "") for field, text in FIELD.findall(body)]
    for index, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            text = line.split("``")  # every second part is literal
            text[::2] = [re.sub(r"(?<![*\\\w])\*(?=\w+(?![\w*]))", r"\\*", part) for part in text[::2]]
            lines[index] = "``".join(text)


def skip_field(app: Sphinx, what: str, name: str, value: Any, skip: bool, options: Any) -> bool | None:
    """Leave out the generated entries of NamedTuple fields; the class lists them."""
    return True if str(getattr(value, "__doc__", "")).startswith("Alias for field number") else None


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_config_value("reference_modules", [], "env")
    app.connect("env-check-consistency", check_complete)
    app.connect("autodoc-process-docstring", edit_docstring)
    app.connect("autodoc-skip-member", skip_field)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
