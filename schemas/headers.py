"""Headers of a dead letter: UTF-8 text, numbers in decimal, times in epoch milliseconds."""

ORIGINAL_TOPIC = "x-original-topic"
ORIGINAL_PARTITION = "x-original-partition"
ORIGINAL_OFFSET = "x-original-offset"
ORIGINAL_TIMESTAMP = "x-original-timestamp"
ORIGINAL_CONSUMER_GROUP = "x-original-consumer-group"
FAILED_STAGE = "x-failed-stage"
ERROR_KIND = "x-error-kind"
ERROR_CODE = "x-error-code"
EXCEPTION_CLASS = "x-exception-class"
EXCEPTION_MESSAGE = "x-exception-message"
EXCEPTION_STACKTRACE = "x-exception-stacktrace"
ATTEMPT = "x-attempt"
REPLAY_COUNT = "x-replay-count"
REPLAYED_BY = "x-replayed-by"
TRACEPARENT = "traceparent"

STACKTRACE_MAX_BYTES = 4096
