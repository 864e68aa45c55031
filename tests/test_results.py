"Published numbers, tables, claims and the report: what must never go wrong on the way from a run to a page."
import json, re, shutil, subprocess, sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote
import numpy as np, pandas as pd, pytest, torch
from atr_nb.data.batches import Pairs
from atr_nb.data.scenes import Scenes
from atr_nb.evaluation.metrics import ranks_hash
from atr_nb.evaluation.significance import verdict
from atr_nb.files import save_arrays, sealed, write_file
from atr_nb.results import claims as C, published as P, records as K, report as R, tables as T
from atr_nb.results.experiment import Experiment
from atr_nb.settings import load

ROOT = Path(__file__).resolve().parents[1]
CLIP_OF_CAPTION = np.arange(40).repeat(5)

# ---- toys: invented on purpose, and only ever in a temporary folder

def toy_run(row, seed, spread, ranks, dataset='scenes-sparse', table='losses', **changes):
    "A record and its ranks; the smaller `spread`, the better the toy."
    rng = np.random.default_rng([seed, spread, len(table)])
    run = f'toy-{table}-{row}-{dataset}-{seed}'
    alone = lambda n: np.stack([rng.integers(0, spread, n), np.ones(n), np.ones(n)]).astype('int32') # tied with nobody
    both = {way: alone(n) for way, n in (('t2a', 200), ('a2t', 40))}
    ranks |= {f'{run}_{way}': place for way, place in both.items()}
    ranks[f'{dataset}_clip_of_caption'], ranks[f'{dataset}_group'] = CLIP_OF_CAPTION, np.arange(40)//4
    metrics = {f'{way}_r{k}': 100 * float((place[0] < k).mean()) for way, place in both.items() for k in (1, 5, 10)}
    return dict(run=run, profile='toy', paper='baseline', table=table, row=row, dataset=dataset, split='test',
                seed=seed, metrics=metrics, ranks=ranks_hash(**both), n_clips=40, n_captions=200,
                ids_sha256='ab'*32, n_parameters=1000, commit='toy', versions={'toy': '1'}, device='toy',
                seconds=1.5, peak_memory_mb=10) | changes

def toy_runs(ranks, **k):
    return [toy_run(row, seed, spread, ranks, **k) for row, spread in (('good', 8), ('poor', 30)) for seed in range(3)]

def write_runs(folder, records, ranks=None):
    write_file(folder/'runs.jsonl', ''.join(json.dumps(sealed(r)) + '\n' for r in records))
    if ranks: save_arrays(folder/'ranks.npz', **ranks)
    return folder

class Sounds:
    "A toy dataset whose captions and ids are rude."
    name, split = 'scenes-sparse', 'test'
    ids = ['../../up', 'a b/c.wav'] + [f'<img src=x> {i}' for i in range(10)]
    captions = [[f'<script>alert({i})</script> & "{i}"'] for i in range(12)]
    flat_captions = [c[0] for c in captions]
    clip_of_caption = torch.arange(12)
    def __len__(self): return 12
    def audio(self, i, sample_rate): return torch.sin(torch.arange(sample_rate//4) * (i + 1) / 30) * 0.2

@pytest.fixture
def house(tmp_path):
    "A toy reports folder with one whole paper."
    ranks = {}; records = toy_runs(ranks) + toy_runs(ranks, dataset='scenes-dense')
    folder = write_runs(tmp_path/'embedded'/'baseline', records, ranks)
    claims = C.judge_all([C.Claim('better', 'A <b>toy</b> claim', ('losses', 'good'), ('losses', 'poor')),
                          C.Claim('worse', 'A claim upside down', ('losses', 'poor'), ('losses', 'good'))],
                         records, ranks)
    C.write_claims(folder, claims); T.write_tables(folder, [T.table(records, 'losses')])
    import matplotlib.pyplot as plt
    fig, ax = plt.subplots(figsize=(2, 1))
    ax.plot([0, 1])
    R.save_figure(folder, 'line', fig, 'A toy line & "quotes" <script>')
    plt.close(fig)
    scores = np.random.default_rng(0).normal(size=(12, 12)) + np.eye(12)
    R.save_examples(folder, [R.Examples(Sounds(), torch.tensor(scores), 'toy <model>')])
    return tmp_path

# ---- published numbers

def test_every_published_file_is_trustworthy():
    papers = {p.stem for p in P.FOLDER.glob('*.csv')}
    assert papers >= {'baseline', '3cmlf', 'mgrl', 'hci_ac', 'tha_dcr', 'diffatr'}
    for paper in papers:
        df = P.published(paper)
        assert (df.source[df.value.notna()].str.len() > 10).all() and not df.source.str.contains(r'^/|\.md\b').any()
    for paper in ('mgrl', 'hci_ac', 'tha_dcr', 'diffatr'):
        assert P.published(paper).value.isna().all(), f'{paper}: if numbers were entered, update this test'

@pytest.mark.parametrize('row, complaint', [
    ('toy,main,A,audiocaps,test,t2a_r1,34.9,,', 'no source'),
    ('toy,main,A,audiocaps,test,t2a_r1,34.9,"  ",', 'no source'),
    ('toy,main,A,audiocaps,test,t2a_r1,,book,', 'not at hand'),
    ('toy,main,A,audiocaps,test,t2a_r1,134.9,book,', 'between 0 and 100'),
    ('toy,main,A,audiocaps,test,t2a_r1,nan,book,', 'between 0 and 100'),
    ('toy,main,A,audiocaps,test,t2a_r1,many,book,', 'not a number'),
    ('toy,main,A,audiocaps,test,t2a_r2,3,book,', 'unknown metric'),
    ('toy,main,A,scenes-dense,test,t2a_r1,3,book,', 'no published numbers'),
    ('other,main,A,clotho,test,t2a_r1,3,book,', 'does not match')])
def test_untrustworthy_rows_are_named(tmp_path, row, complaint):
    (tmp_path/'toy.csv').write_text(','.join(P.COLUMNS) + '\ntoy,main,Z,clotho,test,t2a_r1,1,book,\n' + row + '\n')
    with pytest.raises(ValueError, match=complaint) as e: P.published('toy', tmp_path)
    assert 'toy.csv, line 3' in str(e.value)

def test_published_columns_are_checked(tmp_path):
    (tmp_path/'toy.csv').write_text('paper,table\n')
    with pytest.raises(ValueError, match='expected paper, table, row'): P.published('toy', tmp_path)
    with pytest.raises(FileNotFoundError, match='papers at hand: toy'): P.published('nobody', tmp_path)

# ---- records and tables

def test_records_round_trip(tmp_path):
    records = toy_runs({}); write_runs(tmp_path, records + records[:2])
    assert K.load_records(tmp_path) == records

def line(**changes): return json.dumps(sealed(toy_run('x', 9, 8, {}) | changes))

@pytest.mark.parametrize('line', [
    '{"run": "cut sh', '[]', '{}', 'null', line()[:-40], line(metrics=None), line(metrics={'t2a_r1': float('nan')}),
    json.dumps(sealed({'run': 'x'})), json.dumps(toy_run('x', 9, 8, {})), line().replace('"seed": 9', '"seed": 8')])
def test_a_damaged_line_is_named(tmp_path, line):
    write_runs(tmp_path, toy_runs({}))
    with open(tmp_path/'runs.jsonl', 'a') as f: f.write(line)
    with pytest.raises(ValueError, match=r'runs\.jsonl, line 7'): K.load_records(tmp_path)

def test_a_flipped_digit_is_named(tmp_path):
    "Whatever digit of a record is another one, the record is refused; a number that nobody measured reaches no table"
    lines = (write_runs(tmp_path, toy_runs({}))/'runs.jsonl').read_text().splitlines(keepends=True)
    digits = [m.start() for m in re.finditer(r'\d', lines[2])]
    flipped = lines[2].index('"t2a_r1": ') + len('"t2a_r1": ')
    for at in [flipped, *np.random.default_rng(0).choice(digits, 40)]:
        other = str((int(lines[2][at]) + 1) % 10)
        (tmp_path/'runs.jsonl').write_text(''.join([*lines[:2], lines[2][:at] + other + lines[2][at+1:], *lines[3:]]))
        with pytest.raises(ValueError, match=r'runs\.jsonl, line 3.*delete the line and run that configuration again'):
            K.load_records(tmp_path)

def test_two_runs_under_one_label_are_refused(tmp_path):
    a = toy_run('x', 0, 8, {}); write_runs(tmp_path, [a, a | dict(run='another')])
    with pytest.raises(ValueError, match='already stands'): K.load_records(tmp_path)

def test_embedded_results_never_stand_beside_a_paper():
    forged = pd.DataFrame([dict(paper='x', table='losses', row='good', dataset='scenes-sparse', split='test', metric=m,
                                value=50., source='forged', note='') for m in T.SHOWN])
    for offered in (None, P.published('baseline'), forged):
        t = T.table(toy_runs({}), 'losses', offered)
        assert (not t.compared and 'paper' not in ' '.join(t.header) and T.EMBEDDED in t._repr_markdown_()
                and '50' not in ''.join(t.notes))
    with pytest.raises(ValueError, match='mixes'):
        T.table(toy_runs({}) + toy_runs({}, dataset='audiocaps', n_clips=957), 'losses', P.published('baseline'))

def test_paper_ours_difference():
    runs = toy_runs({}, dataset='audiocaps', n_clips=957, table='Table I')
    for r in runs[:3]: r['row'] = '3CMLF, pre-trained, with CHM'
    t = T.table(runs, 'Table I', P.published('3cmlf'))
    first = t.frame.iloc[0]
    assert t.compared and first.t2a_r1_paper == 34.9 and first.t2a_r1_difference == pytest.approx(first.t2a_r1 - 34.9)
    assert ('CE' in t.frame.row.tolist() and any('poor on audiocaps: not at hand' in n for n in t.notes)
            and any('APSIPA' in n for n in t.notes))
    assert not T.table([r | dict(n_clips=883) for r in runs], 'Table I', P.published('3cmlf')).compared
    gap = T.table([r | dict(table='losses', row='NT-Xent') for r in runs[:1]], 'losses', P.published('baseline'))
    assert gap.frame.t2a_r1_paper.isna()[0] and any('NT-Xent on audiocaps: not at hand' in n for n in gap.notes)

def test_mean_spread_bold_and_order():
    def run(row, seed, value, dataset='scenes-sparse'):
        return toy_run(row, seed, 8, {}, dataset) | dict(metrics={m: value for m in T.SHOWN})
    t = T.table([run('b', 0, 40.), run('b', 1, 42.), run('a', 0, 40.), run('a', 1, 40.), run('c', 0, 39.),
                 run('b', 0, 10., 'scenes-dense')], 'losses')
    assert t.frame.row.tolist() == ['b', 'a', 'c', 'b'] and t.frame.dataset.tolist()[-1] == 'scenes-dense'
    assert [r[2].text for r in t.body()] == ['41.0 ± 1.4', '40.0 ± 0.0', '39.0', '10.0']
    # within a standard deviation of the best; alone in its dataset
    assert [r[2].bold for r in t.body()] == [True, True, False, False]
    with pytest.raises(ValueError, match='other clips'):
        T.table([run('b', 0, 40.), run('a', 0, 40.) | dict(ids_sha256='cd'*32)], 'losses')

def test_tables_are_written_whole(tmp_path):
    t = T.table(toy_runs({}), 'losses'); T.write_tables(tmp_path, [t])
    back = pd.read_csv(tmp_path/'tables.csv')
    assert (np.allclose(back.t2a_r1, t.frame.t2a_r1, atol=1e-4) and back.embedded.all()
            and not [c for c in back if 'paper' in c])
    text = (tmp_path/'tables.md').read_text()
    for word in ('40 clips', '200 captions', 'abababababab', 'seeds 0, 1, 2', 'commit toy', 'toy 1', 'device toy',
                 'wall time', 'peak memory'):
        assert word in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ['tables.csv', 'tables.md']
    assert '&lt;script' in T.table([r | dict(row='<script>|') for r in toy_runs({})[:1]], 'losses')._repr_markdown_()

# ---- claims

def test_claims(tmp_path):
    ranks = {}; records = toy_runs(ranks); write_runs(tmp_path, records, ranks)
    good, bad = C.judge_all([C.Claim('a', 's', ('losses', 'good'), ('losses', 'poor')),
                             C.Claim('b', 's', ('losses', 'poor'), ('losses', 'good'), metric='a2t_r10')],
                            K.load_records(tmp_path), K.load_ranks(tmp_path))
    assert (good['verdict'] == 'holds' and bad['verdict'] == 'does not hold'
            and len(good['runs']) == 6 and len(good['spread']) == 3)
    mean = T.summarise(records).set_index('row').t2a_r1
    assert good['effect'] == pytest.approx(mean.good - mean.poor) and good['ci_low'] < good['effect'] < good['ci_high']
    C.write_claims(tmp_path, [good, bad]); assert C.load_claims(tmp_path) == [good, bad]
    assert ({'claim', 'verdict', 'effect', 'ci_low', 'ci_high', 'runs'}
            <= json.loads((tmp_path/'claims.json').read_text())[0].keys())
    text = C.Verdicts([good, bad])._repr_markdown_(); assert '✓ holds' in text and '✗ does not hold' in text

def test_a_claim_needs_matching_runs():
    ranks = {}; records = toy_runs(ranks) + toy_runs(ranks, dataset='scenes-dense')
    claim = lambda **k: C.Claim(**(dict(name='c', statement='s', better=('losses', 'good'), worse=('losses', 'poor'))
                                   | k))
    for k, complaint in ((dict(better=('losses', 'god')), 'no run for losses / god'), ({}, 'several datasets'),
                         (dict(metric='t2a_medr', dataset='scenes-dense'), 'cannot be judged'),
                         (dict(better=('losses', 'good', 'scenes-dense'), worse=('losses', 'poor', 'scenes-sparse')),
                          'same dataset')):
        with pytest.raises(ValueError, match=complaint): C.judge(claim(**k), records, ranks)
    lost = {k: v for k, v in ranks.items() if 'good' not in k}
    with pytest.raises(ValueError, match='ranks.npz holds no'): C.judge(claim(dataset='scenes-dense'), records, lost)
    with pytest.raises(ValueError, match='do not belong together'):
        C.judge(claim(dataset='scenes-dense'), [r | dict(metrics={'t2a_r1': 77.}) for r in records], ranks)

CLAIM = C.Claim('good beats poor', 's', ('losses', 'good'), ('losses', 'poor'))

def test_ranks_of_another_run_are_refused(tmp_path):
    ranks = {}
    records = toy_runs(ranks)
    good, poor = (r['run'] for r in records[::3])
    for way in ('t2a', 'a2t'): # as if somebody had exchanged two runs by hand
        ranks[f'{good}_{way}'], ranks[f'{poor}_{way}'] = ranks[f'{poor}_{way}'], ranks[f'{good}_{way}']
    write_runs(tmp_path, records, ranks)
    with pytest.raises(ValueError, match=f'{good}.*do not go together.*run the notebook again'):
        C.judge(CLAIM, K.load_records(tmp_path), K.load_ranks(tmp_path))
    older = {k: np.roll(v, 1, axis=-1) if 't2a' in k else v for k, v in ranks.items()} # whole, but of another day
    save_arrays(tmp_path/'ranks.npz', **older)
    with pytest.raises(ValueError, match='do not go together'):
        C.judge(CLAIM, K.load_records(tmp_path), K.load_ranks(tmp_path))

def test_damaged_ranks_are_refused(tmp_path):
    "Cut anywhere, or with any byte changed: never another verdict, always the file's name"
    ranks = {}
    file = write_runs(tmp_path, toy_runs(ranks), ranks)/'ranks.npz'
    whole, rng = file.read_bytes(), np.random.default_rng(0)
    cut = [whole[:n] for n in (0, 1, len(whole) - 1, *rng.integers(0, len(whole), 30))]
    changed = [whole[:at] + bytes([whole[at] ^ rng.integers(1, 256)]) + whole[at+1:]
               for at in rng.integers(0, len(whole), 150)]
    for damaged in cut + changed:
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r'ranks\.npz.*run the notebook again'): K.load_ranks(tmp_path)
    np.savez_compressed(file, **ranks) # as versions before this one wrote it
    with pytest.raises(ValueError, match=r'ranks\.npz.*run the notebook again'): K.load_ranks(tmp_path)

def test_ties_count_alike_in_metrics_and_claims(tmp_path):
    """From scores to files to verdicts: a constant matrix and doubled clips are judged,
    and by the numbers in the records"""
    lab = Experiment(load('smoke', cache=str(tmp_path/'cache'), out=str(tmp_path/'reports')), 'baseline')
    clips = Scenes('sparse', 'test', 32)
    lab.add(Pairs(range(32), range(160), clips.clip_of_caption, clips))
    noisy = torch.randn(32, 160, generator=torch.Generator().manual_seed(0))
    noisy[clips.clip_of_caption, torch.arange(160)] += 1.5
    rows = {'noisy': noisy, 'doubled clips': noisy[torch.arange(32) // 2 * 2], 'coarse': noisy.round(),
            'constant': torch.zeros(32, 160)}
    for row, scores in rows.items(): lab.measure('ties', row, clips.name, scores)
    folder = lab.save()
    records, ranks = K.load_records(folder), K.load_ranks(folder)
    measured = {r['row']: r['metrics'] for r in records}
    for metric in T.SHOWN:
        for better in rows:
            for worse in rows:
                judged = C.judge(C.Claim('c', 's', ('ties', better), ('ties', worse), metric), records, ranks)
                expected = measured[better][metric] - measured[worse][metric]
                assert judged['effect'] == pytest.approx(expected, abs=1e-9), (metric, better, worse)
    assert measured['constant']['t2a_r1'] == pytest.approx(100 / 32)
    assert C.judge(C.Claim('c', 's', ('ties', 'noisy'), ('ties', 'constant')), records, ranks)['verdict'] == 'holds'

def test_overall():
    assert (C.overall(['holds', 'holds']) == 'holds' and C.overall(['holds', 'undecided']) == 'undecided'
            and C.overall(['holds', 'undecided', 'does not hold']) == 'does not hold')

# ---- the report

class Page(HTMLParser):
    "Collects what a page must get right; fails on tags that do not close."
    VOID = {'meta', 'link', 'img', 'br', 'hr', 'input', 'source', 'line', 'path'}
    def __init__(self, text):
        super().__init__(); self.open, self.ids, self.links, self.tags = [], [], [], []
        self.feed(text); assert not self.open, self.open
    def handle_starttag(self, tag, attrs):
        a = dict(attrs); self.tags.append((tag, a)); self.ids += [a['id']] if 'id' in a else []
        self.links += [a[k] for k in ('href', 'src') if k in a]
        if tag not in self.VOID: self.open.append(tag)
    def handle_startendtag(self, tag, attrs): self.tags.append((tag, dict(attrs)))
    def handle_endtag(self, tag):
        if tag not in self.VOID: assert self.open and self.open.pop() == tag, f'</{tag}> where {self.open[-3:]} is open'

def test_the_page_is_sound(house):
    text = R.render(house).read_text(); page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    for link in page.links:
        if link.startswith('#'): assert link[1:] in page.ids
        elif link != 'data:,': assert '://' not in link and (house/unquote(link)).is_file(), link
    assert (all(a.get('alt') for t, a in page.tags if t == 'img')
            and all('scope' in a for t, a in page.tags if t == 'th'))
    assert {'audio', 'figure', 'caption', 'nav', 'main'} <= {t for t, _ in page.tags}
    for word in ('✓ holds', '✗ does not hold', 'not comparable with AudioCaps or Clotho', 'abababababab'):
        assert word in text

def test_a_verdict_stands_beside_what_it_judges(house):
    """The claim's name carries the verdict of the whole, each row its own statement and its own verdict,
    on the page and in a notebook"""
    folder = house/'embedded/baseline'
    better, worse = (dict(better=('losses', 'good'), worse=('losses', 'poor')),
                     dict(better=('losses', 'poor'), worse=('losses', 'good')))
    level = dict(better=('losses', 'good'), worse=('losses', 'good'))
    mixed = {'refuted': {'up': better, 'down': worse, 'same': level}, 'open': {'up': better, 'same': level},
             'true': {'up': better, 'up again': better}}
    claims = [C.Claim(name, s, **sides, dataset='scenes-dense')
              for name, statements in mixed.items() for s, sides in statements.items()]
    verdicts = C.judge_all(claims, K.load_records(folder), K.load_ranks(folder))
    C.write_claims(folder, verdicts)
    single = {'up': 'holds', 'up again': 'holds', 'down': 'does not hold', 'same': 'undecided'}
    whole = {'refuted': 'does not hold', 'open': 'undecided', 'true': 'holds'}

    text = R.render(house).read_text()
    word = r'<span class="verdict \w+">[✓✗?] ([a-z ]+)</span>'
    cards = re.findall(r'<section class="claim".*?</section>', text, re.S)
    heads = [re.search(rf'<header><h3.*?>([^<]+)</a></h3>.*?{word}', card, re.S).groups() for card in cards]
    assert heads == [(name.capitalize(), v) for name, v in whole.items()]
    for card, statements in zip(cards, mixed.values()):
        lines = re.findall(r'<tr><th scope="row">.*?</tr>', card, re.S)
        rows = [(re.search(r'<th scope="row">(.*?)<br>', r)[1], re.search(word, r)[1]) for r in lines]
        assert rows == [(s.capitalize(), single[s]) for s in statements]
    assert all(f'{C.SAYS[v]}: 1' in text for v in C.SAYS) and 'that of the whole' in text

    cells = [[c.strip(' *') for c in l.split('|')[1:3]]
             for l in verdicts._repr_markdown_().splitlines() if l.startswith('| ')][2:]
    assert cells == [[n, C.SAYS[v]] for name in mixed
                     for n, v in [(name, whole[name]), *((s, single[s]) for s in mixed[name])]]

def matrix(text):
    "Of each claim on the first screen: where it leads, its name, verdict, effect and interval."
    cell = (r'<a href="#([^"]+)"><span class="name">(.*?)</span>.*?<span class="unseen">([a-z ]+): </span>'
            r'<strong>(.*?)</strong> <span class="ci">(.*?)</span>')
    nav = re.search(r'<nav class="matrix".*?</nav>', text, re.S)[0]
    return [tuple(map(unescape, found)) for found in re.findall(cell, nav, re.S)]

def test_the_first_screen_says_what_decided(house):
    "Each claim leads to its place, with the verdict of the whole and the number on which it hangs"
    claims = C.load_claims(house/'embedded'/'baseline')
    text = R.render(house).read_text()
    page = Page(text)
    expected = []
    for n, (name, statements) in enumerate(claims.by_claim().items(), 1):
        decides = C.deciding(statements)
        assert decides['verdict'] == C.overall([c['verdict'] for c in statements])
        assert all(c['effect'] >= decides['effect'] for c in statements if c['verdict'] == decides['verdict'])
        interval = f"[{T.signed(decides['ci_low'])}, {T.signed(decides['ci_high'])}]"
        expected.append((f'baseline-claim-{n}', name.capitalize(), decides['verdict'], T.signed(decides['effect']),
                         interval))
    assert matrix(text) == expected and len(expected) == 2
    assert all(leads in page.ids for leads, *_ in expected)

def test_profiles_of_a_paper_stand_side_by_side(house):
    "One place for a paper and for each of its claims, however many profiles have judged it"
    shutil.copytree(house/'embedded'/'baseline', house/'audiocaps'/'baseline')
    claims = C.load_claims(house/'audiocaps'/'baseline')
    C.write_claims(house/'audiocaps'/'baseline', [c for c in claims if c['claim'] == 'better'])
    text = R.render(house).read_text()
    page = Page(text)
    assert (len(page.ids) == len(set(page.ids)) and text.count('<article') == 1
            and text.count('<section class="claim"') == 2)
    first, second = re.findall(r'<section class="claim".*?</section>', text, re.S)
    assert [re.findall('Comparisons, ([a-z]+)<', card) for card in (first, second)] == [
        ['embedded', 'audiocaps'], ['embedded']]
    assert '✓ holds: 2' in text and '✗ does not hold: 1' in text

RUDE = 'Ö "q" \'s\' <u>[x](y)</u> *音* & | `co`'

def test_names_are_only_text(house):
    "Quotes, brackets, markup and letters of any kind, in whatever has a name"
    ranks = {}
    records = [toy_run(row + RUDE, seed, spread, ranks, 'scenes ' + RUDE, RUDE)
               for row, spread in (('good', 8), ('poor', 30)) for seed in range(3)]
    folder = write_runs(house/'my "own" <i> ü'/"o'neil & 音 <b>", records, ranks)
    sides = (RUDE, 'good' + RUDE), (RUDE, 'poor' + RUDE)
    C.write_claims(folder, C.judge_all([C.Claim(RUDE, 'says ' + RUDE, *sides)], records, ranks))
    shutil.copytree(house/'embedded'/'baseline'/'figures', folder/'figures')
    (folder/'figures'/'line.png').rename(folder/'figures'/'a "b" ü.png')
    executed(folder, '# ' + RUDE, '> ' + RUDE)
    text = R.render(house).read_text()
    page = Page(text)
    assert len(page.ids) == len(set(page.ids)) and 'u' not in {t for t, _ in page.tags}
    assert all((house/unquote(link)).is_file() for link in page.links if not link.startswith(('#', 'data:')))
    assert all(unquote(link[1:]) in page.ids for link in page.links if link.startswith('#'))
    assert RUDE in [name for _, name, *_ in matrix(text)] and RUDE in unescape(text)
    assert '<u>' not in (folder/'notebook.html').read_text().partition('<body>')[0]
    shown = T.table(records, RUDE)._repr_markdown_()
    assert '<u>' not in shown and '[x]' not in shown.replace('\\[x]', '') and ' *音*' not in shown

def test_what_faces_a_reader_is_english(house):
    "Thousands with a comma, a dash where nothing was trained, headings for what only a program understands"
    records = [toy_run('good', 0, 8, {}, table=name, seconds=0) for name in ('main', 'choices', 'main, as trained')]
    write_runs(house/'embedded'/'baseline', records)
    (house/'embedded'/'baseline'/'claims.json').unlink()
    examples = house/'embedded'/'baseline'/'examples.json'
    data = json.loads(examples.read_text())
    data['queries'][0] |= dict(place=1234, of=5000)
    examples.write_text(json.dumps(data))
    text = R.render(house).read_text()
    assert re.findall(r'<h4>(.*?)</h4>', text) == ['Main comparison', 'Open choices', 'Main comparison, as trained']
    assert ('rank 1,234 of 5,000' in text and '0.0 s' not in text
            and '<th scope="col" class="word" rowspan="2">model<' in text)
    assert T.table(records, 'main').body()[0][-1].text == '–' and T.duration(0.04) == '0.0 s'

def test_the_papers_own_words_and_numbers(house, monkeypatch):
    "Where they are at hand they stand at the claim, with their place; where not, this is said once"
    assert R.render(house).read_text().count('<p class="small">Of the paper, ') == 1
    numbers = pd.DataFrame([dict(row=row, dataset='clotho', metric='t2a_r1', value=value, source='Toy 2024, Table I')
                            for row, value in (('good', 30.), ('poor', 28.5))])
    monkeypatch.setattr(R, 'known_numbers', lambda paper: numbers)
    monkeypatch.setattr(R, 'sentences', lambda paper: {'bett': dict(words='best of <all>', place='Toy 2024, abstract')})
    monkeypatch.setattr(R, 'tables_of', lambda records, known: T.tables_of(records))
    text = R.render(house).read_text()
    better, worse = re.findall(r'<section class="claim".*?</section>', text, re.S)
    assert '&ldquo;best of &lt;all&gt;&rdquo; <cite>Toy 2024, abstract</cite>' in better and '<blockquote>' not in worse
    assert 'In the paper: +1.5 (clotho, t2a R@1: 30.0 − 28.5)<' in better and 'good − poor: Toy 2024, Table I' in better
    assert 'In the paper: −1.5 (clotho, t2a R@1: 28.5 − 30.0)<' in worse and 'Of the paper, ' not in text

def test_sentences_have_a_place(tmp_path):
    for text, complaint in (('[toy]\n"a" = { words = "x" }', "toy, 'a': give"),
                            ('[toy]\n"a" = "x"', 'give the printed'), ('[toy', 'sentences.toml')):
        (tmp_path/'sentences.toml').write_text(text)
        with pytest.raises(ValueError, match=complaint): P.sentences('toy', tmp_path)
    for paper in ('baseline', '3cmlf', 'nobody'):
        assert all(len(q['words']) < 300 and len(q['place']) > 10 for q in P.sentences(paper).values())

def test_figures_are_sharp_small_and_described(house):
    from PIL import Image
    file = house/'embedded'/'baseline'/'figures'/'line.png'
    with Image.open(file) as image:
        assert (image.size[0] > 192 * 1.5 and image.mode == 'P'
                and image.text['Description'] == 'A toy line & "quotes" <script>')
    shutil.copy(file, file.with_name('claims.png'))
    text = R.render(house).read_text()
    assert 'figures/line.png' in text and 'figures/claims.png' not in text # the strips show the same

def test_the_axis_has_round_numbers():
    rng = np.random.default_rng(0)
    for _ in range(200):
        low, high = sorted(rng.normal(size=2) * 10. ** rng.integers(-1, 3))
        scale = R._scale([dict(ci_low=low, ci_high=high, spread=[low])])
        ticks = R._ticks(scale)
        assert 0 in ticks and len(ticks) <= 9 and scale[0] <= ticks[0] and ticks[-1] <= scale[1]
        assert all(0 <= R._at(t, scale) <= 100 for t in (*ticks, low, high))

def test_what_is_shown_of_a_collapsed_model_agrees_with_its_name(tmp_path):
    "Where everything ties, hit and miss go by the order that is shown"
    toy = Sounds()
    for name in ('ids', 'captions', 'flat_captions'): setattr(toy, name, getattr(toy, name) * 3)
    toy.clip_of_caption = torch.arange(36)
    saved = json.loads(R.save_examples(
        tmp_path, [R.Examples(toy, torch.zeros(36, 36), 'collapsed')]).read_text())['queries']
    kinds = {kind: (first + 1, last + 1) for kind, first, last in R.OUTCOMES}
    assert saved and all(kinds[q['why']][0] <= q['place'] <= kinds[q['why']][1] for q in saved)

def test_nothing_from_outside_runs(house):
    text = R.render(house).read_text()
    assert ('<script>alert' not in text and '&lt;script&gt;alert' in text and '<b>toy</b>' not in text
            and '<img src=x>' not in text and 'toy <model>' not in text)
    assert text.count('<script') == 1
    examples = house/'embedded/baseline/examples.json'; data = json.loads(examples.read_text())
    data['queries'][0]['clips'][0]['audio'] = '../../../secret.ogg'
    (house/'secret.ogg').write_bytes(b'')
    examples.write_text(json.dumps(data))
    text = R.render(house).read_text()
    assert 'secret.ogg' not in text and 'The sound is missing' in text

def test_sounds_stay_in_their_folder(house):
    audio = house/'embedded/baseline/audio'; names = {f.name for f in audio.iterdir()}
    assert names and all(re.fullmatch(r'[\w-]+\.ogg', n) for n in names) and not list(house.parent.glob('*.ogg'))
    R.save_examples(audio.parent, [R.Examples(Sounds(), torch.eye(12), 'toy', {3: 'chosen'})], top=2)
    assert len(list(audio.iterdir())) == 2 # those of the first call are gone
    assert 'not picked by hand' not in R.render(house).read_text()

def test_rendering_twice_gives_the_same_bytes(house):
    first = R.render(house).read_bytes()
    assert R.render(house).read_bytes() == first and str(house) not in first.decode()
    assert not list(house.glob('**/*.part'))

def test_half_written_folders_are_named_and_left_out(house):
    (house/'embedded'/'mgrl').mkdir()
    (house/'smoke'/'3cmlf').mkdir(parents=True)
    (house/'smoke'/'3cmlf'/'runs.jsonl').write_text('\n')
    text = R.render(house).read_text()
    assert ('embedded/mgrl holds no run record' in text and 'smoke/3cmlf holds no run record' in text
            and text.count('<article') == 1)

def test_a_damaged_record_stops_the_report(house):
    with open(house/'embedded/baseline/runs.jsonl', 'a') as f: f.write('{"run": ')
    with pytest.raises(ValueError, match=r'baseline/runs\.jsonl, line 13'): R.render(house)

def executed(folder, *lines, order=None):
    "Put an executed notebook into a folder of results"
    import nbformat
    from nbformat.v4 import new_markdown_cell, new_notebook
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {} if order is None else dict(atr_nb=dict(order=order))
    nbformat.write(new_notebook(cells=[new_markdown_cell('\n\n'.join(lines))], metadata=metadata),
                   folder/'notebook.ipynb')

def test_heading_and_citation_are_those_of_the_notebook(house):
    # its folder's name, for want of a notebook
    assert re.search(r'<h2 id="baseline-h">baseline<', R.render(house).read_text())
    executed(house/'embedded'/'baseline', '# A `loud` <b>paper</b>', '> Li & *Ng*, [*Sounds*](x.html) (2024)')
    text = R.render(house).read_text()
    assert '<h2 id="baseline-h">A loud &lt;b&gt;paper&lt;/b&gt;<' in text
    assert '<p class="cite">Li &amp; <em>Ng</em>, <em>Sounds</em> (2024)</p>' in text

def test_papers_come_in_the_order_of_their_notebooks(house):
    "As the executed notebooks say; those that do not, as the sources beside the reports do; the rest by name"
    root, reports = house.parent/'project', house.parent/'project'/'reports'
    for paper in ('ape', 'eland', 'quagga', 'tapir'):
        shutil.copytree(house/'embedded'/'baseline', reports/'embedded'/paper)
    executed(reports/'embedded'/'tapir', '# T', order=1)
    executed(reports/'embedded'/'quagga', '# Q')
    executed(root/'source', '# Q', order=2)
    (root/'nbs'/'reproduce').mkdir(parents=True)
    (root/'source'/'notebook.ipynb').rename(root/'nbs'/'reproduce'/'quagga.ipynb')
    text = R.render(reports).read_text()
    assert re.findall(r'<article id="(\w+)"', text) == ['tapir', 'quagga', 'ape', 'eland']

def test_what_is_poorer_but_not_wrong_is_said(house):
    folder = house/'embedded/baseline'
    (folder/'figures'/'cut.png').write_bytes(b'\x89PNG cut'); (folder/'notebook.ipynb').write_text('{"cells": [')
    claims = json.loads((folder/'claims.json').read_text())
    claims[0]['runs'] = ['gone']
    (folder/'claims.json').write_text(json.dumps(claims))
    text = R.render(house).read_text()
    for word in ('figures/cut.png cannot be read', 'not a complete notebook',
                 'speak of runs that runs.jsonl does not hold'):
        assert word in text
    assert '<section class="claim"' not in text and 'no claim judged' in text
    (folder/'claims.json').unlink(); assert 'No claim has been judged' in R.render(house).read_text()

@pytest.mark.parametrize('text', [
    '{"queries": [{"why": "x"}]}',
    '{"queries": [{"why": 1, "drawn": 1, "dataset": 1, "model": 1, "caption": 1, "place": "first", "of": 2, '
    '"clips": []}]}', '{"quer', '[]'])
def test_damaged_examples_are_named(house, text):
    (house/'embedded/baseline/examples.json').write_text(text)
    with pytest.raises(ValueError, match='examples.json cannot be read'): R.render(house)

def test_nothing_measured_yet(tmp_path):
    assert 'Nothing has been measured yet' in R.render(tmp_path).read_text()
    with pytest.raises(FileNotFoundError, match='nowhere'): R.render(tmp_path/'nowhere')

def test_notebooks_become_harmless_pages(house):
    import nbformat.v4 as n
    rude = n.new_output('display_data', {
        'text/html': '<script>alert(1)</script><img src=https://x.y/z onerror=alert(2)>'
                     '<table><tr><td>kept</td></tr></table>'})
    nb = n.new_notebook(cells=[n.new_markdown_cell('# A title\n\n<script>alert(3)</script>'),
                               n.new_code_cell('1 < 2', outputs=[rude])])
    import nbformat; nbformat.write(nb, house/'embedded/baseline/notebook.ipynb')
    assert 'embedded/baseline/notebook.html' in R.render(house).read_text()
    text = (house/'embedded/baseline/notebook.html').read_text()
    assert ('alert(' not in text and 'onerror' not in text and '<td>kept</td>' in text and '>A title<' in text
            and '://' not in text)

def test_reports_of_the_project_stay_small_and_whole():
    reports = ROOT/'reports'
    assert sum(f.stat().st_size for f in reports.rglob('*') if f.is_file()) < 25e6
    for runs in reports.glob('*/*/runs.jsonl'):
        records = K.load_records(runs.parent)
        assert not any('toy' in r['run'] or r['profile'] == 'toy' for r in records)

def test_peak_memory_is_of_the_process_itself():
    "A process started by a large one does not count what its parent holds."
    measure = "import torch; from atr_nb.results.runs import peak_memory_mb; print(peak_memory_mb(torch.device('cpu')))"
    parent = ("import subprocess, sys; held = b'x' * (1500 * 2**20); "
              f"subprocess.run([sys.executable, '-c', {measure!r}], check=True)")
    peak = int(subprocess.run([sys.executable, '-c', parent], capture_output=True, text=True, check=True).stdout)
    assert 50 < peak < 1400


# What pages share

def test_rows_of_a_sweep_stand_as_given_whatever_is_run_first(tmp_path):
    class Noted(Experiment):
        def run(self, table, row, dataset, seed, **what):
            return self.note(table, row, dict(run='', dataset=dataset, seed=seed), {}, None)
        def save(self): pass
        def table(self, name): return [(r['dataset'], r['row']) for r in self.records if r['table'] == name]
    lab = Noted(load('smoke', out=str(tmp_path)), 'baseline')
    def needs_a_teacher(dataset, seed): return lab.run('main', 'teacher', dataset, seed) and {}
    rows = {'student': needs_a_teacher, 'teacher': {}}
    lab.run('other', 'x', 'scenes-dense', 0)
    given = [(d, row) for d in ('scenes-sparse', 'scenes-dense') for row in rows]
    assert (lab.sweep('main', rows, ['scenes-sparse']) == given[:2]
            and lab.sweep('main', rows, ['scenes-dense']) == given)
    assert lab.sweep('main', {'more': {}}, ['scenes-dense']) == given + [('scenes-dense', 'more')]
    assert lab.records[0]['table'] == 'other'


def test_gained_and_lost_are_those_found_first_on_one_side():
    rng = np.random.default_rng(0)
    before, after = rng.integers(0, 5, 200), rng.integers(0, 5, 200)
    for q, why in R.gained_and_lost(before, after, n=9).items():
        assert (after[q] == 0 and before[q] > 0) if why.startswith('gained') else (before[q] == 0 and after[q] > 0)
    assert len(R.gained_and_lost(before, after, n=9)) == 18 and R.gained_and_lost(before, before) == {}
    assert R.moves({'x': (before, after)})['x'].sum() == pytest.approx(100, abs=.2)

def test_every_picture_of_an_executed_page_can_be_heard(house):
    "The caption of the report, or the heading above; what stands in it is escaped"
    import base64, nbformat
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
    folder = house/'embedded'/'baseline'
    png = base64.b64encode((folder/'figures'/'line.png').read_bytes()).decode()
    def pictures(n): return [new_output('display_data', {'image/png': png, 'text/plain': '<Figure>'}) for _ in range(n)]
    cells = [new_markdown_cell('# Toys'), new_code_cell("lab.figure('line', fig, f'{x}')", outputs=pictures(1)),
             new_markdown_cell('## Nobody "knows" <it>\n\nText.'),
             new_code_cell("lab.figure('lost', fig, '')\nfig", outputs=pictures(2))]
    nbformat.write(new_notebook(cells=cells), folder/'notebook.ipynb')
    page = Page(R.notebook_page(folder/'notebook.ipynb').read_text())
    told = [attributes.get('alt') for tag, attributes in page.tags if tag == 'img']
    assert told == ['A toy line & "quotes" <script>', *2 * ['Figure: Nobody "knows" <it>']], told


def test_stored_verdicts_follow_from_their_intervals():
    "Those of \"at least as good\" from an interval and a margin"
    statements = [c for file in sorted((ROOT/'reports').rglob('claims.json')) for c in C.load_claims(file.parent)]
    assert any(c.get('margin') for c in statements)
    for c in statements:
        interval = SimpleNamespace(ci_low=c['ci_low'], ci_high=c['ci_high'])
        assert verdict(interval, c.get('margin', 0.)) == c['verdict'], c['statement']
