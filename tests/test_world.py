"The embedded world: repeatable, grammatical, balanced, and labelled as promised."
import hashlib
import re

from distilherbert import world


def test_the_text_stays_the_same_until_the_version_changes():
    "Artefacts know the world by its version, so text that changes under the same one would be taken for the old."
    digest = hashlib.sha256()
    for part in ('old', 'ccsub'):
        for seed in (0, 1): digest.update(repr(list(world.labelled_lines(part, 50, seed))).encode())
    for task in world.WORLD_TASKS:
        for split in ('train', 'dev', 'test'): digest.update(repr(world.world_task(task, split, 3)).encode())
    assert (world.WORLD_VERSION, digest.hexdigest()[:16]) == (2, 'fb511dce708775b2'), 'raise WORLD_VERSION, and write the new digest here'
    assert list(world.world_documents('ccsub', 60))[:20] == list(world.world_documents('ccsub', 20))
    assert len({str(list(world.world_documents(p, 20, s))) for p in ('old', 'ccsub') for s in (0, 1)}) == 4


def test_every_pattern_can_be_said_of_every_head():
    "No gender leads to a missing form, in any mix."
    draw = world.stream('all')
    for mix in ('old', 'ccsub', 'labelled'):
        patterns = [p for d in world.DOMAINS for s in world.SIGNS for p in world._review_patterns(mix, d, s)]
        for p in [*patterns, *(p for t in world.TYPES for p in world._news_patterns(mix, t))]:
            agreeing = [(p.heads[head] if head >= 0 else ('',), table) for head, table in p.pieces if isinstance(table, dict)]
            assert all(table[g] for genders, table in agreeing for g in genders)
            assert re.fullmatch(r'[A-ZŻŹĆŚŁÓ][\w ,]*\.', world._say(p, draw))
