"README.md is made from nbs/index.ipynb, and everything it points to is there."
import re
from pathlib import Path

import nbformat
import pytest

from atr_nb.pages import house, readme, site


def test_readme_is_current(root):
    assert (root/'README.md').read_text(encoding='utf-8') == readme(root), 'README.md is older than nbs/index.ipynb: run `make readme`'


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


def test_site(root, tmp_path):
    pages = site(root, tmp_path/'_docs')
    assert [p.path for p in pages] == [p.path for p in house(root/'nbs')] and pages[0].path == 'index.ipynb'
    html = {f: f.read_text(encoding='utf-8') for f in (tmp_path/'_docs').rglob('nbs/**/*.html')}
    assert len(html) == len(pages)
    for f, text in html.items():
        hrefs = [l for l in re.findall(r'<a [^>]*href="([^"#]+)', re.sub(r'<pre>.*?</pre>', '', text, flags=re.S)) if ':' not in l]
        if dead := [l for l in hrefs if not (f.parent/l).exists() and 'reports/' not in l]: raise AssertionError(f'{f.name}: {dead}')
        assert '<script src="http' not in text and not re.search(r'<span class="c1">#\| export', text)
    front = html[tmp_path/'_docs'/'nbs'/'index.html']
    assert all(p.summary and f'>{p.title}</a>' in front for p in pages)


def test_site_takes_the_place_of_a_site_only(root, tmp_path):
    (tmp_path/'thesis.tex').touch()
    with pytest.raises(ValueError, match='holds something else than a site'): site(root, tmp_path)
    assert (tmp_path/'thesis.tex').exists()
