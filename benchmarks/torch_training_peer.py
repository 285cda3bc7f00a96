"""A contestant of torch_training.py, which runs in a separate process and makes steps on request; see `serve` in
augment_peers.py.

python torch_training_peer.py ours|ours-plain|ours-one-thread|old|torch|torch-channels-last FOLDER BATCH   FOLDER: where
'ours' writes the weights and the others read them

Weights are copied from network to network in the order of their layers. Where timm's networks differ from ours, they
are changed, so that all compute the same. There is no dropout and no stochastic depth, so that gradients are
comparable."""
import collections, functools, gc, os, pickle, sys, time
from pathlib import Path

import numpy as np
from augment_peers import serve

CLASSES, LR, MOMENTUM = 102, 1e-3, 0.9
NETWORKS = dict(
    MobileNetV3_small_x1_0=('mobilenetv3_small_100', dict(dropout=0.)),
    MobileNetV3_large_x1_0=('mobilenetv3_large_100', dict(dropout=0.)),
    EfficientNetB0_small=('tf_efficientnet_lite0', dict(act='relu6', padding='SAME', dropout=0., drop_connect=0.)),
    # timm's name, our arguments
    ResNet18_vd=('resnet18d', {}),
    ResNet50_vd=('resnet50d', {}))
# slope of our gates' hard sigmoid (0.2) divided by timm's (1/6): the weights of the layer before timm's gates are
# multiplied by it, which costs no time
GATE = np.float32(1.2)


class Answers:
    """The methods that can be called in a contestant's process.

    `layers` of a model are (name, layer, tensors); the tensors of a batch norm are scale, shift, mean, variance."""
    def __init__(self, name, folder, n):
        self.name, self.folder, self.n, self.network = name, Path(folder), n, functools.lru_cache(maxsize=1)(self.build)

    def batch(self, size):
        "Images (n, 3, size, size), float32, and labels (n,), int64."
        rng = np.random.default_rng(0)
        return self.to_tensors(
            rng.normal(size=(self.n, 3, size, size)).astype(np.float32), rng.integers(0, CLASSES, self.n))

    def backward(self, model, x, y): self.library.nn.functional.cross_entropy(model(x), y).backward()
    def train(self, model, optimizer, x, y):
        self.backward(model, x, y)
        optimizer.step()
        self.clear(optimizer)
    def eval(self, model, optimizer, x, y):
        with self.library.no_grad(): return model(x)

    def time(self, network, size, mode, steps):
        "Seconds that the steps take, [processor, wall]."
        step, data, (model, optimizer) = getattr(self, mode), self.batch(size), self.network(network)
        model.train() if mode == 'train' else model.eval()
        gc.collect()
        gc.disable()
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(steps):
            step(model, optimizer, *data)
        took = time.process_time() - cpu, time.perf_counter() - wall
        gc.enable()
        return took

    def outputs(self, network, size):
        "Write the logits in evaluation mode and the gradients in training mode, of the network as it is built."
        data, (model, optimizer) = self.batch(size), self.build(network)
        model.eval()
        logits = self.eval(model, optimizer, *data).numpy()
        model.train()
        self.backward(model, *data)
        gradients = []
        for name, _, tensors in self.layers(model):
            gradients += [self.converted(name, t.grad.numpy()).ravel() for t in tensors if t.grad is not None]
        np.savez(self.folder/f'{self.name}.npz', logits=logits, gradients=np.concatenate(gradients))


class Ours(Answers):
    "ppcls_nb on Paddle."
    def __init__(self, name, folder, n):
        import ppcls_nb  # before paddle: sets the environment
        import paddle
        super().__init__(name, folder, n)
        self.library, self.package = paddle, ppcls_nb
        if name == 'ours-plain':
            from ppcls_nb.models.small_conv import Conv2D
            Conv2D.fast = False

    def version(self):
        names = 'OMP_NUM_THREADS', 'MKL_DEBUG_CPU_TYPE'
        variables = ', '.join(f'{name} {os.environ.get(name, "unset")}' for name in names)
        return (f'ppcls_nb {self.package.__version__} of {Path(self.package.__file__).parents[1]}, '
                f'Paddle {self.library.__version__}, {variables}')

    def to_tensors(self, x, y): return self.library.to_tensor(x), self.library.to_tensor(y)
    def clear(self, optimizer): optimizer.clear_grad()
    def converted(self, name, a): return a
    def layers(self, model):
        found = [(name, layer, layer.parameters(include_sublayers=False)) for name, layer in model.named_sublayers()]
        return [(name, layer, tensors) for name, layer, tensors in found if tensors]

    def build(self, network):
        """(model, optimizer) with the weights of the file, which is written first if it does not exist.

        Batch norms and biases get random values, as after some training."""
        from ppcls_nb.models import create_model
        self.library.seed(0)
        model = create_model(network, class_num=CLASSES, **NETWORKS[network][1])
        rng = np.random.default_rng(0)
        path = self.folder/network

        def randomized(a):
            if a.ndim > 1:
                return a
            return (a*rng.uniform(.5, 1.5, a.shape) + rng.uniform(0, .2, a.shape)).astype(np.float32)

        if not path.is_file():
            weights = [([randomized(t.numpy()) for t in tensors], getattr(layer, '_epsilon', None))
                       for _, layer, tensors in self.layers(model)]
            path.write_bytes(pickle.dumps(weights))
        for (_, _, tensors), (arrays, _) in zip(self.layers(model), pickle.loads(path.read_bytes()), strict=True):
            for t, a in zip(tensors, arrays, strict=True):
                t.set_value(a)
        return model, self.library.optimizer.Momentum(LR, MOMENTUM, model.parameters())


class Torch(Answers):
    "timm's networks on PyTorch, in its default layout or with channels last."
    def __init__(self, name, folder, n):
        import timm, torch
        super().__init__(name, folder, n)
        self.library, self.timm, self.changed = torch, timm, {}
        self.layout = torch.channels_last if name == 'torch-channels-last' else torch.contiguous_format

    def version(self):
        return (f'PyTorch {self.library.__version__}, timm {self.timm.__version__}, '
                f'{self.library.get_num_threads()} thread(s)')

    def changes(self, network): return self.changed[network]
    def to_tensors(self, x, y):
        return self.library.from_numpy(x).contiguous(memory_format=self.layout), self.library.from_numpy(y)
    def clear(self, optimizer): optimizer.zero_grad()
    def converted(self, name, a): return a.T if a.ndim == 2 else a*GATE if name.endswith('conv_expand') else a
    def layers(self, model):
        found = []
        for name, layer in model.named_modules():
            parameters = list(layer.parameters(recurse=False))
            if parameters:
                found.append((name, layer, [*parameters, *(b for b in layer.buffers(recurse=False) if b.ndim)]))
        return found

    def add_missing(self, network, model):
        "Add the layers that only our network has to timm's; returns a list of the changes."
        from timm.models._efficientnet_blocks import InvertedResidual
        from torch import nn
        if network.startswith('MobileNetV3'):
            first = model.blocks[0][0]
            model.blocks[0][0] = InvertedResidual(16, 16, 3, first.conv_dw.stride[0], exp_ratio=1., act_layer=nn.ReLU)
            model.blocks[0][0].se = first.se
            return ['1×1 convolution added to the first block', 'slope of the gates 0.2']
        if network != 'ResNet18_vd':
            return []
        model.layer1[0].downsample = nn.Sequential(nn.Conv2d(64, 64, 1, bias=False), nn.BatchNorm2d(64))
        return ['1×1 convolution added to the first shortcut']

    def build(self, network):
        nn = self.library.nn
        model = self.timm.create_model(NETWORKS[network][0], num_classes=CLASSES)
        resized = collections.Counter()
        changed = ['no dropout', 'epsilon of batch norms', *self.add_missing(network, model)]
        weights = pickle.loads((self.folder/network).read_bytes())
        weights = [([self.converted(name, a) for a in arrays], eps)
                   for (name, _, _), (arrays, eps) in zip(self.layers(model), weights, strict=True)]
        # what remains: 1×1 convolutions and the linear layer
        for (name, _, tensors), (arrays, _) in zip(self.layers(model), weights):
            if [t.shape for t in tensors] == [a.shape for a in arrays]: continue
            (out_c, in_c, *_), bias = arrays[0].shape, len(arrays) == 2
            linear = arrays[0].ndim == 2
            model.set_submodule(name, nn.Linear(in_c, out_c, bias) if linear else nn.Conv2d(in_c, out_c, 1, bias=bias))
            resized[name.split('.')[-1]] += 1
        for (_, layer, tensors), (arrays, eps) in zip(self.layers(model), weights):
            if eps:
                layer.eps = eps
            for t, a in zip(tensors, arrays, strict=True):
                t.data.copy_(self.library.tensor(a))
        self.changed[network] = changed + [f'shape of {n} {name}' for name, n in resized.items()]
        model = model.to(memory_format=self.layout)
        return model, self.library.optim.SGD(model.parameters(), LR, MOMENTUM)


if __name__ == '__main__':
    name, folder, n = sys.argv[1:]
    serve(lambda: (Torch if name.startswith('torch') else Ours)(name, folder, int(n)))
