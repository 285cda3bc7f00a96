"What several test files need of networks and weights: their names, image sizes, and old formats of their files."
import io, os, pickle, struct, zipfile
from collections import OrderedDict

from official import ALL
from ppcls_nb.basics import fact_rows
from ppcls_nb.models import list_models, model_info
from ppcls_nb.models.formats.old_names import old_names
from ppcls_nb.models.formats.static_file import DTYPES
from ppcls_nb.models.formats.torch_file import MAGIC, PROTOCOL

NAMES = [n for n in list_models() if model_info(n)['module'].startswith('ppcls_nb.models.')]


def small(name):
    "A small image size (height, width) that the network `name` accepts."
    return (96, 112) if 'ception' in name else (64, 80)


def smallest():
    "The sorted names of the smallest network of each family."
    params = {row['arch']: int(row['params']) for row in fact_rows('costs')}
    largest_first = sorted(NAMES, key=lambda name: -params[name])
    return sorted({model_info(n)['family']: n for n in largest_first}.values())


# networks with a kind of block, stem or activation that the smallest of their family lacks
OTHER_BLOCKS = [
    'EfficientNetB0', 'EfficientNetB0_small', 'MobileNetV3_large_x0_35', 'MobileNetV4_hybrid_medium', 'RepVGG_A0',
    'Res2Net50_vd_26w_4s', 'ResNeXt50_vd_32x4d', 'ResNet50', 'ResNet50_ACNet', 'ResNet50_vc', 'ResNet50_vd',
    'SE_ResNeXt50_vd_32x4d', 'SE_ResNet50_vd', 'ShuffleNetV2_swish']


ALL_NETWORKS = os.environ.get('PPCLS_ALL_NETWORKS') == '1'


def every_block():
    """The sorted names of networks that have every kind of block between them; with PPCLS_ALL_NETWORKS=1 in the
    environment, all networks."""
    return NAMES if ALL_NETWORKS else sorted([*smallest(), *OTHER_BLOCKS])


def computed():
    """The names of the networks whose official outputs are compared: the smallest of each family and those of up to 40
    million numbers; with PPCLS_ALL_NETWORKS=1 all."""
    known = {name for name in ALL if 'golden' in ALL[name]}
    return {name for name in known if ALL_NETWORKS or ALL[name]['total'] < 40e6} | set(smallest())


def old_state(model):
    "The network's arrays under their names in Paddle 1.x."
    state = model.state_dict()
    return {name: state[key].numpy() for key, name in old_names(model.name, state).items()}


def varint(n):
    "The bytes of a varint of protobuf."
    return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)


def variable(a, levels=(), code=None):
    "An array as the bytes of a file of Paddle 1.x; `levels`: lists of offsets."
    if code is None:
        code = next(c for c, dtype in DTYPES.items() if a.dtype == dtype)
    desc = b'\x08' + varint(code) + b''.join(b'\x10' + varint(n) for n in a.shape)
    lod = b''.join(struct.pack(f'<Q{len(level)}Q', 8*len(level), *level) for level in levels)
    return struct.pack('<IQ', 0, len(levels)) + lod + struct.pack('<Ii', 0, len(desc)) + desc + a.tobytes()


def write_folder(folder, arrays):
    "Write the weights of Paddle 1.x: a file for each array; returns the folder."
    for name, a in arrays.items():
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        (folder/name).write_bytes(variable(a))
    return folder


class _Name:
    "Pickles as the name `module.attr`."
    def __init__(self, module, attr):
        self.module, self.attr = module, attr


class _Tensor:
    "An array that pickles as a torch tensor."
    def __init__(self, a, key):
        self.a, self.key = a, key


class _TorchPickler(pickle._Pickler):
    "Writes `_Name` and `_Tensor` as PyTorch does."
    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, _Name):
            return self.write(f'c{obj.module}\n{obj.attr}\n'.encode())
        if not isinstance(obj, _Tensor):
            return super().save(obj, save_persistent_id)
        self.save(_Name('torch._utils', '_rebuild_tensor_v2'))
        self.write(pickle.MARK)
        super().save(('storage', _Name('torch', 'FloatStorage'), obj.key, 'cpu', obj.a.size, None))
        self.write(pickle.BINPERSID)
        for value in (0, obj.a.shape, tuple(s//4 for s in obj.a.strides), False, OrderedDict()):
            super().save(value)
        self.write(pickle.TUPLE + pickle.REDUCE)


def torch_bytes(state):
    "Float32 arrays {name: array} as the bytes of a PyTorch file of the format before 1.6."
    f = io.BytesIO()
    for obj in (MAGIC, PROTOCOL, dict(protocol_version=PROTOCOL, little_endian=True)):
        pickle.dump(obj, f, 2)
    _TorchPickler(f, 2).dump({k: _Tensor(a, str(i)) for i, (k, a) in enumerate(state.items())})
    pickle.dump([str(i) for i in range(len(state))], f, 2)
    for a in state.values():
        f.write(struct.pack('<q', a.size) + a.ravel('K').tobytes())
    return f.getvalue()


def torch_zip(path, state, content=lambda tensors: tensors):
    """Write float32 arrays {name: array} as a PyTorch file of the format since 1.6; `content` makes what is saved of
    the tensors."""
    pickled = io.BytesIO()
    _TorchPickler(pickled, 2).dump(content({k: _Tensor(a, str(i)) for i, (k, a) in enumerate(state.items())}))
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('net/data.pkl', pickled.getvalue())
        archive.writestr('net/byteorder', 'little')
        for i, a in enumerate(state.values()):
            archive.writestr(f'net/data/{i}', a.ravel('K').tobytes())
