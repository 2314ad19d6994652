"""All that stands on aiokafka. An import of the package changes aiokafka where its own way does not serve."""

from aiokafka.producer import sender

from holdfast.kafka.login import renew_logins
from holdfast.kafka.no_topic_creation import forbid_topic_creation
from holdfast.kafka.records import replace_readers
from holdfast.kafka.refusals import replace_produce_handler

replace_readers()
replace_produce_handler()
renew_logins()
forbid_topic_creation()
# How long a transaction waits that follows closely on another; the library's 20 ms are more than the markers take.
sender.BACKOFF_OVERRIDE = 0.002
