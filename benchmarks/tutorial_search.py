"""Searches the settings of the tutorials' cpu profile, on a held-out fifth of the training list.

python benchmarks/tutorial_search.py DATA OUT [--fold 0] [--trials NAME ...] [--table FILE.csv]

DATA is a folder of flowers102 or flowers102_64. The validation list is not used: each fold holds out another fifth of
the images of each class of train_list.txt and trains on the others; the student of a distillation is also trained on
the extra images without labels. A trial is a role of the tutorials with its own settings (TRIALS below); `teacher`
names the trial that trains the teacher, `start` the one whose weights are the start. Trials are run folders under OUT:
an interrupted one continues, a finished one is not repeated. `--table` adds the results of all finished trials to a CSV
file, with machine and date; rows of earlier days stay."""
import argparse, csv, shutil
from collections import defaultdict
from datetime import date
from pathlib import Path

import ppcls_nb  # before paddle: sets threads and MKL's path
from ppcls_nb.basics import PPClsError, suggest, write_csv, write_text
from ppcls_nb.recipe.build import Trainer
from ppcls_nb.data.lists import list_lines
from ppcls_nb.data.prepare import prepare_data
from ppcls_nb.course.profiles import Profile
from ppcls_nb.course.timing import machine_facts
from ppcls_nb.train import load_run

FOLDS = 5
LR = 'LEARNING_RATE.params.lr'
PARAMS = 'ARCHITECTURE.params'
SHARP = 'ARCHITECTURE.teacher_sharpening'

# The settings of all trials. They are repeated here, so that a later change of the profile does not change the trials.
COMMON = {
    LR: 0.02,
    PARAMS: {'bn_momentum': 0.99},
    'OPTIMIZER.regularizer.factor': 0.00001,
    'TRAIN.num_workers': 0,
    'VALID.num_workers': 0,
    'VALID.batch_size': 64,
}
LAYERS = {'_ef.*': 0.2, '_ef.*.[5-9]..*': 0.4, '_ef.*.1[0-9]..*': 0.6, '_ef.*.2[0-9]..*': 0.6}
ERASING = [{'RandomErasing': {'EPSILON': 0.5}}]
NO_DROP = {'bn_momentum': 0.97, 'dropout': 0.0, 'drop_connect': 0.0}

DECODE, FLIP, CHW = {'DecodeImage': {}}, {'RandFlipImage': {'flip_code': 1}}, {'ToCHWImage': {}}
NORMALIZE = {'NormalizeImage': dict(scale='1./255.', mean=[0.5]*3, std=[0.5]*3, order='')}


def crops(size, low, *more):
    "Training operations for `size` pixels: crops of at least the fraction `low` of the image, and `more` at the end."
    crop = {'RandCropImage': dict(size=size, scale=[low, 1.0], interpolation=2)}
    return [DECODE, crop, FLIP, NORMALIZE, *more, CHW]


def middle(size):
    "Validation operations for `size` pixels."
    resize = {'ResizeImage': dict(resize_short=size, interpolation=2)}
    return [DECODE, resize, {'CropImage': dict(size=size)}, NORMALIZE, CHW]


def trial(role, network, size, low=0.3, more=(), **changes):
    "A trial of `role` at `size` pixels, with crops as in `crops` and `changes` in the recipe."
    images = {'TRAIN.transforms': crops(size, low, *more), 'VALID.transforms': middle(size)}
    return {'role': role, 'ARCHITECTURE.name': network, 'image_shape': [3, size, size], **images, **changes}


def server(epochs=20):
    "The teacher, EfficientNet-Lite2 at 96 pixels."
    return trial('server_random_erasing', 'EfficientNetLite2', 96, more=ERASING,
                 pretrained_model='EfficientNet_Lite2_imagenet', epochs=epochs, valid_interval=5,
                 **{'ARCHITECTURE.lr_mult': LAYERS})


def finetune(lr, epochs=8, low=0.3, size=64, **params):
    "The finetuned server network at `size` pixels, with `params` of the network."
    return trial('server_finetune', 'EfficientNetLite2', size, low, pretrained_model='EfficientNet_Lite2_imagenet',
                 epochs=epochs, valid_interval=2, **{LR: lr, PARAMS: {'bn_momentum': 0.97, **params}})


def by_layer(role='server_by_layer', epochs=8, more=(), lr=0.02, **params):
    "The server network at 64 pixels, finetuned with learning rates by layer; with `more`, the teacher of the profile."
    return trial(role, 'EfficientNetLite2', 64, more=more, pretrained_model='EfficientNet_Lite2_imagenet',
                 epochs=epochs, valid_interval=2,
                 **{LR: lr, 'ARCHITECTURE.lr_mult': LAYERS, PARAMS: {'bn_momentum': 0.97, **params}})


def mobile(role, size, epochs=20, valid_interval=5, **changes):
    "EfficientNet-Lite0, trained with labels."
    start = {} if 'start' in changes else {'pretrained_model': 'EfficientNet_Lite0_imagenet'}
    return trial(role, 'EfficientNetLite0', size, epochs=epochs, valid_interval=valid_interval, **start, **changes)


def student(teacher='server_96', size=96, **changes):
    "EfficientNet-Lite0 at 48 pixels, distilled from the trial `teacher`, which sees `size` pixels."
    start = {} if 'start' in changes else {'pretrained_model': 'EfficientNet_Lite0_imagenet'}
    settings = {LR: 0.05, 'distill': {'kind': 'ce'}, 'epochs': 6, 'valid_interval': 3}
    answers = {'ARCHITECTURE.teacher_answers': 'stored', 'ARCHITECTURE.teacher_transforms': middle(size)}
    return trial('mobile_distilled', 'EfficientNetLite2_distill_EfficientNetLite0', 48, teacher=teacher,
                 **{**settings, **answers, **start, **changes})


SHARP_NO_DROP = {SHARP: 0.5, PARAMS: NO_DROP, 'low': 0.5}
PROFILE_MOBILE = {PARAMS: {'bn_momentum': 0.97}}
TRIALS = {
    'server_96': server(),
    'server_96_12_epochs': server(12),
    'finetune_64': finetune(0.02),
    'finetune_64_lr.01': finetune(0.01),
    'finetune_64_lr.005': finetune(0.005),
    'finetune_64_nodrop': finetune(0.01, **NO_DROP),
    'finetune_64_bn.9': finetune(0.01, bn_momentum=0.9),
    'finetune_64_bn.99': finetune(0.01, bn_momentum=0.99),
    'finetune_64_crop.5': finetune(0.01, low=0.5),
    'finetune_64_crop.5_nodrop': finetune(0.01, low=0.5, **NO_DROP),
    'finetune_64_lr.02_nodrop': finetune(0.02, **NO_DROP),
    'finetune_64_lr.04_nodrop': finetune(0.04, **NO_DROP),
    'finetune_64_lr.02_12_epochs_nodrop': finetune(0.02, 12, **NO_DROP),
    'finetune_80_lr.02_nodrop': finetune(0.02, size=80, **NO_DROP),
    'finetune_96_lr.02_nodrop': finetune(0.02, size=96, **NO_DROP),
    'finetune_64_12_epochs': finetune(0.01, 12),
    'finetune_64_12_epochs_nodrop': finetune(0.01, 12, **NO_DROP),
    'by_layer_64': by_layer(),
    'by_layer_64_nodrop': by_layer(**NO_DROP),
    'by_layer_64_lr.04_nodrop': by_layer(lr=0.04, **NO_DROP),
    'server_64': by_layer('server_random_erasing', 14, ERASING, bn_momentum=0.99),
    'server_64_nodrop': by_layer('server_random_erasing', 14, ERASING, **NO_DROP),
    'server_64_nodrop_bn.99': by_layer('server_random_erasing', 14, ERASING, **{**NO_DROP, 'bn_momentum': 0.99}),
    'server_64_lr.04_nodrop': by_layer('server_random_erasing', 14, ERASING, lr=0.04, **NO_DROP),
    'mobile_64': mobile('mobile_finetune', 64),
    'mobile_64_bn.9': mobile('mobile_finetune', 64, **{PARAMS: {'bn_momentum': 0.9, 'drop_connect': 0.0}}),
    'mobile_48': mobile('mobile_finetune', 48),
    'alone_48': mobile('mobile_alone', 48, 50, 10),
    'alone_48_warm': mobile('mobile_alone', 48, 50, 10, start='mobile_48'),
    'distilled_48': student(),
    'distilled_48_sharp_nodrop': student(**SHARP_NO_DROP),
    'distilled_48_warm': student(start='mobile_48'),
    'distilled_48_warm_sharp': student(start='mobile_48', **SHARP_NO_DROP),
    'mobile_48_12_epochs': mobile('mobile_finetune', 48, 12, 4, **PROFILE_MOBILE),
    'mobile_48_12_epochs_nodrop': mobile('mobile_finetune', 48, 12, 4, **{PARAMS: NO_DROP}),
    'alone_48_nodrop': mobile('mobile_alone', 48, 42, 14, start='mobile_48_12_epochs_nodrop', **{PARAMS: NO_DROP}),
    'alone_48_42_epochs': mobile('mobile_alone', 48, 42, 14, start='mobile_48_12_epochs', **PROFILE_MOBILE),
    'distilled_48_nodrop': student('server_64_nodrop', 64, start='mobile_48_12_epochs_nodrop', epochs=5,
                                   valid_interval=5, **{**SHARP_NO_DROP, SHARP: 1.0}),
    'distilled_48_nodrop_sharp': student('server_64_nodrop', 64, start='mobile_48_12_epochs_nodrop', epochs=5,
                                         valid_interval=5, **SHARP_NO_DROP),
    'distilled_48_5_epochs': student('server_96_12_epochs', start='mobile_48_12_epochs', epochs=5, valid_interval=5,
                                    **SHARP_NO_DROP),
}


def hold_out(info, fold: int, folder: Path):
    """`info` with new lists in `folder`.

    The images number `fold`, `fold` + 5, … of each class of the training list are the new validation list."""
    rows = {name: [line for _, line in list_lines(info.lists/f'{name}_list.txt')] for name in ('train', 'extra')}
    seen, parts = defaultdict(int), {'train': [], 'val': []}
    for row in rows['train']:
        label = row.rsplit(' ', 1)[1]
        parts['val' if seen[label] % FOLDS == fold else 'train'].append(row)
        seen[label] += 1
    parts.update(extra=rows['extra'], train_extra=parts['train'] + rows['extra'])
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in parts.items():
        write_text(folder/f'{name}_list.txt', '\n'.join(lines) + '\n')
    info.lists, info.counts = folder, {name: len(lines) for name, lines in parts.items()}
    return info


def copy_once(source: Path, target: Path):
    "Copy the folder `source`, if there is one, to `target`, if there is none."
    if source.is_dir() and not target.exists():
        shutil.copytree(source, target)


def trial_recipe(name: str, profile, info, folder: Path):
    "The recipe of the trial `name`, whose teacher and start are other trials in `folder`."
    changes = dict(TRIALS[name])
    role, teacher, start = (changes.pop(key, None) for key in ('role', 'teacher', 'start'))
    conf = profile.recipe(role, info, **changes)
    first = str(folder/start/'last') if start else conf.pretrained_model
    conf.pretrained_model = [str(folder/teacher/'last'), first] if teacher else first
    return conf


def run_trial(name: str, profile, info, folder: Path):
    "Train the trial `name` in `folder/name`, after the trials that it needs."
    if name not in TRIALS:
        raise PPClsError(suggest(name, TRIALS, 'trial'))
    if (folder/name/'predictions.npz').is_file():
        return
    teacher = TRIALS[name].get('teacher')
    for needed in filter(None, (teacher, TRIALS[name].get('start'))):
        run_trial(needed, profile, info, folder)
    conf = trial_recipe(name, profile, info, folder)
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
        for name, settings in TRIALS.items():
            try:
                run = load_run(fold/name)
            except PPClsError:
                continue
            if run.predictions is None:
                continue
            last = next(r for r in reversed(run.rows) if 'valid_total' in r)
            rows.append({
                'trial': name,
                'role': settings['role'],
                'fold': fold.name.removeprefix('fold-'),
                'steps': run.steps(),
                'correct': run.correct(),
                'images': run.total(),
                'loss': round(last['valid_loss'], 4),
                'minutes': round(run.seconds()/60, 1),
                'processor': machine['processor'],
                'paddle': machine['paddle'],
                'date': date.today().isoformat(),
            })
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data')
    parser.add_argument('out', type=Path)
    parser.add_argument('--fold', type=int, default=0, choices=range(FOLDS),
                        help='which fifth is held out, and the seed (%(default)s)')
    parser.add_argument('--trials', nargs='*', default=list(TRIALS), metavar='NAME', help='default: all of them')
    parser.add_argument('--table', type=Path, help='CSV file to add the results to')
    args = parser.parse_args()
    profile = Profile('search', seed=args.fold, common=COMMON)
    folder = args.out/f'fold-{args.fold}'
    info = hold_out(prepare_data(args.data, args.out/'data', {}), args.fold, folder/'lists')
    for name in args.trials:
        run_trial(name, profile, info, folder)
    rows = table(args.out)
    for row in rows:
        print(f"{row['trial']:28} fold {row['fold']}  {row['steps']:5} steps  {row['correct']}/{row['images']}  loss "
              f"{row['loss']:.3f}  {row['minutes']:5.1f} min")
    if args.table and rows:
        text = args.table.read_text() if args.table.exists() else ''
        earlier = [row for row in csv.DictReader(text.splitlines()) if row['date'] != rows[0]['date']]
        write_csv(args.table, [list(rows[0]), *(list(row.values()) for row in earlier + rows)])


if __name__ == '__main__':
    main()
