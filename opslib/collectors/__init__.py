"""READ. Each module asks one source, or joins several; a source that does not answer is a row of coverage."""
