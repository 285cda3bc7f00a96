"`ppcls serve` and `ppcls client`: a service in another process predicts as the network does; mistakes in one line."
import json, os, re, subprocess, sys
from types import SimpleNamespace

import cv2, numpy as np, paddle, pytest

from ppcls_nb.basics import PPClsError
from ppcls_nb.cli.serve import require_packages
from ppcls_nb.data.imaug import eval_ops
from ppcls_nb.deploy.export import export_model
from ppcls_nb.deploy.predict import Predictor
from ppcls_nb.models import build_model
from small_run import check_refused, ppcls


@pytest.fixture(scope='module')
def service(tmp_path_factory):
    "An exported network, three images, one file that is no image, and a service at `url`."
    work, rng = tmp_path_factory.mktemp('service'), np.random.default_rng(0)
    paddle.seed(0)
    folder = export_model(build_model('MobileNetV1_x0_25', class_num=4), work/'flowers', eval_ops(32),
                          ['daisy', 'poppy', 'great mullein', 'gentian'])
    pictures = [work/f'{i}.png' for i in range(3)]
    for file in pictures:
        noise = rng.integers(0, 255, (60, 80, 3), np.uint8)
        cv2.imwrite(str(file), cv2.GaussianBlur(noise, (0, 0), 6))
    (work/'broken.jpg').write_bytes(b'no image')
    command = [sys.executable, '-m', 'ppcls_nb', 'serve', str(folder), '--port', '0', '--max-images', '3']
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    url = re.search(r'http://\S+', process.stdout.readline())[0]
    direct = Predictor(folder)(list(map(str, pictures)), topk=2)
    yield SimpleNamespace(work=work, folder=folder, pictures=pictures, url=url, direct=direct)
    process.terminate()
    process.stdout.read()
    assert process.wait(30) == 0 or os.name == 'nt'
    check_refused('cannot be reached', 'client', pictures[0], '--url', url, '--retries', 0)


def test_the_service_predicts_as_the_network_does(service, tmp_path):
    broken = service.work/'broken.jpg'
    code, _, err = ppcls('client', *service.pictures, broken, '--url', service.url, '--topk', 2, '--batch_size', 3,
                         '--json', tmp_path/'saved.json')
    saved = json.loads((tmp_path/'saved.json').read_text())
    found = [[(top['label'], top['name'], round(top['score'], 4)) for top in row['top']]
             for row in saved['predictions']]
    assert code == 1
    assert found == [[(label, name, round(score, 4)) for label, name, score in row] for row in service.direct]
    assert saved['failed'] == {str(broken): 'expected a JPEG, PNG, WebP or BMP file'}
    assert err.count('\n') == 1


def test_a_port_is_enough_as_in_the_documents(service):
    port = service.url.removesuffix('/predict').rpartition(':')[2]
    code, out, err = ppcls('client', service.pictures[0], '--url', port)
    label, name, score = service.direct[0][0]
    assert (code, err) == (0, '')
    assert out.strip().split('  ') == [str(service.pictures[0]), f'{label} {name} {score:.4f}']


@pytest.mark.parametrize('argv, message', [
    (['--port=-1'], 'port -1'),
    (['--max-batch=0'], '--max-batch 0'),
    (['--deadline=0'], '--deadline 0'),
    (['--max-queue=3'], 'max_queue 3'),
    (['--grace=-1'], '--grace -1'),
    (['--engine=padle', '--port=0'], "did you mean 'paddle'"),
    (['--host=nowhere.invalid'], 'nowhere.invalid')])
def test_a_service_that_cannot_start(argv, message, service):
    check_refused(message, 'serve', service.folder, *argv)


def test_what_does_not_exist(service):
    check_refused('no such folder', 'serve', service.work/'nothing', '--port', 0)
    check_refused('--topk 0', 'client', service.pictures[0], '--topk', 0)


def test_missing_packages_are_named():
    message = r"surely_not_here: not installed; install with: pip install 'ppcls_nb\[serve\]'"
    with pytest.raises(PPClsError, match=message):
        require_packages('json', 'surely_not_here')
