"Records in and out, tables, figures and cards; a page says what its records say."
import ast
import json
import os
import re
from dataclasses import asdict, replace

import matplotlib
import pytest
import vl_convert
from conftest import TOP
from huggingface_hub import ModelCard
from IPython.display import Markdown
from pages import PAGES

from distilherbert import cards, figures, pipeline, results
from distilherbert.artefact import provenance, read_manifest
from distilherbert.pipeline import record_key
from distilherbert.results import Results, load_results, read_records, write_record
from distilherbert.scenario import PROFILES, SCENARIOS, SettingsError, with_sources
from distilherbert.scores import INTERVAL

MADE = {'commit': '0123456789ab', 'machine': 'an invented machine', 'versions': {}, 'date': '2026-01-01T00:00:00Z'}
MEANS = {'S0': 40.0, 'S1': 48.0, 'S2': 65.0, 'S3': 63.5, 'S4': 64.4, 'S4h': 74.4, 'S5': 64.9, 'E0': 75.0, 'T0': 74.5, 'T1': 75.0}
DEMO = {s: m for s, m in MEANS.items() if s not in ('E0', 'S4h')}  # Those of the profile
TASKS = {'nkjp-ner': 'NKJP-NER', 'polemo2.0-in': 'PolEmo2.0-IN', 'polemo2.0-out': 'PolEmo2.0-OUT'}


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    "An empty folder of records, and one for figures."
    monkeypatch.setenv('DISTILHERBERT_RESULTS', str(tmp_path/'results'))
    monkeypatch.setenv('DISTILHERBERT_FIGURES', str(tmp_path/'figures'))
    return tmp_path


def invent(profile='real', means=MEANS):
    "Write a full set of invented records, in the form that `collect` gives them, and load it."
    tasks = [*TASKS, 'mean']
    def write(what, values, **more): write_record(profile, what, values, made=MADE, command='distilherbert reproduce', **more)
    def scored(x):
        v = {'mean': x, 'low': x - 1, 'high': x + 1.2, 'seeds': {str(i): x for i in range(6)}}
        return {'selections': dict.fromkeys(('heldout', 'last', 'best_on_dev'), v)}
    def gap(x): return {'difference': x, 'low': x - 1.2, 'high': x + 1.2, 'claim': abs(x) > 1.2, 'detectable': 1.0}
    run = json.loads(json.dumps(asdict(with_sources(PROFILES[profile], local=True))))
    grid = json.loads(json.dumps([asdict(SCENARIOS[s]) for s in means]))
    write('settings', {'profile': run, 'scenarios': grid, 'stages': {'text': pipeline.TEXT_VERSION}})
    part = {'lines_read': 100, 'rejected': {'short': 20}, 'duplicates': 5, 'kept': 75}
    write('clean', {'parts': {'old': part, 'ccsub': part}})
    write('vocabulary', {'before': 250_002, 'after': 32_000})
    phases = [{'phase': f'{kind}-{s}', 'minutes': 1.5, 'machine': 'm'} for kind in ('model', 'klej') for s in means]
    write('time', {'phases': [{'phase': 'clean', 'minutes': 0.5, 'machine': 'm'}, *phases], 'total': 30.5, 'hardware': ['a machine']})
    for s, mean in means.items():
        layers, teach = 12 if s[0] in 'ET' else 6, SCENARIOS[s].teacher
        heldout = [{'tokens': 1e6*i, 'mlm': 8 - mean/20 + 0.6**i, 'agreement': 0.5 + 0.02*i if teach else None} for i in range(9)]
        if not (SCENARIOS[s].mlm or teach): heldout = []
        write(f'model-{s}', {
            'parameters': 12_300_000 + 1_800_000*layers, 'encoder_parameters': 1_800_000*layers, 'bytes': 90_000_000, 'layers': layers,
            'tokens': 8_000_000 if heldout else 0, 'passes': 0.5, 'heldout_loss': heldout[-1]['mlm'] if heldout else None,
            'context_free_loss': 6.0 if heldout else None, 'heldout': heldout, 'train': []}, seconds=90.0)
        scores = {t: {'title': title, 'metric': 'accuracy', 'n': 2000, 'majority': 35.0, **scored(mean)} for t, title in TASKS.items()}
        write(f'klej-{s}', scores | {'mean': {'title': 'Mean', **scored(mean)}})
    pairs = [{'a': a, 'b': b, 'task': t, 'selection': h, **gap(means[a] - means[b])} for i, b in enumerate(means)
             for a in list(means)[i + 1:] for t in tasks for h in ('heldout', 'best_on_dev')]
    students = [{'student': s, 'teacher': 'T0', 'task': t} for s in means for t in tasks if s.startswith('S')]
    retention = [x | {'teacher': w, 'share': (m := means[x['student']]/means[w]), 'low': m - 0.01, 'high': m + 0.01}
                 for x in students for w in ('E0', 'T0') if w in means]
    loyalty = [x | {'agreement': 0.8, 'low': 0.79, 'high': 0.81, 'divergence': 0.3, 'ceiling': 0.9} for x in students]
    bias = [{'scenario': s, 'task': t, **gap(0.5)} for s in (*means, 'all') for t in tasks]
    write('comparisons', {'interval': INTERVAL, 'pairs': pairs, 'retention': retention, 'loyalty': loyalty, 'selection_bias': bias})
    points = [{'scenario': s, 'tokens': 10**i, 'task': 'mean', 'mean': 60 + i, 'seeds': 2} for s in ('S3', 'S4') for i in (6, 7)]
    write('curve', {'points': points})
    return load_results(profile)


def change(profile, what, **fields):
    "Change fields of a record on disk, and load all."
    file = results.own_results()/profile/f'{what}.json'
    file.write_text(json.dumps(json.loads(file.read_text('utf-8')) | fields), 'utf-8')
    return load_results(profile)


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
    assert results.own_results() == tmp_path/'runs'/'results' and results.results_path() == [TOP/'results', tmp_path/'runs'/'results']
    assert write_record('mine', 'x', {'v': 1}, made=MADE).parent == tmp_path/'runs'/'results'/'mine'
    assert results.read_records('mine')['x']['values'] == {'v': 1}
    monkeypatch.setenv('DISTILHERBERT_RESULTS', os.pathsep.join((str(tmp_path/'own'), str(tmp_path/'other'))))
    for folder, names in (('other', ('demo', 'real')), ('own', ('demo',))):
        for name in names:
            (tmp_path/folder/name).mkdir(parents=True)
            (tmp_path/folder/name/f'{folder}.json').write_text('{}')
    assert [list(results.read_records(name)) for name in ('demo', 'real', 'paper')] == [['own'], ['other'], []]
    (tmp_path/'own'/'demo'/'bad.json').write_text('{')
    with pytest.raises(SettingsError, match='distilherbert collect'): results.read_records('demo')


def test_moving_records_is_one_command(tmp_path, monkeypatch):
    monkeypatch.setattr(results, 'checkout', lambda: tmp_path/'top')
    with pytest.raises(SettingsError, match='no records of demo'): results.move_records(PROFILES['demo'])
    for name in ('demo', 'bench', 'real'): write_record(name, 'x', {}, made=MADE)
    moved = results.move_records(PROFILES['demo'])
    assert moved == [tmp_path/'top'/'results'/n/'x.json' for n in ('bench', 'demo')] and all(f.is_file() for f in moved)
    assert [f.parent.name for f in results.own_results().rglob('*.json')] == ['real'], 'moved, and only what was asked for'


def test_collect_writes_what_is_there(tiny, monkeypatch):
    files = {f.stem: json.loads(f.read_text('utf-8')) for f in results.collect(tiny.profile)}
    assert set(files) >= {'clean', 'pack', 'model-T0', 'model-S4', 'klej-T0', 'klej-S4', 'comparisons', 'time', 'settings'}
    assert 'klej-S5' not in files, 'no test scores it'
    for what in ('clean', 'pack', 'model-S4', 'klej-T0'): assert files[what]['key'] == record_key(tiny.profile, what)
    assert files['comparisons']['key'] == '', 'two of eight scenarios are not what the key of the whole grid stands for'
    model, made = files['model-S4']['values'], read_manifest(tiny.models['S4'])
    assert model['heldout_loss'] == pytest.approx(made['counts']['heldout']['mlm'], rel=1e-5)
    assert files['model-S4']['provenance'] == made['provenance']
    assert model['heldout'][-1]['agreement'] == model['agreement'] and {'loss', 'mlm', 'soft', 'cosine'} <= set(model['train'][-1])
    scores = files['klej-S4']['values']
    assert scores['nkjp-ner']['title'] == 'World NER' and scores['polemo2.0-in']['title'] == 'World reviews', 'these are no KLEJ tasks'
    phases = {p['phase']: p['minutes'] for p in files['time']['values']['phases']}
    assert {'clean', 'pack', 'model-T0', 'klej-S4'} <= set(phases)
    assert files['time']['values']['total'] == pytest.approx(sum(phases.values()), abs=0.01)
    r = load_results('tiny')
    assert r.tasks() and r.pair('T0', 'S4') and r.kept('S4') != '—' and not any(r.stale.values())
    for name in figures.FIGURES: figures.figure(r, name)
    monkeypatch.setattr(results, 'record_key', lambda p, what: 'abc')
    monkeypatch.setattr(results, 'comparison_values', lambda runs: {'made': 'anew'})
    both = replace(tiny.profile, scenarios=('S4', 'T0'))
    assert {f.stem for f in results.collect(both)} >= {'comparisons'}, 'another key'
    monkeypatch.setattr(results, 'comparison_values', None)
    assert 'comparisons' not in {f.stem for f in results.collect(both)}, 'the same key: nothing is compared again'
    with pytest.raises(SettingsError, match='distilherbert run S4'): results.collect(replace(tiny.profile, world_size=301))


def test_a_record_of_other_code_is_stale():
    invent('demo', DEMO)
    r = change('demo', 'klej-S4', key=record_key(PROFILES['demo'], 'klej-S4'))
    assert r.stale['klej-S4'] == '' and r.stale['comparisons'] == '', 'current; without a key the settings decide'
    r = change('demo', 'klej-S4', key='abcdefabcdef')
    assert [w for w, why in r.stale.items() if why] == ['klej-S4'] and r.linked('klej-S4', '72.6').startswith('[72.6⚠]')
    assert '⚠ key abcdefabcdef then' in results.list_records(r, 'https://x')
    settings = read_records('demo')['settings']['values']
    for change_of, named in (({'profile': {**settings['profile'], 'lr_trained': 1.0}}, 'lr_trained'), ({'stages': {'text': 0}}, 'text'),
                             ({'scenarios': [{**settings['scenarios'][0], 'init': 'copy'}]}, 'S0')):
        r = change('demo', 'settings', values={**settings, **change_of})
        assert r.stale['settings'] == r.stale['comparisons'] == f'changed since: {named}' and r.stale['klej-T0'] is not None
    more = {'profile': {n: v for n, v in settings['profile'].items() if n != 'zero'} | {'scenarios': ['S4']}, 'scenarios': []}
    assert change('demo', 'settings', values={**settings, **more}).stale['settings'] == '', 'a field and a scenario have been added'


def test_records_of_real_data_need_no_data_and_no_network(monkeypatch):
    monkeypatch.delenv('DISTILHERBERT_DATA', raising=False)
    monkeypatch.setattr('socket.socket.connect', lambda *a: pytest.fail('the network was asked'))
    invent('real')
    r = change('real', 'klej-S4', key='abcdefabcdef')
    assert r.stale['klej-S4'] == '' == r.stale['settings'], 'what the key stands for is not here; the settings are the same'
    settings = read_records('real')['settings']['values']
    assert change('real', 'settings', values={**settings, 'stages': {'scores': 0}}).stale['klej-S4'] == 'changed since: scores'


@pytest.mark.parametrize(('claim', 'difference', 'verdict'), [(True, 2.0, 'better'), (True, -2.0, 'worse'), (False, 2.0, 'no difference')])
def test_a_claim_is_checked_against_its_record(claim, difference, verdict):
    ends = {'difference': difference, 'low': difference - 1, 'high': difference + 2}
    pair = {'a': 'S4', 'b': 'S2', 'task': 'mean', 'selection': 'heldout', 'claim': claim, **ends}
    r = Results('demo', {'comparisons': {'values': {'pairs': [pair]}}}, {})
    for said in results.VERDICTS: assert ('[claim fails: S4 against S2' in r.claim('S4', 'S2', 'mean', said)) == (said != verdict)
    other = r.pair('S2', 'S4')
    assert (other['difference'], other['low'], other['high']) == (-difference, -difference - 2, 1 - difference)
    assert {r.claim('S4', 'S2', 'nkjp-ner', 'better'), r.kept(), r.minutes(), r.number('.1f', 'model-S4', 'tokens')} == {'—'}
    with pytest.raises(ValueError, match='A claim is one of'): r.claim('S4', 'S2', 'mean', 'good')


def test_tables_have_intervals_published_figures_and_the_majority():
    r = invent()
    table = results.table_scores(r, 'tbl-scores')
    assert row(table, '*majority*') == ['*majority*', '35.0', '35.0', '35.0', '—']
    assert row(table, '**S4**')[1] == '64.4 [63.4–65.6]{.interval} [90.88†]{.published}'
    assert row(table, '**S4**')[4] == '64.4 [63.4–65.6]{.interval}' and 'mean over 6 seeds' in table
    empty = results.table_scores(Results('real', {}, {}))
    assert row(empty, '**S4**')[1:] == ['— [90.04†]{.published}', '— [75.30†]{.published}', '— [90.88†]{.published}', '—']
    assert row(results.table_differences(r), 'S5\u00a0−\u00a0S4')[1:5] == ['+0.5']*3 + ['+0.5 [−0.7 to 1.7]{.interval}']
    assert row(results.table_differences(r), 'S4h\u00a0−\u00a0S2')[1] == '**+9.4**', 'bold where it is real'
    one = {w: x | {'values': {'nkjp-ner': x['values']['nkjp-ner']}} for w, x in r.records.items() if w.startswith('klej-')}
    table = results.table_scores(replace(r, records=one))  # A single task has a column for each kind of number
    assert row(table, '*majority*') == ['*majority*', '35.0', '', ''] and row(table, '**T1**')[1:] == ['75.0', '74.0–76.2', '93.10†']


def test_every_number_leads_to_its_record_and_the_record_to_its_commit():
    r = invent()
    tables = [results.table_scores(r), results.table_differences(r), r.kept(), r.minutes('model-S4', 'klej-S4'),
              r.claim('S4', 'S3', 'mean', 'better')]
    listed = results.list_records(r, 'https://x')
    links, places = set(re.findall(r'\]\(#([\w.-]+)\)', '\n'.join(tables))), re.findall(r' id="?([\w.-]+)', listed)
    assert links and links <= set(places) and len(places) == len(set(places))
    assert {results.anchor('real', what) for what in r.records} <= set(places)
    for field in ('klej-S4', 'nkjp-ner', 'selections', 'heldout'), ('comparisons', 'pairs', 'S4-S3-heldout-mean'), ('time',):
        assert results.anchor('real', *field) in links, field
    assert 'href="https://x/blob/main/results/real/klej-S4.json"' in listed and 'href="https://x/commit/0123456789ab"' in listed
    assert '](report.ipynb#record-real-time)' in replace(r, page='report.ipynb').minutes()


@pytest.mark.parametrize('name', figures.FIGURES)
def test_a_figure_is_the_same_twice_described_and_readable_on_a_phone(name, folders):
    r, (draw, needs) = invent(), figures.FIGURES[name]
    picture = draw(r)
    text = figures.svg(picture.figure)
    with matplotlib.rc_context({'font.size': 30, 'axes.facecolor': 'red'}): again = figures.svg(draw(r).figure)
    assert text == again, 'whatever style another notebook has set'
    assert picture.figure.get_suptitle() and picture.caption.endswith('.') and len(picture.alt) > 40
    width, sizes = float(re.search(r'width="([\d.]+)pt"', text)[1]), list(map(float, re.findall(r'font[^;"]*?([\d.]+)px', text)))
    assert sizes and min(sizes)*340/width >= 9, 'text of nine pixels where the page is 340 wide'
    if name != 'grid':
        for ax in picture.figure.axes: assert ax.get_xlabel()
    said = figures.figure(r, name, f'fig-{name}')
    assert said.startswith('![') and f'{{#fig-{name} fig-alt="' in said
    assert (folders/'figures'/'real'/f'{name}.svg').read_text('utf-8') == text
    empty = figures.figure(Results('paper', {}, {}), name, 'fig-x')
    assert '#fig-x' in empty and ('To be drawn' in empty) == bool(needs), 'references resolve without records'


def test_figures_of_a_few_scenarios_can_be_drawn():
    r = invent('real', {s: MEANS[s] for s in ('T0', 'S4')})
    one = replace(r, records={w: x for w, x in r.records.items() if w in ('model-S4', 'comparisons', 'klej-S4', 'time')})
    for draw, _ in figures.FIGURES.values(): figures.svg(draw(r).figure), figures.svg(draw(one).figure)


def test_a_model_card_is_what_the_hub_reads(tiny):
    made = read_manifest(tiny.models['S4'])
    written = ModelCard((tiny.models['S4']/'README.md').read_text('utf-8'))
    assert written.data.license == 'apache-2.0' and written.data.language == 'pl' and written.data.pipeline_tag == 'fill-mask'
    for words in ('layers of T0', f'{made["counts"]["tokens"]:,} tokens', '5 soft', 'no Polish', made['key'], 'tiny.toml'):
        assert words in written.text, words
    score = {'nkjp-ner': {'metric': 'accuracy', 'n': 1941, 'mean': 80.23, 'low': 79.0, 'high': 81.0}}
    real = ModelCard(cards.card(PROFILES['real'], SCENARIOS['S4'], made['counts'], provenance(), kind='text-classification', scores=score))
    assert (real.data.base_model, real.data.license) == ('intfloat/multilingual-e5-small', 'other')
    (result,) = real.data.eval_results
    assert real.data.datasets == ['allegro/klej-nkjp-ner'] and (result.dataset_type, result.metric_value) == ('nkjp-ner', 80.23)
    assert '(mit)' in real.text and 'test labels of KLEJ are hidden' in real.text


def test_a_local_teacher_keeps_its_name_and_licence(tmp_path):
    def facts(): return cards.teacher_facts(replace(PROFILES['real'], teacher=str(tmp_path)))
    assert facts() == (tmp_path.name, ''), 'not known'
    (tmp_path/'README.md').write_text('---\nlicense: cc-by-4.0\nbase_model: someone/bert\n---\n# A model\n')
    assert facts() == ('someone/bert', 'cc-by-4.0')
    assert cards.teacher_facts(PROFILES['demo']) == ('', '')
    assert cards.teacher_facts(PROFILES['paper']) == ('allegro/herbert-base-cased', 'cc-by-4.0')


def test_a_data_card_counts_every_line(tiny):
    text = (tiny.sequences['ccsub']/'README.md').read_text('utf-8')
    part = read_manifest(tiny.text)['counts']['parts']['ccsub']
    steps = dict(re.findall(r'^- ([a-z ]+): (-?[\d,]+)$', text.partition('## From texts')[0], re.M))
    kept = int(steps.pop('texts kept').replace(',', ''))
    assert pipeline.sequences_artefact(tiny.profile).key in text and 'Not searched' in text
    assert kept == part['kept'] == sum(int(n.replace(',', '')) for n in steps.values()), 'lines read minus what each rule removed'


@pytest.mark.parametrize('name', PAGES)
def test_the_committed_page_is_what_the_committed_records_give(name, folders, monkeypatch):
    monkeypatch.setenv('DISTILHERBERT_RESULTS', str(TOP/'results'))
    monkeypatch.delenv('DISTILHERBERT_DATA', raising=False)
    texts = shown(name)
    fails = [m for t in texts for m in re.findall(r'.{0,80}\[claim fails: .*?\]', bare(t))]
    assert not fails, 'a sentence no longer follows from its record'
    outputs = [o['data'] for c in cells_of(name) for o in c.get('outputs', []) if 'data' in o]
    assert texts == [''.join(d['text/markdown']) for d in outputs if 'text/markdown' in d], 'run `make readme` and commit'
    for new in (folders/'figures').rglob('*.svg'):
        place = f'figures/{new.parent.name}/{new.name}'
        if not any(place in t for t in texts): continue  # drawn, but the page has no use for it yet
        old = TOP/'nbs'/place
        assert words(new.read_text('utf-8')) == words(old.read_text('utf-8')), old


def test_committed_records_of_the_demo_are_current(monkeypatch):
    monkeypatch.setenv('DISTILHERBERT_RESULTS', str(TOP/'results'))
    assert {w: why for w, why in load_results('demo').stale.items() if why} == {}


def test_without_records_a_page_claims_nothing_and_without_those_of_real_text_nothing_about_it():
    for name in PAGES: assert not any('claim fails' in t for t in shown(name))
    invent('demo', DEMO | {'S3': 69.0, 'S5': 72.9, 'T1': 77.0})
    for name in PAGES:
        page = '\n'.join(texts := shown(name))
        assert not [w for w in ('claim fails', 'record-real', 'To be drawn', '`real` that holds') if w in page], name
        assert not [line for line in page.splitlines() if '—' in line and not line.startswith('|')], 'a number without a record'
        if name == '07_report': assert 'There are no results for Polish yet' in texts[1] and len(bare(texts[1]).split()) <= 150


def test_the_report_marks_what_is_not_so_and_its_abstract_is_short():
    r, p = invent('real', MEANS | {'S4': 60.0}), PROFILES['real']
    texts = shown('07_report')
    report, abstract = '\n'.join(texts), bare(texts[1])
    assert '[claim fails: S4 against S3 on mean: worse]' in report and report.count('{#fig-') == 10
    assert set(re.findall(r'@((?:fig|tbl|eq)-\w+)', report)) <= set(re.findall(r'#((?:fig|tbl|eq)-\w+)', report))
    assert 'retain' in abstract and len(abstract.split()) <= 150, len(abstract.split())
    facts = len(p.task_seeds), len(p.tasks), p.max_len, p.heldout_share, p.selection_share
    assert facts == (6, 1, 128, 0.01, 0.1), 'the report has these in words'
    (spec,) = re.findall(r'vegaEmbed\(chart, (\{.*\}),$', report, re.M)  # The interactive figure: every score, with its record
    listed, rows = results.list_records(r, 'https://x'), json.loads(spec)['layer'][1]['data']['values']
    assert {x['place'].partition('#')[2] for x in rows} <= set(re.findall(r' id="?([\w.-]+)', listed))
    assert len(rows) == 4*(len(MEANS) + 2*sum(s.startswith('S') for s in MEANS)), 'scores, and retention of E0 and of T0'
    drawn = vl_convert.vegalite_to_svg(spec)
    for s, mean in (MEANS | {'S4': 60.0}).items(): assert f'Percent: {mean:g}; Model: {s}' in drawn, 'the mean of the tasks, at first'


def test_times_of_commands_appear_once_they_were_measured():
    invent(), invent('demo', DEMO)
    for measured in (False, True):
        for page in ('index', '30_records'):
            text = bare('\n'.join(shown(page)))
            assert ('`make test`' in text, '| 1 h 18 min |' in text, '20 min 01 s' in text) == (False, measured, measured)
        write_record('demo', 'commands', {'cold': 4710.0, 'S4 cold': 1201.0}, made=MADE)
