//! A certificate in use and its files: what takes its place, and what is worse.

use super::files::{Content, Mark, Pair};
use super::local_ca::day;
use super::watcher::Source;
use crate::util::x509::Facts;

/// A certificate in use, by its files.
#[derive(Clone, Debug)]
pub struct PairInUse {
    /// The files.
    pub pair: Pair,
    /// Of what is in use ([`Content::digest`]).
    pub digest: [u8; 32],
    /// What that is.
    pub facts: Facts,
}

impl Source for PairInUse {
    type Read = (Content, Box<Facts>);

    fn is_at(&self, other: &Self) -> bool {
        self.pair == other.pair
    }

    fn is_same(&self, other: &Self) -> bool {
        self.digest == other.digest && self.is_at(other)
    }

    fn marks(&self) -> Vec<Mark> {
        self.pair.marks()
    }

    fn read(&self, unix_s: i64) -> Result<Option<Self::Read>, String> {
        let content = self.pair.read()?;
        if content.digest() == self.digest {
            return Ok(None);
        }
        let facts = self.pair.check(&content)?;
        match worse(&facts, &self.facts, unix_s) {
            Some(why) => Err(format!("{} {why}", self.pair.certificate.display())),
            None => Ok(Some((content, Box::new(facts)))),
        }
    }

    fn take(&mut self, (content, facts): &Self::Read) {
        self.digest = content.digest();
        self.facts = (**facts).clone();
    }
}

/// Why a certificate that is whole is worse than the one in use: clients would refuse it, and they take
/// the other one.
fn worse(new: &Facts, old: &Facts, unix_s: i64) -> Option<String> {
    let is_valid = |facts: &Facts| (facts.not_before..=facts.not_after).contains(&unix_s);
    if is_valid(new) || !is_valid(old) {
        return None;
    }
    Some(if unix_s > new.not_after {
        format!(
            "has a certificate that ended on {}, and the one in use is valid; put the new one there",
            day(new.not_after)
        )
    } else {
        format!(
            "has a certificate that isn't valid before {}, and the one in use is; it is taken then",
            day(new.not_before)
        )
    })
}
