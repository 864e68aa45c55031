"""What is looked at inside a model:
what captions listen to, what each level finds, what unrelated sound and scoring cost."""
import itertools, signal, time
from dataclasses import replace
from itertools import product
import numpy as np, pytest, torch
from atr_nb.data.datasets import Clips, Lengthened
from atr_nb.data.descriptions import events, understand
from atr_nb.data.scenes import RATE, Scenes
from atr_nb.evaluation.scoring import bytes_per_pair, encode_all, level_scores, score_all
from atr_nb.methods.mgrl import MGRL
from atr_nb.encoders.tower import Precomputed
from atr_nb.model import Encoded, RetrievalModel
from atr_nb.processes import threads
from atr_nb.results import claims as T, cost, hearing, levels
from atr_nb.training.checks import AUDIO, TEXT, noise_pairs
from test_results import toy_run

# ---- topics and unrelated clips

class Silent(Clips):
    def audio(self, i, sample_rate): return torch.zeros(10)
    def duration(self, i): return 10.

def silent(split, words):
    return Silent('silent', split, [f'{split} {i}' for i in range(len(words))], [[w] for w in words])

def test_topics_are_the_rare_words():
    clips = silent('test', [f'the Dog{i // 2} barks' for i in range(44)])
    words = [set(c[0].lower().split()) for c in clips.captions]
    rare = lambda w: sum(w in other for other in words) <= 44 / 20
    assert clips.topics() == [{w for w in own if rare(w)} for own in words]

def test_unrelated_clips_share_no_topic():
    clips, source = (silent(split, [f'the Dog{i % 24} barks' for i in range(48)]) for split in ('test', 'train'))
    crowds = [Lengthened.unrelated(clips, source, 5, k) for k in range(4)]
    assert [c.name for c in crowds] == ['silent, first 5', 'silent + 1 other', 'silent + 2 others', 'silent + 3 others']
    for fewer, more in zip(crowds, crowds[1:]):
        assert [js[:-1] for js in more.others] == fewer.others
    assert all(j % 24 != i for i, js in enumerate(crowds[3].others) for j in js)
    assert Lengthened.unrelated(clips, source, 5, 3, seed=1).others != crowds[3].others
    with pytest.raises(ValueError, match='shares no topic with 46 clips'): Lengthened.unrelated(clips, source, 5, 47)

def test_unrelated_scenes_share_no_sound():
    test, train = Scenes('sparse', 'test', 16), Scenes('sparse', 'train', 40)
    for i, js in enumerate(Lengthened.unrelated(test, train, 16, 3).others):
        own = {e.kind for e in events(understand(test.captions[i][0]))}
        assert all(not own & {e.kind for e in events(understand(train.captions[j][0]))} for j in js)

# ---- what a caption listens to

def test_the_weight_on_a_sound_second_by_second():
    scenes = Scenes('dense', 'test', 80)
    rng = np.random.default_rng(0)
    for i in hearing.sequences(scenes)[:4]:
        kinds = [e.kind for e in events(scenes.descriptions[i])]
        weights = {kind: rng.dirichlet(np.ones(31)) for kind in kinds}
        heard = hearing.heard(scenes, i, weights, .2)
        wave, spans = scenes.render(i)
        end = [min(.2 * (k + 1), len(wave) / RATE) for k in range(31)]
        for (caption, w), kind, row in zip(heard.weights.items(), kinds, hearing.on_its_sound([heard]).to_numpy()):
            assert {e.kind for e in events(understand(caption))} == {kind}
            on = [any(e.kind == kind and end[k] > a and min(.2 * k, len(wave) / RATE) < b for e, a, b in spans)
                  for k in range(31)]
            assert row == pytest.approx((100 * sum(w[k] for k in range(31) if on[k]), 100 * sum(on) / 31))

def test_sequences_are_different_sounds_in_a_row():
    scenes = Scenes('dense', 'test', 160)
    found = hearing.sequences(scenes)
    for i, d in enumerate(scenes.descriptions):
        kinds = [e.kind for slot in d for e in slot]
        assert (i in found) == (len(d) > 1 and len(set(kinds)) == len(kinds) == len(d))
    lengths = [len(scenes.descriptions[i]) for i in found]
    assert lengths == sorted(lengths)

# ---- levels

def test_what_only_one_level_finds():
    "Every way in which ties may fall, one by one"
    torch.manual_seed(0)
    scores = {name: torch.randint(0, 3, (4, 6)).float() for name in 'abc'}
    owner = torch.tensor([0, 1, 1, 2, 3, 3])
    expected = dict.fromkeys(scores, 0.)
    for q, own in enumerate(owner):
        first = {name: [c for c in range(4) if s[c, q] == s[:, q].max()] for name, s in scores.items()}
        for fall in product(*first.values()): # the clip that each level puts first
            share = np.prod([1 / len(clips) for clips in first.values()])
            finders = [name for name, clip in zip(scores, fall) if clip == own]
            if len(finders) == 1: expected[finders[0]] += 100 * share / len(owner)
    assert levels.found_alone(scores, owner).to_dict() == pytest.approx(expected)

def test_scores_of_a_level_are_those_of_a_model_with_that_grain_only():
    torch.manual_seed(0)
    pairs, encoders = noise_pairs(), (Precomputed(AUDIO, 'mean'), Precomputed(TEXT, 'mean'))
    model = MGRL(*encoders, width=16, own_heads=False).eval()
    for g in model.grains:
        alone = MGRL(*encoders, width=16, grains=(g,), own_heads=False).eval()
        if g != 'clip-sentence': alone.load_state_dict(model.state_dict()) # the same parts
        scores = level_scores(model, pairs, {g: lambda audio, text: model.grain(g, audio, text)})[g]
        model.grains, every = (g,), model.grains
        assert torch.equal(scores, score_all(model, *encode_all(model, pairs)))
        model.grains = every

def test_what_a_level_finds_of_each_kind():
    torch.manual_seed(0)
    scenes = Scenes('sparse', 'test', 16)
    scores = torch.randint(0, 4, (16, 80)).float()
    found = levels.found_by_kind({'a': scores}, scenes)['a']
    share = {}
    for q, own in enumerate(scenes.clip_of_caption.tolist()):
        best = [c for c in range(16) if scores[c, q] == scores[:, q].max()]
        share.setdefault(scenes.near_miss[own], []).append(100 * (own in best) / len(best))
    assert found.to_dict() == pytest.approx({kind: np.mean(each) for kind, each in share.items()})
    assert levels.found_by_kind({'a': torch.eye(2)}, silent('test', ['a', 'b'])).to_dict() == {'a': {'all': 100.}}

# ---- differences of differences

def changes(ranks, **k):
    spreads = {('good', 'clean'): 8, ('good', 'noisy'): 12, ('poor', 'clean'): 9, ('poor', 'noisy'): 30}
    return [toy_run(row, seed, spread, ranks, dataset=d, **k)
            for (row, d), spread in spreads.items() for seed in range(2)]

def test_a_loss_is_judged_query_by_query():
    ranks = {}
    records = changes(ranks)
    claim = T.Claim('loss', 'noise costs the good one less', ('losses', 'good'), ('losses', 'poor'), since='clean')
    judged, = T.judge_all([claim], records, ranks)
    hit = lambda row, d, seed: 100. * (ranks[f'toy-losses-{row}-{d}-{seed}_t2a'][0] == 0)
    change = lambda row, seed: hit(row, 'noisy', seed) - hit(row, 'clean', seed)
    each = np.stack([change('good', seed) - change('poor', seed) for seed in range(2)])
    assert judged['effect'] == pytest.approx(each.mean()) and judged['spread'] == pytest.approx(each.mean(1))
    e = T.paired_bootstrap(np.stack([change('good', s) for s in range(2)]),
                           np.stack([change('poor', s) for s in range(2)]),
                           groups=ranks['noisy_group'][ranks['noisy_clip_of_caption']])
    assert (judged['ci_low'], judged['ci_high'], judged['verdict']) == (e.ci_low, e.ci_high, T.verdict(e))
    assert (judged['dataset'], judged['better'], judged['worse']) == ('noisy', 'change of good', 'change of poor')
    assert set(judged['runs']) == {r['run'] for r in records}
    assert T.judge(replace(claim, dataset='noisy', metric='a2t_r1'), records, ranks)['queries'] == 40

@pytest.mark.parametrize('spoil, complaint', [
    (lambda r: r | dict(ids_sha256='cd' * 32) if r['dataset'] == 'clean' else r, 'have other clips or captions'),
    (lambda r: r | dict(seed=r['seed'] + 7) if r['dataset'] == 'clean' else r, 'share no seed'),
    (lambda r: r | dict(row='gone') if (r['dataset'], r['row']) == ('clean', 'poor') else r,
     'no run for losses / poor / clean')])
def test_a_loss_needs_the_same_queries(spoil, complaint):
    ranks = {}
    records = [spoil(r) for r in changes(ranks)]
    claim = T.Claim('loss', 's', ('losses', 'good'), ('losses', 'poor'), dataset='noisy', since='clean')
    with pytest.raises(ValueError, match=complaint): T.judge(claim, records, ranks)

def test_claims_over_rows():
    a, b = T.claims_over('c', 'x beats {}', 't', 'x', ['y', 'z'], metric='a2t_r1', since='clean')
    assert a == T.Claim('c', 'x beats y', ('t', 'x'), ('t', 'y'), 'a2t_r1', None, 'clean') and b.worse == ('t', 'z')

# ---- scoring in threads

class Pooled(RetrievalModel):
    "The cosine of pooled vectors; at one of its blocks something happens"
    def __init__(self, happens): super().__init__(); self.happens, self.calls = happens, itertools.count()
    def similarity(self, audio, text):
        time.sleep(.001)
        if next(self.calls) == 5: self.happens()
        return audio.pooled @ text.pooled.T

def in_blocks(model, n=16): # one clip and one caption at a time
    e = Encoded(torch.eye(n))
    return score_all(model, e, e, bytes_per_pair(e, e))

def fails(): raise ValueError('the sixth block')
def interrupted(): signal.raise_signal(signal.SIGINT)

@pytest.mark.parametrize('n', [1, 3])
@pytest.mark.parametrize('happens, error', [(fails, ValueError), (interrupted, KeyboardInterrupt)])
def test_an_error_in_a_block_is_the_callers_and_nothing_more_is_begun(n, happens, error):
    model = Pooled(happens)
    with threads(n):
        with pytest.raises(error): in_blocks(model)
        assert torch.get_num_threads() == n
    assert next(model.calls) < 16 * 16 / 2

def test_every_pair_is_scored_once_whatever_the_number_of_threads():
    model = Pooled(lambda: None)
    for n in (1, 2, 5, 100):
        with threads(n): assert torch.equal(in_blocks(model), torch.eye(16))
    assert next(model.calls) == 4 * 16 * 16

# ---- cost

def test_the_cost_of_scoring():
    size = cost.Size(5, 4, 6, 3, 16)
    big = torch.ones(2**29) # 2 GB; what this process has held before does not count as memory of the scoring
    assert big[-1] == 1
    del big
    found = cost.scoring_cost('baseline', size)
    assert found['peak memory MB'] < 1500
    assert found['scoring GFLOP/s'] == pytest.approx(2 * 5*4 * 6*3 * 16 / found['seconds'] / 1e9)
    assert found['share of peak'] == pytest.approx(found['scoring GFLOP/s'] / found['machine GFLOP/s'])
    with pytest.raises(ValueError, match="'median'"): cost.scoring_cost('mgrl', size, aggregation='median')
