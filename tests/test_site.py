"Pages without Quarto, what Quarto would be given, and the links between them."
import configparser
import json
import re
import shutil
import sys
from html.parser import HTMLParser

import pytest
import yaml
from bs4 import BeautifulSoup
from conftest import NOTEBOOKS, TOP, run_program

from distilherbert import site

NBS = TOP/'nbs'
VOID = {'area', 'base', 'br', 'col', 'embed', 'hr', 'img', 'input', 'link', 'meta', 'source', 'track', 'wbr', 'mspace', 'mprescripts', 'none'}


@pytest.fixture(scope='module')
def loaded(): return site.load_site()


@pytest.fixture(scope='module')
def pages(loaded, tmp_path_factory):
    out = tmp_path_factory.mktemp('pages')
    site.write_site(loaded, out, TOP/'results')
    return out


def test_every_reference_link_and_picture_is_there(loaded):
    assert loaded.problems == []


def test_every_notebook_is_in_the_sidebar_and_the_other_way_round():
    def files(name):
        def flat(items): return [f for i in items for f in (flat(i['contents']) if isinstance(i, dict) else [i])]
        return flat(yaml.safe_load((NBS/name).read_text('utf-8'))['website']['sidebar']['contents'])
    assert sorted(files('sidebar.yml')) == sorted(f.name for f in NOTEBOOKS)
    assert files('top.yml') == [f'nbs/{f}' for f in files('sidebar.yml')], 'two lists of the same chapters'


def test_readme_is_the_home_page():
    assert (TOP/'README.md').read_text('utf-8') == site.readme(), 'run `make render` and commit README.md'


def test_links_of_readme_lead_to_files():
    text = (TOP/'README.md').read_text('utf-8')
    links = re.findall(r'\]\(([^)#]+)', text)
    assert links and not [x for x in links if not x.startswith('https://') and not (TOP/x).exists()]


def test_quarto_finds_one_configuration():
    assert (NBS/'_quarto.yml').is_symlink() and (NBS/'_quarto.yml').resolve() == TOP/'_quarto.yml'
    config = yaml.safe_load((TOP/'_quarto.yml').read_text('utf-8'))
    assert {'nbdev.yml', 'sidebar.yml', 'nbs/top.yml'} <= set(config['metadata-files'])
    for name, prefix in (('sidebar.yml', ''), ('top.yml', 'nbs/')):
        part = yaml.safe_load((NBS/name).read_text('utf-8'))
        top = TOP if prefix else NBS
        named = [part['bibliography'], part['format']['html']['css'], *(x['href'] for x in part['website']['navbar']['left'])]
        assert not [x for x in named if not (top/x).is_file()]


def test_nbdev_would_write_the_same_settings_for_quarto(tmp_path):
    ini = configparser.ConfigParser(delimiters=['='], interpolation=None)
    ini.read(TOP/'settings.ini')
    cfg, part = ini['DEFAULT'], yaml.safe_load((NBS/'nbdev.yml').read_text('utf-8'))
    assert part['website'] == {'title': cfg['title'], 'site-url': cfg['doc_host'] + cfg['doc_baseurl'], 'description': cfg['description'],
                               'repo-branch': cfg['branch'], 'repo-url': cfg['git_url']}
    assert part['project'] == {'output-dir': cfg['doc_path']}


class Balance(HTMLParser):
    "Counts tags that are opened and not closed."
    def __init__(self):
        super().__init__()
        self.open, self.wrong = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID: self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in VOID: return
        if not self.open or self.open.pop() != tag: self.wrong.append(tag)


@pytest.mark.parametrize('file', NOTEBOOKS, ids=lambda f: f.stem)
def test_a_page_is_whole_and_light(pages, file):
    text = (pages/f'{file.stem}.html').read_text('utf-8')
    balance = Balance()
    balance.feed(text)
    assert not balance.wrong and not balance.open, 'tags that are not closed'
    assert len(text) < 1_500_000
    prose = re.sub(r'(?s)<pre.*?</pre>|<code.*?</code>', '', text)
    assert not [mark for mark in ('#| ', 'KEPT', '$$', 'src="http', '{#', '](') if mark in prose]
    assert not re.search(r'^:::', prose, re.M), 'a block of Quarto is shown as text'
    ids = re.findall(r' id="([^"]+)"', prose)
    assert len(ids) == len(set(ids)), sorted(i for i in set(ids) if ids.count(i) > 1)


def test_every_module_has_a_page_of_names(pages):
    for f in (TOP/'distilherbert').glob('[a-z]*.py'):
        text = (pages/f'api_{f.stem}.html').read_text('utf-8')
        names = re.findall(r'^(?:def|class) ([A-Za-z]\w*)', f.read_text('utf-8'), re.M)
        assert names and not [n for n in names if f'id="api-{n}"' not in text], f.stem


def test_a_page_leads_to_its_notebook(loaded):
    url = 'https://git.example/x'
    links = site.source_links(site.Site(loaded.folder, loaded.sections, loaded.pages, loaded.soups, [], url), '01_clean')
    assert f'{url}/edit/main/nbs/01_clean.ipynb' in links and f'{url}/blob/main/nbs/01_clean.ipynb' in links
    assert site.source_links(loaded, '01_clean') == '', 'no address, no link'


def test_the_citation_says_the_same_version():
    ini = configparser.ConfigParser(delimiters=['='], interpolation=None)
    ini.read(TOP/'settings.ini')
    cff, bib = yaml.safe_load((TOP/'CITATION.cff').read_text('utf-8')), (TOP/'CITATION.bib').read_text('utf-8')
    assert cff['version'] == ini['DEFAULT']['version'] and f'version = {{{cff["version"]}}}' in bib
    assert cff['repository-code'] == ini['DEFAULT']['git_url'] and f'## {cff["version"]}' in (TOP/'CHANGELOG.md').read_text('utf-8')


def test_the_site_is_light(pages):
    assert sum(f.stat().st_size for f in pages.rglob('*') if f.is_file()) < 15e6


def test_nothing_is_read_from_the_network(pages):
    for f in [*pages.glob('*.html'), *pages.glob('*.css'), *pages.glob('*.js')]:
        text = f.read_text('utf-8')
        assert not re.search(r'<(script|link|img)[^>]*(src|href)="(https?:)?//', text) and '@import' not in text and 'url(http' not in text, f.name


def test_formulas_are_readable_without_a_network(pages):
    text = (pages/'04_objective.html').read_text('utf-8')
    assert '<math' in text and '\\frac' not in re.sub(r'(?s)<pre.*?</pre>', '', text)


def notebook(folder, *cells, name='x'):
    cells = [{'cell_type': k, 'source': s, 'metadata': {}, **({'outputs': o, 'execution_count': None} if k == 'code' else {})} for k, s, o in cells]
    (folder/f'{name}.ipynb').write_text(json.dumps({'cells': cells, 'metadata': {}, 'nbformat': 4, 'nbformat_minor': 5}), 'utf-8')
    (folder/'sidebar.yml').write_text(f'website: {{sidebar: {{contents: [{name}.ipynb]}}}}')
    shutil.copy(NBS/'references.bib', folder)
    return folder


def said(name, text): return {'output_type': 'stream', 'name': name, 'text': text}


def test_of_a_progress_bar_the_last_line_is_shown():
    bar = 'Measuring: [{}] {}/4 visits, 0 s left\n'.format
    outputs = [said('stdout', bar('█···', 1)), said('stdout', [bar('██··', 2), bar('████', 4)]), said('stderr', 'Careful.\n'),
               said('stdout', 'Between.\n' + bar('█···', 1) + bar('████', 4)), said('stdout', bar('█···', 1) + bar('██··', 2))]
    made = site.settled(outputs)
    assert [o['text'] for o in made] == [bar('████', 4), 'Careful.\n', 'Between.\n' + bar('████', 4) + bar('██··', 2)]
    assert outputs[0]['text'] == bar('█···', 1), 'what was given is not changed'
    other = said('stdout', 'Pack: [█···] 1/4 visits, 0 s\n' + bar('████', 4))
    assert site.settled([other]) == [other], 'another bar goes on with nothing'


def test_no_page_shows_a_bar_that_was_overtaken(pages):
    shown = 0
    for f in pages.glob('*.html'):
        lines = [line for pre in BeautifulSoup(f.read_text('utf-8'), 'html.parser').select('pre.output') for line in pre.get_text().splitlines(keepends=True)]
        assert site.last_bars(lines) == lines, f.name
        shown += sum(bool(site.BAR.match(line)) for line in lines)
    assert shown, 'some page has a bar'


def test_authors_with_and_without_a_family_name(tmp_path):
    (tmp_path/'a.bib').write_text('@misc{g2022,\n  author = {{The {BERT} group}},\n  title = {T},\n  year = {2022},\n}\n'
                                  '@misc{k2020,\n  author = {Kot, Ala and others},\n  title = {{BERT}: T},\n  year = {2020},\n}\n')
    bib = site.read_bib(tmp_path/'a.bib')
    assert site.short_name(bib['g2022']) == 'The BERT group 2022' and site.long_name(bib['g2022']).startswith('The BERT group (2022). <em>T</em>')
    assert site.short_name(bib['k2020']) == 'Kot et al. 2020' and site.long_name(bib['k2020']).startswith('Ala Kot and others (2020). <em>BERT: T</em>')


@pytest.mark.parametrize(('text', 'whole'), [
    ('n = 723 of them', 'n_=_723 of them'), ('95 % of 6.9 M in 5 min 20 s', '95_% of 6.9_M in 5_min 20_s'), ('12 × 768', '12_×_768'),
    ('S4 − S2, T1 < S5', 'S4_−_S2, T1_<_S5'), ('5 models, 4 hours, 3 steps', '5 models, 4 hours, 3 steps')])
def test_what_is_read_as_one_word_stays_on_one_line(text, whole):
    soup = BeautifulSoup(f'<p>{text.replace("<", "&lt;")}</p><code>n = 723</code>', 'html.parser')
    site.polish(soup)
    assert soup.p.get_text().replace('\u00a0', '_') == whole and soup.code.get_text() == 'n = 723'


def problems(folder, *texts):
    cells = [('markdown', '# T\n> S', None), *(('markdown', t, None) for t in texts)]
    return site.load_site(notebook(folder, *cells)).problems


@pytest.mark.parametrize(('text', 'found'), [
    ('See @fig-none.', 'unresolved reference @fig-none'), ('See [@nobody2020].', 'unresolved citation @nobody2020'),
    ('As @nobody2020 says.', 'unresolved citation @nobody2020'), ('[a](gone.ipynb)', 'link to gone.html'), ('[a](#gone)', 'no such place'),
    ('![A caption.](gone.svg){fig-alt="A"}', 'gone.svg is missing'), ('![A caption.](gone.svg){#fig-a}', 'no alternative text'),
    ('![](gone.svg)', 'no alternative text')])
def test_what_is_broken_is_found(tmp_path, text, found):
    assert any(found in p for p in problems(tmp_path, text)), problems(tmp_path, text)


@pytest.mark.parametrize('text', [
    'Mail a@fig-x.pl and `@fig-none` and [x](https://x.example/@fig-none).', '```text\n@fig-none [@nobody2020]\n```', '## A place\n\n[a](#a-place)',
    'A table.\n\n| a |\n| :-- |\n| 1 |\n\n: Numbers. {#tbl-a}\n\nSee @tbl-a.', '$$x = 1$$ {#eq-a}\n\nSee @eq-a.',
    'See [@sanh2019distilbert; @devlin2018bert] and @rybak2020klej.', '## Here {#sec-here}\n\nSee @sec-here.'])
def test_what_is_whole_is_not_reported(tmp_path, text):
    assert problems(tmp_path, text) == []


def test_cells_follow_their_directives(tmp_path):
    output = [{'output_type': 'stream', 'name': 'stdout', 'text': ['shown\n']}]
    folder = notebook(tmp_path, ('markdown', '# Title\n\n> Subtitle', None), ('code', '#| default_exp x', []), ('code', '#| hide\nsecret = 1', output),
                      ('code', '#| export\ndef half(\n    x:float, # A number\n)->float: # Its half\n    "Divide."\n    return x/2', []),
                      ('code', '#| echo: false\nquiet()', output), ('code', 'lesson = 1', output))
    loaded = site.load_site(folder)
    page = loaded.pages['x']
    text = site.with_code(page, str(loaded.soups['x']))
    soup = BeautifulSoup(text, 'html.parser')
    assert (page.title, page.subtitle) == ('Title', 'Subtitle')
    assert 'secret' not in text and 'default_exp' not in text and 'quiet' not in text and text.count('shown') == 2
    assert soup.find('details', class_='symbol').summary.get_text() == 'half(x) Divide.'
    assert 'A number' in soup.find('table', class_='parameters').get_text() and soup.find('details', class_='source').find('pre')
    assert 'lesson' in soup.find('div', class_='lesson').pre.get_text()


def test_tabs_need_no_program(tmp_path):
    text = '::: {.panel-tabset group="p"}\n##### demo\n\nOne @tbl-a.\n\n| a |\n| :-- |\n| 1 |\n\n: First. {#tbl-a}\n\n##### mini\n\n| a |\n| :-- |\n| 2 |\n\n: Second.\n\n:::'
    loaded = site.load_site(notebook(tmp_path, ('markdown', '# T\n> S', None), ('markdown', text, None)))
    tabs = loaded.soups['x'].find(class_='tabs')
    assert [t.get_text() for t in tabs.find_all('label')] == ['demo', 'mini'] and len(tabs.find_all(class_='pane')) == 2
    assert len({i['name'] for i in tabs.find_all('input')}) == 1 and tabs.find_all('input')[0].has_attr('checked')
    assert [c.get_text() for c in tabs.find_all('figcaption')] == ['Table 1: First.', 'Table 1: Second.']
    assert loaded.problems == []


def test_readme_translates_what_github_does_not_know():
    text = '[a](07_report.ipynb#x) [b](https://x.example/y.ipynb)\n\n![Cap.](figures/demo/a.svg){#fig-a fig-alt="Dots"}\n\n| a |\n| :-- |\n| 1 |\n\n: Caption. {#tbl-a}'
    assert site.for_github(text) == ('[a](nbs/07_report.ipynb#x) [b](https://x.example/y.ipynb)\n\n![Dots](nbs/figures/demo/a.svg)\n\n*Cap.*\n\n'
                                     '| a |\n| :-- |\n| 1 |\n\n*Caption.*\n')


def test_quarto_would_be_given_every_chapter(tmp_path):
    "nbdev's own processing of the notebooks, as `nbdev_docs` does it before Quarto."
    for name in ('nbs', 'distilherbert'): shutil.copytree(TOP/name, tmp_path/name, symlinks=True, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('settings.ini', '_quarto.yml'): shutil.copy(TOP/name, tmp_path/name)
    code = 'from nbdev.serve import proc_nbs; print(proc_nbs(n_workers=1))'
    done = run_program(sys.executable, '-c', code, cwd=tmp_path, env={'PYTHONPATH': tmp_path})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    made = {f.name for f in (tmp_path/'_proc').iterdir()}
    assert {f.name for f in NOTEBOOKS} | {'_quarto.yml', 'nbdev.yml', 'sidebar.yml', 'references.bib', 'styles.css'} <= made
    pictures = {f.relative_to(NBS) for f in NBS.glob('figures/*/*.svg')}
    assert not [p for p in pictures if not (tmp_path/'_proc'/p).is_file()], 'settings.ini needs `recursive = True`'
    for f in NOTEBOOKS:
        cells = json.loads((tmp_path/'_proc'/f.name).read_text('utf-8'))['cells']
        assert cells[0]['cell_type'] == 'raw' and 'title:' in ''.join(cells[0]['source'])
        assert not [c for c in cells if re.match(r'#\|\s*(hide|default_exp|export)\b', ''.join(c['source']))]
