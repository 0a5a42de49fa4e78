"""File formats that several competitions share."""
