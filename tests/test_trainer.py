"Metrics, the trainer, its callbacks and the run folder: corner cases and what is refused."
import numpy as np, paddle, pytest
from paddle import nn

from ppcls_nb.data.datasets import BadImage
from ppcls_nb.data.loader import make_loader
from ppcls_nb.train.metrics import TopK, _collect, _indices, _row, evaluate

# -- metrics

rng = np.random.default_rng(0)
X = paddle.to_tensor(rng.normal(size=(20, 10)).astype('float32'))
Y = paddle.to_tensor(rng.integers(0, 10, 20))


def batches_of(size): return [(X[i:i+size], Y[i:i+size]) for i in range(0, 20, size)]


@pytest.fixture(scope='module')
def net():
    paddle.seed(0)
    return nn.Sequential(nn.Linear(10, 10), nn.Dropout(0.5))


@pytest.fixture(scope='module')
def result(net): return evaluate(net, batches_of(6), nn.CrossEntropyLoss(), detail=True)


@pytest.mark.parametrize('size', [1, 3, 7, 20])
def test_counts_do_not_depend_on_the_batch_size(size):
    whole, parts = TopK(), TopK()
    whole.update(X, Y)
    for x, y in batches_of(size): parts.update(x, y)
    assert parts.as_dict() == whole.as_dict()
    assert whole.total == 20
    assert all(isinstance(n, int) for n in whole.as_dict().values())


def test_no_images():
    assert str(TopK()).startswith('top1:nan')


@pytest.mark.parametrize('size', [1, 3, 20])
def test_evaluations_do_not_depend_on_the_batch_size(net, result, size):
    other = evaluate(net, batches_of(size), nn.CrossEntropyLoss())
    assert other.metric.as_dict() == result.metric.as_dict()
    assert abs(other.loss - result.loss) < 1e-6
    np.testing.assert_array_equal(other.predictions, result.predictions)
    assert other.probs is other.losses is other.indices is None


def test_details_agree_with_counts_and_loss(net, result):
    assert result.hits[:, 0].sum() == result.metric.correct[1] == (result.labels == result.predictions).sum()
    assert abs(result.losses.mean() - result.loss) < 1e-6
    assert result.probs.shape == (20,)
    assert .1 < result.probs.min() <= result.probs.max() < 1


def test_an_empty_loader(net):
    assert evaluate(net, []).metric.total == 0
    assert evaluate(net, [], nn.CrossEntropyLoss()).loss is None


class Numbers(paddle.io.Dataset):
    "The rows of `X` and `Y` as samples; those in `broken` cannot be read."
    paths = [f'{i}.jpg' for i in range(20)]

    def __init__(self, broken=()): self.broken = broken
    def __len__(self): return 20
    def __getitem__(self, index):
        i = index[1]
        if i in self.broken:
            raise BadImage(self.paths[i], 'broken')
        return X[i].numpy(), Y[i].numpy()


def in_ranks(net, ranks, size, broken=(), skip_bad=False):
    "An `Evaluation` as `ranks` processes with batches of `size` would make it."
    def part(rank):
        loader = make_loader(Numbers(broken), size, rank=rank, ranks=ranks, skip_bad=skip_bad)
        net.eval()
        with paddle.no_grad():
            rows = [_row(net(a), b, nn.CrossEntropyLoss(), (1, 5), True) for a, b in loader]
        return rows, _indices(loader)
    return _collect([part(rank) for rank in range(ranks)], (1, 5), True)


@pytest.mark.parametrize('ranks, size', [(1, 6), (2, 3), (2, 20), (3, 4), (4, 1), (7, 5)])
def test_evaluations_do_not_depend_on_the_number_of_processes(net, result, ranks, size):
    other = in_ranks(net, ranks, size)
    assert other.as_dict() | {'valid_loss': 0} == result.as_dict() | {'valid_loss': 0}
    assert abs(other.loss - result.loss) < 1e-6
    assert other.indices.tolist() == list(range(20))
    for column in ('labels', 'predictions', 'hits'):
        np.testing.assert_array_equal(getattr(other, column), getattr(result, column))


def test_skipped_images_are_not_counted(net):
    broken = 3, 7, 19
    with pytest.warns(UserWarning, match='left out'): rest = in_ranks(net, 2, 3, broken, skip_bad=True)
    assert rest.metric.total == 17
    assert set(range(20)) - set(rest.indices) == set(broken)
    assert (rest.labels == Y.numpy()[rest.indices]).all()
    with pytest.raises(BadImage, match='7.jpg: broken'): in_ranks(net, 2, 3, broken)
