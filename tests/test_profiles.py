"The tutorials' profiles: gpu has exactly the documents' settings, and every recipe builds and trains a step on a CPU."
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from ppcls_nb.basics import PPClsError
from ppcls_nb.recipe.build import Trainer, load_config
from ppcls_nb.recipe.data import build_data
from ppcls_nb.course.profiles import ROLES, load_profile
from ppcls_nb.data.prepare import DataInfo, prepare_data
from ppcls_nb.models import create_model
from ppcls_nb.train import save_weights

PROFILES = Path(__file__).resolve().parent.parent/'nbs'/'00_tutorials'/'profiles'
DATA_KEYS = ('classes_num', 'data_name', 'total_images', 'TRAIN.file_list', 'TRAIN.data_dir', 'VALID.file_list',
             'VALID.data_dir', 'save_interval')


@pytest.fixture(scope='module')
def info(tmp_path_factory):
    "A few generated flowers."
    return prepare_data('petals', tmp_path_factory.mktemp('data'),
                        dict(classes=3, per_class=[2, 1, 1], size=64, progress=False))


@pytest.fixture(scope='module')
def official(tmp_path_factory):
    "A weights cache with random weights under the official tags, so that the recipes download nothing."
    home = tmp_path_factory.mktemp('home')
    tags = {'ResNet50_vd': 'ResNet50_vd', 'ResNet50_vd_ssld': 'ResNet50_vd',
            'MobileNetV3_large_x1_0': 'MobileNetV3_large_x1_0'}
    for tag, arch in tags.items():
        save_weights(home/'weights'/f'{tag}.pdparams', create_model(arch))
    return home


def flat(conf, prefix=''):
    "Dotted key → value."
    out = {}
    for k, v in conf.items():
        out.update(flat(v, f'{prefix}{k}.') if isinstance(v, dict) and v else {f'{prefix}{k}': v})
    return out


# The trial's settings as the documents print them (1.2) and their recipes have them: learning rate, L2, multipliers,
# weights, training images, augmentation. All: 20 epochs of batches of 32 at 224 pixels, 102 classes, cosine,
# momentum 0.9.
MULTIPLIERS = [0.1, 0.1, 0.2, 0.2, 0.3]
SSLD = './pretrained/ResNet50_vd_ssld_pretrained'
MV3 = './pretrained/MobileNetV3_large_x1_0_pretrained'
DOCUMENTS = {
    'ResNet50_vd': (0.0125, 1e-5, None, '', 1020, []),
    'ResNet50_vd_finetune': (0.00375, 1e-6, None, './pretrained/ResNet50_vd_pretrained', 1020, []),
    'ResNet50_vd_ssld_finetune': (0.00375, 1e-6, MULTIPLIERS, SSLD, 1020, []),
    'MobileNetV3_large_x1_0_finetune': (0.00375, 1e-6, None, MV3, 1020, []),
    'ResNet50_vd_ssld_random_erasing_finetune': (0.00375, 1e-6, MULTIPLIERS, SSLD, 1020, ['RandomErasing']),
    'R50_vd_distill_MV3_large_x1_0':
        (0.0125, 7e-5, None, ['./pretrained/flowers102_R50_vd_final/ppcls', f'{MV3}/'], 7169, [])}


@pytest.mark.parametrize('name', DOCUMENTS)
def test_the_trials_recipes_have_the_numbers_of_the_documents(name):
    conf = OmegaConf.to_container(load_config(f'quick_start/{name}'))
    augmentation = [list(op)[0] for op in conf['TRAIN']['transforms']]
    found = (conf['LEARNING_RATE']['params']['lr'], conf['OPTIMIZER']['regularizer']['factor'],
             conf['ARCHITECTURE']['params'].get('lr_mult_list'), conf['pretrained_model'], conf['total_images'],
             [op for op in augmentation if op == 'RandomErasing'])
    assert found == DOCUMENTS[name]
    assert [conf[key] for key in ('epochs', 'classes_num', 'image_shape')] == [20, 102, [3, 224, 224]]
    assert conf['TRAIN']['batch_size'] == 32
    assert conf['LEARNING_RATE']['function'] == 'Cosine'
    assert conf['OPTIMIZER']['function'] == 'Momentum'
    assert conf['OPTIMIZER']['params'] == {'momentum': 0.9}


@pytest.mark.parametrize('role', ROLES)
def test_gpu_changes_no_setting_of_the_documents(role, info):
    ours = flat(OmegaConf.to_container(load_profile('gpu', PROFILES).recipe(role, info)))
    theirs = flat(OmegaConf.to_container(load_config(f'quick_start/{ROLES[role]}')))
    changed = {k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k)} - set(DATA_KEYS)
    # the divergence is that of the documents' programs; the teacher is the run of lesson 5
    allowed = {'distill', 'distill.kind', 'pretrained_model'} if role == 'mobile_distilled' else set()
    # no run on the CPU by mistake
    assert ours['use_gpu'] is True
    assert changed <= allowed | {'use_gpu'}


def one_step(trainer):
    "Train on the first batch; returns the names of the parameters that changed."
    before = {k: p.numpy().copy() for k, p in trainer.model.named_parameters()}
    trainer.data.train, trainer.data.valid = [next(iter(trainer.data.train))], None
    trainer.fit(1)
    return [k for k, p in trainer.model.named_parameters() if (p.numpy() != before[k]).any()]


@pytest.mark.parametrize('profile,role', [(p, r) for p in ('gpu', 'cpu', 'smoke') for r in ROLES])
def test_every_recipe_builds_and_takes_a_step(profile, role, info, official, tmp_path, monkeypatch):
    monkeypatch.setenv('PPCLS_HOME', str(official))
    changes = {'TRAIN.num_workers': 0, 'VALID.num_workers': 0, 'TRAIN.batch_size': 2, 'use_gpu': None}
    p = load_profile(profile, PROFILES, output=str(tmp_path))
    conf = p.recipe(role, info, **changes)
    server, mobile = p.recipe('server_finetune', info).ARCHITECTURE, p.recipe('mobile_finetune', info).ARCHITECTURE
    # the results of lessons 5 and 4
    for run, arch in (('server_random_erasing', server), ('mobile_finetune', mobile)):
        if str(p.run(run)) in str(conf.pretrained_model):
            save_weights(p.run(run)/'last.pdparams', create_model(arch.name, class_num=3))
    start = conf.pretrained_model[1] if conf.use_distillation else conf.pretrained_model
    trainer = Trainer.from_config(conf, bar=False)
    if start:
        assert trainer.model.load_report.body_complete
    assert next(iter(trainer.data.train))[0].shape == [2, *conf.image_shape]
    changed = one_step(trainer)
    assert len(changed) > 0.9*sum(not p.stop_gradient for p in trainer.model.parameters())
    assert np.isfinite(trainer.loss_value.item())


def test_cpu_and_smoke_keep_the_ratios_of_the_documents_multipliers():
    "Lesson 3's multipliers are in the documents' ratio 1 : 2 : 3 (their size was chosen on held-out images)."
    for name in ('cpu', 'smoke'):
        mult = load_profile(name, PROFILES).recipes['server_by_layer']['ARCHITECTURE.lr_mult']
        assert sorted(set(mult.values())) == [0.2, 0.4, 0.6]


@pytest.fixture
def tiny(tmp_path):
    "The folder of a profile tiny.yaml, the profile, and data."
    (tmp_path/'tiny.yaml').write_text('profile: tiny\ncommon: {epochs: 3}\nrecipes: {server_scratch: {epochs: 1}}\n')
    return tmp_path, load_profile('tiny', tmp_path, seed=5), DataInfo('colours', Path('x'), Path('lists'), '', 2, {})


def test_roles_are_resolved_in_pretrained_model(tiny):
    _, profile, info = tiny
    last = str(profile.run('mobile_finetune')/'last')
    assert profile.recipe('mobile_alone', info, pretrained_model='mobile_finetune').pretrained_model == last
    both = profile.recipe('mobile_distilled', info, pretrained_model=['x', 'mobile_finetune'])
    assert both.pretrained_model == ['x', last]
    assert profile.recipe('server_scratch', info).TRAIN.file_list == str(Path('lists/train_list.txt'))


def test_wrong_names_suggest_the_nearest(tiny):
    folder, _, _ = tiny
    with pytest.raises(PPClsError, match="unknown profile 'tny'; did you mean 'tiny'"):
        load_profile('tny', folder)
    with pytest.raises(PPClsError, match="unknown key 'dta'; did you mean 'data'"):
        load_profile('tiny', folder, dta=1)


def test_parameters_lie_over_a_profile_key_by_key(tmp_path):
    mine = tmp_path/'mine.yaml'
    mine.write_text('profile: mine\nseed: 3\ncommon: {epochs: 3, image_shape: [3, 64, 64]}\n'
                    'recipes: {server_scratch: {epochs: 1}}\n')
    profile = load_profile(str(mine), common={'epochs': 2},
                           recipes={'server_scratch': ['clip.norm=5'], 'mobile_alone': {'epochs': 9}})
    assert profile.common == {'epochs': 2, 'image_shape': [3, 64, 64]}
    assert profile.recipes == {'server_scratch': {'epochs': 1, 'clip.norm': 5}, 'mobile_alone': {'epochs': 9}}
    assert (profile.profile, profile.seed) == ('mine', 3)
    assert load_profile(str(mine)).recipes == {'server_scratch': {'epochs': 1}}
    mine.rename(tmp_path/'other.yaml')
    with pytest.raises(PPClsError, match="its profile is 'mine', expected 'other'"):
        load_profile('other', tmp_path)


@pytest.mark.parametrize('profile', ['gpu', 'cpu', 'smoke'])
def test_what_the_lessons_say_about_the_recipes_is_true(profile, info):
    "Pretrained weights in lesson 2, learning rates by layer in 3, one more operation in 5."
    p, rate = load_profile(profile, PROFILES), 'LEARNING_RATE.params.lr'
    finetune = p.changes('server_scratch', 'server_finetune', info)
    by_layer = p.changes('server_finetune', 'server_by_layer', info)
    assert 'pretrained_model' in finetune
    assert any(key.startswith('ARCHITECTURE.') for key in by_layer)
    if profile == 'cpu':        # one rate for the first two, a larger one for the new classifier of the third
        assert rate not in finetune
        assert by_layer[rate][0] < by_layer[rate][1]
    else:
        assert finetune[rate][0] > finetune[rate][1]
    erasing = p.changes('server_by_layer', 'server_random_erasing', info)
    assert {'RandomErasing': {'EPSILON': .5}} in p.recipe('server_random_erasing', info).TRAIN.transforms
    assert profile == 'gpu' or erasing['epochs'][1] > erasing['epochs'][0]


@pytest.mark.parametrize('profile,role', [(p, r) for p in ('gpu', 'cpu', 'smoke') for r in ROLES])
def test_no_recipe_of_the_course_is_warned_about(profile, role, info, capsys):
    conf = load_profile(profile, PROFILES).recipe(role, info)
    build_data(conf)
    assert capsys.readouterr().out == ''
