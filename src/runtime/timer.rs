//! A hierarchical timer wheel for one core.
//!
//! A server holds one or two timers per connection and nearly all of them are cancelled before
//! they fire, so inserting and cancelling have to be constant in time and free of allocation. The
//! wheel is pure: it is told the time and knows nothing of clocks, tasks or engines. Whoever owns
//! it asks for the next expiry, sleeps that long at most, and calls [`Wheel::advance`].
//!
//! # Shape
//! Level `l` has 64 slots of 64^l ms. A timer stands in the level of the highest base-64 digit in
//! which its deadline differs from the wheel's time, in the slot of that digit of the deadline.
//! Eleven levels hold all of `u64`, so no deadline is too far. Two things follow:
//!
//! - What a lower level holds expires before anything in a higher one, so the first occupied slot
//!   of the lowest occupied level is always next, and a jump of days visits occupied slots only.
//! - All timers with one deadline stand in one slot at any moment, so they fire in the order in
//!   which they were inserted.

use std::num::NonZeroU32;

/// Base-2 logarithm of the slots in a level.
const SLOT_BITS: u32 = 6;
/// Slots in a level: as many as a `u64` bitmap has bits.
const SLOTS: usize = 1 << SLOT_BITS;
/// Levels that hold all 64 bits of a deadline.
const LEVELS: usize = u64::BITS.div_ceil(SLOT_BITS) as usize;
/// No entry: the end of a list.
const NIL: u32 = u32::MAX;
/// The slot of an entry that isn't in the wheel.
const VACANT: u16 = u16::MAX;
/// How many timers of a coarse slot [`Wheel::next_expiry`] looks at before it settles for the
/// start of the slot. An idle core has few timers and so sleeps until the right moment; a busy one
/// pays one more wake per level at most.
const SCAN_MAX: usize = 4;

/// Names one inserted timer. It goes stale when the timer fires or is cancelled, and a stale key
/// does no harm: entries have generations, which repeat after 2^32 uses of one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TimerKey {
    index: u32,
    generation: NonZeroU32,
}

/// One timer, or a vacant entry in the list of those.
///
/// Invariants: while `slot` isn't [`VACANT`], the entry is in that slot's circular list through
/// `previous` and `next`; otherwise `next` is the next vacant entry.
#[derive(Debug)]
struct Entry {
    deadline_ms: u64,
    payload: u64,
    previous: u32,
    next: u32,
    generation: NonZeroU32,
    slot: u16,
}

const _: () = assert!(
    size_of::<Entry>() <= 40,
    "a timer is paid for by every connection"
);

/// Timers of one core, in ticks of 1 ms.
///
/// Invariants: `time_ms` never decreases; every timer has `deadline_ms >= time_ms` and stands where
/// [`place`] says for that pair; bit `s` of `occupied[l]` is set exactly when the list of slot `s`
/// of level `l` isn't empty.
#[derive(Debug)]
pub struct Wheel {
    time_ms: u64,
    occupied: [u64; LEVELS],
    heads: Box<[u32; LEVELS * SLOTS]>,
    entries: Vec<Entry>,
    vacant: u32,
    len: usize,
}

impl Wheel {
    /// An empty wheel whose time is `now_ms`, on whatever clock the owner uses.
    pub fn new(now_ms: u64) -> Self {
        Self {
            time_ms: now_ms,
            occupied: [0; LEVELS],
            heads: Box::new([NIL; LEVELS * SLOTS]),
            entries: Vec::new(),
            vacant: NIL,
            len: 0,
        }
    }

    /// How many timers are waiting.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no timer is waiting.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Starts a timer. A deadline that has passed fires at the next [`advance`](Self::advance).
    ///
    /// Allocates only when there are more timers than there ever were.
    ///
    /// # Panics
    /// With 2^32 - 1 timers, which is 128 GiB of them: connections are bounded long before.
    pub fn insert(&mut self, deadline_ms: u64, payload: u64) -> TimerKey {
        let deadline_ms = deadline_ms.max(self.time_ms);
        let index = self.take_vacant();
        let entry = &mut self.entries[index as usize];
        entry.deadline_ms = deadline_ms;
        entry.payload = payload;
        let generation = entry.generation;
        self.link(index);
        self.len += 1;
        TimerKey { index, generation }
    }

    /// Stops a timer. False when it has fired or was cancelled before.
    pub fn cancel(&mut self, key: TimerKey) -> bool {
        match self.entries.get(key.index as usize) {
            Some(entry) if entry.generation == key.generation && entry.slot != VACANT => {
                self.unlink(key.index);
                self.release(key.index);
                true
            }
            _ => false,
        }
    }

    /// When to call [`advance`](Self::advance) next, never before `now_ms` and never after the
    /// first deadline; `None` without timers. It is the first deadline itself when that falls into
    /// the first level or few timers stand in its slot, else the start of that slot.
    pub fn next_expiry(&self, now_ms: u64) -> Option<u64> {
        let (level, slot) = self.first_occupied()?;
        let mut expiry_ms = self.slot_start(level, slot);
        if level > 0 {
            let head = self.heads[level * SLOTS + slot];
            let (mut index, mut first_ms) = (head, u64::MAX);
            for _ in 0..SCAN_MAX {
                let entry = &self.entries[index as usize];
                first_ms = first_ms.min(entry.deadline_ms);
                index = entry.next;
                if index == head {
                    expiry_ms = first_ms;
                    break;
                }
            }
        }
        Some(expiry_ms.max(now_ms))
    }

    /// Moves the time to `now_ms` and appends the payload of every timer whose deadline isn't after
    /// it, earliest deadline first and in order of insertion among equals. A `now_ms` before the
    /// time of the last call does nothing.
    ///
    /// Takes time in proportion to the timers that fire or move to a finer level, however long the
    /// step is.
    pub fn advance(&mut self, now_ms: u64, fired: &mut Vec<u64>) {
        if now_ms < self.time_ms {
            return;
        }
        while let Some((level, slot)) = self.first_occupied() {
            let start_ms = self.slot_start(level, slot);
            if start_ms > now_ms {
                break;
            }
            // The time has to be that of the slot before its timers are placed again. A slot of
            // the first level may be the present one, whose start is the present time.
            self.time_ms = start_ms;
            self.empty_slot(level, slot, fired);
        }
        self.time_ms = now_ms;
    }

    /// Takes every timer out of a slot that has begun: those due fire, the others move down.
    fn empty_slot(&mut self, level: usize, slot: usize, fired: &mut Vec<u64>) {
        let head = std::mem::replace(&mut self.heads[level * SLOTS + slot], NIL);
        self.occupied[level] &= !(1 << slot);
        let mut index = head;
        loop {
            let entry = &self.entries[index as usize];
            let next = entry.next;
            if entry.deadline_ms == self.time_ms {
                fired.push(entry.payload);
                self.release(index);
            } else {
                self.link(index);
            }
            if next == head {
                return;
            }
            index = next;
        }
    }

    /// The slot that expires first: level and slot number.
    fn first_occupied(&self) -> Option<(usize, usize)> {
        let level = self.occupied.iter().position(|bits| *bits != 0)?;
        Some((level, self.occupied[level].trailing_zeros() as usize))
    }

    /// The first millisecond of an occupied slot: the digits of the time above the level, then the
    /// slot, then zeros.
    fn slot_start(&self, level: usize, slot: usize) -> u64 {
        let shift = level as u32 * SLOT_BITS;
        let below_next_level = u64::MAX
            .checked_shl(shift + SLOT_BITS)
            .map_or(u64::MAX, |mask| !mask);
        (self.time_ms & !below_next_level) | ((slot as u64) << shift)
    }

    /// Appends an entry to the list of the slot it belongs to.
    fn link(&mut self, index: u32) {
        let (level, slot) = place(self.time_ms, self.entries[index as usize].deadline_ms);
        let at = level * SLOTS + slot;
        let head = self.heads[at];
        let (previous, next) = if head == NIL {
            self.heads[at] = index;
            self.occupied[level] |= 1 << slot;
            (index, index)
        } else {
            let tail = self.entries[head as usize].previous;
            self.entries[tail as usize].next = index;
            self.entries[head as usize].previous = index;
            (tail, head)
        };
        let entry = &mut self.entries[index as usize];
        entry.previous = previous;
        entry.next = next;
        entry.slot = at as u16;
    }

    /// Takes an entry out of its slot's list.
    fn unlink(&mut self, index: u32) {
        let Entry {
            previous,
            next,
            slot,
            ..
        } = self.entries[index as usize];
        let at = usize::from(slot);
        if next == index {
            self.heads[at] = NIL;
            self.occupied[at / SLOTS] &= !(1 << (at % SLOTS));
            return;
        }
        self.entries[previous as usize].next = next;
        self.entries[next as usize].previous = previous;
        if self.heads[at] == index {
            self.heads[at] = next;
        }
    }

    /// An entry for a new timer.
    fn take_vacant(&mut self) -> u32 {
        if self.vacant != NIL {
            let index = self.vacant;
            self.vacant = self.entries[index as usize].next;
            return index;
        }
        let index = self.entries.len() as u32;
        assert!(
            self.entries.len() < NIL as usize,
            "timers are bounded by connections"
        );
        self.entries.push(Entry {
            deadline_ms: 0,
            payload: 0,
            previous: NIL,
            next: NIL,
            generation: NonZeroU32::MIN,
            slot: VACANT,
        });
        index
    }

    /// Gives back an entry that is in no list any more, and makes its keys stale.
    fn release(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        entry.generation = entry.generation.checked_add(1).unwrap_or(NonZeroU32::MIN);
        entry.slot = VACANT;
        entry.next = self.vacant;
        self.vacant = index;
        self.len -= 1;
    }
}

/// Level and slot of a deadline that isn't before `time_ms`.
fn place(time_ms: u64, deadline_ms: u64) -> (usize, usize) {
    debug_assert!(deadline_ms >= time_ms);
    let difference = (time_ms ^ deadline_ms) | (SLOTS as u64 - 1);
    let level = difference.ilog2() / SLOT_BITS;
    let slot = (deadline_ms >> (level * SLOT_BITS)) as usize % SLOTS;
    (level as usize, slot)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const DAY_MS: u64 = 24 * 60 * 60 * 1000;

    fn advance(wheel: &mut Wheel, now_ms: u64) -> Vec<u64> {
        let mut fired = Vec::new();
        wheel.advance(now_ms, &mut fired);
        fired
    }

    #[test]
    fn fires_at_the_deadline_and_not_one_tick_before() {
        for start in [0, 1, 63, 64, 4095, 4096, 1_000_000_007] {
            for delay in [1, 2, 63, 64, 65, 4095, 4096, 4097, 60_000, 30 * DAY_MS] {
                let mut wheel = Wheel::new(start);
                wheel.insert(start + delay, 7);
                assert!(
                    advance(&mut wheel, start + delay - 1).is_empty(),
                    "{start} + {delay}"
                );
                assert_eq!(advance(&mut wheel, start + delay), [7], "{start} + {delay}");
                assert!(wheel.is_empty());
            }
        }
    }

    #[test]
    fn a_deadline_in_the_past_fires_at_the_next_advance() {
        let mut wheel = Wheel::new(1000);
        wheel.insert(10, 1);
        wheel.insert(1000, 2);
        assert_eq!(wheel.next_expiry(1000), Some(1000));
        assert_eq!(advance(&mut wheel, 1000), [1, 2]);
    }

    #[test]
    fn a_jump_of_years_fires_everything_in_order() {
        let mut wheel = Wheel::new(5);
        for deadline in [400 * DAY_MS, 70, 6, DAY_MS, 64, 5000] {
            wheel.insert(deadline, deadline);
        }
        let fired = advance(&mut wheel, 4000 * DAY_MS);
        assert_eq!(fired, [6, 64, 70, 5000, DAY_MS, 400 * DAY_MS]);
    }

    #[test]
    fn the_last_moment_of_the_clock_is_a_deadline_like_others() {
        let mut wheel = Wheel::new(3);
        wheel.insert(u64::MAX, 1);
        assert_eq!(wheel.next_expiry(3), Some(u64::MAX));
        assert!(advance(&mut wheel, u64::MAX - 1).is_empty());
        assert_eq!(advance(&mut wheel, u64::MAX), [1]);
        wheel.insert(u64::MAX, 2);
        assert_eq!(advance(&mut wheel, u64::MAX), [2]);
    }

    #[test]
    fn a_stale_key_cancels_nothing() {
        let mut wheel = Wheel::new(0);
        let first = wheel.insert(10, 1);
        assert!(wheel.cancel(first));
        assert!(!wheel.cancel(first));
        let second = wheel.insert(10, 2);
        assert_eq!(first.index, second.index, "the entry is used again");
        assert!(!wheel.cancel(first));
        assert_eq!(advance(&mut wheel, 10), [2]);
        assert!(!wheel.cancel(second));
    }

    #[test]
    fn time_that_goes_backwards_fires_nothing() {
        let mut wheel = Wheel::new(100);
        wheel.insert(100, 1);
        assert!(advance(&mut wheel, 99).is_empty());
        assert_eq!(advance(&mut wheel, 100), [1]);
    }

    #[test]
    fn the_next_expiry_of_a_lone_timer_is_its_deadline() {
        let mut wheel = Wheel::new(60);
        assert_eq!(wheel.next_expiry(60), None);
        wheel.insert(60 + 30_000, 1);
        assert_eq!(wheel.next_expiry(61), Some(30_060));
        assert_eq!(wheel.next_expiry(40_000), Some(40_000), "never before now");
    }

    #[test]
    fn entries_are_used_again_so_nothing_is_allocated_after_the_first_round() {
        let mut wheel = Wheel::new(0);
        let mut fired = Vec::new();
        for round in 0..100u64 {
            let keys: Vec<_> = (0..50).map(|i| wheel.insert(round * 100 + i, i)).collect();
            for key in &keys[..25] {
                assert!(wheel.cancel(*key));
            }
            wheel.advance((round + 1) * 100, &mut fired);
            assert!(wheel.is_empty());
        }
        assert_eq!(wheel.entries.len(), 50);
        assert_eq!(fired.len(), 100 * 25);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert { delay_ms: u64 },
        InsertPast { ago_ms: u64 },
        Cancel { pick: usize },
        Advance { by_ms: u64 },
        AdvanceToNext,
    }

    fn span() -> impl Strategy<Value = u64> {
        prop_oneof![
            4 => 0..70u64,
            4 => 0..5000u64,
            2 => 0..300_000u64,
            1 => 0..40 * DAY_MS,
            1 => (0..60u32).prop_map(|bits| 1u64 << bits),
        ]
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => span().prop_map(|delay_ms| Step::Insert { delay_ms }),
            1 => (0..1000u64).prop_map(|ago_ms| Step::InsertPast { ago_ms }),
            4 => any::<usize>().prop_map(|pick| Step::Cancel { pick }),
            2 => span().prop_map(|by_ms| Step::Advance { by_ms }),
            2 => Just(Step::AdvanceToNext),
        ]
    }

    /// What the wheel has to do, as plainly as it can be said.
    struct Model {
        now_ms: u64,
        sequence: u64,
        timers: BTreeMap<(u64, u64), TimerKey>,
    }

    impl Model {
        fn insert(&mut self, wheel: &mut Wheel, deadline_ms: u64) {
            let key = wheel.insert(deadline_ms, self.sequence);
            self.timers
                .insert((deadline_ms.max(self.now_ms), self.sequence), key);
            self.sequence += 1;
        }

        fn advance(&mut self, wheel: &mut Wheel, now_ms: u64) {
            let later = self.timers.split_off(&(now_ms, u64::MAX));
            let due = std::mem::replace(&mut self.timers, later);
            let expected: Vec<u64> = due.keys().map(|(_, sequence)| *sequence).collect();
            self.now_ms = now_ms;
            assert_eq!(advance(wheel, now_ms), expected, "at {now_ms}");
            for key in due.values() {
                assert!(!wheel.cancel(*key), "a fired timer can't be cancelled");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn behaves_like_a_sorted_map(
            start in 0..1u64 << 40,
            steps in prop::collection::vec(step(), 1..300),
        ) {
            let mut wheel = Wheel::new(start);
            let mut model = Model { now_ms: start, sequence: 0, timers: BTreeMap::new() };
            for step in steps {
                let now_ms = model.now_ms;
                match step {
                    Step::Insert { delay_ms } => {
                        model.insert(&mut wheel, now_ms.saturating_add(delay_ms));
                    }
                    Step::InsertPast { ago_ms } => {
                        model.insert(&mut wheel, now_ms.saturating_sub(ago_ms));
                    }
                    Step::Cancel { pick } if !model.timers.is_empty() => {
                        let at = pick % model.timers.len();
                        let (&id, &key) = model.timers.iter().nth(at).unwrap();
                        model.timers.remove(&id);
                        prop_assert!(wheel.cancel(key));
                    }
                    Step::Cancel { .. } => {}
                    Step::Advance { by_ms } => {
                        model.advance(&mut wheel, now_ms.saturating_add(by_ms));
                    }
                    Step::AdvanceToNext => {
                        if let Some(next_ms) = wheel.next_expiry(now_ms) {
                            model.advance(&mut wheel, next_ms);
                        }
                    }
                }
                let first = model.timers.first_key_value().map(|((deadline, _), _)| *deadline);
                let next = wheel.next_expiry(model.now_ms);
                prop_assert_eq!(next.is_some(), first.is_some());
                if let (Some(next), Some(first)) = (next, first) {
                    prop_assert!(next <= first, "{} is after the first deadline {}", next, first);
                    if first ^ wheel.time_ms < SLOTS as u64 {
                        prop_assert_eq!(next, first, "exact within the first level");
                    }
                }
                prop_assert_eq!(wheel.len(), model.timers.len());
            }
        }
    }
}
