"The curriculum: batches against brute force, freezing that freezes, and vectors that belong to somebody else."
import re
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from atr_nb.data.batches import Pairs
from atr_nb.data.features import Features
from atr_nb.encoders.tower import Precomputed
from atr_nb.methods import create
from atr_nb.methods.cmlf import cmlf_recipe, encoder_of, thirds
from atr_nb.model import Encoded, RetrievalModel
from atr_nb.results.claims import Claim
from atr_nb.training.checkpoints import load_weights
from atr_nb.training.curriculum import (Ancillary, MinedBatches, ancillary, grow, in_batch, mine, samplers,
                                        share_with_twin)
from atr_nb.training.recipe import Recipe, Stage, apply_stage, selected
from atr_nb.training.trainer import fit, loss_on


def cloud(n, d=16, seed=0):
    g = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(6, d, generator=g)[torch.randint(6, (n,), generator=g)]
                       + .7 * torch.randn(n, d, generator=g), dim=1)


def pairs(n=64, name='made-up', per_clip=1):
    g = torch.Generator().manual_seed(n)
    one = lambda n, d: Features(torch.randn(n, d, generator=g).numpy(), np.arange(n + 1))
    class Made: manifest_hash, split = f'{name}-{n}', 'train'
    Made.name = name
    return Pairs(one(n // per_clip, 12), one(n, 10), torch.arange(n) // per_clip, Made)


def model(name='cmlf', **options):
    torch.manual_seed(0)
    return create(name, audio=Precomputed(12, 'mean+max'), text=Precomputed(10, 'mean'), width=8, **options)


def of(p, d=16): return Ancillary(cloud(len(p), d), p.clip_of_caption, p.clips.manifest_hash, 'a test')


# Mining

@pytest.mark.parametrize('how', ['easy', 'hard'])
@pytest.mark.parametrize('n, size, pool', [(64, 16, 1024), (101, 8, 16), (50, 50, 64), (33, 32, 32)])
def test_no_sample_twice_and_none_lost(how, n, size, pool):
    batches = mine(cloud(n), size, how, seed=3, pool=pool)
    flat = torch.cat(batches)
    assert {len(b) for b in batches} == {size} and len(batches) == n // size
    assert len(flat.unique()) == len(flat) and flat.dtype == torch.int64 and 0 <= flat.min() and flat.max() < n


@pytest.mark.parametrize('how', ['easy', 'hard'])
def test_a_function_of_seed_and_epoch(how):
    same = lambda a, b: all(torch.equal(x, y) for x, y in zip(a, b))
    first = MinedBatches(cloud(200), 16, how, seed=1)
    assert same(first.batches(4), MinedBatches(cloud(200), 16, how, seed=1).batches(4))
    assert (not same(first.batches(4), first.batches(5))
            and not same(first.batches(4), MinedBatches(cloud(200), 16, how, seed=2).batches(4)))


def test_what_is_dropped_is_sampled_at_random():
    dropped = [set(range(70)) - set(torch.cat(mine(cloud(70), 16, 'hard', 0, epoch=e)).tolist()) for e in range(12)]
    assert all(len(d) == 6 for d in dropped) and len(set.union(*dropped)) > 25


@pytest.mark.parametrize('seed', range(5))
def test_objective_lies_on_the_right_side_of_chance(seed):
    x = cloud(256, seed=seed)
    mean = {how: in_batch(x, mine(x, 16, how, seed)).mean() for how in ('easy', 'hard')}
    chance = in_batch(x, list(torch.randperm(256, generator=torch.Generator().manual_seed(seed)).split(16))).mean()
    mu = x.double().mean(0).norm()**2
    assert mu - (1 - mu) / 15 - 1e-6 <= mean['easy'] < chance < mean['hard'] - .1


@pytest.mark.parametrize('seed', range(20))
def test_no_cut_of_eight_beats_the_best_of_all(seed):
    x = cloud(8, seed=seed)
    s = (x @ x.T).double()
    halves = [[0, *rest] for rest in torch.combinations(torch.arange(1, 8), 3).tolist()]
    value = lambda cut: float(sum(s[b][:, b].sum() for b in cut))
    every = [value([torch.tensor(h), torch.tensor([i for i in range(8) if i not in h])]) for h in halves]
    assert len(every) == 35
    for how in ('easy', 'hard'):
        assert min(every) - 1e-5 <= value(mine(x, 4, how, seed, guard=None)) <= max(every) + 1e-5


def test_near_duplicates_stay_apart_only_with_the_guard():
    x = F.normalize(cloud(60).repeat_interleave(3, 0)
                    + .01 * torch.randn(180, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    close = lambda guard: int((in_batch(x, mine(x, 6, 'hard', 0, guard=guard)) > .95).sum())
    assert close(None) > 100 and close(.95) < close(None) / 4


def test_captions_of_one_clip_stay_apart():
    clip = torch.arange(200) // 5
    x = F.normalize(cloud(40).repeat_interleave(5, 0)
                    + .3 * torch.randn(200, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    twins = lambda batches: sum(len(b) - len(clip[b].unique()) for b in batches)
    assert twins(mine(x, 8, 'hard', 0, guard=None, clip_of_caption=clip)) < twins(mine(x, 8, 'hard', 0, guard=None)) / 5


def test_nobody_is_lost_where_all_are_alike():
    x = F.normalize(torch.ones(40, 4), dim=1) # the guard forbids every pair, and must give way
    assert len(torch.cat(mine(x, 8, 'hard', 0, clip_of_caption=torch.zeros(40))).unique()) == 40


def test_the_guard_forbids_what_is_close_to_any_member():
    x = F.normalize(torch.tensor([[1., 0], [0, 1], [.999, .04], [.04, .999], [.7, .7]]), dim=1).numpy()
    assert sorted(grow(x, 3, 'hard', .95)) == [0, 3, 4] # 2 is too close to 0, 1 to 3


# Ancillary vectors

def test_ancillary_is_the_mean_of_both_unit_vectors():
    a, t, clip = torch.randn(3, 6), torch.randn(5, 6), torch.tensor([0, 0, 1, 2, 2])
    both = ancillary(a, t, clip)
    for i in range(5):
        e = a[clip[i]] / a[clip[i]].norm() + t[i] / t[i].norm()
        assert torch.allclose(both[i], e / e.norm(), atol=1e-6)
    assert torch.allclose(ancillary(a, t, clip, 'text'), F.normalize(t, dim=1))


@pytest.mark.parametrize('spoil', [float('nan'), float('inf'), 0.])
def test_vectors_without_direction_are_refused(spoil):
    a = torch.randn(4, 6)
    a[2] *= spoil
    with pytest.raises(ValueError, match='sample 2 .*train it again'):
        ancillary(a, torch.randn(4, 6), torch.arange(4), 'audio')


@pytest.mark.parametrize('kwargs, says', [
    (dict(batch_size=65), '64 samples do not fill one batch of batch_size=65'),
    (dict(batch_size=1), 'nothing to be compared with'),
    (dict(how='median'), "how 'median' is unknown"), (dict(pool=4), 'pool=4 candidates cannot fill a batch of 8')])
def test_impossible_samplers(kwargs, says):
    with pytest.raises(ValueError, match=says):
        MinedBatches(cloud(64), **(dict(batch_size=8, how='hard', seed=0) | kwargs))


@pytest.mark.parametrize('kwargs', [dict(batch_size=65), dict(pool=4)])
def test_the_error_says_what_to_do_instead(kwargs):
    "And that is accepted"
    how = dict(batch_size=8, how='hard', seed=0) | kwargs
    with pytest.raises(ValueError) as e: MinedBatches(cloud(64), **how)
    name, n = re.search(r'use (\w+)=(\d+) or ', str(e.value)).groups()
    assert len(MinedBatches(cloud(64), **(how | {name: int(n)})).batches(0)) >= 1


def test_vectors_with_nan_are_refused():
    x = cloud(64)
    x[5, 3] = float('nan')
    with pytest.raises(ValueError, match='sample 5 is not a number'): MinedBatches(x, 8, 'hard', 0)
    p = pairs()
    with pytest.raises(ValueError, match='of a test: sample 5 is not a number'):
        Ancillary(x, p.clip_of_caption, p.clips.manifest_hash, 'a test').check(p)


def test_vectors_of_another_dataset_are_refused():
    ours, theirs = pairs(name='ours'), pairs(name='theirs')
    with pytest.raises(ValueError, match='another dataset or another version'): samplers(of(theirs), ours, 8, 0)
    with pytest.raises(ValueError, match='60 ancillary vectors for 64'):
        Ancillary(cloud(60), None, ours.clips.manifest_hash).check(ours)
    assert set(samplers(of(ours), ours, 8, 0)) == {'easy', 'hard'}


# The recipe

def test_epochs_are_shared_out():
    assert thirds(50) == (10, 10, 30) and thirds(15) == (3, 3, 9) and thirds(5) == (1, 1, 3) and thirds(3) == (1, 1, 1)
    assert all(min(thirds(n)) >= 1 for n in range(1, 60)) and all(sum(thirds(n)) == n for n in range(3, 60))


@pytest.mark.parametrize('context, frozen', [(0, 'head.0.'), (1, 'context.')])
def test_stages_one_and_two_freeze_an_encoder(context, frozen):
    m = model(context=context)
    first, second, third = (set(selected(m, s)) for s in cmlf_recipe(m).stages)
    names = {n for n, _ in m.named_parameters()}
    assert names - first == {n for n in names if n.startswith(f'text.{frozen}')}
    assert names - second == {n for n in names if n.startswith(f'audio.{frozen}')} and third == names
    assert [s.batches for s in cmlf_recipe(m).stages] == ['easy', 'random', 'hard']
    assert [s.batches for s in cmlf_recipe(m, mining=False).stages] == ['random'] * 3


@pytest.mark.parametrize('options', [
    dict(name='baseline', interaction='token', context=1), dict(name='baseline', loss='max'),
    dict(name='cmlf', context=2)])
def test_the_recipe_goes_on_other_models(options):
    m = model(**options)
    for stage in cmlf_recipe(m).stages: assert apply_stage(m, stage)


def test_a_model_without_sides_is_refused():
    class Bare(RetrievalModel):
        def __init__(self): super().__init__(); self.ears = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="Bare has no parameters under 'text'"): cmlf_recipe(Bare())
    with pytest.raises(ValueError, match="no parameters under 'audio'"): encoder_of(Bare(), 'audio')


def test_a_stage_that_trains_nothing_or_nobody(tmp_path):
    m, p = model(), pairs()
    run = lambda stage: fit(m, p, p, Recipe(stage, batch_size=16), tmp_path/'run', 0, 'cmlf/test', device='cpu',
                            samplers=samplers(of(p), p, 16, 0))
    with pytest.raises(ValueError, match='leaves nothing to train'): run(Stage(1, ('text.*', '!text.*')))
    with pytest.raises(ValueError, match="'!text.encoder.*' matches no parameter"):
        run(Stage(1, ('*', '!text.encoder.*')))
    with pytest.raises(ValueError, match="batches 'median' is unknown; known: random, easy, hard"):
        run(Stage(1, batches='median'))


def test_resting_weights_do_not_move(tmp_path):
    m, p = model(context=1), pairs()
    recipe = cmlf_recipe(m, Recipe(Stage(3, lr=1e-2), batch_size=16))
    weights = [{n: w.detach().clone() for n, w in m.named_parameters()}]
    fit(m, p, p, recipe, tmp_path, 0, 'cmlf/test', device='cpu', samplers=samplers(of(p), p, 16, 0))
    for k in (1, 2, 3):
        weights.append({n: w.clone() for n, w in load_weights(
            tmp_path/f'stage{k}.safetensors', model(context=1), 'cmlf/test').named_parameters()})
    moved = [{n for n in old if not torch.equal(old[n], new[n])} for old, new in zip(weights, weights[1:])]
    part = lambda names, start: {n for n in names if n.startswith(start)}
    assert not part(moved[0], 'text.context') and part(moved[0], 'audio.context') and part(moved[0], 'text.head')
    assert not part(moved[1], 'audio.context') and part(moved[1], 'text.context') and part(moved[1], 'audio.head')
    assert part(moved[2], 'audio.context') and part(moved[2], 'text.context')


def test_summed_loss_is_twice_the_mean(): # Eq. 4
    a, t, ids = Encoded(torch.randn(8, 8)), Encoded(torch.randn(8, 8)), torch.tensor([0, 0, 1, 2, 3, 4, 5, 6])
    assert torch.allclose(model().loss(a, t, ids)['loss'], 2 * model('baseline').loss(a, t, ids)['loss'])


# Looking at batches

def test_share_with_twin_is_counted_sample_by_sample():
    labels = torch.randint(9, (96,), generator=torch.Generator().manual_seed(0)).tolist()
    batches = list(torch.randperm(96, generator=torch.Generator().manual_seed(1)).split(8))
    met = [any(labels[i] == labels[j] for j in b if j != i) for b in batches for i in b]
    assert share_with_twin(labels, batches) == pytest.approx(100 * sum(met) / len(met))
    assert (share_with_twin(['same'] * 8, [torch.arange(8)]) == 100
            and share_with_twin(list(range(8)), [torch.arange(8)]) == 0)


def test_loss_on_batches_leaves_the_model_as_it_was():
    p, m = pairs(64), model(context=1).train()
    before = {k: v.clone() for k, v in m.state_dict().items()}
    batches = list(torch.arange(64).split(16))
    loss = loss_on(m, p, batches)['loss']
    assert loss == loss_on(m, p, batches)['loss'] == pytest.approx(
        np.mean([loss_on(m, p, [b])['loss'] for b in batches]))
    assert all(torch.equal(v, before[k]) for k, v in m.state_dict().items())
    assert m.audio.context.training and all(q.grad is None for q in m.parameters())


# The page of 3CMLF

@pytest.mark.parametrize('captions, trained, judged, told', [
    (100, [16, 32, 64], [16, 64], None),
    (40, [16, 32], [16], ('batches of 64, more than the 40 captions', '*Batch 32 is best* is judged without them')),
    (24, [16], [],
     ('batches of 32, 64, more than the 24 captions', '*Batch 32 is best* is not judged for want of them')),
    (12, [], [], ('batches of 16, 32, 64, more than the 12 captions', 'is not judged'))])
def test_a_batch_larger_than_the_data_is_told_and_its_claim_not_judged(captions, trained, judged, told):
    "The cells of the page that make Table III and its claims, in front of data of several sizes"
    page = nbformat.read(Path(__file__).parent.parent/'nbs'/'reproduce'/'3cmlf.ipynb', 4)
    sources = [c.source for c in page.cells if c.cell_type == 'code']
    chosen = [source for source in sources if re.search('^some = |^too_large = |def claims_for', source, re.M)]
    made, said, claims = {}, [], []
    lab = SimpleNamespace(ablate=lambda table, rows, datasets: made.update(rows), judge=claims.extend)
    rows = dict.fromkeys(f'{row}, pre-trained' for row in ('baseline', '3CMLF without CHM', '3CMLF with CHM'))
    sizes = {'small': dict(captions=captions), 'large': dict(captions=1000)}
    world = dict(sizes=sizes, setups={'pre-trained': lab}, lab=lab, rows=rows,
                 settings=SimpleNamespace(datasets=('small', 'large')), curriculum=lambda start, batch_size: batch_size,
                 Claim=Claim, Markdown=str, display=said.append)
    for source in chosen: exec(source, world)
    assert len(chosen) == 3 and list(made.values()) == trained
    assert [c.worse[1] for c in claims if c.name.startswith('batch 32')] == [f'pre-trained, batch {n}' for n in judged]
    assert len(said) == bool(told) and all(words in said[0] for words in told or ())
    assert len([c for c in claims if not c.name.startswith('batch 32')]) == 8 # the others are judged all the same
