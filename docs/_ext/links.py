"Where links and `code` lead: to notebooks, to symbols, to results."
import json
import re
from collections import defaultdict
from os.path import relpath
from pathlib import Path

from api import MODULES, NOTEBOOK, constants, is_public
from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

RESULTS = 'reports/embedded' # the executed notebooks of the default profile
SYMBOLS = {symbol for symbols in MODULES.values() for symbol in symbols if is_public(symbol)}
SYMBOLS |= {f'{module}.{name}' for module in MODULES for name in constants(module)}
NO_LINKS = nodes.title, nodes.reference, addnodes.pending_xref # inside of these
NAMED = defaultdict(set) # name -> what has it, in whichever module; no methods
for full in SYMBOLS:
    if full.rpartition('.')[0] in MODULES: NAMED[full.rpartition('.')[2]].add(full)


def scope(root, docname):
    "The names of ours that a notebook makes or imports, and the symbols they stand for; those of its module as well"
    file = NOTEBOOK.get('atr_nb.' + docname.removeprefix('docs/api/'), f'{docname}.ipynb')
    if not (root/file).is_file(): return {}
    code = '\n'.join(''.join(c['source']) for c in json.loads((root/file).read_text(encoding='utf-8'))['cells'])
    names = {}
    for module, imported in re.findall(r'from (atr_nb[\w.]*) import ([\w, ]+|\([^)]+\))', code):
        for name in re.findall(r'\w+', imported): names[name] = f'{module}.{name}'
    for module in (m for m, path in NOTEBOOK.items() if path == file):
        names |= {s.removeprefix(f'{module}.'): s for s in SYMBOLS if s.startswith(f'{module}.')}
    return names


def symbol(text, names):
    "The symbol that a `text` in prose stands for, or None"
    called = re.fullmatch(r'([\w.]+)(\(.*\))?', text)
    if not called: return None
    name = called[1]
    head, _, rest = name.partition('.')
    for full in (name, f'atr_nb.{name}', names.get(name), f'{names.get(head)}.{rest}', names.get(head)):
        if full in SYMBOLS or full in NOTEBOOK: return full
    distinct = re.search('[A-Z_]', name) # no word of every day
    return next(iter(NAMED[name])) if distinct and len(NAMED.get(name, ())) == 1 else None


class Lead(SphinxTransform):
    "Where links and `code` lead from a page"
    default_priority = 400

    def apply(self):
        names = scope(Path(self.env.srcdir), self.env.docname)
        for node in list(self.document.findall(addnodes.pending_xref)):
            if node['refdomain'] == 'doc' and node['reftarget'].startswith('reports/'): self.result(node)
            if node['refdomain'] == 'py': node['reftarget'] = symbol(node['reftarget'], names) or node['reftarget']
        for node in list(self.document.findall(addnodes.download_reference)):
            node.replace_self(nodes.reference('', '', *node.children, refuri=node['reftarget']))
        for node in list(self.document.findall(nodes.literal)):
            around = node.parent, node.parent.parent
            if not any(isinstance(a, NO_LINKS) for a in around): self.link(node, names)

    def result(self, node):
        "An executed notebook is a page of this site, or one of the report's"
        name = node['reftarget'].split('/')[-2]
        for page in (f'nbs/reproduce/{name}', f'nbs/guides/{name}'):
            if node['reftarget'].startswith(RESULTS) and page in self.env.found_docs: node['reftarget'] = page
        if node['reftarget'] in self.env.found_docs: return
        up = relpath('.', self.env.docname.rpartition('/')[0] or '.')
        node.replace_self(nodes.reference('', '', *node.children, refuri=f'{up}/{node["reftarget"]}.html'))

    def link(self, node, names):
        page, full = self.page(node.astext()), symbol(node.astext(), names)
        here, code = self.env.docname, node.deepcopy()
        if page: node.replace_self(nodes.reference('', '', code, refuri=self.app.builder.get_relative_uri(here, page)))
        elif full: node.replace_self(addnodes.pending_xref(
            '', code, refdomain='py', reftype='obj', reftarget=full, refdoc=here, refexplicit=True))

    def page(self, text):
        "The notebook that a text such as `data/13_scenes` or `13_scenes` names"
        path = text.removeprefix('nbs/').removesuffix('.ipynb')
        if re.match(r'\d\d_', path): return next((d for d in self.env.found_docs if d.endswith(f'/{path}')), None)
        return f'nbs/{path}' if '/' in path and f'nbs/{path}' in self.env.found_docs else None


def setup(app):
    app.add_transform(Lead)
    return dict(parallel_read_safe=True, parallel_write_safe=True)
