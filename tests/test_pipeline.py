"The pipeline: what the key of each stage depends on, what is refused before anything is built, and a run shaped like the profile `real`."
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import run_program
from layouts import LAYOUTS

from distilherbert import pipeline
from distilherbert.artefact import read_manifest
from distilherbert.klej import fine_tune
from distilherbert.pipeline import all_scores, build_model, model_artefact, record_key, scenario_artefacts, train_settings, trained_part
from distilherbert.scenario import PROFILES, SCENARIOS, Objective, Profile, Scenario, SettingsError, required
from distilherbert.scores import load_run
from distilherbert.tasks import TaskError, TaskSettings, load_group, task_groups

DEMO = PROFILES['demo']
GRID = set(Profile.scenarios)
HUB = replace(DEMO, teacher='some/bert', tokenizer='teacher', old_share=0.5)


def keys(p): return {n: model_artefact(p, SCENARIOS[n]).key for n in GRID}


def folder_of_text(folder):
    (folder/'a.txt').write_text('Ala ma kota, a kot ma Alę i nikogo więcej.\n')
    return str(folder)


@pytest.mark.parametrize('changes, changed', [
    ({'name': 'x', 'checkpoint_minutes': 1.0, 'zero': 2, 'task_lr': 1e-3, 'tasks': ('nkjp-ner',), 'teacher_margin': 0.5}, set()),
    ({'teacher_tokens': 5}, GRID - {'S0', 'S1'}), ({'teacher_mask_share': 0.3}, GRID - {'S0', 'S1'}),
    ({'tokens': 5}, GRID - {'S0', 'S2', 'T0'}), ({'lr_trained': 1e-5}, {'S3', 'S4', 'S5', 'T1'}),
    ({'heldout_share': 0.1}, GRID - {'S0'}), ({'micro_rows': 8}, GRID - {'S0'}), ({'hidden': 32}, GRID), ({'world_size': 20}, GRID),
    ({'vocab_size': 900}, GRID), ({'data_seed': 1}, GRID), ({'dropout': 0.1}, GRID), ({'seed': 1}, GRID),
    ({'init_std': 0.05}, {'S0', 'S1'})])
def test_a_key_depends_on_what_decides_the_model(changes, changed):
    "The spread of random weights decides only random students where the teacher comes from a source."
    before, after = (keys(replace(HUB if 'init_std' in changes else DEMO, **more)) for more in ({}, changes))
    assert {n for n in GRID if before[n] != after[n]} == changed


def test_keys_do_not_depend_on_where_files_are(tmp_path, teacher):
    def key(at):
        (tmp_path/at).mkdir()
        (tmp_path/at/'bert').symlink_to(teacher)
        p = replace(HUB, text=folder_of_text(tmp_path/at), teacher=str(tmp_path/at/'bert'), max_len=32)
        return [model_artefact(replace(p, vocab=vocab), SCENARIOS['S4']).key for vocab in ('', 'trim')]
    one, two = key('one'), key('two')
    assert one == two and one[0] != one[1]


def test_the_keys_of_scores_and_records_are_those_of_what_they_measure(monkeypatch):
    def key(**changes): return all_scores(replace(DEMO, **changes), SCENARIOS['S2'])['nkjp-ner'][10].key
    different = [key(), key(task_lr=1e-3), key(task_precision='bf16'), key(data_seed=1), key(teacher_tokens=5)]
    assert len(set(different)) == len(different) and key(task_seeds=(10,), checkpoint_minutes=9.0) == different[0]
    whats = ('clean', 'pack', 'vocabulary', 'contamination', 'model-S3', 'klej-S3', 'comparisons')
    before = {what: record_key(DEMO, what) for what in whats}
    assert all(before.values()) and len(set(before.values())) == len(whats) and record_key(DEMO, 'commands') == ''
    def changed(p): return {what for what in whats if record_key(p, what) != before[what]}
    assert changed(replace(DEMO, tokens=5)) == {'model-S3', 'klej-S3', 'comparisons'}
    monkeypatch.setattr(pipeline, 'INTERVAL', 'another')
    assert changed(DEMO) == {'comparisons'}


def test_a_description_has_no_side_effects_and_inputs_come_first(tmp_path):
    "The command line answers at once: torch is loaded only where something is trained or measured."
    program = """import sys
from distilherbert import cards, figures, reproduce, results, status
from distilherbert.pipeline import record_key, scenario_artefacts, submission_artefact
from distilherbert.scenario import PROFILES, SCENARIOS
p = PROFILES['demo']
for s in map(SCENARIOS.get, p.scenarios): print(*(a.state() for a in scenario_artefacts(p, s)), submission_artefact(p, s).key)
print(record_key(p, 'comparisons'), {'torch', 'transformers', 'accelerate', 'datasets', 'pandas'} & set(sys.modules))"""
    done = run_program(sys.executable, '-c', program, env={'WORLD_SIZE': '2', 'RANK': '1', 'DISTILHERBERT_RUNS': tmp_path/'runs'})
    assert done.stdout.endswith('set()\n') and 'current' not in done.stdout and not (tmp_path/'runs').exists(), done.stderr
    found = scenario_artefacts(DEMO, SCENARIOS['S5'])
    order = [a.key for a in found]
    assert len(order) == len(set(order)) and all(order.index(i.key) < order.index(a.key) for a in found for i in a.inputs)


@pytest.mark.parametrize('changes, scenario, words', [
    ({'tokens': 0}, 'S4', '`tokens` = 0, but S4'), ({'teacher_tokens': 0}, 'S2', '`teacher_tokens` = 0, but T0'),
    ({}, 'S4h', 'E0 is an unchanged'), ({}, Objective('mine', {'mlm': 1.0, 'sofd': 1.0}), 'Did you mean soft')], ids=str)
def test_a_model_that_cannot_be_trained_is_refused_before_anything_is_built(changes, scenario, words):
    s = SCENARIOS[scenario] if isinstance(scenario, str) else replace(SCENARIOS['S4'], objective=scenario)
    with pytest.raises(SettingsError, match=words): model_artefact(replace(DEMO, **changes), s)
    assert model_artefact(replace(DEMO, tokens=0), SCENARIOS['S0']).settings['training'] is None, 'what is not trained needs no tokens'


def test_a_missing_part_of_the_text_too_long_sequences_and_absent_scores_are_named(teacher, tmp_path):
    "Each only where it is needed."
    own, S0 = replace(DEMO, name='own', text=folder_of_text(tmp_path)), SCENARIOS['S0']
    for p, scenario, words in ((own, 'S1', 'tokenizer = "train"'), (replace(own, tokenizer='some/bert'), 'T0', 'T0 is trained on')):
        with pytest.raises(SettingsError, match=f'own: {words}.*such as `old_share = 0.5`'): model_artefact(p, SCENARIOS[scenario])
        assert model_artefact(replace(p, old_share=0.5), SCENARIOS[scenario]).key
    long = replace(HUB, teacher=str(teacher), max_len=35)
    with pytest.raises(SettingsError, match='34 positions, .* max_len = 35 tokens. Lower `max_len`'): model_artefact(long, SCENARIOS['S1'])
    assert model_artefact(replace(long, teacher_tokens=0), SCENARIOS['S2']).key, 'it is never trained on sequences'
    with pytest.raises(TaskError, match='No scores yet: S0-nkjp-ner-10.*distilherbert run S0 --profile demo'):
        pipeline.scores_folders(DEMO, S0)


def test_rates_and_masks_of_the_teacher_are_its_own():
    real = replace(PROFILES['real'], text='world', world_size=10, lr_scratch=4e-4, lr_trained=3e-4, lr_teacher=2e-4, lr_head=1e-3,
                   mask_share=0.15, teacher_mask_share=0.3, teacher_tokens=50_000_000, tokens=30_000_000)
    names = ('learning_rate', 'head_learning_rate', 'mask_share', 'tokens')
    def of(s, p=real): return tuple(train_settings(p, SCENARIOS[s])[f] for f in names)
    assert of('T0') == (2e-4, 1e-3, 0.3, 50_000_000) and of('S1')[0] == 4e-4 and of('S4') == of('T1') == (3e-4, 1e-3, 0.15, 30_000_000)
    assert of('T0', replace(real, lr_teacher=0.0, teacher_mask_share=0.0))[:3] == (3e-4, 1e-3, 0.15)
    assert [n for n, s in SCENARIOS.items() if not trained_part(real, s)] == ['S0', 'S2', 'S2h', 'S7', 'E0']


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    "A random encoder of 12 layers in a folder, with a Unigram tokenizer in XLM-R's layout, some of whose pieces no text uses."
    import torch
    from transformers import BertConfig, BertModel

    from distilherbert.pack import write_tokenizer
    folder = tmp_path_factory.mktemp('teacher')
    write_tokenizer(folder, tokenizer := LAYOUTS['Unigram'](), 34, eos_token='</s>')
    torch.manual_seed(0)
    config = BertConfig(vocab_size=tokenizer.get_vocab_size() + 3, hidden_size=16, num_hidden_layers=12, num_attention_heads=2,
                        intermediate_size=32, max_position_embeddings=34, pad_token_id=1)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def test_a_run_shaped_like_real(tiny, teacher, tmp_path, monkeypatch):
    "Source, trimmed vocabulary, MLM head fitted, then cut, distilled from logits and from hidden states, and scored."
    monkeypatch.setenv('DISTILHERBERT_RUNS', str(tmp_path))
    p = replace(tiny.profile, name='real-shaped', teacher=str(teacher), tokenizer='teacher', vocab='trim', vocab_size=1000,
                teacher_mask_share=0.3, lr_teacher=1e-3, lr_head=2e-3, tasks=('nkjp-ner',), task_seeds=(1,))
    made = {n: build_model(p, SCENARIOS[n]) for n in ('S0', 'S2', 'S4', 'S4h', 'E0', 'T0')}
    counts = {n: read_manifest(f)['counts'] for n, f in made.items()}
    vocabulary = read_manifest(pipeline.tokenizer_artefact(p).path)['counts']
    assert {c['vocab_size'] for c in counts.values()} == {vocabulary['vocab_size']}
    assert vocabulary['vocab_size'] < vocabulary['source_vocab_size']
    assert {n: (c['layers'], c['head_is_new'], 'steps' in c) for n, c in counts.items()} == {
        'S0': (6, False, False), 'S2': (6, False, False), 'S4': (6, False, True), 'S4h': (6, True, True), 'E0': (12, True, False),
        'T0': (12, False, True)}
    heldout = {n: set(c.get('heldout', ())) for n, c in counts.items()}
    assert heldout['T0'] == {'mlm'} and {'mlm', 'kl', 'agreement'} <= heldout['S4'] and heldout['S4h'] == {'hidden', 'cosine'}
    assert [i.label for i in model_artefact(p, SCENARIOS['T0']).inputs] == ['trimmed', 'old', 'E0']
    for n in ('E0', 'S4h', 'S4'):
        assert read_manifest(pipeline.build_scores(p, SCENARIOS[n])['nkjp-ner'][1])['counts']['scores']['nkjp-ner']
        card = (made[n]/'README.md').read_text()
        assert model_artefact(p, SCENARIOS[n]).key in card and Path(teacher).name in card


def test_each_group_of_tasks_is_learnt_from_the_teacher_s_classifier_of_the_same_group(tiny):
    "The scores are those of a fine-tuning with its folder; their keys follow from the teacher's."
    p = tiny.profile
    taught = Scenario('taught', 'copy', 'S4', task_teacher='T0')
    found, plain = all_scores(p, taught), all_scores(p, SCENARIOS['S4'])
    assert {g: [i.label for i in runs[1].inputs] for g, runs in found.items()} == {g: ['taught', f'T0-{g}'] for g in plain}
    assert required(taught) == ('T0', 'S4') and str(tiny.runs) not in json.dumps(found['nkjp-ner'][1].settings)
    assert all_scores(replace(p, task_temperature=1.0), taught)['nkjp-ner'][1].key != found['nkjp-ner'][1].key
    scores = found['nkjp-ner'][1]
    arrays, group = load_run(scores.build()), task_groups(p.tasks)['nkjp-ner']
    settings = replace(TaskSettings.of(p), teacher=str(scores.inputs[1].path))
    wanted, _ = fine_tune(tiny.models['S4'], load_group(group, p.task_source, settings), settings, 1)
    assert np.array_equal(arrays['train_loss'], wanted['train_loss']) and np.array_equal(arrays['pred/nkjp-ner'], wanted['pred/nkjp-ner'])
    assert not np.array_equal(arrays['train_loss'], load_run(tiny.scores['S4', 'nkjp-ner', 1])['train_loss'])
