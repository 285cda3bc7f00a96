"""Counts the operations and weights of every network of the zoo, at the image sizes of its weights' evaluation (224
pixels if it has no weights), and writes ppcls_nb/facts/costs.csv.

python tools/make_costs.py     (a minute or two; the networks are not run, see `models.zoo.network_costs`)
"""
from pathlib import Path

import ppcls_nb
from ppcls_nb.basics import write_csv
from ppcls_nb.models.registry import WEIGHTS, list_models
from ppcls_nb.models.zoo import network_costs

FILE = Path(ppcls_nb.__file__).parent/'facts'/'costs.csv'


def pairs():
    "(network, size) of all weights and of the networks without weights, each once."
    sizes = [(record.arch, record.crop_size) for record in WEIGHTS.values()]
    without = set(list_models()) - {name for name, _ in sizes}
    return list(dict.fromkeys([*sizes, *((name, 224) for name in list_models() if name in without)]))


def main():
    rows = [network_costs(*pair) for pair in pairs()]
    write_csv(FILE, [list(rows[0]), *(list(row.values()) for row in rows)])
    print(f'{FILE}: {len(rows)} networks')


if __name__ == '__main__': main()
