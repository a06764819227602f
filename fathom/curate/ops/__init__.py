"""The curation ops, one module each: read records, call the pure functions of `fathom/curate`, write what stays and what goes."""
