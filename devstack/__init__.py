"""Real servers for one machine, from packages: Kafka, Postgres, Valkey and a mail sink, and our processes on them."""
