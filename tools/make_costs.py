"""Counts the operations and weights of every network of the zoo, at the image sizes of its weights' evaluation, and
writes ppcls_nb/facts/costs.csv.

python tools/make_costs.py     (a minute or two; the networks are not run, see `models.zoo.network_costs`)
"""
from pathlib import Path

import ppcls_nb
from ppcls_nb.basics import write_csv
from ppcls_nb.models.registry import fact_rows
from ppcls_nb.models.zoo import network_costs

FILE = Path(ppcls_nb.__file__).parent/'facts'/'costs.csv'


def pairs():
    "(network, size) of all official weights, each once."
    rows = fact_rows('weights') + fact_rows('weights_later')
    return list(dict.fromkeys((r['arch'], int(r['crop_size'])) for r in rows))


def main():
    rows = [network_costs(*pair) for pair in pairs()]
    write_csv(FILE, [list(rows[0]), *(list(row.values()) for row in rows)])
    print(f'{FILE}: {len(rows)} networks')


if __name__ == '__main__': main()
