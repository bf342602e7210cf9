"""The replay page: one self-contained HTML file that shows recorded episodes turn by turn."""
