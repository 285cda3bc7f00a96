"""The 114 recipes of the documents, and those we add: each is read, its parts are built, and one of every family and
method trains a step; none of their values has moved."""
import csv, hashlib, json, math
from functools import lru_cache
from pathlib import Path

import cv2, numpy as np, paddle, pytest
from omegaconf import OmegaConf

from official import FACTS
from ppcls_nb.basics import PPClsError, fact_rows
from ppcls_nb.data.prepare import DataInfo
from ppcls_nb.data.transform import transform
from ppcls_nb.models import list_models, list_pretrained, model_info
from ppcls_nb.recipe.build import Trainer, build_mixing
from ppcls_nb.recipe.data import build_transforms, sources_of, use_data
from ppcls_nb.recipe.load import CONFIGS, assign, find_config, list_configs, load_config, merge, pairs, parse_yaml
from ppcls_nb.recipe.load import read_recipe
from ppcls_nb.recipe.schema import OptimizerConf, ReaderConf
from ppcls_nb.train import CELoss, build_optimizer, build_schedule
from ppcls_nb.models.weights import weights_of_recipe

RECIPES = [n for n in list_configs() if n != 'eval']
OTHERS = {'quick_start': 6, 'DataAugment': 9, 'Distillation': 2, 'Fix': 1}
LATER = {n for n in RECIPES if n.startswith('Later/')}
OURS = LATER | {'Fix/Fix_ResNet50_vd_ssld_v2'}      # the documents describe this one without a recipe
DOCUMENTED = ('ARCHITECTURE.name ARCHITECTURE.params pretrained_model mode model_save_dir classes_num total_images '
              'save_interval validate valid_interval '
              'epochs topk image_shape ls_epsilon use_mix use_distillation LEARNING_RATE OPTIMIZER TRAIN VALID').split()
LATER_KEYS = {'skip_bad', 'delimiter', 'aug_repeats', 'drop_last', 'layer_decay', 'no_weight_decay_names'}
DIGESTS = dict(csv.reader((Path(__file__).parent/'facts'/'recipes.csv').read_text().splitlines()))
COSTS = {r['arch']: int(r['params']) for r in fact_rows('costs')}


def digest(name) -> str:
    "Eight characters that stand for all documented values of a recipe, and of a later one for all that it has."
    return short_hash(read_recipe(find_config(name))[0] if name in LATER else documented_values(recipe(name)))


def short_hash(values) -> str:
    "Eight characters that stand for `values`."
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def documented_values(conf) -> dict:
    "The values of the keys in `DOCUMENTED`."
    keys = OmegaConf.to_container(conf)
    # keys that came later count where they are not as before
    for section, declared in (('TRAIN', ReaderConf), ('VALID', ReaderConf), ('OPTIMIZER', OptimizerConf)):
        defaults = OmegaConf.to_container(OmegaConf.structured(declared))
        for name in LATER_KEYS & keys[section].keys():
            if keys[section][name] == defaults[name]:
                keys[section].pop(name)
    return {k: keys['ARCHITECTURE'][k.split('.')[1]] if '.' in k else keys[k] for k in DOCUMENTED}


# small crops in training, larger images in validation (arXiv 1906.06423)
OTHER_SIZE = {f'Later/{name}' for name in (
    'MobileNetV4_conv_small', 'RegNetX_4GF', 'ResNet50_TrivialAugment', 'ResNet50_progressive')}
# recipes for a method of training, and a smaller network with which a test trains a step by each
METHODS = {f'Later/{name}': network for name, network in (
    ('ResNet50_A2', 'ResNet18'), ('ResNet50_ConvNeXt', 'ResNet18'), ('ResNet50_TrivialAugment', 'ResNet18'),
    ('ResNet50_AugMix', 'ResNet18'), ('ResNet50_progressive', 'ResNet18'),
    ('ConvNeXt_tiny_finetune', 'ConvNeXt_tiny'),
    ('SwinTransformer_base_patch4_window7_224', 'SwinTransformer_tiny_patch4_window7_224'),
    ('ViT_base_patch16_224', 'DeiT_tiny_patch16_224'))}


@lru_cache(None)
def recipe(name):
    "The recipe `name`, read once; not to be changed."
    return load_config(name)


def family(name) -> str:
    "The family of a recipe's network."
    return model_info(recipe(name).ARCHITECTURE.name)['family']


def smallest() -> list:
    "For every family, the ImageNet recipe of its smallest network."
    imagenet = [name for name in RECIPES if name.split('/')[0] not in OTHERS and name not in METHODS]
    found = {}
    for name in sorted(imagenet, key=lambda name: COSTS.get(recipe(name).ARCHITECTURE.name, 0)):
        found.setdefault(family(name), name)
    return sorted(found.values())


def test_all_are_there():
    assert len(RECIPES) - len(OURS) == 114
    assert set(RECIPES) == set(DIGESTS)
    assert all(len(list_configs(f'{d}/*')) == n for d, n in OTHERS.items())
    with_recipe = {family(n) for n in RECIPES if n.split('/')[0] not in OTHERS}
    assert {model_info(n)['family'] for n in FACTS} - with_recipe == {'ResNeXt101_wsl'}
    assert {model_info(n)['family'] for n in list_models()} - with_recipe == {'ResNeXt101_wsl'}
    assert len(LATER) == 24
    assert {n.split('/')[1] for n in LATER - METHODS.keys()} <= set(list_models())


@pytest.mark.parametrize('name', RECIPES)
def test_a_recipe_and_its_parts(name):
    text = (CONFIGS/f'{name}.yaml').read_text(encoding='utf-8').splitlines()
    assert 8 <= len(text) <= 40
    assert text[0].startswith(f'# {Path(name).name}: ')
    assert 'top-1' in text[0]
    assert text[1].startswith('# Source: ')
    assert text[2] == f'# Train: ppcls train -c {name}'
    assert find_config(name) == CONFIGS/f'{name}.yaml'
    conf = recipe(name)
    assert digest(name) == DIGESTS[name]
    networks = conf.ARCHITECTURE.name.split('_distill_')
    assert set(networks) <= set(list_models())
    assert (len(networks) == 2) == conf.use_distillation
    for train, reader in ((True, conf.TRAIN), (False, conf.VALID)):
        ops = build_transforms(reader, conf, train)
        image = cv2.imencode('.png', np.zeros((40, 50, 3), np.uint8))[1].tobytes()
        for op in ops:
            image = op(image)
        assert image.shape == tuple(conf.image_shape) or train and name in OTHER_SIZE
        assert image.dtype == np.float32
    assert (build_mixing(conf) is not None) == conf.use_mix
    assert CELoss(conf.ls_epsilon).epsilon == max(0, conf.ls_epsilon or 0)
    params = conf.LEARNING_RATE.params
    steps, lr = math.ceil(conf.total_images/conf.TRAIN.batch_size/conf.accumulate), params.lr
    schedule = build_schedule(conf.LEARNING_RATE.function, conf.epochs, steps, **params)
    layer, o = paddle.nn.Linear(2, 2), conf.OPTIMIZER
    warmup = params.get('warmup_epoch', 5 if 'Warmup' in conf.LEARNING_RATE.function else 0)
    warmup = params.get('warmup_steps', warmup*steps)
    assert build_optimizer(o.function, layer.parameters(), schedule, o.regularizer,
                           **o.params).get_lr() == (params.get('warmup_start_lr', 0) if warmup else lr)
    schedule.step(warmup)
    assert schedule.get_lr() == pytest.approx(lr, rel=.05)
    schedule.step(conf.epochs*steps - 1)
    assert schedule.get_lr() < lr/50 + params.get('end_lr', 0)


@pytest.fixture(scope='module')
def four(tmp_path_factory):
    "Four pictures of four classes."
    folder = tmp_path_factory.mktemp('four')
    for i in range(4):
        cv2.imwrite(str(folder/f'{i}.png'), np.random.default_rng(i).integers(0, 256, (96, 100, 3), np.uint8))
    for part in ('train', 'val'):
        (folder/f'{part}_list.txt').write_text(''.join(f'{i}.png {i}\n' for i in range(4)))
    return DataInfo('four', folder, folder, 'drawn in a test', 4, {})


@pytest.mark.parametrize('name', [*smallest(), *METHODS])
def test_a_step_of_every_family_and_method(name, four):
    network = METHODS.get(name, recipe(name).ARCHITECTURE.name)
    on_any_machine = {'use_fp16': False, 'pretrained_model': '', 'ARCHITECTURE.name': network, 'accumulate': 1}
    conf = load_config(name, {'TRAIN.batch_size': 4, 'TRAIN.num_workers': 0, 'validate': False, 'epochs': 1},
                       on_any_machine)
    size = 75 if conf.image_shape[-1] > 256 else 64
    for op in conf.TRAIN.transforms:
        if 'RandCropImage' in op:
            op.RandCropImage.update(size=size, progressive=None)
    t = Trainer.from_config(use_data(conf, four), bar=False)
    first = t.model.parameters()[0]
    before = first.numpy()
    if t.schedule.get_lr() == 0:
        t.schedule.step()
    t.fit(1)
    assert t.step == 1
    assert math.isfinite(t.loss_value.item())
    assert t.images.shape == [4, 3, size, size]
    assert t.model.class_num == 4
    assert t.metric_target_name == ('mixed labels' if conf.use_mix else 'labels')
    assert np.isfinite(first.numpy()).all()
    assert (first.numpy() != before).any()


def test_weights_a_recipe_starts_from():
    "The paths that the documents write find official weights by their last part."
    for name in RECIPES:
        conf = recipe(name)
        for source in filter(None, sources_of(conf)):
            assert weights_of_recipe(source) in list_pretrained() or 'flowers102_R50_vd_final' in source


@pytest.mark.parametrize('resize, warnings', [({}, 1), ({'interpolation': 2}, 0), ({'interpolation': 0}, 0)])
def test_a_missing_interpolation_is_reported_and_a_chosen_one_is_not(resize, warnings, capsys):
    transforms = [{'DecodeImage': None}, {'ResizeImage': {'resize_short': 256, **resize}}]
    changes = {
        'ARCHITECTURE.name': 'EfficientNetB0',
        'pretrained_model': 'EfficientNetB0',
        'VALID.transforms': transforms}
    conf = load_config('quick_start/ResNet50_vd', changes)
    build_transforms(conf.VALID, conf, False)
    assert capsys.readouterr().out.count('VALID.transforms: ResizeImage without interpolation') == warnings


@pytest.mark.parametrize('weights, decode, warning', [
    ('MobileViT_XXS', {}, 'MobileViT_XXS was trained with blue, green, red'),
    ('MobileViT_XXS', {'to_rgb': False}, ''),
    ('ResNet50', {'to_rgb': False}, 'ResNet50 was trained with red, green, blue'),
    ('ResNet50', {}, ''),
    ('', {'to_rgb': False}, ''),
])
def test_another_order_of_the_colours_is_reported(weights, decode, warning, capsys):
    changes = {
        'ARCHITECTURE.name': weights or 'ResNet50',
        'pretrained_model': weights,
        'TRAIN.transforms': [{'DecodeImage': decode}, {'RandCropImage': {'size': 64}}]}
    conf = load_config('ResNet50', changes)
    build_transforms(conf.TRAIN, conf, True)
    printed = capsys.readouterr().out
    assert (warning in printed) if warning else not printed


@pytest.mark.parametrize('size', [224, 256, 128])
def test_images_are_prepared_as_the_weights_expect_them(size):
    "MobileViT: blue, green, red in 0…1, at any size."
    changes = {
        'ARCHITECTURE.name': 'MobileViT_XXS',
        'pretrained_model': 'MobileViT_XXS',
        'image_shape': [3, size, size],
        'TRAIN.transforms': [],
        'VALID.transforms': []}
    conf = load_config('ResNet50', changes)
    for reader, train in ((conf.TRAIN, True), (conf.VALID, False)):
        operations = build_transforms(reader, conf, train)
        blue = cv2.imencode('.png', np.full((300, 300, 3), (255, 0, 51), np.uint8))[1].tobytes()
        image = transform(blue, operations, np.random.default_rng(0))
        assert np.allclose(image[:, 0, 0], (1, 0, .2)), (train, image[:, 0, 0])


@pytest.mark.parametrize('text, message', [
    ('epochs: 3\ntopk: 5\nepochs: 4', "my.yaml:3: key 'epochs' is given twice, first in line 1"),
    ('epochs: [3\ntopk: 5', 'my.yaml:2: not valid YAML'),
    ('TRAIN:\n\tbatch_size: 3', 'my.yaml:2: not valid YAML'),
    ('- epochs', 'my.yaml:1: expected keys and values'),
    ('a: &a [*a]', 'nested too deeply')])
def test_what_is_no_mapping_is_reported_with_its_line(text, message):
    with pytest.raises(PPClsError, match=message):
        parse_yaml(text, 'my.yaml')


def test_an_empty_file_has_no_keys():
    assert parse_yaml('') == ({}, {})


def test_names_of_bundled_recipes():
    assert find_config('ResNet50_vd_finetune').name == 'ResNet50_vd_finetune.yaml'
    documented = find_config('./configs/ResNet/ResNet50_vd.yaml')
    assert documented == find_config('ResNet/ResNet50_vd') == CONFIGS/'ResNet'/'ResNet50_vd.yaml'


def test_a_recipe_takes_over_the_keys_of_its_base():
    keys, _ = read_recipe(CONFIGS/'ResNet/ResNet50_vd.yaml')
    assert keys['TRAIN']['mix']
    assert len(keys['TRAIN']['transforms']) == 5
    other_function = merge(dict(a=dict(function='x', params=dict(p=1), q=2)), dict(a=dict(function='y')))
    assert other_function == dict(a=dict(function='y'))


@pytest.mark.parametrize('name, message', [
    ('one', 'one.yaml: is its own base'),
    ('three', 'three.yaml:2: base: unknown recipe')])
def test_a_base_that_cannot_be_used(name, message, tmp_path):
    bases = {
        'one': 'base: two',
        'two': 'base: [_base/imagenet, one.yaml]',
        'three': 'epochs: 3\nbase: _base/imagnet'}
    for file, text in bases.items():
        (tmp_path/f'{file}.yaml').write_text(text)
    with pytest.raises(PPClsError, match=message):
        read_recipe(tmp_path/f'{name}.yaml')


@pytest.mark.parametrize('key, message', [
    ('TRAIN.transforms.9.x', 'TRAIN.transforms has entries 0…4'),
    ('TRAIN.transforms.9', 'TRAIN.transforms has entries 0…4'),
    ('epochs.x', 'epochs is 200, nothing is below it')])
def test_an_override_below_nothing(key, message):
    keys, _ = read_recipe(CONFIGS/'ResNet/ResNet50_vd.yaml')
    with pytest.raises(PPClsError, match=message):
        assign(keys, key, 1)


@pytest.mark.parametrize('text, message', [
    ('epochs', 'expected KEY=VALUE'),
    ('=3', 'expected KEY=VALUE'),
    ('TRAIN.mix=[{', 'override TRAIN.mix:1: not valid YAML')])
def test_an_override_that_is_none(text, message):
    with pytest.raises(PPClsError, match=message):
        pairs([text])


@pytest.mark.parametrize('text, message', [
    ('epoch=3', "override epoch: unknown key 'epoch'; did you mean 'epochs'"),
    ('epochs=many', 'override epochs: epochs: .*many'),
    ('TRAIN=5', 'override TRAIN: TRAIN is 5, expected a section: batch_size'),
    ('epochs', 'expected KEY=VALUE'),
    ('TRAIN.transforms.1.RandCropImage.sizes=3',
     "override TRAIN.transforms.1.RandCropImage.sizes|unknown argument 'sizes'"),
    ('LEARNING_RATE.function=Step', 'override LEARNING_RATE.function: unknown schedule')])
def test_a_mistake_in_an_override_is_reported_with_the_override(text, message):
    with pytest.raises(PPClsError, match=message):
        load_config('ResNet/ResNet50_vd', [text])


def test_overrides_are_applied():
    conf = load_config('quick_start/ResNet50_vd_ssld_finetune', ['epochs=2', 'ARCHITECTURE.params={}'],
                       {'LEARNING_RATE.params.lr': 0.01})
    assert conf.AMP is None
    assert load_config('ResNet/ResNet18', ['use_mix=1']).use_mix is True


OLD_RECIPE = '''mode: train
ARCHITECTURE:
    name: "ShuffleNetV2"
classes_num: 102
LEARNING_RATE:
    function: 'Piecewise'
    params:
        lr: 0.1
        decay_epochs: [30, 60, 90]
        gamma: 0.1
TRAIN:
    batch_size: 256
    transforms:
        - DecodeImage:
        - RandCropImage:
            size: 224
'''


@pytest.mark.parametrize('right, wrong', [
    ('classes_num', 'class_num'), ('Piecewise', 'Piecewis'), ('gamma', 'gama'), ('RandCropImage', 'RandomCrop'),
    ('ShuffleNetV2', 'ShuffleNetV3_x1_0'), ('102', 'many'), ('TRAIN:', 'TRAIN: 3\nVALID:')])
def test_a_mistake_in_a_file_is_reported_with_its_line(right, wrong, tmp_path):
    text = OLD_RECIPE.replace(right, wrong)
    line = next(n for n, row in enumerate(text.splitlines(), 1) if wrong.split('\n')[0] in row)
    (tmp_path/'old.yaml').write_text(text)
    with pytest.raises(PPClsError, match=f'old.yaml:{line}: '):
        load_config(tmp_path/'old.yaml')
