"""How Sphinx builds these pages.

    pip install -e '.[docs]'
    python -m sphinx -W --keep-going -n -b html docs docs/_build/html
    python -m sphinx -W -b doctest docs docs/_build/doctest

Both need no network: equations are text, and nothing is linked across projects.
"""

import os
import pathlib
import sys

# An accelerator, or a busy one, must not change what a page shows.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]  # meta_rl and docstrings.py

import meta_rl  # noqa: E402

project = 'meta_rl'
author = 'The meta_rl authors'
copyright = author
version = release = meta_rl.__version__

extensions = [
  'myst_parser',
  'sphinx.ext.autodoc',
  'sphinx.ext.doctest',
  'sphinx.ext.viewcode',
  'docstrings',
]
# index.md holds what README.md says.
exclude_patterns = ['_build', 'README.md']
nitpicky = True
# 'None' is code, and so is what follows an apostrophe.
smartquotes = False

myst_heading_anchors = 3

# Shapes and units stand in the docstrings; types beside them would say less.
autodoc_typehints = 'none'
autodoc_member_order = 'bysource'
add_module_names = False
toc_object_entries_show_parents = 'hide'

html_theme = 'furo'
html_title = 'meta_rl'
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
