//! Caches: open files and small responses, one per core.
