"""The 114 recipes of the documents, and those we add: each is read, its parts are built, and one of every family trains
a step; none of their values has moved."""
import csv, hashlib, json, math
from functools import lru_cache
from pathlib import Path

import cv2, numpy as np, paddle, pytest
from omegaconf import OmegaConf

from ppcls_nb.recipe.build import CONFIGS, Trainer, build_mixing, build_transforms, find_config, list_configs, load_config, resolve_pretrained, sources_of, use_data
from ppcls_nb.data.prepare import DataInfo
from ppcls_nb.models import list_models, list_pretrained, model_info
from ppcls_nb.models.registry import fact_rows
from ppcls_nb.train import CELoss, build_optimizer, build_schedule

RECIPES = [n for n in list_configs() if n != 'eval']
OTHERS = {'quick_start': 6, 'DataAugment': 9, 'Distillation': 2, 'Fix': 1}
OURS = {'Fix/Fix_ResNet50_vd_ssld_v2'}      # the documents tell of it and give no recipe
DOCUMENTED = ('ARCHITECTURE.name ARCHITECTURE.params pretrained_model mode model_save_dir classes_num total_images '
              'save_interval validate valid_interval '
              'epochs topk image_shape ls_epsilon use_mix use_distillation LEARNING_RATE OPTIMIZER TRAIN VALID').split()
DIGESTS = dict(csv.reader((Path(__file__).parent/'facts'/'recipes.csv').read_text().splitlines()))
COSTS = {r['arch']: int(r['params']) for r in fact_rows('costs')}


def digest(conf) -> str:
    "Eight characters that stand for all documented values of a recipe."
    keys = OmegaConf.to_container(conf)
    for section in ('TRAIN', 'VALID'): keys[section].pop('skip_bad')
    values = {k: keys['ARCHITECTURE'][k.split('.')[1]] if '.' in k else keys[k] for k in DOCUMENTED}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


@lru_cache(None)
def recipe(name):
    "The recipe `name`, read once; not to be changed."
    return load_config(name)


def family(name): return model_info(recipe(name).ARCHITECTURE.name)['family']


def smallest() -> list:
    "For every family, the ImageNet recipe of its smallest network."
    imagenet, found = [n for n in RECIPES if n.split('/')[0] not in OTHERS], {}
    for n in sorted(imagenet, key=lambda n: COSTS.get(recipe(n).ARCHITECTURE.name, 0)): found.setdefault(family(n), n)
    return sorted(found.values())


def test_all_are_there():
    assert len(RECIPES) - len(OURS) == 114
    assert set(RECIPES) == set(DIGESTS)
    assert all(len(list_configs(f'{d}/*')) == n for d, n in OTHERS.items())
    with_recipe = {family(n) for n in RECIPES if n.split('/')[0] not in OTHERS}
    assert {model_info(n)['family'] for n in COSTS} - with_recipe == {'ResNeXt101_wsl'}


@pytest.mark.parametrize('name', RECIPES)
def test_a_recipe_and_its_parts(name):
    text = (CONFIGS/f'{name}.yaml').read_text(encoding='utf-8').splitlines()
    assert 8 <= len(text) <= 37
    assert text[0].startswith(f'# {Path(name).name}: ')
    assert 'top-1' in text[0]
    assert text[1].startswith('# Source: ')
    assert text[2] == f'# Train: ppcls train -c {name}'
    assert find_config(name) == CONFIGS/f'{name}.yaml'
    conf = recipe(name)
    assert digest(conf) == DIGESTS[name]
    networks = conf.ARCHITECTURE.name.split('_distill_')
    assert set(networks) <= set(list_models())
    assert (len(networks) == 2) == conf.use_distillation
    for train, reader in ((True, conf.TRAIN), (False, conf.VALID)):
        ops = build_transforms(reader, conf, train)
        image = cv2.imencode('.png', np.zeros((40, 50, 3), np.uint8))[1].tobytes()
        for op in ops: image = op(image)
        assert image.shape == tuple(conf.image_shape)
        assert image.dtype == np.float32
    assert (build_mixing(conf) is not None) == conf.use_mix
    assert CELoss(conf.ls_epsilon).epsilon == max(0, conf.ls_epsilon or 0)
    steps, lr = math.ceil(conf.total_images/conf.TRAIN.batch_size), conf.LEARNING_RATE.params.lr
    schedule = build_schedule(conf.LEARNING_RATE.function, conf.epochs, steps, **conf.LEARNING_RATE.params)
    layer, o = paddle.nn.Linear(2, 2), conf.OPTIMIZER
    assert build_optimizer(o.function, layer.parameters(), schedule, o.regularizer,
                           **o.params).get_lr() == (0 if 'Warmup' in conf.LEARNING_RATE.function else lr)
    schedule.step(5*steps if 'Warmup' in conf.LEARNING_RATE.function else 0)
    assert schedule.get_lr() == pytest.approx(lr, rel=.05)
    schedule.step(conf.epochs*steps - 1)
    assert schedule.get_lr() < lr/50


@pytest.fixture(scope='module')
def four(tmp_path_factory):
    "Four pictures of four classes."
    folder = tmp_path_factory.mktemp('four')
    for i in range(4):
        cv2.imwrite(str(folder/f'{i}.png'), np.random.default_rng(i).integers(0, 256, (96, 100, 3), np.uint8))
    for part in ('train', 'val'): (folder/f'{part}_list.txt').write_text(''.join(f'{i}.png {i}\n' for i in range(4)))
    return DataInfo('four', folder, folder, 'drawn in a test', 4, {})


@pytest.mark.parametrize('name', smallest())
def test_a_step_of_every_family(name, four):
    conf = load_config(name, {'TRAIN.batch_size': 4, 'TRAIN.num_workers': 0, 'validate': False, 'epochs': 1})
    size = 75 if conf.image_shape[-1] > 256 else 64
    for n, op in enumerate(conf.TRAIN.transforms):
        if 'RandCropImage' in op: conf.TRAIN.transforms[n].RandCropImage.size = size
    t = Trainer.from_config(use_data(conf, four), bar=False)
    first = t.model.parameters()[0]
    before = first.numpy()
    if t.schedule.get_lr() == 0: t.schedule.step()
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
            assert resolve_pretrained(source) in list_pretrained() or 'flowers102_R50_vd_final' in source


@pytest.mark.parametrize('resize, said', [({}, 1), ({'interpolation': 2}, 0), ({'interpolation': 0}, 0)])
def test_a_missing_interpolation_is_worth_a_word_and_a_chosen_one_is_not(resize, said, capsys):
    transforms = [{'DecodeImage': None}, {'ResizeImage': {'resize_short': 256, **resize}}]
    changes = {
        'ARCHITECTURE.name': 'EfficientNetB0',
        'pretrained_model': 'EfficientNetB0',
        'VALID.transforms': transforms}
    conf = load_config('quick_start/ResNet50_vd', changes)
    build_transforms(conf.VALID, conf, False)
    assert capsys.readouterr().out.count('VALID.transforms: ResizeImage without interpolation') == said
