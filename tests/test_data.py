"Data that is broken, processes that are killed: what no notebook cell should carry."
import os, resource, signal, subprocess, sys, time
from pathlib import Path
import numpy as np, pandas as pd, pytest, soundfile as sf, torch
from torch import nn
from atr_nb.data.datasets import AudioCaps, Clips, Clotho, Folder, unplayable, hash_json
from atr_nb.data.features import audio_features
from atr_nb.data.batches import RandomBatches, Waveforms
from atr_nb.model import Encoded, Encoder

RATE = 8000

# --- a small dataset and a small, slow encoder

class Tones(Clips):
    "40 tones of 1, 1.5 and 2 seconds."
    def __init__(self, n=40):
        super().__init__('tones', 'train', [f'tone {i}' for i in range(n)], [[f'Tone {i}.'] for i in range(n)])
    def duration(self, i): return (1., 1.5, 2.)[i % 3]
    def audio(self, i, sample_rate):
        return torch.sin(torch.arange(int(self.duration(i)*sample_rate)) * (2*torch.pi*(100+i)/sample_rate) + 0.1)

class Ear(Encoder):
    "Frames of 50 ms, projected; it dawdles for `pause` seconds a batch."
    name, sample_rate, frame_seconds, width = 'toy-ear', 8000, 0.05, 16
    def __init__(self, pause=0., frame=400):
        super().__init__()
        self.pause, self.frame, self.seen, self.weight = (
            pause, frame, 0, torch.randn(frame, 16, generator=torch.Generator().manual_seed(0))/20)
    def fingerprint(self): return hash_json(self.weight.tolist())[:16]
    def forward(self, waveform, mask=None):
        time.sleep(self.pause); self.seen += len(waveform)
        mask = torch.ones_like(waveform, dtype=torch.bool) if mask is None else mask
        frames, valid = (nn.functional.pad(x, (0, max(0, self.frame - x.shape[1])))
                         .unfold(1, self.frame, self.frame) for x in (waveform, mask))
        x = (frames @ self.weight).relu()
        return Encoded(x.mean(1), x, valid.all(-1))

# --- tables

@pytest.fixture
def folder(tmp_path):
    "A good folder of three sounds; each test spoils a copy of its own."
    root = tmp_path/'sounds'; root.mkdir()
    for k in range(3): sf.write(root/f'{k}.wav', 0.3*np.sin(np.arange(RATE)*(0.1+0.1*k)), RATE)
    table(root)
    return root

def table(root, **columns):
    t = pd.DataFrame(dict(file_name=['0.wav','1.wav','2.wav'], caption=['A low tone.','A tone.','A high tone.'])
                     | columns)
    t.to_csv(root/'metadata.csv', index=False)

def fails(match, what, *args, error=(ValueError, FileNotFoundError), **kwargs):
    with pytest.raises(error, match=match): what(*args, **kwargs)

def test_good_folder(folder):
    clips = Folder(folder)
    assert (len(clips), clips.captions[2], clips.duration(1)) == (3, ['A high tone.'], 1.)
    assert clips.audio(0, 2*RATE).shape == (2*RATE,) and unplayable(clips, RATE) == []

def test_several_caption_columns_and_ids(folder):
    table(folder, caption_2=['One.','Two.','None'], id=['a','b','007'])
    clips = Folder(folder)
    assert (clips.ids[2] == '007' and clips.captions[2] == ['A high tone.', 'None']
            and clips.clip_of_caption.tolist() == [0,0,1,1,2,2])

def test_no_metadata(folder):
    (folder/'metadata.csv').unlink(); fails('metadata.csv does not exist.*each of the 3 sounds', Folder, folder)

def test_no_sounds(tmp_path):
    fails('holds no sounds', Folder, tmp_path)
    fails('nowhere is not a folder', Folder, tmp_path/'nowhere')

def test_empty_metadata(folder):
    (folder/'metadata.csv').write_text(''); fails('metadata.csv is not a CSV file', Folder, folder)
    (folder/'metadata.csv').write_text('file_name,caption\n'); fails('metadata.csv has no rows', Folder, folder)

def test_no_caption_column(folder):
    pd.DataFrame(dict(file_name=['0.wav'], words=['x'])).to_csv(folder/'metadata.csv', index=False)
    fails('no caption column.*file_name, words', Folder, folder)

def test_captions_in_another_language(folder):
    pd.DataFrame(dict(file_name=['0.wav'], caption=['x'], caption_de=['y'])).to_csv(folder/'metadata.csv', index=False)
    fails("column 'caption_de' seems to hold captions in another language", Folder, folder)
    pd.DataFrame(dict(file_name=['0.wav'], caption=['x'], lang=['fr'])).to_csv(folder/'metadata.csv', index=False)
    fails("row 2: lang is 'fr'", Folder, folder)

def test_no_file_name_column(folder):
    pd.DataFrame(dict(path=['0.wav'], caption=['x'])).to_csv(folder/'metadata.csv', index=False)
    fails("no column 'file_name'.*path, caption", Folder, folder)

@pytest.mark.parametrize('empty', ['', '   ', '...'])
def test_empty_caption(folder, empty):
    table(folder, caption=['A low tone.', empty, 'A high tone.'])
    fails('metadata.csv.*(row 3|1.wav).*', Folder, folder)

def test_duplicate_file(folder):
    table(folder, file_name=['0.wav','1.wav','0.wav'])
    fails("duplicate id '0.wav'", Folder, folder)

def test_duplicate_id(folder): table(folder, id=['a','b','b']); fails("duplicate id 'b'", Folder, folder)

def test_duplicate_across_splits(folder):
    table(folder, id=['a','b','b'], split=['train','train','test'])
    fails("duplicate id 'b'", Folder, folder, 'train')

def test_missing_file(folder):
    table(folder, file_name=['0.wav','gone.wav','2.wav'])
    fails("row 3: 'gone.wav' is not a file", Folder, folder)

def test_unknown_split(folder): fails("no split 'tset'.*A column 'split'", Folder, folder, 'tset')

@pytest.mark.parametrize('path', [
    '../outside.wav', 'sub/../../outside.wav', '/etc/hostname', 'link.wav', 'linked/outside.wav'])
def test_path_that_leaves_the_folder(folder, path):
    sf.write(folder.parent/'outside.wav', np.ones(100), RATE)
    (folder/'sub').mkdir()
    os.symlink(folder.parent/'outside.wav', folder/'link.wav')
    os.symlink(folder.parent, folder/'linked')
    table(folder, file_name=['0.wav', path, '2.wav']); fails(f"row 3: '{path}' leaves the folder", Folder, folder)

def test_folder_reached_through_a_link(folder): # the folder itself may be a link, and links inside it may point inside
    os.symlink(folder, folder.parent/'alias'); os.symlink(folder/'0.wav', folder/'same.wav')
    table(folder, file_name=['0.wav', 'same.wav', '2.wav'])
    assert len(Folder(folder.parent/'alias')) == 3

# --- sounds

def test_unreadable_file(folder):
    (folder/'1.wav').write_text('not a sound'); clips = Folder(folder)
    fails('1.wav', clips.audio, 1, RATE); fails('1.wav', clips.duration, 1)
    fails('1.wav', audio_features, clips, Ear(), folder.parent/'cache')
    assert len(problems := unplayable(clips, RATE)) == 1 and '1.wav' in problems[0]

def test_file_cut_short(folder):
    whole = (folder/'1.wav').read_bytes(); (folder/'1.wav').write_bytes(whole[:30])
    fails('1.wav', Folder(folder).audio, 1, RATE)

def test_silent_file(folder):
    sf.write(folder/'1.wav', np.zeros(RATE), RATE); clips = Folder(folder)
    fails('1.wav.*silent', audio_features, clips, Ear(), folder.parent/'cache')
    fails('1.wav.*silent', Waveforms(clips, RATE).gather, torch.tensor([0,1]))
    assert not list((folder.parent/'cache').glob('audio-*[!.part]/meta.json'))

def test_clip_shorter_than_one_frame(folder):
    sf.write(folder/'1.wav', 0.1*np.ones(50), RATE)
    fails('1.wav: 0.006 s of sound', audio_features, Folder(folder), Ear(), folder.parent/'cache')
    sf.write(folder/'1.wav', 0.1*np.ones(800), RATE)
    fails("'1.wav': shorter than one token of encoder 'toy-ear'", audio_features, Folder(folder), Ear(frame=1600),
          folder.parent/'cache')

# --- the published datasets

def test_audiocaps_lists_missing_clips(folder):
    (folder/'audio'/'val').mkdir(parents=True)
    (folder/'0.wav').rename(folder/'audio'/'val'/'Yid0.wav')
    t = pd.DataFrame([(f'{i}{k}', f'id{i}', '30', f'Caption {k} of {i}') for i in range(8) for k in range(5)],
                     columns=['audiocap_id','youtube_id','start_time','caption'])
    t.to_csv(folder/'val.csv', index=False)
    fails("7 of 8 clips are not on disk, first id1, id2, id3, id4, id5.*missing='skip'", AudioCaps, folder, 'val')
    clips = AudioCaps(folder, 'val', missing='skip')
    assert (len(clips) == 1 and len(clips.captions[0]) == 5 and len(clips.missing) == 7
            and clips.audio(0, 100).shape == (1000,))
    assert '7 of 8 listed clips' in clips.note and '494' in clips.note

def test_audiocaps_with_one_clip_per_row(folder):
    (folder/'train').mkdir(); (folder/'0.wav').rename(folder/'train'/'Ya.wav')
    pd.DataFrame(dict(file_name=['Ya.wav'], caption=['A tone.'])).to_csv(folder/'mine.csv', index=False)
    assert AudioCaps(folder, 'train', csv=folder/'mine.csv').captions == [['A tone.']]

def test_nothing_on_disk_is_never_skipped(folder):
    pd.DataFrame(dict(file_name=['x.wav'], caption_1=['A tone.'])).to_csv(
        folder/'clotho_captions_development.csv', index=False)
    fails('1 of 1 clips are not on disk', Clotho, folder, 'train', missing='skip')

def test_a_published_list_cannot_reach_outside(folder):
    sf.write(folder.parent/'outside.wav', np.ones(100), RATE); (folder/'development').mkdir()
    pd.DataFrame(dict(file_name=['../../outside.wav'], caption_1=['A tone.'])).to_csv(
        folder/'clotho_captions_development.csv', index=False)
    fails('not on disk', Clotho, folder, 'train')

# --- the feature cache

def files(cache): return {p.relative_to(cache).as_posix(): p.read_bytes() for p in sorted(cache.glob('audio-*/*'))}

def extract(cache): # with the slow encoder, in a process of its own: see the end of this file
    return subprocess.Popen([sys.executable, __file__, str(cache)], stdout=subprocess.PIPE, text=True)

def wait_for_shard(cache, process):
    for _ in range(3000):
        if list(cache.glob('*.part/*.safetensors')): return
        assert process.poll() is None, 'finished before it could be killed'
        time.sleep(0.01)
    raise AssertionError('no shard')

@pytest.fixture(scope='module')
def smooth(tmp_path_factory): # what nobody disturbed
    cache = tmp_path_factory.mktemp('smooth')
    audio_features(Tones(), Ear(), cache, batch_seconds=5, shard=5)
    return files(cache)

def test_killed_and_rerun_gives_the_same_bytes(tmp_path, smooth):
    p = extract(tmp_path); wait_for_shard(tmp_path, p); os.kill(p.pid, signal.SIGKILL); p.wait()
    assert files(tmp_path).keys().isdisjoint(smooth) # nothing counts as done
    done = len(list(tmp_path.glob('*.part/*.safetensors')))
    ear = Ear(); audio_features(Tones(), ear, tmp_path, batch_seconds=5, shard=5)
    assert files(tmp_path) == smooth and ear.seen <= 40 - 5*done and not list(tmp_path.glob('*.part'))

def test_two_processes_build_once(tmp_path, smooth):
    ps = [extract(tmp_path), extract(tmp_path)]
    assert sorted(int(p.communicate()[0]) for p in ps) == [0, 40] and files(tmp_path) == smooth

def test_the_one_that_waits_takes_over_from_a_killed_one(tmp_path, smooth):
    a = extract(tmp_path); wait_for_shard(tmp_path, a); b = extract(tmp_path)
    os.kill(a.pid, signal.SIGKILL); a.wait()
    assert 0 < int(b.communicate()[0]) < 40 and files(tmp_path) == smooth

def test_two_processes_make_the_same_bytes(tmp_path, smooth):
    audio_features(Tones(), Ear(), tmp_path, batch_seconds=5, shard=5, jobs=2)
    assert files(tmp_path) == smooth

def test_full_disk(tmp_path, smooth):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard)) # shards fit, the merged file does not
    try:
        fails('disk is full.*run again', audio_features, Tones(), Ear(), tmp_path, batch_seconds=5, shard=5,
              error=OSError)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not [p for p in tmp_path.glob('audio-*/*') if p.suffix == '.tmp' or p.name == 'frames.npy']
    ear = Ear(); audio_features(Tones(), ear, tmp_path, batch_seconds=5, shard=5)
    assert ear.seen == 0 and files(tmp_path) == smooth # all shards had been kept

def test_features_do_not_depend_on_the_batch(tmp_path):
    few, many = (audio_features(Tones(), Ear(), tmp_path/str(s), batch_seconds=s) for s in (1, 100))
    i = torch.arange(40)
    assert (torch.equal(few.gather(i)[1], many.gather(i)[1])
            and torch.allclose(few.gather(i)[0], many.gather(i)[0], atol=2e-3))

def test_rng_is_left_alone(tmp_path):
    state = torch.get_rng_state()
    audio_features(Tones(), Ear(), tmp_path)
    assert torch.equal(state, torch.get_rng_state())

# --- batches

def test_fewer_captions_than_a_batch():
    fails('31 captions do not fill one batch of batch_size=32', RandomBatches, 31, 32, 0)

def test_batches_depend_on_seed_and_epoch_alone():
    a, b = RandomBatches(100, 7, 1), RandomBatches(100, 7, 1)
    b.batches(0); torch.randn(3); np.random.rand(3)
    assert all(torch.equal(x, y) for x, y in zip(a.batches(5), b.batches(5), strict=True))
    assert len(a.batches(5)) == len(a) == 14 and len(torch.cat(a.batches(5)).unique()) == 98

if __name__ == '__main__': # extract features slowly, print how many clips had to be encoded
    ear = Ear(pause=0.15)
    audio_features(Tones(), ear, Path(sys.argv[1]), batch_seconds=5, shard=5)
    print(ear.seen)
