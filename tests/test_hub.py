"""`hubconf.py` for people who have not installed the package: a copy of the repository in another place, seen through
`paddle.hub`."""
import json, shutil, subprocess, sys
from pathlib import Path

from ppcls_nb.models import list_models

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = '''
import json, sys
sys.path[:] = [p for p in sys.path if p != sys.argv[2]]
def editable(finder): return '__editable__' in getattr(finder, '__module__', '') + getattr(finder, '__name__', '')
sys.meta_path[:] = [finder for finder in sys.meta_path if not editable(finder)]
import paddle
repo = sys.argv[1]
net = paddle.hub.load(repo, 'SqueezeNet1_1', source='local', class_num=4)
net.eval()
import ppcls_nb
shape = list(net(paddle.rand([1, 3, 64, 64])).shape)
print(json.dumps([len(paddle.hub.list(repo, source='local')), shape, ppcls_nb.__file__]))
'''


def test_a_copy_of_the_repository_is_a_hub(tmp_path):
    repo = tmp_path/'repo'
    shutil.copytree(ROOT/'ppcls_nb', repo/'ppcls_nb', ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copy(ROOT/'hubconf.py', repo)
    (tmp_path/'script.py').write_text(SCRIPT)
    out = subprocess.run([sys.executable, '-W', 'ignore',
                          str(tmp_path/'script.py'),
                          str(repo), str(ROOT)], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert out.returncode == 0, out.stderr
    count, shape, file = json.loads(out.stdout.splitlines()[-1])
    assert count == len(list_models())
    assert shape == [1, 4]
    assert Path(file).is_relative_to(repo)
