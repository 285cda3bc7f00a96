"Samplers, threads and loaders in all combinations (nbs/01_data/07_loader.ipynb)."
import itertools
from pathlib import Path

import cv2, numpy as np, paddle, pytest

from ppcls_nb.basics import PPClsError
from ppcls_nb.data.datasets import ImageDataset
from ppcls_nb.data.loader import EpochSampler, make_loader, map_ahead


@pytest.mark.parametrize('n, size, drop', list(itertools.product((1, 6, 7), (1, 3, 10), (False, True))))
def test_every_sample_is_in_one_batch(n, size, drop):
    sampler = EpochSampler(n, size, shuffle=True, drop_last=drop)
    batches = list(sampler)
    indices = [i for batch in batches for _, i in batch]
    assert len(sampler) == len(batches)
    assert len(set(indices)) == len(indices) == (n//size*size if drop else n)
    assert all(len(batch) <= size for batch in batches)


@pytest.mark.parametrize('n, ranks, drop', list(itertools.product((5, 24, 25, 31), (2, 3), (False, True))))
def test_ranks_divide_the_batches_of_one_process(n, ranks, drop):
    whole = list(EpochSampler(n, 4*ranks, True, drop))
    samplers = [EpochSampler(n, 4, True, drop, rank=r, ranks=ranks) for r in range(ranks)]
    parts = [list(s) for s in samplers]
    assert [len(part) for part in parts] == [len(s) for s in samplers]
    assert [sum(batch, []) for batch in itertools.zip_longest(*parts, fillvalue=[])] == whole


def test_wrong_arguments():
    with pytest.raises(PPClsError, match='batch_size 0: expected 1 or more'):
        EpochSampler(7, 0)
    with pytest.raises(PPClsError, match='rank 2 of 2: expected 0…1'):
        EpochSampler(7, 2, rank=2, ranks=2)


def test_results_before_an_exception_arrive():
    assert list(map_ahead(abs, [], 2)) == []
    results = map_ahead(lambda x: 1/x, [2, 1, 0], 2)
    assert [next(results), next(results)] == [.5, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def decode(data, rng):
    img = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if img is None:
        raise PPClsError('not an image')
    return img


def noisy(img, rng): return img + rng.normal(0, 9, img.shape).astype(np.float32)


@pytest.fixture
def paths(tmp_path):
    for i in range(20):
        cv2.imwrite(str(tmp_path/f'{i}.jpg'), np.full((16, 16, 3), 10*i, np.uint8))
    return [str(tmp_path/f'{i}.jpg') for i in range(20)]


@pytest.fixture
def ds(paths): return ImageDataset(paths, np.arange(20)//4, [decode, noisy])


def test_types_and_sizes(ds):
    loader = make_loader(ds, 8, shuffle=True)
    images, labels = next(iter(loader))
    assert len(loader) == 3
    assert isinstance(images, paddle.Tensor)
    assert (images.dtype, labels.dtype) == (paddle.float32, paddle.int64)
    assert sum(len(labels) for _, labels in make_loader(ds, 8, drop_last=True)) == 16


def test_all_fields_of_all_ranks(ds):
    def batches(size, **options):
        loader = make_loader(ds, size, shuffle=True, **options)
        loader.set_epoch(3)
        return [[t.numpy() for t in batch] for batch in loader]
    whole = batches(8)
    halves = [batches(4, rank=r, ranks=2, num_workers=w) for r, w in ((0, 2), (1, 1))]
    for one, two in zip(whole, zip(*halves)):
        for field, parts in zip(one, zip(*two)):
            assert (field == np.concatenate(parts)).all()


def buggy(img, rng): return img/None


def exits(img, rng):
    raise SystemExit('enough')


@pytest.mark.parametrize('workers', [0, 1, 2, 4])
def test_exceptions_arrive(paths, workers):
    with pytest.raises(PPClsError, match=r'\d+.jpg: TypeError in an operation') as bug:
        list(make_loader(ImageDataset(paths, [0]*20, [decode, buggy]), 4, num_workers=workers))
    assert isinstance(bug.value.__cause__, TypeError)
    with pytest.raises(SystemExit, match='enough'):
        list(make_loader(ImageDataset(paths, [0]*20, [decode, exits]), 4, num_workers=workers))
    assert len(list(make_loader(ImageDataset(paths, [0]*20, [decode]), 4, num_workers=workers))) == 5


@pytest.mark.parametrize('workers', [0, 1, 2, 4])
def test_a_damaged_image_is_named(ds, workers):
    Path(ds.paths[2]).write_bytes(b'not an image at all')
    with pytest.raises(PPClsError, match=r'^\S*/2.jpg: not an image$'):
        list(make_loader(ds, 8, num_workers=workers))


@pytest.mark.parametrize('workers', [0, 2])
def test_skipped_images(ds, workers, recwarn):
    Path(ds.paths[2]).write_bytes(b'not an image at all')
    loader = make_loader(ds, 8, num_workers=workers, skip_bad=True)
    for _ in range(2):
        assert [len(labels) for _, labels in loader] == [7, 8, 4]
    assert len([w for w in recwarn if 'left out' in str(w.message)]) == 1
    assert loader.skipped == {ds.paths[2]: 'not an image'}
    labels = [labels.tolist() for _, labels in make_loader(ds, 1, skip_bad=True, num_workers=workers)]
    assert labels == [[label] for label in np.delete(ds.labels, 2)]


def test_mistakes_are_never_skipped(paths):
    with pytest.raises(PPClsError, match='TypeError'):
        list(make_loader(ImageDataset(paths, [0]*20, [decode, buggy]), 4, skip_bad=True))
