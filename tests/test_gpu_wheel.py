"""The wheel of Paddle 2 for GPUs and NVIDIA's packages, as far as they can be looked at without a GPU. Needs an
environment with the extra gpu (`make venv PADDLE=gpu`, then its pytest); the extras are resolved for every Python with
PPCLS_PACKAGE_INDEX=1 only, since that asks the package index."""
import os, re, subprocess, sys
from configparser import ConfigParser
from pathlib import Path

import paddle
import pytest

from ppcls_nb.gpu import library_problem
from ppcls_nb.nvidia import LIBRARIES, packages_folder

ROOT = Path(__file__).resolve().parent.parent
settings = ConfigParser(delimiters=['='], interpolation=None)
settings.read(ROOT/'settings.ini', encoding='utf-8')
settings = settings['DEFAULT']
PINS = dict(requirement.split('==') for requirement in settings['gpu_requirements'].split())
PACKAGES = packages_folder()
with_wheel = pytest.mark.skipif(not PACKAGES, reason='needs Paddle 2 for GPUs: make venv PADDLE=gpu')

# components of the CUDA toolkit 11.8, from NVIDIA's release notes of it
CUDA_11_8 = {'cublas': '11.11.3.6', 'cufft': '10.9.0.58', 'curand': '10.3.0.86', 'cusolver': '11.4.1.48',
             'cusparse': '11.7.5.86', 'cuda-nvrtc': '11.8.89', 'cuda-cupti': '11.8.87', 'nvjpeg': '11.9.0.86',
             'nvtx': '11.8.86'}
# what the wheel opens besides: the driver; cuSPARSELt and TensorRT, which no package has; LAPACK, which it brings; and
# another MKL than the one inside it, which it does not need
OTHERS = {'libcuda.so', 'libcuda.so.1', 'libcusparseLt.so', 'libnvinfer.so', 'liblapack.so.3', 'libmkl_rt.so',
          'libmklml_intel.so'}


@pytest.mark.parametrize('component', CUDA_11_8)
def test_the_pins_are_those_of_cuda_11_8(component):
    assert PINS[f'nvidia-{component}-cu11'] == CUDA_11_8[component]


@with_wheel
def test_the_pins_fit_what_the_wheel_was_built_with():
    assert paddle.version.full_version == PINS['paddlepaddle-gpu']
    assert paddle.version.cuda() == '11.8'
    assert PINS['nvidia-cudnn-cu11'].startswith(paddle.version.cudnn() + '.')


# calls each function of the wheel that opens a library, in a process of its own, since some of them abort
OPEN_ALL = '''import ctypes, os, re
from pathlib import Path
import paddle
file = Path(paddle.__file__).parent/'libs'/'libphi.so'
library = ctypes.CDLL(str(file))
names = set(re.findall(rb'_ZN3phi7dynload\\d+Get\\w+DsoHandleEv', file.read_bytes()))
for name in sorted(name.decode() for name in names):
    print(name)
    if os.fork() == 0:
        getattr(library, name)()
        os._exit(0)
    os.wait()
'''


@with_wheel
def test_the_names_that_the_wheel_opens_are_known(tmp_path):
    "As the dynamic linker logs them (LD_DEBUG); libraries of the wheel itself are opened by their paths."
    done = subprocess.run([sys.executable, '-c', OPEN_ALL], capture_output=True, text=True,
                          env=os.environ | {'LD_DEBUG': 'files', 'LD_DEBUG_OUTPUT': str(tmp_path/'log')})
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 15
    log = ''.join(file.read_text(errors='replace') for file in tmp_path.glob('log.*'))
    opened = {name for name in re.findall(r'file=(\S+) \[\d+\];  dynamically loaded by', log) if '/' not in name}
    assert opened - OTHERS == LIBRARIES.keys()


@with_wheel
def test_every_library_loads_by_the_name_that_paddle_uses():
    assert library_problem(PACKAGES) is None


@pytest.mark.skipif(os.environ.get('PPCLS_PACKAGE_INDEX') != '1', reason='needs the index: PPCLS_PACKAGE_INDEX=1')
@pytest.mark.parametrize('python', ['3.10', '3.11', '3.12'])
@pytest.mark.parametrize('extra', ['cpu', 'cpu26', 'gpu'])
def test_the_extras_resolve(extra, python, tmp_path):
    """With everything that `make venv` installs, from wheels, without installing it. OmegaConf is left out: for another
    Python pip takes wheels only, and a package that it needs, antlr4-python3-runtime 4.9, has none."""
    names = ['requirements', *(f'{name}_requirements' for name in (
        extra, 'weights', 'jpeg', 'notebook', 'watch', 'search', 'deploy', 'serve', 'dev', 'test'))]
    requirements = [requirement for name in names for requirement in settings[name].split()
                    if not requirement.startswith('omegaconf')]
    command = [sys.executable, '-m', 'pip', 'install', '--dry-run', '--ignore-installed', '--quiet', '--target',
               str(tmp_path), '--only-binary', ':all:', '--python-version', python]
    done = subprocess.run([*command, *requirements], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
