"""The server: a JSON API over `SearchR3`, and one page that uses it."""
