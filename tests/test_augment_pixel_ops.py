"""Pixel operations equal Pillow's on images of many sizes; the policies draw what their tables say."""
from collections import Counter

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from ppcls_nb.basics import PPClsError
from ppcls_nb.data.imaug import pixel_ops
from ppcls_nb.data.imaug.autoaugment import (MAGNITUDE_RANGES, POLICIES, AutoAugment, CIFAR10Policy, ImageNetPolicy,
                                             PixelPolicy, SVHNPolicy, check_fillcolor, op_magnitude, read_policy)
from ppcls_nb.data.imaug.pixel_ops import GEOMETRIC_OPS, GREY, PIXEL_OPS, check_rgb, pixel_op
from ppcls_nb.data.imaug.randaugment import RAND_OPS, RandAugment
from ppcls_nb.data.petals import draw_scene, make_species

IMG = draw_scene(make_species(9), np.random.default_rng(0), 160)[..., ::-1].copy()
noise = np.random.default_rng(0)
SIZES = ((1, 1), (1, 9), (8, 1), (2, 2), (2, 7), (3, 3), (31, 20), (64, 64), (101, 67))
IMAGES = [noise.integers(0, 256, (h, w, 3), np.uint8) for h, w in SIZES]
IMAGES += [
    np.full((12, 17, 3), (9, 200, 255), np.uint8),
    noise.integers(90, 99, (40, 41, 3), np.uint8), (noise.beta(.4, 2, (75, 50, 3))*255).astype(np.uint8), IMG]
FACTORS = (0, .1, .28, .5, .99, 1, 1.3, 1.9, 3)
SETTINGS = dict(posterize=2, solarize=128, color=1.9, contrast=1.9, brightness=.4, sharpness=4, shear_x=.3, shear_y=.3,
                translate_x=40, translate_y=40, rotate=30)


def rng(seed=0): return np.random.default_rng(seed)


def enhance(name): return lambda image, factor: getattr(ImageEnhance, name)(image).enhance(factor)


@pytest.mark.parametrize('name, pillow, values, limit', (
    ('posterize', ImageOps.posterize, range(1, 9), 0), ('invert', ImageOps.invert, (), 0),
    ('solarize', ImageOps.solarize, (0, 1, 100.5, 113.8, 128, 255, 256), 0),
    ('brightness', enhance('Brightness'), FACTORS, 0), ('contrast', enhance('Contrast'), FACTORS, 1),
    ('autocontrast', ImageOps.autocontrast, (), 0), ('equalize', ImageOps.equalize, (), 0),
    ('color', enhance('Color'), FACTORS, 1), ('sharpness', enhance('Sharpness'), FACTORS, 1)))
def test_as_pillow(name, pillow, values, limit):
    for x in IMAGES:
        for args in [(v,) for v in values] or [()]:
            before, out = x.copy(), PIXEL_OPS[name](x, *args)
            reference = np.asarray(pillow(Image.fromarray(x), *args))
            assert out.shape == x.shape
            assert out.dtype == np.uint8
            assert (x == before).all()
            assert not np.shares_memory(out, x)
            assert np.abs(out.astype(int) - reference).max() <= limit


def test_neutral_and_extreme_values():
    assert (pixel_ops.posterize(IMG, 0) == 0).all()
    assert (pixel_ops.posterize(IMG, 8) == IMG).all()
    assert (pixel_ops.solarize(IMG, 256) == IMG).all()
    for name in ('brightness', 'contrast', 'color', 'sharpness'): assert (PIXEL_OPS[name](IMG, 1) == IMG).all()
    assert pixel_ops.brightness(IMG, 0).max() == 0
    assert len(np.unique(pixel_ops.contrast(IMG, 0))) == 1
    wide = pixel_ops.autocontrast(pixel_ops.contrast(IMG, .3))
    assert (pixel_ops.autocontrast(wide) == wide).all()
    even = pixel_ops.equalize(IMG)
    for c in range(3):                                                           # no two pixels change their order
        assert (np.diff(even[..., c].ravel()[np.argsort(IMG[..., c], axis=None)].astype(int)) >= 0).all()
    for bits in (9, -1, 2.5):
        with pytest.raises(PPClsError, match=f'bits {bits}, expected'): pixel_ops.posterize(IMG, bits)


AFFINE = {
    'shear_x': lambda v: (1, v, 0, 0, 1, 0),
    'shear_y': lambda v: (1, 0, 0, v, 1, 0),
    'translate_x': lambda v: (1, 0, v, 0, 1, 0),
    'translate_y': lambda v: (1, 0, 0, 0, 1, v)}
SHEARS, SHIFTS = (0, .04, .1, .2333, .3, -.3), (0, 1, 7.3, -4.5, 20.5, 50, -300)
VALUES = dict(shear_x=SHEARS, shear_y=SHEARS, translate_x=SHIFTS, translate_y=SHIFTS,
              rotate=(0, 3.33, 10, -30, 45, 90, 137, 180, 270, 400))


def coordinates(h, w): return np.dstack([*np.mgrid[:h, :w][::-1], np.full((h, w), 255)]).astype(np.uint8)


def same_pixels(name, v, h, w):
    """The fraction of pixels equal to Pillow's after moving an image of coordinates; asserts that none is off by more
    than one pixel, in the source or along the edge of the fill."""
    x = coordinates(h, w)
    ours, image = GEOMETRIC_OPS[name](x, v, (0, 0, 0)), Image.fromarray(x)
    if name == 'rotate': reference = np.asarray(image.rotate(v))
    else: reference = np.asarray(image.transform((w, h), Image.Transform.AFFINE, AFFINE[name](v)))
    visible = [np.ascontiguousarray(x[..., 2]) for x in (ours, reference)]
    both = (visible[0] > 0) & (visible[1] > 0)
    assert ours.shape == reference.shape
    assert np.abs(ours.astype(int) - reference)[both].max(initial=0) <= 1
    for a, b in (visible, visible[::-1]): assert (cv2.dilate(a, np.ones((3, 3))) >= b).all()
    return (ours == reference).all(-1).mean()


def test_geometric_as_pillow():
    sizes = ((1, 1), (1, 30), (25, 1), (2, 5), (64, 64), (101, 67), (160, 201))
    same = {(name, v, size): same_pixels(name, v, *size) for name in VALUES for v in VALUES[name] for size in sizes}
    assert np.mean(list(same.values())) > .99
    assert all(v == 1 for k, v in same.items() if k[0].startswith('translate'))


@pytest.mark.parametrize('name', GEOMETRIC_OPS)
def test_geometric_ops_return_new_arrays(name):
    op, before = GEOMETRIC_OPS[name], IMG.copy()
    assert (op(IMG, 0) == IMG).all()
    assert not np.shares_memory(op(IMG, 0), IMG)
    assert op(IMG, .3, (1, 2, 3)).shape == IMG.shape
    assert (IMG == before).all()
    assert (pixel_ops.translate_x(IMG, 1000) == GREY).all()


@pytest.mark.parametrize('name', PIXEL_OPS)
def test_views_and_flipped_arrays(name):
    assert PIXEL_OPS[name].__doc__
    for x in (IMG[5:77, 3:-10], IMG[::-1], IMG[:, ::-1], IMG[..., ::-1]):
        assert (pixel_op(x, name, SETTINGS.get(name)) == pixel_op(x.copy(), name, SETTINGS.get(name))).all()


def test_by_name():
    assert (pixel_op(IMG, 'rotate', 45, (1, 2, 3))[0, 0] == (1, 2, 3)).all()
    with pytest.raises(PPClsError, match="unknown pixel operation 'rotat'; did you mean 'rotate'"):
        pixel_op(IMG, 'rotat', 3)
    cases = ((IMG/255, r'float64 \(160, 160, 3\)'), (IMG.transpose(2, 0, 1), r'uint8 \(3, 160, 160\)'),
             (IMG[..., 0], r'uint8 \(160, 160\)'), (b'', 'bytes'))
    for x, got in cases:
        with pytest.raises(PPClsError, match='flip: expected uint8 .* got ' + got): check_rgb(x, 'flip')


def test_magnitudes():
    def levels(name, signed=False): return [op_magnitude(name, level/9, signed) for level in range(10)]

    assert np.allclose([offset for _, offset in levels('shear_y')], np.linspace(0, .3, 10))
    assert levels('solarize')[0] == (256, 0)
    assert levels('solarize')[9] == (0, 0)
    assert np.isclose(331*op_magnitude('translate_x', 1)[1], 150)
    assert set(MAGNITUDE_RANGES) | {'autocontrast', 'equalize', 'invert'} == set(PIXEL_OPS)


class Tilt(PixelPolicy):
    fillcolor = (250, 240, 200)

    def draw(self, rng): return [('rotate', -20), ('translate_x', .25)]


def test_policies_scale_translations():
    assert (Tilt()(IMG, rng())[40:120, :100] == pixel_ops.rotate(IMG, -20)[40:120, 40:140]).all()
    assert check_fillcolor([1, 2, 3], 'x') == (1, 2, 3)
    with pytest.raises(PPClsError, match=r'Tilt: expected uint8 \(height, width, 3\), got float64'): Tilt()(IMG/255)
    for colour in (128, (1, 2), (1, 2, 256), 'grey'):
        with pytest.raises(PPClsError, match='Tilt: fillcolor .*, expected red, green, blue'):
            check_fillcolor(colour, 'Tilt')


def test_the_papers_tables():
    tables = {name: read_policy(name) for name in POLICIES}
    equalize = {name: sum(op == 'equalize' for row in rows for op, _, _ in row) for name, rows in tables.items()}
    assert equalize == dict(imagenet=17, cifar10=9, svhn=6)
    for rows in tables.values(): assert [len(row) for row in rows] == [2]*25


@pytest.mark.parametrize('policy, reason', (
    ('imagnet', "unknown policy 'imagnet'; did you mean 'imagenet'"), (['rotat 1 3'], "did you mean 'rotate'"),
    (['rotate 1'], "'rotate 1', expected rows such as"), (['invert 1 0, rotate 1.2 3'], 'probability from 0 to 1'),
    (['rotate 1 10'], 'level from 0 to 9'), (['rotate x 1'], 'expected rows such as'), ([], 'a name or a list'),
    (25, 'policy 25')))
def test_bad_policies(policy, reason):
    with pytest.raises(PPClsError, match=reason): read_policy(policy)


@pytest.mark.parametrize('name', POLICIES)
def test_policies_draw_what_the_tables_say(name):
    expected, policy, generator, n = Counter(), AutoAugment(name), rng(), 10_000
    for row in read_policy(name):
        for op, p, _ in row: expected[op] += p/25
    drawn = [policy.draw(generator) for _ in range(n)]
    observed = Counter(op for steps in drawn for op, _ in steps)
    assert all(abs(observed[op]/n - p) < .02 for op, p in expected.items())
    assert observed.keys() == {op for op, p in expected.items() if p}
    assert .45 < np.mean([value > 0 for steps in drawn for op, value in steps if op in GEOMETRIC_OPS]) < .55


@pytest.mark.parametrize('policy', (AutoAugment(), ImageNetPolicy(), CIFAR10Policy(), SVHNPolicy(),
                                    AutoAugment('svhn', (1, 2, 3), signed=True)))
def test_policies_depend_on_the_generator_alone(policy):
    before = IMG.copy()
    for i in range(25):
        out = policy(IMG, rng(i))
        assert out.shape == IMG.shape
        assert out.dtype == np.uint8
        assert (out == policy(IMG, rng(i))).all()
    assert (IMG == before).all()
    assert policy(IMG[:1, :1], rng(3)).shape == (1, 1, 3)


def test_autoaugment():
    assert all((AutoAugment()(IMG, rng(i)) == ImageNetPolicy()(IMG, rng(i))).all() for i in range(9))
    drawn = {v for i in range(20) for _, v in AutoAugment(['brightness 1 5'], signed=True).draw(rng(i))}
    assert drawn == {.5, 1.5}
    three = AutoAugment(['invert 1 0, rotate 1 9, equalize .5 0'], [9, 9, 9])
    assert {len(three.draw(rng(i))) for i in range(20)} == {2, 3}
    assert {v for i in range(20) for name, v in three.draw(rng(i)) if name == 'rotate'} == {-30, 30}
    with pytest.raises(PPClsError, match='ImageNetPolicy: expected uint8'): ImageNetPolicy()(IMG.astype(np.float32))
    with pytest.raises(PPClsError, match='SVHNPolicy: fillcolor'): SVHNPolicy(fillcolor=300)


def test_randaugment_changes_more_with_the_magnitude():
    assert 'invert' not in RAND_OPS
    assert RAND_OPS[0] == 'identity'
    for name in set(RAND_OPS) & set(MAGNITUDE_RANGES):
        settings = [sum(op_magnitude(name, m/10, signed=True)) for m in range(11)]
        values = [160*v if 'translate' in name else v for v in settings]
        change = [np.abs(pixel_op(IMG, name, v).astype(int) - IMG).mean() for v in values]
        assert change[0] == 0 < change[10]
        assert (np.diff(np.abs(np.array(settings) - settings[0])) >= 0).all()


def test_randaugment_draws():
    op, generator = RandAugment(), rng()
    assert (op.num_layers, op.magnitude, op.fillcolor) == (2, 5, (128, 128, 128))
    drawn = [op.draw(generator) for _ in range(14_000)]
    assert any(len(steps) == 2 and steps[0][0] == steps[1][0] for steps in drawn)    # with replacement
    half = dict(shear_x=.15, shear_y=.15, translate_x=75/331, translate_y=75/331, rotate=15, color=.45, contrast=.45,
                brightness=.45, sharpness=.45)
    for name, offset in half.items():
        values = [v - (name not in GEOMETRIC_OPS) for steps in drawn for op_name, v in steps if op_name == name]
        assert np.allclose(np.abs(values), offset)
        assert .43 < np.mean(np.array(values) > 0) < .57
    assert {v for steps in drawn for name, v in steps if name in ('posterize', 'solarize')} == {6, 128}


@pytest.mark.parametrize('layers, magnitude', ((1, 0), (2, 5), (3, 7.5), (2, 10)))
def test_randaugment(layers, magnitude):
    op, before = RandAugment(layers, magnitude), IMG.copy()
    for i in range(20):
        out = op(IMG, rng(i))
        assert out.shape == IMG.shape
        assert out.dtype == np.uint8
        assert (out == op(IMG, rng(i))).all()
        assert len(op.draw(rng(i))) <= layers
    assert (IMG == before).all()
    assert op(IMG[:3, :1], rng()).shape == (3, 1, 3)


def test_randaugment_at_magnitude_0():
    op = RandAugment(4, 0)
    for i in range(40):
        if not {'equalize', 'autocontrast'} & {name for name, _ in op.draw(rng(i))}:
            assert (op(IMG, rng(i)) == IMG).all()


@pytest.mark.parametrize('options, reason', (
    (dict(magnitude=11), 'magnitude 11, expected a number from 0 to 10'), (dict(magnitude=-1), 'magnitude -1'),
    (dict(magnitude='high'), 'magnitude high'), (dict(num_layers=0), 'num_layers 0, expected'),
    (dict(num_layers=1.5), 'num_layers 1.5'), (dict(fillcolor=(1, 2)), 'fillcolor')))
def test_randaugment_errors(options, reason):
    with pytest.raises(PPClsError, match=reason): RandAugment(**options)
    with pytest.raises(PPClsError, match='RandAugment: expected uint8'): RandAugment()(IMG.astype(np.float32))
