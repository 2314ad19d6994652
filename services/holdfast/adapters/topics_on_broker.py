"""The settings of topics as they are on the broker."""

from collections.abc import Iterable

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError

from holdfast.settings import KafkaSettings


async def settings_of(kafka: KafkaSettings, topics: Iterable[str]) -> dict[str, dict[str, str]]:
    """By topic, its settings by name; a topic is absent whose settings this login may not see, or that is missing.

    All are absent where the broker cannot be asked, as the embedded one.
    """
    admin = AIOKafkaAdminClient(request_timeout_ms=10_000, **kafka.client_options())
    try:
        await admin.start()
        resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in topics]
        return {
            name: {entry[0]: entry[1] for entry in entries}
            for response in await admin.describe_configs(resources)
            for code, _, _, name, entries in response.resources
            if not code
        }
    except (KafkaError, OSError):
        return {}
    finally:
        await admin.close()
