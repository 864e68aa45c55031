"README.md is made from nbs/index.ipynb, its verdicts are those of the results, and everything it and the site point to is there."
import json
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest

from atr_nb.notebooks import about
from atr_nb.pages import executed, house, papers, readme, site, verdicts
from atr_nb.results.tables import SAYS, overall

ROOT = Path(__file__).resolve().parent.parent


def test_readme_is_current(root):
    assert (root/'README.md').read_text(encoding='utf-8') == readme(root), 'README.md is older than nbs/index.ipynb: run `make readme`'


def table(text, *header): # the rows of a Markdown table, without the links
    rows = text.split('| ' + ' | '.join(header) + ' |\n')[1].split('\n\n')[0].splitlines()[1:]
    return [tuple(re.sub(r'\[`([^]]+)`\]\([^)]*\)', r'\1', c.strip()) for c in re.split(r'(?<!\\)\|', row)[1:-1]) for row in rows]


def test_readme_tells_the_verdicts_of_the_results(root):
    "Every claim of every paper, with the verdict that its statements come to, and nothing else"
    expected = set()
    for notebook in (root/'nbs'/'reproduce').glob('*.ipynb'):
        file, statements = root/'reports'/'embedded'/notebook.stem/'claims.json', {}
        for c in json.loads(file.read_text(encoding='utf-8')) if file.exists() else []: statements.setdefault(c['claim'], []).append(c['verdict'])
        expected |= {(notebook.stem, claim, SAYS[overall(each)]) for claim, each in statements.items()}
    told = table((root/'README.md').read_text(encoding='utf-8'), 'paper', 'claim', 'verdict')
    assert len(told) == len(set(told)) and set(told) == expected, 'README tells other verdicts than reports/: run `make readme`'


def test_readme_lists_the_papers(root):
    told = table((root/'README.md').read_text(encoding='utf-8'), 'name', 'paper')
    known = {f.stem: about(f) for f in (root/'nbs'/'reproduce').glob('*.ipynb') if about(f).paper}
    assert told == [(name, known[name].summary) for name in sorted(known, key=lambda n: (known[n].order, n))], 'run `make readme`'


def test_another_verdict_makes_another_table(root, tmp_path):
    "What is shown follows the files: a verdict that changes, a paper without results"
    shutil.copytree(root/'nbs'/'reproduce', tmp_path/'nbs'/'reproduce')
    folder = tmp_path/'reports'/'embedded'/'baseline'
    folder.mkdir(parents=True)
    claims = json.loads((root/'reports'/'embedded'/'baseline'/'claims.json').read_text())
    (folder/'claims.json').write_text(json.dumps([c | dict(verdict='does not hold') for c in claims]))
    rows = table(verdicts(tmp_path), 'paper', 'claim', 'verdict')
    assert {r[0] for r in rows} == {'baseline'} and {r[2] for r in rows} == {'✗ does not hold'}
    assert len(table(papers(tmp_path), 'name', 'paper')) == len([f for f in (root/'nbs'/'reproduce').glob('*.ipynb') if about(f).paper])


def test_readme_says_how_to_begin(root):
    text = (root/'README.md').read_text(encoding='utf-8')
    assert re.search(r'```sh\ngit clone .* && cd atr_nb\nmake reproduce\n```', text)
    assert '```python\nimport torch' in text


def links(text): return [l for l in re.findall(r'\]\(([^)\s]+)\)', text) if not re.match(r'[a-z]+:|#', l)]


def test_links_lead_somewhere(root):
    files = [root/'README.md', root/'CONTRIBUTING.md', root/'CHANGELOG.md']
    pages = {f: f.read_text(encoding='utf-8') for f in files}
    for f in (root/'nbs').rglob('*.ipynb'):
        if '.ipynb_checkpoints' not in f.parts: pages[f] = '\n'.join(c.source for c in nbformat.read(f, 4).cells if c.cell_type == 'markdown')
    broken = [f'{f.relative_to(root)}: {l}' for f, text in pages.items() for l in links(text) if not (f.parent/l.split('#')[0]).exists()]
    assert not broken


@pytest.fixture(scope='session')
def built(tmp_path_factory):
    "The site, written once: its folder and its pages"
    out = tmp_path_factory.mktemp('site')/'_docs'
    return out, site(ROOT, out)


def test_site(root, built):
    out, pages = built
    assert pages == [*house(root), *executed(root)] and pages[0].path == 'nbs/index.ipynb'
    html = {p: (out/p.html).read_text(encoding='utf-8') for p in pages}
    for page, text in html.items(): assert '<script src="http' not in text and not re.search(r'<span class="c1">#\| (export|echo)', text), page
    assert all(p.summary and f'>{p.title}</a>' in html[pages[0]] for p in house(root))
    assert 'verdicts(root)' not in html[pages[0]] and '<td>NT-Xent beats triplet-max</td>' in html[pages[0]]


def test_every_link_of_the_site_leads_somewhere(built):
    "Of all its pages, the report included: to a file, and to a place in it"
    out, _ = built
    text = {f: re.sub(r'<pre>.*?</pre>', '', f.read_text(encoding='utf-8'), flags=re.S) for f in out.rglob('*.html')}
    dead = []
    for file, html in text.items():
        for link in re.findall(r'<(?:a|img|audio|link)\b[^>]*(?:href|src)="([^"]+)"', html):
            if re.match(r'[a-z]+:', link): continue
            path, _, part = unquote(link).partition('#')
            target = (file.parent/path).resolve() if path else file
            if not target.is_file() or part and target in text and f'id="{part}"' not in text[target]: dead.append(f'{file.relative_to(out)}: {link}')
    assert not dead


def test_the_site_shows_what_was_run(root, built):
    "Each executed notebook is a page of the site, which leads back to the notebook that was run"
    out, pages = built
    ran = executed(root)
    assert {p.path for p in ran} == {f.relative_to(root).as_posix() for f in (root/'reports').glob('*/*/notebook.ipynb')}
    for page, source in ran.items():
        text = (out/page.html).read_text(encoding='utf-8')
        assert page in pages and '<nav>' in text and f'nbs/{source.html.removeprefix("nbs/")}">&larr;' in text
        assert 'data:image/png' in text


def test_site_takes_the_place_of_a_site_only(root, tmp_path):
    (tmp_path/'thesis.tex').touch()
    with pytest.raises(ValueError, match='holds something else than a site'): site(root, tmp_path)
    assert (tmp_path/'thesis.tex').exists()
