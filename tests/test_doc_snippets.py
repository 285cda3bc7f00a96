"""The documents' examples of augmentation (3.1.3 to 3.1.5), run with `ppcls` replaced by `ppcls_nb` on a folder of
JPEGs."""
import os

import cv2, numpy as np, pytest

from ppcls_nb.data.imaug import DecodeImage, ResizeImage, transform
from ppcls_nb.data.petals import draw_scene, make_species

# All examples have this shape; corrected in every one: the file is opened as bytes ('rb').
EXAMPLE = """
{imports}

size = 224

{makers}

ops = [{ops}]

imgs_dir = image_path
{batch}
fnames = os.listdir(imgs_dir)
for idx, f in enumerate(fnames):
    data = open(os.path.join(imgs_dir, f), 'rb').read()
    img = transform(data, ops)
    {then}
{end}
"""
MAKERS = {
    'decode_op': 'DecodeImage()',
    'resize_op': 'ResizeImage(size=(size, size))',
    'tochw_op': 'ToCHWImage()',
    'autoaugment_op': 'ImageNetPolicy()',
    'randaugment_op': 'RandAugment()',
    'cutout_op': 'Cutout(n_holes=1, length=112)',
    'randomerasing_op': 'RandomErasing()',
    'hide_and_seek_op': 'HideAndSeek()',
    'gridmask_op': 'GridMask(d1=96, d2=224, rotate=1, ratio=0.6, mode=1, prob=0.8)',
    'mixup_op': 'MixupOperator()',
    'cutmix_op': 'CutmixOperator()'}

# Operations that each example puts behind decode and resize, and those it makes besides. Corrected: some examples
# forget to import or to make one of them.
SINGLE = {
    'ImageNetPolicy': ['autoaugment_op'],
    'RandAugment': ['randaugment_op'],
    'Cutout': ['cutout_op'],
    'RandomErasing': ['tochw_op', 'randomerasing_op'],
    'HideAndSeek': ['tochw_op', 'hide_and_seek_op'],
    'GridMask': ['tochw_op', 'gridmask_op']}
MIXED = {
    'MixupOperator': ('mixup_op', ['hide_and_seek_op', 'mixup_op', 'cutmix_op']),
    'CutmixOperator': ('cutmix_op', ['hide_and_seek_op', 'cutmix_op'])}


def example(ops, makes=(), **parts):
    "The text of an example."
    ops = ['decode_op', 'resize_op', *ops]
    made = [*ops, *makes]
    imports = [
        f'from ppcls.data.imaug import {name}' for name in (*(MAKERS[m].split('(')[0] for m in made), 'transform')]
    return EXAMPLE.format(imports='\n'.join(imports), makers='\n'.join(f'{m} = {MAKERS[m]}' for m in made),
                          ops=', '.join(ops), **{
                              'batch': '',
                              'end': '',
                              **parts})


def run(text, folder, **names):
    names = dict(os=os, image_path=str(folder), **names)
    exec(text.replace('ppcls.', 'ppcls_nb.'), names)
    return names


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('images')
    for i, wh in enumerate(((320, 240), (120, 200), (224, 224))):
        assert cv2.imwrite(str(folder/f'{i}.jpg'),
                           cv2.resize(draw_scene(make_species(i), np.random.default_rng(i), 256), wh))
    return folder


def plain(folder):
    return [
        transform((folder/f).read_bytes(), [DecodeImage(), ResizeImage(size=(224, 224))]) for f in os.listdir(folder)]


@pytest.mark.parametrize('name', SINGLE)
def test_examples_for_single_images(name, folder):
    chw, before = 'tochw_op' in SINGLE[name], plain(folder)
    text = example(SINGLE[name], then='img = img.transpose((1, 2, 0)); seen.append(img)' if chw else 'seen.append(img)')
    assert f'import {name}\n' in text
    changed = 0
    for _ in range(20):                                                  # some do nothing now and then
        run(text, folder, seen=(seen := []))
        assert len(seen) == 3
        assert all(x.shape == (224, 224, 3) and x.dtype == np.uint8 for x in seen)
        changed += sum((x != y).any() for x, y in zip(seen, before))
    assert changed > (50 if name == 'Cutout' else 10)


@pytest.mark.parametrize('name', ['Cutout', 'RandomErasing', 'HideAndSeek', 'GridMask'])
def test_what_is_hidden_is_0_and_the_rest_untouched(name, folder):
    before = plain(folder)
    for _ in range(5):
        run(example(SINGLE[name], then='seen.append(img)'), folder, seen=(seen := []))
        for x, y in zip(seen, before):
            x = x.transpose(1, 2, 0) if x.shape[0] == 3 else x
            changed = (x != y).any(-1)
            assert not x[changed].any()
            assert (x[~changed] == y[~changed]).all()


@pytest.mark.parametrize('name', MIXED)
def test_examples_for_batches(name, folder):
    op, makes = MIXED[name]
    text = example(['tochw_op'], makes, batch='batch = []', then='batch.append((img, idx)) # fake label',
                   end=f'new_batch = {op}(batch)')
    assert f'import {name}\n' in text
    changed = 0
    # the partner may be the image itself, and the share nearly 1
    for _ in range(20):
        got = run(text, folder)
        batch, new = got['batch'], got['new_batch']
        assert isinstance(new, list)
        assert len(new) == 3
        assert all(isinstance(x, tuple) and x[0].shape == (3, 224, 224) for x in new)
        assert [x[1] for x in new] == [0, 1, 2] == sorted(x[2] for x in new)
        assert all(0 <= x[3] <= 1 for x in new)
        assert all((old == y.transpose(2, 0, 1)).all() for (old, _), y in zip(batch, plain(folder)))
        for (img, a, b, lam), (old, _) in zip(new, batch):
            assert np.isfinite(img).all()
            assert (a != b or np.abs(img - old.astype(np.float64)).max() < 1e-3)
        changed += sum((img != old).any() for (img, *_), (old, _) in zip(new, batch))
    assert changed > 10


def test_a_forgotten_rb_is_explained(folder):
    text = example(SINGLE['Cutout'], then='seen.append(img)').replace(", 'rb'", ", encoding='latin1'")
    with pytest.raises(Exception, match="mode 'rb'"): run(text, folder, seen=[])
