"""A campaign of faults: processes killed at random moments, files damaged at random places, two processes at once.

Whatever happens, what comes out in the end are the numbers of an undisturbed run. `make test` tries a handful; longer:

    .venv/bin/python -m pytest tests/test_faults.py --kills 50 -s
"""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from filelock import FileLock, Timeout

from atr_nb.data import features
from atr_nb.files import load_json
from atr_nb.results import runs
from atr_nb.results.experiment import Experiment
from atr_nb.results.records import load_ranks, load_records
from atr_nb.settings import load

ATR = str(Path(sys.executable).with_name('atr-nb'))
SETTINGS = '''[DEFAULT]
audio_encoder = aisfx
text_encoder = tiny
datasets = scenes-sparse
train_size = 16
val_size = 8
test_size = 8
width = 16
batch_size = 8
epochs = 8
seeds = 0, 1
jobs = 2
[embedded]
'''
CELL = '''from atr_nb.settings import from_parameters
from atr_nb.results.experiment import Experiment
lab = Experiment(from_parameters(globals()), 'baseline')
plan = {str(seed): dict(dataset='scenes-sparse', seed=seed) for seed in lab.settings.seeds}
lab.ahead(plan, 'runs')
for what in plan.values(): lab.run('main', 'NT-Xent', **what)
lab.save(); None'''


def project(folder):
    "A small project with one reproduction notebook, and the environment to run it in"
    (folder/'nbs'/'reproduce').mkdir(parents=True)
    (folder/'settings.ini').write_text(SETTINGS)
    new = nbformat.v4
    nb = new.new_notebook(cells=[
        new.new_markdown_cell('# Toy'),
        new.new_code_cell('profile = "embedded"\nout = None', metadata=dict(tags=['parameters'])),
        new.new_code_cell(CELL)])
    nb.metadata['kernelspec'] = dict(display_name='python3', language='python', name='python3')
    nbformat.write(nb, folder/'nbs'/'reproduce'/'baseline.ipynb')
    return os.environ | dict(ATR_NB_CACHE=str(folder/'cache'), ATR_NB_RUNS=str(folder/'runs'))


def start(folder, environment):
    return subprocess.Popen([ATR, 'reproduce', '--papers', 'baseline'], cwd=folder, env=environment,
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def outcome(folder):
    "All numbers of a report: metrics and places"
    report = folder/'reports'/'embedded'/'baseline'
    records = [(r['run'], r['seed'], json.dumps(r['metrics']), r['ranks']) for r in load_records(report)]
    return records, {k: v.tolist() for k, v in load_ranks(report).items()}


def tell(capsys, what, tried, right):
    with capsys.disabled(): print(f'\n{what}: {tried} tried, {right} ended with the numbers of an undisturbed run')
    assert right == tried


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    "What nobody disturbed: its folder, its numbers, and the seconds it took"
    folder = tmp_path_factory.mktemp('undisturbed')
    began = time.time()
    assert start(folder, project(folder)).wait(300) == 0
    return folder, outcome(folder), time.time() - began


def test_killed_at_random_moments(undisturbed, tmp_path, request, capsys):
    (_, numbers, seconds), lot = undisturbed, random.Random(0)
    kills, right = request.config.getoption('--kills'), 0
    for n in range(kills):
        folder = tmp_path/str(n)
        folder.mkdir()
        environment = project(folder)
        process = start(folder, environment)
        time.sleep(lot.uniform(0.3, 1) * seconds)
        os.killpg(process.pid, signal.SIGKILL) # the command and its kernel
        process.wait()
        code = start(folder, environment).wait(300)
        right += code == 0 and outcome(folder) == numbers and not list(folder.rglob('notebook.*ing.ipynb'))
        shutil.rmtree(folder)
    tell(capsys, 'kill -9', kills, right)


def test_two_processes_at_once(undisturbed, tmp_path, capsys):
    environment = project(tmp_path)
    both = [start(tmp_path, environment) for _ in range(2)]
    codes = [p.wait(300) for p in both]
    tell(capsys, 'two processes at once', 1, int(codes == [0, 0] and outcome(tmp_path) == undisturbed[1]))


def damage(file, lot):
    "Flip a bit, write zeros, or cut the file; says what was done"
    data, how = bytearray(file.read_bytes()), lot.choice(['flip', 'zeros', 'cut'])
    place = lot.randrange(len(data))
    if how == 'flip': data[place] ^= 1 << lot.randrange(8)
    if how == 'zeros': data[place:place + 64] = bytes(len(data[place:place + 64]))
    if how == 'cut': del data[place:]
    changed = bytes(data) != file.read_bytes()
    file.write_bytes(data)
    return f'{how} at {place} of {file.name}' if changed else ''


def again(folder):
    "The numbers of the same run in a process that has opened nothing yet, as far as the cache knows"
    features._opened.clear()
    lab = Experiment(load(cache=str(folder/'cache'), runs=str(folder/'runs'), out=str(folder/'reports')), 'baseline')
    for seed in lab.settings.seeds: lab.run('main', 'NT-Xent', 'scenes-sparse', seed)
    lab.save()


@pytest.mark.filterwarnings('ignore')
def test_damaged_at_random_places(undisturbed, tmp_path, request, capsys, monkeypatch):
    (source, numbers, _), lot = undisturbed, random.Random(1)
    tries, right, named = 4 * request.config.getoption('--kills'), 0, 0
    shutil.copytree(source, tmp_path/'there')
    folder = tmp_path/'there'
    monkeypatch.chdir(folder)
    for _ in range(tries):
        stored = [f for top in ('cache', 'runs') for f in sorted((folder/top).rglob('*'))
                  if f.suffix in ('.npy', '.json', '.npz', '.safetensors') and 'locks' not in f.parts]
        file = lot.choice(stored)
        did = damage(file, lot)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            again(folder)
        named += not did or any(file.name in str(w.message) for w in said)
        right += outcome(folder) == numbers
    tell(capsys, 'damaged files, made again', tries, right)
    tell(capsys, 'damaged files, named', tries, named)


def make_run(lab): return lab.run('main', 'NT-Xent', 'scenes-sparse', 0)
def make_trial(lab): return lab.trial('scenes-sparse', 0)


@pytest.fixture
def small(undisturbed, tmp_path, monkeypatch):
    """Build labs with the features of the undisturbed project and runs of their own,
    each as in a process that has made nothing yet"""
    project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return lambda: Experiment(load(cache=str(undisturbed[0]/'cache'), runs=str(tmp_path/'runs'), epochs=3), 'baseline')


@pytest.mark.parametrize('make', [make_run, make_trial])
def test_a_damaged_state_of_a_cut_run(small, monkeypatch, make):
    "Cut in its third epoch, and then the state is damaged: named, and trained from the beginning"
    from atr_nb.training import trainer
    right = make(small())
    folder = small().settings.runs/right['run']
    for file in folder.iterdir(): file.unlink()
    epochs, run_epoch = [], trainer.run_epoch
    def cut(*args):
        epochs.append(1)
        if len(epochs) == 3: raise KeyboardInterrupt
        return run_epoch(*args)
    with monkeypatch.context() as m:
        m.setattr(trainer, 'run_epoch', cut)
        with pytest.raises(KeyboardInterrupt): make(small())
    data = bytearray((folder/'state.pt').read_bytes())
    data[len(data) // 2] ^= 1
    (folder/'state.pt').write_bytes(data)
    with pytest.warns(UserWarning, match='state.pt is damaged'): again = make(small())
    assert [again[k] for k in ('run', 'metrics')] == [right[k] for k in ('run', 'metrics')]


@pytest.mark.parametrize('make, record', [(make_run, 'record.json'), (make_trial, 'trial.json')])
def test_a_record_is_read_while_nobody_else_can_write_it(small, monkeypatch, make, record):
    lab, read = small(), []
    def under_lock(file):
        with pytest.raises(Timeout): FileLock(file.with_name('lock')).acquire(timeout=0)
        read.append(file.name)
        return load_json(file)
    monkeypatch.setattr(runs, 'load_json', under_lock)
    assert make(lab) and read[-1] == record


@pytest.mark.parametrize('make, record', [(make_run, 'record.json'), (make_trial, 'trial.json')])
def test_force_asks_until_it_is_done(small, monkeypatch, make, record):
    right = make(small())
    forced, file = small(), small().settings.runs/right['run']/record
    forced.settings = replace(forced.settings, force=True)
    def interrupted(*args, **force): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(runs, '_ensure', interrupted) # while it waits for the lock, say
        with pytest.raises(KeyboardInterrupt): make(forced)
    before = file.stat().st_mtime_ns
    assert make(forced)['metrics'] == right['metrics']
    anew = file.stat().st_mtime_ns
    make(forced)
    assert before < anew == file.stat().st_mtime_ns
