"""Why Kafka cannot be used, or a partition cannot go on."""

from holdfast.core.errors import HoldfastError


class KafkaUnavailable(HoldfastError):  # noqa: N818  it reads as the state it reports
    """Kafka cannot be used as configured."""


class PartitionStopped(KafkaUnavailable):
    """A partition cannot go on before a person says where; the others can."""


class TopicsMismatch(KafkaUnavailable):
    """The topics' partitions do not go together; only a person can fix it."""
