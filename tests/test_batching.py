"`Batcher`: which images are run together, who is left out, and that an error of the network does not end it."
import asyncio, time

import numpy as np, pytest

from ppcls_nb.basics import PPClsError
from ppcls_nb.deploy.batching import Batcher


def fake_network(images):
    "The brightness of each image, and the number of images; an image of 9 breaks it."
    time.sleep(.02)
    if (images == 9).any():
        raise ValueError('a nine')
    return np.stack([images.mean((1, 2, 3)), np.full(len(images), len(images))], 1)


def gray(value): return np.full((3, 2, 2), value, np.float32)


def test_images_are_run_together_in_order():
    async def nine_requests():
        batches = []
        async with Batcher(fake_network, 4, on_batch=batches.append) as batcher:
            single = [batcher([gray(v)]) for v in range(7)]
            answers = await asyncio.gather(*single, batcher([gray(7), gray(8)]))
        return [row[0] for rows in answers for row in rows], batches
    values, batches = asyncio.run(nine_requests())
    assert values == list(range(9))
    assert [b.size for b in batches] == [4, 4, 1]
    assert all(b.run_seconds >= .02 and b.error is None for b in batches)


def test_cancelled_requests_are_left_out():
    runs = []
    def network(images):
        runs.append(images[:, 0, 0, 0].tolist())
        return fake_network(images)
    async def two_of_five_leave():
        async with Batcher(network, 2) as batcher:
            tasks = [asyncio.create_task(batcher([gray(v)])) for v in range(5)]
            await asyncio.sleep(.005)  # 0 and 1 are in the network now
            tasks[0].cancel()
            tasks[3].cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    asyncio.run(two_of_five_leave())
    assert runs == [[0, 1], [2, 4]]


def test_an_error_is_raised_for_its_batch_only():
    batches = []
    async def bad_then_good():
        async with Batcher(fake_network, 2, on_batch=batches.append) as batcher:
            bad = asyncio.create_task(batcher([gray(9)]))
            with pytest.raises(ValueError, match='a nine'):
                await bad
            return await batcher([gray(1)])
    assert asyncio.run(bad_then_good())[0].tolist() == [1, 1]
    assert [type(b.error) for b in batches] == [ValueError, type(None)]


@pytest.mark.parametrize('max_wait, size', [(60., 2), (0., 1)])
def test_a_batch_waits_for_requests_on_the_way(max_wait, size):
    async def two_requests():
        async with Batcher(fake_network, 8, max_wait) as batcher:
            with batcher.approaching():
                first = asyncio.create_task(batcher([gray(1)]))
                await asyncio.sleep(.002)
            second = asyncio.create_task(batcher([gray(2)]))
            return (await first)[0][1], (await second)[0][1]
    assert asyncio.run(two_requests()) == (size, size)


def test_many_arrivals():
    sizes, firsts = [], []
    def network(images):
        time.sleep((8 + 2*len(images))/1000)
        sizes.append(len(images))
        firsts.append(int(images[0, 0, 0, 0]))
        return np.zeros((len(images), 1))
    arrivals = np.cumsum(np.random.default_rng(0).exponential(1/150, 40))
    async def replay():
        async def request(i):
            await asyncio.sleep(arrivals[i])
            await batcher([gray(i)])
        async with Batcher(network, 8) as batcher:
            await asyncio.gather(*map(request, range(40)))
    asyncio.run(replay())
    assert sum(sizes) == 40
    assert max(sizes) <= 8
    assert len(sizes) < 40
    assert firsts == np.cumsum([0, *sizes[:-1]]).tolist()


@pytest.mark.parametrize('options, message', [((0, ), 'max_batch 0'), ((1, -1), 'max_wait -1')])
def test_wrong_limits(options, message):
    with pytest.raises(PPClsError, match=message):
        Batcher(fake_network, *options)
