"""Everything remembered: Postgres, Redis, and Kafka's producer and admin."""
