"""The operations that erase parts of an image: every layout, dtype and size, every error."""
import numpy as np
import pytest
from ppcls_nb.basics import PPClsError
from ppcls_nb.data.imaug import random_erasing
from ppcls_nb.data.imaug.cutout import Cutout
from ppcls_nb.data.imaug.gridmask import GridMask, _grid_boxes, _rotated_mask
from ppcls_nb.data.imaug.hide_and_seek import HideAndSeek, _patches
from ppcls_nb.data.imaug.random_erasing import ErasingOp, RandomErasing
from ppcls_nb.data.imaug.standard import NormalizeImage, ToCHWImage
from ppcls_nb.data.petals import draw_scene, make_species
from ppcls_nb.data.transform import transform

IMG = draw_scene(make_species(9), np.random.default_rng(0), 224)[..., ::-1].copy()
ONES = np.ones((224, 224, 3), np.float32)
SHAPES = ((40, 90, 3), (90, 40, 3), (8, 8, 3), (8, 8, 1), (30, 50, 1))


def rng(seed=0): return np.random.default_rng(seed)


def box_mask(h, w, boxes):
    mask = np.zeros((h, w), bool)
    for y0, y1, x0, x1 in boxes: mask[y0:y1, x0:x1] = True
    return mask


class Half(ErasingOp):
    def erase(self, view, rng): self.fill_boxes(view, [(0, view.shape[0], 0, view.shape[1]//2)])


def layouts(h, w, channels, dtype):
    "The same image, stored in different ways."
    x = rng(1).integers(1, 255, (h, w, channels)).astype(dtype)
    larger = np.zeros((h+4, w+5, channels), dtype)
    larger[2:-2, 3:-2] = x
    planes = np.zeros((channels, h+4, w+5), dtype).transpose(1, 2, 0)
    planes[2:-2, 3:-2] = x
    return (x, x.copy('F'), x.transpose(2, 0, 1).copy().transpose(1, 2, 0), larger[2:-2, 3:-2], planes[2:-2, 3:-2],
            x[::-1].copy()[::-1], x[:, ::-1].copy()[:, ::-1])


@pytest.mark.parametrize('h, w', ((8, 8), (12, 30), (31, 7), (1, 9), (9, 1), (1, 1)))
@pytest.mark.parametrize('channels, dtype, fill', (
    (3, np.uint8, 0), (3, np.float32, [1, 2, 3]), (3, np.uint8, [9, 8, 7]), (1, np.float32, [5, 6, 7]),
    (1, np.uint8, 4), (3, np.float64, .5), (4, np.int16, -3), (4, np.float32, -3), (4, np.uint8, [1, 2, 3, 4])))
def test_boxes_and_masks_as_numpy(h, w, channels, dtype, fill):
    mask, op = rng(2).random((h, w)) < .4, ErasingOp(fill, 'hwc')
    colour = np.resize(fill, channels) if channels > 1 else np.ravel(fill)[0]
    for x in layouts(h, w, channels, dtype):
        masked, boxed, filled = x.copy(), x.copy(), x.copy('K')
        masked[mask] = colour
        boxed[2:5, 0:6] = colour
        op.fill_boxes(filled, [(2, 5, 0, 3), (2, 5, 3, 6)])
        assert (filled == boxed).all()
        op.fill_mask(x, mask)
        assert (x == masked).all()


def test_the_channel_axis():
    assert random_erasing._channel_axis((4, 5, 6), 'chw', '') == 0
    for shape, order in (((5, 6, 7), 'auto'), ((5, 6), 'auto'), ((5, 6), 'hwc')):
        with pytest.raises(PPClsError, match='Op: an array of shape .* expected 1 or 3 channels'):
            random_erasing._channel_axis(shape, order, 'Op')


def test_fill_rows():
    row, uint8, float32 = random_erasing._fill_row, np.dtype(np.uint8), np.dtype(np.float32)
    assert row((1., 2., 3.), float32, 4, 1, True, '').tolist() == [[[1]]*4]
    assert (row((5.,), uint8, 9, 3, False, '') == 5).all()
    for fill, reason in (((-2.,), r'Op: fill values \[-2\] for uint8 pixels, expected 0 to 255'),
                         ((300.,), 'expected 0 to 255'),
                         ((1., 2.), 'Op: 2 fill values for 3 channels, expected 1 or 3')):
        with pytest.raises(PPClsError, match=reason): row(fill, uint8, 9, 3, True, 'Op')


def test_arguments_of_the_base_class():
    assert repr(Half([1, 2, 3])).endswith("Half(fill=[1, 2, 3], order='auto')")
    assert (Half([.5, 0, -.5])(ONES)[48, 48] == [.5, 0, -.5]).all()
    for fill in ('red', [], None, [1, float('nan')]):
        with pytest.raises(PPClsError, match='Half: fill .* expected a number or one per channel'): Half(fill)
    with pytest.raises(PPClsError, match="Half: order 'whc'"): Half(order='whc')
    with pytest.raises(PPClsError, match='shape'): Half(order='chw')(IMG[..., 0])
    with pytest.raises(PPClsError, match='2 fill values for 3 channels'): Half([1, 2])(IMG)
    with pytest.raises(PPClsError, match='expected 0 to 255'): Half(-2)(IMG)
    with pytest.raises(PPClsError, match='fill values .* for uint8 pixels'): Cutout(fill=[-2.1, -2, -1.8])(IMG)


SMALL_OPS = {
    'Cutout': lambda: Cutout(2, 9, [3, 2, 1]),
    'RandomErasing': lambda: RandomErasing(1., sl=.1, mean=[3, 2, 1]),
    'HideAndSeek': lambda: HideAndSeek((3, 5), fill=[3, 2, 1]),
    'GridMask': lambda: GridMask(4, 8, fill=[3, 2, 1]),
    'GridMask, rotated': lambda: GridMask(4, 8, 360, fill=[3, 2, 1])}


@pytest.mark.parametrize('name', SMALL_OPS)
@pytest.mark.parametrize('dtype', (np.uint8, np.float32))
@pytest.mark.parametrize('h, w, c', SHAPES)
def test_any_shape_and_either_layout(name, dtype, h, w, c):
    x, op = rng(1).integers(10, 255, (h, w, c)).astype(dtype), SMALL_OPS[name]()
    before = x.copy()
    last, first = op(x, rng(5)), op(x.transpose(2, 0, 1), rng(5)).transpose(1, 2, 0)
    hole = (last == [3, 2, 1][:c]).all(-1)
    assert (last == first).all()
    assert last.dtype == dtype
    assert (last[~hole] == x[~hole]).all()
    assert 0 < hole.mean() <= 1 if name == 'Cutout' else 0 < hole.mean() < 1
    assert (x == before).all()


@pytest.mark.parametrize('op', (Cutout(), RandomErasing(1.), HideAndSeek(16),
                                GridMask(d1=96, d2=224, rotate=1, ratio=.6, mode=1, prob=.8)))
def test_before_or_after_tochw(op):
    normalize = NormalizeImage(order='')
    one = transform(IMG, [normalize, op, ToCHWImage()], rng(2))
    assert (one == transform(IMG, [normalize, ToCHWImage(), op], rng(2))).all()


@pytest.mark.parametrize('op, low, high', (
    (Cutout(2, 51, [9, 8, 7]), .05, 2*51**2/224**2 + 1e-9), (RandomErasing(1., mean=[9, 8, 7]), 0, .5),
    (HideAndSeek(32, fill=[9, 8, 7]), .3, .7), (GridMask(mode=1, fill=[9, 8, 7]), .1, .45)))
def test_fill_values(op, low, high):
    out = op(IMG, rng(3))
    changed = (out != IMG).any(-1)
    assert out.dtype == np.uint8
    assert (out[changed] == [9, 8, 7]).all()
    assert low < changed.mean() < high


@pytest.mark.parametrize('op, text', (
    (RandomErasing(), "RandomErasing(EPSILON=0.5, sl=0.02, sh=0.4, r1=0.3, mean=[0.0, 0.0, 0.0], order='auto', "
                      "mode='const', attempt=100, use_log_aspect=False)"),
    (Cutout(), "Cutout(n_holes=1, length=112, fill=0.0, order='auto')"),
    (HideAndSeek(), "HideAndSeek(grid_sizes=(0, 16, 32, 44, 56), hide_prob=0.5, fill=0.0, order='auto')"),
    (GridMask(ratio=.6, mode=1, prob=.8, max_epoch=80).at(40),
     "GridMask(d1=96, d2=224, rotate=1, ratio=0.6, mode=1, prob=0.4, max_epoch=None, fill=0.0, order='auto')")))
def test_repr(op, text): assert repr(op).endswith(text)


def test_random_erasing():
    x = rng(0).integers(1, 255, (40, 50, 3), np.uint8)
    expected = RandomErasing(1.)(x, rng(5))
    for order in ('auto', 'chw'):
        out = RandomErasing(1., order=order)(x.transpose(2, 0, 1), rng(5))
        assert (out == expected.transpose(2, 0, 1)).all()
    assert (RandomErasing(EPSILON=0.)(ONES) == ONES).all()
    assert RandomErasing(1., mean=[5.])(np.zeros((1, 30, 30)), rng(0)).max() == 5
    assert (RandomErasing(1., mean=3)(x, rng(5))[expected == 0] == 3).all()
    for size in ((1, 1), (8, 8), (2, 90)):  # a rectangle that does not fit is omitted
        assert RandomErasing(1.)(np.ones((*size, 3), np.float32), rng(0)).mean() > .5
    with pytest.raises(PPClsError, match=r'RandomErasing: an array of shape \(5, 6, 7\), expected 1 or 3 channels'):
        RandomErasing(1.)(np.zeros((5, 6, 7)))


def test_before_with_the_mean_is_after_with_zero():
    scenes = np.stack([draw_scene(make_species(i), rng(i), 96)[..., ::-1] for i in range(12)])
    mean, std = scenes.mean((0, 1, 2)).tolist(), scenes.std((0, 1, 2)).tolist()
    normalize = NormalizeImage(1, mean, std, 'hwc')

    def erase(fill): return RandomErasing(1., sl=.25, sh=.4, mean=fill)

    for i, x in enumerate(scenes):
        before, after = transform(x, [erase(mean), normalize], rng(i)), transform(x, [normalize, erase(0)], rng(i))
        assert np.abs(before - after).max() <= .51/min(std)
    plain = np.stack([normalize(x) for x in scenes])
    assert abs(plain.mean()) < 1e-3
    assert abs(plain.var() - 1) < 1e-3


def test_cutout_is_clipped_only_at_the_edge():
    for i in range(30):
        y, x = np.nonzero(Cutout()(ONES, rng(i))[..., 0] == 0)
        for p in (y, x): assert np.ptp(p) == 111 or p.min() == 0 or p.max() == 223
    assert (Cutout()(ONES[:8, :8], rng(0)) == 0).all()                           # 112 pixels cover a tiny image


def test_patches():
    for h, w, size in ((50, 70, 16), (224, 224, 44), (8, 8, 3), (8, 8, 56)):
        decisions = rng(7).random((-(-h//size), -(-w//size))) < .5
        pixels = np.repeat(np.repeat(decisions, size, 1), size, 0)[:h, :w]
        assert (box_mask(h, w, _patches(h, w, size, .5, rng(7))) == pixels).all()
    assert not list(_patches(9, 9, 2, 0, rng(0)))
    assert box_mask(9, 9, _patches(9, 9, 2, 1, rng(0))).all()


def test_hide_and_seek():
    assert abs(np.mean([HideAndSeek((16,), .3)(ONES, rng(i)) == 0 for i in range(50)]) - .3) < .02
    assert (HideAndSeek([0])(IMG, rng(0)) == IMG).all()
    assert (HideAndSeek(32, 1)(IMG, rng(0)) == 0).all()
    assert {float(HideAndSeek()(ONES[:8, :8], rng(i)).mean()) for i in range(40)} == {0, 1}    # a single patch


GRIDS = ((224, 224, 96, 58), (90, 40, 30, 7), (40, 91, 33, 32), (8, 8, 96, 48), (1, 1, 5, 2), (50, 50, 2, 1))


@pytest.mark.parametrize('h, w, d, l', GRIDS)
def test_grids(h, w, d, l):
    for i in range(12 if d > 9 else 4):
        oy, ox = (int(n) for n in rng(i).integers(0, d, 2))
        stripes = ((np.arange(h) - oy) % d < l)[:, None] | ((np.arange(w) - ox) % d < l)
        for mode, expected in ((0, stripes), (1, ~stripes)):
            assert (box_mask(h, w, _grid_boxes(h, w, d, l, oy, ox, mode)) == expected).all()
            boxes = _grid_boxes(h, w, d, l, oy, ox, mode, 60)
            opposite = _grid_boxes(h, w, d, l, (h-oy-l) % d, (w-ox-l) % d, mode, 60)
            assert (_rotated_mask(h, w, boxes, 360) == expected).all()
            assert (_rotated_mask(h, w, opposite, 180) == expected).all()
    assert _rotated_mask(5, 6, [], 30).sum() == 0


@pytest.mark.parametrize('rotate', (1, 360))
@pytest.mark.parametrize('mode', (0, 1))
@pytest.mark.parametrize('ratio', (.3, .6))
def test_gridmask_erases_every_pixel_equally_often(ratio, mode, rotate):
    op, ones = GridMask(ratio=ratio, mode=mode, rotate=rotate), ONES[..., :1]
    masks = np.stack([op(ones, rng((0, i)))[..., 0] == 0 for i in range(200)])
    expected = (1-ratio)**2 if mode else 1 - (1-ratio)**2
    assert abs(masks.mean() - expected) < .02
    assert np.abs(masks.mean(0) - expected).max() < .2


def test_gridmask_schedule():
    ramp = GridMask(ratio=.6, mode=1, prob=.8, max_epoch=80)
    assert ramp.at(40).at(0).prob == .4
    assert ramp.at(40).ratio == .6
    assert (ramp.at(80)(IMG, rng(0)) == ramp(IMG, rng(0))).all()                 # itself, it is as after the last epoch
    assert (GridMask(prob=0.)(ONES, rng(0)) == 1).all()
    tiny = {tuple(np.unique(GridMask()(ONES[:8, :8, :1], rng(i)))) for i in range(60)}
    assert tiny == {(0,), (0, 1), (1,)}


@pytest.mark.parametrize('op, options, reason', (
    (RandomErasing, dict(EPSILON=2), 'EPSILON 2'), (RandomErasing, dict(sl=.5), 'sl 0.5, sh 0.4'),
    (RandomErasing, dict(r1=0), 'r1 0'), (RandomErasing, dict(sh='much'), 'sh much'),
    (RandomErasing, dict(order='whc'), "RandomErasing: order 'whc'"),
    (RandomErasing, dict(mean='grey'), 'RandomErasing: fill grey, expected'),
    *((Cutout, options, 'Cutout: n_holes .* expected whole numbers of 1 or more')
      for options in (dict(n_holes=0), dict(length=0), dict(n_holes=1.5), dict(length=-3), dict(length='112'))),
    (Cutout, dict(fill='x'), 'Cutout: fill x, expected a number'),
    (Cutout, dict(order='cwh'), "Cutout: order 'cwh'"),
    (HideAndSeek, dict(grid_sizes=()), 'grid_sizes'), (HideAndSeek, dict(grid_sizes=(-1, 4)), 'grid_sizes'),
    (HideAndSeek, dict(grid_sizes=(1.5,)), 'whole numbers'),
    (HideAndSeek, dict(hide_prob=1.1), 'hide_prob 1.1, expected 0 to 1'),
    (HideAndSeek, dict(hide_prob=None), 'hide_prob None'), (HideAndSeek, dict(fill=[]), 'HideAndSeek: fill'),
    (HideAndSeek, dict(order='cwh'), "HideAndSeek: order 'cwh'"),
    (GridMask, dict(d1=224), 'd1 224, d2 224; expected .* 2 ≤ d1 < d2'), (GridMask, dict(d1=1), 'd1 1'),
    (GridMask, dict(d2=99.5), 'd2 99.5'), (GridMask, dict(prob='often'), 'prob often'),
    (GridMask, dict(max_epoch='10'), 'max_epoch 10'),
    (GridMask, dict(rotate=0), 'rotate 0, mode 0; expected whole degrees'), (GridMask, dict(mode=2), 'mode 2'),
    (GridMask, dict(ratio=1), 'ratio 1'), (GridMask, dict(prob=1.5), 'prob 1.5'),
    (GridMask, dict(max_epoch=0), 'max_epoch 0, expected a number of epochs'),
    (GridMask, dict(order='cwh'), "GridMask: order 'cwh'"), (GridMask, dict(fill=None), 'GridMask: fill None')))
def test_errors(op, options, reason):
    with pytest.raises(PPClsError, match=reason): op(**options)
