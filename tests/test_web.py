"""`ppcls web`: the site computes what the `Predictor` computes, also without a network; archives are checked.

The tests with a real network need ONNX Runtime Web, 33 MB, from the cache or from npm's registry."""
import base64, http.server, io, json, shutil, tarfile, threading, zlib
from functools import partial

import ppcls_nb  # before paddle: sets the threads
import cv2, numpy as np, paddle, pytest
from PIL import Image

from browser import Browser, needs_chromium
from ppcls_nb.basics import PPClsError
from ppcls_nb.data.imaug import CropImage, DecodeImage, NormalizeImage, ResizeImage, ToCHWImage, eval_ops
from ppcls_nb.data.imagenet import imagenet_names
from ppcls_nb.deploy import web
from ppcls_nb.deploy.export import export_model
from ppcls_nb.deploy.page import page_file
from ppcls_nb.deploy.predict import Predictor, prepare_image
from ppcls_nb.models import build_model, create_model, weights_info
from photographs import needs_photographs, photographs
from small_run import check_refused, ppcls


class StaticServer:
    "A server of the files in a folder; a context manager. `url` ends with a slash."
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_): pass

    def __init__(self, folder):
        handler = partial(self.Handler, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
        self.url = f'http://127.0.0.1:{self.server.server_port}/'
        self.thread = threading.Thread(target=self.server.serve_forever)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        "Stop answering."
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def photograph(height, width, seed=0):
    "A drawn picture, uint8 (height, width, 3): coloured blobs and fine lines over the whole range of levels."
    rng = np.random.default_rng(seed)
    blobs = cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3), np.uint8), (0, 0), 5)
    picture = cv2.normalize(blobs, None, 0, 255, cv2.NORM_MINMAX)
    for x in range(0, width, 11):
        cv2.line(picture, (x, 0), (width - x, height), rng.integers(0, 256, 3).tolist(), 1)
    return picture


def fake_runtime(folder):
    "An archive with the names of ONNX Runtime Web's."
    archive = folder/web.RUNTIME_NAME
    with tarfile.open(archive, 'w:gz') as tar:
        for name in web.RUNTIME_FILES:
            member = tarfile.TarInfo(name)
            member.size = 4
            tar.addfile(member, io.BytesIO(b'code'))
    return archive


@pytest.fixture
def home(tmp_path, monkeypatch):
    "An empty cache folder."
    monkeypatch.setenv('PPCLS_HOME', str(tmp_path/'home'))
    monkeypatch.delenv('PPCLS_OFFLINE', raising=False)
    return tmp_path/'home'


def test_the_registry_is_npms(monkeypatch):
    for name in 'npm_config_registry', 'NPM_CONFIG_REGISTRY':
        monkeypatch.delenv(name, raising=False)
    assert web.runtime_url().startswith('https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-')
    monkeypatch.setenv('npm_config_registry', 'http://localhost:1/npm/')
    assert web.runtime_url() == f'http://localhost:1/npm/onnxruntime-web/-/{web.RUNTIME_NAME}'


def test_an_archive_is_downloaded_once_and_checked(home, tmp_path, monkeypatch):
    files = tmp_path/'registry'/'onnxruntime-web'/'-'
    files.mkdir(parents=True)
    archive = fake_runtime(files)
    with StaticServer(tmp_path/'registry') as registry:
        monkeypatch.setenv('npm_config_registry', registry.url)
        with pytest.raises(PPClsError, match='its SHA-512 is not that of onnxruntime-web'):
            web.runtime_archive()
        assert list(home.rglob('*.tgz*')) == []
        monkeypatch.setattr(web, 'RUNTIME_INTEGRITY', web.integrity(archive))
        cached = web.runtime_archive()
        cached.write_bytes(b'damaged')
        assert web.runtime_archive().read_bytes() == archive.read_bytes()
    assert web.runtime_archive() == cached
    assert web.runtime_files(cached) == {'onnxruntime.js': b'code', 'onnxruntime.wasm': b'code'}


def test_no_registry_is_one_line(home, monkeypatch):
    monkeypatch.setenv('npm_config_registry', 'http://127.0.0.1:9/')
    with pytest.raises(PPClsError, match='cannot be downloaded.*--runtime FILE'):
        web.runtime_archive()
    monkeypatch.setenv('PPCLS_OFFLINE', '1')
    with pytest.raises(PPClsError, match='PPCLS_OFFLINE forbids downloads.*--runtime FILE'):
        web.runtime_archive()


@pytest.mark.parametrize('ops, message', [
    ([DecodeImage(), CropImage(40), ResizeImage(size=32), NormalizeImage(order=''), ToCHWImage()], 'at most one'),
    ([DecodeImage(), ResizeImage(size=64), ResizeImage(size=32), NormalizeImage(order=''), ToCHWImage()],
     'at most one'),
    ([DecodeImage(reduce_to=64), ResizeImage(size=32), NormalizeImage(order=''), ToCHWImage()], 'whole pictures'),
    ([DecodeImage(), ResizeImage(size=32, interpolation=5), NormalizeImage(order=''), ToCHWImage()],
     'interpolation 5')])
def test_other_preprocessing_is_refused(ops, message):
    with pytest.raises(PPClsError, match=message):
        web.page_geometry(ops)


def test_the_command(home, tmp_path, monkeypatch):
    model = build_model('MobileNetV1_x0_25', class_num=3)
    archive = fake_runtime(tmp_path)
    monkeypatch.setattr(web, 'RUNTIME_INTEGRITY', web.integrity(archive))
    without = export_model(model, tmp_path/'without', eval_ops(32))
    check_refused('export it again with --onnx', 'web', without, '--out', tmp_path/'site', '--runtime', archive)
    folder = export_model(model, tmp_path/'flowers', eval_ops(32), onnx=True)
    code, out, err = ppcls('web', folder, '--out', tmp_path/'site', '--title', 'Flowers <b>', '--runtime', archive)
    assert (code, err) == (0, '')
    assert '<title>Flowers &lt;b&gt;</title>' in (tmp_path/'site'/'index.html').read_text()
    check_refused('not the archive of onnxruntime-web', 'web', folder, '--out', tmp_path/'x', '--runtime', __file__)
    assert not (tmp_path/'x').exists()


@pytest.fixture(scope='module')
def browser():
    with Browser() as browser:
        yield browser


@pytest.fixture(scope='module')
def script(browser, tmp_path_factory):
    "A page that has imported image.js as `image`, and the functions `bytes` and `text` for base64."
    folder = tmp_path_factory.mktemp('script')
    (folder/'index.html').write_text('<!DOCTYPE html><link rel="icon" href="data:,">')
    (folder/'image.js').write_text(page_file('image.js'))
    with StaticServer(folder) as server:
        page = browser.page()
        page.goto(server.url)
        page.evaluate("""import('./image.js').then(found => {
            window.image = found;
            window.bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
            window.text = array => {
                let letters = '';
                for (const byte of new Uint8Array(array.buffer)) letters += String.fromCharCode(byte);
                return btoa(letters);
            };
        })""")
        yield page
        page.close()


def encoded(data):
    "The bytes `data` as a JavaScript expression."
    return f"bytes('{base64.b64encode(data).decode()}')"


def resampled(script, picture, spec):
    "The levels that image.js makes of a picture, uint8 (H, W, 3) RGB."
    height, width = picture.shape[:2]
    data = np.dstack([picture, np.full((height, width), 255, np.uint8)]).tobytes()
    found = script.evaluate(f"""(() => {{
        const data = {encoded(data)}, row = y => data.subarray({4*width}*y, {4*width}*(y + 1));
        return text(image.resample({{width: {width}, height: {height}, row}}, {json.dumps(spec)}));
    }})()""")
    return np.frombuffer(base64.b64decode(found), np.uint8)


@needs_chromium
@pytest.mark.parametrize('size', [(90, 121), (64, 64), (300, 40), (31, 33)])
@pytest.mark.parametrize('interpolation', [0, 1, 2, 3, 4])
@pytest.mark.parametrize('resize', [{'resize_short': 64}, {'size': [70, 66]}])
def test_resizing_is_opencvs(script, size, interpolation, resize):
    picture = photograph(*size)
    ops = [DecodeImage(), ResizeImage(**resize, interpolation=interpolation), CropImage(60)]
    expected = ops[2](ops[1](picture))
    found = resampled(script, picture, web.page_geometry(ops)).reshape(expected.shape)
    differences = np.abs(found.astype(int) - expected)
    assert differences.max() <= 1
    assert (differences > 0).mean() < .005


@needs_chromium
@pytest.mark.parametrize('size, to', [((90, 121), [70, 66]), ((96, 96), [48, 48]), ((96, 96), [32, 32]),
                                      ((90, 60), [200, 70])])
@pytest.mark.parametrize('interpolation', [cv2.INTER_CUBIC, cv2.INTER_AREA])
def test_resizing_is_that_of_opencv_without_ipp(script, size, to, interpolation):
    "As on processors other than Intel's and AMD's. Whole factors have their own rounding in an area's mean."
    picture, ops = photograph(*size), [DecodeImage(), ResizeImage(size=to, interpolation=interpolation)]
    was = cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(False)
    try:
        expected = ops[1](picture)
        found = resampled(script, picture, web.page_geometry(ops)).reshape(expected.shape)
    finally:
        cv2.ipp.setUseIPP(was)
    assert (found != expected).mean() < .005


def prepared(script, data, ops):
    "(float32 (3, H, W), whether transparent) that image.js makes of the bytes of a file."
    spec = {**web.page_geometry(ops), 'levels': web.level_table(ops).tolist()}
    found = script.evaluate(f"""image.prepare(new Blob([{encoded(data)}]), {json.dumps(spec)})
        .then(({{values, transparent}}) => [text(values), transparent])""")
    return np.frombuffer(base64.b64decode(found[0]), np.float32), found[1]


def files():
    "Ten image files {name: bytes}: of several formats, rotated, grey, with a gamma, larger than a strip."
    rgb = photograph(150, 220)
    made = {}

    def save(name, picture, **options):
        data = io.BytesIO()
        Image.fromarray(picture).save(data, **options)
        made[name] = data.getvalue()

    save('png', rgb, format='PNG')
    save('bmp', rgb, format='BMP')
    save('jpeg', rgb, format='JPEG', quality=90)
    save('progressive', rgb, format='JPEG', quality=80, progressive=True, subsampling=0)
    save('grey', rgb[..., 0], format='JPEG', quality=90)
    save('grey png', rgb[..., 0], format='PNG')
    exif = Image.Exif()
    exif[0x0112] = 6
    save('rotated', rgb, format='JPEG', quality=90, exif=exif)
    save('webp', rgb, format='WEBP', quality=80)
    save('large', photograph(700, 1001), format='JPEG', quality=85)
    gamma = b'\0\0\0\4gAMA' + (100000).to_bytes(4, 'big')
    gamma += zlib.crc32(gamma[4:]).to_bytes(4, 'big')
    made['gamma'] = made['png'][:33] + gamma + made['png'][33:]
    return made


@needs_chromium
@pytest.mark.parametrize('ops', [
    eval_ops(64),
    eval_ops(64, interpolation='bicubic', mean=(.5, .4, .3), std=(.3, .2, .1)),
    [DecodeImage(to_rgb=False), ResizeImage(size=[50, 40]), ToCHWImage(), NormalizeImage(order='chw')]])
def test_files_become_what_python_makes_of_them(script, ops):
    levels = web.level_table(ops)
    step = (levels[:, 255] - levels[:, 0])/255
    for name, data in files().items():
        expected = prepare_image(data, ops)
        found, transparent = prepared(script, data, ops)
        differences = np.abs(found.reshape(expected.shape) - expected)/step[:, None, None]
        assert differences.max() < 1.01, name
        assert differences.mean() < .01, name
        assert not transparent, name


@needs_chromium
def test_transparent_pictures_are_noticed(script):
    picture, data = np.dstack([photograph(80, 90), np.full((80, 90), 255, np.uint8)]), io.BytesIO()
    picture[40, 45, 3] = 0
    Image.fromarray(picture).save(data, format='PNG')
    assert prepared(script, data.getvalue(), eval_ops(64))[1]


@needs_chromium
@pytest.mark.parametrize('name', ['png', 'jpeg'])
def test_an_incomplete_file_is_refused(script, name):
    data = files()[name]
    message = script.evaluate(f"""image.prepare(new Blob([{encoded(data[:len(data)//2])}]), {{}})
        .catch(error => error.message)""")
    assert message == 'The file is incomplete.'
    message = script.evaluate("image.prepare(new Blob(['no image']), {}).catch(error => error.message)")
    assert message == 'Not a picture that this browser can decode, or a damaged one.'


@pytest.fixture(scope='module')
def runtime():
    "The archive of ONNX Runtime Web, from the cache or the registry."
    try:
        return web.runtime_archive()
    except PPClsError as e:
        pytest.skip(f'ONNX Runtime Web is neither in the cache nor to be had: {e}')


def cards(page, paths):
    "Choose files on the page; the cards' rows [(name, percent), …], in the order of the files."
    page.evaluate("document.querySelector('#results').replaceChildren()")
    page.set_file_input('#files', paths)
    page.wait_for(f"document.querySelectorAll('article > ol, article > .error').length === {len(paths)}")
    found = page.evaluate("""[...document.querySelectorAll('article')].map(card => [...card.querySelectorAll('li')]
        .map(item => [item.querySelector('span').textContent, item.querySelector('.bar').style.width]))""")
    found = [[(name, float(width.removesuffix('%'))/100) for name, width in rows] for rows in found]
    return found[::-1]


def check_same(found, expected):
    "The same classes in the same order, probabilities within 1e-3; classes as likely as each other may change places."
    for rows, top in zip(found, expected, strict=True):
        assert [score for _, score in rows] == pytest.approx([score for *_, score in top], abs=1e-3)
        by_name = {name or f'class {label}': score for label, name, score in top}
        assert {name for name, _ in rows} == by_name.keys()
        assert all(abs(by_name[name] - score) < 1e-3 for name, score in rows)


def check_own_requests(page, url):
    "The page and its workers asked for the network's files and for nothing outside of the site, and logged no error."
    assert {f'{url}network.json', f'{url}network.onnx', f'{url}onnxruntime.wasm'} <= set(page.requests)
    assert [asked for asked in page.requests if not asked.startswith(url)] == []
    assert page.errors == []


def check_site(browser, runtime, folder, paths, tmp_path):
    "The site of the export `folder` predicts for `paths` what the `Predictor` does, also without its server."
    expected = Predictor(folder, 'onnx')(list(map(str, paths)))
    site = tmp_path/'server'/'a site'
    web.write_web(folder, site, 'Flowers', runtime)
    page = browser.page(390, 800)
    with StaticServer(site.parent) as server:
        page.goto(f'{server.url}a%20site/')
        page.wait_for("document.querySelector('#status').textContent.startsWith('Ready')")
        assert page.evaluate("document.querySelector('#status').textContent") == (
            'Ready. This page also works offline.')
        check_same(cards(page, paths), expected)
        assert page.overflow() == 0
        check_own_requests(page, f'{server.url}a%20site/')
    shutil.rmtree(site)
    page.reload()
    check_same(cards(page, paths), expected)
    check_own_requests(page, f'{server.url}a%20site/')
    page.close()


@needs_chromium
def test_the_site_predicts_as_the_predictor_does_also_offline(browser, runtime, tmp_path):
    paddle.seed(0)
    model = build_model('MobileNetV1_x0_25', class_num=12)
    model.fc.weight.set_value(model.fc.weight*40)      # so that the probabilities differ
    names = [f'flower {i}' for i in range(11)] + ['<b>bold</b>']
    folder = export_model(model, tmp_path/'flowers', eval_ops(64), names, onnx=True)
    paths = []
    assert len(files()) == 10
    for i, (name, data) in enumerate(files().items()):
        paths.append(tmp_path/f'{i}.{"png" if "png" in name else "jpg"}')      # the bytes decide, not the suffix
        paths[-1].write_bytes(data)
    check_site(browser, runtime, folder, paths, tmp_path)


@needs_chromium
@needs_photographs
def test_the_site_with_official_weights_and_ten_photographs(browser, runtime, tmp_path, monkeypatch):
    monkeypatch.setenv('PPCLS_HOME', str(tmp_path/'home'))
    record = weights_info('EfficientNet_Lite0_imagenet')
    model = create_model('EfficientNetLite0', pretrained=record.tag)
    ops = eval_ops(record.crop_size, record.resize_short, record.interpolation, record.mean, record.std)
    folder = export_model(model, tmp_path/'imagenet', ops, imagenet_names(), onnx=True)
    check_site(browser, runtime, folder, [file for file, _ in photographs(1)], tmp_path)


@needs_chromium
def test_a_site_of_two_versions_is_not_stored(browser, runtime, tmp_path):
    model = build_model('MobileNetV1_x0_25', class_num=3)
    web.write_web(export_model(model, tmp_path/'flowers', eval_ops(32), onnx=True), tmp_path/'site', None, runtime)
    record = (tmp_path/'site'/'network.json').read_text()
    (tmp_path/'site'/'network.json').write_text(record + ' ')
    page = browser.page()
    with StaticServer(tmp_path/'site') as server:
        page.goto(server.url)
        page.wait_for("document.querySelector('#status').textContent.startsWith('Ready')")
        status = page.evaluate("document.querySelector('#status').textContent")
        assert status == 'Ready. This page needs a connection each time: a file could not be stored.'
    page.close()
