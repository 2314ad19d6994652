"""The broker of this suite: TLS, a login for each service and for the producer, and the rights of `holdfast acls`."""

from collections.abc import Iterator

import pytest

import backends
from e2e.secure import Certificates, SecureKafka, TokenEndpoint


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[backends.Kafka]:
    """Nobody has more rights than the party whose attack a test plays."""
    try:
        backends.kafka_libraries()
    except backends.BackendError as error:
        pytest.skip(f"needs Apache Kafka from Maven: {error}")
    folder = tmp_path_factory.mktemp("secure")
    with SecureKafka(Certificates(folder), TokenEndpoint().write_jwks(folder / "jwks.json")) as broker:
        yield broker
