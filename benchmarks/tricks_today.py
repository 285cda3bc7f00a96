"""Tests today's tricks for training, each alone, on a held-out fifth of the training images of flowers102 at 32 pixels.

python benchmarks/tricks_today.py DATA OUT [--folds 0 1 2] [--tricks NAME ...] [--table FILE.csv]

DATA is a folder of flowers102 or flowers102_64. The first eleven blocks of EfficientNet-Lite0 with their ImageNet
weights are finetuned with AdamW and a cosine (BASE below), and again with each of TRICKS. Fold k holds out another
fifth of the images of each class of the training list; its number is also the seed, so all tricks of a fold have the
same images and the same initial classifier, and their differences are paired. The validation list is not used. Trials
are run folders under OUT: an interrupted one continues, a finished one is not repeated. `--table` writes the results
of all finished trials, with the machine, as CSV; nbs/11_guides/02a_tricks_today.ipynb draws
ppcls_nb/facts/tricks_today.csv."""
import argparse, contextlib, io
from datetime import date
from pathlib import Path

import ppcls_nb  # before paddle: sets threads and MKL's path
from paddle import nn
from ppcls_nb.basics import PPClsError, suggest, write_csv
from ppcls_nb.course.timing import machine_facts
from ppcls_nb.data.prepare import prepare_data
from ppcls_nb.models import Network, create_model, register_model
from ppcls_nb.recipe.build import Trainer, load_config
from ppcls_nb.recipe.data import use_data
from ppcls_nb.train import load_run
from tutorial_search import CHW, DECODE, FLIP, FOLDS, NORMALIZE, hold_out, middle

SIZE, EPOCHS, BLOCKS = 32, 5, 11


@register_model({'Lite0Trunk': {}})
class Lite0Trunk(Network):
    """The first 11 blocks of EfficientNet-Lite0 with ImageNet weights, a mean and a classifier: a fraction of the cost,
    (N, 3, H, W) → logits (N, class_num)."""
    cnhw, strides = True, (4, 8, 16)

    def __init__(self, class_num: int = 1000, drop_path_rate: float = 0.):
        super().__init__()
        whole = create_model('EfficientNetLite0', pretrained='EfficientNet_Lite0_imagenet', bn_momentum=0.97,
                             drop_path_rate=drop_path_rate*16/BLOCKS)
        self._ef, self.channels = whole._ef, whole.channels[:3]
        for name in self._ef.names[BLOCKS:]:
            del self._ef._sub_layers[name]
        self._ef.names = self._ef.names[:BLOCKS]
        self.fc = nn.Linear(self.channels[-1], class_num)

    def features(self, x): return self._ef(x)

    def logits(self, x): return self.fc(x.mean([2, 3]))



def operations(before=(), after=(), **crop):
    "Training operations, with `before` on uint8 and `after` on normalized images, and arguments of the crop."
    crop = {'RandCropImage': dict(size=SIZE, scale=[0.3, 1.0], interpolation=2, **crop)}
    return {'TRAIN.transforms': [DECODE, crop, FLIP, *before, NORMALIZE, *after, CHW]}


BASE = {
    'ARCHITECTURE.name': 'Lite0Trunk',
    'ARCHITECTURE.params': {},
    'pretrained_model': '',
    'epochs': EPOCHS,
    'valid_interval': EPOCHS,
    'image_shape': [3, SIZE, SIZE],
    'ls_epsilon': 0.1,
    'OPTIMIZER': {'function': 'AdamW', 'params': {}, 'regularizer': {'function': 'L2', 'factor': 0.05}},
    'LEARNING_RATE': {'function': 'Cosine', 'params': {'lr': 0.002, 'warmup_steps': 13}},
    'no_weight_decay': True,
    'TRAIN.batch_size': 32,
    'TRAIN.num_workers': 0,
    'VALID.num_workers': 0,
    'VALID.batch_size': 102,
    'VALID.transforms': middle(SIZE),
    **operations(),
}
MIX = {'use_mix': True, 'TRAIN.mix': [{'MixupOperator': {'alpha': 0.8}}, {'CutmixOperator': {'alpha': 1.0}}]}
MOMENTUM = {'function': 'Momentum', 'params': {'momentum': 0.9}, 'regularizer': {'function': 'L2', 'factor': 0.00001}}
TRICKS = {
    'base': {},
    'momentum': {'OPTIMIZER': MOMENTUM, 'LEARNING_RATE.params.lr': 0.02, 'no_weight_decay': False},
    'layer_decay': {'OPTIMIZER.layer_decay': 0.85},
    'ema': {'use_ema': True},
    'drop_path': {'ARCHITECTURE.params.drop_path_rate': 0.1},
    'trivial_augment': operations(before=[{'TrivialAugment': {}}]),
    'augmix': operations(before=[{'AugMix': {}}]),
    'erasing_pixel': operations(after=[{'RandomErasing': {'EPSILON': 0.25, 'sh': 0.333, 'mode': 'pixel'}}]),
    'aug_repeats': {'TRAIN.aug_repeats': 3},
    'mix': MIX,
    'mix_bce': {**MIX, 'bce_loss': True, 'bce_target_thresh': 0.2, 'ls_epsilon': -1},
    'progressive': operations(progressive=[[2, 16], [4, 24]]),
}


def recipe(name: str, fold: int, info):
    "The recipe of the trick `name` with the lists of `info`; the fold is the seed."
    if name not in TRICKS:
        raise PPClsError(suggest(name, TRICKS, 'trick'))
    return use_data(load_config('quick_start/ResNet50_vd', BASE, TRICKS[name], {'seed': fold}), info)


def run_trial(name: str, fold: int, info, folder: Path):
    "Train the trick `name` in `folder/name`, unless that was done."
    if not (folder/name/'predictions.npz').is_file():
        conf = recipe(name, fold, info)
        with contextlib.redirect_stdout(io.StringIO()):
            Trainer.from_config(conf, run=folder/name, bar=False).fit(conf.epochs)
    run = load_run(folder/name)
    print(f'fold {fold}  {name:16} {run.correct():4}/{run.total()}  {run.seconds():5.1f} s', flush=True)


def hits(run):
    "Whether each held-out image is right, bool (N,)."
    return run.predictions['hits'][:, 0].astype(bool)


def table(out: Path) -> list:
    """A row for each finished trial whose fold has a finished `base`; `gained` and `lost`: images that are right here
    and wrong there, and the reverse."""
    machine, rows = machine_facts(), []
    done = {folder for folder in out.glob('fold-*/*') if (folder/'predictions.npz').is_file()}
    for name in TRICKS:
        for fold in range(FOLDS):
            folder, base = out/f'fold-{fold}'/name, out/f'fold-{fold}'/'base'
            if not {folder, base} <= done:
                continue
            run, plain = load_run(folder), hits(load_run(base))
            last = next(r for r in reversed(run.rows) if 'valid_total' in r)
            trained = last['train_top1_correct']/last['train_total']
            rows.append(dict(trick=name, fold=fold, correct=run.correct(), images=run.total(),
                             gained=int((hits(run) & ~plain).sum()), lost=int((plain & ~hits(run)).sum()),
                             loss=round(last['valid_loss'], 4), train_top1=round(100*trained, 2),
                             steps=run.steps(), epochs=EPOCHS, size=SIZE,
                             processor=machine['processor'], paddle=machine['paddle'], ppcls_nb=ppcls_nb.__version__,
                             date=date.today().isoformat()))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data')
    parser.add_argument('out', type=Path)
    parser.add_argument('--folds', nargs='*', type=int, default=[0, 1, 2], choices=range(FOLDS), metavar='K',
                        help='which fifths are held out; default: the first three')
    parser.add_argument('--tricks', nargs='*', default=list(TRICKS), metavar='NAME', help='default: all of them')
    parser.add_argument('--table', type=Path, help='write this CSV file')
    args = parser.parse_args()
    folders = {fold: args.out/f'fold-{fold}' for fold in args.folds}
    infos = {fold: hold_out(prepare_data(args.data, args.out/'data', {}), fold, folder/'lists')
             for fold, folder in folders.items()}
    for name in args.tricks:
        for fold, folder in folders.items():
            run_trial(name, fold, infos[fold], folder)
    rows = table(args.out)
    if args.table and rows:
        write_csv(args.table, [list(rows[0]), *(list(row.values()) for row in rows)])


if __name__ == '__main__':
    main()
