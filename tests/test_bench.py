"The scripts in bench/ measure something at a size of seconds; those that take a whole profile start."
import json
import sys

import pytest
from conftest import TOP, run_program

SCRIPTS = sorted(f.stem for f in (TOP/'bench').glob('*.py'))
# The smallest run of each script and the record that it writes, if any. test_classify runs deployment.
SMALLEST = dict.fromkeys(('deployment', 'grid', 'times'), ('--help', '')) | {
    'data': ('--small', ''), 'kill_data': ('--small --kills 2 --workers 1', ''), 'fuzz': ('--seconds 1 --no-record', ''),
    'kill_train': ('--kills 2 --scenarios S4 --processes 1', 'kill_train'), 'devices': ('--shape tiny --steps 3', 'devices'),
    'step': ('--shapes tiny --rounds 1', 'step'), 'recipes': ('recipes layers rates taught again maps --small', ''),
    'repeats': ('', 'grid-1'),
}


@pytest.mark.slow
@pytest.mark.parametrize('script', SCRIPTS)
def test_a_script_measures(script, tmp_path):
    options, record = SMALLEST[script]
    env = {'DISTILHERBERT_RUNS': tmp_path/'runs', 'OMP_NUM_THREADS': '1'}
    done = run_program(sys.executable, f'bench/{script}.py', *options.split(), env=env, timeout=900)
    assert done.returncode == 0 and done.stdout.strip(), done.stdout + done.stderr
    written = {f.stem: json.loads(f.read_text('utf-8')) for f in (tmp_path/'runs'/'results').rglob('*.json')}
    if record: assert written[record]['values'] and written[record]['provenance']['machine']
    else: assert not written, 'a small run leaves no record'
