"The command line: papermill runs that go well, fail, are interrupted or lose their kernel."
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
import soundfile as sf

from atr_nb import cli
from atr_nb.notebooks import about
from atr_nb.results.models import SHIPPED
from atr_nb.settings import load

ROOT = Path(__file__).resolve().parent.parent
ATR = [str(Path(sys.executable).with_name("atr-nb"))]
TABLE = 'from IPython.display import Markdown\nMarkdown("| loss | R@1 |\\n|---|--:|\\n| NT-Xent | 31.4 |")'


render = cli._render


@pytest.fixture(autouse=True)
def no_report(monkeypatch): monkeypatch.setattr(cli, '_render', lambda out: None) # results/ has its own tests


def read(path): return nbformat.read(path, 4)


# What is asked for

@pytest.mark.parametrize('command', [
    [], ['reproduce'], ['report'], ['data'], ['data', 'check'], ['compare'], ['models'],
    ['index'], ['search'], ['settings'], ['list'], ['readme']])
def test_help_everywhere(command, capsys):
    with pytest.raises(SystemExit) as e: cli.main([*command, '--help'])
    assert e.value.code == 0 and 'usage: atr-nb' in capsys.readouterr().out


def test_help_is_quick(cpu_seconds): assert cpu_seconds(*ATR, '--help') < 0.2


def test_all_is_every_paper(paper):
    "What stands for no paper is run by its name"
    folder = paper('zebra').parent
    (folder/'aside.ipynb').write_text('{"cells": [], "metadata": {"atr_nb": {"paper": false}}}')
    found = cli.notebooks(folder)
    assert list(found) == ['zebra', 'aside']
    assert cli.choose('all', found) == ['zebra'] and cli.choose('aside,zebra', found) == ['aside', 'zebra']


@pytest.mark.parametrize('options, told', [
    (['--papers', 'basline'], "paper 'basline' is unknown; did you mean baseline? Known: baseline"),
    (['--papers', 'mgrl'], "paper 'mgrl' is unknown; known: baseline"),
    (['--papers', ','], 'no paper to reproduce; there are: baseline'),
    (['--profile', 'smoek'], "profile 'smoek' is unknown; did you mean smoke?"),
    (['--set', 'epohcs=3'], "parameter 'epohcs' is unknown; did you mean epochs?"),
    (['--set', 'epochs=many'], "epochs='many' will not do; expected a whole number"),
    (['--set', 'epochs'], '--set epochs: expected KEY=VALUE'),
    (['--seeds', ''], "seeds='' will not do"),
    (['--device', 'gpu'], "device='gpu' will not do"),
    (['--device', 'cuda:99'], "device='cuda:99' is unknown on this machine, which has: cpu"),
    (['--device', 'cpu', '--set', 'precision=fp16'], "precision='fp16': not on device 'cpu', which can do: no, bf16"),
    (['--set', 'datasets=clotho', '--set', 'train_size=0'], 'val_size=8: clotho is used whole'),
    (['--set', 'val_size=0'], 'val_size=0 will not do: scenes-sparse has no end that 0 could stand for; give a number'),
    (['--set', 'audio_weights=mine.pth'], "mine.pth': aisfx brings its own weights and would ignore these"),
    (['--set', 'audio_weights=mine.pth', '--set', 'audio_encoder=cnn10'],
     'mine.pth does not exist; cnn10 takes a PANNs checkpoint'),
    (['--set', 'text_encoder=./bert'], 'bert/config.json does not exist'),
    (['--set', 'text_encoder=minilmm'], "text_encoder='minilmm': not minilm, tiny or a folder, was never downloaded"),
    (['--out', 'settings.ini/x'], "Not a directory: '"),
    (['--set', 'cache=settings.ini/x'], "settings.ini/x'; name a folder that can be written"),
    (['--set', 'width=100000000000000000000'], 'expected a whole number from 1 to 100,000')])
def test_a_mistake_is_told_before_anything_starts(paper, project, capsys, options, told):
    paper('baseline', '1')
    assert cli.main(['reproduce', *options]) == 2
    assert told in capsys.readouterr().err
    assert not (project/'reports').exists()


@pytest.mark.parametrize('options', [['--device', 'cuda:99'], ['--set', 'audio_weights=mine.pth']])
def test_a_mistake_is_told_within_seconds(paper, cpu_seconds, options):
    paper('baseline', '1')
    assert cpu_seconds(*ATR, 'reproduce', *options, status=2, times=1) < 5


@pytest.mark.parametrize('text', [
    '', '{', '{}', '[]', '{"cells": 3}', '{"cells": [], "metadata": {}, "nbformat": 4}', '\xff'])
def test_a_broken_notebook_is_named(paper, project, capsys, text):
    paper('3cmlf', '1')
    paper('baseline', '1').write_text(text, encoding='latin1')
    assert cli.main(['reproduce']) == 2
    assert 'nbs/reproduce/baseline.ipynb is not a notebook' in capsys.readouterr().err
    assert not (project/'reports').exists()


def test_a_parameter_can_be_emptied(paper, project):
    paper('baseline', 'print(settings.audio_weights)')
    (project/'settings.ini').write_text((project/'settings.ini').read_text() + 'audio_weights = mine.pth\n')
    assert cli.main(['reproduce', '--profile', 'smoke']) == 2
    assert cli.main(['reproduce', '--profile', 'smoke', '--set', 'audio_weights=']) == 0
    assert read(project/'reports'/'smoke'/'baseline'/'notebook.ipynb').cells[-1].outputs[0].text == 'None\n'


def test_order_of_papers(paper, project, capsys):
    "Those that name a place take it, the others follow by name; the help lists them all"
    for name, order in dict(zebra=None, tapir=2, ape=None, quagga=1, eland='first').items():
        path = paper(name, order=order)
    with pytest.raises(ValueError, match='eland.ipynb is not a notebook'): cli.notebooks(path.parent)
    path.unlink()
    assert list(cli.notebooks(path.parent)) == ['quagga', 'tapir', 'ape', 'zebra']
    with pytest.raises(SystemExit): cli.main(['reproduce', '--help'])
    assert 'some of quagga tapir ape zebra' in ' '.join(capsys.readouterr().out.split())


@pytest.mark.parametrize('broken', ['notebook', 'checkout'])
def test_help_without_papers(paper, project, capsys, broken):
    if broken == 'notebook': paper('baseline').write_text('{')
    else: (project/'settings.ini').unlink()
    with pytest.raises(SystemExit) as e: cli.main(['reproduce', '--help'])
    assert e.value.code == 0 and 'all (default), or names of notebooks' in capsys.readouterr().out


def test_an_executed_notebook_keeps_its_place(paper, project):
    paper('tapir', '1', order=2)
    assert cli.main(['reproduce', '--profile', 'smoke']) == 0
    kept = read(project/'reports'/'smoke'/'tapir'/'notebook.ipynb').metadata
    assert kept.atr_nb == {'order': 2} and kept.papermill == {'parameters': {'profile': 'smoke'}}


# Runs

def test_two_equal_runs_give_equal_files(paper, project, capsys):
    paper('baseline', 'import sys, time\nprint("a"); sys.stdout.flush(); '
                      'print("50%|##", file=sys.stderr); sys.stderr.flush(); print("b")', TABLE, 'settings.seeds')
    done = project/'reports'/'smoke'/'baseline'/'notebook.ipynb'
    once, again = [(cli.main(['reproduce', '--profile', 'smoke', '--seeds', '0,1', '--force']), done.read_text())
                   for _ in range(2)]
    assert once == again and once[0] == 0
    assert [p.name for p in done.parent.iterdir()] == ['notebook.ipynb']
    nb = read(done)
    nbformat.validate(nb)
    assert 'duration' not in once[1] and '"name": "stderr"' not in once[1] and str(project) not in once[1]
    assert nb.metadata.papermill == {'parameters': {'force': True, 'profile': 'smoke', 'seeds': [0, 1]}}
    assert nb.cells[2].source == '# Parameters\nprofile = "smoke"\nseeds = [0, 1]\nforce = True\n'
    assert nb.cells[5].outputs[0].text == 'a\nb\n'
    assert nb.cells[-1].outputs[0].data['text/plain'] == '(0, 1)'
    assert '| NT-Xent | 31.4 |' in capsys.readouterr().out


def test_by_hand_gives_the_same(paper, project):
    path = paper('baseline', 'settings.describe()', 'settings.out.relative_to(settings.root)')
    assert cli.main(['reproduce', '--profile', 'smoke']) == 0
    subprocess.run([str(Path(sys.executable).with_name('papermill')), str(path), 'out.ipynb', '-p', 'profile',
                    'smoke', '--no-progress-bar'], check=True, capture_output=True)
    by_hand, ours = cli.tidy(read('out.ipynb')), read(project/'reports'/'smoke'/'baseline'/'notebook.ipynb')
    assert [c.get('outputs') for c in by_hand.cells] == [c.get('outputs') for c in ours.cells]
    assert [c.source.strip() for c in by_hand.cells] == [c.source.strip() for c in ours.cells]


def test_a_misspelt_papermill_parameter_stops_the_notebook(paper):
    path = paper('baseline', '1')
    r = subprocess.run([str(Path(sys.executable).with_name('papermill')), str(path), 'out.ipynb', '-p', 'profle',
                        'smoke', '--no-progress-bar'], capture_output=True, text=True)
    assert r.returncode and "parameter 'profle' is unknown; did you mean profile?" in r.stderr


def test_goes_on_after_a_failure(paper, project, capsys):
    paper('baseline', '1', 'raise RuntimeError("no more disk")')
    paper('3cmlf', 'import os; os._exit(3)')
    paper('mgrl', TABLE)
    assert cli.main(['reproduce', '--set', 'width=16']) == 1
    said = capsys.readouterr()
    out = project/'reports'/'embedded'
    failed = out/'baseline'/'notebook.failed.ipynb'
    assert f'FAILED baseline, at "Part raise Ru": RuntimeError: no more disk; see {failed}' in said.err
    assert 'FAILED 3cmlf, at "Part import o": DeadKernelError' in said.err
    assert '| NT-Xent | 31.4 |' in said.out
    assert sorted(str(p.relative_to(out)) for p in out.rglob('*.ipynb')) == [
        '3cmlf/notebook.failed.ipynb', 'baseline/notebook.failed.ipynb', 'mgrl/notebook.ipynb']
    assert any(o.output_type == 'error' for c in read(failed).cells for o in c.get('outputs', []))


def test_the_bar_stays_where_a_notebook_failed(paper, capsys):
    paper('baseline', '1/0', *'123456')
    assert cli.main(['reproduce']) == 1
    said = capsys.readouterr().err
    assert '4/10 cells' in said and '100%' not in said


def test_the_report_says_that_a_notebook_failed(paper, project, monkeypatch):
    monkeypatch.setattr(cli, '_render', render)
    paper('baseline', '1/0')
    assert cli.main(['reproduce']) == 1
    page = (project/'reports'/'index.html').read_text()
    assert 'embedded/baseline: the notebook failed; <a href="embedded/baseline/notebook.failed.ipynb">' in page
    assert 'still running' not in page


def test_settings_without_effect_arrive_in_plain_types(project):
    settings = load(methods='mgrl, cmlf', force=True)
    assert cli.parameters(settings, dict(methods='mgrl, cmlf', force=True)) == dict(
        profile='embedded', methods=['mgrl', 'cmlf'], force=True)


def test_parameters_that_are_paths_of_a_machine_are_not_kept():
    given = dict(out='/mnt/disk7', cache='~/cache', runs='runs', seeds=[0], device='cpu')
    nb = cli.tidy(nbformat.v4.new_notebook(metadata=dict(papermill=dict(parameters=given, duration=3.))))
    assert nb.metadata.papermill == dict(parameters=dict(runs='runs', seeds=[0], device='cpu'))


# A full disk

@pytest.fixture
def small_files():
    "No file may become larger than half a megabyte"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


LOUD = 'print("x" * 2**20)'


@pytest.mark.parametrize('cell, told', [
    (LOUD, "OSError: [Errno 27] File too large: '{running}'; make room there"),
    (f'{LOUD}; raise RuntimeError("the first one")', 'RuntimeError: the first one'),
    ('import pathlib; pathlib.Path("big").write_text("x" * 2**20)',
     'OSError: [Errno 27] File too large; make room there')])
def test_the_first_error_is_told_when_nothing_can_be_written(paper, project, small_files, capfd, cell, told):
    paper('baseline', '1', cell)
    status, said = cli.main(['reproduce']), capfd.readouterr().err
    folder = project/'reports'/'embedded'/'baseline'
    assert status == 1 and told.format(running=folder/'notebook.running.ipynb') in said, said
    ours = said[said.index('FAILED'):] # a kernel that shuts down may have logged something before
    assert 'JSON' not in ours and 'Traceback' not in ours
    assert not (folder/'notebook.running.ipynb').exists() and not (folder/'notebook.ipynb').exists()


@pytest.fixture
def small_disk(project):
    "A disk of a quarter of a megabyte"
    (project/'disk').mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=256k', 'tmpfs', str(project/'disk')]
    if subprocess.run(mount, capture_output=True).returncode: pytest.skip('may not mount a small disk here')
    yield project/'disk'
    subprocess.run(['umount', str(project/'disk')], check=True)


def test_a_full_disk(paper, small_disk, capsys):
    paper('baseline', LOUD)
    assert cli.main(['reproduce', '--out', 'disk']) == 1
    running = small_disk/'embedded'/'baseline'/'notebook.running.ipynb'
    assert f"[Errno 28] No space left on device: '{running}'; make room there" in capsys.readouterr().err


# Two at a time

def test_two_processes_take_turns(paper, project):
    times = 'open("times", "a").write(f"{start} {time.time()}\\n")'
    paper('baseline', 'import time; start = time.time()', 'time.sleep(1)', times)
    runs = [subprocess.Popen([*ATR, 'reproduce'], stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [run.communicate(timeout=120)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    first, second = sorted([float(t) for t in line.split()] for line in (project/'times').read_text().splitlines())
    assert first[1] < second[0] # nobody began before the other was done
    folder = project/'reports'/'embedded'/'baseline'
    assert sum(f'baseline: waiting for another process that writes to {folder}' in s for s in said) == 1, said
    assert {p.name for p in folder.iterdir()} == {'notebook.ipynb', 'notebook.html'}


def test_a_failure_leaves_the_last_good_notebook(paper, project):
    paper('baseline', '1')
    assert cli.main(['reproduce']) == 0
    done = project/'reports'/'embedded'/'baseline'/'notebook.ipynb'
    good = done.read_text()
    paper('baseline', '1/0')
    assert cli.main(['reproduce']) == 1 and done.read_text() == good
    paper('baseline', '2')
    assert cli.main(['reproduce']) == 0
    assert [p.name for p in done.parent.iterdir()] == ['notebook.ipynb']


def test_a_failed_report_is_a_failure(paper, monkeypatch, capsys):
    def broken(out): raise ValueError('runs.jsonl, line 3: not JSON')
    monkeypatch.setattr(cli, '_render', broken)
    paper('baseline', '1')
    assert cli.main(['reproduce']) == 1
    assert 'FAILED report: ValueError: runs.jsonl, line 3: not JSON' in capsys.readouterr().err


def test_other_folders(paper, project, tmp_path):
    path = paper('toy', '1')
    (project/'mine').mkdir()
    path.rename(project/'mine'/'toy.ipynb')
    assert cli.main(['reproduce', '--notebooks', 'mine', '--papers', 'toy', '--out', 'there']) == 0
    assert (project/'there'/'embedded'/'toy'/'notebook.ipynb').exists()


def lives(pid):
    try: os.kill(pid, 0)
    except ProcessLookupError: return False
    stat = Path(f'/proc/{pid}/stat') # an orphan that has ended may still be listed there, as a zombie
    return not stat.exists() or stat.read_text().rpartition(')')[2].split()[0] != 'Z'


@pytest.mark.parametrize('training', ['', '"Experiment("']) # a kernel of its own, and one that has imported already
@pytest.mark.parametrize('number, seconds', [(signal.SIGINT, 5), (signal.SIGKILL, 20)])
def test_interrupted_or_killed(paper, project, training, number, seconds):
    "The kernel ends with its command"
    paper('baseline', f'{training}\nimport os, time\nopen("kernel.pid", "w").write(str(os.getpid()))\ntime.sleep(60)')
    listen = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) # a test run in the background inherits deaf ears
    run = subprocess.Popen([*ATR, 'reproduce'], stderr=subprocess.PIPE, text=True, preexec_fn=listen)
    deadline = time.time() + 60
    while not ((pid := project/'kernel.pid').exists() and pid.read_text()) and time.time() < deadline: time.sleep(0.1)
    run.send_signal(number)
    _, said = run.communicate(timeout=30)
    if number == signal.SIGINT:
        assert run.returncode == 130 and 'Stopped.' in said and 'Traceback' not in said
        assert not list((project/'reports').rglob('*.ipynb'))
    deadline = time.time() + seconds
    while lives(int(pid.read_text())) and time.time() < deadline: time.sleep(0.1)
    assert not lives(int(pid.read_text()))


# make

@pytest.mark.parametrize('given, told', [
    (['reproduce', 'PAPER=baseline', 'SEED=0'], 'unknown variable PAPER SEED; known are: PROFILE PAPERS SEEDS'),
    (['help', 'paper=x'], 'unknown variable paper;'), (['PROFIL=smoke'], 'unknown variable PROFIL;'),
    (['test', 'DEVISE='], 'unknown variable DEVISE;'),
    *((given, None) for given in (
        ['help'], ['-j2', '-k', 'reproduce', 'PAPERS=baseline', 'SEEDS=0,1', 'FORCE=1'],
        ['--no-print-directory', 'MAKEFLAGS=-n', 'docs'], ['-e', 'lab', 'PYTHON=python3.12']))])
def test_a_misspelt_variable_of_make(given, told):
    environment = os.environ | dict(PAPER='x', SEED='1')
    run = subprocess.run(['make', '-n', *given], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert (told in run.stderr if told else not run.stderr) and bool(run.returncode) == bool(told), run.stderr


def test_make_test_begins_with_undefined_names():
    said = subprocess.run(['make', '-n', 'test'], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert 0 < said.index('ruff check') < said.index('nbdev-test') < said.index('pytest')


# The other commands

@pytest.mark.parametrize('command, told', [
    (['report', '--out', 'settings.ini/x'], 'settings.ini/x is not a folder'),
    (['report', '--out', 'taken'], "taken/index.html'; name a"),
    (['report', '--out', 'x' * 300], "xxx'; choose a shorter name"),
    (['readme'], "README.md'; name a folder")])
def test_a_place_that_cannot_be_written(paper, project, command, told):
    paper('index', '1').rename(project/'nbs'/'index.ipynb')
    for name in ('taken/index.html', 'README.md'): (project/name).mkdir(parents=True)
    run = subprocess.run([*ATR, *command], capture_output=True, text=True)
    assert run.returncode == 2 and told in run.stderr, run.stderr
    assert run.stderr.startswith('atr-nb: ') and run.stderr.count('\n') == 1, run.stderr


@pytest.fixture
def sounds(project):
    folder = project/'sounds'
    folder.mkdir()
    for name in ('rain', 'clock'): sf.write(folder/f'{name}.wav', 0.1*np.sin(np.arange(8000)/5), 16000)
    (folder/'metadata.csv').write_text('file_name,caption\nrain.wav,rain falls\nclock.wav,a clock ticks\n')
    return folder


def test_data_check(sounds, capsys):
    assert cli.main(['data', 'check', str(sounds)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == '2 clips, 2 captions, no problems'
    (sounds/'rain.wav').write_text('not a sound')
    sf.write(sounds/'clock.wav', np.zeros(8000), 16000)
    assert cli.main(['data', 'check', str(sounds)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert 'rain.wav' in said[0] and 'clock.wav' in said[1] and said[2] == '2 clips, 2 captions, 2 problems'


@pytest.mark.parametrize('name, why', [('x' * 300 + '.wav', 'File name too long'), ('a\0b.wav', 'null')])
def test_a_file_name_that_cannot_be_one(sounds, capsys, name, why):
    (sounds/'metadata.csv').write_text(f'file_name,caption\nrain.wav,rain falls\n{name},a clock ticks\n')
    assert cli.main(['data', 'check', str(sounds)]) == 2
    said = capsys.readouterr().err
    assert f'metadata.csv, row 3: {name[:60]!r} cannot be the name of a file' in said and why in said, said
    assert 'correct the row or delete it' in said


def test_data_check_of_no_folder(project, capsys):
    assert cli.main(['data', 'check', 'nowhere']) == 2
    assert 'nowhere is not a folder' in capsys.readouterr().err


def test_settings(project, capsys):
    assert cli.main(['settings', '--profile', 'smoke']) == 0
    assert 'width           4' in capsys.readouterr().out


# The real thing, tiny

PAGES = list(cli.notebooks(ROOT/'nbs'/'reproduce'))


@pytest.fixture(scope='module')
def smoke(tmp_path_factory, features):
    "All pages, tiny: the folder of their results, and what was said: by the papers, by a plan, by the choices"
    out = tmp_path_factory.mktemp('smoke')
    places = ['--out', str(out), f'--set=cache={features}', f"--set=runs={out/'runs'}", '--set=epochs=1']
    def reproduce(pages, *options):
        command = [*ATR, 'reproduce', '--profile', 'smoke', '--papers', ','.join(pages), *places, *options]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout
    # the last page first: one that needs runs of an earlier page, and does not make them, fails
    papers = [page for page in reversed(PAGES) if page != 'choices']
    said = {'papers': reproduce(papers, f'--set=zero_shot={SHIPPED}'), 'plan': reproduce(['3cmlf'], '--plan')}
    said['choices'] = reproduce(['choices']) # after them, since what it chooses is what they would train
    return out, said


@pytest.mark.parametrize('name', PAGES)
def test_reproduction_in_the_smoke_profile(smoke, name):
    out = smoke[0]
    written, page = {p.name for p in (out/'smoke'/name).iterdir()}, (out/'index.html').read_text()
    assert f'href="smoke/{name}/notebook.html"' in page and str(out) not in page
    if about(ROOT/'nbs'/'reproduce'/f'{name}.ipynb').paper:
        assert written >= {'runs.jsonl', 'tables.md', 'tables.csv', 'claims.json', 'figures', 'notebook.ipynb'}
        assert 'parameter profile' in page
    else: # what the papers leave open
        assert written >= {'chosen.json', 'figures', 'notebook.ipynb', 'baseline', 'cmlf', 'mgrl'}


def test_tables_are_printed(smoke):
    papers, choices = smoke[1]['papers'], smoke[1]['choices']
    assert papers.count('R@1') >= len(PAGES) and '|---' in papers and '|---' in choices


def test_a_model_from_elsewhere_has_a_row(smoke):
    assert ', zero-shot' in (smoke[0]/'smoke'/'baseline'/'tables.csv').read_text()


def test_what_was_planned_is_what_was_trained(smoke):
    assert smoke[1]['plan'].startswith('3cmlf: no runs to do, ')


# Comparing

def test_compare(tmp_path, capsys):
    "Our own report with itself, and with a folder that holds none"
    report = str(ROOT/'reports'/'embedded'/'baseline')
    assert cli.main(['compare', report, report]) == 0
    said = capsys.readouterr().out
    assert (re.search(r'^(\d+) runs in both, \1 of them with the same numbers', said)
            and re.search(r'^0 of \d+ verdicts differ', said, re.M))
    assert cli.main(['compare', report, str(tmp_path)]) == 2
    assert f'{tmp_path} holds no runs.jsonl' in capsys.readouterr().err
