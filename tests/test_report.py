"The report says what the records say, and nothing else."
import importlib.util
import json
import os
import re
import sys
from dataclasses import asdict, replace

import matplotlib
import pytest
import seaborn as sns
import synthetic
from conftest import TOP, run_program

from distilherbert import cards
from distilherbert import evidence as ev
from distilherbert import figures as fig
from distilherbert.artefact import write_record
from distilherbert.klej import INTERVAL
from distilherbert.report import PAGES, not_current, other_pictures, stale_records
from distilherbert.scenario import PROFILES, SCENARIOS, results_dir


@pytest.fixture
def results(tmp_path, monkeypatch):
    "An empty folder of records."
    monkeypatch.setenv('DISTILHERBERT_RESULTS', str(tmp_path/'results'))
    monkeypatch.setenv('DISTILHERBERT_FIGURES', str(tmp_path/'figures'))
    return tmp_path/'results'


@pytest.fixture
def full(results):
    "A full set of invented records of the demo."
    synthetic.write_all('demo')
    return ev.load_evidence('demo')


def pair(low, high, **more):
    return {'a': 'S4', 'b': 'S2', 'task': 'mean', 'reading': 'honest', 'difference': (low + high)/2, 'low': low, 'high': high, 'n': 10, 'seeds': 5, **more}


def with_pairs(*pairs): return ev.Evidence('demo', {'comparisons': {'values': {'pairs': list(pairs)}}}, {'comparisons': ''})


@pytest.mark.parametrize(('low', 'high', 'said'), [
    (0.1, 2.0, 'S4 is better than S2'), (-2.0, -0.1, 'S4 is worse than S2'), (-1.0, 1.0, 'no difference on the mean of the tasks that this data can show'),
    (0.0, 2.0, 'no difference'), (-2.0, 0.0, 'no difference')])
def test_a_claim_needs_an_interval_without_zero(low, high, said):
    assert said in ev.compare_sentence(with_pairs(pair(low, high)), 'S4', 'S2')


def test_a_comparison_reads_the_same_from_both_sides():
    e = with_pairs(pair(1.0, 3.0))
    assert ev.find_pair(e, 'S2', 'S4') == {**pair(1.0, 3.0), 'a': 'S2', 'b': 'S4', 'difference': -2.0, 'low': -3.0, 'high': -1.0}
    assert 'S2 is worse than S4' in ev.compare_sentence(e, 'S2', 'S4') and '−2.0 points' in ev.compare_sentence(e, 'S2', 'S4')


def test_without_a_record_nothing_is_claimed():
    for e in (ev.Evidence('demo', {}, {}), with_pairs(pair(1, 3, task='nkjp-ner'))):
        said = ev.compare_sentence(e, 'S4', 'S2')
        assert 'better' not in said and 'difference' not in said
    empty = ev.Evidence('demo', {}, {})
    for table in (ev.table_scores(empty), ev.table_readings(empty), ev.table_models(empty)): assert '](#record' not in table
    row = next(line for line in ev.table_scores(empty).splitlines() if line.startswith('| **S4**'))
    assert row.count('—') == 5 and '*90.04*' in row, 'no record shows as —, published figures stay'


def test_the_expected_order_is_only_said_to_hold_when_it_does(full):
    assert 'S2 < S4) holds' in ev.order_sentence(full) and 'every single task' in ev.order_sentence(full)
    broken = with_pairs(pair(-1, 1), pair(1, 2, a='S1', b='S0'), pair(1, 2, a='S2', b='S0'))
    assert 'not all' in ev.order_sentence(broken) and 'S2 < S4 is not shown' in ev.order_sentence(broken)
    assert 'S4 is worse than S2' in ev.order_sentence(with_pairs(pair(-3, -1), pair(1, 2, a='S1', b='S0'), pair(1, 2, a='S2', b='S0')))


def test_the_order_is_told_task_by_task():
    good, bad = {'a': 'S2', 'b': 'S0', 'low': 1, 'high': 3, 'difference': 2, 'reading': 'honest', 'n': 9, 'seeds': 5}, {'low': -1, 'high': 1, 'difference': 0}
    scores = {'klej-S2': {'values': {t: {'readings': {'honest': {}}} for t in ('nkjp-ner', 'polemo2.0-in')}}}
    pairs = [good | {'task': 'mean'}, good | {'task': 'nkjp-ner'}, good | bad | {'task': 'polemo2.0-in'}]
    e = ev.Evidence('demo', scores | {'comparisons': {'values': {'pairs': pairs}}}, {})
    said = ev.order_sentence(e, [('S2', 'S0')])
    assert '(S0 < S2) holds' in said and 'Task by task: on PolEmo2.0-IN, S0 < S2 is not shown.' in said
    row = next(line for line in ev.table_pairs(e).splitlines() if line.startswith('| S2 − S0'))
    assert [c.strip().partition(']')[0] for c in row.split('|')[2:5]] == ['[+0.0 [−1.0, +1.0', '[**+2.0** [+1.0, +3.0', '[**+2.0** [+1.0, +3.0']


def bare(text): return re.sub(r'\[((?:[^\[\]]|\[[^\]]*\])*)\]\(#[\w.-]+\)', r'\1', text)


@pytest.fixture
def negative(results):
    "A full set in which distillation, copying and the teacher all disappoint."
    synthetic.write_all('demo', synthetic.NEGATIVE, swing=5.0)
    return ev.load_evidence('demo')


@pytest.mark.parametrize(('low', 'says'), [(-1.0, 'That says little: on the mean T0 is not shown to be better than S0'), (0.5, '')])
def test_a_share_of_nothing_is_called_so(low, says):
    pair_ = {'a': 'T0', 'b': 'S0', 'task': 'mean', 'reading': 'honest', 'difference': 1.0, 'low': low, 'high': 2.0, 'n': 9, 'seeds': 5}
    kept = {'student': 'S4', 'teacher': 'T0', 'task': 'mean', 'share': 0.9, 'low': 0.8, 'high': 1.0}
    said = ev.kept_sentence(ev.Evidence('demo', {'comparisons': {'values': {'pairs': [pair_], 'kept': [kept]}}}, {}))
    assert ('That says little' in said) == bool(says) and says in said


def test_a_share_is_judged_task_by_task(negative, full):
    said = bare(ev.kept_sentence(negative))
    assert 'That says little' in said and 'S4 keeps 99.6 % [97.6–101.6] on NKJP-NER; on PolEmo2.0-IN and PolEmo2.0-OUT it is not' in said, said
    assert ev.taught_sentence(negative) == 'T0 is shown to be better than S0 on NKJP-NER, and worse on PolEmo2.0-IN and PolEmo2.0-OUT.'
    assert 'On PolEmo2.0-IN and PolEmo2.0-OUT T0 is not shown' in ev.table_kept(negative)
    assert 'says little' not in ev.kept_sentence(full) + ev.table_kept(full) and 'on every task' in ev.taught_sentence(full)
    row = next(line for line in bare(ev.table_kept(negative)).splitlines() if line.startswith('| **S4**'))
    assert [c.strip().partition(' ')[0] for c in row.split('|')[2:6]] == ['99.5', '99.5', '99.6', '99.5']


@pytest.mark.parametrize('ends, said', [
    ({'nkjp-ner': (1, 3), 'polemo2.0-in': (-1, 3), 'polemo2.0-out': (-1, 3)}, 'T0 is shown to be better than S0 on NKJP-NER, and not on PolEmo2.0-IN and PolEmo2.0-OUT.'),
    ({'nkjp-ner': (-1, 3), 'polemo2.0-in': (-3, -1), 'polemo2.0-out': (-1, 3)}, 'T0 is shown to be better than S0 on none of the 3 tasks, and worse on PolEmo2.0-IN.')])
def test_tasks_on_which_a_teacher_knows_nothing_and_less_than_nothing(full, ends, said):
    pairs = [{**pair(*lh), 'a': 'T0', 'b': 'S0', 'task': t} for t, lh in ends.items()]
    records = {**full.records, 'comparisons': {'values': {'pairs': pairs, 'kept': []}}}
    assert ev.taught_sentence(ev.Evidence('demo', records, {})) == said


def test_unwelcome_answers_are_given(negative, full):
    said = bare(ev.findings_sentence(negative))
    better, worse, level = (part.partition('**')[2] for part in re.split(r'\*\*(?=better|worse|no difference)', said)[1:])
    assert 'S4 than S2 (+4.2 [+3.0, +5.4])' in better and 'S3 than S2' in better and 'S4 than S3' not in better
    assert 'S2 than S0 (−4.0 [−5.2, −2.8])' in worse and 'S4 than S3 (−2.8 [−4.0, −1.6])' in worse
    assert 'T0 and S0 (+0.5' in level and 'S1 and S0' in level and 'S5 and S3' in level
    assert bare(ev.findings_sentence(full)).count('**worse** in no case') == 1
    assert 'S2 is worse than S0' in ev.order_sentence(negative) and 'opposite' not in ev.order_sentence(negative)
    assert 'S4 is worse than S3' in ev.answers(negative) and 'no difference' in ev.compare_sentence(negative, 'T0', 'S0')


def test_the_place_of_the_teacher_is_told_where_s4_stays_there(negative, full):
    said = bare(ev.loss_sentence(negative))
    assert '4.970 (S3), 4.998 (S4), 4.967 (S5) nats: S4 0.028 over S3 and S5 about as high as S3.' in said, said
    assert 'T0 itself pays 4.995 there' in said and 'S3 ends 0.025 under it, S4 about as high as it' in said
    assert 'hold S4 near a teacher' in said and 'the loss of S4 falls to 4.958 where the soft targets weigh a fifth (' in said and 'read twice' not in said
    assert 'S3 with twice the tokens ends at 4.870, S5 0.097 over that.' in said
    ahead = bare(ev.loss_sentence(full))
    assert 'S4 0.025 under S3' in ahead and 'hold S4 near' not in ahead


def test_texts_that_were_cut_are_counted():
    values = {'nkjp-ner': {'title': 'NKJP-NER', 'cut': 0, 'n': 9, 'max_len': 64}, 'dyk': {'title': 'DYK', 'cut': 3, 'n': 8, 'max_len': 64, 'dev_from_train': True}}
    said = ev.cut_sentence(ev.Evidence('demo', {'klej-S4': {'values': values}}, {}))
    assert 'more than 64 tokens' in said and '3 of 8' in said and 'of DYK' in said and 'DYK have no dev set' in said and 'NKJP-NER' not in said
    whole = ev.cut_sentence(ev.Evidence('demo', {'klej-S4': {'values': {'nkjp-ner': values['nkjp-ner']}}}, {}))
    assert 'no text of dev is longer than the 64 tokens' in whole


def test_each_model_is_held_against_the_words_of_its_own_text(full):
    assert fig.bars(full).keys() == {s for s in SCENARIOS if s not in ('S0', 'S2')}
    low = ev.Evidence('demo', {w: r | {'values': r['values'] | {'unigram_entropy': 1.0 if w == 'model-T0' else 9.0}} if w.startswith('model-') else r
                               for w, r in full.records.items()}, {})
    picture = fig.draw_losses(low)
    assert picture.figure.get_suptitle() == 'T0 learnt nothing that needs context' and 'Without context 1.04 can be had by T0' in picture.alt


def test_another_grid_makes_records_stale(results):
    settings = {'profile': json.loads(json.dumps(asdict(PROFILES['mini']))), 'scenarios': [asdict(s) for s in SCENARIOS.values()]}
    write_record('mini', 'settings', settings)
    assert ev.load_evidence('mini').stale['settings'] == ''
    settings['scenarios'][4]['objective'] = 'released'
    write_record('mini', 'settings', settings)
    write_record('mini', 'time', {'total': 1.0})
    assert ev.load_evidence('mini').stale == {'settings': 'scenario S4 was another', 'time': 'scenario S4 was another'}


def test_table_one_is_the_grid():
    table = ev.table_scenarios()
    assert [line.split('**')[1] for line in table.splitlines() if line.startswith('| **')] == list(SCENARIOS)
    assert '| **S5** | every second layer of T1 | yes | T1 |' in table


def test_table_two_shows_ours_beside_the_published(full):
    row = next(line for line in ev.table_scores(full).splitlines() if line.startswith('| **S4**'))
    cells = [c.strip() for c in row.strip('|').split('|')]
    assert len(cells) == 9
    assert re.fullmatch(r'\[66\.5 \(64\.\d–68\.\d\)\]\(#record-demo-klej-s4\)', cells[1]) and cells[2] == '*90.04*'
    assert cells[-1] == '[92.6 (91–95)](#record-demo-comparisons)'
    assert re.fullmatch(r'\[\d\d\.\d \(\d\d\.\d–\d\d\.\d\)\]\(#record-demo-klej-s4\)', cells[-2]), 'the mean has its interval'
    assert 'n = 2,000' in ev.table_scores(full)


def test_published_figures_are_those_of_the_publications():
    report, june = ev.PUBLISHED['report'].scores, ev.PUBLISHED['june'].scores
    assert set(report) == {'S0', 'S2', 'S4', 'S5', 'T0', 'T1'} and set(june) == {'S0', 'S1', 'S2', 'S3', 'S4'}
    assert tuple(report['S5'].values()) == (90.32, 75.51, 90.52) and tuple(june['S3'].values()) == (86.6, 75.3, 80.6)
    assert tuple(report['T1'].values()) == (89.90, 77.33, 93.10)


def test_every_number_leads_to_the_line_of_its_record(full):
    tables = [ev.table_scores(full), ev.table_readings(full), ev.table_models(full), ev.table_rows(full), ev.table_cleaning(full), ev.table_rules(full),
              ev.answers(full), ev.kept_sentence(full), ev.size_sentence(full), ev.teacher_sentence(full), ev.cost_sentence(full)]
    places = set(re.findall(r'<a id="([\w.-]+)"', ev.table_records(full)))
    links = set(re.findall(r'\]\(#([\w.-]+)\)', '\n'.join(tables)))
    assert links and links <= places and len(places) == len(full.records)
    line = next(x for x in ev.table_records(full, url='https://x/results').splitlines() if 'klej-s4' in x)
    for part in ('results/demo/klej-S4.json', 'https://x/results/demo/klej-S4.json', 'distilherbert collect', '0123456789ab', '2026-01-01'):
        assert part in line
    assert 'one kind of machine: an invented machine, 2 cores.' in ev.table_records(full)
    other = full.records['klej-S4'] | {'provenance': full.records['klej-S4']['provenance'] | {'machine': 'another'}}
    several = ev.table_records(ev.Evidence('demo', {**full.records, 'klej-S4': other}, full.stale))
    assert '| Machine |' in several and '| another |' in several and '| an invented machine, 2 cores |' in several


def test_a_record_of_other_code_is_stale(full):
    assert not any(full.stale.values()), full.stale
    file = results_dir()/'demo'/'model-S4.json'
    record = json.loads(file.read_text()) | {'key': 'abcdefabcdef'}
    file.write_text(json.dumps(record))
    e = ev.load_evidence('demo')
    assert [w for w, why in e.stale.items() if why] == ['model-S4']
    assert '⚠' in ev.linked(e, 'model-S4', '1') and '⚠' not in ev.linked(e, 'model-S3', '1')
    assert '**stale**: key abcdefabcdef then' in ev.table_records(e)
    assert stale_records('demo') and 'model-S4.json' in stale_records('demo')[0]


@pytest.mark.parametrize('profile', ['demo', 'mini'])
def test_other_settings_make_records_stale_and_are_named(results, profile):
    settings = json.loads(json.dumps(asdict(replace(PROFILES[profile], tokens=7))))
    write_record(profile, 'settings', {'profile': settings})
    write_record(profile, 'pack', {}, key='abc')
    e = ev.load_evidence(profile, key_of=lambda p, what: 'abc')
    assert e.stale['settings'] == f'tokens: 7 then, {PROFILES[profile].tokens} now'
    assert bool(e.stale['pack']) == (profile == 'mini'), 'the key decides where it can be computed, the settings elsewhere'


def test_a_record_from_before_a_field_is_judged_by_its_default(results):
    settings = json.loads(json.dumps(asdict(PROFILES['mini'])))
    assert settings.pop('drop_klej') is False and settings.pop('name') == 'mini'
    assert ev.changed_settings(PROFILES['mini'], settings) == ['name: absent then, mini now']
    assert 'drop_klej: False then, True now' in ev.changed_settings(replace(PROFILES['mini'], drop_klej=True), settings)


def test_the_same_change_stands_in_one_line(negative):
    rows = [[c.strip() for c in line.split('|')[1:-1]] for line in bare(ev.table_ablations(negative)).splitlines()[2:7]]
    assert [r[0] for r in rows] == ['*as they are*', 'twice the tokens', 'soft targets five times lighter', 'no cosine', 'twice the learning rate']
    assert rows[1] == ['twice the tokens', '4.870', '4.948', '+0.078', '—', '73.0', '65.2', '−7.8']
    assert rows[3][1:4] == ['4.970', '4.978', '+0.008'], 'a change of the loss leaves S3 as it is'
    said = bare(ev.ablation_sentence(negative))
    assert 'lowered by 3: *twice the tokens* (4.948), *soft targets five times lighter* (4.958), *no cosine* (4.978); left about equal by 1' in said, said
    assert 'Of 5 settings' in said and 'S4 ends under S3 in 1: *soft targets five times lighter* (−0.012); about equal in 2: *twice the learning rate*' in said
    assert 'interval' not in said.replace('without an interval', ''), 'two seeds are too few for intervals'
    assert 'bench/ablations.py --profile mini' in ev.ablation_sentence(ev.Evidence('mini', {}, {}))


def test_losses_alone_are_shown_without_scores(negative):
    variants = [v | {'score': None} for v in negative.get('ablations', 'variants')]
    e = ev.Evidence('demo', negative.records | {'ablations': {'values': {'seeds': [], 'variants': variants}}}, {})
    assert 'points' not in ev.table_ablations(e) and 'seeds' not in ev.table_ablations(e) and 'mean of the tasks' not in ev.ablation_sentence(e)
    assert ev.table_rates(e) == ev.table_rates(negative)


def test_a_teacher_that_loses_by_reading_on_is_said_to(full):
    start = ev.teacher_start(full)
    def with_t1(end):
        return ev.Evidence('demo', full.records | {'model-T1': full.records['model-T1'] | {'values': full.get('model-T1') | {'heldout_loss': end}}}, {})
    assert 'T1 ends 0.050 over its own start: it has lost by reading on.' in bare(ev.loss_sentence(with_t1(start + 0.05)))
    assert 'its own start' not in ev.loss_sentence(with_t1(start - 0.05)) + ev.loss_sentence(with_t1(start + 0.005))


def test_the_learning_rates_are_judged_one_by_one(negative):
    said = bare(ev.rate_sentence(negative))
    assert 'for S1 the profile’s rate, 0.004, is not the best: × 0.5 ends 0.030 nats lower, at the edge of the range' in said, said
    assert 'for S3 the profile’s rate, 0.002, has the lowest loss of those tried' in said
    assert 'for S4 the profile’s rate, 0.002, is about as good as the best of those tried (× 2)' in said
    assert '| **S1** | language modelling from random weights | 0.004 | 4.975 | 5.005 | 5.045 |' in bare(ev.table_rates(negative))
    few = [v for v in negative.get('ablations', 'variants') if v['row'] != 'S1']
    old = ev.Evidence('demo', {'ablations': {'values': {'seeds': [0, 1], 'variants': few}}}, {})
    assert 'For S1 no other rate was tried.' in ev.rate_sentence(old)
    higher = [v for v in few if v['change'] != 'half the learning rate']
    said = ev.rate_sentence(ev.Evidence('demo', {'ablations': {'values': {'seeds': [0, 1], 'variants': higher}}}, {}))
    assert 'for S3 the profile’s rate has the lowest loss of those tried, at the edge of the range that was tried' in said, said


def load_bench(name):
    "A script of bench/ as a module."
    spec = importlib.util.spec_from_file_location(name, TOP/'bench'/f'{name}.py')
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try: spec.loader.exec_module(module)
    finally: del sys.modules[name]
    return module


def test_changes_have_the_names_that_the_benchmark_gives_them():
    bench = load_bench('ablations')
    assert tuple(bench.LOSSES) == ev.LOSS_ONLY and bench.RATES == {c: x for c, x in ev.RATES.items() if c}
    assert {v.row for v in bench.variants(4, [])} == set(ev.ABLATED)


def test_records_without_a_key_are_held_against_the_others(full):
    assert not any(full.stale.values()), full.stale
    def changed(what, values): return ev.contradiction(what, full.records | {what: full.records[what] | {'values': values}})
    variants = full.get('ablations', 'variants')
    assert changed('ablations', {'variants': variants}) == '' == changed('time', full.get('time'))
    other = changed('ablations', {'variants': [v | {'heldout_loss': 4.0} if v['row'] == 'S3' else v for v in variants]})
    assert other == 'held-out loss of S3: 4 here, 4.94 in the records of the models'
    elsewhere = full.records['model-S3'] | {'provenance': {'machine': 'another one'}}
    records = full.records | {'ablations': full.records['ablations'] | {'values': {'variants': [v | {'heldout_loss': 4.0} if v['row'] == 'S3' else v for v in variants]}}}
    assert ev.contradiction('ablations', records | {'model-S3': elsewhere}) == '', 'another machine rounds differently'
    assert changed('time', {'model': 400.0, 'total': 1500.0}) == 'seconds of training: 400 here, 360.2 in the records of the models'
    for what, reason in (('commands', 'key'), ('ablations', 'key')):
        file = results_dir()/'demo'/f'{what}.json'
        file.write_text(json.dumps(json.loads(file.read_text()) | {'key': 'abcdefabcdef'}))
        assert ev.load_evidence('demo').stale[what].startswith(f'{reason} abcdefabcdef then')
    file = results_dir()/'demo'/'time.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | {'values': {'model': 1.0, 'total': 2.0}}))
    assert ev.load_evidence('demo').stale['time'].startswith('seconds of training: 1 here')


def test_costs_are_those_of_the_classifiers_that_the_code_would_make(monkeypatch):
    monkeypatch.delenv('DISTILHERBERT_RESULTS', raising=False)
    values = ev.load_evidence('demo').get('deployment')
    assert ev.other_classifiers(PROFILES['demo'], values) == ''
    said = ev.other_classifiers(replace(PROFILES['demo'], task_lr=0.1), values)
    assert said.count(' then, ') == len(values['rows']) and said.startswith('S0: key ')
    assert ev.other_classifiers(PROFILES['demo'], {'task': '', 'rows': {'S4': {}}}) is None


def test_the_time_of_the_text_and_that_of_the_figure_are_one(monkeypatch):
    monkeypatch.delenv('DISTILHERBERT_RESULTS', raising=False)
    for p in ('demo', 'mini'):
        e = ev.load_evidence(p)
        assert abs(sum(ev.stage_times(e).values()) - e.get('time', 'total')) < 1
        total = re.search(r'add up to \[(.*?)\]', ev.cost_sentence(e))[1]
        assert total in fig.draw_times(e).figure.get_suptitle() and total in fig.draw_times(e).caption
        seconds = {w: r['seconds'] for w, r in e.records.items() if w in ('model-T0', 'model-S4', 'klej-S4')}
        assert len(seconds) == 3 and ev.chain_seconds(e, 'S4') == pytest.approx(sum(seconds.values()) + sum(e.get('time', s) for s in ('tokenizer', 'text', 'rows')), abs=0.2)
        assert ev.chain_seconds(ev.Evidence(p, {w: r for w, r in e.records.items() if w != 'model-T0'}, {}), 'S4') is None


@pytest.mark.parametrize('profile', ['demo', 'mini'])
def test_comparisons_with_intervals_of_another_kind_are_stale(full, profile):
    record = full.records['comparisons']
    now, then, before = ({**record, 'values': record['values'] | how} for how in ({'interval': INTERVAL}, {'interval': 'plain percentile'}, {'interval': None}))
    assert not ev.why_stale(profile, now)
    assert ev.why_stale(profile, then) == 'intervals: plain percentile then, expanded percentile now' and 'of another kind then' in ev.why_stale(profile, before)


def test_losses_in_one_column_are_of_one_text(negative):
    rows = {line.split('**')[1]: [c.strip() for c in line.split('|')[1:-1]] for line in bare(ev.table_models(negative)).splitlines()[2:] if line.startswith('| **')}
    assert rows['T0'][-1] == '4.995' and rows['T1'][-1] == '4.960' and rows['S4'][6] == '1.25'
    assert '(#record-demo-model-t1)' in next(line for line in ev.table_models(negative).splitlines() if line.startswith('| **T0')).rsplit('|', 2)[1]


def test_titles_claim_no_more_than_intervals_show(negative, full):
    assert fig.best_student(full) == 'No student is shown to be best: S5, the highest mean, is not shown to be better than S4'
    assert fig.best_student(ev.Evidence('demo', {w: r for w, r in full.records.items() if w != 'klej-S4'}, {})) == 'On the mean of the tasks, S5 is better than every other student'
    assert fig.size_title(full).endswith('S4 is worse than T0 on the mean') and fig.size_title(negative).endswith('S4 cannot be told from T0 on the mean')
    places = fig.beside_each_other({'S3': 100, 'S4': 100, 'T0': 200})
    assert places['S3'] < places['S4'] < places['T0'] and places['S3'] + places['S4'] == pytest.approx(2e-4)


def test_a_new_version_of_a_stage_makes_records_of_real_data_stale(results):
    stages = ev.stage_versions()
    assert {'text', 'model', 'scores'} <= set(stages)
    for old, stale in ((stages, False), (stages | {'model': stages['model'] - 1}, True)):
        write_record('mini', 'settings', {'profile': json.loads(json.dumps(asdict(PROFILES['mini']))), 'stages': old})
        write_record('mini', 'model-S4', {}, key='abc')
        assert [bool(x) for x in ev.load_evidence('mini').stale.values()] == [stale, stale]


def test_real_data_are_not_needed_to_show_records(results, monkeypatch):
    monkeypatch.delenv('DISTILHERBERT_DATA', raising=False)
    synthetic.write_all('mini')
    e = ev.load_evidence('mini')
    assert not any(e.stale.values()) and 'settings as recorded' in ev.table_records(e)


def test_a_waterfall_that_loses_a_line_is_an_error():
    with pytest.raises(ValueError, match='vanished'): ev.waterfall({'lines_read': 5, 'rejected': {'short': 1}, 'duplicates': 0, 'kept': 3})


@pytest.mark.parametrize('draw', [fig.draw_losses, fig.draw_agreement, fig.draw_scores, fig.draw_waterfall, fig.draw_lengths, fig.draw_inflation,
                                  fig.draw_times, fig.draw_size, fig.draw_deployment], ids=lambda f: f.__name__)
def test_figures_are_the_same_twice_and_described(full, draw):
    picture = draw(full)
    text = fig.svg(picture.figure)
    with matplotlib.rc_context():
        sns.set_theme(context='poster', style='dark')
        assert text == fig.svg(draw(full).figure), 'whatever style another notebook has set'
    assert len(picture.alt) > 40 and picture.caption.endswith('.')
    assert picture.figure.get_suptitle(), 'a title that says what to see'
    for ax in picture.figure.axes: assert ax.get_xlabel()
    assert picture.name == draw.__name__.removeprefix('draw_')


def test_figures_without_any_points_do_not_fail(results):
    synthetic.write_models('demo')
    e = ev.load_evidence('demo')
    untrained = ev.Evidence('demo', {w: r for w, r in e.records.items() if w in ('model-S0', 'model-S2')}, {})
    fig.svg(fig.draw_losses(untrained).figure), fig.svg(fig.draw_agreement(untrained).figure), fig.svg(fig.draw_times(untrained).figure)


def test_a_profile_without_records_says_what_makes_them():
    said = ev.in_tabs({'demo': ev.Evidence('demo', {}, {}), 'paper': ev.Evidence('paper', {}, {})}, ev.answers, 'comparisons', label='tbl-x')
    assert '`make report`' in said and '`distilherbert reproduce --profile paper`' in said and '{#tbl-x}' in said


@pytest.mark.parametrize('name', PAGES)
def test_the_stored_page_is_what_the_committed_records_give(name, monkeypatch):
    monkeypatch.delenv('DISTILHERBERT_RESULTS', raising=False)
    monkeypatch.delenv('DISTILHERBERT_DATA', raising=False)
    assert not not_current(TOP/'nbs'/f'{name}.ipynb'), 'run make render and commit'


def test_records_of_the_demo_are_current(monkeypatch):
    monkeypatch.delenv('DISTILHERBERT_RESULTS', raising=False)
    assert stale_records('demo') == []


def test_a_page_that_is_not_current_is_found(tmp_path):
    def page(shown):
        source = ['from IPython.display import Markdown\n', "Markdown('made')"]
        output = {'output_type': 'execute_result', 'data': {'text/markdown': [shown]}, 'metadata': {}, 'execution_count': None}
        cell = {'cell_type': 'code', 'id': 'a', 'source': source, 'metadata': {}, 'execution_count': None, 'outputs': [output]}
        (tmp_path/'x.ipynb').write_text(json.dumps({'cells': [cell], 'metadata': {}, 'nbformat': 4, 'nbformat_minor': 5}))
        return tmp_path/'x.ipynb'
    assert not_current(page('typed')) == 'x.ipynb: “typed…” would now be “made…”'
    assert not_current(page('made')) == ''


def test_a_picture_may_move_by_a_hair_and_no_more(full, tmp_path):
    picture = fig.draw_scores(full)
    made, kept = tmp_path/'made'/'demo', tmp_path/'kept'/'demo'
    for folder in (made, kept): folder.mkdir(parents=True)
    text = fig.svg(picture.figure)
    (made/'scores.svg').write_text(text)
    assert other_pictures(made.parent, kept.parent) == ['figures/demo/scores.svg'], 'a missing one'
    moved = re.sub(r'M (\d+\.\d+) ', lambda m: f'M {float(m[1]) + 0.3:.3f} ', text)
    for other, differs in ((text, False), (moved, False), (text.replace('Accuracy', 'Precision'), True), (text.replace('#d55e00', '#000000'), True)):
        (kept/'scores.svg').write_text(other)
        assert bool(other_pictures(made.parent, kept.parent)) == differs
    changed = ev.Evidence('demo', {**full.records, 'klej-S4': full.records['klej-S1']}, {})
    (kept/'scores.svg').write_text(fig.svg(fig.draw_scores(changed).figure))
    assert other_pictures(made.parent, kept.parent), 'another score is another picture'


def test_a_card_is_what_the_hub_reads(full):
    from huggingface_hub import ModelCard
    card = ModelCard(cards.card(full, PROFILES['demo'], 'S4'))
    assert card.data.language == 'pl' and card.data.license == 'apache-2.0' and card.data.metrics == ['accuracy']
    scores = {r.dataset_type: r.metric_value for r in card.data.eval_results}
    assert scores == {t: round(full.get('klej-S4', t, 'readings', 'honest', 'mean'), 2) for t in ev.TASKS}
    for words in ('every second layer of T0', '2.0 M tokens', 'an invented machine', 'no Polish', '66.5 (64', 'distilherbert collect'):
        assert words in card.text, words


def test_a_card_needs_no_scores_and_no_training(results):
    synthetic.write_models('mini')
    e = ev.load_evidence('mini')
    text = cards.card(e, PROFILES['mini'], 'S0')
    assert 'No scores have been recorded' in text and 'none beyond the first weights' in text and 'license: other' in text and 'model-index' not in text


def test_a_card_that_is_given_away_speaks_of_the_model_in_the_folder(results, tmp_path, monkeypatch):
    "Without a record, and with records of an earlier model and its scores."
    from distilherbert import distill, reproduce
    from distilherbert import plan as planned
    from distilherbert.artefact import Artefact
    monkeypatch.setenv('DISTILHERBERT_RUNS', str(tmp_path/'runs'))
    counts = {'parameters': 10, 'encoder_parameters': 8, 'layers': 2, 'hidden': 4, 'tokens': 61_000, 'steps': 7, 'train_seconds': 1.0, 'heldout': {'mlm': 3.217}, 'unigram_entropy': 5.0}
    def make(work):
        for name in ('model.safetensors', 'metrics.jsonl'): (work/name).write_text('')
        return counts
    model, scores = Artefact('model', 'S4', 1, {}, (), make), Artefact('scores', 'S4', 1, {}, (), lambda work: {})
    model.build()
    monkeypatch.setattr(distill, 'model_artefact', lambda p, s: model)
    monkeypatch.setattr(planned, 'planned_artefacts', lambda p, s: [model, scores])
    def given(name): return (cards.give_away('demo', 'S4', tmp_path/name)/'README.md').read_text('utf-8')
    first = given('first')
    for words in ('61,000 tokens in 7 steps', '3.217 nats', '`distilherbert run S4 --profile demo`', 'No scores have been recorded'): assert words in first, words
    assert 'none beyond' not in first and 'none beyond' not in cards.card_making(ev.Evidence('demo', {}, {}), PROFILES['demo'], 'S4')
    synthetic.write_all('demo')
    second = given('second')
    assert '3.217 nats' in second and 'No scores have been recorded' in second, 'the record is of another model'
    old = ev.load_evidence('demo').records['klej-S4']
    reproduce.write_record('demo', 'klej-S4', old['values'], key=scores.key)
    third = given('third')
    assert '3.217 nats' in third and 'No scores have been recorded' not in third and 'Score on dev' in third


def test_costs_stand_on_a_card_from_short_to_long(full):
    "JSON sorts 128 before 32."
    form = {'bytes': 4e6, 'latency': {'128': 0.008, '32': 0.002, '512': None}, 'throughput': {'128': 1.0, '32': 2.0, '512': None}}
    costs = {'task': 'nkjp-ner', 'threads': 1, 'batch': 32, 'rounds': 7, 'rows': {'S4': {'parameters': 9, 'seed': 14, 'forms': {'torch': form}}}}
    e = ev.Evidence('demo', full.records | {'deployment': {'values': costs}}, full.stale)
    assert ev.deployment_lengths(e) == ['32', '128']
    assert '| torch | 4.0 | 2.00 | 8.00 |' in cards.card_results(e, PROFILES['demo'], SCENARIOS['S4'])
    assert 'a single fine-tuning of each row' in ev.table_deployment(e) and 'S4 14' in ev.table_deployment(e)
    assert 'single fine-tuning' not in ev.table_deployment(full)


@pytest.mark.parametrize(('profile', 'shape'), [('mini', '4 layers of 128'), ('base', '12 layers of 768')])
def test_limits_tell_the_teachers_shape(profile, shape):
    said = cards.card_limits(PROFILES[profile])
    assert f'Its teacher has {shape} and was trained here, so it is no distilled HerBERT.' in said and 'small' not in said


def test_times_of_other_code_do_not_stay_beside_new_ones(results):
    times = load_bench('times')
    def read(): return json.loads((results_dir()/'demo'/'commands.json').read_text())
    times.record({'cold': 1.0})
    times.record({'warm': 2.0})
    assert read()['values'] == {'cold': 1.0, 'warm': 2.0} and read()['key'] == ev.expected_key('demo', 'commands')
    write_record('demo', 'commands', {'cold': 1.0}, key='abcdefabcdef')
    times.record({'warm': 2.0})
    assert read()['values'] == {'warm': 2.0}


def test_a_few_rows_alone_are_shown(full):
    "A profile in which only T0 and S4 are there."
    e = ev.Evidence('demo', {w: r for w, r in full.records.items() if w.partition('-')[2] in ('', 'T0', 'S4') and w != 'comparisons'}, {})
    for draw in (fig.draw_losses, fig.draw_agreement, fig.draw_scores, fig.draw_inflation, fig.draw_times, fig.draw_size): fig.svg(draw(e).figure)
    table = ev.table_scores(e)
    assert '#record-demo-klej-s4' in table and '#record-demo-klej-s1' not in table
    assert not re.search('is (better|worse) than', ev.answers(e))


def test_the_command_needs_a_checkout_and_says_so(tmp_path):
    done = run_program(sys.executable, '-m', 'distilherbert.report', cwd=tmp_path)
    assert done.returncode == 2 and '--render' in done.stderr
    assert os.listdir(tmp_path) == []
