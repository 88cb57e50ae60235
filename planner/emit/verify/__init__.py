"""Check emitted files: our own flag tables, schemas and arithmetic always, the real parsers where present."""
