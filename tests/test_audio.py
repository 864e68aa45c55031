"Sounds as they are found: at any rate, cut short, of unknown length, or an hour long."
import re
import struct
import subprocess
import sys

import numpy as np
import pytest
import soundfile as sf
import torch

from atr_nb import cli
from atr_nb.data.audio import AudioError, decode
from atr_nb.data.batches import Waveforms
from atr_nb.data.datasets import Folder
from atr_nb.data.features import audio_features
from atr_nb.encoders.aisfx import Aisfx
from atr_nb.encoders.panns import FIELD, Cnn10, Cnn14, Panns, ResNet38
from atr_nb.encoders.patches import Patches

RATE = 44100
OPUS = dict(format='OGG', subtype='OPUS')
NOISE = 0.2 * np.random.default_rng(0).standard_normal(4 * RATE).astype('float32')


def encoded(path, sound=NOISE, rate=RATE, **kind):
    "The bytes of a sound in the format of its file's name"
    sf.write(path, sound, rate, **kind)
    return path.read_bytes()


def packets(raw):
    "Where the packets of an mp3 file at 44.1 kHz begin, tags aside"
    kbits, place = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320), 0
    while place < len(raw):
        yield place
        place += 144_000 * kbits[raw[place + 2] >> 4] // RATE + (raw[place + 2] >> 1 & 1)


def mp3(path, mode='VARIABLE', told=True):
    "An mp3 file that grows loud, with or without the packet that says how long it is"
    sound = np.concatenate([1e-4 * NOISE[:RATE], NOISE[RATE:]])
    with sf.SoundFile(path, 'w', RATE, 1, format='MP3', bitrate_mode=mode, compression_level=0.5) as f: f.write(sound)
    raw = path.read_bytes()
    return raw if told else raw[list(packets(raw))[1]:]


def piped(raw, size, riff=True):
    "A wav file as a program writes it that cannot go back to its header"
    place, mark = raw.index(b'data') + 4, struct.pack('<I', size)
    return raw[:4] + (mark if riff else struct.pack('<I', 36)) + raw[8:place] + mark + raw[place + 4:]


def check(folder, capsys):
    "What `atr-nb data check` says of all sounds in a folder: its status and its lines, but for the last, about splits"
    names = sorted(p.name for p in folder.iterdir() if p.suffix != '.csv')
    (folder/'metadata.csv').write_text('\n'.join(['file_name,caption', *(f'{n},it rains' for n in names)]))
    status = cli.main(['data', 'check', str(folder)])
    *said, splits = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r'train \d+, val \d+, test \d+', splits)
    return status, said


# Files that were cut short

def parts(raw): # half of it, most of it, and all but the last few bytes
    return [raw[:len(raw) // 2], raw[:len(raw) * 9 // 10]]


def test_files_cut_short_are_named(tmp_path, capsys):
    page = encoded(tmp_path/'rain.ogg')
    last = page.rindex(b'OggS')
    cut = {'page.ogg': page[:last], 'head.ogg': page[:last + 25], 'body.ogg': page[:-9], 'flag.ogg': page[:last + 5]}
    kinds = {'rain.opus': OPUS, 'float.wav': dict(subtype='FLOAT'), 'rain.rf64': dict(format='RF64')}
    kinds |= {f'rain.{name}': {} for name in ('ogg', 'wav', 'flac', 'aiff', 'w64')}
    for name, kind in kinds.items():
        raw = encoded(tmp_path/name, NOISE, 48000 if kind is OPUS else RATE, **kind)
        cut |= {f'{k}-{name}': part for k, part in enumerate(parts(raw))}
    for mode in ('CONSTANT', 'VARIABLE'):
        cut |= {f'{k}-{mode}.mp3': part for k, part in enumerate(parts(mp3(tmp_path/'rain.mp3', mode)))}
    folder = tmp_path/'cut'
    folder.mkdir()
    for name, raw in cut.items(): (folder/name).write_bytes(raw)
    status, said = check(folder, capsys)
    assert status == 1 and said[-1].endswith(f'{len(cut)} problems')
    for name in cut:
        told, = [line for line in said if f"clip '{name}'" in line]
        assert re.search('is cut short, .* are there; copy or download it again|cannot be decoded', told), told
    assert any('0-rain.wav: is cut short, its header promises 4.00 s and 2.00 s are there;' in line for line in said)
    with pytest.raises(AudioError, match='is cut short'): audio_features(Folder(folder), Patches(), tmp_path/'cache')


def test_whole_files_are_taken(tmp_path, capsys):
    wav, flac, ogg = (bytearray(encoded(tmp_path/f'rain.{kind}')) for kind in ('wav', 'flac', 'ogg'))
    assert ogg.count(b'OggS') > 5
    flac[21:26] = bytes([flac[21] & 0xF0, 0, 0, 0, 0]) # the number of samples
    chunk = lambda name: name + struct.pack('<I', 5) + b'abcde\0' # of odd length
    whole = {'plain.wav': wav, 'piped.flac': flac, 'pages.ogg': ogg, 'garbage.ogg': ogg + b'x' * 300}
    whole |= {'before.wav': wav[:12] + chunk(b'JUNK') + wav[12:], 'behind.wav': wav + chunk(b'LIST')}
    whole |= {'zero.wav': piped(wav, 0), 'nil.wav': piped(wav, 0, riff=False)}
    whole |= {f'{size:x}.wav': piped(wav, size) for size in (0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000, 0x80000000)}
    for mode in ('CONSTANT', 'AVERAGE', 'VARIABLE'):
        whole |= {f'{mode}{told}.mp3': mp3(tmp_path/'rain.mp3', mode, told) for told in (True, False)}
    tag = b'ID3\4\0\0\0\0\x0f\x76' + bytes(2038) # ten bytes that name the number of those that follow
    whole['tags.mp3'] = tag + mp3(tmp_path/'rain.mp3', told=False) + b'TAG'.ljust(128, b'a')
    folder = tmp_path/'whole'
    folder.mkdir()
    for name, raw in whole.items(): (folder/name).write_bytes(raw)
    for name, kind in {'rain.opus': OPUS, 'rain.mulaw.wav': dict(subtype='ULAW'), 'two.wav': {}}.items():
        encoded(folder/name, np.stack([NOISE, NOISE / 2], 1), 48000 if kind is OPUS else RATE, **kind)
    assert check(folder, capsys) == (0, [f'{len(whole) + 3} clips, {len(whole) + 3} captions, no problems'])
    clips = Folder(folder)
    for i, name in enumerate(clips.ids): # as long as they are, whatever their header says
        length = 4 * RATE / 48000 if name == 'rain.opus' else 4.
        assert abs(clips.duration(i) - length) < 0.06 and abs(len(clips.audio(i, 16000)) / 16000 - length) < 0.06, name


def test_an_empty_wav_file_is_no_piped_one(tmp_path):
    for name, rest in (('empty.wav', b''), ('list.wav', b'LIST' + struct.pack('<I', 8) + b'INFOabcd')):
        (tmp_path/name).write_bytes(encoded(tmp_path/'none.wav', NOISE[:0]) + rest)
        with pytest.raises(AudioError, match='0.000 s of sound'): decode(tmp_path/name, RATE)


def test_what_is_no_sound_is_a_problem_and_no_crash(tmp_path, capsys):
    (tmp_path/'a.raw').write_bytes(bytes(9000))
    (tmp_path/'b.mp3').write_bytes(b'ID3' + bytes(9000))
    status, said = check(tmp_path, capsys)
    assert status == 1 and ['cannot be decoded' in line for line in said] == [True, True, False]


@pytest.mark.parametrize('block', [5000, 44100])
@pytest.mark.parametrize('name', ['a.wav', 'a.flac', 'a.ogg', 'a.mp3'])
def test_blocks_are_put_together(tmp_path, monkeypatch, name, block):
    encoded(tmp_path/name)
    monkeypatch.setattr('atr_nb.data.audio.BLOCK', block)
    assert np.array_equal(decode(tmp_path/name, RATE).numpy(), sf.read(tmp_path/name, dtype='float32')[0])


# Sample rates

@pytest.mark.parametrize('rate', [1, 999])
def test_a_rate_of_one_hertz_is_refused(tmp_path, capsys, rate):
    encoded(tmp_path/'slow.wav', NOISE[:50], rate)
    status, said = check(tmp_path, capsys)
    assert status == 1 and f'slow.wav: has {rate} samples per second, at least 1000 are needed' in said[0]


def test_clips_of_any_rate_share_a_batch(tmp_path):
    "Resampling may round to another length than the header's seconds do"
    rates = (11025, 22050, 32000, 44100, 44101, 47999, 96001, 192000)
    for rate in rates: encoded(tmp_path/f'{rate}.wav', NOISE[:rate // 2 + 7], rate)
    (tmp_path/'metadata.csv').write_text('file_name,caption\n' + ''.join(f'{rate}.wav,it rains\n' for rate in rates))
    clips, ear = Folder(tmp_path), Patches()
    features = audio_features(clips, ear, tmp_path/'cache')
    waves, mask = Waveforms(clips, ear.sample_rate).gather(torch.arange(len(clips)))
    with torch.no_grad(): together = ear(waves, mask)
    for i in range(len(clips)):
        wave = clips.audio(i, ear.sample_rate)
        assert mask[i].sum() == len(wave) and abs(len(wave) - clips.duration(i) * ear.sample_rate) <= 1
        assert features.lengths[i] == together.mask[i].sum()
        stored = features.gather(torch.tensor([i]))[0][0]
        assert torch.allclose(stored, together.tokens[i, :len(stored)], atol=2e-3)


# Long clips are encoded in windows

def seasoned(net):
    "With normalisation that does something"
    for m in net.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            for values in (m.weight, m.running_var): torch.nn.init.uniform_(values, 0.5, 1.5)
            for values in (m.bias, m.running_mean): torch.nn.init.uniform_(values, -0.2, 0.2)
    return net.eval()


NETS = {'aisfx': Aisfx, 'aisfx, faster': lambda: Aisfx().faster(), 'patches': Patches,
        'cnn10': lambda: seasoned(Cnn10()), 'cnn14': lambda: seasoned(Cnn14()),
        'resnet38': lambda: seasoned(ResNet38())}


@pytest.fixture(scope='module', params=NETS)
def net(request):
    "An encoder with windows of a few tokens"
    torch.manual_seed(0)
    made = NETS[request.param]()
    made.core = FIELD + 1 # so that neither piece of two is all there is
    made.window_seconds = made.core * made.frame_seconds
    return made


def close(a, b): return (a - b).abs().max() <= 1e-4 * b.abs().max()


@torch.inference_mode()
def test_windows_equal_the_whole(net, monkeypatch):
    "Clips that end where a window ends, and a sample or a step before and after"
    step, pieces, whole = net.stride * net.hop, [], type(net)._whole
    monkeypatch.setattr(net, '_whole', lambda wave, mask: pieces.append(wave) or whole(net, wave, mask), raising=False)
    edge = 2 * net.core * step - net.hop # the last sample that the last token waits for
    around = (-1, 0, 1, net.hop - 1, net.hop, net.hop + 1, step - 1) if isinstance(net, Patches) else (-1, 0)
    for length in [edge + d for d in around]:
        wave = 0.1 * torch.randn(1, length)
        expected, found = whole(net, wave, None), net(wave)
        assert [x.shape for x in found.levels] == [x.shape for x in expected.levels] and found.mask.all()
        assert close(found.tokens, expected.tokens) and close(found.pooled, expected.pooled), length
        assert all(close(a, b) for a, b in zip(found.levels, expected.levels)), length
        assert len(pieces) == 2 and max(w.shape[1] for w in pieces) < length
        pieces.clear()


@torch.inference_mode()
def test_windows_in_a_batch(net):
    "A clip in windows beside one of a single window and one shorter than a token; the last also alone with its padding"
    step = net.stride * net.hop
    lengths = torch.tensor([net.core * step + 1, (net.core - 9) * step, 300])
    waves = 0.1 * torch.randn(3, int(lengths.max()))
    mask = torch.arange(waves.shape[1]) < lengths[:, None]
    alone = [net._whole(wave[None, :n], None) for wave, n in zip(waves, lengths)]
    for rows in ([0, 1, 2], [2]):
        batch = net(waves[rows], mask[rows])
        for k, i in enumerate(rows):
            n = alone[i].tokens.shape[1]
            assert batch.mask[k].sum() == n and close(batch.tokens[k, :n], alone[i].tokens[0])
            assert close(batch.pooled[k], alone[i].pooled[0])


@torch.inference_mode()
def test_no_token_hears_farther_than_the_overlap(net):
    step = net.stride * net.hop
    wave = 0.1 * torch.randn(1, (FIELD + 2) * step)
    other = wave.clone()
    other[:, -step:] += torch.randn(step)
    before, after = (net._whole(x, None).tokens[0] for x in (wave, other))
    changed = (before - after).abs().amax(1) > 1e-5 * before.abs().max()
    assert changed.any() and not changed[:2].any()


def test_training_takes_a_clip_whole():
    net = Patches().train()
    net.window_seconds = 1
    net._in_windows = None # not called
    net(torch.randn(1, 3 * net.sample_rate))


# Memory

class Thin(Panns):
    "As long in memory as the real ones, a sixteenth as deep"
    name, width, stride = 'thin', 64, 1

    def maps(self, x, steps): return [x.expand(-1, 64, -1, -1).relu().square()], steps


def peak_mb(): # since the last call
    with open('/proc/self/status') as f: peak = re.search(r'VmHWM:\s+(\d+)', f.read())[1]
    with open('/proc/self/clear_refs', 'w') as f: f.write('5')
    return int(peak) / 1024


def measure(folder):
    "Megabytes above what was there, for one sound after the other; in a process of its own"
    torch.set_num_threads(1)
    def above(action):
        peak_mb()
        before = peak_mb()
        action()
        return peak_mb() - before
    def encode(net, minutes):
        wave = 0.1 * torch.randn(1, minutes * 60 * net.sample_rate)
        return above(lambda: net(wave))
    with torch.inference_mode():
        thin = Thin().eval()
        encode(thin, 1) # what a first time needs
        print(above(lambda: decode(folder + '/odd.wav', 32000)), encode(Aisfx(), 3), encode(thin, 3), encode(thin, 10))


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='peak memory is read from /proc')
def test_memory_is_bounded(tmp_path):
    encoded(tmp_path/'odd.wav', np.tile(NOISE, 5), 44101)
    run = subprocess.run([sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, check=True)
    odd, three, thin, long = map(float, run.stdout.split())
    tokens = 7 * 60 * 100 * 64 * 4 / 2**20 # of seven minutes; a few copies are made of them, for pooling among others
    assert odd < 100 and three < 1000, (odd, three)
    assert long < 2 * thin + 10 * tokens, (thin, long) # the whole at once would take ten times as much as a minute does


if __name__ == '__main__': measure(sys.argv[1])
