"Models and search, through the door that people use: index, search and models on the command line."
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import soundfile as sf

from atr_nb import cli
from atr_nb.data.audio import decode
from atr_nb.data.scenes import RATE, recording, sounds
from atr_nb.results import search as searching
from atr_nb.results.models import SHIPPED, Retriever, open_model
from atr_nb.results.search import HOME, Search, bring_up_to_date

KINDS = 'dog', 'cow', 'train', 'piano'
RUDE = '"><script>alert(1)</script> \'ü\' [x](y).wav'


@pytest.fixture(scope='module')
def model(): return open_model()


@pytest.fixture
def library(tmp_path):
    "Four recordings, one of them under a rude name"
    folder, table = tmp_path/'library', sounds().drop_duplicates('kind').set_index('kind')
    folder.mkdir()
    for kind in KINDS: sf.write(folder/f'{kind}.wav', recording(table.file[kind]), RATE)
    (folder/'cow.wav').rename(folder/RUDE.replace('/', '_'))
    return folder


def atr(capsys, *args):
    "Exit status, standard output and error stream of a command"
    status = cli.main([str(a) for a in args])
    told = capsys.readouterr()
    return status, told.out, told.err


def first(out): return out.splitlines()[0].split('  ')[-1]


# Asking

def test_search_from_nothing(library, capsys):
    "One command indexes and answers; it says which model, and what that knows"
    status, out, err = atr(capsys, 'search', 'a dog barks', '--in', library, '-k', 2)
    assert status == 0 and first(out) == 'dog.wav' and len(out.splitlines()) == 2
    assert 'It knows 59 kinds of sound and little else' in err


def test_like_and_captions(library, capsys):
    shutil.copy(library/'train.wav', library/'copy.wav')
    status, out, _ = atr(capsys, 'search', '--like', library/'train.wav', '--in', library, '-k', 1)
    assert status == 0 and first(out) == 'copy.wav' and out.lstrip().startswith('1.000')
    status, _, err = atr(capsys, 'search', '--like', library/'train.wav', '--captions', '--in', library)
    assert status == 2 and 'metadata.csv does not exist' in err
    (library/'metadata.csv').write_text('file_name,caption\ndog.wav,A dog barks\ntrain.wav,A train passes by\n')
    status, out, _ = atr(capsys, 'search', '--like', library/'train.wav', '--captions', '--in', library, '-k', 1)
    assert status == 0 and first(out) == 'A train passes by'


def test_page(library, tmp_path, capsys):
    "Names are text in the page, and its players find the files"
    page = tmp_path/'pages'/'hits.html'
    status, *_ = atr(capsys, 'search', 'a cow <b>moos</b> & "lows"', '--in', library, '-k', 4, '--html', page)
    html = page.read_text(encoding='utf-8')
    assert (status == 0 and html.count('<script') == 1 and '<script>alert' not in html and '<b>' not in html
            and html.count('<audio') == 4)
    from urllib.parse import unquote
    for src in re.findall('src="([^"]+)#t=', html): assert (page.parent/unquote(src)).resolve().is_file()


@pytest.mark.parametrize('args, told', [
    (['search', '', '--in', 'library'], 'has no words'), (['search', ' ... ', '--in', 'library'], 'has no words'),
    (['search', '--in', 'library'], 'give either a sentence or a sound'),
    (['search', 'rain', '--in', 'library', '--like', 'library/dog.wav'], 'give either a sentence or a sound'),
    (['search', '--like', 'library/none.wav', '--in', 'library'], 'none.wav: no such audio file'),
    (['search', 'rain', '--in', 'library', '-k', '0'], 'ask for one hit at least'),
    (['search', 'rain', '--in', 'library', '--captions'], 'name it with --like FILE'),
    (['search', 'rain', '--in', 'nowhere'], 'nowhere is not a folder'), (['index', 'empty'], 'holds no sounds'),
    (['search', 'rain', '--in', 'library', '--model', 'my model'], 'no folder, no run'),
    (['search', 'rain', '--in', 'library', '--model', 'nobody/nothing'], 'the hub cannot be asked'),
    (['index', 'library', '--model', 'empty'], 'config.json does not exist')])
def test_mistakes_are_told(library, monkeypatch, capsys, args, told):
    monkeypatch.chdir(library.parent)
    (library.parent/'empty').mkdir()
    status, out, err = atr(capsys, *args)
    assert status == 2 and told in err and 'Traceback' not in err and not out


@pytest.mark.parametrize('query, warned', [
    ('ein Hund bellt', True), ('犬が吠える', True), ('une voiture passe', True), ('a vuvuzela in a café', False)])
def test_another_language(library, model, query, warned):
    search = Search.build(library, model)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        assert len(search(query, k=1)) == 1
    assert bool([w for w in told if 'does not look like English' in str(w.message)]) == warned


# The index

def test_what_comes_and_goes(library, model, capsys):
    "Only what is new is encoded; what is gone is not found; an unreadable file is named and the rest goes on"
    assert atr(capsys, 'index', library)[1].endswith('4 files, 4 windows; 4 new, 0 gone, 0 left out\n')
    (library/'dog.wav').unlink()
    (library/'sub').mkdir()
    sf.write(library/'sub'/'noise.flac', np.random.default_rng(0).normal(0, .1, 25 * 8000), 8000)
    (library/'bad.mp3').write_text('no sound')
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        Search.load(library, model)
    assert '2 files new, 1 file gone since it was indexed' in str(told[-1].message)
    status, out, err = atr(capsys, 'index', library)
    assert status == 0 and 'left out:' in err and 'bad.mp3: cannot be decoded' in err
    assert out.endswith('5 files, 6 windows; 2 new, 1 gone, 1 left out\n')
    os.utime(library/'train.wav')
    assert '1 new' in atr(capsys, 'index', library)[1]
    assert len(list((library/HOME).glob('*/*'))) == 3 # lock, JSON and one array


def test_index_elsewhere(library, tmp_path, capsys):
    assert atr(capsys, 'index', library, '--index', tmp_path/'at')[0] == 0
    assert not (library/HOME).exists() and list((tmp_path/'at').glob('*/index.json'))


@pytest.mark.parametrize('name', ['index.json', 'index-*.npy'])
def test_a_damaged_index_is_made_again(library, model, name):
    Search.build(library, model)
    file = next((library/HOME/model.fingerprint).glob(name))
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match='damaged'): Search.load(library, model)
    with pytest.warns(UserWarning, match='damaged'): assert len(Search.build(library, model)) == 4


def test_nothing_usable(tmp_path, model):
    (tmp_path/'notes.wav').write_text('a list')
    with pytest.warns(UserWarning), pytest.raises(ValueError, match='none of its 1 files can be used'):
        Search.build(tmp_path, model)


KILLED = '''
import sys
from atr_nb.results import search
search.PART, search.TOGETHER = 2, 2
search.Search.build(sys.argv[1])
'''


def test_killed_in_the_middle(library, model):
    "kill -9 after the first part: the next one goes on, with the same vectors as one that was left alone"
    for n in range(12): shutil.copy(library/'piano.wav', library/f'piano{n}.wav')
    whole = Search.build(library, model, library.parent/'whole')
    place = library/HOME/model.fingerprint
    process = subprocess.Popen([sys.executable, '-c', KILLED, str(library)], stderr=subprocess.DEVNULL)
    while not list(place.glob('part-*.json')) and process.poll() is None: time.sleep(.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path for part in place.glob('part-*.json') for path in json.loads(part.read_text())['files']}
    counts = bring_up_to_date(library, model)
    assert kept and counts['new'] == 16 - len(kept)
    assert np.allclose(Search.load(library, model).vectors, whole.vectors, atol=1e-5)


@pytest.mark.parametrize('seconds, n', [(.1, 1), (10, 1), (11, 1), (11.01, 2), (25, 3), (3600, 360)])
def test_windows(tmp_path, seconds, n):
    sf.write(tmp_path/'noise.flac', np.random.default_rng(0).normal(0, .1, round(seconds * 8000)), 8000)
    found = [(a, b) for a, b, _ in searching.cut(tmp_path/'noise.flac', 8000)]
    assert len(found) == n and all(0 < b - a <= 10 for a, b in found)
    assert all(b == a for (_, b), (a, _) in zip(found, found[1:])) and seconds - found[-1][1] <= 1


def test_an_hour_in_little_memory(tmp_path, monkeypatch):
    "A long file is cut as it is read, and the place of a hit is told"
    sf.write(tmp_path/'long.flac', np.tile(np.random.default_rng(0).normal(0, .1, 8000), 125), 8000)
    found = [(a, b) for a, b, _ in searching.cut(tmp_path/'long.flac', 8000)]
    assert found == [(k, min(k + 10, 125)) for k in range(0, 125, 10)]


# Models

def test_a_saved_model_answers_like_the_first(library, tmp_path, model, capsys):
    model.save_pretrained(tmp_path/'saved')
    again = Retriever.from_pretrained(tmp_path/'saved')
    assert again.fingerprint == model.fingerprint
    both = SHIPPED, tmp_path/'saved'
    ours, theirs = (atr(capsys, 'search', 'a train', '--in', library, '--model', m)[1] for m in both)
    assert ours == theirs


def without(name): return lambda folder: (folder/name).unlink()


def edited(folder): (folder/'config.json').write_text((folder/'config.json').read_text().replace('192', '193'))


def cut_short(folder): (folder/'model.safetensors').write_bytes((folder/'model.safetensors').read_bytes()[:-1])


@pytest.mark.parametrize('change, told', [
    (without('config.json'), 'config.json does not exist'),
    (without('model.safetensors'), 'model.safetensors does not exist'),
    (edited, 'config.json is damaged'), (cut_short, 'model.safetensors is damaged')])
def test_a_model_that_is_not_whole(library, tmp_path, capsys, change, told):
    shutil.copytree(SHIPPED, tmp_path/'model')
    change(tmp_path/'model')
    status, out, err = atr(capsys, 'index', library, '--model', tmp_path/'model')
    assert status == 2 and told in err and not out


def test_the_shipped_one_says_what_it_knows(project, capsys):
    status, out, _ = atr(capsys, 'models')
    assert status == 0 and 'Nothing was trained here yet.' in out
    assert '59 kinds of sound and knows little else: factory whistle' in out and 'whoosh.' in out
    assert 'knows little else' in (SHIPPED/'README.md').read_text()
    assert sum(f.stat().st_size for f in SHIPPED.iterdir()) < 2.5e6


def test_pushed_to_the_hub(model, monkeypatch):
    "What would be sent: both files and the card"
    from huggingface_hub import HfApi
    sent = []
    monkeypatch.setattr(HfApi, 'create_repo', lambda self, repo_id, **_: type('Repo', (), dict(repo_id=repo_id)))
    def upload(self, folder_path, **_): sent.extend(sorted(os.listdir(folder_path)))
    monkeypatch.setattr(HfApi, 'upload_folder', upload)
    model.push_to_hub('me/scenes')
    assert sent == ['README.md', 'config.json', 'model.safetensors']


@pytest.mark.parametrize('query, limit', [(['a dog'], 2.5), (['--like', 'dog.wav'], 1)])
def test_cold_start(library, query, limit):
    "Until an answer, in units of importing torch; a sound needs no text encoder, so transformers is not imported"
    Search.build(library)
    timed = ('from time import process_time as now; begun = now(); import torch; torch = now() - begun; '
             'from atr_nb.cli import main; begun = now(); '
             f'main(["search", *{query!r}, "--in", {str(library)!r}]); print((now() - begun)/torch)')
    run = lambda: subprocess.run([sys.executable, '-c', timed], capture_output=True, text=True, check=True).stdout
    assert min(float(run().splitlines()[-1]) for _ in range(2)) < limit


@pytest.mark.parametrize('method', ['tha_dcr', 'diffatr'])
def test_methods_that_look_twice(library, tmp_path, features, method):
    "Blocks of the text encoder are found by their fingerprint; a second look takes as many candidates as there are"
    from atr_nb.results.blocks import Blocks
    from atr_nb.results.experiment import Experiment
    from atr_nb.settings import load
    places = dict(cache=str(features)) | {key: str(tmp_path/key) for key in ('runs', 'out')}
    lab = Experiment(load('smoke', **places, datasets='scenes-sparse', epochs=1), method)
    what = dict(setup=Blocks(lab)) if method == 'tha_dcr' else dict(options=dict(candidates=8))
    record = lab.run('main', method, 'scenes-sparse', 0, method=method, **what)
    model = Retriever.from_run(record['run'], lab.settings)
    model.save_pretrained(tmp_path/'saved')
    again = Retriever.from_pretrained(tmp_path/'saved')
    assert model.looks_twice and again.fingerprint == model.fingerprint
    found = Search.build(library, again)('a dog barks', k=4)
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True) and len(found) == 4
    waves = [decode(library/h.file, model.sample_rate, (h.start, h.end)) for h in found]
    assert np.allclose(model.similarity(waves, ['a dog barks'])[:, 0], [h.score for h in found], atol=1e-4)
