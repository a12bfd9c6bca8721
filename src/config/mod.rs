//! Configuration: raw (spanned tree) → lower (checked) → model (immutable snapshot), with diagnostics.
