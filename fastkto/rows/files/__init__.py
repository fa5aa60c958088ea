"""Files as they stand: text stays text, structure stays as it was written, and every record has its line."""
