"The page of a service in Chromium: photographs in, bars and heat maps out, nothing from elsewhere, on a phone too."
import asyncio, http.client, threading, time

import ppcls_nb  # before paddle: sets the threads
import cv2, numpy as np, paddle, pytest

from browser import Browser, needs_chromium
from ppcls_nb.cli.serve import add_demo, network_for_maps
from ppcls_nb.basics import PPClsError
from ppcls_nb.data.imaug import eval_ops
from ppcls_nb.deploy.demo import HeatMaps, add_page
from ppcls_nb.deploy.export import export_model
from ppcls_nb.deploy.predict import Predictor
from ppcls_nb.deploy.quantize import quantize
from ppcls_nb.deploy.limits import Limits
from ppcls_nb.deploy.serve import create_app
from ppcls_nb.deploy.server import Server, take_port
from ppcls_nb.models import build_model

HOSTILE = '<img src=x onerror="window.hacked = 1"></script><script>window.hacked = 1</script>'
NAMES = ['daisy', HOSTILE, 'great mullein', '向日葵', 'a name that is so long that it cannot be on one line ' + 'x'*80]


@pytest.fixture(scope='module')
def flowers(tmp_path_factory):
    "A network, the folder of its export, the file of its weights, and drawn photographs: a JPEG and a PNG file."
    paddle.seed(0)
    work, rng = tmp_path_factory.mktemp('page'), np.random.default_rng(0)
    network = build_model('MobileNetV1_x0_25', class_num=5)
    network.weights = work/'flowers.pdparams'
    paddle.save(network.state_dict(), str(network.weights))
    network.folder = export_model(network, work/'flowers', eval_ops(32), NAMES, onnx=True,
                                  about={'weights': str(network.weights)})
    network.files = [work/'photo.jpg', work/'photo.png']
    for file in network.files:
        noise = rng.integers(0, 255, (90, 120, 3), np.uint8)
        cv2.imwrite(str(file), cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 9), None, 0, 255, cv2.NORM_MINMAX))
    return network


class Running:
    "A service with its page in a thread; a context manager. `url`: of the page."
    def __init__(self, folder, network=None):
        self.app = create_app(Predictor(folder), limits=Limits(deadline=600.))       # a test may be slow
        add_page(self.app, network)
        self.socket = take_port('127.0.0.1', 0)
        self.port = self.socket.getsockname()[1]
        self.url = f'http://127.0.0.1:{self.port}/'
        self.server = Server(self.app)
        self.thread = threading.Thread(target=self.server.run, args=([self.socket],))

    def __enter__(self):
        self.thread.start()
        while not self.server.started:
            time.sleep(.01)
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join()
        self.socket.close()


@pytest.fixture(scope='module')
def service(flowers):
    with Running(flowers.folder, flowers) as running:
        yield running


@pytest.fixture(scope='module')
def browser():
    with Browser() as browser:
        yield browser


@pytest.fixture
def page(browser, service):
    "The page on a phone; in the end there must be no error in its console and no request to elsewhere."
    page = browser.page(390, 800)
    page.goto(service.url)
    yield page
    assert page.errors == []
    assert [url for url in page.requests if not url.startswith((service.url, f'blob:{service.url}', 'data:'))] == []
    page.close()


def classify(page, files, drop=False):
    "Choose or drop files; what the cards of the page say, in the order of the files: [[(name, percent), …], …]."
    if drop:
        page.drop('#drop', files)
    else:
        page.set_file_input('#files', files)
    page.wait_for(f"document.querySelectorAll('article > ol, article > .error').length === {len(files)}")
    cards = page.evaluate("""[...document.querySelectorAll('article')].map(card => [...card.querySelectorAll('.row')]
        .map(row => [...row.children].map(part => part.textContent)))""")
    return [[tuple(row) for row in card] for card in reversed(cards)]


@needs_chromium
@pytest.mark.parametrize('drop', [False, True])
def test_the_page_shows_what_the_predictor_says(page, flowers, drop):
    found = classify(page, flowers.files, drop)
    expected = Predictor(flowers.folder)(list(map(str, flowers.files)))
    assert found == [[(name, f'{100*score:.1f} %') for _, name, score in top] for top in expected]
    assert sorted(name for name, _ in found[0]) == sorted(NAMES)
    widths = page.evaluate("""[...document.querySelectorAll('article:last-child .bar')]
        .map(bar => parseFloat(bar.style.width))""")
    assert widths == pytest.approx([100*score for *_, score in expected[0]], abs=1e-3)


@needs_chromium
def test_a_class_name_is_text(page, flowers):
    classify(page, flowers.files[:1])
    assert page.evaluate('window.hacked') is None
    assert page.evaluate("document.querySelectorAll('#results img, #results script').length") == 0


@needs_chromium
def test_a_heat_map_and_back(page, flowers):
    classify(page, flowers.files[:1])
    page.evaluate("document.querySelector('.row').click()")
    size = page.wait_for("(image => image && [image.naturalWidth, image.naturalHeight])(document.querySelector('img'))")
    assert size == [32, 32]
    assert page.evaluate("document.querySelector('.row').getAttribute('aria-pressed')") == 'true'
    page.evaluate("document.querySelector('.row').click()")
    assert page.evaluate("document.querySelectorAll('figure canvas').length") == 1
    assert page.evaluate("document.querySelectorAll('figure img').length") == 0
    assert page.evaluate("document.querySelector('figcaption').textContent") == 'photo.jpg'


@needs_chromium
def test_the_camera(page):
    page.evaluate("document.querySelector('#camera').click()")
    page.wait_for("document.querySelector('#video').videoWidth > 0")
    page.evaluate("document.querySelector('#shoot').click()")
    page.wait_for("document.querySelector('article ol')")
    page.evaluate("document.querySelector('#close').click()")
    assert page.evaluate("document.querySelector('#video').srcObject") is None


@needs_chromium
@pytest.mark.parametrize('dark', [False, True])
def test_on_a_phone_in_light_and_dark(page, flowers, dark, tmp_path):
    page.viewport(390, 800, dark)
    classify(page, flowers.files)
    page.screenshot(tmp_path/'page.png')
    assert page.overflow() == 0
    paper = cv2.imread(str(tmp_path/'page.png'))[2, 2].mean()
    assert (paper < 60) == dark
    assert (paper > 200) != dark


@needs_chromium
def test_a_file_that_is_no_photograph(browser, service, tmp_path):
    (tmp_path/'broken.jpg').write_bytes(b'no image')
    page = browser.page()
    page.goto(service.url)
    classify(page, [tmp_path/'broken.jpg'])
    message = page.evaluate("document.querySelector('.error').textContent")
    assert message == 'image 0: expected a JPEG, PNG, WebP or BMP file'
    page.close()


@needs_chromium
def test_the_policy_stops_scripts_and_requests(browser, service):
    page = browser.page()
    page.goto(service.url)
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {textContent: 'hacked = 1'}))")
    assert page.evaluate("fetch('http://localhost:9/').then(() => 'sent', () => 'refused')") == 'refused'
    assert page.evaluate('window.hacked') is None
    for directive in 'script-src', 'connect-src':
        assert any(directive in error and 'Content Security Policy' in error for error in page.errors), directive
    page.close()


@needs_chromium
def test_without_weights_the_page_says_so(browser, flowers):
    with Running(flowers.folder) as service:
        page = browser.page()
        page.goto(service.url)
        classify(page, flowers.files[:1])
        assert 'exported network has no gradients' in page.evaluate("document.querySelector('#reason').textContent")
        assert page.evaluate("document.querySelectorAll('button.row').length") == 0
        assert page.errors == []
        page.close()


def test_headers(service):
    connection = http.client.HTTPConnection('127.0.0.1', service.port)
    connection.request('GET', '/')
    headers = connection.getresponse().headers
    connection.close()
    policy = headers['content-security-policy']
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert 'unsafe' not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers['x-content-type-options'] == 'nosniff'


def test_weights_that_the_folder_remembers(flowers):
    record = Predictor(flowers.folder).record
    assert network_for_maps(record).name == 'MobileNetV1_x0_25'
    record.about['weights'] = '/no/such.pdparams'
    assert network_for_maps(record) is None
    assert network_for_maps(record, flowers.weights).class_num == 5
    with pytest.raises(PPClsError, match='no run folder'):
        network_for_maps(record, 'no_such_run')


def test_official_weights_that_the_folder_remembers_are_not_downloaded(flowers, tmp_path, monkeypatch):
    monkeypatch.setenv('PPCLS_HOME', str(tmp_path))
    monkeypatch.setattr('ppcls_nb.models.formats.downloads.download', lambda *_, **__: pytest.fail('a download'))
    record = Predictor(flowers.folder).record
    record.about['weights'] = 'MobileNetV1_x0_25'
    assert network_for_maps(record) is None
    (tmp_path/'weights').mkdir()
    official = build_model('MobileNetV1_x0_25').state_dict()
    paddle.save(official, str(tmp_path/'weights'/'MobileNetV1_x0_25.pdparams'))
    assert network_for_maps(record).class_num == 1000


def paths_of(app):
    "The paths that an app answers."
    return {getattr(route, 'path', '') for route in app.routes}


def test_weights_that_were_trained_further(flowers, tmp_path, capsys):
    weights, predictor = tmp_path/'flowers.pdparams', Predictor(flowers.folder)
    paddle.save(build_model('MobileNetV1_x0_25', class_num=5).state_dict(), str(weights))
    predictor.record.about['weights'] = str(weights)
    app = create_app(predictor)
    add_demo(app)
    assert 'the weights give other outputs' in capsys.readouterr().err
    assert '/' in paths_of(app)
    assert '/heatmap' not in paths_of(app)
    document = next(route for route in app.routes if getattr(route, 'path', '') == '/').endpoint
    assert b'the log of this service says why' in asyncio.run(document()).body
    with pytest.raises(PPClsError, match='the weights give other outputs'):
        add_demo(app, run=str(weights))
    with pytest.raises(PPClsError, match='--run: only for heat maps'):
        add_demo(app, run=str(weights), heat_maps=False)


def test_a_network_of_8_bits_has_heat_maps_of_the_weights_that_it_was_made_from(flowers, tmp_path):
    quantize(flowers.folder, tmp_path/'int8', [str(file) for file in flowers.files]*4, count=4, runs=0)
    maps = HeatMaps(flowers, Predictor(tmp_path/'int8', 'onnx'))
    png = maps.picture(np.zeros((3, 32, 32), np.float32), 0)
    assert cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR).shape == (32, 32, 3)
    with pytest.raises(PPClsError, match='for 4 classes'):
        HeatMaps(build_model('MobileNetV1_x0_25', class_num=4), Predictor(tmp_path/'int8', 'onnx'))
