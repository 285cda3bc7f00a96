"""The cache of smaller copies: what is in it, interrupted and resumed work, and every error."""
import io
import json

import cv2
import numpy as np
import pytest
from PIL import Image
from ppcls_nb.basics import PPClsError
from ppcls_nb.data import cache
from ppcls_nb.data.cache import CacheReport, prepare_cache, smaller_copy
from ppcls_nb.data.datasets import ListDataset
from ppcls_nb.data.imaug.standard import DecodeImage
from ppcls_nb.data.petals import draw_scene, make_species

SCENE = draw_scene(make_species(9), np.random.default_rng(0), 600)[60:540]
PHOTO = cv2.imencode('.jpg', SCENE, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()
decode = DecodeImage()


@pytest.fixture
def root(tmp_path):
    "Six scenes as JPEG, as PNG of the same name and as small JPEG, with the lists garden/train.txt and val.txt."
    folder, lines = tmp_path/'garden', []
    for i in range(6):
        x = draw_scene(make_species(i//2), np.random.default_rng(i), 400)[:360]
        files = {f'a b/scene{i}.jpg': x, f'a b/scene{i}.png': x[:, :350], f'small/{i}.jpg': x[:100, :100]}
        for name, picture in files.items():
            (folder/name).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder/name), picture)
            lines.append(f'{name} {i//2}')
    (folder/'train.txt').write_text('\n'.join(lines) + '\n')
    (tmp_path/'val.txt').write_text('\n'.join(lines[:4]) + '\nsmall/1.jpg')
    return folder


def images(root): return [line.rsplit(' ', 1)[0] for line in (root/'train.txt').read_text().splitlines()]


@pytest.mark.parametrize('lossless, mean, largest', ((True, 0, 0), (False, 2, 24)))
def test_a_copy_is_close_to_the_scaled_original(lossless, mean, largest):
    reference = cv2.resize(decode(PHOTO), (320, 256), interpolation=cv2.INTER_AREA).astype(int)
    difference = np.abs(decode(smaller_copy(PHOTO, 256, lossless=lossless)) - reference)
    assert difference.mean() <= mean
    assert difference.max() <= largest


def test_full_colour_resolution_is_worth_its_bytes():
    reference = cv2.resize(decode(PHOTO), (320, 256), interpolation=cv2.INTER_AREA).astype(int)
    flags = [cv2.IMWRITE_JPEG_QUALITY, 98, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
    halved = cv2.imencode('.jpg', reference[..., ::-1].astype(np.uint8), flags)[1].tobytes()
    copy = smaller_copy(PHOTO, 256)
    assert len(halved) > len(copy)
    error, other = np.abs(decode(copy) - reference), np.abs(decode(halved) - reference)
    assert other.mean() > error.mean()
    assert other.max() > 3*error.max()


def test_formats_of_copies():
    assert smaller_copy(PHOTO, 480) is PHOTO
    assert smaller_copy(PHOTO, 256)[:2] == b'\xff\xd8'
    assert smaller_copy(PHOTO, 256, lossless=True)[1:4] == b'PNG'
    assert len(smaller_copy(PHOTO, 256, 60)) < len(smaller_copy(PHOTO, 256))
    narrow = cv2.imencode('.png', np.zeros((1000, 9, 3), np.uint8))[1].tobytes()
    assert min(decode(smaller_copy(narrow, 3)).shape[:2]) == 3
    with pytest.raises(PPClsError, match='not an image'): smaller_copy(b'<html>', 256)


def test_copies_are_upright():
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x112] = 6
    Image.fromarray(SCENE[..., ::-1]).save(file, 'jpeg', exif=exif)
    upright = smaller_copy(file.getvalue(), 100)
    assert decode(upright).shape == (125, 100, 3)
    assert not Image.open(io.BytesIO(upright)).getexif()


def test_the_journal(tmp_path):
    done, journal = cache._open_journal(tmp_path/'trial', {'short': 9})
    with journal: journal.write('["a b/é.jpg", 12, 34, 5]\n["half a li'.encode())
    done, journal = cache._open_journal(tmp_path/'trial', {'short': 9})
    journal.close()
    assert done == {'a b/é.jpg': [12, 34, 5]}
    with pytest.raises(PPClsError, match='was made with short 9, now short 8 is required; choose another folder, or '
                       'delete it'):
        cache._open_journal(tmp_path/'trial', {'short': 8})
    (tmp_path/'trial'/cache._JOURNAL).write_text('my diary')
    with pytest.raises(PPClsError, match='not the journal of a cache'):
        cache._open_journal(tmp_path/'trial', {'short': 8})
    (tmp_path/'other').mkdir()
    (tmp_path/'other'/'thesis.txt').write_text('x')
    with pytest.raises(PPClsError, match='contains other files'):
        cache._open_journal(tmp_path/'other', {'short': 8})


def test_reports(tmp_path):
    text = str(CacheReport(tmp_path, 3, 1, 0, {}, 9_000_000, 500_000))
    assert f'4 images: 8.6 MB before, 0.5 MB in {tmp_path} (6%)' in text
    assert 'left out' not in text
    assert '1 bad ones left out' in str(CacheReport(tmp_path, bad={'x': 'y'}))
    bad = {f'{i}.jpg': 'not an image' for i in range(9)}
    assert cache._report_bad(bad, 1000, tmp_path).startswith('9 of 1000 images are bad (0.jpg: not an image')
    assert (tmp_path/'bad_images.txt').read_text().count(': not an image\n') == 9
    assert cache._report_bad({}, 1000, tmp_path) == ''
    assert not (tmp_path/'bad_images.txt').exists()


def test_a_cache(root, tmp_path):
    out = tmp_path/'small'
    report = prepare_cache([root/'train.txt', tmp_path/'val.txt'], root, out, short=256)
    assert (report.resized, report.copied, report.kept, report.bad) == (12, 6, 0, {})
    assert report.bytes_after < report.bytes_before
    assert (out/'train.txt').read_text() == (root/'train.txt').read_text()
    assert (out/'val.txt').read_text().splitlines() == (tmp_path/'val.txt').read_text().splitlines()
    assert report.lists == [out/'train.txt', out/'val.txt']
    small, large = (ListDataset(folder, root/'train.txt', [decode]) for folder in (out, root))
    assert len(small) == len(large) == 18
    for i in range(18):
        copy, original = small[i][0], large[i][0]
        assert small[i][1] == large[i][1]
        if min(original.shape[:2]) > 256:
            assert min(copy.shape[:2]) == 256
            original = cv2.resize(original, copy.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(copy.astype(int) - original).mean() < 3
    assert (out/'small/1.jpg').read_bytes() == (root/'small/1.jpg').read_bytes()


def test_only_what_changed_is_made_again(root, tmp_path):
    out = tmp_path/'small'
    prepare_cache(root/'train.txt', root, out, 256)
    assert prepare_cache(root/'train.txt', root, out, 256).kept == 18
    cv2.imwrite(str(root/'a b/scene0.jpg'), np.full((300, 300, 3), 200, np.uint8))
    (out/'small/2.jpg').unlink()
    (out/'a b/scene3.png').write_bytes(b'x')
    journal = (out/cache._JOURNAL).read_text()
    lost = json.loads(journal.splitlines()[-1])[0]
    (out/cache._JOURNAL).write_text(journal[:-20])
    report = prepare_cache(root/'train.txt', root, out, 256)
    changed = {'a b/scene0.jpg', 'small/2.jpg', 'a b/scene3.png', lost}
    assert report.kept == 18 - len(changed)
    assert report.resized + report.copied == len(changed)
    assert decode((out/'a b/scene0.jpg').read_bytes()).shape == (256, 256, 3)


def test_an_interrupted_call_is_resumed(root, tmp_path, monkeypatch):
    out, calls = tmp_path/'stopped', iter(range(99))

    def interrupted(data, **kw):
        if next(calls) >= 7:
            raise KeyboardInterrupt
        return smaller_copy(data, **kw)

    with monkeypatch.context() as patch:
        patch.setattr(cache, 'smaller_copy', interrupted)
        with pytest.raises(KeyboardInterrupt): prepare_cache(root/'train.txt', root, out, 256, num_workers=2)
    files = [p for p in out.rglob('*') if p.is_file() and p.name != cache._JOURNAL]
    assert len(files) == 7
    assert all(decode(p.read_bytes()) is not None for p in files)
    report = prepare_cache(root/'train.txt', root, out, 256, num_workers=1)
    assert report.kept == 7
    assert report.resized + report.copied == 11
    prepare_cache(root/'train.txt', root, tmp_path/'whole', 256)
    for name in images(root): assert (out/name).read_bytes() == (tmp_path/'whole'/name).read_bytes()


def test_bad_images(root, tmp_path):
    out, other = tmp_path/'small', tmp_path/'new'
    prepare_cache(tmp_path/'val.txt', root, out, 256)
    (root/'small/4.jpg').write_bytes(b'<html>')
    (root/'a b/scene1.jpg').write_bytes((root/'a b/scene1.jpg').read_bytes()[:5000])
    message = (r'2 of 18 images are bad \(a b/scene1.jpg: a JPEG file without its end.*small/4.jpg: not an image'
               '.*leave them out')
    with pytest.raises(PPClsError, match=message): prepare_cache(root/'train.txt', root, other, 256)
    assert not (other/'train.txt').exists()
    assert len((other/'bad_images.txt').read_text().splitlines()) == 2
    report = prepare_cache(root/'train.txt', root, other, 256, skip_bad=True)
    assert report.kept == 16
    assert list(report.bad) == ['a b/scene1.jpg', 'small/4.jpg']
    assert (other/'train.txt').read_text().count('\n') == 16
    assert 'scene1.jpg' not in (other/'train.txt').read_text()
    # an image that was good and is bad now
    assert prepare_cache(tmp_path/'val.txt', root, out, 256, skip_bad=True).bad.keys() == {'a b/scene1.jpg'}
    assert not (out/'a b/scene1.jpg').exists()


def test_a_folder_that_cannot_be_written(root, tmp_path):
    (tmp_path/'one.txt').write_text('a b/scene0.jpg 0')
    prepare_cache(tmp_path/'one.txt', root, tmp_path/'blocked', 256)
    (tmp_path/'blocked'/'small').write_text('a file, not a folder')
    with pytest.raises(PPClsError, match='small: cannot be written: File exists; fix this and call again'):
        prepare_cache(root/'train.txt', root, tmp_path/'blocked', 256)


def test_errors(root, tmp_path):
    train, out, new = root/'train.txt', tmp_path/'small', tmp_path/'new'
    prepare_cache(train, root, out, 256)
    (tmp_path/'train.txt').write_text('a b/scene0.jpg 0')
    (tmp_path/'away.txt').write_text('../garden/small/1.jpg 0')
    (tmp_path/'absolute.txt').write_text(f'{tmp_path}/outside.png 1')
    cv2.imwrite(str(tmp_path/'outside.png'), SCENE)
    cases = (((train, root, out), dict(short=128),
              'made with short 256, quality 95, lossless False, now short 128, .* delete it'),
             ((train, root, root), {}, 'folder of the originals'),
             (([train, tmp_path/'train.txt'], root, out), {}, 'have the same name'),
             ((tmp_path/'away.txt', root/'small', new), {}, 'away.txt:1: no such image'),
             ((tmp_path/'away.txt', root, new), {},
              "away.txt:1: '../garden/small/1.jpg 0': expected a path relative to"),
             ((tmp_path/'absolute.txt', root, new), {}, 'outside.png 1.: expected a path relative to'),
             ((tmp_path/'none.txt', root, new), {}, 'cannot be read'), (([], root, out), {}, 'no list files'),
             ((train, root, out), dict(quality=0), 'quality 0'))
    for args, options, reason in cases:
        with pytest.raises(PPClsError, match=reason): prepare_cache(*args, **options)
    assert not new.exists()
