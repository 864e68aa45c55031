"The command line: papermill runs that go well, fail, are interrupted or lose their kernel."
import os
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

ROOT = Path(__file__).resolve().parent.parent
ATR = [str(Path(sys.executable).with_name("atr-nb"))]
TABLE = 'from IPython.display import Markdown\nMarkdown("| loss | R@1 |\\n|---|--:|\\n| NT-Xent | 31.4 |")'


@pytest.fixture(autouse=True)
def no_report(monkeypatch): monkeypatch.setattr(cli, '_render', lambda out: None) # results/ has its own tests


def read(path): return nbformat.read(path, 4)


# What is asked for

@pytest.mark.parametrize('command', [[], ['reproduce'], ['report'], ['data'], ['data', 'check'], ['settings'], ['docs'], ['readme']])
def test_help_everywhere(command, capsys):
    with pytest.raises(SystemExit) as e: cli.main([*command, '--help'])
    assert e.value.code == 0 and 'usage: atr-nb' in capsys.readouterr().out


def test_help_is_quick(cpu_seconds): assert cpu_seconds(*ATR, '--help') < 0.2


@pytest.mark.parametrize('options, told', [
    (['--papers', 'basline'], "unknown paper 'basline'; did you mean baseline? Known: baseline"),
    (['--papers', 'mgrl'], 'mgrl has no reproduction notebook yet; there are: baseline'),
    (['--papers', ','], 'no paper to reproduce; there are: baseline'),
    (['--profile', 'smoek'], "unknown profile 'smoek'; did you mean smoke?"),
    (['--set', 'epohcs=3'], "unknown parameter 'epohcs'; did you mean epochs?"),
    (['--set', 'epochs=many'], "epochs='many' will not do; expected a whole number"),
    (['--set', 'epochs'], '--set epochs: expected KEY=VALUE'),
    (['--seeds', ''], "seeds='' will not do"),
    (['--device', 'gpu'], "device='gpu' will not do")])
def test_a_mistake_is_told_before_anything_starts(paper, project, capsys, options, told):
    paper('baseline', '1')
    assert cli.main(['reproduce', *options]) == 2
    assert told in capsys.readouterr().err
    assert not (project/'reports').exists()


def test_order_of_papers(paper):
    for name in ('zebra', 'diffatr', 'baseline'): path = paper(name)
    assert list(cli.notebooks(path.parent)) == ['baseline', 'diffatr', 'zebra']


# Runs

def test_two_equal_runs_give_equal_files(paper, project, capsys):
    paper('baseline', 'import sys, time\nprint("a"); sys.stdout.flush(); print("50%|##", file=sys.stderr); sys.stderr.flush(); print("b")', TABLE, 'settings.seeds')
    done = project/'reports'/'smoke'/'baseline'/'notebook.ipynb'
    once, again = [(cli.main(['reproduce', '--profile', 'smoke', '--seeds', '0,1', '--force']), done.read_text()) for _ in range(2)]
    assert once == again and once[0] == 0
    assert [p.name for p in done.parent.iterdir()] == ['notebook.ipynb']
    nb = read(done)
    nbformat.validate(nb)
    assert 'papermill' not in once[1] and '"name": "stderr"' not in once[1] and str(project) not in once[1]
    assert nb.cells[2].source == '# Parameters\nprofile = "smoke"\nseeds = [0, 1]\nforce = True\n'
    assert nb.cells[5].outputs[0].text == 'a\nb\n'
    assert nb.cells[-1].outputs[0].data['text/plain'] == '(0, 1)'
    assert '| NT-Xent | 31.4 |' in capsys.readouterr().out


def test_by_hand_gives_the_same(paper, project):
    path = paper('baseline', 'settings.describe()', 'settings.out.relative_to(settings.root)')
    assert cli.main(['reproduce', '--profile', 'smoke']) == 0
    subprocess.run([str(Path(sys.executable).with_name('papermill')), str(path), 'out.ipynb', '-p', 'profile', 'smoke', '--no-progress-bar'], check=True, capture_output=True)
    by_hand, ours = cli.tidy(read('out.ipynb')), read(project/'reports'/'smoke'/'baseline'/'notebook.ipynb')
    assert [c.get('outputs') for c in by_hand.cells] == [c.get('outputs') for c in ours.cells]
    assert [c.source.strip() for c in by_hand.cells] == [c.source.strip() for c in ours.cells]


def test_a_misspelt_papermill_parameter_stops_the_notebook(paper):
    path = paper('baseline', '1')
    r = subprocess.run([str(Path(sys.executable).with_name('papermill')), str(path), 'out.ipynb', '-p', 'profle', 'smoke', '--no-progress-bar'], capture_output=True, text=True)
    assert r.returncode and "unknown parameter 'profle'; did you mean profile?" in r.stderr


def test_goes_on_after_a_failure(paper, project, capsys):
    paper('baseline', '1', 'raise RuntimeError("no more disk")')
    paper('3cmlf', 'import os; os._exit(3)')
    paper('mgrl', TABLE)
    assert cli.main(['reproduce', '--set', 'width=16']) == 1
    said = capsys.readouterr()
    out = project/'reports'/'embedded'
    assert 'FAILED baseline, at "Part raise Ru": RuntimeError: no more disk' in said.err
    assert 'FAILED 3cmlf, at "Part import o": DeadKernelError' in said.err
    assert '| NT-Xent | 31.4 |' in said.out
    assert sorted(str(p.relative_to(out)) for p in out.rglob('*.ipynb')) == ['3cmlf/notebook.failed.ipynb', 'baseline/notebook.failed.ipynb', 'mgrl/notebook.ipynb']
    assert any(o.output_type == 'error' for c in read(out/'baseline'/'notebook.failed.ipynb').cells for o in c.get('outputs', []))


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


def test_interrupt(paper, project):
    paper('baseline', 'import os, time\nopen("kernel.pid", "w").write(str(os.getpid()))\ntime.sleep(60)')
    listen = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) # a test run in the background inherits deaf ears
    run = subprocess.Popen([*ATR, 'reproduce'], stderr=subprocess.PIPE, text=True, preexec_fn=listen)
    deadline = time.time() + 60
    while not ((pid := project/'kernel.pid').exists() and pid.read_text()) and time.time() < deadline: time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=30)
    assert run.returncode == 130 and 'Stopped.' in said and 'Traceback' not in said
    assert not list((project/'reports').rglob('*.ipynb'))
    with pytest.raises(ProcessLookupError): # the kernel has gone too
        for _ in range(50): os.kill(int(pid.read_text()), 0); time.sleep(0.1)


# The other commands

@pytest.fixture
def sounds(project):
    folder = project/'sounds'
    folder.mkdir()
    for name in ('rain', 'clock'): sf.write(folder/f'{name}.wav', 0.1*np.sin(np.arange(8000)/5), 16000)
    (folder/'metadata.csv').write_text('file_name,caption\nrain.wav,rain falls\nclock.wav,a clock ticks\n')
    return folder


def test_data_check(sounds, capsys):
    assert cli.main(['data', 'check', str(sounds)]) == 0
    assert capsys.readouterr().out.strip() == '2 clips, 2 captions, no problems'
    (sounds/'rain.wav').write_text('not a sound')
    sf.write(sounds/'clock.wav', np.zeros(8000), 16000)
    assert cli.main(['data', 'check', str(sounds)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert 'rain.wav' in said[0] and 'clock.wav' in said[1] and said[2] == '2 clips, 2 captions, 2 problems'


def test_data_check_of_no_folder(project, capsys):
    assert cli.main(['data', 'check', 'nowhere']) == 2
    assert 'metadata.csv' in capsys.readouterr().err


def test_settings(project, capsys):
    assert cli.main(['settings', '--profile', 'smoke']) == 0
    assert 'width           4' in capsys.readouterr().out


# The real thing, tiny

@pytest.mark.parametrize('name', list(cli.notebooks(ROOT/'nbs'/'reproduce')) or [pytest.param('', marks=pytest.mark.skip('no reproduction notebook yet'))])
def test_reproduction_in_the_smoke_profile(name, tmp_path):
    folders = [f'--set={key}={tmp_path/key}' for key in ('cache', 'runs')]
    run = subprocess.run([*ATR, 'reproduce', '--profile', 'smoke', '--papers', name, '--out', str(tmp_path), *folders],
                         cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    written = {p.name for p in (tmp_path/'smoke'/name).iterdir()}
    assert written >= {'runs.jsonl', 'tables.md', 'tables.csv', 'claims.json', 'figures', 'notebook.ipynb'}
    assert '|---' in run.stdout and (tmp_path/'index.html').exists()
