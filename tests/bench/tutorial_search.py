"""The search behind the cpu profile of the tutorials: trials on a fifth of the training list that is held out, never on
the validation list.

python tests/bench/tutorial_search.py DATA OUT [--fold 0] [--trials NAME ...] [--table FILE.csv]

DATA is a folder of flowers102 or flowers102_64. Each fold holds out another fifth of the images of each class of
train_list.txt; the rest trains, and the student of a distillation also sees the unlabelled extra images. A trial is a
role of the profile with some changes (TRIALS below); a student names the trial that trained its teacher, and a trial
with `start` the one it starts from. Trials are run folders under OUT: one that was stopped goes on, one that is
finished is not repeated. `--table` writes what all finished trials reached, with the machine, as CSV."""
import argparse
import csv
import shutil
from collections import defaultdict
from datetime import date
from pathlib import Path

import ppcls_nb  # before paddle: chooses threads and MKL's path
from ppcls_nb.basics import PPClsError, atomic_path
from ppcls_nb.config import Trainer, load_profile
from ppcls_nb.data.prepare import prepare_data
from ppcls_nb.timing import machine_facts
from ppcls_nb.train import load_run

PROFILES = Path(__file__).resolve().parents[2]/'nbs'/'00_tutorials'/'profiles'
FOLDS = 5


def crops(size, low):
    "Training operations for `size` pixels, with crops of at least the share `low` of the image."
    normalize = {'NormalizeImage': dict(scale='1./255.', mean=[0.5]*3, std=[0.5]*3, order='')}
    crop = {'RandCropImage': dict(size=size, scale=[low, 1.0], interpolation=2)}
    return [{'DecodeImage': {}}, crop, {'RandFlipImage': {'flip_code': 1}}, normalize, {'ToCHWImage': {}}]


def middle(size, interpolation=2):
    "Validation operations for `size` pixels."
    ops = crops(size, 1)
    return [
        ops[0], {
            'ResizeImage': dict(resize_short=size, interpolation=interpolation)}, {
                'CropImage': dict(size=size)}, *ops[3:]]


def erasing(size, low):
    "As `crops`, with RandomErasing after the normalization."
    ops = crops(size, low)
    return [*ops[:4], {'RandomErasing': {'EPSILON': 0.5}}, ops[4]]


def server(size, low=0.3, **changes):
    "A trial of the teacher's role at `size` pixels."
    return dict(role='server_random_erasing', image_shape=[3, size, size], **{
        'TRAIN.transforms': erasing(size, low),
        'VALID.transforms': middle(size)}, **changes)


def plain(role, size=64, low=0.3, **changes):
    "A trial of `role` at `size` pixels, without RandomErasing."
    return dict(role=role, image_shape=[3, size, size], **{
        'TRAIN.transforms': crops(size, low),
        'VALID.transforms': middle(size)}, **changes)


def student(teacher, teacher_size=96, **changes):
    "A trial of the distillation from the trial `teacher`, at `size` pixels."
    return plain('mobile_distilled', teacher=teacher, **{'ARCHITECTURE.teacher_transforms': middle(teacher_size)},
                 **changes)


LR = 'LEARNING_RATE.params.lr'
MOMENTUM = 'ARCHITECTURE.params'
LAYERS = 'ARCHITECTURE.lr_mult'
SHARP = 'ARCHITECTURE.teacher_sharpening'
NO_DROP = {'bn_momentum': 0.97, 'dropout': 0.0, 'drop_connect': 0.0}
TRIALS = {
    'server_96': server(96),
    'server_96_12_epochs': server(96, epochs=12),
    'server_96_12_lr.05': server(96, epochs=12, **{LR: 0.05}),
    'server_96_12_bn.9': server(96, epochs=12, **{MOMENTUM: {
        'bn_momentum': 0.9}}),
    'server_96_12_one_rate': server(96, epochs=12, **{LAYERS: {}}),
    'finetune_64': plain('server_finetune', 64),
    'finetune_64_lr.01': plain('server_finetune', 64, **{LR: 0.01}),
    'finetune_64_lr.005': plain('server_finetune', 64, **{LR: 0.005}),
    'mobile_64': plain('mobile_finetune'),
    'mobile_64_bn.9': plain('mobile_finetune', **{MOMENTUM: {
        'bn_momentum': 0.9,
        'drop_connect': 0.}}),
    'mobile_64_bn.97': plain('mobile_finetune', **{MOMENTUM: {
        'bn_momentum': 0.97}}),
    'mobile_48': plain('mobile_finetune', 48),
    'mobile_48_bn.97': plain('mobile_finetune', 48, **{MOMENTUM: {
        'bn_momentum': 0.97}}),
    'alone_48': plain('mobile_alone', 48, epochs=50, valid_interval=10),
    'alone_48_warm': plain('mobile_alone', 48, epochs=50, valid_interval=10, start='mobile_48'),
    'distilled_48': student('server_96', size=48, epochs=6),
    'distilled_48_sharp': student('server_96', size=48, epochs=6, **{SHARP: 0.5}),
    'distilled_48_sharp_lr.02': student('server_96', size=48, epochs=6, **{
        SHARP: 0.5,
        LR: 0.02}),
    'distilled_48_sharp_nodrop': student('server_96', size=48, low=0.5, epochs=6, **{
        SHARP: 0.5,
        MOMENTUM: NO_DROP}),
    'distilled_48_warm': student('server_96', size=48, epochs=6, start='mobile_48'),
    'distilled_48_warm_sharp': student('server_96', size=48, low=0.5, epochs=6, start='mobile_48', **{
        SHARP: 0.5,
        MOMENTUM: NO_DROP}),
    'distilled_48_warm_sharp_lr.02': student('server_96', size=48, low=0.5, epochs=6, start='mobile_48', **{
        SHARP: 0.5,
        MOMENTUM: NO_DROP,
        LR: 0.02}),
    'distilled_48_warm_9_epochs': student('server_96', size=48, low=0.5, epochs=9, start='mobile_48', **{
        SHARP: 0.5,
        MOMENTUM: NO_DROP}),}


def hold_out(info, fold: int, folder: Path):
    """`info` with lists in `folder`, in which the images number `fold`, `fold` + 5, … of each class of the training
    list are the validation list."""
    rows = {name: (info.lists/f'{name}_list.txt').read_text().splitlines() for name in ('train', 'extra')}
    seen, parts = defaultdict(int), {'train': [], 'val': []}
    for row in rows['train']:
        label = row.rsplit(' ', 1)[1]
        parts['val' if seen[label] % FOLDS == fold else 'train'].append(row)
        seen[label] += 1
    parts.update(extra=rows['extra'], train_extra=parts['train'] + rows['extra'])
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in parts.items():
        with atomic_path(folder/f'{name}_list.txt') as tmp:
            tmp.write_text('\n'.join(lines) + '\n')
    info.lists, info.counts = folder, {name: len(lines) for name, lines in parts.items()}
    return info


def copy_once(source: Path, target: Path):
    "Copy the folder `source`, if there is one, to `target`, if there is none."
    if source.is_dir() and not target.exists():
        shutil.copytree(source, target)


def run_trial(name: str, profile, info, folder: Path):
    "Train the trial `name` in `folder/name`, after those that it needs."
    if name not in TRIALS:
        raise PPClsError(f"unknown trial '{name}', expected one of {', '.join(TRIALS)}")
    if (folder/name/'predictions.npz').is_file():
        return
    changes = dict(TRIALS[name])
    role, teacher, start = (changes.pop(key, None) for key in ('role', 'teacher', 'start'))
    for needed in filter(None, (teacher, start)):
        run_trial(needed, profile, info, folder)
    conf = profile.recipe(role, info, **changes)
    first = str(folder/start/'last') if start else conf.pretrained_model
    conf.pretrained_model = [str(folder/teacher/'last'), first] if teacher else first
    own, common = folder/name/'teacher_answers', folder/f'answers-{teacher}'
    if teacher:
        copy_once(common, own)
    Trainer.from_config(conf, run=folder/name).fit(conf.epochs)
    if teacher:
        copy_once(own, common)


def table(out: Path) -> list:
    "A row for each finished trial of each fold."
    machine, rows = machine_facts(), []
    for fold in sorted(out.glob('fold-*')):
        for name, trial in TRIALS.items():
            try:
                run = load_run(fold/name)
            except PPClsError:
                continue
            if run.predictions is None:
                continue
            last = next(r for r in reversed(run.rows) if 'valid_total' in r)
            rows.append(
                dict(trial=name, role=trial['role'], fold=fold.name.removeprefix('fold-'), steps=run.steps(),
                     correct=run.correct(), images=run.total(), loss=round(last['valid_loss'],
                                                                           4), minutes=round(run.seconds()/60, 1),
                     processor=machine['processor'], paddle=machine['paddle'], date=date.today().isoformat()))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data')
    parser.add_argument('out', type=Path)
    parser.add_argument('--fold', type=int, default=0, choices=range(FOLDS), help='which fifth is held out, and the '
                                                                                  'seed (%(default)s)')
    parser.add_argument('--trials', nargs='*', default=list(TRIALS), metavar='NAME', help='default: all of them')
    parser.add_argument('--table', type=Path, help='write this CSV file')
    args = parser.parse_args()
    profile = load_profile('cpu', PROFILES, seed=args.fold)
    folder = args.out/f'fold-{args.fold}'
    info = hold_out(prepare_data(args.data, args.out/'data', {}), args.fold, folder/'lists')
    for name in args.trials:
        run_trial(name, profile, info, folder)
    rows = table(args.out)
    for row in rows:
        print(f"{row['trial']:28} fold {row['fold']}  {row['steps']:5} steps  {row['correct']}/{row['images']}  loss "
              f"{row['loss']:.3f}  {row['minutes']:5.1f} min")
    if args.table and rows:
        with atomic_path(args.table) as tmp, open(tmp, 'w', newline='') as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == '__main__':
    main()
