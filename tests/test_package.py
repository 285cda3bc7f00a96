"What `import ppcls_nb` does to a process and to the processes that it starts (nbs/01_data/00_package.ipynb)."
import os
import subprocess
import sys

import pytest

import ppcls_nb

SHOW = 'import os, {modules}; print(os.environ.get("MKL_DEBUG_CPU_TYPE"), os.environ["OMP_NUM_THREADS"])'
SET = ('MKL_DEBUG_CPU_TYPE', 'OMP_NUM_THREADS', 'GLOG_minloglevel')
NEEDS_PATH = ppcls_nb.set_mkl_path({}, ppcls_nb.processor()) == '5'


def run(code, **env):
    "A new Python process without the variables that the package sets; `env` is added."
    plain = {k: v for k, v in os.environ.items() if k not in SET}
    return subprocess.run([sys.executable, '-c', code], env=plain | env, capture_output=True, text=True, check=True)


@pytest.mark.parametrize('value', ['', '0', '4'])
def test_a_value_set_by_the_user_is_kept(value):
    assert run(SHOW.format(modules='ppcls_nb'), MKL_DEBUG_CPU_TYPE=value).stdout.split(' ')[0] == value


def test_the_path_is_inherited_by_child_processes():
    expected = '5' if NEEDS_PATH else 'None'
    inner = SHOW.format(modules='sys').replace('"', "'")
    start = f'subprocess.run([sys.executable, "-c", "{inner}"], capture_output=True, text=True)'
    code = f'import ppcls_nb, subprocess, sys; print({start}.stdout)'
    assert run(SHOW.format(modules='ppcls_nb')).stdout.split()[0] == expected
    assert run(code).stdout.split()[0] == expected


@pytest.mark.skipif(not NEEDS_PATH, reason='MKL uses AVX2 on this processor by itself')
def test_importing_paddle_first_warns_once(tmp_path):
    (tmp_path/'paddle.py').write_text('')
    code = 'import paddle, ppcls_nb; import importlib; importlib.reload(ppcls_nb)'
    done = run(code, PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]))
    assert done.stderr.count('paddle was imported before ppcls_nb') == 1
    assert 'imported before' not in run(code, MKL_DEBUG_CPU_TYPE='0',
                                        PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path])).stderr


@pytest.mark.parametrize('text, expected', [
    ('vendor_id : GenuineIntel\nflags : avx2 fma\n', None),
    ('vendor_id : AuthenticAMD\nflags : avx2 fma\n', '5'),
    ('vendor_id : HygonGenuine\nflags : avx2\n', '5'),
    ('vendor_id : AuthenticAMD\nflags : avx fma\n', None),
    ('vendor_id : AuthenticAMD\nflags : avx2_not_quite\n', None),
    ('CPU implementer : 0x41\nFeatures : fp asimd\n', None),
    ('', None)])
def test_the_path_is_set_for_other_vendors_with_avx2(text, expected):
    assert ppcls_nb.set_mkl_path({}, ppcls_nb.read_cpuinfo(text)) == expected


@pytest.mark.parametrize('machine', ['aarch64', 'arm64', 'i686'])
def test_other_architectures_are_unknown(machine, monkeypatch):
    monkeypatch.setattr('platform.machine', lambda: machine)
    assert ppcls_nb.processor() == ('', False)


def test_the_processor_on_windows(monkeypatch):
    class Kernel:
        def IsProcessorFeaturePresent(self, number): return number == 40
    windll = type('Windll', (), {'kernel32': Kernel()})
    monkeypatch.setattr('platform.machine', lambda: 'AMD64')
    monkeypatch.setattr('ctypes.windll', windll, raising=False)
    monkeypatch.setenv('PROCESSOR_IDENTIFIER', 'AMD64 Family 25 Model 33 Stepping 0, AuthenticAMD')
    monkeypatch.setattr(ppcls_nb.os, 'name', 'nt')
    found = ppcls_nb.processor()
    monkeypatch.setattr(ppcls_nb.os, 'name', 'posix')
    assert found == ('AuthenticAMD', True)


NETWORK = '''
import ppcls_nb, paddle
from ppcls_nb.models import create_model
from ppcls_nb.train import CELoss, build_optimizer, build_schedule
model = create_model('EfficientNetB0_small', class_num=3)
optimizer = build_optimizer('Momentum', model.parameters(), build_schedule('Cosine', 1, 1, lr=0.1), momentum=0.9)
CELoss(0.1)(model(paddle.rand([2, 3, 32, 32])), paddle.to_tensor([0, 2])).backward()
optimizer.step()
paddle.rand([2, 3]).std([1])            # Paddle itself divides integers here and logs that it does
from tqdm import auto
'''


def test_import_and_training_are_quiet():
    done = run(NETWORK, OMP_NUM_THREADS='2', GREP_OPTIONS='--color=auto')
    assert done.stdout == ''
    assert done.stderr == ''


def test_other_warnings_still_appear():
    done = run('import ppcls_nb, warnings; warnings.warn("No ccache anywhere"); print("OMP_NUM_THREADS set to 2")')
    assert 'No ccache anywhere' in done.stderr
    assert done.stdout == 'OMP_NUM_THREADS set to 2\n'


def test_import_leaves_paddle_alone():
    show = 'print([m for m in sys.modules if m.startswith("paddle")], os.environ["GLOG_minloglevel"])'
    code = f'import ppcls_nb, os, sys; {show}'
    assert run(code).stdout == '[] 2\n'


def test_grep_options_and_threads_are_there_after_the_import():
    show = 'print(os.environ["GREP_OPTIONS"], os.environ["OMP_NUM_THREADS"], hasattr(paddle.base, "print"))'
    code = f'import ppcls_nb, paddle, os; {show}'
    assert run(code, GREP_OPTIONS='-i', OMP_NUM_THREADS='2').stdout == '-i 2 False\n'


def test_a_second_import_hook_is_not_added():
    show = 'print(sum(type(f).__name__ == "QuietPaddle" for f in sys.meta_path))'
    code = f'import ppcls_nb, importlib, sys; importlib.reload(ppcls_nb); {show}'
    assert run(code).stdout == '1\n'
