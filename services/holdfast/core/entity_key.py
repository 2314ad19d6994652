"""How an entity is known in what is remembered: by its id, or by a hash of it where the id is long.

Ids come from producers, and may have 1,000 characters. A memory of millions of them must not cost a kilobyte for each.
A hash has 128 bits: two ids with the same one are found by nobody, and a producer that found them would mix up its own.
"""

from hashlib import blake2b

LONG = 64
"""Characters of an id, beyond which its hash stands for it."""

EntityKey = str | bytes
"""A text is the id itself, and bytes are a hash, so no id can be taken for another one's hash."""


def entity_key(entity: str) -> EntityKey:
    """What stands for the entity: at most about 350 bytes as a Python object."""
    if len(entity) <= LONG:
        return entity
    return blake2b(entity.encode("utf-8", "surrogatepass"), digest_size=16).digest()
