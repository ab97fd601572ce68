"Records in and out, tables, figures and cards; a page says what its records say."
import ast
import itertools
import json
import os
import re
import shutil
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import vl_convert
from conftest import TOP, needs_data
from huggingface_hub import ModelCard
from IPython.display import Markdown
from pages import PAGES

from distilherbert import cards, figures, pipeline, results
from distilherbert.artefact import provenance, read_manifest
from distilherbert.pipeline import record_key
from distilherbert.results import Results, load_results, read_records, write_record
from distilherbert.scenario import PROFILES, SCENARIOS, SettingsError, get_profile
from distilherbert.scores import compare, read_scores

MADE = {'commit': '0123456789ab', 'machine': 'an invented machine', 'versions': {}, 'date': '2026-01-01T00:00:00Z'}


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    "An empty folder of records, and one for figures."
    monkeypatch.setenv('DISTILHERBERT_RESULTS', str(tmp_path/'results'))
    monkeypatch.setenv('DISTILHERBERT_FIGURES', str(tmp_path/'figures'))
    return tmp_path


def committed(*profiles):
    "The committed records of profiles, as those of own runs; the last profile's, loaded."
    for name in profiles: shutil.copytree(TOP/'results'/name, results.own_results()/name, dirs_exist_ok=True)
    return load_results(profiles[-1])


def change(profile, what, **fields):
    "Change fields of a record on disk, and load all."
    file = results.own_results()/profile/f'{what}.json'
    file.write_text(json.dumps(json.loads(file.read_text('utf-8')) | fields), 'utf-8')
    return load_results(profile)


def contradict(r):
    "The same records with the opposite verdict on every comparison, on disk too."
    pairs = [x | {'claim': not x['claim']} for x in r.get('comparisons', 'pairs')]
    return change(r.profile, 'comparisons', values=r.get('comparisons') | {'pairs': pairs})


def cells_of(page): return json.loads((TOP/'nbs'/f'{page}.ipynb').read_text('utf-8'))['cells']


def shown(page):
    "Execute a page in this process; the Markdown that each of its cells shows."
    here, out = {}, []
    for code in (ast.parse(''.join(c['source'])) for c in cells_of(page) if c['cell_type'] == 'code'):
        last = ast.Expression(code.body.pop().value) if code.body and isinstance(code.body[-1], ast.Expr) else None
        exec(compile(code, page, 'exec'), here)
        value = eval(compile(last, page, 'eval'), here) if last else None
        if isinstance(value, Markdown): out.append(value.data)
    return out


def bare(text): return re.sub(r'\[((?:[^\[\]]|\[[^\]]*\])*)\]\([\w.]*#[\w.-]+\)', r'\1', text)


def words(svg): return re.findall(r'<text[^>]*>([^<]+)', svg)


def row(table, first):
    line = next(line for line in bare(table).splitlines() if line.startswith(f'| {first} |'))
    return [c.strip() for c in line.split('|')[1:-1]]


def test_a_run_keeps_its_own_records_and_a_page_reads_the_first_folder_that_has_a_profile(tmp_path, monkeypatch):
    monkeypatch.setenv('DISTILHERBERT_RUNS', str(tmp_path/'runs'))
    monkeypatch.delenv('DISTILHERBERT_RESULTS')
    assert write_record('mine', 'x', {'v': 1}, made=MADE).parent == tmp_path/'runs'/'results'/'mine'
    assert read_records('mine')['x']['values'] == {'v': 1} and results.results_path()[0] == TOP/'results'
    monkeypatch.setenv('DISTILHERBERT_RESULTS', os.pathsep.join((str(tmp_path/'own'), str(tmp_path/'other'))))
    for name in ('other/demo', 'other/real', 'own/demo'):
        (tmp_path/name).mkdir(parents=True)
        (tmp_path/name/f'{name[:3]}.json').write_text('{}')
    assert [list(read_records(name)) for name in ('demo', 'real', 'paper')] == [['own'], ['oth'], []]
    (tmp_path/'own'/'demo'/'bad.json').write_text('{')
    with pytest.raises(SettingsError, match='distilherbert collect'): read_records('demo')


def test_moving_records_is_one_command(tmp_path, monkeypatch):
    monkeypatch.setattr(results, 'checkout', lambda: tmp_path/'top')
    with pytest.raises(SettingsError, match='no records of demo'): results.move_records(PROFILES['demo'])
    for name in ('demo', 'bench', 'real', 'demo'): write_record(name, 'x', {}, made=MADE)
    moved = results.move_records(PROFILES['demo'])
    assert moved == [tmp_path/'top'/'results'/n/'x.json' for n in ('bench', 'demo')] and all(f.is_file() for f in moved)
    assert [f.parent.name for f in results.own_results().rglob('*.json')] == ['real'], 'moved, and only what was asked for'


def test_collect_writes_what_is_there(tiny, monkeypatch):
    files = {f.stem: json.loads(f.read_text('utf-8')) for f in results.collect(tiny.profile)}
    assert set(files) >= {'clean', 'pack', 'model-T0', 'model-S4', 'klej-T0', 'klej-S4', 'comparisons', 'time', 'settings'}
    assert 'klej-S5' not in files, 'no test scores it'
    for what in ('clean', 'pack', 'model-S4', 'klej-T0'): assert files[what]['key'] == record_key(tiny.profile, what)
    assert files['comparisons']['key'] == '', 'two of eight scenarios are not what the key of the whole grid stands for'
    model, made, times = files['model-S4']['values'], read_manifest(tiny.models['S4']), files['time']['values']
    assert model['heldout_loss'] == pytest.approx(made['counts']['heldout']['mlm'], rel=1e-5)
    assert model['heldout'][-1]['agreement'] == model['agreement'] and {'loss', 'mlm', 'soft', 'cosine'} <= set(model['train'][-1])
    assert files['klej-S4']['values']['nkjp-ner']['title'] == 'World NER', 'no KLEJ task'
    phases = {p['phase']: p['minutes'] for p in times['phases']}
    assert {'clean', 'pack', 'model-T0', 'klej-S4'} <= set(phases) and times['total'] == pytest.approx(sum(phases.values()), abs=0.01)
    r = load_results('tiny')
    assert r.tasks() and r.pair('T0', 'S4') and not any(r.stale.values())
    for name in figures.FIGURES: figures.figure(r, name)
    both = replace(tiny.profile, scenarios=('S4', 'T0'))
    monkeypatch.setattr(results, 'record_key', lambda p, what: 'abc')
    for again in (True, False):  # Compared where the key is another; nothing is compared twice
        monkeypatch.setattr(results, 'comparison_values', (lambda runs: {'made': 'anew'}) if again else None)
        assert ('comparisons' in {f.stem for f in results.collect(both)}) == again


def test_predictions_are_read_back_with_the_labels_of_the_task(tiny):
    results.collect(tiny.profile)
    runs = {n: read_scores(pipeline.scores_folders(tiny.profile, SCENARIOS[n]))['heldout'] for n in ('T0', 'S4')}
    back = {n: results.read_predictions(tiny.profile, n) for n in runs}
    assert compare(back['T0'], back['S4']) == compare(runs['T0'], runs['S4'])
    assert all(np.array_equal(back[n][t].pred, x.pred) for n, found in runs.items() for t, x in found.items())
    file = results.own_results()/'tiny'/'predictions'/'S4.json'
    record = json.loads(file.read_text('utf-8'))
    record['values']['nkjp-ner']['predictions'] = [p[:-2] for p in record['values']['nkjp-ner']['predictions']]
    file.write_text(json.dumps(record), 'utf-8')
    with pytest.raises(SettingsError, match='S4.json has 499 predictions of NKJP-NER, whose dev has 500'):
        results.read_predictions(tiny.profile, 'S4')
    with pytest.raises(SettingsError, match='no predictions of S5 .*distilherbert run S5'): results.read_predictions(tiny.profile, 'S5')


@needs_data
def test_the_scores_on_polish_tasks_follow_from_the_recorded_predictions():
    "And the intervals, and every comparison."
    r, p = committed('real'), get_profile('real')
    runs = {s: results.read_predictions(p, s) for s in r.scores()}
    for s, by_task in runs.items():
        for t, x in by_task.items():
            found = r.get(f'klej-{s}', t, 'selections', r.selection())
            assert {'mean': round(x.estimate.value, 4), **x.estimate.ends()} == {k: found[k] for k in ('mean', 'low', 'high')}
    recorded = {(q['a'], q['b'], q['task']): q for q in r.get('comparisons', 'pairs') if q['selection'] == r.selection()}
    for b, a in itertools.combinations(runs, 2):
        for t, x in compare(runs[a], runs[b]).items(): assert x.items() <= recorded[a, b, t].items()


def test_the_committed_records_of_the_demo_are_current_and_one_of_other_code_is_stale():
    r = committed('demo')
    assert {w: why for w, why in r.stale.items() if why} == {} and r.stale['klej-S4'] == ''
    r = change('demo', 'klej-S4', key='abcdefabcdef')
    assert [w for w, why in r.stale.items() if why] == ['klej-S4'] and r.linked('klej-S4', '72.6').startswith('[72.6⚠]')
    commit, listed = r.records['klej-S4']['provenance']['commit'].rstrip('+'), results.list_records(r, 'https://x')
    assert '⚠ key abcdefabcdef then' in listed and f'href="https://x/commit/{commit}"' in listed
    assert change('demo', 'comparisons', key='').stale['comparisons'] == '', 'without a key the settings decide'
    settings = read_records('demo')['settings']['values']
    for change_of, named in (({'profile': {**settings['profile'], 'lr_trained': 1.0}}, 'lr_trained'), ({'stages': {'text': 0}}, 'text'),
                             ({'scenarios': [{**settings['scenarios'][0], 'init': 'copy'}]}, settings['scenarios'][0]['name'])):
        r = change('demo', 'settings', values={**settings, **change_of})
        assert r.stale['settings'] == r.stale['comparisons'] == f'changed since: {named}' and r.stale['klej-T0'] is not None
    more = {'profile': {n: v for n, v in settings['profile'].items() if n != 'zero'} | {'scenarios': ['S4']}, 'scenarios': []}
    assert change('demo', 'settings', values={**settings, **more}).stale['settings'] == '', 'a field and a scenario have been added'


def test_records_of_real_data_need_no_data_and_no_network(monkeypatch):
    "What their keys stand for is not here: the settings decide."
    monkeypatch.delenv('DISTILHERBERT_DATA', raising=False)
    monkeypatch.setattr('socket.socket.connect', lambda *a: pytest.fail('the network was asked'))
    r = committed('real')
    assert r.records['klej-S4']['key'] and r.stale['klej-S4'] == r.stale['settings'] is not None
    settings = read_records('real')['settings']['values']
    assert change('real', 'settings', values={**settings, 'stages': {'scores': 0}}).stale['klej-S4'] == 'changed since: scores'


@pytest.mark.parametrize('profile', ['real', 'demo'])
def test_tables_have_intervals_published_figures_and_the_majority(profile):
    "A column for each task and one for their mean."
    r, first, how = committed(profile), 'nkjp-ner', ('selections', 'heldout')
    table, columns = results.table_scores(r, 'tbl-scores'), r.columns()
    assert row(table, '*majority*')[1] == f'{r.get("klej-S4", first, "majority"):.1f}'
    for s in r.scores():
        means = [f'{r.get(f"klej-{s}", t, *how, "mean"):.1f}' for t in columns]
        interval = '–'.join(f'{r.get(f"klej-{s}", first, *how, end):.1f}' for end in ('low', 'high'))
        theirs = f'{results.PUBLISHED[s][first]:.2f}†' if s in results.PUBLISHED else ''
        cells = row(table, f'**{s}**')[1:]
        assert [c.split()[0] for c in cells] == means and f'[{interval}]' in cells[0] and theirs in cells[0]
    for x in (r, contradict(r)):  # Bold where a difference is real
        for p in filter(None, (x.pair(a, b) for a, b, _ in results.QUESTIONS)):
            text, low, high = (f'{p[k]:{form}}'.replace('-', '−') for k, form in (('difference', '+.1f'), ('low', '.1f'), ('high', '.1f')))
            cell = row(results.table_differences(x), f'{p["a"]}\u00a0−\u00a0{p["b"]}')[len(columns)]
            assert cell == (f'**{text}**' if p['claim'] else text) + f' [{low} to {high}]{{.interval}}'


@pytest.mark.parametrize('name', figures.FIGURES)
def test_a_figure_is_the_same_twice_described_and_readable_on_a_phone(name, folders):
    "In whatever style another notebook has set."
    points = [{'scenario': 'S4', 'tokens': 10**i, 'task': 'mean', 'mean': 60 + i, 'seeds': 2} for i in (6, 7)]
    write_record('real', 'curve', {'points': points})
    r, (draw, needs) = committed('real'), figures.FIGURES[name]
    picture = draw(r)
    text = figures.svg(picture.figure)
    with matplotlib.rc_context({'font.size': 30, 'axes.facecolor': 'red'}): assert text == figures.svg(draw(r).figure)
    assert picture.figure.get_suptitle() and picture.caption.endswith('.') and len(picture.alt) > 40
    width, sizes = float(re.search(r'width="([\d.]+)pt"', text)[1]), list(map(float, re.findall(r'font[^;"]*?([\d.]+)px', text)))
    assert sizes and min(sizes)*340/width >= 9, 'text of nine pixels where the page is 340 wide'
    empty = figures.figure(Results('paper', {}, {}), name, 'fig-x')
    assert '#fig-x' in empty and ('To be drawn' in empty) == bool(needs), 'references resolve without records'


def test_a_model_card_is_what_the_hub_reads(tiny):
    made, written = read_manifest(tiny.models['S4']), ModelCard((tiny.models['S4']/'README.md').read_text('utf-8'))
    assert (written.data.license, written.data.language, written.data.pipeline_tag) == ('apache-2.0', 'pl', 'fill-mask')
    for words in ('layers of T0', f'{made["counts"]["tokens"]:,} tokens', '5 soft', 'no Polish', made['key'], 'tiny.toml'):
        assert words in written.text, words
    score = {'nkjp-ner': {'metric': 'accuracy', 'n': 1941, 'mean': 80.23, 'low': 79.0, 'high': 81.0}}
    real = ModelCard(cards.card(PROFILES['real'], SCENARIOS['S4'], made['counts'], provenance(), kind='text-classification', scores=score))
    (result,) = real.data.eval_results
    assert (real.data.base_model, real.data.license, result.metric_value) == ('intfloat/multilingual-e5-small', 'other', 80.23)
    assert '(mit)' in real.text and 'test labels of KLEJ are hidden' in real.text


def test_a_local_teacher_keeps_its_name_and_licence(tmp_path):
    (tmp_path/'README.md').write_text('---\nlicense: cc-by-4.0\nbase_model: someone/bert\n---\n# A model\n')
    assert cards.teacher_facts(replace(PROFILES['real'], teacher=str(tmp_path))) == ('someone/bert', 'cc-by-4.0')
    assert cards.teacher_facts(PROFILES['paper']) == ('allegro/herbert-base-cased', 'cc-by-4.0')


def test_a_data_card_counts_every_line(tiny):
    text = (tiny.sequences['ccsub']/'README.md').read_text('utf-8')
    steps = dict(re.findall(r'^- ([a-z ]+): (-?[\d,]+)$', text.partition('## From texts')[0], re.M))
    steps = {what: int(n.replace(',', '')) for what, n in steps.items()}
    assert steps.pop('texts kept') == read_manifest(tiny.text)['counts']['parts']['ccsub']['kept'] == sum(steps.values())
    assert pipeline.sequences_artefact(tiny.profile).key in text


@pytest.mark.parametrize('name', PAGES)
def test_the_committed_page_is_what_the_committed_records_give(name, folders, monkeypatch):
    monkeypatch.setenv('DISTILHERBERT_RESULTS', str(TOP/'results'))
    monkeypatch.delenv('DISTILHERBERT_DATA', raising=False)
    texts = shown(name)
    fails = [m for t in texts for m in re.findall(r'.{0,80}\[claim fails: .*?\]', bare(t))]
    assert not fails, 'a sentence no longer follows from its record'
    outputs = [o['data'] for c in cells_of(name) for o in c.get('outputs', []) if 'data' in o]
    assert texts == [''.join(d['text/markdown']) for d in outputs if 'text/markdown' in d], 'run `make readme` and commit'
    if name == '07_report': assert 'retain' in texts[1] and len(bare(texts[1]).split()) <= 150, 'the abstract is short'
    for new in (folders/'figures').rglob('*.svg'):
        place = f'figures/{new.parent.name}/{new.name}'
        if not any(place in t for t in texts): continue  # drawn, but the page has no use for it yet
        old = TOP/'nbs'/place
        assert words(new.read_text('utf-8')) == words(old.read_text('utf-8')), old


def test_without_records_a_page_claims_nothing_and_without_those_of_real_text_nothing_about_it():
    for name in PAGES: assert not any('claim fails' in t for t in shown(name))
    committed('demo')
    for name in PAGES:
        page = '\n'.join(texts := shown(name))
        assert not [w for w in ('claim fails', 'record-real', 'To be drawn', '`real` that holds') if w in page], name
        assert not [line for line in page.splitlines() if '—' in line and not line.startswith('|')], 'a number without a record'
        if name == '07_report': assert 'There are no results for Polish yet' in texts[1] and len(bare(texts[1]).split()) <= 150


def test_the_report_marks_what_is_not_so_and_shows_every_score_with_its_record():
    "Where each comparison has the opposite verdict, each claim is marked."
    r, p = contradict(committed('real')), PROFILES['real']
    report = '\n'.join(shown('07_report'))
    assert report.count('[claim fails: ') >= len(re.findall(r' points \[', report)) > 5
    facts = len(p.task_seeds), len(p.tasks), p.max_len, p.heldout_share, p.selection_share, p.task_epochs, p.task_examples, p.task_max_len
    assert facts == (6, 3, 128, 0.01, 0.1, 3, 1000, 128), 'the report has these in words'
    (spec,) = re.findall(r'vegaEmbed\(chart, (\{.*\}),$', report, re.M)  # The interactive figure: every score, with its record
    listed, rows = results.list_records(r, 'https://x'), json.loads(spec)['layer'][1]['data']['values']
    assert {x['place'].partition('#')[2] for x in rows} <= set(re.findall(r' id="?([\w.-]+)', listed))
    assert len(rows) == sum(map(len, r.scores().values())) + len(r.get('comparisons', 'retention')) and vl_convert.vegalite_to_svg(spec)
