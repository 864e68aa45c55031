"""Every key covers the code that makes what it addresses:
an edit that can change a number changes it, a better sentence does not."""
import ast
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from atr_nb import files
from atr_nb.data import scenes as scenes_module
from atr_nb.data.descriptions import LEXICON, read_lexicon
from atr_nb.data.features import feature_facts
from atr_nb.data.scenes import Scenes
from atr_nb.encoders.aisfx import Aisfx
from atr_nb.encoders.text import TextEncoder
from atr_nb.files import hash_json
from atr_nb.results import runs
from atr_nb.settings import load
from atr_nb.training.curriculum import MinedBatches
from atr_nb.training.recipe import Recipe, Stage

ROOT = Path(__file__).resolve().parent.parent
SOUND = 'words data.audio data.folders data.datasets data.descriptions data.scenes'.split()
FEATURES = SOUND + 'data.features encoders.panns encoders.aisfx model'.split()
WORDS = 'data.features data.captions encoders.text model'.split()
parsed = files._module.__wrapped__
RUN = FEATURES + WORDS + (
    'data.batches encoders.tower encoders.transformers alignment.pooling alignment.tokens '
    'evaluation.metrics evaluation.scoring methods.mgrl training.losses training.recipe training.checkpoints '
    'training.devices training.trainer training.curriculum results.opening results.setup results.runs').split()


@pytest.fixture(scope='module')
def parts():
    scenes = Scenes('sparse', 'val', 8)
    ear, voice = Aisfx(), TextEncoder('tiny')
    ear.fingerprint(), voice.fingerprint()
    return scenes, ear, voice


@lru_cache(maxsize=None)
def read_module(name, text): return parsed(name) # once for each state that a file is in


@pytest.fixture
def package(tmp_path, monkeypatch):
    "A copy of the package, which the hashes look at"
    shutil.copytree(ROOT/'atr_nb', tmp_path/'atr_nb', ignore=shutil.ignore_patterns('__pycache__', 'assets'))
    monkeypatch.setattr(files, 'PACKAGE', tmp_path/'atr_nb')
    monkeypatch.setattr(files, '_module', lambda name: read_module(name, files._file(name).read_text()))
    return tmp_path/'atr_nb'


def setup_of(parts):
    "What a run's identity asks of a setup"
    scenes, ear, voice = parts
    return SimpleNamespace(settings=replace(load('smoke'), root=ROOT),
                           fingerprints=(ear.fingerprint(), voice.fingerprint()), features_in=ear.precision,
                           clips=lambda dataset, split: scenes, device=torch.device('cpu'))


def keys(parts):
    "The keys of a manifest, of features of sound and of words, and of a run"
    scenes, ear, voice = parts
    for name in ('manifest_hash', 'sound_hash'): vars(scenes).pop(name, None)
    identity = runs._identity(setup_of(parts), 'scenes-sparse', 'mgrl', {}, Recipe(Stage(1)), 0,
                              {'hard': object.__new__(MinedBatches)}, {})
    return dict(manifest=scenes.manifest_hash,
                sound=hash_json(feature_facts('audio', scenes.sound_hash, ear, 'float16')),
                words=hash_json(feature_facts('text', 'captions', voice, 'float16')), run=runs.run_name(identity))


def constants(path):
    "The numbers in a module's code, or its strings if there are none; those in the wording of errors aside"
    tree = ast.parse(path.read_text())
    told = {id(n) for r in ast.walk(tree) if isinstance(r, ast.Raise) for n in ast.walk(r)}
    found = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in told]
    numbers = [n for n in found if type(n.value) in (int, float)]
    strings = [n for n in found if n.value in ('  ', ' ')]
    return sorted(numbers or strings, key=lambda n: (n.lineno, n.col_offset))


def change(path, number):
    lines = path.read_text().splitlines(keepends=True)
    line = lines[number.lineno - 1].encode() # columns count bytes
    lines[number.lineno - 1] = (line[:number.col_offset] + repr(number.value + type(number.value)(1)).encode()
                                + line[number.end_col_offset:]).decode()
    path.write_text(''.join(lines))


@pytest.mark.parametrize('module', dict.fromkeys(RUN))
def test_a_constant_changes_the_keys(package, parts, module):
    path = package.joinpath(*module.split('.')).with_suffix('.py')
    before, text, numbers = keys(parts), path.read_text(), constants(path)
    assert numbers, 'no constant to change'
    for number in (numbers[0], numbers[-1]):
        change(path, number)
        after = keys(parts)
        path.write_text(text)
        expected = {k for k, modules in dict(manifest=SOUND, sound=FEATURES, words=WORDS, run=RUN).items()
                    if module in modules}
        assert expected <= {k for k in before if before[k] != after[k]}, f'line {number.lineno}'


@pytest.mark.parametrize('module', dict.fromkeys(RUN))
def test_a_sentence_does_not(package, parts, module):
    path = package.joinpath(*module.split('.')).with_suffix('.py')
    before, text = keys(parts), path.read_text()
    docs = [n.body[0] for n in ast.walk(ast.parse(text))
            if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(n)]
    lines = text.splitlines(keepends=True)
    if docs:
        lines[docs[-1].lineno - 1] = (lines[docs[-1].lineno - 1].replace('"', '"Better: ', 1)
                                      if '"""' not in lines[docs[-1].lineno - 1] else lines[docs[-1].lineno - 1])
    path.write_text(''.join(['"Another first line"\n', *lines[1:], '\n# and a remark\n'])
                    if lines[0].startswith('"""') else text + '\n# and a remark\n')
    assert path.read_text() != text and keys(parts) == before


def test_every_module_that_can_change_a_number_is_tried():
    aside = ('settings cli kernels ahead pages files figures notebooks processes __init__ _modidx results.logbook '
             'results.records results.tables results.claims results.report results.published results.experiment ')
    aside += ('results.auxiliary results.cost results.hearing results.levels results.compare results.choices '
              'results.plan ')
    aside += 'training.checks evaluation.significance methods.__init__ '
    aside += ('methods.baseline methods.cmlf methods.hci_ac methods.tha_dcr methods.diffatr evaluation.calibration '
              'alignment.segments alignment.factors alignment.cross ')
    aside += 'results.models results.search '
    aside += 'results.blocks training.captioner encoders.patches' # those of other runs
    modules = {'.'.join(p.relative_to(ROOT/'atr_nb').with_suffix('').parts) for p in (ROOT/'atr_nb').rglob('*.py')}
    modules = {m for m in modules if not m.endswith('.__init__')}
    assert modules - set(aside.split()) == set(RUN)


@pytest.mark.parametrize('module', ['results.logbook', 'results.records', 'results.tables', 'results.experiment'])
def test_where_a_run_is_noted_does_not_determine_it(module):
    """Neither that of a plain run nor that of one with auxiliary captions,
    whose address holds the code of `auxiliary` as well"""
    assert f'atr_nb.{module}' not in files._reached(['atr_nb.results.runs', 'atr_nb.results.auxiliary'])


@pytest.mark.parametrize('options, base', [
    ({}, 'baseline'), (dict(base='mgrl'), 'mgrl'), (dict(base='hci_ac'), 'hci_ac')])
def test_a_constant_of_its_base_changes_the_address_of_a_method(package, parts, options, base):
    "DiffATR builds its base by name and does not import it"
    def address():
        return runs.run_name(runs._identity(setup_of(parts), 'scenes-sparse', 'diffatr', options, Recipe(Stage(1)), 0,
                                            {}, {}))
    path = package/'methods'/f'{base}.py'
    before = address()
    change(path, constants(path)[0])
    assert address() != before


def test_the_precision_of_features_counts(parts):
    scenes, ear, voice = parts
    half = ear.faster('bfloat16')
    assert half.fingerprint() == ear.fingerprint() # so the key must hold it besides
    before, after = keys(parts), keys((scenes, half, voice))
    assert {k for k in before if before[k] != after[k]} == {'sound', 'run'}


def test_weights_assets_and_vocabulary_count(parts):
    _, ear, voice = parts
    before = ear.fingerprint(), voice.fingerprint()
    other = Aisfx()
    with torch.no_grad(): other.conv_block1.conv1.weight[0, 0, 0, 0] += 1e-3
    assert other.fingerprint() != before[0]
    other = Aisfx()
    other.spectrogram.window[7] += 1e-3 # no part of the checkpoint
    assert other.fingerprint() != before[0]
    other = TextEncoder('tiny')
    other.tokenizer.add_tokens(['jackhammer'])
    assert other.fingerprint() != before[1]


@pytest.fixture
def assets(tmp_path, monkeypatch):
    "A copy of what scenes are made from, which their hash looks at"
    monkeypatch.setattr(scenes_module, 'files', lambda package: tmp_path/package)
    monkeypatch.setattr(scenes_module, 'LEXICON_FILE', tmp_path/'atr_nb'/'assets'/'lexicon.csv')
    monkeypatch.setattr(scenes_module, '_assets_hash', scenes_module._assets_hash.__wrapped__) # not kept
    source, copy = ROOT/'atr_nb'/'assets', tmp_path/'atr_nb'/'assets'
    shutil.copytree(source/'sounds', copy/'sounds')
    for name in ('lexicon.csv', 'sounds.csv'): shutil.copy(source/name, copy)
    return copy


@pytest.mark.parametrize('name, old, new', [
    ('lexicon.csv', b'a dog; a hound', b'a dog; a puppy'), ('lexicon.csv', b'bus,yes', b'bus,no'),
    ('sounds.csv', b'dog,any', b'dog,test'), ('sounds/dog_dog.ogg', b'OggS', b'OggX')])
def test_what_scenes_are_made_from_changes_the_keys(assets, parts, name, old, new):
    before, path = keys(parts), assets/name
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    after = keys(parts)
    assert {k for k in before if before[k] != after[k]} == {'manifest', 'sound', 'run'}


def test_the_lexicon_is_the_file_that_is_hashed():
    assert scenes_module.LEXICON_FILE == ROOT/'atr_nb'/'assets'/'lexicon.csv'
    assert read_lexicon(scenes_module.LEXICON_FILE) == LEXICON


@pytest.mark.parametrize('module, old, new', [
    ('encoders/panns', '.mean(3)', '.amax(3)'), ('data/scenes', 'freq/900', 'freq/1500'),
    ('data/scenes', '0.1 / blocks', '0.2 / blocks')])
def test_edits_that_left_every_key_as_it_was(package, parts, module, old, new):
    path = (package/module).with_suffix('.py')
    assert path.read_text().count(old) == 1
    before = keys(parts)
    path.write_text(path.read_text().replace(old, new))
    after = keys(parts)
    assert before['sound'] != after['sound'] and before['run'] != after['run']


def test_through_a_copy_of_the_package(tmp_path):
    "The same in a process that imports the edited copy"
    shutil.copytree(ROOT/'atr_nb', tmp_path/'atr_nb', ignore=shutil.ignore_patterns('__pycache__', 'assets'))
    script = 'from atr_nb.files import code_hash; print(code_hash("atr_nb.encoders.aisfx"))'
    run = lambda: subprocess.run([sys.executable, '-c', script], env=os.environ | dict(PYTHONPATH=str(tmp_path)),
                                 cwd=tmp_path, capture_output=True, text=True, check=True)
    before, path = run().stdout, tmp_path/'atr_nb'/'encoders'/'panns.py'
    path.write_text(path.read_text().replace('.mean(3)', '.amax(3)'))
    assert run().stdout != before
