"""Every row of the table of unusual image files (nbs/02_augment/00a_formats): decoded like Pillow, or an error."""
import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps, features
from ppcls_nb.basics import PPClsError
from ppcls_nb.data.imaug.standard import DecodeImage
from ppcls_nb.data.petals import draw_scene, make_species

IMG = draw_scene(make_species(9), np.random.default_rng(0), 320)[30:270, :, ::-1].copy()
PHOTO, GREY = Image.fromarray(IMG), Image.fromarray(IMG[..., 1].copy())
OPAQUE_LEFT = Image.fromarray(np.repeat(np.uint8([[255]*160 + [0]*160]), 240, 0))
decode = DecodeImage()


def encoded(x, format='jpeg', **options):
    file = io.BytesIO()
    x.save(file, format, **options)
    return file.getvalue()


def with_alpha(x):
    x = x.copy()
    x.putalpha(OPAQUE_LEFT)
    return x


def by_pillow(data): return np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert('RGB'))


def is_error(data):
    try: decode(data)
    except PPClsError: return True
    return False


def zero_tail(data, fraction):
    n = int(len(data)*fraction)
    return data[:n] + bytes(len(data) - n)


PAGES = dict(save_all=True, append_images=[PHOTO.rotate(180)])
PALETTE = PHOTO.quantize(64)
FILES = {
    'JPEG': encoded(PHOTO),
    'progressive': encoded(PHOTO, progressive=True),
    'grey JPEG': encoded(GREY),
    'PNG': encoded(PHOTO, 'png'),
    'grey PNG': encoded(GREY, 'png'),
    '1-bit PNG': encoded(PHOTO.convert('1'), 'png'),
    'palette': encoded(PALETTE, 'png'),
    'palette, transparent': encoded(PALETTE, 'png', transparency=3),
    'RGBA': encoded(with_alpha(PHOTO), 'png'),
    'grey, alpha': encoded(with_alpha(GREY), 'png'),
    'colour key': encoded(PHOTO, 'png', transparency=(1, 2, 3)),
    'WebP': encoded(PHOTO, 'webp'),
    'WebP RGBA': encoded(with_alpha(PHOTO), 'webp', lossless=True),
    'BMP': encoded(PHOTO, 'bmp'),
    'TIFF': encoded(PHOTO, 'tiff', compression='tiff_lzw'),
    'CMYK TIFF': encoded(PHOTO.convert('CMYK'), 'tiff'),
    'GIF': encoded(PHOTO, 'gif'),
    'GIF, animated': encoded(PHOTO, 'gif', **PAGES),
    'WebP, animated': encoded(PHOTO, 'webp', **PAGES),
    'TIFF, two pages': encoded(PHOTO, 'tiff', **PAGES)}
if features.check('avif'): FILES['AVIF'] = encoded(PHOTO, 'avif')
CMYK = encoded(PHOTO.convert('CMYK'), quality=95)
WHOLE = {name: FILES[name] for name in ('JPEG', 'progressive', 'PNG', 'WebP', 'GIF')} | {'CMYK': CMYK}


@pytest.mark.parametrize('name', FILES)
def test_as_pillow(name):
    x = decode(FILES[name])
    assert x.shape == (240, 320, 3)
    assert x.dtype == np.uint8
    assert x.flags.writeable
    assert np.abs(x.astype(int) - by_pillow(FILES[name])).max() <= 1
    assert (DecodeImage(to_rgb=False)(FILES[name]) == x[..., ::-1]).all()


def test_sixteen_bits():
    wide = Image.fromarray(np.array(GREY).astype(np.uint16)*257)
    for format in ('png', 'tiff'):
        assert (decode(encoded(wide, format)) == np.array(GREY)[..., None]).all()
    rgb = cv2.imencode('.png', IMG[..., ::-1].astype(np.uint16)*257)[1].tobytes()
    assert (decode(rgb) == IMG).all()
    with pytest.raises(PPClsError, match='not an image that can be decoded'):
        decode(encoded(Image.fromarray(np.float32(GREY)), 'tiff'))


def transpose(x): return x.transpose(1, 0, 2)


UPRIGHT = {
    1: IMG,
    2: IMG[:, ::-1],
    3: IMG[::-1, ::-1],
    4: IMG[::-1],
    5: transpose(IMG),
    6: np.rot90(IMG, -1),
    7: transpose(IMG[::-1, ::-1]),
    8: np.rot90(IMG)}


@pytest.mark.parametrize('format', ('jpeg', 'png', 'webp', 'tiff'))
@pytest.mark.parametrize('orientation', UPRIGHT)
def test_orientations(format, orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    data = encoded(PHOTO, format, exif=exif, **({'lossless': True} if format == 'webp' else {}))
    assert np.abs(decode(data).astype(int) - UPRIGHT[orientation]).mean() < 8
    assert (decode(data) == by_pillow(data)).all()


@pytest.mark.parametrize('name', WHOLE)
def test_truncated(name):
    data = WHOLE[name]
    ends = (16, 8, 3) if name == 'GIF' else (16, 8, 3, 2, 1)  # the last two bytes of a GIF are its end
    assert all(is_error(data[:len(data)*k//10]) for k in range(10))
    assert all(is_error(data[:-k]) for k in ends)


@pytest.mark.parametrize('name', ('JPEG', 'progressive', 'CMYK', 'PNG'))
def test_zeros_at_the_end(name):
    assert all(is_error(zero_tail(WHOLE[name], k/10)) for k in range(10))


def test_an_end_marker_before_the_pixels_is_not_the_end():
    exif = Image.Exif()
    exif[0x10e] = 'a thumbnail, \xff\xd9 included'
    assert is_error(zero_tail(encoded(PHOTO, quality=95), 0))
    assert is_error(zero_tail(encoded(PHOTO, quality=95, exif=exif, comment=b'\xff\xd9'), .5))
    assert not is_error(FILES['JPEG'] + b'data of the camera maker' + bytes(500))


@pytest.mark.parametrize('data', (b'', bytes(1000), b'<!DOCTYPE html><html>404 Not Found</html>', b'\xff\xd8',
                                  b'\x89PNG\r\n\x1a\n', b'GIF89a', b'RIFF\0\0\0\0WEBPVP8X', FILES['PNG'][:20]))
def test_no_image(data): assert is_error(data)


def chunk(kind, body): return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))


def png_claiming(w, h):
    header = chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 8, 2, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + header + chunk(b'IDAT', zlib.compress(bytes(1000))) + chunk(b'IEND', b'')


def test_gigantic():
    at = FILES['JPEG'].index(b'\xff\xc0') + 5
    jpeg = FILES['JPEG'][:at] + struct.pack('>HH', 20000, 20000) + FILES['JPEG'][at+4:]
    for data in (jpeg, png_claiming(60000, 60000)):
        with pytest.raises(PPClsError, match='an image of .*, expected at most 178,956,970'): decode(data)
    small = DecodeImage()
    small.max_pixels = 240*320
    assert small(FILES['JPEG']).shape == IMG.shape
    with pytest.raises(PPClsError, match='an image of 2 x 38401 pixels'): small(png_claiming(2, 38401))
