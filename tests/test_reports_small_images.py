"Networks whose kernels do not fit a small image: they name the smallest size, wherever such an image comes from."
import ppcls_nb  # before paddle: sets the threads
import numpy as np
import paddle
import pytest
from paddle.nn import functional as F

from ppcls_nb.basics import PPClsError
from ppcls_nb.models import count_flops, create_model
from ppcls_nb.models.inference import save_inference
from ppcls_nb.models.network import FeatureNet

from small_run import make_recipe, ppcls

SMALLEST = dict(AlexNet=63, GoogLeNet=61, InceptionV4=75, SqueezeNet1_0=35, SqueezeNet1_1=29)


@pytest.fixture
def strict_poolings(monkeypatch):
    "Poolings without padding refuse a map that their kernel does not fit."
    for name in ('max_pool2d', 'avg_pool2d'):
        def strict(x, kernel_size, stride=None, padding=0, *args, pool=getattr(F, name), **kw):
            assert padding or min(x.shape[2:]) >= kernel_size, f'a kernel of {kernel_size} on a map of {x.shape}'
            return pool(x, kernel_size, stride, padding, *args, **kw)
        monkeypatch.setattr(F, name, strict)


@pytest.mark.parametrize('name, size', SMALLEST.items())
def test_a_network_names_its_smallest_image(name, size, strict_poolings):
    model = create_model(name, class_num=3)
    for train in (True, False):
        model.train() if train else model.eval()
        with paddle.no_grad():
            outputs = model(paddle.rand([1, 3, size, size]))
        for logits in outputs if isinstance(outputs, (list, tuple)) else [outputs]:
            assert logits.shape == [1, 3]
            assert np.isfinite(logits.numpy()).all()
        for height, width in ((32, 24), (size - 1, size), (2*size, size - 1)):
            said = rf'{name}: images of {height}×{width} pixels .*, expected at least {size}×{size}'
            with pytest.raises(PPClsError, match=said):
                model(paddle.rand([1, 3, height, width]))
    with pytest.raises(PPClsError, match=f'expected at least {size}×{size}'):
        count_flops(model, 24)
    with pytest.raises(PPClsError, match=f'expected at least {size}×{size}'):
        FeatureNet(model)(paddle.rand([1, 3, 24, 24]))


def test_a_training_names_the_smallest_image(tmp_path):
    flowers = make_recipe(tmp_path)
    code, _, err = ppcls('train', '-c', flowers.recipe, '--data', flowers.garden, '-o',
                         'ARCHITECTURE.name=SqueezeNet1_0')
    assert code == 2
    assert 'SqueezeNet1_0: images of 32×32 pixels (height×width), expected at least 35×35' in err
    assert 'Traceback' not in err and err.count('\n') == 1
    assert not any((tmp_path/'output').rglob('*.pdparams'))


def test_an_export_may_leave_the_size_open(tmp_path):
    model = create_model('SqueezeNet1_0', class_num=3)
    assert save_inference(model, tmp_path, (3, None, None)).is_file()


def test_an_export_of_a_fixed_size_names_the_smallest_image(tmp_path):
    model = create_model('SqueezeNet1_0', class_num=3)
    for softmax in (False, True):
        with pytest.raises(PPClsError, match='SqueezeNet1_0: images of 32×40 pixels .*, expected at least 35×35'):
            save_inference(model, tmp_path/'net', (3, 32, 40), softmax)
    assert not (tmp_path/'net').exists()
    with pytest.raises(PPClsError, match='expected at least 35×35'):
        save_inference(FeatureNet(model), tmp_path/'net', (3, 32, 40))
