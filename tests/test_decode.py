"""Decoding only the rows that a crop needs, with simplejpeg, gives the same pixels and errors as OpenCV, for unusual
files too; `fast` is approximate."""
import io

import cv2
import numpy as np
import pytest
from PIL import Image
from ppcls_nb.basics import PPClsError
from ppcls_nb.data.image_format import image_header
from ppcls_nb.data.imaug import standard
from ppcls_nb.data.imaug.standard import DecodeImage, NormalizeImage, RandCropImage, RandFlipImage, ToCHWImage
from ppcls_nb.data.petals import draw_scene, make_species
from ppcls_nb.data.transform import joined, transform

needs_simplejpeg = pytest.mark.skipif(standard.simplejpeg is None, reason='needs simplejpeg (the extra jpeg)')
NOISE = np.random.default_rng(1).normal(0, 6, (151, 187, 3))
SCENE = draw_scene(make_species(9), np.random.default_rng(0), 200)[:151, :187]
SCENE = np.clip(SCENE + NOISE, 0, 255).astype(np.uint8)
TRAIN = [DecodeImage(), RandCropImage(64), RandFlipImage(), NormalizeImage(order='hwc'), ToCHWImage()]
SAMPLING = {name: getattr(cv2, f'IMWRITE_JPEG_SAMPLING_FACTOR_{name}') for name in ('411', '420', '422', '440', '444')}


def jpeg(quality=92, sampling='420', img=SCENE, **options):
    "A JPEG file by OpenCV; options are its IMWRITE_JPEG_… flags."
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, SAMPLING[sampling]]
    for name, value in options.items():
        flags += [getattr(cv2, f'IMWRITE_JPEG_{name}'), value]
    return cv2.imencode('.jpg', img, flags)[1].tobytes()


def by_pillow(img, format='jpeg', **options):
    "An image file by Pillow, of an array or a Pillow image."
    file = io.BytesIO()
    image = Image.fromarray(img) if isinstance(img, np.ndarray) else img
    image.save(file, format, **options)
    return file.getvalue()


def turned(n):
    "A JPEG file with the EXIF orientation `n`."
    exif = Image.Exif()
    exif[0x112] = n
    return by_pillow(SCENE, exif=exif)


QUALITIES = (30, 92, 100)
FILES = {f'{sampling}, quality {q}': jpeg(q, sampling) for sampling in SAMPLING for q in QUALITIES}
FILES |= {f'orientation {n}': turned(n) for n in (1, 3, 6, 8)}
FILES |= {
    'restart marks': jpeg(RST_INTERVAL=2),
    'optimized codes': jpeg(OPTIMIZE=1),
    'progressive': jpeg(PROGRESSIVE=1),
    'grey': jpeg(img=SCENE[..., 0]),
    'one row': jpeg(img=SCENE[:1]),
    'one column': jpeg(img=SCENE[:, :1]),
    'CMYK': by_pillow(Image.fromarray(SCENE).convert('CMYK')),
    'PNG': by_pillow(SCENE, 'png'),
    'RGB inside': by_pillow(SCENE, keep_rgb=True)}


@pytest.fixture
def by_opencv(monkeypatch):
    "Call a function as if simplejpeg were not installed."
    def call(f, *args):
        with monkeypatch.context() as patch:
            patch.setattr(standard, 'simplejpeg', None)
            return f(*args)
    return call


@needs_simplejpeg
@pytest.mark.parametrize('name', FILES)
def test_pixels_are_those_of_opencv(name, by_opencv):
    data = FILES[name]
    for to_rgb in (True, False):
        decode = DecodeImage(to_rgb=to_rgb)
        assert (decode(data) == by_opencv(decode, data)).all()
    plain = not name.startswith(('progressive', 'orientation', 'CMYK', 'PNG'))
    assert bool(standard._plain(data, image_header(data)[2])) == plain


@needs_simplejpeg
@pytest.mark.parametrize('name', FILES)
def test_a_pipeline_gives_the_same_without_the_rows_below_the_crop(name, by_opencv):
    assert len(joined(TRAIN)) == len(TRAIN) - 1
    for seed in range(30):
        actual = transform(FILES[name], TRAIN, np.random.default_rng(seed))
        expected = by_opencv(transform, FILES[name], TRAIN, np.random.default_rng(seed))
        assert actual.dtype == expected.dtype
        assert (actual == expected).all()


@needs_simplejpeg
@pytest.mark.parametrize('sampling', SAMPLING)
def test_every_number_of_rows_is_exact(sampling):
    data = jpeg(sampling=sampling)
    whole, at = DecodeImage()(data), image_header(data)[2]
    for rows in range(1, len(whole) + 1):
        assert (standard._top_rows(data, at, rows, True, False)[:rows] == whole[:rows]).all()


@needs_simplejpeg
def test_fewer_rows_are_decoded(monkeypatch):
    heights, decode = [], standard.simplejpeg.decode_jpeg
    def recorded(*args, **kw):
        img = decode(*args, **kw)
        heights.append(len(img))
        return img
    monkeypatch.setattr(standard.simplejpeg, 'decode_jpeg', recorded)
    for seed in range(40):
        transform(jpeg(), TRAIN, np.random.default_rng(seed))
    assert len(heights) == 40
    assert max(heights) == 151
    assert np.mean(heights) < 140


def test_without_the_package_nothing_is_joined(by_opencv):
    assert by_opencv(joined, TRAIN) == TRAIN
    with pytest.raises(PPClsError, match=r'fast needs simplejpeg, .* pip install ppcls_nb\[jpeg\]'):
        by_opencv(lambda: DecodeImage(fast=True))


def test_a_subclass_is_not_joined():
    class Own(DecodeImage):
        def __call__(self, data, rng=None): return super().__call__(data)//2
    class OwnCrop(RandCropImage): pass
    assert joined([Own(), TRAIN[1]])[1] is TRAIN[1]
    assert len(joined([TRAIN[0], OwnCrop(8)])) == 2


@pytest.mark.parametrize('cut', (.1, .5, .9))
def test_truncated_files_are_refused(cut):
    data = jpeg()
    n = int(cut*len(data))
    for damaged in (data[:n], data[:n] + bytes(len(data) - n)):
        with pytest.raises(PPClsError, match='without its end'):
            transform(damaged, TRAIN, np.random.default_rng(0))


@needs_simplejpeg
def test_damaged_files_are_decoded_as_by_opencv(by_opencv):
    rng, outcomes = np.random.default_rng(0), []
    def outcome(data):
        try:
            return DecodeImage()(data)
        except PPClsError as e:
            return str(e)
    for _ in range(60):
        data, at = jpeg(), int(rng.integers(400, 3000))
        data = data[:at] + rng.bytes(8) + data[at+8:]
        actual, expected = outcome(data), by_opencv(outcome, data)
        assert np.array_equal(actual, expected)
        outcomes.append(isinstance(actual, str))
    assert not all(outcomes)


def test_reduced_decoding_before_a_crop(by_opencv):
    ops = [DecodeImage(reduce_to=70), *TRAIN[1:]]
    assert len(DecodeImage(reduce_to=70)(jpeg())) == 76
    for seed in range(10):
        actual = transform(jpeg(), ops, np.random.default_rng(seed))
        assert (actual == by_opencv(transform, jpeg(), ops, np.random.default_rng(seed))).all()


@needs_simplejpeg
def test_fast_is_approximate():
    exact, fast = (DecodeImage(fast=f)(jpeg()).astype(int) for f in (False, True))
    assert exact.shape == fast.shape
    assert 0 < np.abs(exact - fast).mean() < 6
    # OpenCV decodes files that are not plain, exactly
    assert (DecodeImage(fast=True)(turned(6)) == DecodeImage()(turned(6))).all()
