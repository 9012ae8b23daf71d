"""Configuration of Sphinx; ``make docs`` builds the site into build/docs."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import lstm_jax

nb_render_markdown_format = "gfm"
project = "lstm_jax"
author = "The lstm_jax authors"
copyright = "The lstm_jax authors"
version = release = lstm_jax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "mathml",
    "reference",
    "offline",
]

# Pages are executed by the build, and an error in one fails it.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the text describes the arguments; the signature stays readable
autodoc_default_options = {"members": True}
napoleon_numpy_docstring = False
napoleon_use_rtype = False
default_role = "literal"  # `name` in a docstring

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = "lstm_jax"
html_static_path = ["_static"]
#: Files that pages write while they are executed. Sphinx copies them after that.
written = Path(__file__).parents[1] / "build" / "docs-extra"
written.mkdir(parents=True, exist_ok=True)
html_extra_path = [str(written)]
html_css_files = ["style.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}

#: Modules whose public names the reference must contain.
reference_modules = [
    "lstm_jax",
    "lstm_jax.diagnostics",
    "lstm_jax.interop",
    "lstm_jax.nnx",
    "lstm_jax.linen",
    "lstm_jax.plots",
    "lstm_jax.experimental",
]
