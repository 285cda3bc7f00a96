"The server in a thread and the client with a fake service: ports, draining, idle connections; retries and refusals."
import base64, json, logging, socket, threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import ppcls_nb  # before paddle: sets the threads
import httpx, paddle, pytest

from ppcls_nb.basics import PPClsError
from ppcls_nb.data.imaug import eval_ops
from ppcls_nb.deploy.client import ServiceClient, ServiceError, service_url
from ppcls_nb.deploy.export import export_model
from ppcls_nb.deploy.limits import Limits
from ppcls_nb.deploy.server import serve, take_port
from ppcls_nb.models import build_model
from running_service import Running

logging.getLogger('httpx').setLevel(logging.ERROR)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    paddle.seed(0)
    return export_model(build_model('MobileNetV1_x0_25', class_num=4), tmp_path_factory.mktemp('served')/'flowers',
                        eval_ops(32))


def test_a_signal_lets_it_answer_open_requests_and_refuse_new_ones(folder):
    running = Running(folder, seconds=1.)
    running.send(3)
    running.signal()
    late, health = running.post(), httpx.get(f'{running.url}/healthz', verify=False)
    running.join()
    assert running.codes == [200]*3
    assert late.status_code == health.status_code == 503
    assert running.server.unanswered == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(running.url)


def test_requests_that_take_longer_than_the_grace_period(folder):
    running = Running(folder, seconds=2., grace=.1)
    running.send(1)
    running.signal()
    running.join()
    assert running.codes == [504]
    assert running.server.unanswered == 1


def test_idle_connections_and_other_protocols(folder):
    running = Running(folder, limits=Limits(deadline=.1))
    with socket.create_connection(running.address, timeout=20) as loris:
        loris.sendall(b'POST /predict HTT')
        assert loris.recv(99) == b''
    with socket.create_connection(running.address, timeout=20) as stranger:
        stranger.sendall(b'\x16\x03\x01 hello?\r\n\r\n')
        reply = stranger.makefile('rb').read()
    running.signal()
    running.join()
    assert reply.startswith(b'HTTP/1.1 400')
    assert json.loads(reply.split(b'\r\n\r\n')[1]) == {'error': 'not an HTTP request'}


def test_ports_and_times_that_cannot_be(folder):
    with pytest.raises(PPClsError, match='port -1: expected 0 to 65535'):
        take_port('127.0.0.1', -1)
    with take_port('127.0.0.1', 0) as taken:
        with pytest.raises(PPClsError, match='cannot listen on it: '):
            serve(folder, port=taken.getsockname()[1])
    with pytest.raises(PPClsError, match='grace -1: expected a number of 0 or more'):
        serve(folder, grace=-1)


@pytest.mark.parametrize('address', ['9292', 9292, 'http://127.0.0.1:9292/predict', '127.0.0.1:9292/'])
def test_addresses(address):
    assert service_url(address) == 'http://127.0.0.1:9292'


@pytest.mark.parametrize('address', ['ftp://x', '', 'http://x:port'])
def test_what_is_no_address(address):
    with pytest.raises(PPClsError, match='not an address of a service'):
        service_url(address)


@pytest.fixture
def fake():
    "A service that is busy for `busy` requests and logs the number of files in each."
    class FakeService(BaseHTTPRequestHandler):
        busy, requests, password, refused = 0, [], None, 401

        def do_POST(self):
            body = self.rfile.read(int(self.headers['Content-Length']))
            count = body.count(b'filename=')
            FakeService.requests.append(count)
            FakeService.host = self.headers['Host']
            if FakeService.password and self.headers['Authorization'] != FakeService.password:
                self.send(FakeService.refused, [])
            elif FakeService.busy:
                FakeService.busy -= 1
                self.send(503, {'error': 'busy'})
            elif b'broken' in body:
                self.send(422, {'error': f'image {int(b"rose" in body)}: damaged'})
            elif b'other' in body:
                self.send(200, ['something else'])
            elif b'silent' in body:
                self.send(400, [])
            else:
                self.send(200, {'predictions': [{'top': [{'label': 7, 'name': 'rose', 'score': .9}]}]*count})

        def send(self, status, answer):
            self.send_response(status)
            self.send_header('Retry-After', '0')
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_): pass

    server = HTTPServer(('127.0.0.1', 0), FakeService)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    FakeService.port = server.server_port
    yield FakeService
    server.shutdown()
    server.server_close()


def test_a_client_retries_and_sends_files_alone_after_a_refusal(fake):
    fake.busy, failed = 1, {}
    with ServiceClient(fake.port) as client:
        assert client([b'rose', b'rose']) == [[(7, 'rose', .9)]]*2
        found = list(client.stream([b'rose', b'broken', b'rose 2', 'nothing.jpg'], batch_size=3, failed=failed))
    assert [file for file, _ in found] == [b'rose', b'rose 2']
    assert fake.requests == [2, 2, 3, 1, 1, 1]
    assert failed == {b'broken': 'damaged', 'nothing.jpg': 'No such file or directory'}


def test_errors_of_a_service(fake):
    with ServiceClient(fake.port) as client:
        with pytest.raises(ServiceError, match='image 0: damaged') as e:
            client([b'broken'])
        assert e.value.status == 422
        with pytest.raises(PPClsError, match='the answer is not that of ppcls serve'):
            client([b'other'])
        with pytest.raises(ServiceError, match='HTTP status 400 Bad Request, without a reason'):
            client([b'silent'])
        fake.busy = 9
        with pytest.raises(ServiceError, match='busy'):
            client([b'rose'])
        with pytest.raises(ServiceError, match='busy'):
            list(ServiceClient(fake.port, retries=0).stream([b'rose', b'rose']))


def test_a_password_is_sent_and_not_printed(fake, capsys):
    fake.password = f'Basic {base64.b64encode(b"anna:pass word").decode()}'
    with ServiceClient(f'http://anna:pass%20word@127.0.0.1:{fake.port}/predict') as client:
        assert client([b'rose']) == [[(7, 'rose', .9)]]
        assert fake.host == f'127.0.0.1:{fake.port}'
        with pytest.raises(PPClsError) as e:
            client([b'other'])
    assert 'pass' not in str(e.value)
    with take_port('127.0.0.1', 0) as sock:
        port = sock.getsockname()[1]
    with pytest.raises(PPClsError, match=f'^http://127.0.0.1:{port}: cannot be reached'):
        ServiceClient(f'http://anna:word@127.0.0.1:{port}')([b'rose'])


@pytest.mark.parametrize('status', [401, 403, 404, 407, 429, 302])
def test_what_is_not_the_fault_of_an_image_ends_the_work(fake, status):
    fake.password, fake.refused, failed = 'Basic x', status, {}
    with ServiceClient(fake.port) as client, pytest.raises(ServiceError, match=f'HTTP status {status} '):
        list(client.stream([b'rose', b'rose 2'], failed=failed))
    assert fake.requests == [2]
    assert failed == {}


def test_a_service_that_cannot_be_reached():
    with take_port('127.0.0.1', 0) as sock:
        port = sock.getsockname()[1]
    with pytest.raises(PPClsError, match='cannot be reached .*start a service with: ppcls serve DIR'):
        ServiceClient(port)([b'rose'])
