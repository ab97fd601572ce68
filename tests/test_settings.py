"Settings that could not work are refused by name: in a profile, in a TOML file, and where rows are packed and models are trained."
from dataclasses import replace

import pytest

from distilherbert.distill import model_artefact, train_settings
from distilherbert.pack import build_rows
from distilherbert.scenario import PROFILES, SCENARIOS, Objective, Profile, Scenario, SettingsError, get_profile, get_scenario

DEMO = PROFILES['demo']
NAN, INF = float('nan'), float('inf')
FLOATS = [f for f, kind in Profile.__annotations__.items() if kind is float]


@pytest.mark.parametrize('field, value', [
    ('text_lines', -1), ('world_size', -1), ('world_size', 0), ('vocab_size', -1), ('vocab_size', 0), ('min_piece', -1), ('teacher_tokens', -1),
    ('tokens', -1), ('heldout_share', 0.0), ('heldout_share', 1.0), ('weight_decay', -0.1), ('adam_beta2', 1.0), ('adam_beta2', -0.1), ('task_examples', -1),
    ('task_max_len', 2), ('task_max_len', 4), ('seed', -1), ('seed', 2**32), ('data_seed', -1), ('task_seeds', (-1,)), ('task_seeds', (1, 2, 1)),
    ('task_seeds', ()), ('tasks', ()), ('tasks', ('nkjp-ner', 'nkjp-ner')), ('name', ''), ('name', 'a/b'), ('name', '..'), ('name', 'my profile'),
    *((f, v) for f in FLOATS for v in (NAN, INF))], ids=lambda v: str(v))
def test_a_profile_that_cannot_work_names_the_field(field, value):
    with pytest.raises(SettingsError, match=rf'\b{field}\b'): replace(DEMO, **{field: value})


@pytest.mark.parametrize('field', ['mlm', 'soft', 'cosine', 'temperature', 'hidden'])
@pytest.mark.parametrize('value', [NAN, INF], ids=str)
def test_an_objective_has_finite_numbers(field, value):
    with pytest.raises(SettingsError, match=f'`{field}` of objective mine'): Objective('mine', **{'mlm': 1.0, field: value})


@pytest.mark.parametrize('name', ['', 'a/b', '.S4', '-S4'])
def test_a_scenario_has_a_name_that_a_folder_can_have(name):
    with pytest.raises(SettingsError, match='`name` of a scenario'): Scenario(name, 'random')


def test_names_with_letters_of_all_kinds(): assert replace(DEMO, name='mój-profil_2.5').name == 'mój-profil_2.5'


@pytest.mark.parametrize('get, other', [(get_profile, 'like = ["demo"]'), (get_scenario, 'like = ["S4"]'), (get_scenario, 'like = 4'),
                                        (get_scenario, 'like = "S4"\n[objective]\nlike = ["distilbert"]\nmlm = 1.0')])
def test_like_is_one_name(tmp_path, get, other):
    (tmp_path/'mine.toml').write_text(other)
    with pytest.raises(SettingsError, match='field `like` of .*mine.toml'): get(tmp_path/'mine.toml')


def test_infinity_in_a_file(tmp_path):
    (tmp_path/'mine.toml').write_text('like = "demo"\nclip = inf\n')
    with pytest.raises(SettingsError, match='`clip` of profile mine'): get_profile(tmp_path/'mine.toml')


@pytest.mark.parametrize('get, file, text', [(get_profile, 'demo.toml', 'like = "demo"\ntokens = 5\n'), (get_profile, 'other.toml', 'like = "mini"\nname = "base"\n'),
                                             (get_scenario, 'S4.toml', 'like = "S4"\nobjective = "released"\n')])
def test_no_file_goes_by_the_name_of_a_built_in_entry(tmp_path, get, file, text):
    "Records and notebooks are kept by name: those of the built-in one would be overwritten."
    (tmp_path/file).write_text(text)
    with pytest.raises(SettingsError, match='named like the built-in .*name = "my-'): get(tmp_path/file)
    (tmp_path/'demo.toml').write_text('like = "demo"\n')
    assert get_profile(tmp_path/'demo.toml') == DEMO, 'the same under the same name harms nobody'


@pytest.mark.parametrize('field', ['source', 'teacher'])
def test_a_scenario_that_needs_itself(tmp_path, field):
    one, two = tmp_path/'one.toml', tmp_path/'two.toml'
    one.write_text(f'like = "S4"\n{field} = "{one}"\n')
    with pytest.raises(SettingsError, match='one needs itself: one → one'): get_scenario(one)
    one.write_text(f'like = "S4"\n{field} = "{two}"\n')
    two.write_text(f'like = "S4"\n{field} = "{one}"\n')
    with pytest.raises(SettingsError, match='one needs itself: one → two → one'): get_scenario(one)


@pytest.mark.parametrize('scenario, field', [('S4', 'tokens'), ('T1', 'tokens'), ('T0', 'teacher_tokens')])
def test_nothing_is_trained_on_no_tokens(scenario, field):
    "The budgets begin at 0: without one, a single step would be made and no word said."
    with pytest.raises(SettingsError, match=f'`{field}` = 0, but {scenario}'): train_settings(replace(DEMO, **{field: 0}), SCENARIOS[scenario])


def test_a_row_that_is_not_trained_needs_no_tokens():
    assert model_artefact(replace(DEMO, tokens=0), 'S0').settings['training'] is None


@pytest.mark.parametrize('share, said', [(0.001, 'rows none is held out with heldout_share = 0.001'), (0.999, 'rows none is left to train on')])
def test_too_few_rows_are_told_before_anything_is_trained(tmp_path, monkeypatch, share, said):
    monkeypatch.setenv('DISTILHERBERT_RUNS', str(tmp_path))
    few = replace(DEMO, name='few', world_size=20, vocab_size=200, max_len=64, heldout_share=share)
    with pytest.raises(SettingsError, match=rf'^Of \d+ {said}'): build_rows(few)


@pytest.mark.parametrize('more', ['like = "demo"', 'vocab_size = 500\nworld_size = 20', 'text = "local"'])
def test_a_teacher_that_exists_brings_its_tokenizer(tmp_path, more):
    "With one trained here, each id would mean another token to the teacher, and nobody would notice."
    (tmp_path/'mine.toml').write_text(f'{more}\nteacher = "some/bert"\n')
    with pytest.raises(SettingsError, match='Profile mine: .*Write `tokenizer = "some/bert"`'): get_profile(tmp_path/'mine.toml')


@pytest.mark.parametrize('changes, make, said', [
    ({}, lambda p: model_artefact(p, 'S1'), 'tokenizer = "train"'), ({'tokenizer': 'some/bert'}, lambda p: model_artefact(p, 'T0'), 'teacher = "scratch"'),
    ({'tokenizer': 'some/bert'}, lambda p: model_artefact(p, 'S1'), ''), ({'tokenizer': 'some/bert', 'teacher': 'some/bert'}, lambda p: model_artefact(p, 'S4'), '')])
def test_a_text_without_a_part_for_the_teacher_is_told_before_it_is_cleaned(tmp_path, changes, make, said):
    "Where the part is not needed, as with a teacher that exists, nothing is said."
    (tmp_path/'a.txt').write_text('Ala ma kota, a kot ma Alę i nikogo więcej.\n')
    own = replace(DEMO, name='own', text=str(tmp_path), **changes)
    if said:
        with pytest.raises(SettingsError, match=f'Profile own: {said}.* `old_share` = 0 .*Add a line such as `old_share = 0.5`'): make(own)
        own = replace(own, old_share=0.5)
    assert make(own).key


def test_the_spread_of_random_students_of_a_teacher_that_exists_is_in_their_key():
    "Where it is the usual one, the key is what it was before."
    usual = replace(DEMO, teacher='some/bert', tokenizer='some/bert')
    wider = replace(usual, init_std=0.05)
    assert [model_artefact(usual, s).key == model_artefact(wider, s).key for s in ('S0', 'S1', 'T0', 'S2')] == [False, False, True, True]
    assert 'init_std' not in model_artefact(usual, 'S0').settings
