"Foreign weight files: PyTorch's pickles, the variables of Paddle 1.x and their old names, intact and damaged."
import io, json, os, pickle, struct, tarfile, zipfile

import ppcls_nb  # before paddle: sets the threads
import numpy as np, pytest

from networks import torch_bytes, torch_zip, variable, write_folder
from ppcls_nb.basics import PPClsError
from ppcls_nb.models.formats.any_file import read_arrays, read_safetensors
from ppcls_nb.models.formats.old_names import (IGNORED_TENSORS, OldNamesError, _facts, has_old_names, is_quantized,
                                               old_names, rename_old)
from ppcls_nb.models.formats.static_file import is_static, parse_desc, read_static, read_variable
from ppcls_nb.models.formats.torch_file import Storage, TensorUnpickler, View, _array, read_torch

WEIGHTS = np.arange(600, dtype='float32').reshape(2, 300)


# PyTorch

class Attack:
    "An object whose pickle calls `os.mkdir`."
    def __reduce__(self): return os.mkdir, ('attacked',)


@pytest.mark.parametrize('protocol', [2, 3, 4])
def test_a_function_in_a_pickle_is_not_called(protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PPClsError, match='imports (posix|nt|os).mkdir.*refused'):
        TensorUnpickler(io.BytesIO(pickle.dumps(Attack(), protocol))).load()
    assert not os.path.exists('attacked')


@pytest.mark.parametrize('name', [
    'builtins.eval', 'os.system', 'torch.load', 'numpy.core.multiarray._reconstruct', 'collections.Counter'])
def test_other_names_are_refused(name):
    module, _, attr = name.rpartition('.')
    with pytest.raises(PPClsError, match='which tensors do not need'):
        TensorUnpickler(io.BytesIO(b'c%s\n%s\n.' % (module.encode(), attr.encode()))).load()


def test_a_torch_file_comes_back(tmp_path):
    state = {
        'conv.weight': np.arange(24, dtype='float32').reshape(2, 3, 2, 2),
        'fc.weight': np.arange(6, dtype='float32').reshape(2, 3).T,
        'count': np.array(3, 'float32')}
    (tmp_path/'net.pth').write_bytes(torch_bytes(state))
    back = read_torch(tmp_path/'net.pth')
    assert list(back) == list(state)
    for name in state:
        np.testing.assert_array_equal(back[name], state[name])


@pytest.mark.parametrize('content, message', [
    (torch_bytes({'a': np.ones(3, 'f4')})[:-5], 'it is truncated or damaged'),
    (b'no weights here', 'not a PyTorch file'),
    (pickle.dumps(Attack()), 'it imports .*mkdir'),
    (None, 'no such file'),
])
def test_a_bad_torch_file_is_named(content, message, tmp_path):
    if content is not None:
        (tmp_path/'net.pth').write_bytes(content)
    with pytest.raises(PPClsError, match=f'net.pth: {message}'):
        read_torch(tmp_path/'net.pth')


def test_a_tensor_stays_inside_its_storage():
    with pytest.raises(PPClsError, match='exceeds its storage'):
        _array(View(Storage('<f4', '0', 6), 2, (2, 3), (3, 1)), {'0': np.zeros(6, 'f4')})


def test_a_torch_file_since_1_6_comes_back(tmp_path):
    state = {'fc.weight': np.arange(6, dtype='float32').reshape(2, 3).T, 'count': np.array(3, 'float32')}
    torch_zip(tmp_path/'net.bin', state)
    for name, a in read_arrays(tmp_path/'net.bin').items():
        np.testing.assert_array_equal(a, state[name])
    (tmp_path/'net.bin').rename(tmp_path/'net.pdparams')                  # whatever it is called
    assert list(read_arrays(tmp_path/'net.pdparams')) == list(state)


def rezip(path, **changes):
    "Write the zip archive again, with other files net/NAME; None leaves one out."
    with zipfile.ZipFile(path) as archive:
        files = {info.filename: archive.read(info) for info in archive.infolist()}
    files.update({f'net/{name}': data for name, data in changes.items()})
    with zipfile.ZipFile(path, 'w') as archive:
        for name, data in files.items():
            if data is not None: archive.writestr(name, data)


@pytest.mark.parametrize('changes, message', [
    ({'data.pkl': pickle.dumps(Attack())}, 'it imports .*mkdir'),
    ({'data.pkl': None}, 'not one of PyTorch: data.pkl is missing'),
    ({'data/0': b'1234'}, 'it is truncated or damaged'),
    ({'data/0': None}, 'it is truncated or damaged'),
    ({'byteorder': b'big'}, 'its byte order is not supported'),
    ({'data.pkl': pickle.dumps([1, 2])}, 'it is not a state dict')])
def test_a_bad_torch_file_since_1_6_is_named(changes, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch_zip(tmp_path/'net.pth', {'a': np.ones((2, 3), 'f4')})
    rezip(tmp_path/'net.pth', **changes)
    with pytest.raises(PPClsError, match=f'net.pth: .*{message}'):
        read_torch(tmp_path/'net.pth')
    assert not os.path.exists('attacked')


def test_a_checkpoint_with_two_state_dicts_is_not_guessed(tmp_path):
    torch_zip(tmp_path/'net.pth', {'a': np.ones(3, 'f4')}, lambda tensors: {'model': tensors, 'model_ema': tensors})
    with pytest.raises(PPClsError, match='it contains several state dicts .model, model_ema'):
        read_torch(tmp_path/'net.pth')


# safetensors

def safetensors(header, data=bytes(24)):
    "The bytes of a file with this header, a dictionary or text."
    text = header if isinstance(header, str) else json.dumps(header)
    return struct.pack('<Q', len(text)) + text.encode() + data


def entry(dtype='F32', shape=(2, 3), begin=0, end=24):
    "The entry of a tensor in the header."
    return dict(dtype=dtype, shape=list(shape), data_offsets=[begin, end])


def test_a_safetensors_file_comes_back(tmp_path):
    values = np.arange(6, dtype='float32').reshape(2, 3)
    upper = (values.view('<u4') >> 16).astype('<u2')                      # exact: small whole numbers
    header = {'__metadata__': {'format': 'pt'}, 'a': entry(), 'half': entry('F16', begin=24, end=36),
              'upper': entry('BF16', begin=36, end=48), 'none': entry(shape=(0, ), begin=48, end=48)}
    data = values.tobytes() + values.astype('<f2').tobytes() + upper.tobytes()
    (tmp_path/'a.safetensors').write_bytes(safetensors(header, data))
    arrays = read_arrays(tmp_path/'a.safetensors')
    assert [a.dtype for a in arrays.values()] == [np.float32]*4
    for name in ('a', 'half', 'upper'):
        np.testing.assert_array_equal(arrays[name], values)


@pytest.mark.parametrize('content, message', [
    (b'', 'not a safetensors file, or a truncated one'),
    (struct.pack('<Q', 1 << 40), 'not a safetensors file, or a truncated one'),
    (safetensors('no json'), 'not a safetensors file, or a damaged one'),
    (safetensors('['*100_000), 'not a safetensors file, or a damaged one'),
    (safetensors([1]), 'its header is not a table of tensors'),
    (safetensors({'a': 3}), 'not a safetensors file, or a damaged one'),
    (safetensors({'a': entry('F4')}), 'a has the type F4; expected F64'),
    (safetensors({'a': entry(shape=(2, 4))}), 'a: its shape does not fit its bytes'),
    (safetensors({'a': entry(shape=(-2, -3))}), 'a: its shape does not fit its bytes'),
    (safetensors({'a': entry(shape=(2., 3))}), 'a: its shape does not fit its bytes'),
    (safetensors({'a': entry(begin=-24, end=0)}), 'a: its shape does not fit its bytes'),
    (safetensors({'a': entry(begin=4, end=28)}), 'it is truncated or damaged'),
    (safetensors({f'a{i}': entry() for i in range(99)}), 'it is truncated or damaged')])
def test_a_bad_safetensors_file_is_named(content, message, tmp_path):
    (tmp_path/'a.safetensors').write_bytes(content)
    with pytest.raises(PPClsError, match=f'a.safetensors: {message}|a.safetensors: it is {message}'):
        read_safetensors(tmp_path/'a.safetensors')


# the variables of Paddle 1.x

def read(data): return read_variable(io.BytesIO(data), len(data))


@pytest.mark.parametrize('data, error, message', [
    ([8, 5, 16], IndexError, None),
    ([24, 1], ValueError, 'unknown field 3'),
    ([255]*12, ValueError, 'more than 70 bits'),
])
def test_a_bad_description(data, error, message):
    with pytest.raises(error, match=message):
        parse_desc(bytes(data))


@pytest.mark.parametrize('a', [
    WEIGHTS, WEIGHTS[:, :3].astype('<f8'), np.array(7, '<i8'), np.ones((0, 3), 'float32'), np.arange(4, dtype='int8')],
                         ids=lambda a: f'{a.dtype}{a.shape}')
def test_a_variable_comes_back(a):
    back = read(variable(a, levels=[[0, 1, 2]]))
    assert back.dtype == a.dtype
    assert back.shape == a.shape
    assert back.flags.writeable
    np.testing.assert_array_equal(back, a)


@pytest.mark.parametrize('data, message', [
    (variable(WEIGHTS)[:-1], r'it has 2,399 bytes of data, but shape \(2, 300\) takes 2,400'),
    (variable(WEIGHTS) + b'x', 'takes 2,400'),
    (variable(WEIGHTS)[:9], '^it is truncated$'),
    (b'these are not weights', 'not a variable'),
    (variable(WEIGHTS, code=99), 'unknown code 99'),
    # an exabyte of levels
    (struct.pack('<IQQ', 0, 1, 2**60) + variable(WEIGHTS)[12:], 'truncated'),
])
def test_a_damaged_variable(data, message):
    with pytest.raises(PPClsError, match=message):
        read(data)


def test_a_variable_may_be_truncated_anywhere():
    data = variable(WEIGHTS)
    for n in range(len(data)):
        with pytest.raises(PPClsError):
            read(data[:n])


@pytest.fixture
def folder(tmp_path):
    "A folder of Paddle 1.x with a program, a hidden file and an archive of it beside it."
    arrays = {
        'conv1_weights': WEIGHTS,
        'fc_0.b_0': WEIGHTS[0],
        'xception_41/entry_flow/conv1/weights': np.ascontiguousarray(WEIGHTS[:, :2])}
    folder = write_folder(tmp_path/'Net_pretrained', arrays)
    (folder/'__model__').write_text('the program')
    (folder/'.DS_Store').write_text('')
    with tarfile.open(f'{folder}.tar', 'w') as tar:
        tar.add(folder, folder.name)
    return folder, arrays


@pytest.mark.parametrize('suffix', ['', '.tar'])
def test_folders_and_archives_come_back(suffix, folder):
    path, arrays = f'{folder[0]}{suffix}', folder[1]
    back = read_static(path)
    assert is_static(path)
    assert sorted(back) == sorted(arrays)
    for name in arrays:
        np.testing.assert_array_equal(back[name], arrays[name])


def test_empty_and_absent_folders(tmp_path):
    (tmp_path/'nothing').mkdir()
    assert not is_static(tmp_path/'nothing')
    assert not is_static(tmp_path/'absent')
    with pytest.raises(PPClsError, match='nothing: contains no variable'):
        read_static(tmp_path/'nothing')
    with pytest.raises(PPClsError, match='absent.tar: cannot be read'):
        read_static(tmp_path/'absent.tar')


def test_bad_files_are_named(folder, tmp_path):
    path, _ = folder
    (tmp_path/'cut.tar').write_bytes((tmp_path/'Net_pretrained.tar').read_bytes()[:3000])
    (tmp_path/'text.tar').write_text('please log in')
    for name in ('cut.tar', 'text.tar'):
        with pytest.raises(PPClsError, match=f'{name}: '):
            read_static(tmp_path/name)
    (path/'fc_0.b_0').write_bytes(variable(WEIGHTS)[:-3])
    with pytest.raises(PPClsError, match='Net_pretrained: fc_0.b_0: it has 2,397 bytes of data'):
        read_static(path)
    with pytest.raises(PPClsError, match='__params__ contains all arrays without their names'):
        read_static(write_folder(tmp_path/'joined', {'__params__': WEIGHTS}))


@pytest.mark.parametrize('name, kind', [
    ('../evil', tarfile.REGTYPE), ('/etc/evil', tarfile.REGTYPE), ('a/../../evil', tarfile.REGTYPE),
    ('link', tarfile.SYMTYPE), ('link', tarfile.LNKTYPE), ('link', tarfile.CHRTYPE)])
def test_archives_with_anything_but_plain_files_are_refused(name, kind, tmp_path):
    with tarfile.open(tmp_path/'evil.tar', 'w') as tar:
        m = tarfile.TarInfo(name)
        m.type, m.linkname = kind, '/etc/passwd'
        tar.addfile(m)
    with pytest.raises(PPClsError, match=f"evil.tar: refused, '{name}' is not a plain file"):
        read_static(tmp_path/'evil.tar')


# old names

def test_no_old_name_is_used_for_two_layers():
    for m in _facts()['maps']:
        assert len(set(m['layers'].values())) == len(m['layers']), m['networks']


@pytest.mark.parametrize('network, key, name', [
    ('ResNet50', 'blocks.15.conv2.bn._mean', 'bn5c_branch2c_mean'),
    ('ResNet101', 'blocks.29.conv0.conv.weight', 'res4b22_branch2a_weights'),
    ('ResNeXt101_32x8d_wsl', '_out.weight', 'fc.weight')])
def test_old_names(network, key, name):
    assert old_names(network, [key]) == {key: name}


def test_unknown_keys_and_networks():
    assert old_names('ResNet50_vd', ['nonsense.weight', 'stem.0.conv.nonsense']) == {}
    assert not has_old_names('Tiny')
    with pytest.raises(PPClsError, match='Tiny: the names of its tensors in weights of Paddle 1.x are not known'):
        old_names('Tiny', [])


@pytest.mark.parametrize('name, kind', [
    ('conv1_weights_velocity_0', 'of the optimizer'), ('@LR_DECAY_COUNTER@', 'of the optimizer'),
    ('fc_0.w_0_moment1_0', 'of the optimizer'), ('relu_3.tmp_0.scale', 'of quantization'),
    ('conv1_weights.quantized', 'of quantization'), ('state_12', 'of quantization'), ('conv1_weights', None),
    ('bn_conv1_scale', None), ('fc_0.b_0', None)])
def test_tensors_that_are_not_weights(name, kind):
    assert next((k for k, pattern in IGNORED_TENSORS.items() if pattern.search(name)), None) == kind


KERNEL = np.random.default_rng(0).normal(size=(8, 4, 3, 3)).astype('float32')
CODES = np.round(KERNEL/np.abs(KERNEL).max()*127)


@pytest.mark.parametrize('a, quantized', [
    (KERNEL, False), (CODES, True), (CODES.astype('int8'), True), (np.zeros((4, 4, 1, 1), 'f4'), False),
    (np.full(3, 100.), False)])
def test_quantized_kernels_are_recognized(a, quantized):
    assert is_quantized(a) == quantized


KEYS = [
    'stem.0.conv.weight', *(f'stem.0.bn.{leaf}' for leaf in ('weight', 'bias', '_mean', '_variance')), 'fc.weight',
    'fc.bias']


@pytest.fixture
def arrays():
    "Arrays under the old names of the stem and the classifier of ResNet18_vd."
    return {name: np.full(3, i, 'f4') for i, name in enumerate(old_names('ResNet18_vd', KEYS).values())}


@pytest.mark.parametrize('weight, bias', [
    ('fc_3.w_0', 'fc_3.b_0'), ('linear_0.w_0', 'linear_0.b_0'), ('fc6_weights', 'fc6_offset'),
    ('flowers_fc_weights', 'flowers_fc_bias')])
def test_a_classifier_with_another_name(weight, bias, arrays):
    w, b = arrays.pop('fc_0.w_0'), arrays.pop('fc_0.b_0')
    state, _ = rename_old('ResNet18_vd', KEYS, {**arrays, weight: w, bias: b})
    assert state['fc.weight'] is w
    assert state['fc.bias'] is b


def test_names_that_do_not_match_are_listed(arrays):
    arrays['bnv1_1_moving'], arrays['extra_weights'] = arrays.pop('bnv1_1_mean'), np.zeros(2)
    with pytest.raises(OldNamesError) as e:
        rename_old('ResNet18_vd', KEYS, arrays, source='net.tar')
    assert (e.value.unmatched, e.value.unfilled) == (['bnv1_1_moving', 'extra_weights'], ['stem.0.bn._mean'])
    assert str(e.value) == ('net.tar: these names match no tensor of ResNet18_vd: bnv1_1_moving, extra_weights; '
                            'tensors without an array: stem.0.bn._mean')


def test_weights_of_another_network():
    with pytest.raises(OldNamesError, match='another network: 1 of its 1 names do not match ResNet18_vd, such as '
                                            'conv2_1_x1_weights; expected names such as conv1_1_weights, '):
        rename_old('ResNet18_vd', KEYS, {'conv2_1_x1_weights': KERNEL})


def test_two_possible_classifiers_are_not_guessed(arrays):
    w, _ = arrays.pop('fc_0.w_0'), arrays.pop('fc_0.b_0')
    with pytest.raises(OldNamesError) as e:
        rename_old('ResNet18_vd', KEYS, {**arrays, 'fc_1.w_0': w, 'fc_2.w_0': w})
    assert e.value.unmatched == ['fc_1.w_0', 'fc_2.w_0']


def test_quantized_weights_are_refused(arrays):
    with pytest.raises(PPClsError, match='1 tensors are int8 weights .conv1_1_weights.'):
        rename_old('ResNet18_vd', KEYS, {**arrays, 'conv1_1_weights': CODES})


def test_tensors_without_an_array_are_left_to_the_report():
    assert list(rename_old('ResNet18_vd', KEYS, {'fc_0.b_0': np.zeros(5)})[0]) == ['fc.bias']
