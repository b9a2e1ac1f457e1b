"""Bodies and answers of the HTTP API, a module for each noun."""
