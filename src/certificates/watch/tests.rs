//! What happens to files, second by second, and what follows from it.

use super::*;

const S: Duration = Duration::from_secs(1);

/// A watch with a clock: each look is a second later.
struct Story {
    watch: Watch<u32>,
    now: Instant,
}

impl Story {
    fn new() -> Self {
        Self {
            watch: Watch::new(0),
            now: Instant::now(),
        }
    }

    fn look(&mut self, mark: u32) -> Step {
        self.now += S;
        self.watch.looked(mark, self.now)
    }

    fn find(&mut self, outcome: Outcome) -> Step {
        self.watch.found(outcome, self.now)
    }

    fn wrong(&mut self, why: &str) -> Step {
        self.find(Outcome::Wrong(why.to_owned()))
    }

    /// Looks until there is something to do: after how many seconds, and what.
    fn until(&mut self, mark: u32, at_most: u32) -> (u32, Step) {
        for second in 1..=at_most {
            match self.look(mark) {
                Step::Nothing => {}
                step => return (second, step),
            }
        }
        (at_most, Step::Nothing)
    }

    /// The same files, which are wrong whenever they are read: after how many seconds somebody is warned.
    fn until_warned(&mut self, mark: u32, why: &str, at_most: u32) -> Option<u32> {
        (1..=at_most).find(|_| match self.look(mark) {
            Step::Read => self.wrong(why) == Step::Warn(why.to_owned()),
            Step::Warn(told) => told == why,
            step => {
                assert_eq!(step, Step::Nothing);
                false
            }
        })
    }
}

fn warn(why: &str) -> Step {
    Step::Warn(why.to_owned())
}

#[test]
fn files_that_stay_as_they_are_are_never_read() {
    assert_eq!(Story::new().until(0, 100), (100, Step::Nothing));
}

#[test]
fn a_new_certificate_is_used_when_it_has_come_to_rest() {
    let mut story = Story::new();
    assert_eq!(story.look(1), Step::Nothing, "it may still be written");
    assert_eq!(story.look(2), Step::Nothing, "it was");
    assert_eq!(story.look(2), Step::Read);
    assert_eq!(story.find(Outcome::Better), Step::Use);
    assert_eq!(story.until(2, 100), (100, Step::Nothing));
}

#[test]
fn files_that_were_only_touched_change_nothing() {
    let mut story = Story::new();
    assert_eq!(story.until(1, 5), (2, Step::Read));
    assert_eq!(story.find(Outcome::Same), Step::Nothing);
    assert_eq!(story.until(1, 100), (100, Step::Nothing));
}

#[test]
fn a_key_may_come_ten_seconds_after_its_certificate() {
    for second in [1, 5, 9] {
        let mut story = Story::new();
        assert_eq!(story.until(1, 5), (2, Step::Read));
        assert_eq!(story.wrong("other key"), Step::Nothing);
        assert_eq!(
            story.until(1, second),
            (second, Step::Nothing),
            "no word of it"
        );
        assert_eq!(story.until(2, 5), (2, Step::Read));
        assert_eq!(story.find(Outcome::Better), Step::Use);
        assert_eq!(story.until(2, 100), (100, Step::Nothing));
    }
}

#[test]
fn what_stays_wrong_is_warned_of_once_after_ten_seconds() {
    let mut story = Story::new();
    assert_eq!(story.until_warned(1, "other key", 100), Some(12));
    assert_eq!(story.until_warned(1, "other key", 10_000), None);
    // Written again, as wrong as before: that was said.
    assert_eq!(story.until_warned(2, "other key", 1000), None);
    // Another thing is wrong now.
    assert_eq!(story.until_warned(3, "no key", 100), Some(12));
    // What waits for its time is said then.
    assert_eq!(story.until_warned(4, "no certificate", 1000), Some(300));
}

#[test]
fn that_all_is_well_again_is_said_if_it_was_warned() {
    let mut story = Story::new();
    assert_eq!(story.until_warned(1, "no key", 100), Some(12));
    assert_eq!(story.until(2, 5), (2, Step::Read));
    assert_eq!(story.find(Outcome::Same), Step::Well);
    assert_eq!(story.until(2, 100), (100, Step::Nothing));
    // Nobody was told: nobody has to be.
    assert_eq!(story.until(3, 5), (2, Step::Read));
    assert_eq!(story.wrong("no key"), Step::Nothing);
    assert_eq!(story.until(4, 5), (2, Step::Read));
    assert_eq!(story.find(Outcome::Same), Step::Nothing);
}

#[test]
fn what_could_not_be_read_is_tried_again_though_nothing_has_changed() {
    let mut story = Story::new();
    assert_eq!(story.until(1, 5), (2, Step::Read));
    assert_eq!(story.wrong("too many open files"), Step::Nothing);
    assert_eq!(story.until(1, 100), (10, Step::Read), "before the warning");
    assert_eq!(story.find(Outcome::Better), Step::Use);
}

#[test]
fn a_torn_read_is_repeated() {
    let mut story = Story::new();
    assert_eq!(story.until(1, 5), (2, Step::Read));
    assert_eq!(story.find(Outcome::Torn), Step::Nothing);
    assert_eq!(story.look(2), Step::Nothing);
    assert_eq!(story.look(2), Step::Read);
    assert_eq!(story.find(Outcome::Better), Step::Use);
}

#[test]
fn files_that_never_rest_are_read_all_the_same_and_warned_of() {
    let mut story = Story::new();
    let mut steps = Vec::new();
    for mark in 1..60 {
        let step = match story.look(mark) {
            Step::Read => story.find(Outcome::Torn),
            step => step,
        };
        steps.push(step);
    }
    let warnings: Vec<usize> = (0..steps.len())
        .filter(|at| steps[*at] != Step::Nothing)
        .collect();
    assert_eq!(warnings, [20], "{steps:?}");
    assert_eq!(steps[20], warn(RESTLESS));
    // One moment of rest is enough.
    assert_eq!(story.until(60, 5).1, Step::Read);
    assert_eq!(story.find(Outcome::Better), Step::Use);
}
