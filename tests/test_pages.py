"The site: every reference resolves, nothing is loaded from elsewhere, the checkout stays as it is, and pages fit a desk and a phone."
import configparser
import hashlib
import json
import re
import shutil
import subprocess

import pages
import pandas as pd
import pytest
import yaml
from bs4 import BeautifulSoup
from conftest import NOTEBOOKS, TOP
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from distilherbert.results import read_records

NBS = TOP/'nbs'
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
QUARTO = shutil.which('quarto')


def checksums():
    files = [TOP/'README.md', *NBS.rglob('*'), *(TOP/'results').rglob('*'), *(TOP/'distilherbert').glob('*.py')]
    return {f: hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.is_file()}


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The whole site from the stored outputs, by pandoc."
    out, before = tmp_path_factory.mktemp('site')/'docs', checksums()
    with pytest.MonkeyPatch.context() as m:
        m.setattr(pages.shutil, 'which', lambda *args, **kw: None)
        pages.write_site(out, executed=False)
    assert checksums() == before, 'the checkout stays as it is'
    return out


def soup_of(site, page): return BeautifulSoup((site/f'{page}.html').read_text('utf-8'), 'html.parser')


def test_quarto_finds_one_configuration():
    assert (NBS/'_quarto.yml').is_symlink() and (NBS/'_quarto.yml').resolve() == TOP/'_quarto.yml'
    config = yaml.safe_load((TOP/'_quarto.yml').read_text('utf-8'))
    html = config['format']['html']
    named = [*config['metadata-files'], config['bibliography'], html['css'], html['theme']['dark'][-1]]
    assert not [x for x in named if not (NBS/x).is_file()]
    ini = configparser.ConfigParser(delimiters=['='], interpolation=None)
    ini.read(TOP/'settings.ini')
    cfg, part = ini['DEFAULT'], yaml.safe_load((NBS/'nbdev.yml').read_text('utf-8'))
    assert part['website'] == {'title': cfg['title'], 'site-url': cfg['doc_host'] + cfg['doc_baseurl'], 'description': cfg['description'],
                               'repo-branch': cfg['branch'], 'repo-url': cfg['git_url']}, 'what nbdev would write'
    assert part['project'] == {'output-dir': cfg['doc_path']}


def test_every_notebook_is_a_page_in_the_sidebar_with_its_code_formulas_and_figures(site):
    def flat(items): return [f for i in items for f in (flat(i['contents']) if isinstance(i, dict) else [i])]
    listed = flat(yaml.safe_load((NBS/'sidebar.yml').read_text('utf-8'))['website']['sidebar']['contents'])
    assert sorted(listed) == sorted(f.name for f in NOTEBOOKS)
    assert {f.name for f in site.glob('*.html')} == {pages.page_name(f.name) for f in NOTEBOOKS}
    code = '\n'.join(e.get_text() for e in soup_of(site, 'distill').find_all('pre'))
    assert 'def train(' in code and 'default_exp' not in code and not re.search(r'^#\||^from dataclasses import', code, re.M)
    assert soup_of(site, 'index').find('img') and soup_of(site, 'objective').find('math')


def test_records_and_report_can_be_taken_along(site):
    scores, records = (pd.read_csv(site/f'{name}.csv') for name in ('scores', 'records'))
    s4 = scores.query('profile == "real" and model == "S4" and selection == "heldout" and task == "nkjp-ner"').iloc[0]
    record = read_records('real')['klej-S4']['values'][s4.task]['selections']['heldout']
    assert (s4['mean'], s4['seed 1']) == (record['mean'], record['seeds']['1'])
    values = records.set_index(['profile', 'record', 'field']).value
    assert float(values['real', 'klej-S4', f'{s4.task} / selections / heldout / mean']) == s4['mean']
    report = (site/'report.pdf').read_bytes()
    assert report.startswith(b'%PDF') and 5 < max(map(int, re.findall(rb'/Count (\d+)', report))) <= 15, 'pages'
    assert 'vegaEmbed' in (site/'vega.js').read_text('utf-8')


def notebook(folder, *cells):
    "A site of one page; a cell is Markdown, or code, outputs and tags. The page, and what is wrong with it."
    (folder/'nbs').mkdir()
    for name in ('settings.ini', '_quarto.yml', 'nbs/references.bib', 'nbs/nbdev.yml'): shutil.copy(TOP/name, folder/name)
    (folder/'nbs'/'sidebar.yml').write_text('website: {sidebar: {contents: [01_x.ipynb]}}')
    made = [new_markdown_cell(c) if isinstance(c, str) else new_code_cell(c[0], outputs=c[1], metadata={'tags': [*c[2:]]})
            for c in ('# Title\n\n> Subtitle', *cells)]
    content = new_notebook(cells=made, metadata={'kernelspec': {'name': 'python3', 'display_name': 'Python', 'language': 'python'}})
    (folder/'nbs'/'01_x.ipynb').write_text(json.dumps(content))
    out = pages.render_pandoc(pages.process(folder))
    return (out/'x.html').read_text('utf-8'), pages.find_problems(out)


TABLE = '| a |\n| :-- |\n| 1 |\n\n: Numbers. {#tbl-a}'
PICTURE = '![Caption.](data:image/svg+xml;base64,PHN2Zy8+){#fig-a fig-alt="Dots"}'


def test_cells_follow_their_directives_and_references_get_numbers(tmp_path):
    output = [{'output_type': 'stream', 'name': 'stdout', 'text': ['shown\n']}]
    text, problems = notebook(
        tmp_path, ('#| default_exp x', []), ('#| hide\nsecret = 1', output), ('#| export\nimport json', []),
        ('#| export\ndef half(x): return _twice(x)/4\ndef _twice(x): return 2*x', [], 'plumbing'), ('#| echo: false\nquiet()', output),
        ('#| include: false\nabsent = 1', output), ('lesson = 1', output), TABLE, PICTURE, '$$x = 1$$ {#eq-a}',
        'See @tbl-a, @fig-a, @eq-a, [@sanh2019distilbert] and [the top](01_x.ipynb#top).')
    soup = BeautifulSoup(text, 'html.parser')
    assert not problems and soup.title.get_text().startswith('Title') and soup.find(class_='description').get_text() == 'Subtitle'
    body = soup.main.get_text()
    assert 'half(x)' in body and 'lesson' in body and body.count('shown') == 2
    assert not [w for w in ('secret', 'quiet', 'absent', 'import json', 'default_exp', '#|', '{#') if w in body]
    assert [d.summary.get_text().strip() for d in soup.main.find_all('details') if d.find('pre')] == ['half']
    links = {a['href']: a.get_text().replace('\xa0', ' ') for a in soup.main.find_all('a') if not a.find_parent('details')}
    assert links['#tbl-a'] == 'Table 1' and links['#fig-a'] == 'Figure 1' and links['#eq-a'] == 'Equation 1' and 'x.html#top' in links
    assert soup.find('caption').get_text().startswith('Table\xa01: Numbers.') and soup.find('img')['alt'] == 'Dots'
    assert 'Sanh' in soup.find(id='refs').get_text()


@pytest.mark.parametrize(('text', 'found'), [
    ('See @fig-none.', '@fig-none'), ('See [@nobody2020].', 'nobody2020'), ('[a](02_gone.ipynb)', 'gone.html'), ('[a](#gone)', '#gone'),
    ('![](data:image/svg+xml;base64,PHN2Zy8+)', 'without alternative text'),
    ('![A caption.](gone.svg){fig-alt="A"}', 'gone.svg'), ('<script src="https://x.example/y.js"></script>', 'https://x.example/y.js'),
    ('<style>@import url("https://x.example/f.css");</style>', 'https://x.example/f.css')])
def test_what_leads_nowhere_fails_the_build(tmp_path, text, found):
    try: problems = notebook(tmp_path, text)[1]
    except SystemExit as e: problems = [str(e)]
    assert any(found in p for p in problems)


@pytest.mark.slow
@pytest.mark.skipif(not QUARTO, reason='quarto is not installed')
def test_quarto_renders_the_site_without_a_warning(tmp_path):
    before = checksums()
    pages.write_site(tmp_path/'docs', executed=False)
    assert checksums() == before and 'def train(' in soup_of(tmp_path/'docs', 'distill').get_text()


FRAMES = '''<!DOCTYPE html><pre id="found"></pre><script>
(async () => {
  const found = [];
  for (const page of PAGES) for (const width of [1280, 390]) {
    const frame = Object.assign(document.createElement('iframe'), {width, height: 800});
    await new Promise(done => { frame.onload = done; frame.src = page; document.body.append(frame) });
    for (const d of frame.contentDocument.querySelectorAll('details')) d.open = true;
    const wide = frame.contentDocument.documentElement.scrollWidth;
    if (wide > width) found.push(`${page} is ${wide} pixels wide in a window of ${width}`);
    frame.remove();
  }
  document.getElementById('found').textContent = JSON.stringify(found) + ' done';
})()</script>'''


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason='chromium is not installed')
def test_no_page_scrolls_sideways(site, tmp_path):
    "At the width of a desk and of a phone, with all that is folded opened."
    shutil.copytree(site, tmp_path/'site')
    (tmp_path/'site'/'bad.html').write_text('<!DOCTYPE html><p style="width: 500px">A line that no phone can show.</p>')
    names = sorted(f.name for f in (tmp_path/'site').glob('*.html'))
    (tmp_path/'site'/'frames.html').write_text(FRAMES.replace('PAGES', json.dumps(names)))
    flags = ('--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--hide-scrollbars',
             '--allow-file-access-from-files', '--virtual-time-budget=300000', f'--user-data-dir={tmp_path/"profile"}', '--dump-dom')
    page = (tmp_path/'site'/'frames.html').as_uri()
    done = subprocess.run([CHROMIUM, *flags, page], capture_output=True, text=True, timeout=300)
    found = BeautifulSoup(done.stdout, 'html.parser').find(id='found').get_text()
    assert found.endswith(' done'), done.stderr[-2000:]
    assert json.loads(found.removesuffix(' done')) == ['bad.html is 508 pixels wide in a window of 390']
