"""The comparisons of earlier runs of the grid of `real`, out of the history of this repository: on the task that all of them have."""
import json
import subprocess

from distilherbert.results import QUESTIONS, write_record
from distilherbert.scenario import checkout

FOLDER, TASK = 'results/real', 'nkjp-ner'


def git(*command): return subprocess.run(('git', *command), cwd=checkout(), check=True, capture_output=True, text=True).stdout

def read(name, commit): return json.loads(git('show', f'{commit}:{FOLDER}/{name}.json'))


def main():
    now = json.loads((checkout()/FOLDER/'comparisons.json').read_text('utf-8'))['provenance']
    commits = git('log', '--reverse', '--format=%h', '--', f'{FOLDER}/comparisons.json').split()
    earlier = [(c, record) for c in commits if (record := read('comparisons', c))['provenance'] != now]
    for n, (commit, record) in enumerate(earlier, 1):
        values = {'pairs': [p for p in record['values']['pairs'] if (p['task'], p['selection']) == (TASK, 'heldout')
                            and any({a, b} == {p['a'], p['b']} for a, b, _ in QUESTIONS)],
                  'max_len': read('klej-E0', commit)['values'][TASK]['max_len']}
        print(write_record('bench', f'grid-{n}', values, units={'pairs': 'points'}, made=record['provenance'],
                           seconds=record['seconds'], command=record['command']))


if __name__ == '__main__': main()
