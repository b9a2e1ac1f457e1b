"""Rules without I/O: lead cleaning, templates, retry, settings, errors, outcomes."""
