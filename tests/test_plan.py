"What there is to do, told before anything starts; what can be asked for, and what each setting means."
import re
import subprocess
from argparse import SUPPRESS
from dataclasses import replace
from pathlib import Path

import pytest

from atr_nb import cli
from atr_nb.results.plan import earlier
from atr_nb.settings import Settings, load

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENT = 'from atr_nb.results.experiment import Experiment\nlab = Experiment(settings, "baseline")'
SWEEP = 'lab.sweep("main", {"NT-Xent": {}, "sum": dict(options={"loss": "sum"})})'
DEPENDENT = ('loss = "sum" if lab.mean("main", "sum") > 50 else "nt_xent"\n'
             'lab.sweep("more", {"better": dict(options={"loss": loss}, recipe=lab.recipe(2))})')
SMALL = ['--profile', 'planned', '--set', 'datasets=scenes-sparse', '--set', 'text_encoder=tiny']


@pytest.fixture
def ask(project, capfd):
    "Run `reproduce` in the project; its exit status, output and errors. In a profile of which no checkout has a report"
    with open(project/'settings.ini', 'a') as ini: ini.write('[planned]\nwidth = 4\nseeds = 0\n')
    def run(*options):
        capfd.readouterr()
        return cli.main(['reproduce', *SMALL, *options]), *capfd.readouterr()
    return run


def files(folder): return {p for p in folder.rglob('*') if p.is_file()}


def test_the_plan_before_and_after(paper, project, ask):
    "Nothing is written by a plan; a run says first what it will do; what it did is at hand afterwards"
    paper('baseline', EXPERIMENT, SWEEP, DEPENDENT, 'lab.finish()')
    before = files(project)
    status, said, _ = ask('--plan')
    assert status == 0 and said == ('baseline: 2 runs to do, 0 at hand, and perhaps others, as results come out; '
                                    'no earlier times to go by\n')
    assert files(project) == before
    status, _, errors = ask()
    assert status == 0 and errors.startswith(said)
    assert ask('--plan')[1] == 'baseline: no runs to do, 3 at hand\n'


def test_several_pages(paper, project, ask):
    "Runs that pages share are counted once; cells that only show are not run; a page that cannot be asked is told"
    paper('baseline', EXPERIMENT, 'open("shown", "w").close()', SWEEP, order=1)
    paper('mgrl', EXPERIMENT.replace('baseline', 'mgrl'), SWEEP, order=2)
    paper('zebra', EXPERIMENT, 'lab.sweep("main", {"x": dict(method="no such method")})')
    status, said, _ = ask('--plan')
    lines = said.splitlines()
    assert status == 1 and lines[0].startswith('baseline: 2 runs to do, 0 at hand;')
    assert lines[1] == 'mgrl: no runs to do, 0 at hand, 2 shared with earlier pages'
    assert lines[2].startswith('zebra: no plan (ValueError: ') and 'no such method' in lines[2]
    assert lines[3].startswith('all: 2 runs to do, 0 at hand, and perhaps others')
    assert not (project/'shown').exists() and not (project/'reports').exists()


def test_a_page_without_a_plan_is_run_all_the_same(paper, project, ask):
    paper('zebra', 'lab = None and Experiment(1)', 'from nowhere import lost\nlab.run(lost)')
    status, _, errors = ask()
    assert status == 1 and errors.startswith('zebra: no plan (ModuleNotFoundError: ') and 'FAILED zebra' in errors


def test_a_notebook_without_an_experiment_has_no_plan(paper, project, capsys):
    paper('baseline', '1/0')
    assert cli.main(['reproduce', '--plan']) == 0 and capsys.readouterr().out == ''
    assert not (project/'reports').exists()


def test_every_page_can_be_asked(tmp_path, capsys):
    names = list(cli.notebooks(ROOT/'nbs'/'reproduce'))
    folders = ['--out', str(tmp_path/'out'), f"--set=runs={tmp_path/'runs'}", f"--set=cache={tmp_path/'cache'}"]
    assert cli.main(['reproduce', '--plan', '--profile', 'smoke', '--papers', ','.join(names), *folders]) == 0
    counts = {name: int(n) for name, n in re.findall(r'^(\w+): (\d+) runs to do', capsys.readouterr().out, re.M)}
    assert list(counts) == [*names, 'all'] and counts['all'] == sum(counts[n] for n in names)
    assert not list(tmp_path.iterdir())


def test_trials_of_other_methods_do_not_count():
    settings = replace(load('embedded'), out=ROOT/'reports')
    few = earlier(replace(settings, methods=('cmlf',)))['choices']
    assert {r['method'] for r in few} == {'cmlf'} and len(few) < len(earlier(settings)['choices'])


def test_time_left():
    "From the plan: what the notebooks to come will take, and what is left of the current one"
    progress = cli.Progress(3, dict(a=100., b=3600.4))
    assert 3695 < progress.left() < 3701
    progress.notebook('a')
    progress.begun -= 5000 # it took longer than last time
    assert progress.bar.format_dict['left'] == ', about 1:00:00 left' and 'about 1:00:00 left' in str(progress.bar)
    progress.notebook('b')
    progress.notebook('c')
    assert progress.left() == 0 and 'left' not in str(progress.bar) # nothing is known of it
    progress.bar.close()


# What can be asked for

def options(parser):
    for action in parser._actions:
        yield parser.prog, action
        for p in (action.choices or {}).values() if hasattr(action, '_name_parser_map') else (): yield from options(p)


def test_every_option_has_a_help_text():
    found = [(prog, a) for prog, a in options(cli.parser()) if not hasattr(a, '_name_parser_map')]
    assert len(found) > 15 and not [(prog, a.dest) for prog, a in found if a.help in (None, SUPPRESS, '')]


def test_version(capsys):
    with pytest.raises(SystemExit) as e: cli.main(['--version'])
    assert e.value.code == 0 and re.fullmatch(r'atr-nb \d+\.\d+\.\d+\n', capsys.readouterr().out)


def test_every_setting_has_a_meaning(project, capsys):
    assert cli.main(['settings', '--profile', 'smoke']) == 0
    said = capsys.readouterr().out
    blocks = dict(re.findall(r'^(\w+) .*\n((?: {18}.+\n)+)', said, re.M))
    assert (blocks.keys() == Settings.__dataclass_fields__.keys() - {'root', 'folders'}
            and all(map(str.strip, blocks.values())))
    assert 'dimension of the joint space' in blocks['width'] and 'captions         (empty)\n' not in blocks['width']
    assert re.search(r'^audio_weights +\(empty\)$', said, re.M)


def test_list(paper, project, capsys):
    paper('baseline', EXPERIMENT)
    paper('mgrl', '1')
    folder = project/'reports'/'smoke'/'baseline'
    folder.mkdir(parents=True)
    line = '{{"run": "{}", "seconds": {}, "commit": "abc+", "device": "x86_64 CPU, 1 thread"}}\n'
    runs = ('a', 60), ('a-stage1', 30), ('b', 120), ('b', 120)
    (folder/'runs.jsonl').write_text(''.join(line.format(*run) for run in runs))
    assert cli.main(['list']) == 0
    said = capsys.readouterr().out
    assert said.startswith('profiles  embedded, smoke (default: embedded)\n')
    assert 'smoke: 2 runs, 3 min of training on x86_64 CPU; made by code of no commit\n' in said
    assert re.search(r'^mgrl +mgrl\n +no report yet$', said, re.M)
    (folder/'runs.jsonl').write_text('{')
    assert cli.main(['list']) == 2 and f'{folder/"runs.jsonl"} is damaged' in capsys.readouterr().err


def test_list_knows_whether_the_code_changed():
    def git(*what): return subprocess.run(['git', *what, '--', 'atr_nb'], cwd=ROOT, capture_output=True, text=True)
    commit = git('log', '-1', '--format=%h').stdout.strip()
    if not commit: pytest.skip('no history here')
    changed = git('diff', '--quiet', commit).returncode
    assert cli._code([dict(commit=commit)], ROOT).endswith('older code' if changed else 'code of today')
    assert cli._code([dict(commit='0000000')], ROOT) == '0000000, older code' # of a history that is not here
