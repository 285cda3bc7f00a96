"""Clients that do not behave, over real sockets: never read, send slowly, close half, leave open where a request ends;
and numbers and hosts that cannot be."""
import io, json, logging, re, shutil, signal, socket, subprocess, threading, time

import ppcls_nb  # before paddle: sets the threads
import httpx, paddle, pytest
from PIL import Image

from ppcls_nb.basics import PPClsError, check_number
from ppcls_nb.data.image_format import image_header
from ppcls_nb.data.imaug import eval_ops
from ppcls_nb.deploy.batching import Batcher
from ppcls_nb.deploy.client import ServiceClient
from ppcls_nb.deploy.export import export_model
from ppcls_nb.deploy.limits import Limits
from ppcls_nb.deploy.predict import Predictor
from ppcls_nb.deploy.serve import create_app
from ppcls_nb.deploy.server import Server, serve, take_port
from ppcls_nb.models import build_model
from running_service import JPEG, Running
from small_run import check_refused

logging.getLogger('httpx').setLevel(logging.ERROR)
SAFETY = 60      # seconds after which a test gives up


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    paddle.seed(0)
    return export_model(build_model('MobileNetV1_x0_25', class_num=4), tmp_path_factory.mktemp('served')/'flowers',
                        eval_ops(32))


@pytest.fixture
def start(folder):
    "A function that starts a service, which ends with the test."
    started = []
    def start(**options):
        started.append(Running(folder, **options))
        return started[-1]
    yield start
    for running in started:
        running.signal()
        running.join()


def upload(files=(JPEG,), path='/predict'):
    "The bytes of a request with a form."
    part = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
    body = b''.join(part + file + b'\r\n' for file in files) + b'--x--\r\n'
    head = f'POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n'
    return f'{head}Content-Length: {len(body)}\r\n\r\n'.encode() + body


HEALTH = b'GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n'
JSON = b'POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n'


def connect(running, buffer=None):
    sock = socket.socket()
    if buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    sock.settimeout(SAFETY)
    sock.connect(running.address)
    return sock


def read_all(sock):
    "What arrives until the service ends the connection."
    data = b''
    try:
        while True:
            piece = sock.recv(65536)
            if not piece:
                return data
            data += piece
    except ConnectionResetError:
        return data


def statuses(data): return [int(status) for status in re.findall(rb'HTTP/1\.1 (\d+)', data)]


def wait_for(condition):
    end = time.monotonic() + SAFETY
    while not condition():
        assert time.monotonic() < end
        time.sleep(.01)


def connections(running): return running.server.server_state.connections
def stuck(running): return [c for c in list(connections(running)) if c.flow.write_paused]
def health(running): return httpx.get(f'{running.url}/healthz', timeout=SAFETY, verify=False)


# ── clients that never read

def large_answers(running, size=1_500_000):
    "Let each answer for an image be larger than the buffers of the operating system, those for sending small."
    running.service.predictor.names = ['x'*size]*4
    running.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)      # accepted connections have it, too


def test_clients_that_never_read_are_ended_and_healthz_goes_on(start):
    running = start(limits=Limits(deadline=3.))
    large_answers(running)
    sockets = [connect(running, 4096) for _ in range(8)]
    for sock in sockets:
        sock.sendall(upload()*20)
    wait_for(lambda: stuck(running))
    codes = [health(running).status_code]
    while connections(running):
        codes.append(health(running).status_code)
    wait_for(lambda: not running.server.server_state.tasks)
    assert {*codes} == {200}
    assert running.service.metrics.images._value.get() < 8*20
    assert all(len(read_all(sock)) < 4*1_500_000 for sock in sockets)


def test_a_client_that_reads_slowly_gets_the_whole_answer(start):
    running = start(limits=Limits(deadline=20.))
    large_answers(running, 500_000)
    with connect(running, 4096) as sock:
        sock.sendall(upload())
        wait_for(lambda: stuck(running))
        answer = sock.makefile('rb')
        head = b''.join(iter(answer.readline, b'\r\n'))
        length = int(re.search(rb'content-length: (\d+)', head)[1])
        assert len(json.loads(answer.read(length))['predictions'][0]['top']) == 4


def test_an_answer_that_is_not_taken_is_unanswered_at_the_end(folder):
    running = Running(folder, grace=.3)
    large_answers(running)
    with connect(running, 4096) as sock:
        sock.sendall(upload())
        wait_for(lambda: stuck(running))
        running.signal()
        running.join()
    assert running.server.unanswered == 1


def test_an_answer_that_is_being_taken_delays_the_end(folder):
    running = Running(folder, limits=Limits(deadline=SAFETY), grace=SAFETY)
    large_answers(running)
    with connect(running, 4096) as sock:
        sock.sendall(upload())
        wait_for(lambda: stuck(running))
        running.signal()
        wait_for(lambda: health(running).status_code == 503)
        answer = read_all(sock)
    running.join()
    assert len(answer) > 4*1_500_000
    assert running.server.unanswered == 0


def test_more_connections_than_are_kept(start):
    running = start(limits=Limits(max_requests=2))
    silent = [connect(running) for _ in range(20)]
    assert [health(running).status_code for _ in range(3)] == [200]*3
    assert len(connections(running)) <= 6
    assert [read_all(sock) for sock in silent[:14]] == [b'']*14
    silent[-1].sendall(HEALTH)
    assert statuses(silent[-1].recv(999)) == [200]


def test_a_request_that_is_computed_keeps_its_connection(start):
    running = start(seconds=.5, limits=Limits(max_requests=2))
    with connect(running) as sock:
        sock.sendall(upload())
        wait_for(lambda: running.service.open_requests)
        others = [connect(running) for _ in range(20)]
        assert health(running).status_code == 200
        assert statuses(sock.recv(9999)) == [200]
    for other in others:
        other.close()


# ── where a request ends

@pytest.fixture(scope='module')
def plain(folder):
    "A service for requests that leave its state as it is."
    running = Running(folder, limits=Limits(deadline=2., max_body=100_000))
    yield running
    running.signal()
    running.join()


CHUNKED = JSON + b'Transfer-Encoding: chunked\r\n\r\n'


@pytest.mark.parametrize('request_bytes', [
    JSON + b'Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n',
    JSON + b'Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
    HEALTH[:-2] + b'Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n',
    JSON.replace(b'1.1', b'1.0') + b'Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
    JSON + b'Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n',
    JSON + b'Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n',
    JSON + b'Transfer-Encoding: xchunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n',
    JSON + b'Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}}',
    JSON + b'Content-Length: 2, 3\r\n\r\n{}}',
    JSON + b'Content-Length: +2\r\n\r\n{}',
    JSON + b'Content-Length: 0x2\r\n\r\n{}',
    JSON + b'Content-Length : 2\r\n\r\n{}',
    JSON + b'\x0bContent-Length: 2\r\n\r\n{}',
    b'GET /healthz HTTP/1.1\r\n Host: x\r\nHost: x\r\n\r\n',
    *[CHUNKED + size + b'\r\n{}\r\n0\r\n\r\n' for size in (b'-1', b'+2', b'0x2', b'g', b' 2', b'', b'1'*30)],
    CHUNKED + b'2\r\n{}XX0\r\n\r\n'])
def test_nothing_behind_a_request_with_a_doubtful_end_is_answered(plain, request_bytes):
    with connect(plain) as sock:
        sock.sendall(request_bytes + HEALTH)
        data = read_all(sock)
    assert statuses(data) == [400]
    assert b'connection: close' in data.lower()
    assert [*json.loads(data.split(b'\r\n\r\n', 1)[1])] == ['error']


@pytest.mark.parametrize('headers', [b'Content-Length: 2\r\nContent-Length: 2', b'Content-Length:\r\n 2',
                                     b'X: a\r\n\tb\r\nContent-Length: 2'])
def test_equal_lengths_and_folded_lines_mean_one_thing(plain, headers):
    with connect(plain) as sock:
        sock.sendall(JSON + headers + b'\r\n\r\n{}' + HEALTH)
        data = read_all(sock)
    assert statuses(data) == [400, 200]
    assert b'the JSON has other contents' in data


def test_bytes_that_are_not_http_after_an_early_answer(plain, caplog):
    with connect(plain) as sock:
        sock.sendall(b'POST /nowhere HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n')
        data = sock.recv(9999)
        sock.sendall(b'no size\r\n')
        data += read_all(sock)
    assert statuses(data) == [404]
    assert not caplog.records
    assert health(plain).status_code == 200


def test_a_client_that_waited_for_100_is_not_read_any_further(plain):
    with connect(plain) as sock:
        sock.sendall(JSON + b'Expect: 100-continue\r\nContent-Length: 900000\r\n\r\n')
        data = read_all(sock)
    assert statuses(data) == [413]
    assert b'connection: close' in data.lower()


def test_a_connection_goes_on_after_an_error(plain):
    with connect(plain) as sock:
        answers = b''
        for request in (JSON + b'Content-Length: 2\r\n\r\n{}', upload([b'no image']), upload(), HEALTH):
            sock.sendall(request)
            answers += sock.recv(9999)
        answers += read_all(sock)
    assert statuses(answers) == [400, 415, 200, 200]


# ── slow and half-closed

def test_slow_senders_are_ended(plain):
    begun = [b'', b'POST', JSON, JSON + b'Content-Length: 9\r\n\r\n{',
             b'POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{']
    sockets = [connect(plain) for _ in begun]
    for sock, data in zip(sockets, begun):
        sock.sendall(data)
    assert [statuses(read_all(sock)) for sock in sockets] == [[], [], [], [408], [404]]
    wait_for(lambda: not connections(plain))


def test_a_client_that_sends_a_byte_now_and_then_is_ended(plain):
    with connect(plain) as sock:
        sock.sendall(JSON)
        def trickle():
            try:
                while True:
                    sock.sendall(b'X')
                    time.sleep(.05)
            except OSError:
                pass
        thread = threading.Thread(target=trickle)
        thread.start()
        assert statuses(read_all(sock)) == []
        thread.join()


def test_a_client_that_closes_its_side_has_left(start):
    running = start(seconds=.3)
    with connect(running) as sock:
        sock.sendall(upload())
        wait_for(lambda: running.service.open_requests)
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b''
    wait_for(lambda: not running.service.open_requests)
    assert not connections(running)
    assert '{path="/predict",status="499"} 1' in running.service.metrics.text().decode()


# ── draining

def test_while_it_drains_every_answer_closes_its_connection(folder):
    running = Running(folder, seconds=.5)
    old = connect(running)
    old.sendall(HEALTH)
    old.recv(999)
    running.send(1)
    running.signal()
    with old:
        old.sendall(upload())
        data = [read_all(old)]
    for request in (upload(), HEALTH, upload()):
        with connect(running) as sock:
            sock.sendall(request + HEALTH)
            data.append(read_all(sock))
    running.join()
    assert [statuses(answer) for answer in data] == [[503]]*4
    assert all(b'connection: close' in answer.lower() for answer in data)
    assert running.codes == [200]


# ── what is not answered

@pytest.mark.parametrize('path', ['/docs', '/redoc', '/docs/oauth2-redirect'])
def test_no_page_loads_from_elsewhere(plain, path):
    assert httpx.get(plain.url + path, verify=False).status_code == 404


def test_the_description_names_no_other_site(plain):
    assert '://' not in httpx.get(f'{plain.url}/openapi.json', verify=False).text


# ── numbers and hosts that cannot be

COUNTS = ['--threads', '--workers', '--decode-threads', '--max-batch', '--max-images', '--max-requests', '--max-queue']
POSITIVE, NOT_NEGATIVE = ['--max-body', '--max-pixels', '--deadline'], ['--max-wait', '--grace']
WRONG = [*[(name, value) for name in [*COUNTS, *POSITIVE] for value in ('0', '-1', 'nan', 'inf')],
         *[(name, value) for name in NOT_NEGATIVE for value in ('-1', 'nan', 'inf', '-inf')],
         *[('--port', value) for value in ('-1', '65536', 'nan', '99999999999')]]


@pytest.mark.parametrize('name, value', WRONG)
def test_wrong_numbers_of_a_service(folder, name, value):
    check_refused(name.removeprefix('--') if name == '--port' else name, 'serve', folder, f'{name}={value}')


@pytest.mark.parametrize('name, value', [
    *[(name, value) for name in ('--topk', '--batch-size') for value in ('0', '-1', 'nan', 'inf')],
    *[('--timeout', value) for value in ('0', '-1', 'nan', 'inf')], ('--retries', '-1'), ('--retries', 'nan')])
def test_wrong_numbers_of_a_client(name, value):
    check_refused(name, 'client', 'rose.jpg', f'{name}={value}')


NAN, INF = float('nan'), float('inf')


@pytest.mark.parametrize('value', [NAN, INF, -INF, -1, 0, None, '3', 1.5, True])
@pytest.mark.parametrize('name', ['max_body', 'max_images', 'max_pixels', 'max_requests', 'max_queue'])
def test_wrong_limits(name, value):
    with pytest.raises(PPClsError, match=f'^{name} '):
        Limits(**{name: value})


@pytest.mark.parametrize('value', [NAN, INF, -INF, -1, '3'])
def test_wrong_numbers_of_functions(folder, value):
    service = Predictor(folder)
    calls = {
        'deadline': lambda: Limits(deadline=value),
        'max_wait': lambda: Batcher(len, max_wait=value),
        'max_batch': lambda: Batcher(len, max_batch=value),
        'decode_threads': lambda: create_app(service, decode_threads=value),
        'grace': lambda: serve(service, port=0, grace=value),
        'port': lambda: take_port('127.0.0.1', value),
        'timeout': lambda: ServiceClient(9292, timeout=value),
        'retries': lambda: ServiceClient(9292, retries=value),
        'batch_size': lambda: list(ServiceClient(9292).stream(['a.jpg'], batch_size=value))}
    for name, call in calls.items():
        with pytest.raises(PPClsError, match=f'^{name} '):
            call()
    with pytest.raises(PPClsError, match='^grace '):
        Server(create_app(service), grace=value)


def test_numbers_that_are_checked():
    assert check_number('n', 0) == 0
    assert check_number('n', 1e300) == 1e300
    for value in (True, 2.5, None, NAN):
        with pytest.raises(PPClsError, match='^n .*: expected a whole number of 1 or more$'):
            check_number('n', value, 1, whole=True)


@pytest.mark.parametrize('host', ['', 'nowhere.invalid', '256.1.1.1', 'a'*70, 'a..b', 'x\0y', ' ', '[::1', 'http://x'])
def test_hosts_that_cannot_be(folder, host):
    check_refused('host' if not host else 'cannot listen on it', 'serve', folder, '--port', 0, '--host', host)


@pytest.mark.skipif(not shutil.which('openssl'), reason='makes the certificate')
def test_a_server_with_a_certificate_answers(folder, tmp_path):
    subprocess.run(['openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-subj', '/CN=127.0.0.1', '-keyout',
                    str(tmp_path/'key.pem'), '-out', str(tmp_path/'cert.pem')], check=True, capture_output=True)
    server = Server(create_app(Predictor(folder)), ssl_certfile=tmp_path/'cert.pem', ssl_keyfile=tmp_path/'key.pem')
    with take_port('127.0.0.1', 0) as sock:
        thread = threading.Thread(target=server.run, args=([sock],))
        thread.start()
        url = f'https://127.0.0.1:{sock.getsockname()[1]}'
        try:
            with httpx.Client(verify=False, trust_env=False, timeout=SAFETY) as client:
                for _ in range(2):
                    answer = client.post(f'{url}/predict', files={'image': JPEG}, params={'topk': 4})
                    assert answer.status_code == 200
                    assert len(answer.json()['predictions'][0]['top']) == 4
                assert len(client.get(f'{url}/openapi.json').content) > 1000
        finally:
            server.handle_exit(signal.SIGTERM, None)
            thread.join()
    assert server.unanswered == 0


def test_a_progressive_jpeg_counts_with_its_coefficients(plain):
    file = io.BytesIO()
    Image.new('RGB', (64, 64)).save(file, 'JPEG', subsampling='4:4:4', progressive=True)
    data, (_, _, at) = file.getvalue(), image_header(file.getvalue())
    large = data[:at+5] + (5000).to_bytes(2, 'big')*2 + data[at+9:]
    answers = [httpx.post(f'{plain.url}/predict', files={'image': body}, timeout=SAFETY) for body in (data, large)]
    assert [answer.status_code for answer in answers] == [200, 413]
    assert 'of several scans (progressive) with 5000 x 5000 pixels' in answers[1].json()['error']
