"""The contract: Kafka messages, topics, headers, HTTP bodies, states and ids. Imports no driver and does no I/O, but for
`publish`, which writes it down.
"""
