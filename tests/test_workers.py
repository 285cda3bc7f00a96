"""A service of several processes: they share the port, the limits and the metrics, end together, and one that is killed
is replaced."""
import multiprocessing, os, re, signal, subprocess, sys, threading, time

import ppcls_nb  # before paddle: sets the threads
import cv2, httpx, numpy as np, paddle, pytest

from ppcls_nb.basics import PPClsError
from ppcls_nb.data.imaug import eval_ops
from ppcls_nb.deploy.export import export_model
from ppcls_nb.deploy.predict import Predictor
from ppcls_nb.deploy.workers import _serve_until_told, serve_workers
from ppcls_nb.models import build_model
from running_service import Running
from small_run import check_refused

JPEG = cv2.imencode('.jpg', np.full((40, 40, 3), 99, np.uint8))[1].tobytes()
SCRIPT = '''
import sys
from functools import partial
from ppcls_nb.deploy.limits import Limits
from ppcls_nb.deploy.workers import _serve_until_told, serve_workers
from slow_network import slow
if __name__ == '__main__':
    folder, seconds, requests, grace = sys.argv[1], *map(float, sys.argv[2:])
    serve_workers(folder, 2, port=0, grace=grace, print_line=partial(print, flush=True), threads=1,
                  extend=partial(slow, seconds=seconds), limits=Limits(max_requests=int(requests)))
'''
posix = pytest.mark.skipif(os.name == 'nt', reason='processes have no signals on Windows')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    paddle.seed(0)
    network = build_model('MobileNetV1_x0_25', class_num=4)
    return export_model(network, tmp_path_factory.mktemp('served')/'flowers', eval_ops(32))


class Service:
    "A service of two workers in processes of their own; each run of the network takes `seconds`."
    def __init__(self, folder, home, seconds=0., requests=64, grace=30.):
        script = home/'service.py'
        script.write_text(SCRIPT)
        path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
        command = [sys.executable, str(script), str(folder), str(seconds), str(requests), str(grace)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                        env={**os.environ, 'PYTHONPATH': path}, start_new_session=True)
        self.first_line = self.process.stdout.readline()
        assert self.first_line, self.process.stderr.read()
        self.url = re.search(r'http://\S+(?=/predict)', self.first_line)[0]
        self.codes, self.threads = [], []

    def get(self, path): return httpx.get(f'{self.url}{path}', timeout=60, trust_env=False)

    def post(self):
        try:
            answer = httpx.post(f'{self.url}/predict', files={'image': JPEG}, timeout=60, trust_env=False)
            self.codes.append(answer.status_code)
        except httpx.TransportError:      # the connection was lost
            self.codes.append(None)

    def send(self, n):
        "Send n requests at once, in threads; wait until they are open."
        for _ in range(n):
            self.threads.append(threading.Thread(target=self.post))
            self.threads[-1].start()
        while self.metric('requests_in_progress') + len(self.codes) < n:
            time.sleep(.02)

    def metric(self, name):
        found = re.search(rf'^ppcls_{name} (\S+)$', self.get('/metrics').text, re.M)
        return float(found[1]) if found else 0.

    def pids(self):
        "The process numbers of the two workers."
        found = set()
        while len(found) < 2:
            found.add(int(self.get('/pid').text))
        return found

    def end(self):
        "(standard output, error output) up to the end of the process."
        for thread in self.threads:
            thread.join()
        return self.process.communicate(timeout=120)


@pytest.fixture
def start(folder, tmp_path):
    started = []

    def start(**settings):
        started.append(Service(folder, tmp_path, **settings))
        return started[-1]
    yield start
    for service in started:
        if service.process.poll() is None:
            service.process.kill()
            service.process.communicate()


@posix
def test_two_workers_are_one_service(start):
    service = start(seconds=1., requests=3)
    assert '2 workers' in service.first_line
    before = service.pids()
    service.send(7)      # at most three at once, whichever worker they come to
    open_requests = {service.metric('requests_in_progress') for _ in range(6)}
    for thread in service.threads:
        thread.join()
    os.kill(min(before), signal.SIGKILL)
    after = service.pids()
    service.codes, codes = [], sorted(service.codes)
    service.send(3)
    os.killpg(service.process.pid, signal.SIGINT)      # as a terminal does
    out, err = service.end()
    assert max(open_requests) <= 3
    assert codes == [200]*3 + [503]*4
    assert len(after - before) == 1
    assert service.codes == [200]*3
    assert service.process.returncode == 0
    assert 'no requests left unanswered' in out
    assert err.count('a worker ended unexpectedly (exit code -9) and is replaced') == 1
    assert 'Traceback' not in err


@posix
def test_workers_end_with_their_parent(start):
    service = start()
    service.pids()
    service.process.kill()
    service.process.communicate(timeout=120)      # the workers have its pipes, too: they have ended
    with pytest.raises(httpx.ConnectError):
        service.get('/healthz')


@pytest.mark.parametrize('say', [lambda pipe: pipe.send('end'), lambda pipe: pipe.close()], ids=['told', 'parent gone'])
def test_requests_that_take_longer_than_the_grace_period(folder, say):
    running = Running(folder, seconds=1.5, grace=.1, run=False)
    ours, theirs = multiprocessing.Pipe()
    running.run(lambda: _serve_until_told(theirs, running.server, running.socket))
    running.send(1)
    say(ours)
    running.join()
    assert running.codes == [504]
    assert running.server.unanswered == 1


def test_a_network_that_cannot_be_loaded(tmp_path, folder):
    check_refused('no such folder', 'serve', tmp_path/'nothing', '--port', 0, '--workers', 2)
    with pytest.raises(PPClsError, match='expected the folder of an export, not a Predictor'):
        serve_workers(Predictor(folder), 2, port=0)
    with pytest.raises(PPClsError, match='workers 0: expected a whole number of 1 or more'):
        serve_workers(folder, 0, port=0)


@pytest.mark.skipif(paddle.is_compiled_with_cuda(), reason='this Paddle supports GPUs')
@pytest.mark.parametrize('options, message', [
    (['--use_gpu'], 'use_gpu: this Paddle'), (['--use_gpu', '--workers', 2], 'use_gpu: this Paddle'),
    (['--use_gpu', '--engine', 'onnx'], 'only with the engine paddle'),
    (['--gpu_mem', 100], 'gpu_mem: only with use_gpu')])
def test_a_gpu_that_is_not_there(folder, options, message):
    check_refused(message, 'serve', folder, '--port', 0, *options)
