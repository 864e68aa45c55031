"""The report in a real browser: what the first screen shows, where a click leads.
Skipped where no Chromium is installed."""
import json
import shutil
import subprocess
import time
from pathlib import Path
from urllib.request import urlopen
import pytest
from atr_nb.results import report
from conftest import ROOT

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason='no Chromium is installed')
FLAGS = ('--headless=new --no-sandbox --disable-gpu --hide-scrollbars --mute-audio --no-first-run --disable-sync '
         '--disable-background-networking --disable-component-update --remote-allow-origins=* '
         '--remote-debugging-port=0')


class Browser:
    "A tab of a headless Chromium, driven over its debugging protocol."
    def __init__(self, folder):
        websocket = pytest.importorskip('websocket') # comes with jupyterlab
        self.process = subprocess.Popen([CHROMIUM, *FLAGS.split(), f'--user-data-dir={folder}', 'about:blank'],
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        tab = next(t for t in json.load(urlopen(f'http://127.0.0.1:{self._port(folder)}/json')) if t['type'] == 'page')
        self.socket, self.asked = websocket.create_connection(tab['webSocketDebuggerUrl'], timeout=60), 0

    def _port(self, folder):
        file = Path(folder)/'DevToolsActivePort'
        for _ in range(600):
            if file.exists() and file.read_text().count('\n'): return file.read_text().split()[0]
            time.sleep(.1)
        self.process.kill()
        pytest.skip('Chromium did not start')

    def ask(self, method, **given):
        self.asked += 1
        self.socket.send(json.dumps(dict(id=self.asked, method=method, params=given)))
        while (answer := json.loads(self.socket.recv())).get('id') != self.asked: pass
        assert 'error' not in answer, answer
        return answer['result']

    def js(self, expression):
        "What an expression of JavaScript gives in the page; a promise is waited for."
        result = self.ask('Runtime.evaluate', expression=expression, returnByValue=True, awaitPromise=True)
        assert 'exceptionDetails' not in result, result
        return result['result'].get('value')

    def wait(self, expression):
        "Until an expression is true."
        for _ in range(300):
            if self.js(expression): return
            time.sleep(.1)
        raise AssertionError(f'never came true: {expression}')

    def open(self, page, width, height, scheme='light'):
        media = [dict(name='prefers-color-scheme', value=scheme), dict(name='prefers-reduced-motion', value='reduce')]
        self.ask('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1,
                 mobile=width < 500)
        self.ask('Emulation.setEmulatedMedia', features=media)
        self.ask('Page.navigate', url='about:blank')
        self.ask('Page.navigate', url=page.as_uri())
        self.wait('document.readyState == "complete" && !!document.querySelector("main, [role=main]")')

    def click(self, element, dx=None):
        "A real click on the middle of what an expression of JavaScript names, or `dx` pixels from its left."
        self.js(f'{element}.scrollIntoView({{block: "center"}})')
        box = self.js(f'{element}.getBoundingClientRect().toJSON()')
        x, y = box['x'] + (box['width'] / 2 if dx is None else dx), box['y'] + box['height'] / 2
        for kind in ('mousePressed', 'mouseReleased'):
            self.ask('Input.dispatchMouseEvent', type=kind, x=x, y=y, button='left', clickCount=1)


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    "The report of this project; one of its papers was also run under a second profile."
    out = tmp_path_factory.mktemp('browser')/'reports'
    parts = shutil.ignore_patterns('notebook.html', 'ranks.npz')
    shutil.copytree(ROOT/'reports'/'embedded', out/'embedded', ignore=parts) # and no profile that was run here besides
    shutil.copytree(out/'embedded'/'baseline', out/'audiocaps'/'baseline')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, '_write_page', lambda folder: [])
        return report.render(out)


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp('chromium'))
    yield opened
    opened.process.terminate()
    opened.process.wait(30)


SIDEWAYS = 'document.documentElement.scrollWidth - document.documentElement.clientWidth'
SEEN = ('[...document.querySelectorAll(".matrix li a")].filter(a => {\n'
        '  const parts = [a.querySelector(".name"), a.querySelector("strong"), a.querySelector(".ci")]'
        '.map(e => e.getBoundingClientRect());\n'
        '  return parts.every(r => r.width > 0 && r.left >= 0 && r.right <= innerWidth'
        ' && r.top >= 0 && r.bottom <= innerHeight);\n'
        '}).length')


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('width, height, least', [(1400, 900, 1.), (800, 900, .5), (390, 844, .5)])
def test_the_first_screen_says_what_was_claimed_and_what_came_out(browser, page, width, height, least, scheme):
    "Name, verdict, effect and interval of every claim on a desk, of most on a phone, where the rest follow at once"
    browser.open(page, width, height, scheme)
    claims = browser.js('document.querySelectorAll(".matrix li a").length')
    assert claims >= 30 and browser.js(SEEN) >= least * claims
    assert browser.js(SIDEWAYS) == 0
    assert browser.js('document.querySelector(".matrix").getBoundingClientRect().bottom') < 1.5 * height
    tally = ('[...document.querySelectorAll(".tally li")].filter('
             'e => e.offsetHeight && e.getBoundingClientRect().bottom < innerHeight).length')
    papers = browser.js('document.querySelectorAll(".matrix section").length')
    assert papers >= 6 and browser.js(tally) == (papers if width < 500 else 0)
    # no picture or sound before it is asked for
    assert browser.js('performance.getEntriesByType("resource").length') == 0


def test_the_page_is_light(page):
    assert page.stat().st_size < 5e5


@pytest.mark.parametrize('width', [1400, 390])
def test_links_lead_to_their_claims(browser, page, width):
    browser.open(page, width, 844)
    links = 'document.querySelectorAll(".matrix li a")'
    for k in (0, browser.js(f'{links}.length') - 1):
        name = browser.js(f'{links}[{k}].querySelector(".name").textContent')
        browser.click(f'{links}[{k}]')
        browser.wait(f'location.hash == {links}[{k}].hash')
        heading = browser.js('document.querySelector(":target h3").textContent.trim()')
        top = browser.js('document.querySelector(":target").getBoundingClientRect().top')
        assert heading == name and 0 <= top < 844 / 2


@pytest.mark.parametrize('width', [1400, 800, 390])
def test_strips_are_wide_and_have_numbers(browser, page, width):
    browser.open(page, width, 844)
    widths = browser.js('[...document.querySelectorAll(".claim td.strip > svg:not(.axis)")]'
                        '.map(s => s.getBoundingClientRect().width)')
    numbers = browser.js('[...document.querySelectorAll(".claim .axis")].map(a => a.querySelectorAll("text").length)')
    assert len(widths) > 90 and min(widths) > 240 and min(numbers) >= 2
    assert browser.js('[...document.querySelectorAll(".claim .verdict")].every(v => '
                      'v.getBoundingClientRect().right <= v.closest(".claim").getBoundingClientRect().right)')


def test_profiles_stand_side_by_side(browser, page):
    tops = ('JSON.stringify([...document.querySelectorAll("#baseline-claim-1 .comparisons")]'
            '.map(e => e.getBoundingClientRect().top))')
    browser.open(page, 1400, 844)
    left, right = json.loads(browser.js(tops))
    assert left == right
    browser.open(page, 390, 844)
    first, second = json.loads(browser.js(tops))
    assert first < second and browser.js(SIDEWAYS) == 0


@pytest.mark.parametrize('width', [1400, 390])
def test_folded_parts_open(browser, page, width):
    "All of them, one after another; nothing that comes out is wider than the page"
    browser.open(page, width, 844)
    parts = browser.js('document.querySelectorAll("details").length')
    assert parts > 15 and browser.js('document.querySelectorAll("details[open]").length') == 0
    browser.click('document.querySelectorAll(".fold > summary")[0]')
    browser.wait('document.querySelectorAll("details[open]").length == 1')
    assert browser.js('document.querySelector("details[open] table").getBoundingClientRect().height') > 100
    browser.js('document.querySelectorAll("details").forEach(d => d.open = true)')
    assert browser.js(SIDEWAYS) == 0
    browser.js('document.querySelectorAll("img").forEach(i => i.loading = "eager")')
    browser.wait('[...document.querySelectorAll("img")].every(i => i.complete)')
    assert browser.js('[...document.querySelectorAll("img")].every(i => i.naturalWidth > 0 && i.alt)')


def test_players_play_one_at_a_time(browser, page):
    browser.open(page, 1400, 844)
    listen = '[...document.querySelectorAll("summary")].find(s => s.textContent.startsWith("Listen"))'
    players = f'{listen}.parentElement.querySelectorAll("audio")'
    browser.click(listen)
    browser.wait(f'{players}[0].getBoundingClientRect().height > 20')
    for k in (0, 1):
        browser.click(f'{players}[{k}]', dx=22) # where its button is
        browser.wait(f'!{players}[{k}].paused && {players}[{k}].currentTime > 0')
    assert browser.js(f'{players}[0].paused')
