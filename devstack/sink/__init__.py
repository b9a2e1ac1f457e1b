"""An SMTP server that takes every mail, remembers it, and misbehaves when told to: `python -m devstack.sink`."""
