"The rules of the house: rooms, notebooks and modules, imports, pages."
import ast
import filecmp
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tokenize
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NBS, PACKAGE = ROOT/'nbs', ROOT/'atr_nb'
NOTEBOOKS = sorted(p for p in NBS.rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
MODULES = sorted(p for p in PACKAGE.rglob('*.py') if p.name != '_modidx.py')
ORDER = ['words', 'settings model files figures notebooks processes', 'data', 'encoders', 'alignment', 'evaluation',
         'training', 'methods', 'results', 'pages kernels', 'cli', 'ahead']
MACHINE = r'/(?:root|home|Users|work|tmp)/\w[^"\\ ]*' # where somebody's files lie
name_of = lambda p: p.relative_to(NBS).as_posix()


def cells(path, kind=None): return [c for c in nbformat.read(path, 4).cells if kind in (None, c.cell_type)]
def directive(cell, name): return re.search(rf'^#\| *{name}\b *(.*)$', cell.source, re.M)
def exported(path): return [c for c in cells(path, 'code') if directive(c, 'export')]


# Rooms

def rank(module): # of atr_nb.ROOM.name: the place of its room in the order
    room = module.split('.')[1]
    return next(i for i, names in enumerate(ORDER) if room in names.split())


def imports(path):
    "The modules of atr_nb that a module imports, anywhere in it"
    package = ['atr_nb', *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import): names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ('.'.join([*package[:len(package) - node.level + 1], *([node.module] if node.module else [])])
                    if node.level else node.module)
            names = [f'{base}.{a.name}' for a in node.names] # a name may be a module
        else: continue
        yield from (n for n in names if n.startswith('atr_nb.'))


@pytest.mark.parametrize('path', [m for m in MODULES if m != PACKAGE/'__init__.py'],
                         ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_nothing_imports_from_a_room_below(path):
    own = rank('.'.join(['atr_nb', *path.relative_to(PACKAGE).with_suffix('').parts]))
    below = [n for n in imports(path) if not n.startswith('atr_nb._') and rank(n) > own]
    assert not below


@pytest.mark.parametrize('way', [
    'setup runs experiment', 'records logbook runs', 'records tables claims report experiment'])
def test_from_the_setup_to_the_report_leads_one_way(way):
    "The second one: whoever reads or notes records does not need what trains."
    way = way.split()
    for k, name in enumerate(way):
        later = {f'atr_nb.results.{n}' for n in way[k + 1:]}
        back = {n for n in imports(PACKAGE/'results'/f'{name}.py') if n in later or n.rpartition('.')[0] in later}
        assert not back, name


def drawn_imports(text):
    "The arrows of a mermaid diagram: (from, to) of each."
    for left, right in re.findall(r'^ +(.+?) --> (.+)$', text, re.M):
        yield from itertools.product(left.split(' & '), right.split(' & '))


def test_the_plan_of_imports_is_true():
    """Of the room of results, as CONTRIBUTING draws it first:
    no arrow too many, and none that does not follow from others"""
    diagram = (ROOT/'CONTRIBUTING.md').read_text().split('```mermaid')[1].split('```')[0]
    drawn = set(drawn_imports(diagram))
    files = {p.stem: p for p in (PACKAGE/'results').glob('*.py') if p.stem != '__init__'}
    real = {(name, found.split('.')[2]) for name, path in files.items() for found in imports(path)
            if found.startswith('atr_nb.results.') and found.split('.')[2] in files}

    def follows(start, goal, first=True):
        return any(b == goal and not first or follows(b, goal, False) for a, b in real if a == start)
    assert drawn == {(a, b) for a, b in real if not follows(a, b)}


@pytest.mark.parametrize('path', MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_no_star_imports(path):
    stars = [n.lineno for n in ast.walk(ast.parse(path.read_text(encoding='utf-8')))
             if isinstance(n, ast.ImportFrom) and any(a.name == '*' for a in n.names)]
    assert not stars


def test_quick_to_import(cpu_seconds):
    bare = cpu_seconds(sys.executable, '-c', 'pass')
    assert cpu_seconds(sys.executable, '-c', 'import atr_nb, atr_nb.settings, atr_nb.cli') - bare < 0.1


# Notebooks and modules

@pytest.mark.parametrize('path', NOTEBOOKS, ids=name_of)
def test_path_of_notebook_is_path_of_module(path):
    room, names = name_of(path).rpartition('/')[0], [
        m[1].strip() for c in cells(path, 'code') if (m := directive(c, 'default_exp'))]
    if room in ('reproduce', 'guides') or path.name == 'index.ipynb': assert not names and not exported(path)
    elif names:
        stem = re.fullmatch(r'\d\d_(\w+)\.ipynb', path.name)[1]
        assert names == ['.'.join(filter(None, [room, '__init__' if stem == 'init' else stem]))]
    else: assert not exported(path)


def test_package_is_what_the_notebooks_say(tmp_path):
    for name in ('nbs', 'atr_nb'):
        shutil.copytree(ROOT/name, tmp_path/name,
                        ignore=shutil.ignore_patterns('assets', '__pycache__', '.ipynb_checkpoints'))
    for name in ('pyproject.toml', 'settings.ini'): shutil.copy(ROOT/name, tmp_path)
    (tmp_path/'README.md').touch()
    for p in (tmp_path/'atr_nb').rglob('*.py'):
        if p != tmp_path/'atr_nb'/'__init__.py': p.unlink()
    subprocess.run([str(Path(sys.executable).with_name('nbdev-export'))], cwd=tmp_path, check=True, capture_output=True)
    ours, fresh = ({p.relative_to(top/'atr_nb').as_posix() for p in (top/'atr_nb').rglob('*.py')}
                   for top in (ROOT, tmp_path))
    assert ours == fresh, 'a module without a notebook, or not exported: run `make export`'
    differ = [p for p in ours if not filecmp.cmp(ROOT/'atr_nb'/p, tmp_path/'atr_nb'/p, shallow=False)]
    assert not differ, 'the package is not what the notebooks say: run `make export`'


@pytest.mark.parametrize('path', [p for p in NOTEBOOKS if p.parent.name == 'reproduce'], ids=name_of)
def test_one_parameters_cell(path):
    tagged = [c for c in cells(path) if 'parameters' in c.metadata.get('tags', [])]
    assert len(tagged) == 1 and 'profile' in tagged[0].source
    assert any('from_parameters(globals())' in c.source for c in cells(path, 'code'))


# Code cells

def long_lines(path): return [l for c in cells(path, 'code') for l in c.source.splitlines() if len(l) > 120]


def joined_lines(path):
    "Lines with a semicolon that is neither in a string nor in a comment; commands to the notebook (% and !) aside"
    found = []
    for cell in cells(path, 'code'):
        python = re.sub(r'^(\s*)([%!])', r'\1pass # \2', cell.source, flags=re.M)
        tokens = tokenize.generate_tokens(io.StringIO(python).readline)
        found += [t.line for t in tokens if t.type == tokenize.OP and t.string == ';']
    return found


def assigned(target, value):
    "Pairs of what gets a value and the value, tuple by tuple"
    if not (isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)): return [(target, value)]
    return [pair for t, v in zip(target.elts, value.elts) for pair in assigned(t, v)]


def named_lambdas(path):
    "`x = lambda ...`, `x: T = lambda ...`, `x, y = lambda ..., ...` or `(x := lambda ...)` in the exported cells"
    found = []
    for node in (n for c in exported(path) for n in ast.walk(ast.parse(c.source))):
        if not isinstance(node, (ast.Assign, ast.AnnAssign, ast.NamedExpr)): continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        found += [ast.unparse(node) for target in targets for t, v in assigned(target, node.value)
                  if isinstance(t, ast.Name) and isinstance(v, ast.Lambda)]
    return found


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name_of)
def test_lines_are_short_and_hold_one_statement(path):
    assert not long_lines(path), 'more than 120 characters'
    assert not joined_lines(path), 'two statements on a line'


@pytest.mark.parametrize('path', sorted((ROOT/'tests').glob('*.py')), ids=lambda p: p.name)
def test_lines_of_tests_are_short(path):
    assert not [l for l in path.read_text(encoding='utf-8').splitlines() if len(l) > 120], 'more than 120 characters'


@pytest.mark.parametrize('path', [p for p in NOTEBOOKS if exported(p)], ids=name_of)
def test_exported_cells_are_short(path):
    "At most 40 lines; those that begin with `#|`, and empty ones, do not count"
    for cell in exported(path):
        assert sum(bool(l.strip()) and not l.startswith('#|') for l in cell.source.splitlines()) <= 40, cell.id


@pytest.mark.parametrize('path', [p for p in NOTEBOOKS if exported(p)], ids=name_of)
def test_a_function_with_a_name_is_written_with_def(path):
    assert not named_lambdas(path)


@pytest.mark.parametrize('source, found', [
    ('f = lambda x: x', True), ('f:object = lambda x: x', True), ('print(f := lambda: 0)', True),
    ('def g():\n    f = lambda: 0', True), ('f, g = lambda: 0, 1', True), ('a = f = lambda: 0', True),
    ('def f(x): return x', False), ('sorted(x, key=lambda y: y)', False), ('f = map(lambda y: y, x)', False),
    ('d = dict(f=lambda: 0)', False), ('pair = int, lambda x: x', False),
    ('warnings.showwarning = lambda *_: None', False)])
def test_what_counts_as_a_named_lambda(tmp_path, source, found):
    page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('#| export\n' + source)])
    nbformat.write(page, tmp_path/'page.ipynb')
    assert bool(named_lambdas(tmp_path/'page.ipynb')) == found


# Pages

@pytest.mark.parametrize('path', NOTEBOOKS, ids=name_of)
def test_a_page_begins_with_a_title_and_a_summary(path):
    first = cells(path, 'markdown')[0].source
    assert re.match(r'# \S', first) and re.search(r'^> \S', first, re.M)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name_of)
def test_stored_outputs(path):
    outputs = [o for c in cells(path, 'code') for o in c.outputs]
    assert not [o for o in outputs if o.output_type == 'error']
    assert not [o.text for o in outputs if o.get('name') == 'stderr'], (
        'an error stream: run the page with TQDM_DISABLE=1; if it shows a command, add 2>&1')
    text = json.dumps([o.get('text') or {k: v for k, v in o.get('data', {}).items()
                                         if k.startswith('text/') and len(v) < 10_000} for o in outputs])
    assert not re.findall(MACHINE, text), 'a path of the machine it ran on'
    assert path.stat().st_size < 3_000_000


def test_the_page_of_methods_lists_them_all():
    from atr_nb.methods import names
    shown = [o.data['text/plain'] for c in cells(NBS/'methods'/'59_init.ipynb', 'code') for o in c.outputs
             if c.source.endswith('\nnames()')]
    assert [ast.literal_eval(s) for s in shown] == [names()]


@pytest.mark.parametrize('path', [
    p for p in (ROOT/'reports').rglob('*') if p.suffix in ('.ipynb', '.html', '.md', '.csv', '.json', '.jsonl')
    and p.name != 'notebook.running.ipynb'], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_reports_name_no_machine(path):
    assert not re.findall(MACHINE, path.read_text(encoding='utf-8')), 'a path of the machine it ran on'


def broken_paragraphs(source):
    """Lines of Markdown that go on from the line before;
    fenced code and formulas, tables, headings and items of a list aside"""
    text = re.sub(r'^```.*?^```|^\$\$.*?\$\$', '', source, flags=re.M | re.S).split('\n')
    return [line for before, line in zip(text, text[1:]) if before.strip() and line.strip()
            and not re.match(r'\s*[#|>]', before) and not re.match(r'\s*([*+-] |\d+\. |[#|>])', line)]


@pytest.mark.parametrize('source, found', [
    ('one\ntwo', ['two']), ('* one\n  two', ['  two']), ('one\n\ntwo', []), ('* one\n* two', []),
    ('1. one\n2. two', []),
    ('# one\ntwo', []), ('| a |\n|---|\n| b |', []), ('```\na\nb\n```', []), ('$$a\n+ b\n= c$$', [])])
def test_what_a_broken_paragraph_is(source, found): assert broken_paragraphs(source) == found


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name_of)
def test_a_paragraph_is_one_line(path):
    assert not [line for c in cells(path, 'markdown') for line in broken_paragraphs(c.source)]


@pytest.mark.parametrize('path', [p for p in NOTEBOOKS if exported(p)], ids=name_of)
def test_more_words_than_code(path):
    words = sum(len(c.source.split()) for c in cells(path, 'markdown'))
    lines = sum(bool(l.strip()) and not l.startswith('#|') for c in exported(path) for l in c.source.splitlines())
    assert words > 1.5 * lines and len(cells(path)) <= 80
    assert any(c.outputs for c in cells(path, 'code')), 'stored outputs are part of the page: run it'


@pytest.mark.parametrize('given, found', [({}, '1000'), ({'GOMP_SPINCOUNT': '7'}, '7')])
def test_threads_that_wait_go_to_sleep(given, found):
    "So that two programs on the same cores take twice as long, and not fifty times; whoever knows better is left alone"
    env = {k: v for k, v in os.environ.items() if k != 'GOMP_SPINCOUNT'} | given
    said = subprocess.run([sys.executable, '-c', 'import atr_nb, os; print(os.environ["GOMP_SPINCOUNT"])'],
                          env=env, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == found
