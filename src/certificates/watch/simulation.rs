//! Seeded histories of two files on a disk, written by people and programs who make every mistake: the
//! server always has a pair that belongs together, and has that of the disk soon after it is one.

use super::*;
use crate::util::random::Random;

/// A file: which pair it belongs to, `None` for garbage or none. Each write gives it a mark of its own.
#[derive(Clone, Copy, Debug, PartialEq)]
struct File {
    pair: Option<u64>,
    mark: u64,
}

struct Disk {
    files: [File; 2],
    marks: u64,
    /// Since when the two don't belong together.
    wrong_since: Option<Instant>,
}

impl Disk {
    fn write(&mut self, file: usize, pair: Option<u64>, now: Instant) {
        self.marks += 1;
        self.files[file] = File {
            pair,
            mark: self.marks,
        };
        match self.pair() {
            Some(_) => self.wrong_since = None,
            None => _ = self.wrong_since.get_or_insert(now),
        }
    }

    fn pair(&self) -> Option<u64> {
        let [certificate, key] = self.files;
        certificate.pair.filter(|_| certificate.pair == key.pair)
    }

    fn marks(&self) -> [u64; 2] {
        self.files.map(|file| file.mark)
    }
}

fn history(seed: u64) {
    let mut random = Random::new(seed);
    let mut now = Instant::now();
    let file = File {
        pair: Some(0),
        mark: 0,
    };
    let mut disk = Disk {
        files: [file; 2],
        marks: 0,
        wrong_since: None,
    };
    let mut watch = Watch::new(disk.marks());
    let (mut used, mut next_pair, mut warnings, mut quiet) = (0, 1, 0_u64, 0_u64);
    // What was ever a pair on the disk.
    let mut pairs = vec![0];
    let begin = now;
    let mut well_at = now;
    for second in 0..4000 {
        now += Duration::from_secs(1);
        // Bursts of changes and long rests.
        let is_busy = (second / 100) % 2 == 0;
        if is_busy && random.below(4) == 0 {
            quiet = 0;
            match random.below(6) {
                // A renewal, in either order, the second write now or later.
                0 | 1 => {
                    let first = random.below(2) as usize;
                    disk.write(first, Some(next_pair), now);
                    if random.below(2) == 0 {
                        disk.write(1 - first, Some(next_pair), now);
                    }
                    next_pair += 1;
                }
                // The write that was missing.
                2 => {
                    let first = random.below(2) as usize;
                    let pair = disk.files[first].pair;
                    disk.write(1 - first, pair, now);
                }
                3 => disk.write(random.below(2) as usize, None, now),
                // Back to something old.
                4 => {
                    let pair = Some(random.below(next_pair));
                    disk.write(0, pair, now);
                    disk.write(1, pair, now);
                }
                _ => disk.write(0, disk.files[0].pair, now),
            }
        } else {
            quiet += 1;
        }
        pairs.extend(disk.pair());
        let mut step = watch.looked(disk.marks(), now);
        let mut read = None;
        if step == Step::Read {
            let marks = disk.marks();
            let certificate = disk.files[0].pair;
            if is_busy && random.below(8) == 0 {
                disk.write(1, Some(next_pair), now);
                next_pair += 1;
                quiet = 0;
            }
            let key = disk.files[1].pair;
            let outcome = match (certificate, key) {
                _ if marks != disk.marks() => Outcome::Torn,
                (Some(one), Some(other)) if one == other => {
                    read = Some(one);
                    if one == used {
                        Outcome::Same
                    } else {
                        Outcome::Better
                    }
                }
                _ => Outcome::Wrong(format!("{certificate:?} {key:?}")),
            };
            if matches!(outcome, Outcome::Same | Outcome::Better) {
                well_at = now;
            }
            step = watch.found(outcome, now);
        }
        match step {
            Step::Nothing | Step::Well => {}
            Step::Read => panic!("a read is answered by no other"),
            Step::Use => used = read.expect("only what was read can be used"),
            Step::Warn(why) if why == RESTLESS => warnings += 1,
            Step::Warn(_) => {
                warnings += 1;
                assert!(
                    disk.wrong_since.is_some(),
                    "seed {seed}, {second}: it isn't true"
                );
                assert!(
                    now - well_at >= PATIENCE,
                    "seed {seed}, {second}: too early"
                );
            }
        }
        assert!(
            pairs.contains(&used),
            "seed {seed}, {second}: {used} never was"
        );
        // Two looks until it rests, one more if the read was torn, and one again by time.
        if quiet > 13
            && let Some(pair) = disk.pair()
        {
            assert_eq!(used, pair, "seed {seed}, {second}");
        }
    }
    let most = now.duration_since(begin).as_secs() / WARNINGS_APART.as_secs() + 1;
    assert!(warnings <= most, "seed {seed}: {warnings} warnings");
    if let Some(since) = disk.wrong_since
        && now - since > WARNINGS_APART + PATIENCE
    {
        assert!(warnings > 0, "seed {seed}: nobody was told");
    }
}

#[test]
fn a_working_pair_is_never_lost_and_a_new_one_is_used_soon() {
    for seed in 0..300 {
        history(seed);
    }
}
