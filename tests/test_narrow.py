"Narrower students: what they share with their teacher, the projection that compares them, and every command with one."
import signal

import numpy as np
import pytest
import torch
from conftest import log_of
from few import ALL, FORMS, SEQUENCES, SETTINGS, batch_of, model_of, padded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForMaskedLM

from distilherbert import distill as D
from distilherbert import pipeline, status
from distilherbert import student as S
from distilherbert.artefact import Interrupted, read_manifest
from distilherbert.objective import hidden_loss
from distilherbert.recipes import distil
from distilherbert.reproduce import main
from distilherbert.scenario import Scenario, SettingsError, get_scenario
from distilherbert.world import world_documents


def teacher_of(form): return model_of(form, **({'embedding_size': 12} if form == 'electra' else {}))


def planted(form, parts=8):
    """A teacher of width 16 whose states have 7 directions, whose first head does nothing, as do the components of the other one after the
    first `parts`, and every second neuron; norms scale all components alike."""
    model = teacher_of(form)
    basis = torch.linalg.qr((x := torch.randn(16, 7, generator=torch.Generator().manual_seed(5))) - x.mean(0)).Q
    onto, family = basis @ basis.T, S.family_of(model.config)
    inner = (*family.heads[:-1], family.neurons[0])
    idle = (torch.arange(16) < 8) | (torch.arange(16)%8 >= parts)
    with torch.no_grad():
        for n, m in model.base_model.named_modules():
            if isinstance(m, torch.nn.Embedding) and form != 'electra': m.weight.copy_(5*m.weight @ onto)
            elif isinstance(m, torch.nn.LayerNorm) and m.weight.shape == (16,): m.weight.fill_(1.3)
            elif isinstance(m, torch.nn.Linear) and not n.endswith(inner): m.weight.copy_(onto @ m.weight)
            else: continue
            if getattr(m, 'bias', None) is not None: m.bias.copy_(onto @ m.bias)
        for layer in S.layers_of(model):
            layer.get_submodule(family.heads[-1]).weight[:, idle] = 0
            layer.get_submodule(family.neurons[1]).weight[:, 1::2] = 0
            for n in family.heads[:-1]*(parts < 8): layer.get_submodule(n).weight[idle], layer.get_submodule(n).bias[idle] = 0, 0
    return model


@pytest.mark.parametrize(('form', 'parts'), [*((form, 8) for form in ALL), ('bert', 4), ('electra', 4)])
def test_where_nothing_is_lost_states_are_the_teachers_turned(form, parts):
    "All products of states are equal, in every layer; a projection fitted to them leaves nothing; with smaller heads, too."
    teacher, (ids, real) = planted(form, parts), padded(20, 11)
    student = S.narrow(teacher, (0, 1, 3), SEQUENCES, hidden=8, heads=8//parts, intermediate=16).eval()
    models = student, S.truncate(teacher, (0, 1, 3)).eval()
    states = (m.base_model(ids, attention_mask=real, output_hidden_states=True).hidden_states for m in models)
    for a, b in zip(*states, strict=True): assert torch.allclose(a[real] @ a[real].T, b[real] @ b[real].T, atol=0.02, rtol=1e-3)
    assert S.principal_directions(teacher, SEQUENCES, 8)[1] == pytest.approx(1) and student.config.hidden_size == 8
    predictors, micro = [D.MaskedPredictor(m, ('layers',), (0, 1, 2)) for m in models], batch_of()
    predictors[0].project = D.fitted_projection(*predictors, micro)
    a, b = (p(micro).layers for p in predictors)
    assert hidden_loss(a, b) < 1e-4*hidden_loss([0*x for x in b], b)


@pytest.mark.parametrize('form', FORMS)
def test_directions_are_those_of_a_singular_value_decomposition(form):
    "They keep as much of the centred states as is possible, and their layout has mean 0."
    model, states = model_of(form), []
    for s in SEQUENCES:
        for x in model.base_model(torch.tensor(np.array(s))[None], output_hidden_states=True).hidden_states: states.append(x[0].detach())
    x = F.layer_norm(torch.cat(states), (16,))
    p, share = S.principal_directions(model, SEQUENCES, 8)
    assert torch.allclose(p @ p.T, torch.eye(8) - 1/8, atol=1e-5) and torch.allclose(p.sum(0), torch.zeros(16), atol=1e-5)
    values = torch.linalg.svdvals(x)**2
    assert share == pytest.approx(float(values[:7].sum()/values.sum()), rel=1e-4)
    assert (x @ p.T).square().sum()/x.square().sum() == pytest.approx(share, rel=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(FORMS), st.sampled_from([0, 1, 2, 4, 6, 8, 12, 16, 20, 32]), st.integers(0, 4), st.sampled_from([0, 1, 7, 32, 40]))
def test_any_sizes_make_a_model_or_an_error(form, hidden, heads, intermediate):
    "Random or copied, saved and counted; sizes that are not given follow from the teacher's."
    teacher, shape, (ids, _) = model_of(form), dict(hidden=hidden, heads=heads, intermediate=intermediate), padded(20)
    for copied in (False, True):
        try: config = S.shortened(teacher.config, (0, 1), **shape, copied=copied)
        except SettingsError: continue
        model = S.narrow(teacher, (0, 1), SEQUENCES, **shape) if copied else S.random_model(config, 0)
        c, wanted = model.config, (hidden or 16, heads or (hidden or 16)//8, intermediate or 2*(hidden or 16))
        assert (c.hidden_size, c.num_attention_heads, c.intermediate_size) == wanted
        model.set_attn_implementation('eager')
        with FlopCounterMode(display=False) as counted, torch.no_grad(): assert torch.isfinite(model.eval()(ids).logits).all()
        assert counted.get_total_flops() == 20*(S.encoder_flops(c, 20) + S.head_flops(c))
        assert status.parameters_of(config) == model.num_parameters()


@pytest.mark.parametrize('form', FORMS)
def test_stopped_it_ends_with_the_same_weights_and_without_the_projection(form, tmp_path):
    "Soft targets, MLM and the cosine through the projection, which is trained with dropout, in a checkpoint, and in no folder."
    wide = teacher_of(form)
    def begin(folder):
        torch.set_num_threads(1)  # As in a run: the directions that are kept depend on it in their last bits
        (tmp_path/folder).mkdir(exist_ok=True)
        return D.open_run(S.narrow(wide, (0, 3), SEQUENCES, hidden=8), wide, SEQUENCES, SETTINGS, tmp_path/folder)
    with begin('calm') as calm:
        first = calm.student.project.weight.clone()
        D.train(calm)
    with pytest.raises(Interrupted), begin('rough') as rough:
        rough.student.register_forward_hook(lambda *_: signal.raise_signal(signal.SIGTERM) if rough.step == 3 else None)
        D.train(rough)
    with begin('rough') as rough: D.train(rough)
    assert all(map(torch.equal, calm.student.parameters(), rough.student.parameters()))
    assert not torch.equal(first, rough.student.project.weight) and log_of(tmp_path/'calm') == log_of(tmp_path/'rough')
    S.save_model(D.unwrapped(rough.student).model, tmp_path/'saved')
    saved, (ids, _) = AutoModelForMaskedLM.from_pretrained(tmp_path/'saved'), padded(20)
    assert torch.equal(saved(ids).logits, rough.student.model.eval()(ids).logits) and 'project.weight' not in saved.state_dict()


def test_every_command_takes_a_narrow_student(tiny, tmp_path, capsys, monkeypatch):
    "A scenario that is trained, one that is only cut out, and `distil`; the key of a scenario without sizes has none in it."
    scenario = Scenario('slim', 'truncated', 'T0', mlm=True, teacher='T0', hidden=8)
    counts = read_manifest(pipeline.build_model(tiny.profile, scenario))['counts']
    config = status.config_of(status.teacher_config(tiny.profile)[0], scenario)
    assert counts['hidden'] == 8 and counts['parameters'] == status.parameters_of(config)
    keyed = [pipeline.model_artefact(tiny.profile, s).settings for s in (scenario, get_scenario('S4'))]
    assert [k.get('student') for k in keyed] == [{'hidden': 8}, None]
    cut = pipeline.model_artefact(tiny.profile, Scenario('cut', 'truncated', 'T0', hidden=8))
    assert [a.stage for a in cut.inputs] == ['tokenizer', 'sequences', 'model'] and read_manifest(cut.build())['counts']['hidden'] == 8
    (tmp_path/'world.txt').write_text('\n\n'.join('\n'.join(d) for d in world_documents('ccsub', 150, 0)), 'utf-8')
    monkeypatch.chdir(tmp_path)
    words = ('distil', str(tiny.models['T0']), '--text', 'world.txt', '--hidden', '8', '--tokens', '5K', '--max-len', '32', '-o', 'small')
    assert main([*words, '--dry-run']) == 0 and main([*words, '--objective', 'hidden', '--save', 'mine.toml']) == 0
    said = ''.join(capsys.readouterr())
    assert 'learned projection' in said and 'heads = 1: of the teacher' in said and 'intermediate = 16' in said
    before, after = (S.load_masked_lm(f)[0].num_parameters() for f in (tiny.models['T0'], tmp_path/'small'))
    assert f'{before:,} parameters ({status.size_text(4*before)}) become {after:,} ({status.size_text(4*after)})' in said
    assert get_scenario('mine-student.toml').shape == {'hidden': 8}
    with pytest.raises(SettingsError, match='`heads`'): distil(str(tiny.models['T0']), 'world.txt', 'other', hidden=12, tokens='5K')
