"""The service in this process, without a socket: images and bodies that are refused, overload, deadlines, failures,
disconnections, and its metrics. (tests/test_serve.py has a real server.)"""
import asyncio, base64, io, json, logging, re, struct, time, zlib
from concurrent.futures import ThreadPoolExecutor

import ppcls_nb  # before paddle: sets the threads
import cv2, httpx, numpy as np, paddle, pytest
from anyio.from_thread import start_blocking_portal
from PIL import Image
from starlette.exceptions import HTTPException

from ppcls_nb.basics import PPClsError
from ppcls_nb.data.imaug import eval_ops
from ppcls_nb.deploy.export import export_model
from ppcls_nb.deploy.predict import Predictor, prepare_image
from ppcls_nb.deploy.limits import Limits, Totals
from ppcls_nb.deploy.serve import create_app, read_image, read_json
from ppcls_nb.models import build_model

OPS, MAX_PIXELS = eval_ops(32), 1_000_000
PHOTO = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8), (0, 0), 6)
FILES = {end: cv2.imencode(end, PHOTO)[1].tobytes() for end in ('.jpg', '.png', '.bmp', '.webp')}
JPEG, PNG = FILES['.jpg'], FILES['.png']
for name in 'httpx', 'python_multipart.multipart':
    logging.getLogger(name).setLevel(logging.ERROR)


def png(width, height, size=None):
    "A grey PNG file whose header says width × height, with `size` bytes of pixels."
    chunk = lambda kind, body: struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))
    header = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(size or height*(width + 1)))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', pixels) + chunk(b'IEND', b'')


def animation(kind):
    frames, out = [Image.new('RGB', (8, 8), c) for c in ('red', 'blue')], io.BytesIO()
    frames[0].save(out, kind, save_all=True, append_images=frames[1:])
    return out.getvalue()


HOSTILE = {
    'bomb': (png(30_000, 30_000, 1000), 413),
    'smaller bomb': (png(9000, 9000, 1000), 413),
    'real bomb': (png(4000, 4000), 413),
    'half a JPEG': (JPEG[:-200], 422),
    'half a PNG': (PNG[:len(PNG)//2], 422),
    'PNG without its last byte': (PNG[:-1], 422),
    'long chunk': (PNG[:33] + b'\x6a' + PNG[34:], 422),
    'GIF': (animation('GIF'), 415),
    'animated PNG': (animation('PNG'), 415),
    'animated WebP': (animation('WEBP'), 415),
    'scans': (JPEG[:-2] + b'\xff\xda'*200 + b'\xff\xd9', 415),
    'zip': (b'PK\x03\x04' + bytes(99), 415),
    'text': (b'/etc/passwd', 415),
    'nothing': (b'', 422)}


@pytest.mark.parametrize('name', HOSTILE)
def test_hostile_images_are_refused(name):
    data, status = HOSTILE[name]
    with pytest.raises(HTTPException) as e:
        read_image(data, OPS, MAX_PIXELS)
    assert e.value.status_code == status


@pytest.mark.parametrize('end', FILES)
def test_good_images_are_read(end):
    assert np.array_equal(read_image(FILES[end], OPS, 60*80), prepare_image(FILES[end], OPS))


def test_limit_of_pixels_and_bytes_after_the_end():
    with pytest.raises(HTTPException) as e:
        read_image(JPEG, OPS, 60*80 - 1)
    assert e.value.status_code == 413
    assert read_image(PNG + b'more', OPS, 9999).shape == (3, 32, 32)


def as_text(data): return base64.b64encode(data).decode()


def test_json_bodies():
    assert read_json(json.dumps({'images': [as_text(JPEG), as_text(PNG)]}).encode()) == [JPEG, PNG]
    assert read_json(json.dumps({'image': as_text(JPEG)}).encode()) == [JPEG]
    assert read_json(b'{"images": []}') == []


@pytest.mark.parametrize('body', [
    b'', b'[]', b'null', b'[', b'['*100_000, b'9'*5000, b'\xff\xfe', b'{"image": null}', b'{"images": 3}',
    b'{"image": "YQ==", "images": []}', b'{"images": {"a": 1}}', b'{"images": ["abc!"]}', b'{"image": "Y"}',
    '{"image": "é"}'.encode(), b'{"a": "YQ=="}'], ids=lambda body: repr(body[:20]))
def test_other_json_bodies_are_refused(body):
    with pytest.raises(HTTPException) as e:
        read_json(body)
    assert e.value.status_code == 400


@pytest.mark.parametrize('options, message', [
    (dict(deadline=0), 'deadline 0: expected a number above 0'),
    (dict(max_queue=8), 'max_queue 8: expected at least max_images, 16')])
def test_wrong_limits(options, message):
    with pytest.raises(PPClsError, match=message):
        Limits(**options)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    paddle.seed(0)
    names = ['daisy', 'poppy', 'great mullein', 'gentian']
    return export_model(build_model('MobileNetV1_x0_25', class_num=4), tmp_path_factory.mktemp('served')/'flowers', OPS,
                        names)


class Client:
    "Sends requests to an app in the event loop of another thread; several threads may send at once."
    def __init__(self, app, portal):
        self.service, self.portal = app.state.service, portal
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url='http://service')

    def request(self, method, path, **options):
        return self.portal.call(lambda: self.http.request(method, path, **options))

    def get(self, path): return self.request('GET', path)
    def post(self, path='/predict', **options): return self.request('POST', path, **options)

    def send(self, n):
        "The status codes of n requests at once."
        with ThreadPoolExecutor(n) as pool:
            return sorted(r.status_code for r in pool.map(lambda _: self.post(files=upload(JPEG)), range(n)))


@pytest.fixture
def client(folder):
    app = create_app(folder, Limits(max_body=200_000, max_images=4, max_pixels=MAX_PIXELS), max_batch=8)
    with start_blocking_portal() as portal:
        with portal.wrap_async_context_manager(app.router.lifespan_context(app)):
            yield Client(app, portal)


def upload(*data): return [('image', (f'{i}.jpg', d)) for i, d in enumerate(data)]


def classes(response):
    return [[(t['label'], t['name'], round(t['score'], 5)) for t in p['top']] for p in response.json()['predictions']]


def expected_classes(folder):
    top = Predictor(folder)([JPEG, PNG], topk=2)
    return [[(label, name, round(score, 5)) for label, name, score in row] for row in top]


def test_answers_of_both_forms(client, folder):
    expected = expected_classes(folder)
    assert classes(client.post('/predict?topk=2', files=upload(JPEG, PNG))) == expected
    assert classes(client.post('/predict?topk=2', json={'images': [as_text(JPEG), as_text(PNG)]})) == expected
    assert [len(top) for top in classes(client.post(json={'image': as_text(JPEG)}))] == [4]
    assert client.get('/openapi.json').json()['paths']['/predict']['post']
    assert client.get('/healthz').json() == {'status': 'ready', 'network': 'MobileNetV1_x0_25', 'classes': 4}


async def chunks(n, size=10_000):
    for _ in range(n):
        yield bytes(size)


def malformed():
    "{name: (arguments of a request, status of the answer)}."
    form, as_json = {'Content-Type': 'multipart/form-data; boundary=x'}, {'Content-Type': 'application/json'}
    return {
        'bomb': (dict(files=upload(HOSTILE['real bomb'][0])), 413),
        'second is damaged': (dict(files=upload(JPEG, HOSTILE['half a JPEG'][0])), 422),
        'GIF': (dict(files=upload(HOSTILE['GIF'][0])), 415),
        'five images': (dict(files=upload(*[JPEG]*5)), 400),
        'none': (dict(json={'images': []}), 400),
        'no JSON': (dict(content=b'{"image": ', headers=as_json), 400),
        'no form': (dict(content=b'--y', headers=form), 400),
        'no boundary': (dict(content=b'', headers={'Content-Type': 'multipart/form-data'}), 400),
        'a field': (dict(files={'image': (None, '@photo.jpg')}), 400),
        'nothing': ({}, 415),
        'a photograph as it is': (dict(content=JPEG, headers={'Content-Type': 'image/jpeg'}), 415),
        'zipped': (dict(content=b'', headers={'Content-Encoding': 'gzip', **as_json}), 415),
        'large': (dict(content=bytes(300_000), headers=as_json), 413),
        'large, in chunks': (dict(content=chunks(30), headers=as_json), 413),
        'says it is huge': (dict(content=b'{}', headers={'Content-Length': '99999999999', **as_json}), 413),
        'path': (dict(files={'image': ('../../etc/passwd', b'root:x:0')}), 415),
        'topk': (dict(files=upload(JPEG), params={'topk': '-1'}), 400),
        'topk is text': (dict(files=upload(JPEG), params={'topk': '../x'}), 400)}


def test_malformed_requests(client, folder):
    cases = malformed()
    answers = {name: client.post(**options) for name, (options, _) in cases.items()}
    assert {name: r.status_code for name, r in answers.items()} == {name: status for name, (_, status) in cases.items()}
    assert all([*r.json()] == ['error'] for r in answers.values())
    assert answers['second is damaged'].json()['error'].startswith('image 1: damaged')
    secrets = 'Trace', 'passwd', 'root', '../', str(folder), '.py', 'site-packages'
    assert not any(word in r.text for r in answers.values() for word in secrets)
    assert classes(client.post('/predict?topk=2', files=upload(JPEG, PNG))) == expected_classes(folder)
    service = client.service
    assert len(service.open_requests) == service.totals.sum(Totals.ACCEPTED) == service.batcher.on_the_way == 0


@pytest.mark.parametrize('method, path, status', [
    ('GET', '/predict', 405), ('PUT', '/predict', 405), ('POST', '/healthz', 405), ('GET', '/', 404),
    ('GET', '/../../etc/passwd', 404), ('GET', '/inference.yml', 404)])
def test_other_paths_and_methods(client, method, path, status):
    response = client.request(method, path)
    assert response.status_code == status
    assert [*response.json()] == ['error']


def slow(images):
    time.sleep(.15)
    return np.full((len(images), 4), .25, np.float32)


def test_overload(client):
    service = client.service
    service.batcher.run, service.limits.max_requests = slow, 3
    codes = client.send(7)
    assert set(codes) == {200, 503}
    assert codes.count(200) >= 3
    service.limits.max_requests, service.limits.max_queue = 64, 2
    answer = client.post(files=upload(JPEG, JPEG, JPEG))
    assert answer.json()['error'] == 'busy: at most 2 images may wait'
    service.limits.max_queue = 256
    assert client.send(9) == [200]*9
    assert len(service.open_requests) == service.totals.sum(Totals.ACCEPTED) == 0


def test_deadline(client):
    service = client.service
    service.batcher.run, service.limits.deadline = slow, .05
    late = client.post(files=upload(JPEG))
    assert late.status_code == 504
    assert late.json()['error'] == 'not answered within 0.05 s'


def test_a_network_that_fails(client, folder):
    def failing(images):
        raise RuntimeError(f'secret of {folder}')
    client.service.batcher.run = failing
    logging.disable()
    try:
        failed = client.post(files=upload(JPEG))
    finally:
        logging.disable(logging.NOTSET)
    assert failed.status_code == 500
    assert 'secret' not in failed.text


def test_draining(client):
    client.service.draining = True
    refused = client.post(files=upload(JPEG))
    assert refused.status_code == 503
    assert refused.headers['retry-after'] == '1'
    assert refused.json()['error'].startswith('draining')
    assert client.get('/healthz').status_code == 503
    assert client.get('/healthz').json()['status'] == 'draining'


def test_metrics(client):
    client.send(3)
    for options, _ in malformed().values():
        client.post(**options)
    for path in '/', '/../../etc/passwd', '/inference.yml':
        client.get(path)
    text = client.get('/metrics').text
    counted = dict(re.findall(r'ppcls_requests_total\{path="/predict",status="(\d+)"\} (\d+)', text))
    statuses = [status for _, status in malformed().values()]
    assert counted == {'200': '3', **{str(s): str(statuses.count(s)) for s in set(statuses)}}
    assert 'path="other",status="404"} 3' in text
    assert float(re.search(r'\nppcls_images_total (\S+)', text)[1]) == 3
    assert 'passwd' not in text


def test_a_disconnected_client_is_not_computed(folder):
    sizes, sent = [], []
    request = httpx.Request('POST', 'http://x/predict', files=upload(JPEG))
    messages = iter([{'type': 'http.request', 'body': request.read()}])
    scope = dict(type='http', method='POST', path='/predict', query_string=b'',
                 headers=[(k.lower(), v) for k, v in request.headers.raw])
    app = create_app(folder, max_batch=1)

    def network(images):
        sizes.append(len(images))
        return slow(images)

    async def disconnect_early():
        disconnected = asyncio.Event()
        async def receive():
            for message in messages:
                return message
            await disconnected.wait()
            return {'type': 'http.disconnect'}
        async def send(message):
            sent.append(message)
        async with app.state.service as service:
            first = asyncio.create_task(service.batcher([np.zeros((3, 32, 32), np.float32)]))
            await asyncio.sleep(.02)
            second = asyncio.create_task(app(scope, receive, send))
            await asyncio.sleep(.04)
            disconnected.set()
            await asyncio.gather(first, second)
            await asyncio.sleep(.02)
        return len(service.open_requests), service.totals.sum(Totals.ACCEPTED)

    app.state.service.batcher.run = network
    assert asyncio.run(disconnect_early()) == (0, 0)
    assert sizes == [1]
    assert sent[0]['status'] == 499


def test_wrong_number_of_threads(folder):
    with pytest.raises(PPClsError, match='decode_threads -1'):
        create_app(folder, decode_threads=-1)
