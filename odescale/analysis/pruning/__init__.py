"""Which examples to keep: the student of maximum margin on a pruned pool, and where keeping hard ones overtakes easy ones."""
