"""A real server process: 1,000 malformed requests do not harm it and reveal nothing about it, and after a signal it
answers everything that it accepted.

The requests come from a seeded generator: `pytest tests/test_serve.py`; another seed, or more of them:
PPCLS_FUZZ=7:20000. Each carries a secret that no answer may repeat."""
import base64, gzip, http.client, io, json, os, random, re, signal, socket, struct, subprocess, sys, time, zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ppcls_nb  # before paddle: sets the threads
import cv2, numpy as np, paddle, pytest
from PIL import Image

from ppcls_nb.data.imaug import eval_ops
from ppcls_nb.deploy.export import export_model
from ppcls_nb.deploy.predict import Predictor
from ppcls_nb.models import create_model

SEED, COUNT = map(int, os.environ.get('PPCLS_FUZZ', '0:1000').split(':'))
SECRET, MB, PIXELS = 'swordfish', 1 << 20, 1_000_000
LEAKS = re.compile(
    r'Traceback|File "|\.py|site-packages|/etc|passwd|root:|ppcls_|inference\.|/usr|/home|/tmp|OpenCV|cv2|PIL|libpng|' +
    SECRET, re.I)
START = "import sys, ppcls_nb.cli as c; sys.exit(c.main(sys.argv[1:]))"


class Service:
    "`ppcls serve` in a process of its own, on a free port."
    def __init__(self, folder, log, *options):
        self.folder, self.log = folder, log
        self.process = subprocess.Popen([sys.executable, '-c', START, 'serve',
                                         str(folder), '--port', '0', *options], stdout=subprocess.PIPE,
                                        stderr=open(log, 'w'), text=True)
        self.port = int(re.search(r':(\d+)/predict', self.process.stdout.readline())[1])

    def connect(self): return socket.create_connection(('127.0.0.1', self.port), timeout=20)

    def ask(self, raw):
        "(status, headers, body) of the answer to the bytes `raw`; status None if the connection is closed without one."
        with self.connect() as sock:
            try: sock.sendall(raw)
            except OSError: pass                                             # refused while it was sent
            return read_answer(sock)

    def get(self, path): return self.ask(f'GET {path} HTTP/1.1\r\nHost: x\r\n\r\n'.encode())
    def metric(self, name): return float(re.search(rf'^{name} (\S+)', self.get('/metrics')[2].decode(), re.M)[1])

    def memory(self, key):
        "Bytes, from the kernel; 0 where it does not report them."
        status = Path(f'/proc/{self.process.pid}/status')
        return int(re.search(rf'{key}:\s+(\d+)', status.read_text())[1])*1024 if status.exists() else 0

    def close(self):
        if self.process.poll() is None: self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def read_answer(sock):
    response = http.client.HTTPResponse(sock)
    try:
        response.begin()
        return response.status, response.headers, response.read()
    except (OSError, http.client.HTTPException): return None, {}, b''


def post(body, kind, path='/predict', **headers):
    lines = {
        'Host': 'x',
        'Content-Type': kind,
        'Content-Length': len(body),
        **{
            k.replace('_', '-'): v
            for k, v in headers.items()}}
    return (f'POST {path} HTTP/1.1\r\n'.encode() +
            b''.join(f'{k}: {v}\r\n'.encode() for k, v in lines.items() if v is not None) + b'\r\n' + body)


def form(*files, name='a.jpg', boundary='frontier'):
    part = (f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
            'Content-Type: image/jpeg\r\n\r\n').encode()
    return b''.join(part + f + b'\r\n' for f in files) + f'--{boundary}--\r\n'.encode()


FORM = 'multipart/form-data; boundary=frontier'
def upload(*files, path='/predict', **kw): return post(form(*files, **kw), FORM, path)
def upload_json(value, **kw):
    return post(value if isinstance(value, bytes) else json.dumps(value).encode(), 'application/json', **kw)


def photos():
    picture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (120, 160, 3), np.uint8), (0, 0), 3)
    return {end: cv2.imencode(end, picture)[1].tobytes() for end in ('.jpg', '.png', '.webp', '.bmp')}


def chunk(kind, body): return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))


def png(w, h, *extra, data=b''):
    return (b'\x89PNG\r\n\x1a\n' + b''.join([
        chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 8, 2, 0, 0, 0)), *extra,
        chunk(b'IDAT', data or zlib.compress(bytes(1000))),
        chunk(b'IEND', b'')]))


def saved(kind, *images, **kw):
    out = io.BytesIO()
    images[0].save(out, kind, **({'save_all': True, 'append_images': images[1:]} if len(images) > 1 else {}), **kw)
    return out.getvalue()


def bombs(good):
    "Small files that become large, or pretend to."
    flat, small = Image.new('RGB', (3000, 3000)), [Image.new('RGB', (16, 16), c) for c in ('red', 'blue')]
    jpeg = bytearray(good['.jpg'])
    at = jpeg.index(b'\xff\xc0')
    jpeg[at+5:at+9] = b'\xff'*4
    bmp = bytearray(good['.bmp'])
    bmp[18:26] = struct.pack('<ii', 60_000, 60_000)
    vp8x = b'VP8X' + struct.pack('<I', 10) + bytes(4) + b'\xfe\x3f\x00'*2
    return [
        png(60_000, 60_000),
        png(2**31 - 1, 2**31 - 1),
        saved('PNG', flat),
        saved('JPEG', flat),
        saved('WEBP', flat),
        saved('GIF', *[flat.resize((400, 400))]*2),
        saved('PNG', *small),
        saved('WEBP', *small),
        bytes(jpeg),
        bytes(bmp), b'RIFF' + struct.pack('<I', 4 + len(vp8x)) + b'WEBP' + vp8x,
        png(9, 9, *[chunk(b'zTXt', b'a\0\0' + zlib.compress(bytes(8 << 20)))]*9),
        png(9, 9, chunk(b'iCCP', b'a\0\0' + zlib.compress(bytes(64 << 20)))),
        good['.png'][:33] + b'\x6a' + good['.png'][34:], good['.jpg'][:-2] + b'\xff\xda\x00\x02'*5000 + b'\xff\xd9',
        gzip.compress(bytes(32 << 20)), b'PK\x03\x04' + gzip.compress(bytes(32 << 20))]


def cut(rng, data): return data[:rng.randrange(1, len(data)*9//10)]


def flip(rng, data):
    "Some bytes changed."
    data = bytearray(data)
    for _ in range(rng.choice((1, 3, 30))): data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def noise(rng, n=2000): return rng.randbytes(rng.randrange(n))


def generator(rng, good, bombs):
    "{kind: function that gives the bytes of a malformed request}."
    image, secret, one = (lambda: rng.choice([*good.values()])), SECRET.encode(), rng.choice
    text = lambda data: base64.b64encode(data).decode()
    tricks = [
        '../../../etc/passwd', '/etc/passwd', '..\\..\\windows\\win.ini', 'file:///etc/passwd', 'http://127.0.0.1/',
        '/proc/self/environ', '%2e%2e%2fetc%2fpasswd', 'a\0.jpg', 'con', '~root', '|id', '$(id)', "';drop table",
        '{{7*7}}', '<script>']
    alien = [
        secret + b' text', b'%PDF-1.7 ' + secret, b'\x7fELF' + secret, b'GIF89a' + secret, b'II*\0' + secret,
        b'<svg>' + secret, b'PK\x03\x04' + secret, b'\x1f\x8b' + secret, b'\xff\xd8\xff' + secret,
        b'\x89PNG\r\n\x1a\n' + secret, b'BM' + secret, b'RIFF' + secret, b'']
    jpeg = text(good['.jpg'])
    values = [
        None, True, 3, 10**400, [], {}, '', SECRET, [SECRET],
        {'image': None}, {'image': 3}, {'image': SECRET + '!'}, {'image': jpeg[:-3]},
        {'images': {}}, {'images': [[]]}, {'images': SECRET}, {'images': []}, {'images': [None]},
        {'images': [text(secret)]}, {'images': ['é']}, {'images': [jpeg]*99},
        {'files': []}, {'image': jpeg, 'path': '/etc/passwd'}, *({'image': t} for t in tricks)]
    raw_json = [
        b'', b'{', b'['*200_000, b'{"a":'*50_000, b'NaN', b'9'*9999, b'\xff\xfe\0', b'"\\ud800"',
        b'{"image": "' + secret, b'\0'*99, b'{"images": ["' + b'A'*999_999 + b'"]}', b'[' + b'0,'*400_000 + b'0]']
    headers = [
        dict(Content_Length='-1'),
        dict(Content_Length='1e3'),
        dict(Content_Length='5, 7'),
        dict(Content_Length='99999999999999999999'),
        dict(Content_Length=2*MB),
        dict(Content_Length=None),
        dict(Transfer_Encoding='chunked'),
        dict(Transfer_Encoding='gzip'),
        dict(Transfer_Encoding='chunked', Content_Length=None),
        dict(Content_Length='3'),
        dict(Content_Encoding='gzip'),
        dict(Content_Encoding=SECRET),
        dict(Expect='100-continue', Content_Length=9*MB),
        dict(Expect=SECRET),
        dict(Host='x\r\nX: ' + 'y'*100_000),
        dict(Host=None),
        dict(Host='a\0b'),
        dict(X='\x01'), {
            f'X{i}': i
            for i in range(3000)},
        dict(Upgrade='h2c', Connection='Upgrade'),
        dict(Range='bytes=0-'),
        dict(Connection=SECRET),
        dict(Cookie='a'*9000),
        dict(Content_Length='\u0663')]
    kinds = [
        'text/plain', '', SECRET, 'multipart/form-data', 'multipart/form-data; boundary=', 'multipart/form-data; '
        'boundary="' + 'b'*999, 'multipart/form-data; boundary=frontier; charset=' + SECRET,
        'multipart/mixed; boundary=frontier', 'application/x-www-form-urlencoded', 'application/json; charset=utf-7',
        'image/jpeg', 'a'*5000]
    parts = [
        form(*[b'x']*2000),
        form(),
        form(good['.jpg'])[:-9],
        form(good['.jpg'], boundary='other'), b'--frontier\r\n\r\n' + secret,
        b'--frontier\r\nContent-Disposition: form-data; name="image"\r\n\r\n@photo.jpg\r\n--frontier--\r\n',
        b'--frontier\r\n' + b'A: b\r\n'*5000 + b'\r\n',
        b'--frontier\r\nContent-Disposition: form-data; filename*=utf-8\'\'%ff%fe; '
        b'name=image\r\n\r\nx\r\n--frontier--\r\n',
        b'--frontier\r\nContent-Disposition: ' + secret + b'\r\n\r\n\r\n--frontier--', b'--frontier--',
        b'--frontier' + bytes(9), b'--frontier\r\nContent-Type\r\n\r\n\r\n', b'\r\n'*9999]
    paths = [
        '/', '/predict/', '/predict/../healthz', '//predict', '/%00', '/../../../etc/passwd',
        '/%2e%2e/%2e%2e/etc/passwd', '/static/inference.yml', '/inference.pdiparams', '/' + 'a'*9000, '/predict?topk=0',
        '/predict?topk=-3', '/predict?topk=' + '9'*5000, '/predict?topk=' + SECRET, '/predict?topk=1e3',
        '/predict?topk=', '*', 'http://elsewhere/', '/.git/config', '/metrics/x', '/%ff']
    methods = [
        'GET', 'PUT', 'DELETE', 'PATCH', 'OPTIONS', 'HEAD', 'TRACE', 'CONNECT', 'PROPFIND',
        SECRET.upper(), 'post', 'G\0T', '']
    def endless(kind, size, n):
        head = (f'POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n'
                'Transfer-Encoding: chunked\r\n\r\n').encode()
        return head + (f'{size:x}\r\n'.encode() + bytes(size) + b'\r\n')*n

    def other_method():
        path = one(['/predict', '/healthz', *paths])
        return f'{one(methods)} {path} HTTP/1.1\r\nHost: x\r\n\r\n'.encode()

    return {
        'cut': lambda: upload(cut(rng, image())),
        'cut, second': lambda: upload(image(), cut(rng, image())),
        'cut, JSON': lambda: upload_json({'image': text(cut(rng, image()))}),
        'flipped': lambda: upload(flip(rng, image())),
        'flipped request': lambda: flip(rng, upload(image())),
        'wrong type': lambda: upload(one(alien)),
        'wrong type, JSON': lambda: upload_json({'images': [text(one(alien))]}),
        'noise': lambda: upload(noise(rng)),
        'bomb': lambda: upload(one(bombs)),
        'bomb, JSON': lambda: upload_json({'image': text(one(bombs))}),
        'values': lambda: upload_json(one(values)),
        'raw JSON': lambda: upload_json(one(raw_json)),
        'noise, JSON': lambda: upload_json(noise(rng)),
        'names': lambda: upload(one(alien), name=one(tricks) + SECRET),
        'headers': lambda: post(form(image()), FORM, **one(headers)),
        'kinds': lambda: post(form(image()), one(kinds)),
        'parts': lambda: post(one(parts), FORM),
        'flipped form': lambda: post(flip(rng, form(image()[:300])), FORM),
        'paths': lambda: upload(image(), path=one(paths)),
        'methods': other_method,
        'huge': lambda: upload(bytes(one((MB + 1, 3*MB)))),
        'endless': lambda: endless(one((FORM, 'application/json')), one((1, 100_000)), 30),
        'no HTTP': lambda: one((noise(rng), b'GET /no HTTP/9.9\r\n\r\n', b'\x16\x03\x01' + noise(rng), b'SSH-2.0-x\r\n',
                                b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', b'GET /\r\n\r\n', b'\r\n'*50)),
        'zip': lambda: upload_json(gzip.compress(b'{"image": "' + bytes(1 << 20)), Content_Encoding='gzip')}


# of these some are no errors after all, such as a JPEG with one byte changed
FINE = {
    'cut', 'cut, second', 'cut, JSON', 'flipped', 'flipped request', 'flipped form', 'headers', 'kinds', 'bomb',
    'bomb, JSON', 'methods', 'paths', 'values'}
# for these the connection may be closed without an answer
MAY_BE_CLOSED = {'flipped request', 'headers', 'no HTTP', 'huge', 'endless', 'flipped form', 'methods'}
REFUSED = {400, 404, 405, 408, 413, 415, 422, 503}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    paddle.seed(0)
    return export_model(create_model('MobileNetV1_x0_25', class_num=4),
                        tmp_path_factory.mktemp('served')/SECRET, eval_ops(32), list('abcd'))


@pytest.fixture
def service(folder, tmp_path, request):
    s = Service(folder, tmp_path/'log', *request.param)
    yield s
    s.close()


def rows(answer):
    return [[(t['label'], round(t['score'], 4)) for t in p['top']] for p in json.loads(answer[2])['predictions']]


def problem_with(kind, answer):
    "What is wrong with the answer to a malformed request of this kind, or None."
    status, headers, body = answer
    text = f'{dict(headers)}{body.decode("utf-8", "replace")}'
    if status is None:
        return None if kind in MAY_BE_CLOSED else 'no answer'
    if status == 200:
        return None if kind in FINE else 'accepted'
    if status not in REFUSED:
        return f'status {status}'
    leak = LEAKS.search(text)
    if leak:
        return f'reveals {leak[0]!r}: {text}'
    if body and [*json.loads(body)] != ['error']:
        return f'not an error as JSON: {text}'
    return None


@pytest.mark.parametrize('service', [
    ('--max-body', '1', '--max-images', '4', '--max-pixels', '1', '--deadline', '2', '--decode-threads', '2')],
    indirect=True)
def test_malformed_requests_do_no_harm_and_reveal_nothing(service):
    good, rng = photos(), random.Random(SEED)
    direct = [[(k, round(s, 4)) for k, _, s in top] for top in Predictor(service.folder)(list(good.values()))]
    assert rows(service.ask(upload(*good.values()))) == direct
    make = generator(rng, good, bombs(good))
    kinds = [*make]
    cases = [(kind, make[kind]()) for kind in (kinds[i % len(kinds)] for i in range(COUNT))]
    half = len(cases)//2

    def send(case):
        kind, request = case
        answer = service.ask(request)
        return kind, problem_with(kind, answer), answer[0]

    with ThreadPoolExecutor(16) as pool:
        results = [*pool.map(send, cases[:half])]
        used = service.memory('VmRSS')
        results += [*pool.map(send, cases[half:])]
    assert not {(kind, problem) for kind, problem, _ in results if problem}
    assert service.process.poll() is None
    assert {400, 404, 405, 413, 415, 422} <= {status for *_, status in results}
    assert rows(service.ask(upload(*good.values()))) == direct
    assert service.metric('ppcls_requests_in_progress') == service.metric('ppcls_queue_images') == 0
    log = service.log.read_text()
    assert 'Traceback' not in log
    assert SECRET not in log
    assert service.memory('VmRSS') < used + 100*MB
    assert service.memory('VmHWM') < used + 200*MB


@pytest.mark.skipif(os.name == 'nt', reason='no SIGTERM')
@pytest.mark.parametrize('service', [('--max-requests', '8')], indirect=True)
def test_a_signal_lets_it_answer_what_it_accepted(service):
    good = photos()['.jpg']
    whole, alone = upload(good), rows(service.ask(upload(good)))
    half = len(whole)//2
    sockets = [service.connect() for _ in range(8)]
    for sock in sockets: sock.sendall(whole[:half])
    while service.metric('ppcls_requests_in_progress') < 8: time.sleep(.01)
    status, headers, body = service.ask(whole)                               # there are 8 requests already
    assert status == 503
    assert headers['Retry-After'] == '1'
    assert b'busy' in body
    assert service.get('/healthz')[0] == 200
    service.process.send_signal(signal.SIGTERM)
    while service.get('/healthz')[0] != 503: time.sleep(.01)
    status, headers, body = service.ask(whole)
    assert status == 503
    assert headers['Retry-After'] == '1'
    assert b'draining' in body
    for sock in sockets: sock.sendall(whole[half:])
    assert [rows(read_answer(sock)) for sock in sockets] == [alone]*8
    for sock in sockets: sock.close()
    assert service.process.wait(20) == 0
    assert 'no requests left unanswered' in service.process.stdout.read()
