"""Grants in Kafka what `holdfast acls kafka` prints, through a login that may change access lists."""

from collections.abc import Sequence

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.admin import CreateAclsRequest, CreateAclsRequest_v1
from aiokafka.protocol.api import Request

from holdfast.core.grants import Grant
from holdfast.kafka.errors import KafkaUnavailable
from holdfast.kafka.login import explain
from holdfast.settings import KafkaSettings

# Numbers of the protocol: org.apache.kafka.common.resource.ResourceType, PatternType, acl.AclOperation.
_KINDS = {"topic": 2, "group": 3, "transactional-id": 5}
_LITERAL, _PREFIXED = 3, 4
_OPERATIONS = {"Read": 3, "Write": 4, "Create": 5, "Alter": 7, "Describe": 8, "DescribeConfigs": 10, "AlterConfigs": 11}
_ALLOW, _ANY_HOST = 3, "*"

Entry = tuple[int, str, int, str, str, int, int]
"""Kind, name, pattern, principal, host, operation, permission: in the order of the request."""


def entries(grants: Sequence[Grant]) -> list[Entry]:
    """One for each operation on each resource."""
    return [
        (
            _KINDS[grant.kind],
            name,
            _PREFIXED if grant.prefixed else _LITERAL,
            grant.principal,
            _ANY_HOST,
            _OPERATIONS[operation],
            _ALLOW,
        )
        for grant in grants
        for name in grant.names
        for operation in grant.operations
    ]


class _CreateAcls(Request[CreateAclsRequest_v1]):  # type: ignore[misc]
    """All entries in one request: aiokafka's own takes one."""

    API_KEY = CreateAclsRequest.API_KEY

    def __init__(self, wanted: Sequence[Entry]) -> None:
        self._wanted = list(wanted)

    def build(self, request_struct_class: type[CreateAclsRequest_v1]) -> CreateAclsRequest_v1:
        return request_struct_class(self._wanted)


async def grant_all(kafka: KafkaSettings, grants: Sequence[Grant]) -> int:
    """Add what is missing, and take nothing away; return how many entries there are. Raises KafkaUnavailable."""
    wanted = entries(grants)
    admin = AIOKafkaAdminClient(request_timeout_ms=30_000, **kafka.client_options())
    try:
        await admin.start()
        answer = await admin._send_request(_CreateAcls(wanted))
        for code, message in answer.creation_responses:
            if code:
                raise for_code(code)(message or "the access list is not taken")
    except (KafkaError, OSError) as error:
        raise KafkaUnavailable(await explain(kafka, error)) from None
    finally:
        await admin.close()
    return len(wanted)
