"""Looking at a topic never creates it.

A client that asks for the metadata of a topic lets a broker with `auto.create.topics.enable` create the topic, with the
broker's defaults: routes and state would then be deleted after a week. aiokafka asks so everywhere, and has no option
for it, so the one place that builds such a request forbids the creation for every client of this process.
"""

from typing import Any

from aiokafka.errors import IncompatibleBrokerVersion
from aiokafka.protocol.metadata import MetadataRequest

_FORBIDS_FROM = 4
"""The first version of the request that can forbid it: brokers from 0.11 on, the first ones with transactions."""


def forbid_topic_creation() -> None:
    """Let no metadata request of this process create a topic."""
    MetadataRequest.build = _build


def _build(self: Any, request_struct_class: Any) -> Any:
    if request_struct_class.API_VERSION >= _FORBIDS_FROM:
        return request_struct_class(self._topics, False)
    if self._topics:
        raise IncompatibleBrokerVersion("a broker older than Kafka 0.11 may create each topic that it is asked about")
    return request_struct_class([] if request_struct_class.API_VERSION < 1 and self._topics is None else self._topics)
