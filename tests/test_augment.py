"""Augmentation across notebooks: the rules that all operations keep, every operation in the loader, on several workers
and ranks; the documents' recipes; damaged images in a run."""
import itertools
import pickle
import random
from pathlib import Path

import cv2
import numpy as np
import pytest
from ppcls_nb.recipe.build import build_mixing, list_configs, load_config
from ppcls_nb.recipe.data import build_loader, use_data
from ppcls_nb.data.datasets import BadImage, ListDataset
from ppcls_nb.data.imaug import (MIX_OPS, OPS, Cutout, GridMask, HideAndSeek, NormalizeImage, RandomErasing,
                                 ResizeImage, build_ops, transform)
from ppcls_nb.data.loader import make_loader
from ppcls_nb.data.petals import draw_scene, make_petals, make_species
from ppcls_nb.data.prepare import prepare_data
from ppcls_nb.train import Trainer

RECIPES = list_configs('DataAugment/*')
ERASING = [{'Cutout': {'length': 20}}, {'RandomErasing': {'EPSILON': .8}}, 'HideAndSeek',
           {'GridMask': {'d1': 10, 'd2': 30, 'rotate': 90, 'max_epoch': 4}}]
EVERYTHING = ['DecodeImage', {'RandCropImage': {'size': 48}}, 'RandFlipImage', 'AutoAugment',
              {'RandAugment': {'num_layers': 2}}, {'NormalizeImage': {'order': ''}}, *ERASING, 'ToCHWImage']
ARGUMENTS = dict(ResizeImage=dict(size=50), CropImage=dict(size=40), RandCropImage=dict(size=50),
                 NormalizeImage=dict(order='hwc'))
ERASING_OPS = 'Cutout', 'RandomErasing', 'HideAndSeek', 'GridMask'
PHOTO = np.ascontiguousarray(draw_scene(make_species(9), np.random.default_rng(0), 320)[..., ::-1])
UINT8 = ResizeImage(size=224)(PHOTO)
FLOAT = NormalizeImage(order='hwc')(UINT8)
BATCH = np.stack([np.roll(FLOAT, 40*k, 1) for k in range(6)])


def rng(seed=0): return np.random.default_rng(seed)


def inputs_of(name):
    if name == 'DecodeImage': return [cv2.imencode('.jpg', PHOTO[..., ::-1])[1].tobytes()]
    images = [UINT8[:120, :160], UINT8[:64, :64].copy()]
    return images + [FLOAT, FLOAT.transpose(2, 0, 1)] if name in ERASING_OPS else images


def copied(x, rng): return x.copy(order='K')


copied.returns_new = True  # the next operation may work in place


@pytest.mark.parametrize('name', OPS)
def test_rules_of_every_operation(name):
    "An operation changes neither its input nor itself, and its generator is the only source of randomness."
    op = OPS[name](**ARGUMENTS.get(name, {}))
    for x in inputs_of(name):
        before, state = x if isinstance(x, bytes) else x.copy(), pickle.dumps(op)
        global_state = np.random.get_state()[1].copy(), random.getstate()
        for seed in range(8):
            out = op(x, rng(seed))
            assert out.dtype == op(x).dtype
            assert np.array_equal(out, op(x, rng(seed)))
            assert np.array_equal(out, transform(x, [op], rng(seed)))
            assert np.array_equal(out, transform(x, [lambda x, r: x, op], rng(seed)))
            if not isinstance(x, bytes):
                assert np.array_equal(x, before)
                assert np.array_equal(out, transform(x, [copied, op], rng(seed)))
        assert pickle.dumps(op) == state
        assert (np.random.get_state()[1] == global_state[0]).all()
        assert random.getstate() == global_state[1]


@pytest.mark.parametrize('name', MIX_OPS)
def test_rules_of_batch_operations(name):
    before, labels = BATCH.copy(), np.arange(6)
    one, two = (MIX_OPS[name]().mix(BATCH, labels, rng(3)) for _ in range(2))
    assert (BATCH == before).all()
    assert (labels == np.arange(6)).all()
    assert all(np.array_equal(a, b) for a, b in zip(one, two))


@pytest.mark.parametrize('op', (Cutout(), Cutout(n_holes=3, length=60), RandomErasing(EPSILON=1.), HideAndSeek(),
                                GridMask(d1=96, d2=224, rotate=1, ratio=.6, mode=1, prob=1.)))
def test_exactly_the_masked_pixels_are_erased(op):
    for seed in range(60):
        mask = op(np.ones((224, 224, 3), np.float32), rng(seed))[..., 0] == 0
        for x in (np.maximum(UINT8, 1), FLOAT):
            out = op(x, rng(seed))
            assert (out[mask] == 0).all()
            assert (out[~mask] == x[~mask]).all()
            assert np.isclose((out == 0).all(-1).mean(), mask.mean(), atol=1e-4)
        assert (op(FLOAT.transpose(2, 0, 1), rng(seed)).transpose(1, 2, 0) == out).all()
        if type(op) is RandomErasing: assert .02*.9 < mask.mean() < .4*1.1
        if type(op) is Cutout and op.n_holes == 1:
            y, x = np.nonzero(mask)
            h, w = np.ptp(y) + 1, np.ptp(x) + 1
            assert h*w == len(y)
            assert 56 <= min(h, w) <= max(h, w) <= 112


@pytest.fixture(scope='module')
def petals(tmp_path_factory):
    return prepare_data('petals', tmp_path_factory.mktemp('data'), dict(classes=4, per_class=(6, 2, 2), progress=False))


def batches(info, epoch, batch_size=8, **kw):
    "The arrays of an epoch's batches, through every operation."
    loader = make_loader(ListDataset(info.root, info.lists/'train_list.txt', build_ops(EVERYTHING), seed=5), batch_size,
                         shuffle=True, seed=5, **kw)
    loader.set_epoch(epoch)
    return [[t.numpy() for t in batch] for batch in loader]


@pytest.mark.parametrize('epoch', (0, 3))
def test_a_sample_is_the_same_on_any_number_of_workers_and_ranks(petals, epoch):
    whole = batches(petals, epoch)
    assert [len(labels) for _, labels in whole] == [8, 8, 8]
    assert all(np.isfinite(images).all() for images, _ in whole)
    for workers in (1, 2, 4):
        for one, other in zip(whole, batches(petals, epoch, num_workers=workers), strict=True):
            assert all((a == b).all() for a, b in zip(one, other))
    shares = [batches(petals, epoch, 4, rank=r, ranks=2, num_workers=2*r) for r in (0, 1)]
    for one, parts in zip(whole, zip(*shares, strict=True), strict=True):
        assert all((a == np.concatenate(b)).all() for a, b in zip(one, zip(*parts)))


def test_another_epoch_is_another(petals):
    assert all((a[0] != b[0]).any() for a, b in itertools.combinations((batches(petals, e)[0] for e in (0, 1, 2)), 2))


def test_gridmask_grows_with_the_epochs(petals):
    ops = build_ops(['DecodeImage', {'ResizeImage': {'size': 48}}, {'NormalizeImage': {'order': ''}},
                     {'GridMask': {'d1': 10, 'd2': 30, 'max_epoch': 4}}])
    ds = ListDataset(petals.root, petals.lists/'train_list.txt', ops)
    masked = [sum((ds[e, i][0] == 0).all(-1).mean() > .1 for i in range(24)) for e in (0, 2, 4, 9)]
    assert masked[0] == 0
    assert 4 < masked[1] < 20
    assert masked[2] == masked[3] == 24
    assert ds.transforms[-1].prob == GridMask().prob  # the schedule is not a state


@pytest.mark.parametrize('name', RECIPES)
def test_the_documents_recipes_make_batches(petals, name):
    small = {'TRAIN.batch_size': 6, 'VALID.batch_size': 6, 'TRAIN.num_workers': 0, 'VALID.num_workers': 0}
    conf = use_data(load_config(name, small), petals)
    images, labels = next(iter(build_loader(conf.TRAIN, conf, True)))
    assert images.shape == [6, 3, 224, 224]
    assert 'float32' in str(images.dtype)
    assert next(iter(build_loader(conf.VALID, conf, False)))[0].shape == images.shape
    mix = build_mixing(conf)
    assert (mix is None) == (not name.endswith('mix') and not name.endswith('Mixup'))
    if mix:
        mixed, target = mix(images, labels, np.random.default_rng(1))
        assert mixed.shape == images.shape
        assert target.shape == [6, 4]
        assert (mixed.numpy() != images.numpy()).any()


def test_nine_recipes():
    assert len(RECIPES) == 9
    assert all(load_config(name).epochs == 300 for name in RECIPES)


def test_a_damaged_image_ends_a_run_or_is_counted(tmp_path):
    make_petals(tmp_path/'petals', classes=2, per_class=(4, 2, 1), progress=False)
    info = prepare_data(str(tmp_path/'petals'), tmp_path/'lists')
    bad = Path((info.lists/'train_list.txt').read_text().split()[0]).name
    (info.root/'jpg'/bad).write_bytes(b'\xff\xd8 no')
    small = {'ARCHITECTURE.name': 'MobileNetV3_small_x0_35', 'pretrained_model': '', 'TRAIN.batch_size': 4,
             'TRAIN.transforms': [], 'VALID.transforms': [], 'image_shape': [3, 32, 32]}

    def recipe(**kw): return use_data(load_config('quick_start/ResNet50_vd', small, kw), info)

    with pytest.raises(BadImage, match=bad): Trainer.from_config(recipe(**{'TRAIN.num_workers': 2}), bar=False).fit(1)
    with pytest.warns(UserWarning, match=f'left out: .*{bad}'):
        t = Trainer.from_config(recipe(**{'TRAIN.skip_bad': True}), bar=False).fit(1)
    assert t.history[0]['train_skipped'] == 1
    assert t.history[0]['train_total'] == 7
    assert 'valid_skipped' not in t.history[0]
