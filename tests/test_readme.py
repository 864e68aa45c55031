"""README.md is made from nbs/index.ipynb, its verdicts are those of the results,
and everything that the texts point to is there."""
import json
import re
import shutil

import nbformat

from atr_nb.notebooks import about
from atr_nb.pages import papers, readme, verdicts
from atr_nb.results.claims import SAYS, overall


def test_readme_is_current(root):
    assert (root/'README.md').read_text(encoding='utf-8') == readme(root), (
        'README.md is older than nbs/index.ipynb: run `make readme`')


def table(text, *header): # the rows of a Markdown table, without the links
    rows = text.split('| ' + ' | '.join(header) + ' |\n')[1].split('\n\n')[0].splitlines()[1:]
    return [tuple(re.sub(r'\[`([^]]+)`\]\([^)]*\)', r'\1', c.strip()) for c in re.split(r'(?<!\\)\|', row)[1:-1])
            for row in rows]


VERDICTS = 'paper', *SAYS.values()


def test_readme_tells_the_verdicts_of_the_results(root):
    "Every claim of every paper, under the verdict that its statements come to, and nothing else"
    expected = set()
    for notebook in (root/'nbs'/'reproduce').glob('*.ipynb'):
        file, statements = root/'reports'/'embedded'/notebook.stem/'claims.json', {}
        for c in json.loads(file.read_text(encoding='utf-8')) if file.exists() else []:
            statements.setdefault(c['claim'], []).append(c['verdict'])
        expected |= {(notebook.stem, claim, SAYS[overall(each)]) for claim, each in statements.items()}
    rows = table((root/'README.md').read_text(encoding='utf-8'), *VERDICTS)
    told = [(paper, re.sub(r' \([+−][\d.]+\)$', '', claim), verdict) for paper, *cells in rows
            for verdict, cell in zip(SAYS.values(), cells) for claim in filter(None, cell.split('; '))]
    assert len(told) == len(set(told)) and set(told) == expected, (
        'README tells other verdicts than reports/: run `make readme`')


def test_readme_lists_the_papers(root):
    told = table((root/'README.md').read_text(encoding='utf-8'), 'name', 'paper')
    known = {f.stem: about(f) for f in (root/'nbs'/'reproduce').glob('*.ipynb') if about(f).paper}
    assert told == [(name, known[name].summary) for name in sorted(known, key=lambda n: (known[n].order, n))], (
        'run `make readme`')


def test_another_verdict_makes_another_table(root, tmp_path):
    "What is shown follows the files: a verdict that changes, a paper without results"
    shutil.copytree(root/'nbs'/'reproduce', tmp_path/'nbs'/'reproduce')
    folder = tmp_path/'reports'/'embedded'/'baseline'
    folder.mkdir(parents=True)
    claims = json.loads((root/'reports'/'embedded'/'baseline'/'claims.json').read_text())
    (folder/'claims.json').write_text(json.dumps([c | dict(verdict='does not hold') for c in claims]))
    (name, *cells), = table(verdicts(tmp_path), *VERDICTS)
    assert name == 'baseline' and [bool(cell) for cell in cells] == [
        verdict == '✗ does not hold' for verdict in SAYS.values()]
    assert len(table(papers(tmp_path), 'name', 'paper')) == len(
        [f for f in (root/'nbs'/'reproduce').glob('*.ipynb') if about(f).paper])


def test_readme_says_how_to_begin(root):
    text = (root/'README.md').read_text(encoding='utf-8')
    assert re.search(r'```sh\ngit clone .* && cd atr_nb\nmake reproduce PROFILE=smoke PAPERS=baseline\n```', text)
    assert '```python\nimport torch' in text


def links(text): return [l for l in re.findall(r'\]\(([^)\s]+)\)', text) if not re.match(r'[a-z]+:|#', l)]


def test_links_lead_somewhere(root):
    files = [root/'README.md', root/'CONTRIBUTING.md', root/'CHANGELOG.md']
    pages = {f: f.read_text(encoding='utf-8') for f in files}
    for f in (root/'nbs').rglob('*.ipynb'):
        if '.ipynb_checkpoints' not in f.parts:
            pages[f] = '\n'.join(c.source for c in nbformat.read(f, 4).cells if c.cell_type == 'markdown')
    broken = [f'{f.relative_to(root)}: {l}' for f, text in pages.items() for l in links(text)
              if not (f.parent/l.split('#')[0]).exists()]
    assert not broken


def test_the_citation_names_version_and_papers(root):
    import yaml # comes with papermill
    from atr_nb import __version__
    cited = yaml.safe_load((root/'CITATION.cff').read_text(encoding='utf-8'))
    told = [summary for _, summary in table((root/'README.md').read_text(encoding='utf-8'), 'name', 'paper')]
    assert str(cited['version']) == __version__ and cited['license'] == 'Apache-2.0'
    assert len(cited['references']) == len(told)
    for reference, summary in zip(cited['references'], told):
        assert reference['title'] in summary and reference['conference']['name'] in summary
        assert all(author.get('family-names', '') in summary for author in reference['authors'])
