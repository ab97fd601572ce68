"""The comparisons of earlier runs of the grid of `real`, out of the history of this repository: on the task that all of them have."""
import json
import subprocess

from distilherbert.results import QUESTIONS, write_record
from distilherbert.scenario import checkout

FOLDER, TASK = 'results/real', 'nkjp-ner'


def git(*command): return subprocess.run(('git', *command), cwd=checkout(), check=True, capture_output=True, text=True).stdout
def read(name, commit): return json.loads(git('show', f'{commit}:{FOLDER}/{name}.json'))


def main():
    runs = {}  # By the training of T0, of which a run has one, to the last commit with its comparisons
    for commit in git('log', '--reverse', '--format=%h', '--', f'{FOLDER}/comparisons.json').split():
        runs[read('model-T0', commit)['provenance']['date']] = commit
    runs.pop(json.loads((checkout()/FOLDER/'model-T0.json').read_text('utf-8'))['provenance']['date'], None)
    for n, commit in enumerate(runs.values(), 1):
        record = read('comparisons', commit)
        values = {'pairs': [p for p in record['values']['pairs'] if (p['task'], p['selection']) == (TASK, 'heldout')
                            and any({a, b} == {p['a'], p['b']} for a, b, _ in QUESTIONS)],
                  'max_len': read('klej-E0', commit)['values'][TASK]['max_len']}
        print(write_record('bench', f'grid-{n}', values, units={'pairs': 'points'}, made=record['provenance'],
                           seconds=record['seconds'], command=record['command']))


if __name__ == '__main__': main()
