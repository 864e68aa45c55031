"Opening what the settings name: the device, the data, the encoders. What is not there is told before anything starts."
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import test_training as toy
import torch
from transformers import ASTConfig, ASTModel, ClapAudioConfig, ClapConfig, ClapModel

from atr_nb import cli
from atr_nb.data.datasets import AudioCaps, Clotho
from atr_nb.encoders.panns import Cnn10, load_panns
from atr_nb.results.opening import TABLES, check
from atr_nb.results.setup import Setup
from atr_nb.settings import load
from atr_nb.training import devices


@pytest.fixture
def gpus(monkeypatch):
    "A machine with so many GPUs, as far as torch will say; without one, none of them can compute."
    def have(n, bf16=True):
        set_to = []
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: n > 0)
        monkeypatch.setattr(torch.cuda, 'device_count', lambda: n)
        monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda: bf16)
        monkeypatch.setattr(torch.cuda, 'set_device', set_to.append)
        monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: False)
        return set_to
    return have


# The device

@pytest.mark.parametrize('n, name, device', [
    (0, 'auto', 'cpu'), (0, 'cpu', 'cpu'),
    (2, 'auto', 'cuda:0'), (2, 'cpu', 'cpu'), (2, 'cuda', 'cuda:0'), (2, 'cuda:1', 'cuda:1')])
def test_device_by_name(gpus, n, name, device):
    current = gpus(n)
    assert devices.open_device(name) == torch.device(device)
    accelerator = devices.accelerator_for(name)
    assert accelerator.device == torch.device(device) and current == [torch.device(device)] * ('cuda' in device)


def test_mps(gpus, monkeypatch):
    gpus(0)
    with pytest.raises(ValueError, match="device='mps' is unknown on this machine, which has: cpu;"):
        devices.open_device('mps')
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: True)
    assert devices.accelerator_for('mps').device == torch.device('mps')
    assert devices.open_device('auto') == torch.device('cpu')


@pytest.mark.parametrize('n, name, there', [
    (0, 'cuda', 'cpu;'), (0, 'cuda:0', 'cpu;'), (2, 'cuda:2', 'cpu, cuda:0, cuda:1;'), (1, 'gpu', 'cpu, cuda:0;')])
def test_a_device_that_is_not_there(gpus, n, name, there):
    gpus(n)
    for opens in (devices.open_device, devices.accelerator_for):
        told = f"device='{name}' is unknown on this machine, which has: {there}"
        with pytest.raises(ValueError, match=told): opens(name)


def test_a_precision_that_the_device_cannot_do(gpus, monkeypatch):
    gpus(1, bf16=False)
    monkeypatch.setattr(torch.cuda, 'device', lambda d: nullcontext())
    for opens, device, precision, told in (
        (devices.open_device, 'auto', 'bf16', "not on device 'cuda:0', which can do: no, fp16;"),
        (devices.accelerator_for, 'cpu', 'fp16', "not on device 'cpu', which can do: no, bf16;")):
        with pytest.raises(ValueError, match=f"precision='{precision}': {told}"): opens(device, precision)
    assert devices.accelerator_for('cpu', 'bf16').mixed_precision == 'bf16'
    assert devices.accelerator_for('cuda', 'fp16').device == torch.device('cuda:0')


@pytest.mark.parametrize('name', ['cpu', *(d for d in devices.devices() if d != 'cpu')])
def test_training_happens_where_it_was_asked_for(tmp_path, name):
    model, seen = toy.new_model(), set()
    encode = model.encode_audio
    model.encode_audio = lambda x, mask=None: (seen.add(str(x.device)), encode(x, mask))[1]
    toy.fit(model, toy.TRAIN, toy.VALID, toy.RECIPE, tmp_path, 0, toy.IDENTITY, device=name)
    assert {torch.device(s) for s in seen} == {p.device for p in model.parameters()} == {devices.open_device(name)}


def test_nothing_is_written_for_a_device_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="device='cuda:99' is unknown"):
        toy.fit(toy.new_model(), toy.TRAIN, toy.VALID, toy.RECIPE, tmp_path/'run', 0, toy.IDENTITY, device='cuda:99')
    assert not (tmp_path/'run').exists()


# The data

ALL = dict(train_size=0, val_size=0, test_size=0)


@pytest.fixture(params=['audiocaps', 'clotho'])
def data(project, request):
    "A published dataset in miniature, whole, in its place"
    folder = project/'data'/request.param
    for part in ('train', 'val', 'test', 'development', 'validation', 'evaluation'):
        (folder/part).mkdir(parents=True)
        sf.write(folder/part/'rain.wav', 0.1 * np.sin(np.arange(8000) / 5), 16000)
    for table in TABLES[request.param]: (folder/table).write_text('file_name,caption_1\nrain.wav,rain falls\n')
    return folder


def reproduce(dataset): # through the door
    return cli.main(['reproduce', '--set', f'datasets={dataset}', *(f'--set={k}=0' for k in ALL)])


def test_whole_data_are_found_in_order(data):
    check(load(datasets=data.name, **ALL))
    for split in ('train', 'val', 'test'): {'audiocaps': AudioCaps, 'clotho': Clotho}[data.name](data, split)


def test_data_that_are_missing(data, paper, capsys):
    paper('baseline', '1')
    for name in (*reversed(TABLES[data.name]), ''):
        (data/name).rename(data.with_name('elsewhere')) if not name else (data/name).unlink()
        assert reproduce(data.name) == 2
        told = f'{data/name} does not exist; {data.name} is yours to provide, in {data} (data=DIR'
        assert told in capsys.readouterr().err


@pytest.mark.parametrize('part', [1, 2])
def test_a_clip_that_is_missing_from_validation_or_test(data, paper, capsys, part):
    paper('baseline', '1')
    (data/TABLES[data.name][part]).write_text('file_name,caption_1\nrain.wav,rain falls\nsnow.wav,snow falls\n')
    assert reproduce(data.name) == 2
    assert '1 of 2 clips are not on disk, first snow.wav' in capsys.readouterr().err


@pytest.mark.parametrize('split', ['train', 'val', 'test'])
@pytest.mark.parametrize('size', [0, 7])
def test_scenes_need_a_number(project, split, size):
    told = f'{split}_size={size} will not do: scenes-sparse has no end that 0 could stand for; give a number, '
    with pytest.raises(ValueError, match=told): check(load(**{f'{split}_size': size}))


# The encoders

def test_encoders_that_are_there(project):
    (project/'bert').mkdir()
    (project/'bert'/'config.json').touch()
    (project/'resnet38.pth').touch()
    for name in ('minilm', 'tiny', './bert', 'bert', project/'bert'): check(load(text_encoder=name))
    check(load(audio_encoder='resnet38', audio_weights='resnet38.pth'))
    check(load(audio_encoder='cnn10'))


def test_a_hub_model_may_be_downloaded(project, monkeypatch):
    with pytest.raises(ValueError, match='HF_HUB_OFFLINE forbids'): check(load(text_encoder='bert-base-nowhere'))
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', False)
    check(load(text_encoder='bert-base-nowhere'))


@pytest.fixture(scope='module')
def transformers(tmp_path_factory):
    "Folders of a small CLAP model and a small AST"
    folder = tmp_path_factory.mktemp('transformers')
    audio = ClapAudioConfig(patch_embeds_hidden_size=16, depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 4, 8],
                            hidden_size=128)
    text = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16, vocab_size=50)
    ClapModel(ClapConfig(text_config=text, audio_config=audio.to_dict(),
                         projection_dim=8)).save_pretrained(folder/'htsat')
    ASTModel(ASTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                       intermediate_size=32)).save_pretrained(folder/'ast')
    return folder


@pytest.mark.parametrize('name', ['htsat', 'ast'])
@pytest.mark.parametrize('finetune', [False, True])
def test_a_transformer_for_sound(project, transformers, name, finetune):
    setup = Setup(load(datasets='scenes-sparse', text_encoder='tiny', audio_encoder=name,
                       audio_weights=transformers/name, finetune=finetune))
    model = setup.model('baseline', {}, 0).eval()
    b = setup.pairs('scenes-sparse', 'val').batch(torch.arange(2))
    with torch.no_grad(): assert model.encode_audio(b.audio, b.audio_mask).pooled.isfinite().all()
    again = Setup(setup.settings)
    assert again.fingerprints == setup.fingerprints
    if finetune: assert not setup.model('tha_dcr', dict(width=16), 0).audio.context # it has blocks of its own


def test_weights_of_another_kind(project, transformers):
    (project/'panns.pth').touch()
    (project/'empty').mkdir()
    for encoder, weights, told in (
        ('aisfx', transformers/'htsat', 'aisfx brings its own weights'),
        ('cnn10', transformers/'htsat', 'is not a file; cnn10 takes'),
        ('htsat', 'panns.pth', 'is not a folder; htsat takes'),
        ('ast', 'nowhere', 'nowhere does not exist; ast takes the folder'),
        ('htsat', 'empty', 'has no config.json'), ('ast', transformers/'htsat', "type 'clap'"),
        ('htsat', transformers/'ast', "one of type 'clap' is wanted")):
        with pytest.raises((ValueError, FileNotFoundError), match=told):
            check(load(audio_encoder=encoder, audio_weights=weights))


def test_a_clip_that_is_too_long_for_a_transformer(data, transformers):
    given = ALL | dict(datasets=data.name, audio_encoder='htsat', audio_weights=transformers/'htsat')
    for part in ('val', 'validation'): sf.write(data/part/'rain.wav', 0.1 * np.sin(np.arange(12 * 16000) / 5), 16000)
    if data.name == 'audiocaps': return check(load(**given)) # is cut to ten seconds
    with pytest.raises(ValueError, match="clip 'rain.wav' of Clotho, val, has 12.0 s, but htsat takes 10.3"):
        check(load(**given))
    check(load(**given, long_clips='windows'))


def test_methods_by_name(project):
    check(load(methods='mgrl, baseline'))
    with pytest.raises(ValueError, match="method 'mgrll' is unknown; did you mean mgrl"): check(load(methods='mgrll'))


# PANNs checkpoints

class Harm:
    "Would leave a file where it was unpickled"
    def __init__(self, file): self.file = file
    def __reduce__(self): return Path.touch, (self.file,)


@pytest.fixture(scope='module')
def weights(): return Cnn10().state_dict()


def test_a_checkpoint_as_the_official_ones_are(tmp_path, weights):
    names = 'fc1.weight', 'fc_audioset.bias', 'spectrogram_extractor.stft.conv_real.weight', 'logmel_extractor.melW'
    others = {name: torch.zeros(3) for name in names}
    numbers = [np.float64(0.4), np.float32(1), np.int64(3), np.int32(3), np.bool_(True), np.arange(3), np.arange(3) / 2]
    content = dict(iteration=np.int64(600_000), model=weights | others, sampler=dict(indexes=np.arange(5)),
                   statistics=numbers)
    torch.save(content, tmp_path/'cnn10.pth')
    read = load_panns(tmp_path/'cnn10.pth').state_dict()
    assert read.keys() == weights.keys() and all(torch.equal(read[k], weights[k]) for k in weights)


@pytest.mark.parametrize('content', [
    [1, 2], None, 3, 'weights', {}, {'model': [1]}, {'model': 'x'}, {1: torch.zeros(2)},
    {'conv_block1.conv1.weight': 3}])
def test_a_checkpoint_of_something_else(tmp_path, content):
    torch.save(content, tmp_path/'other.pth')
    told = 'other.pth: not (the weights of a network|a checkpoint of Cnn10)'
    with pytest.raises(ValueError, match=told): load_panns(tmp_path/'other.pth')


def test_a_checkpoint_that_was_cut_or_does_harm(tmp_path, weights):
    torch.save({'model': weights, 'more': Harm(tmp_path/'harm')}, tmp_path/'bad.pth')
    data = (tmp_path/'bad.pth').read_bytes()
    for size in (None, 0, 10, 1000, len(data) // 2, -5):
        (tmp_path/'bad.pth').write_bytes(data[:size])
        with pytest.raises(ValueError, match='bad.pth: not a readable checkpoint'): load_panns(tmp_path/'bad.pth')
    assert not (tmp_path/'harm').exists()
