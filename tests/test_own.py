"Sounds of one's own, through the door: folders as data sets, with a split column and without, good ones and bad ones."
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import soundfile as sf

from atr_nb import cli
from atr_nb.data.datasets import Folder, Part, unplayable
from atr_nb.data.folders import drawn_split, take, windows
from atr_nb.results.opening import open_split
from atr_nb.settings import load

ROOT = Path(__file__).resolve().parent.parent
ATR = [str(Path(sys.executable).with_name('atr-nb'))]
RATE = 8000
ODD = 'Küche (2024) <b>$x$ "q" [1]'


def tone(k, seconds=1.): return 0.3 * np.sin(np.arange(int(RATE * seconds)) * (k + 2) / 40)


def fill(folder, n=40, split=True, name='{}.wav', caption='A tone, number {}.'):
    "A folder of n tones with its table"
    folder.mkdir(parents=True)
    names = [name.format(k) for k in range(n)]
    for k, file in enumerate(names): sf.write(folder/file, tone(k), RATE)
    table = pd.DataFrame(dict(file_name=names, caption=[caption.format(k) for k in range(n)]))
    if split: table['split'] = [('train', 'train', 'Validation', 'evaluation')[k % 4] for k in range(n)]
    table.to_csv(folder/'metadata.csv', index=False)
    return folder


def change(folder, row, **cells):
    table = pd.read_csv(folder/'metadata.csv', dtype=str, keep_default_na=False)
    for column, value in cells.items():
        if column not in table: table[column] = ''
        table.loc[row, column] = value
    table.to_csv(folder/'metadata.csv', index=False)


def splits(folder): return {split: set(Folder(folder, split).ids) for split in ('train', 'val', 'test')}


# The splits

def test_a_column_decides(tmp_path):
    found = splits(fill(tmp_path/'sounds'))
    assert found['val'] == {f'{k}.wav' for k in range(2, 40, 4)} and len(found['train']) == 20
    assert Folder(tmp_path/'sounds', 'validation').ids == Folder(tmp_path/'sounds', 'val').ids


def test_the_lot_depends_on_nothing_else(tmp_path):
    folder = fill(tmp_path/'sounds', split=False)
    before, table = splits(folder), pd.read_csv(folder/'metadata.csv')
    table.sample(frac=1, random_state=0).to_csv(folder/'metadata.csv', index=False)
    assert splits(folder) == before
    sf.write(folder/'new.wav', tone(50), RATE)
    pd.concat([table, pd.DataFrame(dict(file_name=['new.wav'], caption=['A new tone.']))]).to_csv(
        folder/'metadata.csv', index=False)
    assert {split: its - {'new.wav'} for split, its in splits(folder).items()} == before


def test_what_belongs_together_stays_together(tmp_path):
    folder = fill(tmp_path/'sounds', split=False)
    table = pd.read_csv(folder/'metadata.csv').assign(group=[f'day {k // 2}' for k in range(40)])
    table.to_csv(folder/'metadata.csv', index=False)
    found = splits(folder)
    for k in range(0, 40, 2): assert any({f'{k}.wav', f'{k + 1}.wav'} <= its for its in found.values())
    assert found['test'] == {f'{k}.wav' for k in range(40) if drawn_split(f'day {k // 2}') == 'test'}
    change(folder, 3, group=' ')
    with pytest.raises(ValueError, match='row 5: empty group'): Folder(folder)


def test_a_size_is_a_limit(project):
    folder = fill(project/'sounds')
    def size(n): return open_split(load(datasets='folder:sounds', train_size=n, val_size=n), 'folder:sounds', 'train')
    few, more = size(5), size(12)
    assert len(few) == 5 and set(few.ids) < set(more.ids) and len(size(0)) == len(size(1000)) == 20
    assert few.note == '5 of 20 clips, sampled with a fixed seed (train_size=5)' and size(0).note == ''
    change(folder, 39, caption='Changed.') # a clip of another split changes neither data nor run
    assert size(5).manifest_hash == few.manifest_hash


def test_a_limit_counts_captions_where_they_are_trained_on():
    assert len(take(list('abcdef'), [5] * 6, 12)) == 2 and len(take(list('abcdef'), [5] * 6, 1)) == 1


# Names and paths

def test_a_folder_by_its_path(project, monkeypatch):
    monkeypatch.setenv('HOME', str(project))
    fill(project/'sounds')
    for path in ('sounds', './sounds', '~/sounds', '~/x/../sounds/', project/'sounds'):
        s = load(datasets=f'scenes-dense, folder:{path}')
        assert s.datasets == ('scenes-dense', 'folder:sounds') and s.folders == {'folder:sounds': project/'sounds'}
        assert load(datasets=s.describe()['datasets']) == s
    os.symlink(project/'sounds', project/'alias')
    assert load(datasets='folder:alias').datasets == ('folder:alias',)
    (project/'settings.ini').write_text('[DEFAULT]\ndatasets = folder:sounds\n[embedded]\n')
    assert load().datasets == ('folder:sounds',)


@pytest.mark.parametrize('given, told', [
    ('folder:', "datasets='folder:' will not do; expected one or more of scenes-sparse"),
    ('folders:sounds', 'and folder:PATH, sounds of your own'), ('sounds', 'folder:PATH'),
    ('folder:a/sounds, folder:b/sounds', 'would both be called folder:sounds'),
    ('folder:sounds,folder:./sounds', 'name each folder once')])
def test_a_folder_that_cannot_be_named(project, given, told):
    with pytest.raises(ValueError, match=re.escape(told)): load(datasets=given)


def test_a_folder_is_never_taken_for_a_published_set(project):
    fill(project/'clotho')
    assert load(datasets='folder:clotho').datasets == ('folder:clotho',)


# What is wrong is told before anything starts

def ask(*more): return cli.main(['reproduce', '--set', 'datasets=folder:sounds', '--set', 'batch_size=8', *more])


def spoil(what, folder):
    if what == 'no folder': folder.rename(folder.with_name('elsewhere'))
    if what == 'a file': folder.rename(folder.with_name('elsewhere')), folder.write_text('')
    if what == 'no table': (folder/'metadata.csv').unlink()
    if what == 'no sounds':
        for file in folder.iterdir(): file.unlink()
    if what == 'missing': (folder/'6.wav').unlink()
    if what == 'unreadable': (folder/'6.wav').write_text('not a sound')
    if what == 'silent': sf.write(folder/'6.wav', np.zeros(RATE), RATE)
    if what == 'an hour': sf.write(folder/'6.wav', tone(6, 61), RATE)
    if what == 'past its end': change(folder, 6, start='0.2', end='3')


@pytest.mark.parametrize('what, told', [
    ('no folder', 'sounds is not a folder; name one that holds sounds'), ('a file', 'is not a folder'),
    ('no table', 'metadata.csv does not exist; it should have a row for each of the 40 sounds, '
                 "with columns 'file_name' and 'caption'"),
    ('no sounds', 'sounds holds no sounds; they end in .wav, .flac, .ogg, .opus, .mp3'),
    ('missing', "row 8: '6.wav' is not a file"), ('unreadable', "clip '6.wav'"), ('silent', '6.wav: is silent'),
    ('an hour', "6.wav: 61 s as one clip, and 60 s are the most; say in columns 'start' and 'end'"),
    ('past its end', '6.wav: ends before 3 s')])
def test_a_bad_folder(paper, project, capsys, what, told):
    paper('baseline', '1')
    spoil(what, fill(project/'sounds'))
    assert ask() == 2
    assert told in capsys.readouterr().err and not (project/'reports').exists()


@pytest.mark.parametrize('cells, told', [
    (dict(caption='  '), "row 8: empty caption in column 'caption'"),
    (dict(caption='...'), "empty caption, number 1 of clip '6.wav'"),
    (dict(file_name='5.wav'), "duplicate id '5.wav'"), (dict(id='x'), 'empty id'),
    (dict(split=''), 'row 8: empty split'), (dict(start='1'), 'alone'),
    (dict(start='0.5', end='0.1'), "row 8: start '0.5' and end '0.1' are no part of a file"),
    (dict(start='a', end='b'), 'give both in seconds'), (dict(start='0', end='inf'), 'no part of a file'),
    (dict(file_name='../x.wav'), 'leaves the folder')])
def test_a_bad_cell(paper, project, capsys, cells, told):
    paper('baseline', '1')
    change(fill(project/'sounds'), 6, **cells)
    assert ask() == 2
    assert told in capsys.readouterr().err


def test_captions_in_another_layout(paper, project, capsys):
    paper('baseline', '1')
    folder = fill(project/'sounds')
    table = pd.read_csv(folder/'metadata.csv')
    table.rename(columns=dict(caption='description')).to_csv(folder/'metadata.csv', index=False)
    assert ask() == 2
    assert "has no caption column; call it 'caption'" in capsys.readouterr().err
    table.rename(columns=dict(caption='caption_2')).assign(Caption_1='Another.').to_csv(
        folder/'metadata.csv', index=False)
    assert ask() == 0 and Folder(folder).captions[3] == ['A tone, number 3.', 'Another.']


@pytest.mark.parametrize('more, told', [
    (['--set', 'batch_size=21'],
     '20 training captions do not fill a batch of batch_size=21; set batch_size=20 or less'),
    (['--set', 'test_size=1'], 'one clip for test is too few (test_size=1)')])
def test_too_few(paper, project, capsys, more, told):
    paper('baseline', '1')
    fill(project/'sounds')
    assert ask(*more) == 2
    assert told in capsys.readouterr().err


def test_nothing_falls_to_a_split(paper, project, capsys):
    paper('baseline', '1')
    folder = fill(project/'sounds', n=3, split=False)
    lost = next(s for s in ('train', 'val', 'test') if s not in Folder(folder).sizes)
    assert ask() == 2
    assert (f"has no split '{lost}'" in (said := capsys.readouterr().err)
            and 'without one a fixed random split is used' in said)


def test_what_was_heard_is_not_heard_again(project, monkeypatch):
    clips = Folder(fill(project/'sounds'))
    asked = []
    audio = Folder.audio
    monkeypatch.setattr(Folder, 'audio', lambda self, i, rate: asked.append(self.ids[i]) or audio(self, i, rate))
    def listen():
        asked.clear()
        return unplayable(clips, heard=project/'heard'/'sounds.json'), len(asked)
    assert listen() == ([], 40) and listen() == ([], 0)
    sf.write(clips.paths[3], np.zeros(RATE // 2), RATE)
    for _ in range(2): assert listen()[1] == 1 and 'silent' in listen()[0][0]
    (project/'heard'/'sounds.json').write_text('{')
    with pytest.warns(UserWarning, match='damaged'): assert listen()[1] == 40


# Without captions

def test_a_folder_as_it_is(tmp_path):
    folder = fill(tmp_path/'sounds', n=3)
    (folder/'metadata.csv').unlink()
    (folder/'a'/'b').mkdir(parents=True)
    for kind in ('flac', 'ogg', 'mp3'): sf.write(folder/'a'/f'x.{kind}', np.stack([tone(1)] * 2, 1), RATE)
    sf.write(folder/'a'/'b'/'long.OPUS', np.tile(tone(3, 1), 125), RATE, format='OGG', subtype='OPUS')
    (folder/'a'/'broken.wav').write_text('not a sound')
    clips = Folder(folder, captioned=False)
    long = [f'a/b/long.OPUS#t={10 * k},{10 * k + 10}' for k in range(12)] + ['a/b/long.OPUS#t=115,125']
    assert [id for id in clips.ids if 'long' in id] == long
    assert set(clips.ids) == {*long, 'a/broken.wav', 'a/x.flac', 'a/x.mp3', 'a/x.ogg', '0.wav', '1.wav', '2.wav'}
    assert (not clips.flat_captions and len(clips.clip_of_caption) == 0
            and clips.duration(clips.ids.index(long[1])) == 10)
    assert clips.audio(clips.ids.index(long[-1]), 16000).shape == (160_000,)
    assert [p.split(':')[0] for p in unplayable(clips, RATE)] == ["clip 'a/broken.wav'"]
    assert Part(clips, [2, 0]).ids == [clips.ids[2], clips.ids[0]]


@pytest.mark.parametrize('kind', ['wav', 'flac', 'ogg', 'opus', 'mp3'])
def test_only_the_window_is_decoded(tmp_path, kind, monkeypatch):
    how = dict(format='OGG', subtype='OPUS') if kind == 'opus' else {}
    sf.write(tmp_path/f'long.{kind}', np.tile(tone(3, 10), 13), RATE, **how)
    clips = Folder(tmp_path, captioned=False)
    assert len(clips) == 13
    read, frames = sf.SoundFile.read, []
    monkeypatch.setattr(sf.SoundFile, 'read',
                        lambda self, n=-1, *a, **k: (x := read(self, n, *a, **k), frames.append(len(x)))[0])
    part = clips.audio(7, RATE).numpy()
    assert len(part) == 10 * RATE and sum(frames) <= 12 * clips_rate(tmp_path/f'long.{kind}')
    monkeypatch.undo()
    whole = sf.read(tmp_path/f'long.{kind}')[0]
    if clips_rate(tmp_path/f'long.{kind}') == RATE: assert np.abs(part - whole[70 * RATE:80 * RATE]).max() < 1e-4


def clips_rate(path): return sf.info(path).samplerate


def test_windows_cover_everything():
    for seconds in np.random.default_rng(0).uniform(60.01, 4000, 200):
        cut = windows(seconds)
        assert cut[0][0] == 0 and seconds - cut[-1][1] < 0.011 and all(b[0] <= a[1] for a, b in zip(cut, cut[1:]))


def test_data_check_without_captions(tmp_path, capsys):
    folder = fill(tmp_path/'sounds', n=3)
    assert cli.main(['data', 'check', str(folder)]) == 0
    assert capsys.readouterr().out == '3 clips, 3 captions, no problems\ntrain 2, val 1, test 0\n'
    (folder/'metadata.csv').unlink()
    assert cli.main(['data', 'check', str(folder)]) == 0
    assert 'these sounds can be searched' in capsys.readouterr().out


# Trained on

LAB = ("""from atr_nb.results.experiment import Experiment
from atr_nb.results.report import Examples
lab = Experiment(settings, 'baseline')
lab.sweep('main', {'NT-Xent': dict(options={'loss': 'nt_xent'})})
lab.finish([Examples(lab.clips(d, 'test'), lab.scores(lab.one('main', 'NT-Xent', d)), 'NT-Xent')"""
       """ for d in settings.datasets])
print(settings.datasets); settings""")


def test_names_with_markup_are_text_in_every_page(paper, project):
    "Two folders and scenes, with names and captions that would be markup"
    paper('baseline', LAB)
    for name, more in ((ODD, {}), ('plain', dict(split=False))):
        fill(project/name, name='{} <img src=x onerror="alert(1)"> | ä$x$ [1].wav',
             caption='<script>alert({})</script> *a* $b$ [c](d) "e" | ü', **more)
    assert cli.main(['reproduce', '--set', f'datasets=folder:{ODD}, scenes-dense, folder:plain',
                     '--set', 'text_encoder=tiny', '--set', 'batch_size=8', '--set', 'train_size=16',
                     '--set', 'epochs=1', '--seeds', '0']) == 0
    folder = project/'reports'/'embedded'/'baseline'
    pages = {file.name: file.read_text()
             for file in (project/'reports'/'index.html', folder/'notebook.html', folder/'tables.md')}
    for name, page in pages.items():
        assert 'folder:Küche-2024-b-x-q-1' in page and 'folder:plain' in page, name
        assert '<script>alert' not in page and '<img src=x' not in page and '<b>$x$' not in page, name
    assert '&lt;script&gt;alert' in pages['index.html']
    assert ('own recordings: not comparable' in pages['tables.md']
            and 'train: 16 of 20 clips, sampled with a fixed seed (train_size=16)' in pages['tables.md'])
    assert 'embedded scenes: captions are ours' in pages['tables.md']
    assert nbformat.read(folder/'notebook.ipynb', 4).metadata.papermill.parameters['datasets'] == [
        f'folder:{ODD}', 'scenes-dense', 'folder:plain']


def test_reproduction_pages_run_to_their_end(tmp_path):
    "Those that speak of scenes, on a folder without any"
    fill(tmp_path/'sounds', n=60, split=False)
    folders = [f"--set={name}={tmp_path/name}" for name in ('cache', 'runs')]
    sizes = ['--set=train_size=32', '--set=val_size=8', '--set=test_size=16', '--set=epochs=1']
    run = subprocess.run([*ATR, 'reproduce', '--profile', 'smoke', '--papers', 'baseline,3cmlf',
                          '--out', str(tmp_path/'out'), f"--set=datasets=folder:{tmp_path/'sounds'}", *folders, *sizes],
                         cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    for name in ('baseline', '3cmlf'): assert 'folder:sounds' in (tmp_path/'out'/'smoke'/name/'tables.md').read_text()
    assert str(tmp_path) not in (tmp_path/'out'/'index.html').read_text()
