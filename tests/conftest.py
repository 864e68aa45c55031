"Shared by all tests: where the repository is, and a small project to run things in."
import os
import resource
import subprocess
from pathlib import Path

import pytest
from nbformat import write
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

os.environ['HF_HUB_OFFLINE'] = '1'
for name in ('ATR_NB_CACHE', 'ATR_NB_RUNS', 'MAKEFLAGS', 'MAKELEVEL'): os.environ.pop(name, None)
ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser):
    parser.addoption('--kills', type=int, default=2, help='how many processes tests/test_faults.py kills')


@pytest.fixture
def root(): return ROOT


@pytest.fixture(scope='session')
def features(tmp_path_factory):
    "A cache of features for all tests, even those side by side: what is asked for twice is extracted once"
    base = tmp_path_factory.getbasetemp()
    return (base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base)/'features'


@pytest.fixture
def cpu_seconds():
    """The processor time of a command, the best of several:
    unlike the clock's, it hardly depends on what else the machine does"""
    def measure(*command, status=0, times=5):
        def once():
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            run = subprocess.run(command, capture_output=True, text=True)
            assert run.returncode == status, run.stderr
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return min(once() for _ in range(times))
    return measure


@pytest.fixture
def project(tmp_path, monkeypatch):
    "A folder with settings.ini and room for reproduction notebooks; the working directory while the test runs."
    ours = '[DEFAULT]\nepochs = 1\ncache = cache\nruns = runs\ntrain_size = 64\nval_size = 8\ntest_size = 8\n'
    (tmp_path/'settings.ini').write_text(f'{ours}[embedded]\nwidth = 8\n[smoke]\nwidth = 4\nseeds = 0\n')
    (tmp_path/'nbs'/'reproduce').mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def paper(project):
    "Write a reproduction notebook in miniature: paper('baseline', 'first cell', 'second cell', order=1)"
    def make(name, *sources, order=None):
        parameters = new_code_cell('profile = "embedded"\nseeds = None; out = None; force = False',
                                   metadata=dict(tags=['parameters']))
        settings = new_code_cell('from atr_nb.settings import from_parameters\nsettings = from_parameters(globals())')
        results = [c for s in sources for c in (new_markdown_cell(f'## Part {s[:8]}'), new_code_cell(s))]
        nb = new_notebook(cells=[new_markdown_cell(f'# {name}'), parameters, settings, *results])
        nb.metadata['kernelspec'] = dict(display_name='python3', language='python', name='python3')
        if order is not None: nb.metadata['atr_nb'] = dict(order=order)
        path = project/'nbs'/'reproduce'/f'{name}.ipynb'
        write(nb, path)
        return path
    return make
