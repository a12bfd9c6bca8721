//! RFC 9110 as pure functions: ranges, conditions, negotiation, dates.
