"A sixth paper is two notebooks and no change anywhere else: those of CONTRIBUTING.md, added to a copy of the project."
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from nbformat import write
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from atr_nb.results.claims import load_claims
from atr_nb.results.records import load_records

BIN = Path(sys.executable).parent
SMALL = dict(datasets='scenes-sparse', train_size=32, val_size=8, test_size=16, epochs=1, width=16)


def written(text, path):
    "The cells that CONTRIBUTING.md shows for a notebook, as a notebook"
    part = text.split(f'\n`{path}`')[1].split('\n##')[0]
    cells = []
    for kind, source in re.findall(r'^```(\w+)\n(.*?)\n```$', part, re.M | re.S):
        tags = dict(tags=['parameters']) if source.startswith('profile =') else {}
        cells.append(new_markdown_cell(source) if kind == 'markdown' else new_code_cell(source, metadata=tags))
    return new_notebook(cells=cells, metadata=dict(
        kernelspec=dict(display_name='python3', language='python', name='python3')))


@pytest.fixture
def copy(root, tmp_path):
    "A copy of the project, the sixth paper in it, and a function that runs a command there"
    skip = shutil.ignore_patterns('assets', '__pycache__', '.ipynb_checkpoints')
    for name in ('nbs', 'atr_nb'): shutil.copytree(root/name, tmp_path/name, ignore=skip)
    for name in ('settings.ini', 'pyproject.toml', 'README.md'): shutil.copy(root/name, tmp_path)
    (tmp_path/'atr_nb'/'assets').symlink_to(root/'atr_nb'/'assets')
    text = (root/'CONTRIBUTING.md').read_text(encoding='utf-8')
    for path in ('nbs/methods/66_sixth.ipynb', 'nbs/reproduce/sixth.ipynb'): write(written(text, path), tmp_path/path)
    environment = os.environ | dict(PYTHONPATH=str(tmp_path), OMP_NUM_THREADS='1')

    def run(*command):
        ran = subprocess.run([str(c) for c in command], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-3000:]
        return ran.stdout
    return tmp_path, run


def test_a_sixth_paper(copy, features):
    folder, run = copy
    run(BIN/'nbdev-export')
    run(BIN/'nbdev-test', folder/'nbs'/'methods'/'66_sixth.ipynb')
    given = [f'--set={key}={value}' for key, value in (SMALL | dict(cache=features, runs='runs')).items()]
    run(BIN/'atr-nb', 'reproduce', '--profile', 'smoke', '--papers', 'sixth', *given)

    results = folder/'reports'/'smoke'/'sixth'
    assert [(r['paper'], r['row']) for r in load_records(results)] == [('sixth', 'baseline'), ('sixth', 'sixth')]
    assert [c['claim'] for c in load_claims(results)] == ['a cosine is enough']
    report = (folder/'reports'/'index.html').read_text(encoding='utf-8')
    assert '<h2 id="sixth-h">The sixth: is a cosine enough?' in report
    assert '<p class="cite">Author and Author, <em>The Title of the Sixth Paper</em> (Conference 2025)</p>' in report

    asked = ('import atr_nb.methods as m, atr_nb.pages as p; from pathlib import Path; '
             'print(m.names(), p.papers(Path()))')
    known = run(sys.executable, '-c', asked + '; print(p.verdicts(Path(), "smoke"))')
    assert "'sixth'" in known and '| Author and Author, *The Title of the Sixth Paper*' in known
    assert re.search(r'\[`sixth`\]\(../reports/smoke/sixth/notebook.ipynb\) \|.* a cosine is enough \(', known)
    assert 'baseline 3cmlf mgrl hci_ac tha_dcr diffatr sixth' in ' '.join(
        run(BIN/'atr-nb', 'reproduce', '--help').split())
