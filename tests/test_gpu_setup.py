"""The way to a GPU without one: NVIDIA's libraries are linked where Paddle opens them, and whatever is missing is named
before a run starts on the CPU instead."""
import ctypes, os, re, shutil, subprocess
from configparser import ConfigParser
from pathlib import Path
from unittest import mock

import paddle
import pytest
from omegaconf import OmegaConf

from ppcls_nb import gpu, nvidia
from ppcls_nb.basics import PPClsError
from ppcls_nb.gpu import driver_problem, library_problem, require_gpu
from ppcls_nb.nvidia import LIBRARIES, library_files, link_libraries, packages_folder
from ppcls_nb.recipe.build import choose_device
from ppcls_nb.recipe.trained import set_device

ROOT = Path(__file__).resolve().parent.parent
settings = ConfigParser(delimiters=['='], interpolation=None)
settings.read(ROOT/'settings.ini', encoding='utf-8')
EXTRA = dict(requirement.split('==') for requirement in settings['DEFAULT']['gpu_requirements'].split())

# what NVIDIA's packages of the extra hold
FILES = ['cublas/lib/libcublas.so.11', 'cublas/lib/libcublasLt.so.11', 'cuda_cupti/lib/libcupti.so.11.8',
         'cuda_nvrtc/lib/libnvrtc-builtins.so.11.8', 'cuda_nvrtc/lib/libnvrtc.so.11.2', 'cudnn/lib/libcudnn.so.8',
         'cudnn/lib/libcudnn_cnn_infer.so.8', 'cufft/lib/libcufft.so.10', 'curand/lib/libcurand.so.10',
         'cusolver/lib/libcusolver.so.11', 'cusparse/lib/libcusparse.so.11', 'nccl/lib/libnccl.so.2',
         'nvjpeg/lib/libnvjpeg.so.11', 'nvtx/lib/libnvToolsExt.so.1']


@pytest.fixture
def packages(tmp_path):
    "A folder site-packages with the files of NVIDIA's packages, empty, and two libraries of Paddle."
    for file in [*(f'nvidia/{file}' for file in FILES), 'paddle/libs/libphi.so', 'paddle/libs/libnvtx3.so']:
        (tmp_path/file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/file).touch()
    return tmp_path


def test_every_library_that_paddle_opens_has_a_package_and_a_link(packages):
    assert {package for package, _ in LIBRARIES.values()} == EXTRA.keys() - {'paddlepaddle-gpu', 'paddle2onnx', 'onnx'}
    assert link_libraries(packages) == []
    for name in LIBRARIES:
        assert (packages/'paddle/libs'/name).resolve() == library_files(packages)[name].resolve()
    # cuDNN opens its parts and NVRTC beside itself
    for name in ('libcudnn_cnn_infer.so.8', 'libcublasLt.so.11', 'libnvrtc.so', 'libnvrtc.so.11.2'):
        assert (packages/'paddle/libs'/name).is_symlink()


def test_links_move_with_the_environment_and_follow_an_update(packages, tmp_path_factory):
    link_libraries(packages)
    moved = shutil.move(packages, tmp_path_factory.mktemp('moved')/'env')
    link = Path(moved)/'paddle/libs/libcudnn.so'
    assert link.exists()
    (Path(moved)/'nvidia/cudnn/lib/libcudnn.so.8').rename(Path(moved)/'nvidia/cudnn/lib/libcudnn.so.9')
    assert not link.exists()
    link_libraries(moved)
    assert link.resolve().name == 'libcudnn.so.9'


def test_paddles_own_files_stay_and_nothing_temporary_is_left(packages):
    own = packages/'paddle/libs/libcudnn.so'
    own.write_text('Paddle')
    link_libraries(packages)
    assert own.read_text() == 'Paddle' and not own.is_symlink()
    assert [path.name for path in own.parent.iterdir() if path.name.endswith('.tmp')] == []


def test_a_read_only_environment_is_no_error_of_the_import(packages):
    with mock.patch.object(nvidia.os, 'symlink', side_effect=PermissionError):
        failed = link_libraries(packages)
    assert 'libcudnn.so' in failed
    problem = library_problem(packages)
    assert problem.startswith('libcublas.so cannot be opened: it is in the package nvidia-cublas-cu11')


@pytest.mark.parametrize('folder,is_found', [
    ('paddlepaddle_gpu-2.6.2.dist-info', True), ('paddlepaddle_gpu-3.3.1.dist-info', False),
    ('paddlepaddle-2.6.2.dist-info', False)])
def test_only_paddle_2_for_gpus_needs_links(packages, folder, is_found, monkeypatch):
    (packages/folder).mkdir()
    spec = mock.Mock(submodule_search_locations=[str(packages/'paddle')])
    monkeypatch.setattr(nvidia, 'find_spec', lambda name: spec)
    assert packages_folder() == (packages if is_found else None)
    assert link_libraries(packages_folder()) == []
    assert (packages/'paddle/libs/libcudnn.so').is_symlink() == is_found


def test_a_broken_library_is_named(packages):
    link_libraries(packages)              # the files are empty
    opened = [name for name in LIBRARIES if gpu._opens(name, packages/'paddle/libs')]
    problem = library_problem(packages)
    needed = [name for name, (_, is_needed) in LIBRARIES.items() if is_needed and name not in opened]
    assert problem.startswith(f'{needed[0]} cannot be opened')
    assert library_problem(None) is None


class Driver:
    "A driver library that supports CUDA `version`, such as 11080, with `count` devices and a status of `cuInit`."
    def __init__(self, version, count, error=0): self.version, self.count, self.error = version, count, error

    def __call__(self, name):
        assert name == 'libcuda.so.1'
        return self

    def cuInit(self, flags): return self.error

    def cuDriverGetVersion(self, reference):
        reference._obj.value = self.version
        return 0

    def cuDeviceGetCount(self, reference):
        reference._obj.value = self.count
        return 0


def no_file(name):
    raise OSError(name)


@pytest.mark.parametrize('load,env,problem', [
    (no_file, {}, 'no NVIDIA driver (libcuda.so.1): install it'),
    (Driver(10020, 1), {}, 'the NVIDIA driver supports CUDA 10.2, and this Paddle needs CUDA 11: install a newer'),
    (Driver(11080, 0, 100), {}, 'the NVIDIA driver finds no device (error 100 of CUDA)'),
    (Driver(11080, 0), {}, 'the NVIDIA driver finds no device (error 0 of CUDA)'),
    (Driver(11080, 1), {'CUDA_VISIBLE_DEVICES': ''}, "CUDA_VISIBLE_DEVICES is '', which hides all GPUs"),
    (Driver(11080, 1), {'CUDA_VISIBLE_DEVICES': '-1'}, "CUDA_VISIBLE_DEVICES is '-1'"),
    (Driver(11000, 1), {}, None),
    (Driver(13000, 8), {'CUDA_VISIBLE_DEVICES': '0'}, None)])
def test_what_the_driver_lacks(load, env, problem):
    found = driver_problem(11, load, env)
    assert (found is None) if problem is None else found.startswith(problem)


@pytest.mark.skipif(paddle.is_compiled_with_cuda(), reason='this Paddle has GPU support')
@pytest.mark.parametrize('ask', [
    require_gpu,
    lambda: choose_device(OmegaConf.create({'use_gpu': True})),
    lambda: set_device(True)])
def test_whoever_asks_for_a_gpu_does_not_get_the_cpu(ask):
    with pytest.raises(PPClsError, match='^use_gpu: this Paddle .* was built without GPU support; `make venv'):
        ask()


@pytest.mark.parametrize('variables,installed,absent', [
    ([], ['.[cpu,'], ['index-url', 'paddlepaddle']),
    (['PADDLE=gpu'], ['.[gpu,'], ['index-url']),
    (['PADDLE_GPU=paddlepaddle-gpu==3.3.1 paddle2onnx==2.1.0', 'PADDLE_INDEX=https://example.org/cu126/'],
     ["'paddlepaddle-gpu==3.3.1' 'paddle2onnx==2.1.0'", "--extra-index-url 'https://example.org/cu126/'", '.[weights,'],
     ['.[gpu', '.[cpu'])])
@pytest.mark.skipif(not shutil.which('make'), reason='needs make')
def test_the_makefile_takes_another_paddle(variables, installed, absent, tmp_path):
    env = {'PATH': os.environ['PATH']}
    command = ['make', '--dry-run', 'venv', f'VENV={tmp_path}/new', *variables]
    out = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout
    pip = re.search('pip install .*', out.replace('\\\n', '')).group(0)
    assert [text for text in installed if text not in pip] == []
    assert [text for text in absent if text in pip] == []


@pytest.mark.skipif(not shutil.which('make'), reason='needs make')
def test_the_tutorial_on_a_gpu_begins_with_the_question(tmp_path):
    env = {'PATH': os.environ['PATH']}
    command = ['make', '--dry-run', 'tutorial', 'PROFILE=gpu', f'VENV={tmp_path}/new']
    out = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout
    assert 'exit_without_gpu("PROFILE=gpu")' in out[:out.index('ppcls-run')]


def test_ctypes_of_the_driver_are_integers():
    "The fake driver gets what the real one does: references to C integers."
    with mock.patch.object(Driver, 'cuDeviceGetCount', autospec=True, return_value=0) as count:
        driver_problem(11, Driver(11080, 1), {})
    assert isinstance(count.call_args.args[1]._obj, ctypes.c_int)
