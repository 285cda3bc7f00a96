"""The Open Inference Protocol of a service: what its own requests and NVIDIA's published client get, what is refused,
and that the limits hold. (tests/test_service.py has the other protocol.)"""
import base64, json, struct

import ppcls_nb  # before paddle: sets the threads
import cv2, httpx, numpy as np, paddle, pytest

from ppcls_nb import __version__
from ppcls_nb.data.imaug import eval_ops
from ppcls_nb.deploy.export import export_model
from ppcls_nb.deploy.limits import Limits, Totals
from ppcls_nb.deploy.open_inference import add_open_inference
from ppcls_nb.deploy.predict import Predictor
from ppcls_nb.models import build_model
from running_service import Running

NAMES = ['daisy', 'poppy', 'great mullein', 'gentian']
NETWORK, FILES = 'MobileNetV1_x0_25', 'MobileNetV1_x0_25_files'
RNG = np.random.default_rng(0)
JPEGS = [cv2.imencode('.jpg', cv2.GaussianBlur(RNG.integers(0, 255, (60, 80, 3), np.uint8), (0, 0), 6))[1].tobytes()
         for _ in range(3)]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    paddle.seed(0)
    network = build_model(NETWORK, class_num=4)
    return export_model(network, tmp_path_factory.mktemp('served')/'flowers', eval_ops(32), NAMES)


@pytest.fixture(scope='module')
def predictor(folder):
    return Predictor(folder)


def start(folder, **settings):
    "A service with both protocols."
    return Running(folder, extend=add_open_inference, **settings)


@pytest.fixture(scope='module')
def service(folder):
    running = start(folder, limits=Limits(max_body=200_000, max_images=4, max_pixels=1_000_000))
    yield running
    running.signal()
    running.join()


def get(service, path):
    return httpx.get(f'{service.url}{path}', timeout=60, trust_env=False)


def infer(service, model=NETWORK, content=None, headers=None, **body):
    "The answer to a request with the JSON `body`, or with `content`."
    options = dict(json=body) if content is None else dict(content=content)
    return httpx.post(f'{service.url}/v2/models/{model}/infer', headers=headers, timeout=60, trust_env=False, **options)


def tensor(array, **changes):
    "An FP32 input as JSON."
    return {'name': 'image', 'datatype': 'FP32', 'shape': list(array.shape), 'data': array.ravel().tolist(), **changes}


def files(*data, **changes):
    "A BYTES input as JSON."
    encoded = [base64.b64encode(d).decode() for d in data]
    return {'name': 'image', 'datatype': 'BYTES', 'shape': [len(data)], 'data': encoded, **changes}


def binary(value, data, **more):
    "(content, headers) of a request whose input `value` has `data` in binary form."
    value = {**{k: v for k, v in value.items() if k != 'data'}, 'parameters': {'binary_data_size': len(data)}}
    header = json.dumps({'inputs': [value], **more}).encode()
    return dict(content=header + data, headers={'Inference-Header-Content-Length': str(len(header))})


def elements(*data): return b''.join(struct.pack('<I', len(d)) + d for d in data)


# ── health and metadata

def test_health_and_metadata(service):
    assert get(service, '/v2').json() == {
        'name': 'ppcls_nb', 'version': __version__, 'extensions': ['binary_tensor_data', 'classification']}
    assert get(service, '/v2/health/live').json() == {'live': True}
    assert get(service, '/v2/health/ready').json() == {'ready': True}
    for base in (f'/v2/models/{NETWORK}', f'/v2/models/{NETWORK}/versions/1'):
        assert get(service, f'{base}/ready').json() == {'name': NETWORK, 'ready': True}
        metadata = get(service, base).json()
        assert metadata['inputs'] == [{'name': 'image', 'datatype': 'FP32', 'shape': [-1, 3, 32, 32]}]
        assert metadata['outputs'] == [{'name': 'probabilities', 'datatype': 'FP32', 'shape': [-1, 4]}]
    assert get(service, f'/v2/models/{FILES}').json()['inputs'] == [
        {'name': 'image', 'datatype': 'BYTES', 'shape': [-1]}]


@pytest.mark.parametrize('path', [
    '/v2/x', '/v2/models/rose', '/v2/models/rose/ready', f'/v2/models/{NETWORK}/versions/2',
    f'/v2/models/{NETWORK}/versions/2/ready'])
def test_what_does_not_exist(service, path):
    answer = get(service, path)
    assert answer.status_code == 404
    assert [*answer.json()] == ['error']
    assert 'rose' not in answer.text


# ── predictions

def test_prepared_images_as_json(service, predictor):
    images = predictor.preprocess(JPEGS[:2])
    expected = predictor.probabilities(images)
    answer = infer(service, id='one', inputs=[tensor(images)]).json()
    nested = infer(service, inputs=[tensor(images, data=images.tolist())]).json()
    assert (answer['id'], answer['model_name'], answer['model_version']) == ('one', NETWORK, '1')
    for value in (answer, nested):
        output, = value['outputs']
        assert (output['name'], output['datatype'], output['shape']) == ('probabilities', 'FP32', [2, 4])
        assert np.allclose(np.reshape(output['data'], (2, 4)), expected, atol=1e-5)
    assert 'id' not in nested


def test_binary_tensors_in_both_directions(service, predictor):
    images = predictor.preprocess(JPEGS[:2])
    for value, data, model in ((tensor(images), images.tobytes(), NETWORK),
                               (files(*JPEGS[:2]), elements(*JPEGS[:2]), FILES)):
        answer = infer(service, model, **binary(value, data, parameters={'binary_data_output': True}))
        length = int(answer.headers['Inference-Header-Content-Length'])
        output, = json.loads(answer.content[:length])['outputs']
        assert output['parameters'] == {'binary_data_size': 32}
        found = np.frombuffer(answer.content[length:], '<f4').reshape(output['shape'])
        assert np.allclose(found, predictor.probabilities(images), atol=1e-5)


def test_files_with_their_best_classes(service, predictor):
    wanted = {'name': 'probabilities', 'parameters': {'classification': 2}}
    answer = infer(service, FILES, inputs=[files(*JPEGS)], outputs=[wanted]).json()
    output, = answer['outputs']
    expected = [f'{score:f}:{label}:{name}' for top in predictor(JPEGS, topk=2) for label, name, score in top]
    assert (output['datatype'], output['shape']) == ('BYTES', [3, 2])
    assert [text.split(':')[1:] for text in output['data']] == [text.split(':')[1:] for text in expected]
    scores = [[float(text.split(':')[0]) for text in texts] for texts in (output['data'], expected)]
    assert np.allclose(*scores, atol=1e-5)


# ── what is refused

IMAGE = np.zeros((1, 3, 32, 32), np.float32)
LONG = json.dumps({'inputs': [tensor(IMAGE)]}).encode()
REFUSED = {
    'no JSON': dict(content=b'{"inputs": '),
    'hostile JSON': dict(content=b'['*100_000),
    'a list': dict(content=b'[]'),
    'nothing': dict(content=b''),
    'no inputs': {},
    'two inputs': dict(inputs=[tensor(IMAGE)]*2),
    'inputs of another kind': dict(inputs=[3]),
    'wrong name': dict(inputs=[tensor(IMAGE, name='secret')]),
    'wrong datatype': dict(inputs=[tensor(IMAGE, datatype='FP16')]),
    'BYTES for tensors': dict(inputs=[files(JPEGS[0])]),
    'one dimension less': dict(inputs=[tensor(IMAGE[0])]),
    'another size': dict(inputs=[tensor(np.zeros((1, 3, 33, 32)))]),
    'no images': dict(inputs=[tensor(IMAGE[:0])]),
    'a negative size': dict(inputs=[tensor(IMAGE, shape=[-1, 3, 32, 32])]),
    'a size that is not whole': dict(inputs=[tensor(IMAGE, shape=[1., 3, 32, 32])]),
    'true as a size': dict(inputs=[tensor(IMAGE, shape=[True, 3, 32, 32])]),
    'five images': dict(inputs=[tensor(IMAGE, shape=[5, 3, 32, 32])]),
    'a huge number of images': dict(inputs=[tensor(IMAGE, shape=[10**30, 3, 32, 32])]),
    'too few numbers': dict(inputs=[tensor(IMAGE, data=[0.]*3071)]),
    'strings': dict(inputs=[tensor(IMAGE, data=['1']*3072)]),
    'true and false': dict(inputs=[tensor(IMAGE, data=[True]*3072)]),
    'uneven lists': dict(inputs=[tensor(IMAGE, data=[[1], [1, 2]])]),
    'whole numbers beyond 64 bits': dict(inputs=[tensor(IMAGE, data=[10**30]*3072)]),
    'beyond float32': dict(inputs=[tensor(IMAGE, data=[1e39]*3072)]),
    'NaN': dict(content=LONG.replace(b'0.0', b'NaN')),
    'neither data nor its size': dict(inputs=[tensor(IMAGE, data=1) | {'data': None}]),
    'both data and its size': dict(inputs=[tensor(IMAGE, parameters={'binary_data_size': 0})]),
    'shared memory': dict(inputs=[{k: v for k, v in tensor(IMAGE).items() if k != 'data'} | {
        'parameters': {'shared_memory_region': 'x', 'shared_memory_byte_size': 9}}]),
    'parameters of another kind': dict(inputs=[tensor(IMAGE, parameters=3)]),
    'an unknown output': dict(inputs=[tensor(IMAGE)], outputs=[{'name': 'secret'}]),
    'an output twice': dict(inputs=[tensor(IMAGE)], outputs=[{'name': 'probabilities'}]*2),
    'classes that are no number': dict(inputs=[tensor(IMAGE)], outputs=[
        {'name': 'probabilities', 'parameters': {'classification': 'all'}}]),
    'an id that is no string': dict(id=3, inputs=[tensor(IMAGE)]),
    'half a character as id': dict(content=LONG[:-1] + b', "id": "\\ud800"}'),
    'a header that is no number': dict(content=LONG, headers={'Inference-Header-Content-Length': '-3'}),
    'a header beyond the body': dict(content=LONG, headers={'Inference-Header-Content-Length': '9'*30}),
    'a header within the JSON': dict(content=LONG, headers={'Inference-Header-Content-Length': '9'}),
    'data behind the JSON that nobody reads': dict(content=LONG + b'more', headers={
        'Inference-Header-Content-Length': str(len(LONG))}),
    'too few bytes': binary(tensor(IMAGE), bytes(4*3071)),
    'a size that is not that of the bytes': binary(tensor(IMAGE), bytes(4*3072)) | {
        'content': binary(tensor(IMAGE), bytes(4*3072))['content'][:-1]},
    'NaN in bytes': binary(tensor(IMAGE), b'\xff'*4*3072)}
REFUSED_FILES = {
    'text that is not base64': dict(inputs=[files(JPEGS[0], data=['secret!'])]),
    'numbers for files': dict(inputs=[files(JPEGS[0], data=[1])]),
    'one file too few': dict(inputs=[files(JPEGS[0], shape=[2])]),
    'two dimensions': dict(inputs=[files(JPEGS[0], shape=[1, 1])]),
    'no dimensions': dict(inputs=[files(JPEGS[0], shape=[])]),
    'FP32 for files': dict(inputs=[tensor(IMAGE)]),
    'an element longer than the data': binary(files(JPEGS[0]), struct.pack('<I', 10**9) + JPEGS[0]),
    'bytes after the last element': binary(files(JPEGS[0]), elements(JPEGS[0]) + b'more'),
    'no bytes': binary(files(JPEGS[0]), b'')}


@pytest.mark.parametrize('model, name', [
    *[(NETWORK, name) for name in REFUSED], *[(FILES, name) for name in REFUSED_FILES]])
def test_wrong_requests(service, model, name):
    answer = infer(service, model, **(REFUSED if model == NETWORK else REFUSED_FILES)[name])
    assert answer.status_code == 400
    assert [*answer.json()] == ['error']
    assert 'secret' not in answer.text


@pytest.mark.parametrize('data, status', [(b'GIF89a', 415), (b'', 422), (JPEGS[0][:-200], 422)])
def test_files_that_are_no_images(service, data, status):
    for body in (dict(inputs=[files(data)]), binary(files(data), elements(data))):
        answer = infer(service, FILES, **body)
        assert answer.status_code == status
        assert answer.json()['error'].startswith('image 0: ')


def test_other_methods_and_encodings(service):
    assert get(service, f'/v2/models/{NETWORK}/infer').status_code == 405
    assert infer(service, 'rose', inputs=[]).status_code == 404
    assert infer(service, content=LONG, headers={'Content-Encoding': 'gzip'}).status_code == 415
    assert infer(service, content=bytes(200_001)).status_code == 413


def test_outputs_that_are_not_finite(folder):
    running = start(folder)
    running.service.batcher.run = lambda images: np.full((len(images), 4), np.nan, np.float32)
    answer = infer(running, inputs=[tensor(IMAGE)])
    running.signal()
    running.join()
    assert answer.status_code == 422


# ── limits

def test_deadline_draining_and_room_are_those_of_the_service(folder):
    running = start(folder, seconds=.5, limits=Limits(deadline=.1))
    late = infer(running, inputs=[tensor(IMAGE)])
    running.service.limits.max_queue = 1
    crowded = infer(running, inputs=[tensor(np.concatenate([IMAGE]*2))])
    running.service.draining = True
    refused = [infer(running, inputs=[tensor(IMAGE)]), get(running, '/v2/health/ready'),
               get(running, f'/v2/models/{NETWORK}/ready')]
    alive = get(running, '/v2/health/live')
    text = running.service.metrics.text().decode()
    left = len(running.service.open_requests), running.service.totals.sum(Totals.ACCEPTED)
    running.signal()
    running.join()
    assert (late.status_code, crowded.status_code, alive.status_code) == (504, 503, 200)
    assert [answer.status_code for answer in refused] == [503]*3
    assert left == (0, 0)
    assert 'ppcls_requests_total{path="/v2/infer",status="504"} 1.0' in text
    assert 'ppcls_request_seconds_count 3.0' in text


# ── the published client

@pytest.fixture(scope='module')
def triton():
    return pytest.importorskip('tritonclient.http', reason="needs tritonclient: pip install 'tritonclient[http]'")


@pytest.fixture
def client(triton, service):
    with triton.InferenceServerClient(service.url.removeprefix('http://'), network_timeout=60) as client:
        yield client


def client_input(triton, array, binary_data=True):
    "The input of a request for the published client."
    value = triton.InferInput('image', list(array.shape), 'BYTES' if array.dtype == object else 'FP32')
    return value.set_data_from_numpy(array, binary_data)


def test_the_published_client_finds_the_models(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(NETWORK)
    assert client.is_model_ready(FILES, '1')
    assert not client.is_model_ready('rose')
    assert client.get_server_metadata()['name'] == 'ppcls_nb'
    assert client.get_model_metadata(NETWORK)['inputs'][0]['shape'] == [-1, 3, 32, 32]


@pytest.mark.parametrize('binary_in', [True, False])
@pytest.mark.parametrize('binary_out', [True, False, None])
def test_the_published_client_gets_predictions(triton, client, predictor, binary_in, binary_out):
    images = predictor.preprocess(JPEGS)
    outputs = None if binary_out is None else [triton.InferRequestedOutput('probabilities', binary_data=binary_out)]
    answer = client.infer(NETWORK, [client_input(triton, images, binary_in)], outputs=outputs, request_id='seven')
    assert answer.get_response()['id'] == 'seven'
    assert np.allclose(answer.as_numpy('probabilities'), predictor.probabilities(images), atol=1e-5)


@pytest.mark.parametrize('binary_out', [True, False])
def test_the_published_client_sends_files_and_gets_classes(triton, client, predictor, binary_out):
    wanted = triton.InferRequestedOutput('probabilities', binary_data=binary_out, class_count=2)
    answer = client.infer(FILES, [client_input(triton, np.array(JPEGS, object))], '1', outputs=[wanted])
    found = answer.as_numpy('probabilities')
    texts = [text.decode() if isinstance(text, bytes) else text for text in found.ravel()]
    expected = [(str(label), name) for top in predictor(JPEGS, topk=2) for label, name, _ in top]
    assert found.shape == (3, 2)
    assert [tuple(text.split(':')[1:]) for text in texts] == expected


def test_the_published_client_sees_errors(triton, client):
    from tritonclient.utils import InferenceServerException
    five = np.zeros((5, 3, 32, 32), np.float32)
    wrong = [
        ('rose', client_input(triton, IMAGE), 'no such model', '404'),
        (NETWORK, client_input(triton, IMAGE[:, :2]), 'its shape is not', '400'),
        (NETWORK, client_input(triton, five), '1 to 4 images', '400'),
        (NETWORK, client_input(triton, np.array(JPEGS, object)), 'its datatype is not FP32', '400'),
        (FILES, client_input(triton, np.array([b'GIF89a'], object)), 'expected a JPEG', '415')]
    for model, value, message, status in wrong:
        with pytest.raises(InferenceServerException, match=message) as e:
            client.infer(model, [value])
        assert e.value.status() == status


def test_the_published_client_sends_several_requests_at_once(triton, service, predictor):
    images = predictor.preprocess(JPEGS)
    address = service.url.removeprefix('http://')
    with triton.InferenceServerClient(address, concurrency=3, network_timeout=60) as client:
        pending = [client.async_infer(NETWORK, [client_input(triton, images[i:i + 1])]) for i in (0, 1, 2)]
        found = np.concatenate([request.get_result().as_numpy('probabilities') for request in pending])
    assert np.allclose(found, predictor.probabilities(images), atol=1e-5)
