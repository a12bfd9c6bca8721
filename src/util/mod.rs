//! Small things that know nothing of the rest: clocks, seeded random, byte rings.
