"""What minicelery has beside its core, each imported by who wants it."""
