"A page for each module: its symbols, their docstrings, and their parameters with the comments beside them."
import inspect
import re
from importlib import import_module
from pathlib import Path

from atr_nb._modidx import d
from fastcore.docments import docments

MODULES = d['syms'] # module -> its symbols
NOTEBOOK = {} # module -> the notebook it was made from, in the repository
PAGE = '''# {short}

`{module}` is made, explained and tested in [{title}](../../{notebook}).

```{{eval-rst}}
.. automodule:: {module}
   :members:
   :undoc-members:
{constants}
```
'''
CONSTANT = '''
.. autodata:: {name}{options}
'''
LONG = '\n   :no-value:'
INDEX = '''# Python API

> Every module and symbol, with what stands beside it in the code

```{{toctree}}
{pages}
```
'''


def is_public(symbol):
    return not any(part.startswith('_') for part in symbol.split('.'))


def constants(module):
    "Name -> value of what a module exports and is neither a function nor a class"
    inside = vars(import_module(module))
    return {n: inside[n] for n in inside['__all__'] if not (inspect.isclass(inside[n]) or inspect.isroutine(inside[n]))}


def write_pages(app, config):
    "Write docs/api/: an index, and a page for each module that has public symbols; what else lies there is removed."
    from atr_nb.pages import house
    root, folder = Path(app.srcdir), Path(app.srcdir)/'docs'/'api'
    texts = {}
    for page in house(root):
        named = re.search(r'#\| *default_exp +([\w.]+)', (root/page.path).read_text(encoding='utf-8'))
        module = f'atr_nb.{named[1]}'.removesuffix('.__init__') if named else None
        if not any(map(is_public, MODULES.get(module, ()))): continue
        NOTEBOOK[module] = page.path
        short = module.removeprefix('atr_nb.')
        listed = ''.join(CONSTANT.format(name=f'{module}.{name}', options='' if len(repr(value)) < 100 else LONG)
                         for name, value in constants(module).items())
        texts[short] = PAGE.format(short=short, module=module, title=page.title, notebook=page.path, constants=listed)
    texts['index'] = INDEX.format(pages='\n'.join(texts))
    folder.mkdir(exist_ok=True)
    for old in folder.glob('*.md'):
        if old.stem not in texts: old.unlink()
    for name, text in texts.items(): (folder/f'{name}.md').write_text(text, encoding='utf-8')


def to_rst(text):
    "A line in the manner of Markdown, with nothing but `code` marked up, as reStructuredText"
    said = text.split('`')
    said[::2] = [re.sub(r'([*_|\\])', r'\\\1', plain) for plain in said[::2]]
    said[1::2] = [rf'\ ``{code}``\ ' for code in said[1::2]]
    return ''.join(said)


def annotation(anno):
    if anno in (None, inspect.Parameter.empty): return ''
    return anno if isinstance(anno, str) else inspect.formatannotation(anno)


def fields(of):
    "The field list of a function or class: parameters, types and comments"
    for name, p in docments(of, full=True).items():
        if name in ('self', 'cls'): continue
        typed = to_rst(annotation(p.anno))
        said = to_rst(p.docment or '')
        if name == 'return':
            if said: yield f':returns: {said}'
            if typed: yield f':rtype: {typed}'
            continue
        stars = {p.kind.VAR_POSITIONAL: r'\*', p.kind.VAR_KEYWORD: r'\*\*'}.get(p.kind, '')
        if said or typed: yield f':param {stars}{name}: {said}'
        if typed: yield f':type {stars}{name}: {typed}'


def document(app, what, name, obj, options, lines):
    if what == 'data': lines.clear() # Python's words on its type
    lines[:] = [to_rst(line) for line in lines]
    if what in ('function', 'method', 'class'): lines += ['', *fields(obj)]


def skip(app, what, name, obj, skipped, options):
    "What a module passes on stands where it was made; fields of a class stand in its list of parameters."
    module = 'atr_nb.' + app.env.docname.removeprefix('docs/api/')
    if what == 'module': return True if getattr(obj, '__module__', module) != module else None
    method = inspect.isroutine(obj) or isinstance(obj, (property, classmethod, staticmethod))
    return True if what == 'class' and not method else None


def setup(app):
    app.connect('config-inited', write_pages)
    app.connect('autodoc-process-docstring', document)
    app.connect('autodoc-skip-member', skip)
    return dict(parallel_read_safe=True, parallel_write_safe=True)
