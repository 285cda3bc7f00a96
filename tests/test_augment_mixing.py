"""Mixup and Cutmix on arrays, lists and Paddle tensors, and pipelines from recipes: all corner cases and errors."""
import math

import cv2
import numpy as np
import paddle
import pytest
from ppcls_nb.basics import PPClsError
from ppcls_nb.data.imaug import MIX_OPS, OPS, RandomErasing, build_mix, build_ops, create_operators, transform
from ppcls_nb.data.imaug.mixing import CutmixOperator, Mixing, MixupOperator, _take, mixed_labels
from ppcls_nb.data.petals import draw_scene, make_species

SPECIES_AND_SEEDS = (3, 3), (9, 6), (18, 3), (27, 0)
FLOWERS = [draw_scene(make_species(k), np.random.default_rng(s), 64)[..., ::-1] for k, s in SPECIES_AND_SEEDS]
IMAGES, LABELS = np.stack(FLOWERS).transpose(0, 3, 1, 2).astype(np.float32)/255, np.arange(4)
CONSTANT = np.broadcast_to(np.arange(4, dtype=np.float32)[:, None, None, None], (4, 3, 30, 50)).copy()


def rng(seed=0): return np.random.default_rng(seed)


class Swap(Mixing):
    def blend(self, images, order, lam, rng): return _take(images, order), 0.


def test_the_base_class():
    assert repr(Swap(.4)).endswith('Swap(alpha=0.4, prob=None)')
    assert all((img == IMAGES[b]).all() for img, _, b, _ in Swap()(list(zip(IMAGES, LABELS))))
    for alpha in (0, -1, math.inf, math.nan, 'much'):
        with pytest.raises(PPClsError, match=f'Swap: alpha {alpha}, expected a number above 0'): Swap(alpha)
    with pytest.raises(PPClsError, match=r'shape \[3, 64, 64\] with 4 labels'): Swap().mix(IMAGES[0], LABELS)
    with pytest.raises(PPClsError, match=r'\[4, 3, 64, 64\] with 3 labels'): Swap().mix(IMAGES, LABELS[:3])
    with pytest.raises(PPClsError, match=r'one shape, got \[\(3, 64, 49\), \(3, 64, 64\)\]'):
        Swap()([(IMAGES[0], 0), (IMAGES[1][..., :49], 1)])
    with pytest.raises(PPClsError, match='one shape, got no images'): Swap()([])


def mixed_twice(op, images, labels, seed):
    "`op.mix`, after checks that it depends on the generator alone and leaves its input as it is."
    before = images.copy()
    first, second = (op.mix(images, labels, rng(seed)) for _ in range(2))
    assert (images == before).all()
    assert (first[0] == second[0]).all()
    mixed, a, b, lam = first
    assert lam == second[3]
    assert mixed.shape == images.shape
    assert isinstance(lam, float)
    assert 0 <= lam <= 1
    assert (a == labels).all()
    assert (np.sort(b) == np.sort(labels)).all()
    return first


@pytest.mark.parametrize('n', (1, 3, 4))
def test_mixup(n):
    for seed in range(20):
        mixed, a, b, lam = mixed_twice(MixupOperator(1.), IMAGES[:n], LABELS[:n], seed)
        assert mixed.dtype == np.float32
        assert (mixed >= np.minimum(IMAGES[a], IMAGES[b]) - 1e-6).all()
        assert (mixed <= np.maximum(IMAGES[a], IMAGES[b]) + 1e-6).all()
        assert np.abs(mixed - (lam*IMAGES[a] + (1 - lam)*IMAGES[b])).max() < 1e-6
        assert ((mixed == IMAGES[:n])[a == b]).all()


def test_mixup_of_bytes():
    half = MixupOperator().blend(np.array([[[[0]]], [[[255]]]], np.uint8), [1, 0], .5, None)[0]
    assert half.dtype == np.float32
    assert half.ravel().tolist() == [127.5, 127.5]


@pytest.mark.parametrize('n', (1, 3, 4))
def test_cutmix(n):
    for seed in range(100):
        mixed, a, b, lam = mixed_twice(CutmixOperator(1.), CONSTANT[:n], LABELS[:n], seed)
        for x, label_a, label_b in zip(mixed, a, b):
            own, other = (x == label_a), (x == label_b)
            if label_a == label_b: assert own.all()
            else:
                assert own.mean() == lam
                assert other.sum() == x.size - own.sum()
            assert abs(x.mean() - (lam*label_a + (1 - lam)*label_b)) < 1e-6
            hole = np.argwhere(x[0] != label_a)
            if len(hole):                                                        # one full rectangle, in all channels
                assert len(hole) == np.prod(np.ptp(hole, axis=0) + 1)
                assert (x[0] == x).all()
    assert (CutmixOperator().mix(IMAGES[:1], LABELS[:1])[0] == IMAGES[:1]).all()
    assert CutmixOperator().mix((IMAGES*255).astype(np.uint8), LABELS)[0].dtype == np.uint8


@pytest.mark.parametrize('op', (MixupOperator(1.), CutmixOperator(1.)))
def test_lists_of_either_layout(op):
    first, last = (op(list(zip(batch, LABELS)), rng(7)) for batch in (IMAGES, IMAGES.transpose(0, 2, 3, 1)))
    as_array = op.mix(IMAGES, LABELS, rng(7))
    for k, (x, y) in enumerate(zip(first, last)):
        assert (x[0] == as_array[0][k]).all()
        assert (x[0].transpose(1, 2, 0) == y[0]).all()
        assert x[1:] == y[1:] == (k, as_array[2][k], as_array[3])


def test_mixed_labels():
    rows = mixed_labels(np.array([0, 2, 1]), np.array([2, 2, 0]), .75, 3)
    assert rows.tolist() == [[.75, 0, .25], [0, 0, 1], [.25, .75, 0]]
    assert rows.dtype == np.float32
    assert np.abs(mixed_labels(LABELS, LABELS[::-1], 1/3, 9).sum(1) - 1).max() < 1e-6
    with pytest.raises(PPClsError, match='label 4 is out of range, expected 0…2'):
        mixed_labels(np.array([0, 4]), np.array([1, 1]), .5, 3)


@pytest.mark.parametrize('n', (1, 3, 4))
@pytest.mark.parametrize('op', (MixupOperator(), CutmixOperator(1.)))
def test_paddle_tensors(op, n):
    tensors, targets = paddle.to_tensor(IMAGES), paddle.to_tensor(LABELS)
    expected, result = op.mix(IMAGES[:n], LABELS[:n], rng(3)), op.mix(tensors[:n], targets[:n], rng(3))
    assert isinstance(result[0], paddle.Tensor)
    assert np.abs(result[0].numpy() - expected[0]).max() < 1e-6
    assert result[3] == expected[3]
    assert (result[2].numpy() == expected[2]).all()
    assert (tensors.numpy() == IMAGES).all()
    assert np.abs(mixed_labels(*result[1:], 5).numpy() - mixed_labels(*expected[1:], 5)).max() < 1e-6


def test_dtypes_of_paddle_tensors():
    images, labels = paddle.to_tensor((IMAGES*255).astype(np.uint8)), paddle.to_tensor(LABELS)
    assert MixupOperator().mix(images, labels)[0].dtype == paddle.float32
    assert CutmixOperator().mix(images, labels)[0].dtype == paddle.uint8


def test_tables_of_operations():
    assert all(op.__name__ == name and op.__doc__ for name, op in (OPS | MIX_OPS).items())
    assert OPS['RandomErasing'] is RandomErasing
    assert build_ops(None) == []
    assert create_operators is build_ops
    data = cv2.imencode('.png', np.full((80, 90, 3), 200, np.uint8))[1].tobytes()
    assert transform(data, build_ops(['DecodeImage', {'ResizeImage': {'resize_short': 40}}])).shape == (40, 45, 3)
    assert [op.alpha for op in build_mix([{'MixupOperator': {'alpha': .4}}, 'CutmixOperator'])] == [.4, .2]


@pytest.mark.parametrize('entry, reason', (
    ({'DecodeImag': None}, "unknown operation 'DecodeImag'; did you mean 'DecodeImage'"),
    ({'RandFlipImage': {'flip': 1}}, "RandFlipImage: unknown argument 'flip'; did you mean 'flip_code'"),
    ({'CropImage': None}, "CropImage: argument 'size' is missing"),
    ({'CropImage': 224}, 'CropImage: 224, expected argument: value'),
    ({'CropImage': {'size': 8}, 'ToCHWImage': None}, "expected one 'Name"), (['CropImage'], "expected one 'Name"),
    ({'RandFlipImage': {'flip_code': 7}}, 'flip_code 7'),
    ({'MixupOperator': {'alpha': .2}}, 'transforms: MixupOperator belongs in mix')))
def test_errors_in_transforms(entry, reason):
    with pytest.raises(PPClsError, match=reason): build_ops([entry])


def test_errors_in_mix():
    with pytest.raises(PPClsError, match="mix: unknown operation 'MixUp'; did you mean 'MixupOperator'"):
        build_mix(['MixUp'])
    with pytest.raises(PPClsError, match='mix: Cutout belongs in transforms'): build_mix(['Cutout'])
