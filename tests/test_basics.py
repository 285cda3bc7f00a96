"Errors, suggestions and atomic writing (nbs/01_data/01_basics.ipynb)."
import errno

import pytest

from ppcls_nb.basics import PPClsError, atomic_path, finite_or_none, first_few, json_text, suggest


@pytest.mark.parametrize('error, raised', [(ValueError(), ValueError),
                                           (OSError(errno.EACCES, 'no'), OSError),
                                           (OSError(errno.EFBIG, 'large'), PPClsError)])
def test_a_failed_write_leaves_the_old_file_alone(tmp_path, error, raised):
    target = tmp_path/'note.txt'
    target.write_text('old')
    with pytest.raises(raised):
        with atomic_path(target) as tmp:
            tmp.write_text('half')
            raise error
    assert target.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [target]


def test_suggestions():
    assert suggest('x', []) == "unknown name 'x'; valid: none"
    assert suggest('zzz', [f'net{i:02d}' for i in range(13)]).endswith('13 are valid, for example net00, net01, net02')
    assert first_few([], 3) == ''


def test_json_without_nan():
    assert finite_or_none({'a': (1.5, float('inf'))}) == {'a': [1.5, None]}
    assert json_text(['ä', float('nan')], indent=None) == '["ä", null]'
