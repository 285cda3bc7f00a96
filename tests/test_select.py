"""Soft labels that survive being killed, several processes at once, a pool larger than memory should hold, and a recipe
that trains on the merged list."""
import os, subprocess, sys, tracemalloc

import cv2, numpy as np, pytest, yaml

from ppcls_nb.basics import PPClsError
from ppcls_nb.data.imaug import eval_ops
from ppcls_nb.data.petals import draw_scene, make_species
from ppcls_nb.distill.select import top_k_per_class, write_merged_list
from ppcls_nb.distill.soft_labels import SoftLabels, soft_labels
from ppcls_nb.models import create_model
from ppcls_nb.train import save_weights

OPS = eval_ops(32, 36)
HOW = dict(name='means', batch_size=4, shard_size=8, progress=False)
SCRIPT = '''
import sys, time
from ppcls_nb.data.imaug import eval_ops
from ppcls_nb.distill.soft_labels import ListedFiles, soft_labels
def means(images):
    print('batch', flush=True)
    time.sleep(float(sys.argv[3]))
    return 5*images.mean((2, 3))
out = soft_labels(means, ListedFiles(sys.argv[1]), eval_ops(32, 36), sys.argv[2], rank=int(sys.argv[4]), ranks=int(sys.argv[5]), name='means', batch_size=4, shard_size=8, progress=False)
print(out.complete)
'''


def means(images): return 5*images.mean((2, 3))


@pytest.fixture(scope='module')
def pool(tmp_path_factory):
    "pool.txt with 60 lines: 58 drawn flowers, one file that is no image, one that is missing."
    home = tmp_path_factory.mktemp('pool')
    for i in range(58):
        cv2.imwrite(str(home/f'{i:02}.png'), draw_scene(make_species(7*(i%3) + 1), np.random.default_rng(i), 36))
    (home/'broken.jpg').write_bytes(b'no image')
    (home/'pool.txt').write_text(''.join(f'{name}\n' for name in [
        *(f'{i:02}.png' for i in range(20)), 'broken.jpg', *(f'{i:02}.png' for i in range(20, 58)), 'missing.jpg']))
    return home/'pool.txt'


def files(pool): return [str(pool.parent/name) for name in pool.read_text().split()]


@pytest.fixture(scope='module')
def straight(pool, tmp_path_factory):
    "The soft labels that nobody disturbed."
    return soft_labels(means, files(pool), OPS, tmp_path_factory.mktemp('straight'), **HOW)


def start(pool, folder, pause=0., rank=0, ranks=1):
    return subprocess.Popen([
        sys.executable, '-W', 'ignore', '-c', SCRIPT,
        str(pool),
        str(folder),
        str(pause),
        str(rank),
        str(ranks)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={
            **os.environ, 'OMP_NUM_THREADS': '1'})


def contents(folder): return {f.name: f.read_bytes() for f in sorted(folder.iterdir())}


def test_killed_in_the_middle_of_a_shard_then_the_same_call_is_bit_equal(pool, straight, tmp_path):
    process = start(pool, tmp_path, .15)
    for _ in range(6): assert process.stdout.readline() == 'batch\n'
    process.kill()
    process.wait(timeout=60)
    half = SoftLabels(tmp_path)
    assert not half.complete
    assert 0 < len(half.missing()) < half.shards == 8
    with pytest.raises(PPClsError, match='shards are missing; run soft_labels'): top_k_per_class(half, 3)
    (tmp_path/f'.{half.shard_file(half.missing()[0]).name}.abc.tmp').write_bytes(b'what a process that was killed '
                                                                                 b'while it wrote leaves behind')
    seen = []
    done = soft_labels(lambda x: seen.append(len(x)) or means(x), files(pool), OPS, tmp_path, **HOW)
    assert done.complete
    assert len(seen) < 15
    assert contents(tmp_path) == contents(straight.folder)
    assert top_k_per_class(done, 9).rows == top_k_per_class(straight, 9).rows


def test_two_processes_share_the_work(pool, straight, tmp_path):
    process = start(pool, tmp_path, rank=0, ranks=2)
    mine = soft_labels(means, files(pool), OPS, tmp_path, rank=1, ranks=2, **HOW)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and 0 < out.count('batch') < 15, err
    assert (mine.complete or 'True' in out)
    assert contents(tmp_path) == contents(straight.folder)


def test_what_cannot_be_read_is_told_and_left_out(pool, straight):
    assert {
        os.path.basename(f): why
        for f, why in straight.failed.items()} == {
            'broken.jpg': 'not an image that can '
            'be decoded, or a '
            'damaged one (8 bytes)',
            'missing.jpg': 'No such file or directory'}
    assert len(straight) == 58
    assert not {'broken.jpg', 'missing.jpg'} & {os.path.basename(f) for s in straight for f in s.files}


@pytest.mark.parametrize('names, why', [([], 'an empty pool'), (['broken.jpg'], 'none of the 1 images in the pool '
                                                                                'could be read; the first: '
                                                                                '.*broken.jpg: ')])
def test_a_pool_of_nothing(pool, tmp_path, names, why):
    with pytest.raises(PPClsError, match=why):
        soft_labels(means, [str(pool.parent/n) for n in names], OPS, tmp_path, **HOW)


def test_memory_holds_a_shard_and_the_chosen_ones():
    rng, n, classes, k = np.random.default_rng(0), 2000, 50, 20
    def shards(count):
        for s in range(count):
            p = rng.random((n, classes), np.float32)
            yield [f'{s}/{i}.jpg' for i in range(n)], p/p.sum(1, keepdims=True)
    peak = []
    for count in (5, 25):
        tracemalloc.start()
        assert not top_k_per_class(shards(count), k).short
        peak.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peak[1] < 1.2*peak[0]


def test_a_recipe_trains_on_the_merged_list(pool, straight, tmp_path):
    from ppcls_nb.recipe.build import Trainer, load_config
    labelled = tmp_path/'labelled.txt'
    labelled.write_text(''.join(f'{i:02}.png {i%3}\n' for i in range(8)))
    chosen = top_k_per_class(straight, 4, rank='any')
    merged = write_merged_list(labelled, chosen, tmp_path/'train_list.txt', labelled_root=pool.parent)
    save_weights(tmp_path/'teacher.pdparams', create_model('MobileNetV1_x0_25', class_num=3))
    ops = [{
        'DecodeImage': {}}, {
            'ResizeImage': {
                'size': [32, 32]}}, {
                    'NormalizeImage': {
                        'order': ''}}, {
                            'ToCHWImage': None}]
    data = dict(batch_size=8, data_dir=str(merged.root), transforms=ops, num_workers=0)
    recipe = dict(ARCHITECTURE={'name': 'MobileNetV1_x0_25_distill_MobileNetV1_x0_25'}, use_distillation=True,
                  pretrained_model=[str(tmp_path/'teacher')], classes_num=3, epochs=1, LEARNING_RATE={
                      'function': 'Cosine',
                      'params': {
                          'lr': .01}}, OPTIMIZER={
                              'function': 'Momentum',
                              'params': {
                                  'momentum': .9}}, TRAIN=dict(data, file_list=str(merged.list)),
                  VALID=dict(data, file_list=str(labelled),
                             data_dir=str(pool.parent)), model_save_dir=str(tmp_path/'out'))
    (tmp_path/'ssld.yaml').write_text(yaml.safe_dump(recipe))
    t = Trainer.from_config(load_config(tmp_path/'ssld.yaml'), run=tmp_path/'run', bar=False)
    assert len(t.data.train.dataset) == len(merged) == merged.labelled + merged.selected
    assert (t.data.train.dataset.labels == -1).sum() == merged.selected > 0
    t.fit(1)
    assert t.metric.total == len(merged)
