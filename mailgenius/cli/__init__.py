"""The CLI `mailgenius`: what the client does, typed. Tables for people, lines of JSON for programs."""
