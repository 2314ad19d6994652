"""Which partitions of predictions can get verdicts.

The verdicts on a partition go to the partition of the same number of each topic of verdicts. Somebody may add
partitions to predictions alone: the new ones are held until every topic of verdicts has them too, and the others go on.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from holdfast.kafka.errors import PartitionStopped
from holdfast.kafka.topic_settings import FIX
from holdfast.kafka.topics import describe_topics
from holdfast.settings import Settings

_VERDICTS = frozenset(("approved", "blocked", "malformed"))


@dataclass(frozen=True, slots=True)
class Counterparts:
    """Topics and their partition counts by role. At least predictions is among them."""

    names: Mapping[str, str]
    counts: Mapping[str, int]

    @property
    def judged(self) -> int:
        """How many partitions of predictions have their counterparts: those with a lower number."""
        beside = (count for role, count in self.counts.items() if role in _VERDICTS)
        return min(self.counts["predictions"], *beside)

    @property
    def held(self) -> range:
        """The partitions of predictions that wait for their counterparts."""
        return range(self.judged, self.counts["predictions"])

    def sentence(self, held: Iterable[int]) -> str:
        """What keeps these partitions from being judged."""
        numbers = list(held)
        places = ", ".join(f"{self.names['predictions']}/{number}" for number in numbers)
        short = [
            f"{self.names[role]} ({count})"
            for role, count in self.counts.items()
            if role in _VERDICTS and count <= max(numbers)
        ]
        return (
            f"{places} {'is' if len(numbers) == 1 else 'are'} held: {self.names['predictions']} has "
            f"{self.counts['predictions']} partitions, and fewer are in {', '.join(short)}, so that no verdict on "
            "such an output can be written. Nothing of it is approved or lost"
        )


async def counterparts(settings: Settings, roles: Iterable[str]) -> Counterparts:
    """Look at the topics. Raises KafkaUnavailable where one is missing or Kafka cannot be asked."""
    names = {role: str(getattr(settings.topics, role)) for role in roles}
    counts = await describe_topics(settings.kafka, list(names.values()))
    return Counterparts(names, {role: counts[name] for role, name in names.items()})


class Held(PartitionStopped):
    """A partition has no counterparts yet. It goes on by itself once it has."""

    def __init__(self, found: Counterparts, partition: int) -> None:
        super().__init__(f"{found.sentence([partition])}. Add the partitions, and it goes on by itself: {FIX}")
