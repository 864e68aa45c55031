"The web site of the notebooks, made by Sphinx. Its source is the repository itself: `make docs` writes it to _docs/."
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT/'docs'/'_ext')]

project, author, copyright = 'atr_nb', 'The atr_nb contributors', 'The atr_nb contributors'
extensions = ['myst_nb', 'sphinx.ext.autodoc', 'sphinx_copybutton', 'api', 'links', 'house']

# What is read: the notebooks, the pages of modules that `api` writes, and a few texts. No other folder is looked into.
root_doc = 'nbs/index'
include_patterns = ['nbs/**.ipynb', 'docs/api/*.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'CREDITS.md']
exclude_patterns = [p.name for p in ROOT.iterdir() if p.is_dir() and p.name not in ('nbs', 'docs')]
exclude_patterns += ['**.ipynb_checkpoints']
html_extra_path = [str(ROOT/name) for name in ('LICENSE', 'CITATION.cff', 'settings.ini')] # linked to, as they are

# Notebooks show the outputs stored in them.
nb_execution_mode = 'off'
nb_merge_streams = True
nb_render_markdown_format = 'myst'
myst_enable_extensions = ['amsmath', 'dollarmath']
myst_heading_anchors = 6
myst_heading_slug_func = 'house.slug'

# Signatures without types: these stand in the list of parameters, with what the comments in the code say.
autodoc_typehints = 'none'
autodoc_default_options = {'no-value': True}
autodoc_member_order = 'bysource'
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = 'hide'

html_theme = 'furo'
html_title = 'atr_nb'
templates_path = ['_templates']
html_sidebars = {'**': ['sidebar/brand.html', 'sidebar/search.html', 'sidebar/scroll-start.html', 'results.html',
                        'sidebar/navigation.html', 'sidebar/scroll-end.html']}
html_static_path = ['_static']
html_css_files = ['house.css']
html_math_renderer = 'mathml'
html_copy_source = False
html_show_sphinx = False

# Code that can be read in the light and in the dark: tests/test_site.py measures the contrast.
pygments_style, pygments_dark_style = 'github-light-high-contrast', 'github-dark-high-contrast'
html_theme_options = dict(light_css_variables={'color-code-background': '#f6f8fa'},
                          dark_css_variables={'color-code-background': '#1d2127'})
copybutton_selector = 'div.highlight-python pre, div.cell_input pre, div.highlight-sh pre'
