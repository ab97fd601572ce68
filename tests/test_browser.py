"The plain pages as a browser shows them: nothing wider than the window, no picture missing, no error in the console."
import fcntl
import json
import os
import select
import shutil
import subprocess
import time

import pytest
from conftest import TOP

from distilherbert import site

PROGRAMS = ('chromium', 'chromium-browser', 'google-chrome')
PROGRAM = next(filter(None, map(shutil.which, PROGRAMS)), None)
WIDTHS = (1280, 390)  # a desk and a phone [CSS pixels]
MEASURE = '''(async () => {
  const pictures = [...document.images];
  for (const i of pictures) i.loading = 'eager';
  await Promise.all(pictures.map(i => i.complete || new Promise(done => i.onload = i.onerror = done)));
  const hidden = '.tabs .pane { display: block !important } .switch ~ .chapters { display: block !important }';
  if (UNFOLD) {
    for (const d of document.querySelectorAll('details')) d.open = true;
    document.head.append(Object.assign(document.createElement('style'), {textContent: hidden}));
  }
  const scrolls = e => e && (['auto', 'scroll', 'hidden'].includes(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
  const far = [...document.body.querySelectorAll('*')].filter(e => e.getBoundingClientRect().right > WIDTH + 1 && !scrolls(e.parentElement));
  return {width: document.documentElement.scrollWidth, far: far.slice(0, 3).map(e => e.outerHTML.slice(0, 120)),
          missing: pictures.filter(i => !i.naturalWidth).map(i => i.getAttribute('src')),
          silent: pictures.filter(i => !i.alt.trim()).map(i => i.getAttribute('src'))};
})()'''

CONTRAST = '''(() => {
  const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= 0.03928 ? v/12.92 : ((v + 0.055)/1.055)**2.4); return 0.2126*r + 0.7152*g + 0.0722*b };
  const colour = s => s.match(/[\\d.]+/g).map(Number);
  const behind = e => { const c = e ? colour(getComputedStyle(e).backgroundColor) : [255, 255, 255]; return c.length < 4 || c[3] ? c.slice(0, 3) : behind(e.parentElement) };
  const says = e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  const found = {};
  for (const e of document.body.querySelectorAll('*')) {
    if (!says(e) || e.closest('math, script, style')) continue;
    const [low, high] = [colour(getComputedStyle(e).color).slice(0, 3), behind(e)].map(light).sort((a, b) => a - b), ratio = (high + 0.05)/(low + 0.05);
    if (ratio < 4.5) found[`${e.tagName}.${e.className}`] = ratio.toFixed(2);
  }
  return found;
})()'''

pytestmark = pytest.mark.skipif(PROGRAM is None, reason=f'none of {", ".join(PROGRAMS)} is on the PATH')


class Browser:
    "A headless Chromium with one open page, spoken to through a pair of pipes: the DevTools protocol without a socket."
    def __init__(self, folder):
        commands, self.write = os.pipe()
        self.read, answers = os.pipe()
        ends = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (commands, answers)]
        def ends_to_3_and_4():
            for fd, at in zip(ends, (3, 4), strict=True): os.dup2(fd, at)
        flags = ('--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--hide-scrollbars', '--no-first-run',
                 '--disable-extensions', '--disable-background-networking', '--disable-component-update', '--remote-debugging-pipe')
        with (folder/'browser.log').open('w') as log:
            self.process = subprocess.Popen([PROGRAM, *flags, f'--user-data-dir={folder/"profile"}', 'about:blank'], pass_fds=(3, 4),
                                            preexec_fn=ends_to_3_and_4, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        for fd in (commands, answers, *ends): os.close(fd)
        self.buffer, self.number, self.events, self.session = b'', 0, [], None
        page = self.call('Target.createTarget', url='about:blank')['targetId']
        self.session = self.call('Target.attachToTarget', targetId=page, flatten=True)['sessionId']
        for domain in ('Page', 'Runtime', 'Log'): self.call(f'{domain}.enable')

    def receive(self, until):
        "The next message."
        while b'\0' not in self.buffer:
            left = until - time.monotonic()
            if left <= 0 or not select.select([self.read], [], [], left)[0]: raise TimeoutError('the browser does not answer')
            part = os.read(self.read, 1 << 20)
            if not part: raise EOFError(f'the browser has ended with code {self.process.wait()}')
            self.buffer += part
        message, _, self.buffer = self.buffer.partition(b'\0')
        return json.loads(message)

    def call(self, method, seconds=20, **params):
        "Ask for something and wait for the answer; what happens meanwhile is kept in `events`."
        self.number += 1
        message = {'id': self.number, 'method': method, 'params': params} | ({'sessionId': self.session} if self.session else {})
        os.write(self.write, json.dumps(message).encode() + b'\0')
        until = time.monotonic() + seconds
        while (got := self.receive(until)).get('id') != self.number: self.events.append(got)
        if 'error' in got: raise RuntimeError(f'{method}: {got["error"]["message"]}')
        return got['result']

    def await_event(self, method, seconds=20):
        "Wait until something has happened."
        until = time.monotonic() + seconds
        while not any(e.get('method') == method for e in self.events): self.events.append(self.receive(until))

    def evaluate(self, script):
        "The value of a script in the page."
        got = self.call('Runtime.evaluate', expression=script, awaitPromise=True, returnByValue=True)
        assert 'exceptionDetails' not in got, got['exceptionDetails']
        return got['result'].get('value')

    def size(self, width):
        "Make the window as wide as a desk's or a phone's."
        self.call('Emulation.setDeviceMetricsOverride', width=width, height=844, deviceScaleFactor=1, mobile=width < 600)

    def open(self, page, width):
        "Show a page."
        self.events = []
        self.size(width)
        self.call('Page.navigate', url=page.as_uri())
        self.await_event('Page.loadEventFired')

    def errors(self):
        "What the page has complained about since it was opened."
        found = []
        for e in self.events:
            p = e.get('params', {})
            if e.get('method') == 'Runtime.exceptionThrown': found.append(p['exceptionDetails'].get('exception', p['exceptionDetails']).get('description'))
            if e.get('method') == 'Runtime.consoleAPICalled' and p['type'] in ('error', 'assert'): found.append(str(p['args'][:1]))
            if e.get('method') == 'Log.entryAdded' and p['entry']['level'] == 'error': found.append(f'{p["entry"]["text"]} {p["entry"].get("url", "")}')
        return found

    def close(self):
        "End the browser, all of its processes."
        try: self.call('Browser.close')
        except (EOFError, BrokenPipeError): pass  # it may be gone before it answers
        try: self.process.wait(10)
        finally:
            self.process.kill()
            for fd in (self.read, self.write): os.close(fd)


def look(browser, page):
    "What is wrong with a page: at a desk, in a window made as narrow as a phone's, and there with all that is folded opened."
    browser.open(page, WIDTHS[0])
    wrong = []
    for width, unfold in ((WIDTHS[0], False), (WIDTHS[1], False), (WIDTHS[1], True)):
        browser.size(width)
        seen = browser.evaluate(MEASURE.replace('WIDTH', str(width)).replace('UNFOLD', json.dumps(unfold)))
        if seen['width'] > width + 1: wrong.append(f'{seen["width"]} pixels wide in a window of {width}: {seen["far"]}')
        wrong += [f'no picture {x}' for x in seen['missing']] + [f'no words for {x}' for x in seen['silent']]
    return list(dict.fromkeys(wrong + [f'error: {x}' for x in browser.errors()]))


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    found = Browser(tmp_path_factory.mktemp('browser'))
    yield found
    found.close()


@pytest.fixture(scope='module')
def pages(tmp_path_factory):
    out = tmp_path_factory.mktemp('pages')
    site.write_site(site.load_site(), out, TOP/'results')
    return out


def test_every_page_fits_a_desk_and_a_phone(browser, pages):
    wrong = {p.name: found for p in sorted(pages.glob('*.html')) if (found := look(browser, p))}
    assert not wrong, json.dumps(wrong, indent=1, ensure_ascii=False)


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_text_stands_out_from_what_is_behind_it(browser, pages, scheme):
    "At least 4.5 to 1, as WCAG asks of small text."
    browser.call('Emulation.setEmulatedMedia', features=[{'name': 'prefers-color-scheme', 'value': scheme}])
    paper = []
    for page in ('index', '07_report', '12_site', '21_guide_language', 'api_site'):
        browser.open(pages/f'{page}.html', 1280)
        assert browser.evaluate(CONTRAST) == {}, page
        paper.append(browser.evaluate('getComputedStyle(document.body).backgroundColor'))
    assert set(paper) == {'rgb(255, 255, 255)' if scheme == 'light' else 'rgb(20, 24, 29)'}
    browser.evaluate("document.querySelector('main p').style.color = '#777'")
    assert list(browser.evaluate(CONTRAST)), 'grey on grey is found'


BAD = {
    'too wide': '<p style="width: 500px">A line that no phone can show.</p>',
    'too wide when opened': '<details><summary>More</summary><p style="width: 500px">Folded away.</p></details>',
    'no such picture': '<img src="absent.png" alt="Nothing">',
    'a picture without words': '<img src="data:image/svg+xml,%3Csvg xmlns=\'http://www.w3.org/2000/svg\' width=\'9\' height=\'9\'/%3E">',
    'an error of a script': '<script>undefinedFunction()</script>',
    'an error said': '<script>console.error("out of order")</script>',
}


@pytest.mark.parametrize(('body', 'said'), [
    (BAD['too wide'], ['in a window of 390']), (BAD['too wide when opened'], ['in a window of 390']),
    (BAD['no such picture'], ['no picture absent.png', 'ERR_FILE_NOT_FOUND']), (BAD['a picture without words'], ['no words for data:image']),
    (BAD['an error of a script'], ['undefinedFunction is not defined']), (BAD['an error said'], ['out of order']), ('<p>Short.</p>', [])],
    ids=[*BAD, 'nothing wrong'])
def test_what_is_wrong_with_a_page_is_found(browser, tmp_path, body, said):
    page = tmp_path/'page.html'
    page.write_text(f'<!DOCTYPE html><html lang="en"><meta name="viewport" content="width=device-width, initial-scale=1"><title>T</title>{body}</html>', 'utf-8')
    found = look(browser, page)
    assert len(found) >= len(said) and bool(found) == bool(said), found
    for words in said: assert any(words in x for x in found), found


def test_search_finds_a_section_and_leads_there(browser, pages):
    browser.open(pages/'index.html', 1280)
    browser.evaluate('''(() => { const box = document.querySelector('.search input');
        box.value = 'whole words'; box.dispatchEvent(new Event('input')); })()''')
    found = browser.evaluate("[...document.querySelectorAll('.found a')].map(a => a.getAttribute('href'))")
    assert found and any(x.startswith('04_objective.html') for x in found), found
    assert all((pages/x.partition('#')[0]).is_file() for x in found)


def test_tabs_of_a_group_change_together(browser, pages):
    browser.open(pages/'07_report.html', 1280)
    shown = "[...document.querySelectorAll('.tabs[data-group=profile]')].map(t => [...t.querySelectorAll('.pane')].filter(p => p.offsetHeight).length)"
    chosen = "[...new Set([...document.querySelectorAll('.tabs[data-group=profile] input:checked')].map(i => i.parentNode.dataset.tab))]"
    before = browser.evaluate(chosen)
    assert len(before) == 1 and set(browser.evaluate(shown)) == {1}
    browser.evaluate("[...document.querySelectorAll('.tabs[data-group=profile] .tab')].find(t => t.dataset.tab === 'mini').click()")
    assert browser.evaluate(chosen) == ['mini'] != before and set(browser.evaluate(shown)) == {1}


def test_a_link_to_a_function_unfolds_it(browser, pages):
    browser.open(pages/'api_clean.html', 390)
    opened = "document.getElementById('api-clean_text').closest('details').open"
    assert not browser.evaluate(opened)
    assert browser.evaluate(f"(location.hash = '#api-clean_text', new Promise(f => setTimeout(() => f({opened}), 200)))")


def test_the_list_of_chapters_opens_on_a_phone(browser, pages):
    browser.open(pages/'index.html', 390)
    height = "document.querySelector('nav.chapters').offsetHeight"
    assert browser.evaluate(height) == 0
    browser.evaluate("document.querySelector('label.menu').click()")
    assert browser.evaluate(height) > 100 and not browser.errors()
