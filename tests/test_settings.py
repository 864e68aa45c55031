"Settings from a file, the environment and notebooks: what is right, and what bad input is told."
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from atr_nb import cli
from atr_nb.settings import from_parameters, load, profiles


def test_profiles_of_the_repository(root, monkeypatch):
    monkeypatch.chdir(root/'nbs')
    assert list(profiles()) == ['smoke', 'embedded', 'embedded-gpu', 'audiocaps', 'clotho']
    for name in profiles():
        s = load(name)
        assert s.profile == name and s.root == root and s.out == root/'reports'
    assert load().profile == 'embedded'
    assert load('embedded-gpu').train_size == 49274 and load('embedded-gpu').finetune
    assert load('clotho').datasets == ('clotho',)
    assert {name: load(name).schedule for name in profiles()} == (
        dict.fromkeys(('smoke', 'embedded'), 'one-cycle')
        | dict.fromkeys(('embedded-gpu', 'audiocaps', 'clotho'), 'steps')) # the papers'


@pytest.mark.parametrize('key', ['cache', 'runs'])
def test_override_beats_environment_beats_file(project, monkeypatch, key):
    (project/'settings.ini').write_text(f'[DEFAULT]\n{key} = from-file\n[embedded]\n')
    assert getattr(load(), key) == project/'from-file'
    monkeypatch.setenv(f'ATR_NB_{key.upper()}', str(project/'from-env'))
    assert getattr(load(), key) == project/'from-env'
    assert getattr(load(**{key: 'given'}), key) == project/'given'


def test_trained_models_are_not_in_the_folder_that_is_safe_to_delete(root, project, monkeypatch):
    def apart(s): return not s.runs.is_relative_to(s.cache) and not s.cache.is_relative_to(s.runs)
    (project/'settings.ini').write_text('[embedded]\n') # the defaults of the class
    assert apart(load())
    monkeypatch.chdir(root)
    assert apart(load())


def test_paths_start_at_settings_ini(project, monkeypatch):
    monkeypatch.chdir(project/'nbs'/'reproduce')
    assert load(out='elsewhere').out == project/'elsewhere'
    assert load(out='elsewhere').describe()['out'] == 'elsewhere'
    assert load(text_encoder='./bert').text_encoder == str(project/'bert')
    assert load(text_encoder='bert-base-uncased').text_encoder == 'bert-base-uncased'


def test_no_settings_ini(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match='no settings.ini in'): load()


@pytest.mark.parametrize('text, told', [
    ('[embedded]\nwidht = 8\n',
     r"settings.ini \[embedded\]: key 'widht' is unknown; did you mean width\? Known: datasets"),
    ('[DEFAULT]\nprofile = x\n[embedded]\n', r"\[DEFAULT\]: key 'profile' is unknown"),
    ('[embedded]\ntrain_size = many\n',
     r"settings.ini \[embedded\]: train_size='many' will not do; expected a whole number from 0 to"),
    ('[embedded]\nseeds =\n', r"seeds='' will not do; expected one or more"),
    ('[embedded]\nwidth = 8\nwidth = 9\n', 'settings.ini cannot be read'),
    ('width = 8\n', 'settings.ini cannot be read'),
    ('[mine]\nwidth = 8\n', r"profile 'embedded' is unknown; known: mine"),
])
def test_mistakes_in_the_file(project, text, told):
    (project/'settings.ini').write_text(text)
    with pytest.raises(ValueError, match=told): load('embedded')


@pytest.mark.parametrize('key, value', [
    ('train_size', -1), ('train_size', 1.5), ('train_size', True), ('train_size', 'many'),
    ('train_size', float('inf')), ('epochs', 0), ('batch_size', 1),
    ('learning_rate', 0), ('learning_rate', 'fast'), ('learning_rate', float('nan')),
    ('seeds', ''), ('seeds', []), ('seeds', [0, 0]), ('seeds', [-1]), ('seeds', '0,x'), ('seeds', {}),
    ('device', 'gpu'), ('device', 'cuda:'), ('precision', 'fp8'), ('audio_encoder', 'resnet'),
    ('datasets', 'scenes'), ('datasets', 'clotho,clotho'), ('schedule', 'cosine'), ('long_clips', 'cut'),
    ('methods', 'mgrl,mgrl'), ('finetune', 'perhaps'), ('text_encoder', ''), ('out', ''), ('out', 7),
    ('cache', 'settings.ini'),
    *((key, 10**20) for key in ('train_size', 'val_size', 'test_size', 'width', 'batch_size')),
    *((key, 10**20) for key in ('epochs', 'lr_step', 'patience')),
    ('seeds', [0, 10**20]), ('ablation_seeds', 2**63), ('width', 1e20), ('width', '9' * 5000)])
def test_mistakes_in_a_value(project, key, value):
    with pytest.raises(ValueError, match=f'^{key}='): load(**{key: value})


def test_a_value_too_large_is_told_its_bound(project):
    with pytest.raises(ValueError, match='expected a whole number from 1 to 100,000$'): load(width=10**20)
    assert load(seeds=[2**63 - 1]).seeds == (2**63 - 1,)


def test_a_byte_order_mark_is_no_mistake(project):
    ini = project/'settings.ini'
    ini.write_bytes(b'\xef\xbb\xbf' + ini.read_bytes())
    assert load('smoke').width == 4


def test_none_means_not_given(project):
    assert load('smoke', seeds=None, width=None) == load('smoke')


def test_from_parameters(project):
    namespace = dict(profile='smoke', seeds='0,1', device=None, force=True, In=['x'], Out={1: 2}, exit=exit,
                     _hidden=3, pytest=pytest, load=load)
    s = from_parameters(namespace)
    assert (s.profile, s.seeds, s.width, s.force) == ('smoke', (0, 1), 4, True)
    with pytest.raises(ValueError, match=r"parameter 'profle' is unknown; did you mean profile\?"):
        from_parameters(namespace | dict(profle='smoke'))
    with pytest.raises(ValueError, match=r"profile \['smoke'\] is unknown"): from_parameters(dict(profile=['smoke']))


@pytest.mark.parametrize('value', [
    None, True, 3, 3., 3j, 'a', b'a', [1], (1,), {1}, {1: 2}, frozenset([1]), range(3), Path('a'), ..., np.ones(2)])
def test_a_misspelt_parameter_is_noticed_whatever_its_value(project, value):
    told = "parameter 'epohcs' is unknown; did you mean epochs"
    with pytest.raises(ValueError, match=told): from_parameters(dict(epohcs=value))


def test_what_a_notebook_imports_is_no_parameter(project):
    code = """from __future__ import annotations
import os, numpy as np
from functools import partial
from pathlib import Path
from typing import Any
from atr_nb.settings import from_parameters
profile = 'smoke'
settings = from_parameters(globals())
settings = from_parameters(globals())
"""
    shell = '''import sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.run_cell(sys.argv[1]).raise_error()
print(shell.user_ns["settings"].width)'''
    run = subprocess.run([sys.executable, '-c', shell, code], capture_output=True, text=True)
    assert run.stdout.splitlines()[-1] == '4', run.stdout + run.stderr


def test_describe_is_plain_and_short(project):
    import json
    s = load('smoke', cache='~/somewhere')
    assert json.loads(json.dumps(s.describe())) == s.describe()
    assert s.describe()['cache'] == '~/somewhere' and s.describe()['out'] == 'reports'
    assert str(project) not in repr(s) + s._repr_markdown_()
    assert load(**{k: v for k, v in s.describe().items()}) == s


def test_which_methods_are_tried_is_no_part_of_what_was_asked_for(project):
    assert load().methods == () and load(methods='mgrl, cmlf').methods == ('mgrl', 'cmlf')
    assert load(methods=['mgrl']).describe() == load().describe()


def test_only_the_standard_library():
    code = ('import sys, atr_nb.settings; '
            'print([m for m in ("torch", "numpy", "pandas", "nbformat", "fastcore") if m in sys.modules])')
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          check=True).stdout.strip() == '[]'


@pytest.mark.parametrize('key, value, empty', [
    ('audio_weights', 'mine.pth', None), ('captions', 'settings.ini', None), ('captions_seen', 'train, val', ()),
    ('methods', 'mgrl', ())])
def test_an_empty_value_clears_what_the_profile_says(project, key, value, empty):
    "Given by name, on the command line, and as papermill hands it to a notebook"
    (project/'settings.ini').write_text((project/'settings.ini').read_text().replace(
        '[DEFAULT]\n', f'[DEFAULT]\n{key} = {value}\n'))
    assert getattr(load(), key)
    cleared = load(**{key: ''})
    assert getattr(cleared, key) == empty
    given = cli.parameters(cleared, {key: ''})
    assert getattr(from_parameters(given), key) == empty
