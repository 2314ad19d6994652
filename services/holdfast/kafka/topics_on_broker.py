"""The settings of topics as they are on the broker, as far as this login and this broker tell them."""

from collections.abc import Iterable

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from holdfast.kafka.topic_settings import settings_of
from holdfast.settings import KafkaSettings


async def told_settings(kafka: KafkaSettings, topics: Iterable[str]) -> dict[str, dict[str, str]]:
    """By topic, its settings by name; nothing where the broker tells nothing, as the embedded one."""
    admin = AIOKafkaAdminClient(request_timeout_ms=10_000, **kafka.client_options())
    try:
        await admin.start()
        found = await settings_of(admin, topics)
        return {topic: {key: setting.value for key, setting in chosen.items()} for topic, chosen in found.items()}
    except (KafkaError, OSError):
        return {}
    finally:
        await admin.close()
