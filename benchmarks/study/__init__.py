"""Does it help? Cells of a table, trained one after another; `docs/study.md` says what they say."""
