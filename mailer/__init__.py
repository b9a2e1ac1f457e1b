"""Everything that speaks SMTP: MIME, relay connections, one mail at a time over the wire."""
