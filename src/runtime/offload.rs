//! Helper threads for what has no asynchronous form.
