"""Creates the catalogue's topics, explicitly and before anything starts."""

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from core.errors import Misconfigured, Unavailable
from core.settings import KafkaSettings
from schemas.topics import CATALOGUE, Topic


async def create_topics(settings: KafkaSettings) -> list[str]:
    """Makes those that are missing and returns their names.

    Raises Unavailable when no broker answers, Misconfigured when one refuses, or has a topic with other partitions.
    """
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap_servers, client_id="mailgenius-topics")
    try:
        await admin.start()
        existing = set(await admin.list_topics())
        missing = [topic for topic in CATALOGUE if settings.kafka_topic_prefix + topic.name not in existing]
        if missing:
            response = await admin.create_topics([_new(topic, settings) for topic in missing], timeout_ms=30_000)
            for name, code, *message in response.topic_errors:
                if code and for_code(code) is not TopicAlreadyExistsError:
                    raise Misconfigured(f"topic {name}: {(message or [for_code(code).__name__])[0]}")
        await _check_partitions(admin, settings)
        return [settings.kafka_topic_prefix + topic.name for topic in missing]
    except (KafkaError, OSError) as error:
        raise Unavailable("kafka", str(error) or type(error).__name__) from error
    finally:
        await admin.close()


async def _check_partitions(admin: AIOKafkaAdminClient, settings: KafkaSettings) -> None:
    wanted = {
        settings.kafka_topic_prefix + topic.name: topic.partitions or settings.kafka_partitions for topic in CATALOGUE
    }
    for described in await admin.describe_topics(list(wanted)):
        name, count = described["topic"], len(described["partitions"])
        if count and count != wanted[name]:
            raise Misconfigured(f"topic {name} has {count} partitions, KAFKA_PARTITIONS wants {wanted[name]}")


def _new(topic: Topic, settings: KafkaSettings) -> NewTopic:
    replicas = settings.kafka_replication_factor
    configs = {
        "max.message.bytes": str(topic.max_bytes),
        "cleanup.policy": "compact" if topic.compacted else "delete",
        "min.insync.replicas": str(min(2, replicas)),
        "message.timestamp.type": "LogAppendTime" if topic.broker_time else "CreateTime",
    }
    if not topic.compacted:
        configs["retention.ms"] = str(int(topic.retention.total_seconds() * 1000))
    return NewTopic(
        name=settings.kafka_topic_prefix + topic.name,
        num_partitions=topic.partitions or settings.kafka_partitions,
        replication_factor=replicas,
        topic_configs=configs,
    )
