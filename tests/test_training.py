"""Training: killed at any moment, fed with NaN, given somebody else's checkpoint, told to train nothing.

Run as a script, this file trains one run in the folder named on the command line (the test with `kill -9` does that).
"""
import json, os, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from atr_nb.data.batches import Pairs, RandomBatches
from atr_nb.data.features import Features
from atr_nb.model import Encoded, RetrievalModel
from atr_nb import files
from atr_nb.training import checkpoints, trainer
from atr_nb.training.checkpoints import CheckpointError, load_checkpoint, load_weights, save_weights
from atr_nb.training.losses import nt_xent
from atr_nb.training.recipe import Recipe, Stage
from atr_nb.training.trainer import fit

WIDTH, IDENTITY = 12, 'toy/0123abcd'
STAGES = (Stage(2, ('audio.*',), lr=3e-3, lr_step=1, name='audio'), Stage(2, lr=3e-3, schedule='one-cycle', name='all'))
RECIPE = Recipe(STAGES, batch_size=16)


class Toy(RetrievalModel):
    "Two sides with all that makes resuming hard: dropout, BatchNorm and a part that a stage may freeze."
    def __init__(self, width=16):
        super().__init__()
        side = lambda: nn.Sequential(nn.Linear(WIDTH, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2),
                                     nn.Linear(width, width))
        self.audio, self.text = side(), side()
    def encode_audio(self, x, mask=None): return Encoded(self.audio(x[:, 0]))
    def encode_text(self, x, mask=None): return Encoded(self.text(x[:, 0]))
    def similarity(self, audio, text): return F.normalize(audio.pooled, dim=-1) @ F.normalize(text.pooled, dim=-1).T
    def loss(self, audio, text, clip_ids): return {'loss': nt_xent(self.similarity(audio, text), clip_ids=clip_ids)}


def new_model(seed=0):
    torch.manual_seed(seed)
    return Toy()


def world(n, seed):
    g = np.random.default_rng(seed)
    hidden, views = g.normal(size=(n, 6)), np.random.default_rng(0).normal(size=(2, 6, WIDTH))
    audio, text = (Features((hidden @ v + .5 * g.normal(size=(n, WIDTH))).astype(np.float32), np.arange(n + 1))
                   for v in views)
    return Pairs(audio, text, torch.arange(n))


TRAIN, VALID = world(64, 1), world(40, 2)


class Slow(RandomBatches):
    "Takes its time, so that there is time to be killed."
    def batches(self, epoch):
        for b in super().batches(epoch):
            time.sleep(0.05)
            yield b


def train(folder, model=None, recipe=RECIPE, data=TRAIN, identity=IDENTITY, **kw):
    return fit(model or new_model(), data, VALID, recipe, folder, 0, identity, 'cpu', **kw)


def numbers(result):
    "Everything of a result except how long it took."
    return ([{k: v for k, v in line.items() if k != 'seconds'} for line in result['history']], result['stages'],
            result['identity'])


def weights(folder, name='best.safetensors'):
    return load_weights(Path(folder)/name, Toy(), IDENTITY).state_dict()


def assert_same_run(folder, result, reference):
    expected = json.loads((reference/'result.json').read_text())
    assert numbers(result) == numbers(expected)
    for name in ('stage1.safetensors', 'stage2.safetensors', 'best.safetensors'):
        ours, theirs = weights(folder, name), weights(reference, name)
        assert all(torch.equal(ours[k], theirs[k]) for k in theirs), name
    assert [json.loads(l)['epoch'] for l in (folder/'log.jsonl').read_text().splitlines()] == [1, 2, 1, 2]
    assert sorted(p.name for p in folder.iterdir()) == [
        'best.safetensors', 'log.jsonl', 'result.json', 'stage1.safetensors', 'stage2.safetensors']


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope='module')
def reference(tmp_path_factory):
    "An uninterrupted run."
    threads = torch.get_num_threads(); torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp('reference')
    train(folder)
    torch.set_num_threads(threads)
    return folder


# Interruptions

def test_kill_9(tmp_path, reference):
    "Killed twice, the second time a little further on; the run ends with the numbers of an uninterrupted one."
    lines = lambda: len((tmp_path/'log.jsonl').read_text().splitlines()) if (tmp_path/'log.jsonl').exists() else 0
    for stop, rest in ((1, .1), (3, .05)):
        process = subprocess.Popen([sys.executable, __file__, str(tmp_path)], stdout=subprocess.DEVNULL)
        deadline = time.time() + 120
        while lines() < stop and process.poll() is None and time.time() < deadline: time.sleep(.005)
        time.sleep(rest) # into the next epoch
        assert process.poll() is None, 'the run ended before it could be killed'
        process.send_signal(signal.SIGKILL); process.wait()
        assert not (tmp_path/'result.json').exists() and not (tmp_path/'best.safetensors').exists()
    assert_same_run(tmp_path, train(tmp_path, new_model(seed=5)), reference)


class Died(BaseException): pass


@pytest.mark.parametrize('after', [False, True], ids=['before', 'after'])
def test_dying_at_every_write(tmp_path, reference, monkeypatch, after):
    "A process that dies just before or just after any of its files appears loses nothing."
    replace, died = os.replace, 0
    for n in range(100):
        folder, calls = tmp_path/str(n), 0
        def die(a, b):
            nonlocal calls
            calls += 1
            if calls == n + 1 and not after: raise Died
            replace(a, b)
            if calls == n + 1: raise Died
        with monkeypatch.context() as m:
            m.setattr(files.os, 'replace', die)
            try: train(folder); break
            except Died: died += 1
        # then nothing of the new model may matter
        begun = (folder/'state.pt').exists() or (folder/'result.json').exists()
        assert_same_run(folder, train(folder, new_model(seed=5 if begun else 0)), reference)
    assert died == 1 + 4 + 2 * 2 + 2 # the log; state per epoch; weights and state per stage; best weights and result


def test_half_written_file_beside_is_harmless(tmp_path, reference):
    (tmp_path/'state.pt.0123abcd.part').write_bytes(b'half a checkpoi')
    result = train(tmp_path)
    assert_same_run(tmp_path, result, reference)


def test_finished_run_is_not_run_again(reference, monkeypatch):
    monkeypatch.setattr(trainer, 'train_epoch', None)
    model = new_model(seed=5)
    result = train(reference, model)
    assert numbers(result) == numbers(json.loads((reference/'result.json').read_text()))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), weights(reference).values()))


def test_disk_full(tmp_path, reference, monkeypatch):
    "The system's own error comes through, the last state stays, and the run goes on when there is room again."
    save, calls = torch.save, 0
    def full(obj, f):
        nonlocal calls
        calls += 1
        if calls == 3: f.write(b'half'); raise OSError(28, 'No space left on device')
        save(obj, f)
    with monkeypatch.context() as m:
        m.setattr(checkpoints.torch, 'save', full)
        with pytest.raises(OSError, match='No space left on device'): train(tmp_path)
    assert load_checkpoint(tmp_path/'state.pt', IDENTITY)['epoch'] == 2
    assert not list(tmp_path.glob('*.part'))
    assert_same_run(tmp_path, train(tmp_path, new_model(seed=5)), reference)


# Not a number

def test_nan_loss_stops_and_keeps_the_last_good_state(tmp_path, reference):
    class Poison(RandomBatches):
        def batches(self, epoch):
            batches = super().batches(epoch)
            if epoch == 3: poisoned.audio.frames[batches[2][0]] = np.nan
            return batches
    poisoned = world(64, 1)
    with pytest.raises(FloatingPointError, match=r'stage 2 \(all\), epoch 2 of 2, batch 3: the loss is nan'):
        train(tmp_path, data=poisoned, samplers={'random': Poison(64, 16, 0)})
    state = load_checkpoint(tmp_path/'state.pt', IDENTITY)
    assert (state['stage'], state['epoch'], len(state['history'])) == (1, 1, 3)
    assert all(v.isfinite().all() for v in state['model'].values())
    assert not (tmp_path/'result.json').exists() and not (tmp_path/'best.safetensors').exists()
    assert_same_run(tmp_path, train(tmp_path, new_model(seed=5)), reference) # with clean data the run goes on


def test_weights_broken_by_the_last_step_are_noticed(tmp_path):
    class Breaks(Toy):
        def train(self, mode=True):
            if not mode and self.training: self.text[0].weight.data.fill_(float('nan'))
            return super().train(mode)
    torch.manual_seed(0)
    with pytest.raises(FloatingPointError, match='epoch 1 of 2: validation scores are not finite'):
        train(tmp_path, Breaks())
    assert not (tmp_path/'state.pt').exists()


def test_no_batches(tmp_path):
    class Empty:
        def batches(self, epoch): return []
    with pytest.raises(ValueError, match='not a single batch'): train(tmp_path, samplers={'random': Empty()})
    with pytest.raises(ValueError, match='do not fill one batch'):
        train(tmp_path, recipe=Recipe(Stage(1), batch_size=500))


# Wrong files

def test_checkpoint_of_another_method(tmp_path, reference):
    class Cut(RandomBatches):
        def batches(self, epoch):
            if epoch == 1: raise KeyboardInterrupt
            return super().batches(epoch)
    with pytest.raises(KeyboardInterrupt): train(tmp_path, samplers={'random': Cut(64, 16, 0)})
    for folder, file in ((tmp_path, 'state.pt'), (reference, 'result.json')):
        with pytest.raises(CheckpointError, match=f"{file} belongs to '{IDENTITY}', not to 'mgrl/00c0ffee'"):
            train(folder, identity='mgrl/00c0ffee')
    with pytest.raises(CheckpointError, match='belongs to'):
        load_weights(reference/'best.safetensors', Toy(), 'mgrl/00c0ffee')
    assert load_checkpoint(tmp_path/'state.pt', IDENTITY)['epoch'] == 1 # left alone


@pytest.mark.parametrize('share', [0, .01, .5, .999])
def test_checkpoint_cut_short(tmp_path, reference, share):
    checkpoints.save_checkpoint(tmp_path/'state.pt', IDENTITY, model=new_model().state_dict())
    whole = (tmp_path/'state.pt').read_bytes()
    (tmp_path/'state.pt').write_bytes(whole[:int(len(whole) * share)])
    with pytest.raises(CheckpointError, match='state.pt is damaged or cut short .* Delete it'): train(tmp_path)
    (tmp_path/'state.pt').unlink() # which helps
    assert_same_run(tmp_path, train(tmp_path), reference)


def test_checkpoint_carries_no_code(tmp_path):
    class Evil:
        def __reduce__(self): return (print, ('gotcha',))
    torch.save({'identity': IDENTITY, 'model': Evil()}, tmp_path/'state.pt')
    with pytest.raises(CheckpointError, match='state.pt'): load_checkpoint(tmp_path/'state.pt', IDENTITY)


def test_weights_that_do_not_fit(tmp_path, reference):
    with pytest.raises(FileNotFoundError, match='no weights here'): load_weights(tmp_path/'none.safetensors', Toy())
    with pytest.raises(CheckpointError, match='size mismatch for audio.0'):
        load_weights(reference/'best.safetensors', Toy(width=8))
    with pytest.raises(CheckpointError, match='does not fit Linear'):
        load_weights(reference/'best.safetensors', nn.Linear(3, 2))
    cut = tmp_path/'cut.safetensors'
    cut.write_bytes((reference/'best.safetensors').read_bytes()[:-100])
    with pytest.raises(CheckpointError, match='damaged or cut short'): load_weights(cut, Toy())


def test_tied_weights_survive(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight
    one, two = Tied(), Tied()
    save_weights(tmp_path/'tied.safetensors', one, IDENTITY)
    load_weights(tmp_path/'tied.safetensors', two, IDENTITY)
    assert torch.equal(one.b.weight, two.b.weight) and two.a.weight is two.b.weight


# Recipes

@pytest.mark.parametrize('pattern, message', [
    (('sound.*',), r"stage 'late': the pattern 'sound\.\*' matches no parameter\. The model's parts: audio\.0\.\*"),
    (('*', '!txet.*'), r"'!txet\.\*' matches no parameter"),
    (('audio.*', '!audio.*'), 'leaves nothing to train')])
def test_stage_that_names_or_trains_nothing(tmp_path, pattern, message):
    "Found out before the first epoch, also in a later stage."
    recipe = Recipe((Stage(1), Stage(1, pattern, name='late')), batch_size=16)
    with pytest.raises(ValueError, match=message): train(tmp_path/'run', recipe=recipe)
    assert not (tmp_path/'run').exists()


def test_batches_nobody_draws(tmp_path):
    with pytest.raises(ValueError, match="batches 'hard' is unknown; known: random"):
        train(tmp_path, recipe=Recipe(Stage(1, batches='hard'), batch_size=16))


def test_each_stage_draws_its_own_batches(tmp_path):
    class Noted(RandomBatches):
        def __init__(self, *args): super().__init__(*args); self.epochs = []
        def batches(self, epoch): self.epochs.append(epoch); return super().batches(epoch)
    easy, hard = Noted(64, 16, 0), Noted(64, 32, 0)
    recipe = Recipe((Stage(2, batches='easy'), Stage(1), Stage(2, batches='hard')), batch_size=16)
    result = train(tmp_path, recipe=recipe, samplers={'easy': easy, 'hard': hard})
    assert (easy.epochs, hard.epochs) == ([0, 1], [3, 4]) and len(result['history']) == 5


@pytest.mark.parametrize('trained, frozen', [('audio', 'text'), ('text', 'audio')])
def test_frozen_part_does_not_move(tmp_path, trained, frozen):
    "Not its weights, not its BatchNorm statistics, not its counters; and its dropout sleeps."
    model = new_model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    train(tmp_path, model, Recipe(Stage(2, f'{trained}.*', lr=3e-3), batch_size=16))
    for k, v in model.state_dict().items():
        moved = not torch.equal(v, before[k])
        assert moved == k.startswith(trained), k
    model.train()
    assert not getattr(model, frozen)[3].training and getattr(model, trained)[3].training


def test_next_stage_starts_from_the_best_weights(tmp_path):
    """Stage 1 is ruined by a huge learning rate in its second epoch;
    stage 2, with a tiny one, still sees the good weights."""
    recipe = Recipe((Stage(2, lr=3e-3), Stage(1, lr=1e-12)), batch_size=16)
    class Ruin(RandomBatches):
        def batches(self, epoch):
            if epoch == 1: model.audio[4].weight.data.normal_()
            return super().batches(epoch)
    model = new_model()
    result = train(tmp_path, model, recipe, samplers={'random': Ruin(64, 16, 0)})
    first, second = result['stages']
    assert first['epoch'] == 1 and result['history'][1]['score'] < first['score']
    assert torch.equal(weights(tmp_path, 'stage1.safetensors')['audio.4.weight'].round(decimals=6),
                       weights(tmp_path)['audio.4.weight'].round(decimals=6))


def test_early_stop_and_resume_inside_patience(tmp_path):
    still = Recipe(Stage(30, lr=1e-12), batch_size=16, patience=3)
    class Bland(Toy): # BatchNorm would move the scores
        def __init__(self): super().__init__(); self.audio, self.text = nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 8)
    torch.manual_seed(0)
    result = train(tmp_path/'a', Bland(), still)
    assert (result['stages'][0]['epochs'], result['stages'][0]['epoch']) == (4, 1)
    class Cut(RandomBatches):
        def batches(self, epoch):
            if epoch == 2: raise KeyboardInterrupt
            return super().batches(epoch)
    torch.manual_seed(0)
    with pytest.raises(KeyboardInterrupt): train(tmp_path/'b', Bland(), still, samplers={'random': Cut(64, 16, 0)})
    assert numbers(train(tmp_path/'b', Bland(), still)) == numbers(result)


# Devices and precisions

def test_low_precision_encodes_but_does_not_compare(tmp_path):
    seen = {}
    class Watch(Toy):
        def encode_audio(self, x, mask=None):
            e = super().encode_audio(x, mask); seen.setdefault('encoded', e.pooled.dtype); return e
        def loss(self, audio, text, clip_ids):
            s = self.similarity(audio, text); seen.setdefault('compared', s.dtype); return {'loss': nt_xent(s)}
    torch.manual_seed(0)
    model = Watch()
    train(tmp_path, model, precision='bf16')
    assert seen == {'encoded': torch.bfloat16, 'compared': torch.float32}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    train(tmp_path/'again', precision='no') # another precision in the same process


def test_unknown_device(tmp_path):
    with pytest.raises(ValueError, match="device='tpu' is unknown"):
        fit(new_model(), TRAIN, VALID, RECIPE, tmp_path, 0, IDENTITY, 'tpu')


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('precision', ['no', 'bf16', 'fp16'])
def test_gpu_resumes(tmp_path, precision):
    "On a GPU, too, an interrupted run ends like an uninterrupted one, the gradient scaler of fp16 included."
    class Cut(RandomBatches):
        def batches(self, epoch):
            if epoch == 3: raise KeyboardInterrupt
            return super().batches(epoch)
    run = lambda folder, **kw: fit(new_model(), TRAIN, VALID, RECIPE, folder, 0, IDENTITY, 'cuda', precision, **kw)
    whole = run(tmp_path/'whole')
    with pytest.raises(KeyboardInterrupt): run(tmp_path/'cut', samplers={'random': Cut(64, 16, 0)})
    assert numbers(run(tmp_path/'cut')) == numbers(whole)


if __name__ == '__main__':
    torch.set_num_threads(1)
    train(sys.argv[1], samplers={'random': Slow(64, 16, 0)})
