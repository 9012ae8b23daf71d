"""Equations as MathML, which browsers draw without a script."""

from typing import Any

from docutils.nodes import SkipNode
from latex2mathml.converter import convert
from sphinx.application import Sphinx


def visit_math(self: Any, node: Any) -> None:
    self.body.append(convert(node.astext()))
    raise SkipNode


def visit_math_block(self: Any, node: Any) -> None:
    text = node.astext()
    if r"\\" in text and r"\begin" not in text:  # several lines
        text = rf"\begin{{align*}}{text}\end{{align*}}"
    self.body.append(f'<div class="equation">{convert(text, display="block")}</div>')
    raise SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
