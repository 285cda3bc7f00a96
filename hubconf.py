"""Entry points for `paddle.hub`: every network of ppcls_nb by its name, in one line and without an installed copy of the package.

    import paddle
    net = paddle.hub.load('OWNER/ppcls_nb', 'ResNet50_vd', pretrained=True)          # source='github', or 'local' with a folder
    paddle.hub.list(FOLDER, source='local')                                          # all names
    paddle.hub.help(FOLDER, 'ResNet50_vd', source='local')                           # what one takes

The package's requirements must be installed; `dependencies` names those that Paddle checks first.
"""
dependencies = ['paddle', 'numpy', 'cv2', 'yaml', 'omegaconf', 'fastcore', 'tqdm']

from ppcls_nb.models import create_model as _create_model, list_models as _list_models, model_info as _model_info


def _entry(name):
    "The function that `paddle.hub` calls for the network `name`."
    def build(pretrained=False, class_num=1000, **kwargs): return _create_model(name, pretrained=pretrained, class_num=class_num, **kwargs)
    weights = ', '.join(_model_info(name)['weights']) or 'none'
    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"""{name}: float32 images (N, 3, H, W) → logits (N, class_num).

    pretrained: False for fresh weights, True for the official ones, a tag ({weights}), or a file.
    class_num: number of classes; with another one than the weights', the classifier starts fresh.
    Other arguments are those of ppcls_nb.models.create_model."""
    return build


globals().update({name: _entry(name) for name in _list_models()})
