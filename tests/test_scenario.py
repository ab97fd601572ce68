"Scenarios, objectives and profiles: settings that could not work are refused by name, in Python and in a TOML file."
import socket
from dataclasses import fields, replace

import pytest

from distilherbert import scenario as S
from distilherbert.scenario import PROFILES, SCENARIOS, Objective, Profile, Scenario, SettingsError, get_profile, get_scenario

DEMO, REAL = PROFILES['demo'], PROFILES['real']
NAN, INF = float('nan'), float('inf')


def write(file, text, encoding='utf-8'):
    file.write_text(text, encoding)
    return file


WRONG = [
    ('text_lines', -1), ('world_size', 0), ('vocab_size', 0), ('min_piece', 63), ('tokens', 1e6), ('teacher_tokens', -1),
    ('heldout_share', 1.0), ('weight_decay', -0.1), ('adam_beta2', 1.0), ('lr_head', -1e-3), ('teacher_mask_share', 1.0),
    ('task_max_len', 4), ('seed', 2**32), ('task_seeds', (1, 2, 1)), ('task_seeds', ()), ('tasks', 'nkjp-ner'), ('scenarios', ('S0', 'S0')),
    ('heads', 5), ('task_precision', 'half'), ('attention', 'all'), ('vocab', 'cut'), ('zero', 1), ('name', 'a/b'), ('name', '..'),
    *((f.name, v) for f in fields(Profile) if f.type is float for v in (NAN, INF))]


@pytest.mark.parametrize('base, changes, words', [
    *((DEMO, {field: value}, rf'\b{field}\b') for field, value in WRONG),
    *((DEMO, changes, words) for changes, words in (
        ({'teacher': 'some/bert'}, 'Write `tokenizer = "teacher"`'), ({'tokenizer': 'teacher'}, 'but teacher = "scratch"'),
        ({'vocab': 'trim'}, 'vocab = "trim" cannot'), ({'vocab': 'trim', 'vocab_size': 0, 'tokenizer': 'herbert'}, '`vocab_size` = 0'),
        ({'on_bad_file': 'skip'}, 'is for a folder'), ({'scenarios': ('S0', 'S9')}, 'There is: S0, S1'))),
    *((Objective('mine', {'mlm': 1.0}), changes, words) for changes, words in (
        ({'weights': {'mlm': 0.0}}, 'must be above 0'), ({'weights': {'mlm': 1.0, 'soft': -1}}, 'soft = -1'),
        ({'hidden_map': (1, 3)}, 'needs a loss on hidden layers'), ({'soft_targets_on': 'some'}, 'There is: masked, all'),
        ({'weights': {'mlm': NAN}}, '`weights` of objective mine'), ({'temperature': True}, '`temperature` of objective mine'))),
    *((Scenario('X', 'random'), changes, words) for changes, words in (
        ({'init': 'whole', 'source': 'T0'}, 'There is: random, truncated, copy, pretrained'), ({'init': 'truncated'}, 'needs `source`'),
        ({'init': 'pretrained', 'source': 'T0'}, 'has no `source`'), ({'layer_map': (0, 2)}, 'needs init "truncated"'),
        ({'name': '.S4'}, '`name` of a scenario'), ({'name': 'a/b'}, '`name` of a scenario')))], ids=str)
def test_settings_that_cannot_work_name_the_field_or_say_what_to_write(base, changes, words):
    with pytest.raises(SettingsError, match=words): replace(base, **changes)


@pytest.mark.parametrize('circle', [['one'], ['one', 'two']])
def test_a_scenario_that_needs_itself(tmp_path, circle):
    for name, needed in zip(circle, [*circle[1:], 'one'], strict=True):
        write(tmp_path/f'{name}.toml', f'like = "S4"\nsource = "{tmp_path/needed}.toml"\n')
    with pytest.raises(SettingsError, match=f'one needs itself: {" → ".join(circle)} → one'): get_scenario(tmp_path/'one.toml')


@pytest.mark.parametrize('get, text, words', [
    (get_profile, 'like = ["demo"]', 'field `like` of'), (get_scenario, 'mlm = true', 'field `init`'),
    (get_profile, 'like = "demo"\nclip = inf', '`clip` of profile mine'), (get_profile, 'like = demo', 'not a valid TOML file'),
    *((get_scenario, f'like = "S4"\n[objective]\n{objective}', words) for objective, words in (
        ('like = ["distilbert"]\nmlm = 1.0', 'field `like` of objective'), ('cosine_of = "logits"', "`weights`.*'cosine_of'"),
        ('mlm = 1\ntemperature = "hot"', '`temperature`')))])
def test_a_file_that_cannot_work_is_named(tmp_path, get, text, words):
    with pytest.raises(SettingsError, match=words) as error: get(write(tmp_path/'mine.toml', text))
    assert 'mine' in str(error.value)


def test_a_file_starts_from_an_entry_and_names_what_differs(tmp_path):
    "It may begin with a byte-order mark, as Windows writes one."
    text = 'like = "demo"\nname = "mój-profil_2.5"\ntokens = 5\ntask_seeds = [1, 2]\nclip = 2\nscenarios = ["S0", "mine.toml"]'
    small = get_profile(write(tmp_path/'small.toml', text, 'utf-8-sig'))
    assert small == replace(DEMO, name='mój-profil_2.5', tokens=5, task_seeds=(1, 2), clip=2.0, scenarios=('S0', 'mine.toml'))
    assert type(small.clip) is float, 'a key must not depend on how a number is written'
    late = get_scenario(write(tmp_path/'late.toml', 'like = "S4"\nlayer_map = [0, 2, 4, 7, 9, 11]'))
    assert late == replace(SCENARIOS['S4'], name='late', layer_map=(0, 2, 4, 7, 9, 11))
    assert [S.as_typed(s) for s in (late, DEMO, replace(late, name='późny'))] == ['late.toml', 'demo', "'późny.toml'"]
    for text, loss in (('mlm = 2.0\nsoft = 5\ntemperature = 2', Objective('own', {'mlm': 2.0, 'soft': 5.0}, temperature=2)),
                       ('like = "distilbert"\ncosine = 0\nhidden = 10\nhidden_map = [1, 3]',
                        Objective('own', {'mlm': 2.0, 'soft': 5.0, 'hidden': 10.0}, temperature=3.0, hidden_map=(1, 3)))):
        assert get_scenario(write(tmp_path/'own.toml', f'like = "S4"\n[objective]\n{text}')).loss == loss


def test_no_file_goes_by_the_name_of_a_built_in_entry(tmp_path):
    "Records and notebooks are kept by name: those of the built-in one would be overwritten. The same settings harm nobody."
    for get, file, text in ((get_scenario, 'S4.toml', 'like = "S4"\nobjective = "released"\n'),
                            (get_profile, 'other.toml', 'like = "demo"\nname = "paper"\n')):
        with pytest.raises(SettingsError, match='name of the built-in .*name = "my-'): get(write(tmp_path/file, text))
    assert get_profile(write(tmp_path/'demo.toml', 'like = "demo"\n')) == DEMO





def test_real_takes_local_data_or_the_hub_or_says_what_to_get(tmp_path, monkeypatch):
    def refuse(*args, **kw): raise OSError('no network')
    monkeypatch.setattr(socket, 'create_connection', refuse)
    monkeypatch.setattr(S, 'getproxies', dict)
    monkeypatch.setenv('DISTILHERBERT_DATA', str(tmp_path))
    for part in ('text', 'klej'):
        with pytest.raises(SettingsError, match=f'There is no folder .*{part}'): get_profile('real')
        (tmp_path/part).mkdir()
    assert get_profile('real') == replace(REAL, text='local', text_lines=0, task_source='local')
    monkeypatch.delenv('DISTILHERBERT_DATA')
    mine = write(tmp_path/'mine.toml', f'like = "real"\ntext = "{tmp_path}"\n')
    with pytest.raises(SettingsError, match='hub cannot be reached(.|\n)*klejbenchmark.com(.|\n)*DISTILHERBERT_DATA'): get_profile(mine)
    monkeypatch.setattr(S, 'hub_answers', lambda: True)
    assert get_profile('real') == replace(REAL, text='cc100', text_without=(), task_source='hub')
    assert get_profile(mine).text == str(tmp_path) and get_profile(mine).task_source == 'hub'


def test_folders_do_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    "Outside a checkout they are in the user's cache; a relative one does not count."
    monkeypatch.delenv('DISTILHERBERT_RUNS')
    top = S.checkout()
    monkeypatch.chdir(tmp_path)
    assert S.checkout() == top and S.runs_dir() == top/'_runs'
    monkeypatch.setattr(S, 'checkout', lambda: None)
    monkeypatch.setenv('HOME', str(tmp_path))
    for cache, folder in ((str(tmp_path/'own'), tmp_path/'own'), ('own', tmp_path/'.cache'), ('', tmp_path/'.cache')):
        monkeypatch.setenv('XDG_CACHE_HOME', cache)
        assert S.runs_dir() == folder/'distilherbert'/'_runs'
