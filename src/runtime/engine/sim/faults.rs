//! Chance, what may go wrong by it, and the record of what did.

use std::collections::VecDeque;
use std::fmt::Write as _;

/// A small seeded generator (SplitMix64): the same seed gives the same numbers on every machine.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator with this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`; 0 when `end` is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(end)) >> 64) as u64
    }

    /// A number from `first` up to and including `last`.
    pub fn between(&mut self, first: u64, last: u64) -> u64 {
        first + self.below(last.saturating_sub(first).saturating_add(1))
    }

    /// True with this probability, 0 to 1. Impossible events take no number from the sequence.
    pub fn chance(&mut self, probability: f64) -> bool {
        probability > 0.0 && (self.bits() >> 11) as f64 / (1u64 << 53) as f64 <= probability
    }

    /// A length of 1 to `len`, often close to one of the ends, where the bugs are.
    pub fn part(&mut self, len: usize) -> usize {
        match self.below(4) {
            0 => 1,
            1 => len.saturating_sub(1).max(1),
            _ => self.between(1, len.max(1) as u64) as usize,
        }
    }
}

/// How likely each fault is at each occasion, 0 to 1. The default is a machine without faults.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Faults {
    /// A receive or a read gives fewer bytes than there are.
    pub short_read: f64,
    /// A send takes fewer bytes than there is room for.
    pub short_write: f64,
    /// A delivery finds the connection broken: both ends see a reset.
    pub reset: f64,
    /// A receive ends with `ENOBUFS`.
    pub no_buffers: f64,
    /// An accept or an open fails with `EMFILE`.
    pub no_descriptors: f64,
    /// A turn submits only the first part of what was asked; the rest waits in the overflow queue.
    pub queue_full: f64,
    /// A completion is seen up to 5 ms after its effect.
    pub late: f64,
    /// A cancellation finds the op just making progress.
    pub cancel_race: f64,
    /// A multishot op ends by itself, with a good result and without "more".
    pub multishot_end: f64,
    /// A turn ends early with nothing, as after a signal.
    pub empty_turn: f64,
    /// A plain call (send, sendfile) answers `EAGAIN` although there is room.
    pub would_block: f64,
    /// A page or a path isn't in memory: the plain call answers `EAGAIN`.
    pub cold: f64,
    /// A disk takes up to 2 s to open a file, and for what the page cache is to have.
    pub slow_disk: f64,
    /// A file read fails with `EIO`.
    pub io_error: f64,
    /// A helper's job takes up to 50 ms more.
    pub job_delay: f64,
    /// A helper's job panics.
    pub job_loss: f64,
    /// A connect of the core is refused.
    pub connect_refused: f64,
    /// A connect of the core is never answered.
    pub connect_lost: f64,
    /// No pipe can be had.
    pub no_pipe: f64,
    /// A file can't be opened with O_DIRECT.
    pub no_direct: f64,
    /// A read into a fixed buffer takes up to 100 ms.
    pub slow_direct: f64,
    /// A zero-copy send is refused for what it is.
    pub zero_copy_refused: f64,
    /// A notification says that the kernel has copied.
    pub zero_copy_copied: f64,
    /// A notification comes up to 400 ms later.
    pub late_notification: f64,
}

impl Faults {
    /// Some of the faults, each at a rate of its own, as the seed decides: runs with few kinds of
    /// faults reach states that runs with all of them don't.
    pub fn seeded(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x6661_756c_7473);
        let mut rate = |max: f64| {
            let size = random.below(1000) as f64 / 1000.0;
            if random.below(2) == 0 {
                0.0
            } else {
                size * size * max
            }
        };
        Self {
            short_read: rate(0.9),
            short_write: rate(0.9),
            reset: rate(0.1),
            no_buffers: rate(0.3),
            no_descriptors: rate(0.3),
            queue_full: rate(0.5),
            late: rate(0.5),
            cancel_race: rate(0.9),
            multishot_end: rate(0.5),
            empty_turn: rate(0.3),
            would_block: rate(0.5),
            cold: rate(0.5),
            slow_disk: 0.0,
            io_error: rate(0.05),
            job_delay: rate(0.5),
            job_loss: rate(0.2),
            connect_refused: rate(0.3),
            connect_lost: rate(0.3),
            no_pipe: rate(0.5),
            no_direct: rate(0.5),
            slow_direct: rate(0.5),
            zero_copy_refused: rate(0.2),
            zero_copy_copied: rate(0.5),
            late_notification: rate(0.9),
        }
    }
}

/// How many of the last notes are kept for a report.
const NOTES_KEPT: usize = 1000;

struct Note {
    at_ns: u64,
    what: &'static str,
    subject: u64,
    value: i64,
}

/// What happened, as a hash of all of it and the last notes in words.
#[derive(Default)]
pub(super) struct Trace {
    hash: u64,
    notes: VecDeque<Note>,
}

impl Trace {
    pub(super) fn note(&mut self, at_ns: u64, what: &'static str, subject: u64, value: i64) {
        for part in [at_ns, what.len() as u64, subject, value as u64] {
            self.hash = mix(self.hash, part);
        }
        self.hash = mix(self.hash, checksum(what.as_bytes()));
        if self.notes.len() == NOTES_KEPT {
            self.notes.pop_front();
        }
        self.notes.push_back(Note {
            at_ns,
            what,
            subject,
            value,
        });
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    /// The last notes, one a line.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for note in &self.notes {
            let ms = note.at_ns as f64 / 1e6;
            let (what, subject, value) = (note.what, note.subject, note.value);
            // Writing to a string doesn't fail.
            let _ = writeln!(text, "{ms:12.4} ms  {what:<14} {subject:#x} {value}");
        }
        text
    }
}

fn mix(hash: u64, value: u64) -> u64 {
    (hash.rotate_left(5) ^ value).wrapping_mul(0x517c_c1b7_2722_0a95)
}

/// A hash that tells any change of these bytes; eight at a time, because every send is checked.
pub(super) fn checksum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let hash = words.iter().fold(bytes.len() as u64, |hash, word| {
        mix(hash, u64::from_le_bytes(*word))
    });
    rest.iter()
        .fold(hash, |hash, byte| mix(hash, u64::from(*byte)))
}
