"The notebooks as pages: without what a reader need not see, with results in their place, and with formulas."
from pathlib import Path
from shutil import copytree

import nbformat
from atr_nb.notebooks import mathml, moved, presentable
from atr_nb.pages import house, rooms
from docutils import nodes
from links import RESULTS

FRONT = '''<!doctype html><meta http-equiv="refresh" content="0; url=nbs/index.html">
<a href="nbs/index.html">atr_nb</a>
'''


def slug(heading):
    "The anchor of a heading, as Jupyter has it"
    return heading.replace(' ', '-')


def executed(root, docname):
    "The notebook that was run in place of the one in the repository, if there is one"
    room, name = docname.split('/')[-2:]
    file = Path(root)/RESULTS/name/'notebook.ipynb'
    return file if room in ('reproduce', 'guides') and file.is_file() else None


def contents(root):
    "The navigation: a list of pages for each room"
    listed = ['```{{toctree}}\n:hidden:\n:caption: {}\n{}\n```'.format(title, '\n'.join(
        '/' + p.path for p in house(root) if p.folder == room and p.name != 'index')) for room, title in rooms.items()]
    api = '```{toctree}\n:hidden:\n/docs/api/index\n```'
    project = '```{toctree}\n:hidden:\n:caption: The project\n/CONTRIBUTING\n/CHANGELOG\n/CREDITS\n```'
    return '\n\n'.join([api, *listed, project])


def read(app, docname, source):
    "A notebook as it should be shown, with the outputs of the run where it was run"
    if not docname.startswith('nbs/'): return
    file = executed(app.srcdir, docname)
    if file: app.env.note_dependency(str(file))
    nb = presentable(nbformat.reads(file.read_text(encoding='utf-8') if file else source[0], 4))
    if file: moved(nb, file.parent, Path(app.srcdir)/Path(docname).parent, app.srcdir)
    for cell in nb.cells:
        if 'transient' in cell.metadata: cell.metadata['tags'] = ['remove-input']
    nb.metadata['language_info'] = dict(name='python', pygments_lexer='ipython3')
    if docname == app.config.root_doc: nb.cells.append(nbformat.v4.new_markdown_cell(contents(Path(app.srcdir))))
    source[0] = nbformat.writes(nb)


def formula(self, node):
    block = isinstance(node, nodes.math_block)
    html = mathml(node.astext(), 'block' if block else 'inline')
    self.body.append(f'<div class="math">{html}</div>' if block else html)
    raise nodes.SkipNode


def add_reports(app, error):
    "The report lies where it lies in the repository; a first page leads to the notebooks."
    if error: return
    out = Path(app.outdir)
    copytree(Path(app.srcdir)/'reports', out/'reports', dirs_exist_ok=True)
    (out/'index.html').write_text(FRONT, encoding='utf-8')


def setup(app):
    app.connect('source-read', read)
    app.connect('build-finished', add_reports)
    app.add_html_math_renderer('mathml', (formula, None), (formula, None))
    return dict(parallel_read_safe=True, parallel_write_safe=True)
