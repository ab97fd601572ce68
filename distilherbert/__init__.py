__version__ = "0.1.0"

import sys
from importlib.util import find_spec

if find_spec('torch') is None:
    raise ModuleNotFoundError(
        f'distilherbert is here, but its requirements are not installed for {sys.executable}. In a checkout: `make install`, then '
        '`source .venv/bin/activate`; elsewhere: `pip install PATH_OF_THE_CHECKOUT`.', name='torch')
