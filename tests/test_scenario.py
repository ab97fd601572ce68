"Scenarios, objectives and profiles: settings that could not work are refused by name, in Python and in a TOML file."
import pickle
import socket
from dataclasses import asdict, fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distilherbert import scenario
from distilherbert.scenario import (
    INITS,
    PRESETS,
    PROFILES,
    SCENARIOS,
    Objective,
    Profile,
    Scenario,
    SettingsError,
    as_typed,
    checkout,
    data_dir,
    data_workers,
    get_profile,
    get_scenario,
    required,
    runs_dir,
    teacher_source,
    unknown_name,
)

DEMO, REAL = PROFILES['demo'], PROFILES['real']
NAN, INF = float('nan'), float('inf')
FLOATS = [f.name for f in fields(Profile) if f.type is float]


def write(file, text):
    file.write_text(text)
    return file


# Profiles

@pytest.mark.parametrize('field, value', [
    ('text_lines', -1), ('world_size', -1), ('world_size', 0), ('vocab_size', -1), ('vocab_size', 0), ('min_piece', -1), ('min_piece', 63),
    ('tokens', -1), ('tokens', 1e6), ('teacher_tokens', -1), ('heldout_share', 0.0), ('heldout_share', 1.0), ('weight_decay', -0.1),
    ('adam_beta2', 1.0), ('adam_beta2', -0.1), ('lr_head', -1e-3), ('lr_teacher', -1e-3), ('teacher_mask_share', 1.0),
    ('task_examples', -1), ('task_max_len', 4), ('seed', -1), ('seed', 2**32), ('data_seed', -1), ('task_seeds', (-1,)),
    ('task_seeds', (1, 2, 1)), ('task_seeds', ()), ('tasks', ()), ('tasks', 'nkjp-ner'), ('tasks', ('nkjp-ner', 'nkjp-ner')),
    ('scenarios', ()), ('scenarios', ('S0', 'S0')), ('heads', 5),
    ('precision', 'fp8'), ('task_precision', 'half'), ('attention', 'all'), ('vocab', 'cut'), ('on_bad_file', 'skip'), ('zero', 1),
    ('compile', 1), ('name', ''), ('name', 'a/b'), ('name', '..'), ('name', 'my profile'),
    *((f, v) for f in FLOATS for v in (NAN, INF))], ids=str)
def test_a_profile_that_cannot_work_names_the_field(field, value):
    with pytest.raises(SettingsError, match=rf'\b{field}\b'): replace(DEMO, **{field: value})


@pytest.mark.parametrize('changes, words', [
    ({'teacher': 'some/bert'}, 'Write `tokenizer = "teacher"`'), ({'tokenizer': 'teacher'}, 'but teacher = "scratch"'),
    ({'vocab': 'trim'}, 'vocab = "trim" cannot'), ({'vocab': 'trim', 'vocab_size': 0, 'tokenizer': 'herbert'}, '`vocab_size` = 0'),
    ({'on_bad_file': 'skip'}, 'is for a folder'), ({'scenarios': ('S0', 'S9')}, 'There is: S0, S1'), ({'precision': 'bf61'}, 'mean bf16')])
def test_fields_that_contradict_each_other_say_what_to_write(changes, words):
    with pytest.raises(SettingsError, match=words): replace(DEMO, **changes)


def test_names_with_letters_of_all_kinds(): assert replace(DEMO, name='mój-profil_2.5').name == 'mój-profil_2.5'


def test_a_scenario_of_a_file_may_be_listed(): assert 'mine.toml' in replace(DEMO, scenarios=('S0', 'mine.toml')).scenarios


@pytest.mark.parametrize('settings', [*PROFILES.values(), *SCENARIOS.values(), *PRESETS.values()], ids=lambda s: s.name)
def test_settings_survive_a_worker_process_and_can_be_compared(settings):
    assert pickle.loads(pickle.dumps(settings)) == settings and hash(settings) == hash(replace(settings))
    assert asdict(settings)['name'] == settings.name


# Objectives

@pytest.mark.parametrize('value', [NAN, INF, True, '1'], ids=str)
@pytest.mark.parametrize('where', ['weights', 'temperature'])
def test_an_objective_has_finite_numbers(where, value):
    changes = {'weights': {'mlm': value}} if where == 'weights' else {'weights': {'mlm': 1.0}, where: value}
    with pytest.raises(SettingsError, match=f'`{where}` of objective mine'): Objective('mine', **changes)


@pytest.mark.parametrize('changes, words', [
    ({'weights': {}}, 'must be above 0'), ({'weights': {'mlm': 0.0}}, 'must be above 0'), ({'temperature': 0.0}, 'temperature'),
    ({'weights': {'mlm': 1.0, 'soft': -1}}, 'soft = -1'), ({'hidden_map': (1, 3)}, 'needs a loss on hidden layers'),
    ({'soft_targets_on': 'some'}, 'There is: masked, all')])
def test_an_objective_that_cannot_work_is_refused(changes, words):
    with pytest.raises(SettingsError, match=words): Objective('mine', **{'weights': {'mlm': 1.0}} | changes)


def test_a_weight_of_zero_drops_the_loss():
    assert Objective('mine', {'mlm': 2, 'soft': 0.0}).weights == {'mlm': 2.0}
    assert Objective('mine', {'soft': 1.0, 'mlm': 2.0}) == Objective('mine', {'mlm': 2.0, 'soft': 1.0})


# Scenarios

@pytest.mark.parametrize('name', ['', 'a/b', '.S4', '-S4'])
def test_a_scenario_has_a_name_that_a_folder_can_have(name):
    with pytest.raises(SettingsError, match='`name` of a scenario'): Scenario(name, 'random')


@pytest.mark.parametrize('fields, words', [
    ({'init': 'whole', 'source': 'T0'}, 'There is: random, truncated, copy, pretrained'), ({'init': 'truncated'}, 'needs `source`'),
    ({'init': 'pretrained', 'source': 'T0'}, 'has no `source`'), ({'init': 'random', 'layer_map': (0, 2)}, 'needs init "truncated"'),
    ({'init': 'random', 'teacher': 'T0'}, 'needs `mlm = true`'), ({'init': 'random', 'objective': 'distilbird'}, 'mean distilbert')])
def test_a_scenario_that_contradicts_itself_is_refused(fields, words):
    with pytest.raises(SettingsError, match=words): Scenario('X', **fields)


def test_an_objective_on_hidden_states_needs_no_mlm():
    assert Scenario('X', 'random', teacher='T0', objective='hidden').loss is PRESETS['hidden']
    assert SCENARIOS['S4h'].loss.weights == {'hidden': 1.0, 'cosine': 1.0} and SCENARIOS['S3'].loss is None


def test_the_grid_is_that_of_the_report_and_two_rows_of_our_own():
    needs = {'S0': (), 'S1': (), 'S2': ('T0',), 'S3': ('T0',), 'S4': ('T0',), 'S4h': ('E0',), 'S5': ('T0', 'T1'), 'E0': (), 'T0': (),
             'T1': ('T0',)}
    assert {n: required(s) for n, s in SCENARIOS.items()} == needs and list(SCENARIOS) == list(needs)
    assert {s.init for s in SCENARIOS.values()} == set(INITS)
    assert not {'E0', 'S4h'} & set(Profile.scenarios) and list(REAL.scenarios) == list(SCENARIOS)


@pytest.mark.parametrize('field', ['source', 'teacher'])
def test_a_scenario_that_needs_itself(tmp_path, field):
    one, two = tmp_path/'one.toml', tmp_path/'two.toml'
    with pytest.raises(SettingsError, match='one needs itself: one → one'): get_scenario(write(one, f'like = "S4"\n{field} = "{one}"\n'))
    write(one, f'like = "S4"\n{field} = "{two}"\n')
    write(two, f'like = "S4"\n{field} = "{one}"\n')
    with pytest.raises(SettingsError, match='one needs itself: one → two → one'): get_scenario(one)


# Names and files

@settings(max_examples=50)
@given(st.text(max_size=8))
def test_an_unknown_name_lists_what_exists(name):
    if name in SCENARIOS or name.endswith('.toml'): return
    with pytest.raises(ValueError, match='There is: S0, S1'): get_scenario(name)


def test_the_nearest_name_ignores_case():
    assert 'Did you mean S4?' in str(unknown_name('scenario', 's4', list(SCENARIOS)))
    assert 'Did you mean' not in str(unknown_name('scenario', 'warsaw', list(SCENARIOS)))


@pytest.mark.parametrize('get, text, words', [
    (get_profile, 'like = ["demo"]', 'field `like` of'), (get_scenario, 'like = 4', 'field `like` of'),
    (get_scenario, 'mlm = true', 'field `init`'), (get_profile, 'like = "demmo"', 'Did you mean demo'),
    (get_profile, 'like = "demo"\nclip = inf', '`clip` of profile mine'),
    (get_profile, 'like = "demo"\ntoken = 5', 'Did you mean tokens'), (get_profile, 'like = demo', 'not a valid TOML file'),
    (get_profile, 'more_seeds = ["S4"]', "'more_seeds'"),
    *((get_scenario, f'like = "S4"\n[objective]\n{objective}', words) for objective, words in (
        ('like = ["distilbert"]\nmlm = 1.0', 'field `like` of objective'), ('cosine_of = "logits"', "`weights`.*'cosine_of'"),
        ('mlm = 1\ntemperature = "hot"', '`temperature`'), ('mlm = nan', '`weights`')))])
def test_a_file_that_cannot_work_is_named(tmp_path, get, text, words):
    with pytest.raises(SettingsError, match=words) as error: get(write(tmp_path/'mine.toml', text))
    assert 'mine' in str(error.value)


def test_a_file_starts_from_an_entry_and_names_what_differs(tmp_path):
    assert get_profile(write(tmp_path/'small.toml', 'like = "demo"\ntokens = 5\ntask_seeds = [1, 2]\nclip = 2')) == replace(
        DEMO, name='small', tokens=5, task_seeds=(1, 2), clip=2.0)
    assert type(get_profile(tmp_path/'small.toml').clip) is float, 'a key must not depend on how a number is written'
    late = get_scenario(write(tmp_path/'late.toml', 'like = "S4"\nlayer_map = [0, 2, 4, 7, 9, 11]'))
    assert late == replace(SCENARIOS['S4'], name='late', layer_map=(0, 2, 4, 7, 9, 11))
    assert (as_typed(late), as_typed(DEMO)) == ('late.toml', 'demo')


def test_an_objective_of_ones_own_is_a_table_of_weights(tmp_path):
    def loss(text): return get_scenario(write(tmp_path/'own.toml', f'like = "S4"\n[objective]\n{text}')).loss
    assert loss('mlm = 2.0\nsoft = 5\ntemperature = 2') == Objective('own', {'mlm': 2.0, 'soft': 5.0}, temperature=2)
    assert loss('like = "distilbert"\ncosine = 0\nhidden = 10\nhidden_map = [1, 3]') == Objective(
        'own', {'mlm': 2.0, 'soft': 5.0, 'hidden': 10.0}, temperature=3.0, hidden_map=(1, 3))
    assert loss('name = "mine"\nanything = 0.5').weights == {'anything': 0.5}, 'names of losses are checked where they are registered'


@pytest.mark.parametrize('get, file, text', [
    (get_profile, 'demo.toml', 'like = "demo"\ntokens = 5\n'), (get_scenario, 'S4.toml', 'like = "S4"\nobjective = "released"\n'),
    (get_profile, 'other.toml', 'like = "demo"\nname = "paper"\n')])
def test_no_file_goes_by_the_name_of_a_built_in_entry(tmp_path, get, file, text):
    "Records and notebooks are kept by name: those of the built-in one would be overwritten."
    with pytest.raises(SettingsError, match='name of the built-in .*name = "my-'): get(write(tmp_path/file, text))
    assert get_profile(write(tmp_path/'demo.toml', 'like = "demo"\n')) == DEMO, 'the same under the same name harms nobody'


# Where data, runs and teachers are

@pytest.fixture
def no_hub(monkeypatch):
    def refuse(*args, **kw): raise OSError('no network')
    monkeypatch.setattr(socket, 'create_connection', refuse)
    monkeypatch.setattr(scenario, 'getproxies', dict)


def test_real_takes_local_data_where_there_is_some(tmp_path, monkeypatch, no_hub):
    monkeypatch.setenv('DISTILHERBERT_DATA', str(tmp_path))
    (tmp_path/'text').mkdir()
    with pytest.raises(SettingsError, match='There is no folder .*klej'): get_profile('real')
    (tmp_path/'klej').mkdir()
    assert get_profile('real') == replace(REAL, text='local', text_lines=0, task_source='local')


def test_real_takes_the_hub_or_says_what_to_get(tmp_path, monkeypatch, no_hub):
    monkeypatch.delenv('DISTILHERBERT_DATA', raising=False)
    mine = write(tmp_path/'mine.toml', f'like = "real"\ntext = "{tmp_path}"\n')
    for name in ('real', mine):
        with pytest.raises(SettingsError, match='hub cannot be reached(.|\n)*klejbenchmark.com(.|\n)*DISTILHERBERT_DATA'): get_profile(name)
    monkeypatch.setattr(scenario, 'hub_answers', lambda: True)
    assert get_profile('real') == replace(REAL, text='cc100', text_without=(), task_source='hub')
    assert get_profile(mine).text == str(tmp_path) and get_profile(mine).task_source == 'hub'


def test_missing_data_says_what_to_set(tmp_path, monkeypatch):
    monkeypatch.delenv('DISTILHERBERT_DATA', raising=False)
    with pytest.raises(SettingsError, match='set DISTILHERBERT_DATA to a folder with text/'): data_dir('text')
    monkeypatch.setenv('DISTILHERBERT_DATA', str(tmp_path))
    assert data_dir() == tmp_path.resolve()
    with pytest.raises(SettingsError, match='There is no folder .*text'): data_dir('text')


def test_the_hub_client_is_limited_to_its_cache_where_the_hub_is_silent(monkeypatch, no_hub):
    from huggingface_hub import constants
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    with scenario.hub_client(): assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE
    monkeypatch.setattr(scenario, 'hub_answers', lambda seconds: True)
    with scenario.hub_client(): assert not constants.HF_HUB_OFFLINE
    with scenario.hub_client(local=True): assert constants.HF_HUB_OFFLINE


@pytest.mark.parametrize('value, workers', [('', 1), ('4', 4), ('0', None), ('-1', None), ('many', None), ('1.5', None)])
def test_the_number_of_workers(monkeypatch, value, workers):
    monkeypatch.setenv('DISTILHERBERT_WORKERS', value)
    if workers: assert data_workers() == workers
    else:
        with pytest.raises(SettingsError, match='DISTILHERBERT_WORKERS is'): data_workers()


def test_folders_do_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.delenv('DISTILHERBERT_RUNS')
    top = checkout()
    monkeypatch.chdir(tmp_path)
    assert checkout() == top and runs_dir() == top/'_runs'
    monkeypatch.setattr(scenario, 'checkout', lambda: None)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'cache'))
    assert runs_dir() == tmp_path/'cache'/'distilherbert'/'_runs'


def test_a_teacher_is_a_folder_or_a_name(tmp_path, monkeypatch):
    (tmp_path/'bert').mkdir()
    monkeypatch.setenv('HOME', str(tmp_path))
    folder = tmp_path/'bert'
    for name, source in (('~/bert', folder), (str(folder), folder), ('some/bert', 'some/bert'), ('wheel:x', 'wheel:x')):
        assert teacher_source(replace(DEMO, tokenizer='herbert', teacher=name)) == source
