"The site that `make docs` writes: links lead somewhere, nothing is loaded, code can be read. Skipped without Sphinx."
import re
import runpy
import shutil
import subprocess
import sys
from urllib.parse import unquote

import pytest
from atr_nb._modidx import d
from conftest import ROOT
from test_browser import CHROMIUM, SIDEWAYS, Browser

for name in ('sphinx', 'myst_nb', 'furo', 'sphinx_copybutton'): pytest.importorskip(name)
PARTS = 'nbs docs reports LICENSE CITATION.cff settings.ini CONTRIBUTING.md CHANGELOG.md CREDITS.md'.split()
API = 'docs/api/methods.mgrl.html'


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The folder of the site, made once from a copy of the repository; a warning is an error"
    top = tmp_path_factory.mktemp('site')
    for part in PARTS:
        if (ROOT/part).is_dir(): shutil.copytree(ROOT/part, top/'atr'/part)
        else: shutil.copy(ROOT/part, top/'atr')
    command = '-m sphinx --quiet --fail-on-warning --keep-going --jobs auto -c docs -d ../doctrees . ../html'.split()
    run = subprocess.run([sys.executable, *command], cwd=top/'atr', capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return top/'html'


@pytest.fixture(scope='module')
def pages(site):
    "Path in the site -> HTML, without what stands in code"
    files = {f.relative_to(site).as_posix(): f.read_text(encoding='utf-8') for f in site.rglob('*.html')}
    return {path: re.sub(r'(?s)<pre>.*?</pre>', '', html) for path, html in files.items()}


def test_every_notebook_is_a_page(site, pages):
    for file in (ROOT/'nbs').rglob('*.ipynb'):
        if '.ipynb_checkpoints' in file.parts: continue
        path = file.relative_to(ROOT).with_suffix('.html').as_posix()
        whole = (site/path).read_text(encoding='utf-8')
        assert 'name="q"' in pages[path], 'no search box'
        assert not re.search(r'<span class="c1">#\| *(export|hide|echo|default_exp)\b', whole), path
        assert f'href="{path.removeprefix("nbs/")}"' in pages['nbs/index.html'] or file.stem == 'index', path


def test_every_link_leads_somewhere(site, pages):
    "To a file, and to a place in it; the report included"
    dead = []
    for path, html in pages.items():
        for link in re.findall(r'<(?:a|img|audio|link|script)\b[^>]*?\s(?:href|src)="([^"]+)"', html):
            if re.match(r'[a-z]+:', link): continue
            file, _, part = unquote(link).partition('#')
            file = file.partition('?')[0]
            target = ((site/path).parent/file).resolve() if file else site/path
            place = target.relative_to(site).as_posix() if target.is_relative_to(site) else ''
            found = target.is_file() and (not part or place not in pages or f'id="{part}"' in pages[place])
            if not found: dead.append(f'{path}: {link}')
    assert not dead


def test_nothing_is_loaded_from_the_network(pages):
    for path, html in pages.items():
        tags = re.findall(r'<(?:script|img|audio|source|iframe|link)\b[^>]*>', html)
        assert not [tag for tag in tags if re.search(r'\s(src|href)="(https?:)?//', tag)], path


def test_every_public_symbol_has_its_place(pages):
    "With its parameters, and what the comments in the code say of them"
    for module, symbols in d['syms'].items():
        shown = [s for s in symbols if not any(part.startswith('_') for part in s.split('.'))]
        page = pages[f'docs/api/{module.removeprefix("atr_nb.")}.html'] if shown else ''
        assert not [s for s in shown if f'id="{s}"' not in page], module
    ranks = pages['docs/api/evaluation.metrics.html']
    assert 'Parameters' in ranks and re.search(r'<strong>clip_of_caption</strong> \(<[^>]*>.*?Tensor.*?– ', ranks)


def leads(html, code): # where a piece of code in prose leads
    return re.findall(rf'href="([^"]*)"[^>]*><code[^>]*><span class="pre">{re.escape(code)}</span></code></a>', html)


def test_code_in_prose_leads_to_its_symbol(pages):
    assert set(leads(pages['nbs/reproduce/mgrl.html'], 'methods/62_mgrl')) == {'../methods/62_mgrl.html'}
    assert 'docs/api/model.html#atr_nb.model.RetrievalModel' in leads(pages['CONTRIBUTING.html'], 'RetrievalModel')
    assert set(leads(pages[API], 'Precomputed')) == {'model.html#atr_nb.model.Precomputed'}
    assert 'alignment.tokens.html#atr_nb.alignment.tokens.GRAINS' in leads(pages[API], 'GRAINS') # a constant
    assert 'href="model.html#atr_nb.model.Encoder"' in pages[API] # the type of a parameter
    assert not leads(pages['CONTRIBUTING.html'], 'baseline') # a word of every day


def test_results_stand_where_the_notebook_was_run(site):
    for folder in (ROOT/'reports'/'embedded').glob('*/notebook.ipynb'):
        rooms = [site/'nbs'/room/f'{folder.parent.name}.html' for room in ('reproduce', 'guides')]
        page = next(p for p in rooms if p.exists()).read_text(encoding='utf-8')
        assert 'class="output' in page and '<table' in page, folder
    assert 'reproduce/mgrl.html' in (site/'nbs'/'index.html').read_text(encoding='utf-8')


def test_formulas_need_no_script(pages):
    shown = ''.join(html for path, html in pages.items() if not path.startswith('reports/'))
    assert shown.count('<math') > 300 and not re.search('<script[^>]*mathjax', shown.lower())
    assert not re.search(r'<div class="math">\s*<code>', shown) # what could not be converted


def luminance(colour):
    parts = [int(colour[i:i + 2], 16)/255 for i in (1, 3, 5)]
    linear = [p/12.92 if p <= .04045 else ((p + .055)/1.055)**2.4 for p in parts]
    return sum(w*p for w, p in zip((.2126, .7152, .0722), linear))


def contrast(one, other):
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + .05)/(dark + .05)


@pytest.mark.parametrize('style, scheme', [('pygments_style', 'light'), ('pygments_dark_style', 'dark')])
def test_code_can_be_read(style, scheme):
    "Each colour of code against its ground has a contrast of 4.5 to 1 at least (WCAG AA)"
    from pygments.styles import get_style_by_name
    assert contrast('#000000', '#ffffff') == pytest.approx(21)
    conf = runpy.run_path(str(ROOT/'docs'/'conf.py'))
    ground = conf['html_theme_options'][f'{scheme}_css_variables']['color-code-background']
    colours = {t['color'] for _, t in get_style_by_name(conf[style]) if t['color']}
    assert len(colours) > 3 and min(contrast(f'#{c}', ground) for c in colours) >= 4.5


# In a browser

@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    if not CHROMIUM: pytest.skip('no Chromium is installed')
    opened = Browser(tmp_path_factory.mktemp('chromium'))
    yield opened
    opened.process.terminate()
    opened.process.wait(30)


COLOURS = '''[...document.querySelectorAll(".cell_input .highlight span")].map(e =>
  [getComputedStyle(e).color, getComputedStyle(e.closest(".highlight")).backgroundColor].join(";"))'''


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('page', ['nbs/index.html', 'nbs/methods/62_mgrl.html', 'nbs/reproduce/mgrl.html', API])
def test_on_a_phone(browser, site, page, scheme):
    "The first screen begins with the title and goes on to text, nothing is wider than it, code can be read"
    browser.open(site/page, 390, 844, scheme)
    assert browser.js(SIDEWAYS) == 0
    assert browser.js('document.querySelector("h1").getBoundingClientRect().top') < 150
    assert browser.js('document.querySelector("article p").getBoundingClientRect().bottom') < 844
    pairs = set(browser.js(COLOURS))
    for pair in pairs:
        ink, ground = ('#%02x%02x%02x' % tuple(map(int, re.findall(r'\d+', c)[:3])) for c in pair.split(';'))
        assert contrast(ink, ground) >= 4.5, pair
    assert pairs or page == API


def test_search_needs_no_server(browser, site):
    browser.open(site/'nbs'/'index.html', 1400, 900)
    form = 'document.querySelector("form.sidebar-search-container")'
    assert browser.js(f'{form}.method') == 'get' and browser.js(f'!!{form}.elements.q') # so this is what Enter does:
    browser.ask('Page.navigate', url=browser.js(f'{form}.action') + '?q=TwoTower')
    browser.wait('document.querySelectorAll("#search-results li a").length > 3')
    assert 'encoders.tower' in browser.js('document.querySelector("#search-results li a").getAttribute("href")')


def test_copy_buttons(browser, site):
    browser.open(site/'nbs'/'index.html', 1400, 900)
    browser.wait('document.querySelectorAll("button.copybtn").length > 2')
