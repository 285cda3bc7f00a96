"""The standard operations and the preset pipelines: every argument, layout and error."""
import io

import cv2
import numpy as np
import pytest
from PIL import Image
from ppcls_nb.basics import PPClsError
from ppcls_nb.data.image_format import _jpeg_header, image_header
from ppcls_nb.data.imaug import standard
from ppcls_nb.data.imaug.presets import eval_ops, interpolation_number, test_size as size_at_test_time, train_ops
from ppcls_nb.data.imaug.standard import (CropImage, DecodeImage, NormalizeImage, RandCropImage, RandFlipImage,
                                          ResizeImage, ToCHWImage)
from ppcls_nb.data.petals import draw_scene, make_species
from ppcls_nb.data.transform import transform

BGR = draw_scene(make_species(9), np.random.default_rng(0), 320)[30:270]
JPEG = cv2.imencode('.jpg', BGR)[1].tobytes()
HALF_COPIED = JPEG[:len(JPEG)//2] + bytes(len(JPEG) - len(JPEG)//2)
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def rng(seed=0): return np.random.default_rng(seed)


def encoded(x, format, **options):
    file = io.BytesIO()
    Image.fromarray(x).save(file, format, **options)
    return file.getvalue()


@pytest.fixture(scope='module')
def img(): return DecodeImage()(JPEG)


def test_headers():
    assert image_header(JPEG) == (320, 240, JPEG.index(b'\xff\xc0'))
    assert image_header(cv2.imencode('.png', BGR)[1].tobytes()) == (320, 240, 0)
    assert image_header(b'BM') == (0, 0, 0)
    padded, cut = JPEG[:20] + b'\xff\xff' + JPEG[20:], JPEG[:40]
    assert _jpeg_header(padded)[:2] == (320, 240)
    assert _jpeg_header(cut) == (0, 0, 0)
    with pytest.raises(PPClsError, match='without its end'): image_header(HALF_COPIED)


@pytest.mark.parametrize('format', ('jpeg', 'png', 'webp', 'tiff'))
def test_exif_orientation(img, format):
    exif = Image.Exif()
    exif[0x112] = 6
    assert DecodeImage()(encoded(img, format, exif=exif)).shape == (320, 240, 3)


def test_decoded_formats(img):
    assert (DecodeImage()(encoded(img, 'png')) == img).all()
    assert DecodeImage()(encoded(img[..., 0], 'png')).shape == (240, 320, 3)
    assert (DecodeImage(to_rgb=False)(encoded(img[..., 0], 'gif')) == img[..., :1]).all()


def test_reduce_to(img):
    sizes = (241, 240, 121, 120, 61, 60, 30, 1)
    assert [len(DecodeImage(reduce_to=n)(JPEG)) for n in sizes] == [240, 240, 240, 120, 120, 60, 30, 30]
    assert DecodeImage(reduce_to=9)(encoded(img, 'png')).shape == img.shape
    with pytest.raises(PPClsError, match='reduce_to 0, expected'): DecodeImage(reduce_to=0)


def test_what_cannot_be_decoded(img):
    cases = ((b'', '0 bytes'), (b'<html>', '6 bytes'), (JPEG[:len(JPEG)//2], 'without its end'),
             (encoded(img, 'png')[:-9], 'damaged'), ('text', "mode 'rb'"))
    for data, reason in cases:
        with pytest.raises(PPClsError, match=reason): DecodeImage()(data)


def test_resize(img):
    assert ResizeImage(size=50)(img).shape == (50, 50, 3)
    assert ResizeImage(resize_short=96)(img.transpose(1, 0, 2)).shape == (128, 96, 3)
    assert ResizeImage(size=(320, 240))(img).shape == img.shape


@pytest.mark.parametrize('options', ({}, dict(size=3, resize_short=3), dict(size=(4, 0)), dict(resize_short=-1)))
def test_resize_errors(options):
    with pytest.raises(PPClsError, match='ResizeImage'): ResizeImage(**options)


def test_crop(img):
    assert (CropImage((320, 240))(img) == img).all()
    with pytest.raises(PPClsError, match='250 x 250 does not fit into 320 x 240'): CropImage(250)(img)


def test_random_crop(img):
    crop = RandCropImage(96)
    assert crop(img, rng(1)).shape == (96, 96, 3)
    assert (crop(img, rng(1)) == crop(img, rng(1))).all()
    assert (crop(img, rng(1)) != crop(img, rng(2))).any()
    assert RandCropImage((30, 20))(img).shape == (20, 30, 3)
    assert RandCropImage(8)(img[:1, :1]).shape == RandCropImage(8)(img[:3]).shape == (8, 8, 3)
    boxes = np.array([crop.random_box(320, 240, rng(i)) for i in range(400)])
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 0] + boxes[:, 2]).max() <= 320
    assert (boxes[:, 1] + boxes[:, 3]).max() <= 240


@pytest.mark.parametrize('options',
                         (dict(scale=[.5, .1]), dict(scale=[0, 1]), dict(ratio=[2, 1]), dict(scale=[.1, 2])))
def test_random_crop_errors(options):
    with pytest.raises(PPClsError, match='RandCropImage: scale'): RandCropImage(8, **options)


def test_decode_and_crop_in_one(img):
    decode, crop = DecodeImage(), RandCropImage(96)
    together = standard._DecodeCrop(decode, crop)
    for i in range(20): assert (together(JPEG, rng(i)) == crop(decode(JPEG), rng(i))).all()
    assert (together(encoded(img, 'png'), rng(1)) == crop(img, rng(1))).all()
    assert decode.join(print) is None
    assert DecodeImage(channel_first=True).join(crop) is None
    with pytest.raises(PPClsError, match='without its end'): together(HALF_COPIED)


def test_flip_errors():
    with pytest.raises(PPClsError, match='flip_code 2, expected'): RandFlipImage(2)


def test_normalize_into_a_buffer(img):
    expected = NormalizeImage(order='')(img)
    buffers = ((np.empty((3, 240, 320), np.float32), True), (np.empty((3, 320, 240), np.float32), False),
               (np.empty((3, 240, 320)), False))
    for buffer, is_used in buffers:
        out = NormalizeImage(order='')(img, out=buffer)
        assert np.shares_memory(out, buffer) == is_used
        assert (out == expected).all()


def test_normalize_layouts_and_dtypes(img):
    by_hand = (img/255 - MEAN)/STD
    cases = ((img.transpose(2, 0, 1), 'chw'), (img.astype(np.float32), 'hwc'), (img.astype(np.float32), ''))
    for x, order in cases:
        out = NormalizeImage(order=order)(x)
        assert out.dtype == np.float32
        if order == 'chw': out = out.transpose(1, 2, 0)
        assert np.abs(out - by_hand).max() < 1e-5
    assert (NormalizeImage(1, [0, 0, 0], [1, 1, 1], 'hwc')(img) == img).all()
    same = NormalizeImage('1.0/255.0', order='')(img), NormalizeImage('1./255.', order='')(img)
    assert same[0].tobytes() == same[1].tobytes()
    grey = NormalizeImage(mean=[.5], std=[.5])(img[None, ..., 0])
    assert grey.shape == (1, 240, 320)
    assert -1 <= grey.min() <= grey.max() <= 1


@pytest.mark.parametrize('options, reason', (
    (dict(scale='__import__("os")'), 'expected a number'), (dict(scale='1/0'), 'expected a number'),
    (dict(order='whc'), "order 'whc'"), (dict(std=[0, 1, 1]), 'no 0'), (dict(mean=[1]), 'equal lengths')))
def test_normalize_errors(options, reason):
    with pytest.raises(PPClsError, match=reason): NormalizeImage(**options)


def test_channels_first_needs_three_axes(img):
    with pytest.raises(ValueError): ToCHWImage()(img[..., 0])


def test_inputs_stay_as_they_are(img):
    before = img.copy()
    ops = (ResizeImage(50), CropImage(50), RandCropImage(50), RandFlipImage(), NormalizeImage(order=''), ToCHWImage())
    for op in ops: op(img, rng(2))
    assert (img == before).all()
    assert transform(JPEG) == JPEG
    random_ops = [DecodeImage(), RandCropImage(96), RandFlipImage()]
    assert (transform(JPEG, random_ops) != transform(JPEG, random_ops)).any()


def grey(img, rng=None): return np.repeat(img.mean(-1, keepdims=True).astype(img.dtype), 3, -1)


def hole(img, rng=None):
    out = img.copy()
    out[60:120, 60:120] = 0
    return out


def names(ops): return [type(op).__name__ for op in ops]


def test_interpolation_names():
    assert interpolation_number('bicubic') == interpolation_number(2) == 2
    assert interpolation_number(None) is None
    assert interpolation_number('nearest') == 0
    with pytest.raises(PPClsError, match="unknown interpolation 'bicubc'; did you mean 'bicubic'"):
        interpolation_number('bicubc')
    with pytest.raises(PPClsError, match='interpolation 9, expected 0…4 or one of nearest, bilinear'):
        interpolation_number(9)


def test_training_pipeline():
    assert names(train_ops()) == ['DecodeImage', 'RandCropImage', 'RandFlipImage', 'NormalizeImage', 'ToCHWImage']
    x = transform(JPEG, train_ops(after=[hole]), rng())
    assert x.shape == (3, 224, 224)
    assert x.dtype == np.float32
    assert (x[:, 60:120, 60:120] == 0).all()
    assert train_ops(96, 'bicubic')[1].interpolation == 2
    assert train_ops((64, 32))[1].size == (64, 32)
    assert train_ops(mean=[.5]*3, std=[.5]*3)[3].mean == [.5]*3
    ops = train_ops(before=[grey], after=[hole])
    assert ops[3] is grey
    assert ops[5] is hole


def test_evaluation_pipeline():
    assert names(eval_ops()) == ['DecodeImage', 'ResizeImage', 'CropImage', 'NormalizeImage', 'ToCHWImage']
    assert [eval_ops(n)[1].resize_short for n in (224, 299, 320, 64)] == [256, 342, 366, 73]
    assert eval_ops(320, 320, 'bicubic')[1].interpolation == 2
    assert transform(JPEG, eval_ops(299, 320)).shape == (3, 299, 299)
    assert (transform(JPEG, eval_ops()) == transform(JPEG, eval_ops())).all()
    with pytest.raises(PPClsError, match='crop_size 320 does not fit into resize_short 256'): eval_ops(320, 256)


def test_sizes_at_test_time():
    assert size_at_test_time(224) == 256
    assert size_at_test_time(224, 320/224) == 320
    assert size_at_test_time(224, multiple=1) == 258
    assert size_at_test_time(32) == 32
    assert size_at_test_time(100, 1) == 100
    with pytest.raises(PPClsError, match='scale 0.9'): size_at_test_time(224, .9)


@pytest.mark.parametrize('data', [b'', b'RIFF', b'<html>', b'\0\0\0\x0cjP  \r\n\x87\n', b'\xff\x4f\xff\x51\0'])
def test_what_is_no_image_and_jpeg_2000_are_refused_before_decoding(data):
    with pytest.raises(PPClsError, match='expected a JPEG, PNG'):
        DecodeImage()(data)


@pytest.mark.parametrize('format', ('gif', 'webp', 'bmp', 'tiff', 'png', 'jpeg'))
def test_a_header_that_claims_too_many_pixels_is_refused(img, format, monkeypatch):
    monkeypatch.setattr(DecodeImage, 'max_pixels', 1000)
    with pytest.raises(PPClsError, match='an image of 320 x 240 pixels, expected at most 1,000'):
        DecodeImage()(encoded(img, format))


@pytest.mark.parametrize('shape', [(1, 40), (3, 200), (40, 1)])
def test_an_enlarged_part_is_what_the_crop_of_the_whole_shows(shape):
    img = np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8)
    resize, crop = ResizeImage(resize_short=64), CropImage(56)
    whole, part = crop(resize(img)), standard._ResizeCrop(resize, crop)._part(img, 64/min(shape))
    assert part.shape == whole.shape
    assert np.abs(part.astype(int) - whole).max() <= 8      # shifted by less than a pixel of an enlarged one


def test_ordinary_images_are_resized_and_cropped_as_before(img):
    resize, crop = ResizeImage(resize_short=256), CropImage(224)
    assert (resize.join(crop)(img) == crop(resize(img))).all()


def test_an_enlargement_without_a_crop_is_limited():
    with pytest.raises(PPClsError, match='10000 x 1 pixels would become 2560000 x 256'):
        ResizeImage(resize_short=256)(np.zeros((1, 10_000, 3), np.uint8))
