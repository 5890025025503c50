"""Sphinx: what the site is made of. Build it with ``sphinx-build -W --keep-going -n docs docs/_build/html``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS / "_ext"))
os.environ["HF_HUB_OFFLINE"] = "1"  # nothing that the site shows needs a network

import cdzoo  # noqa: E402

project = "cdzoo"
author = "the authors of cdzoo"
project_copyright = "the authors of cdzoo, Apache-2.0"
version = release = cdzoo.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "docstrings",
    "kinds_of_files_table",
    "notebooks",
    "pages",
    "reference",
    "tables",
]
exclude_patterns = ["_build", "_ext", "gallery", "auto_gallery/*.ipynb", "Thumbs.db"]
nitpicky = True
suppress_warnings = ["ref.python"]  # the name of an attribute in a list of attributes: several classes have a `meta`

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 3

# -- API --------------------------------------------------------------------------------------------------------------

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True, "special-members": "__call__"}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_inherit_docstrings = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
add_module_names = False
add_function_parentheses = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
# What is not ours has its documentation elsewhere; there is no network at build time to look it up.
nitpick_ignore_regex = [
    ("py:(class|obj|exc)", r"(?!cdzoo\b).*"),
    ("py:.*", r"(torch|timm)\..*"),
    ("py:.*", r"cdzoo\..*\.(M|T|State|Builder|Stream|\w*Decoder|_\w+)"),
    ("py:.*", r"cdzoo\.bulk\.(plan|engine|networks)\.\w+"),  # behind classify_bytes; not public
    ("py:class", r"cdzoo\.bulk\.(classify|classify_task)\.Classify"),
    ("py:.*", r"cdzoo\.models\._\w+\.\w+"),  # type variables, protocols and private bases
]

# -- doctests ---------------------------------------------------------------------------------------------------------

doctest_global_setup = """
import torch
import cdzoo
from cdzoo.codecs import *
from cdzoo.data import *
from cdzoo.ops import *
torch.manual_seed(0)
"""

# -- gallery ----------------------------------------------------------------------------------------------------------

segmenters = [*cdzoo.list_models("c*_d", pretrained=True), *cdzoo.list_models("*_seg", pretrained=True)]

sphinx_gallery_conf = {
    "ignore_pattern": r"__init__\.py" if segmenters else r"segmentation",
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "filename_pattern": "plot_",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_memory": False,
    "capture_repr": (),
    "run_stale_examples": True,  # they show what the package does, which changes without them
    "write_computation_times": False,
    "min_reported_time": 1000,
    "plot_gallery": "doctest" not in sys.argv,
    "nested_sections": False,
    "image_srcset": [],
}

# -- HTML -------------------------------------------------------------------------------------------------------------

html_theme = "furo"
html_title = f"cdzoo {release}"
html_static_path = ["_static"]
html_css_files = ["cdzoo.css"]
html_js_files = ["sortable.js"]
html_show_sourcelink = False
html_theme_options = {
    "navigation_with_keys": True,
    "footer_icons": [{"name": "Repository", "url": "https://github.com/cdzoo/cdzoo", "html": "GitHub", "class": ""}],
}
