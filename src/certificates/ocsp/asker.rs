//! Asks the authorities of certificates when it is time, a few at once, each on a thread of its own.
//!
//! Whoever drives it sleeps until [`Asker::deadline`], or until one of [`Asker::fds`] is readable, and never
//! waits for the network. Without certificates to be asked about there is neither of both.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::task::Poll;
use std::time::{Duration, Instant};

use super::fetch::Fetch;
use super::{News, Responders};

/// Most questions on their way, and with it most threads.
pub const ASKED_MAX: usize = 4;

/// How long a responder may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// After so long nobody waits for an answer any more, though its thread may be there: the system can take
/// any time to look a name up.
const GIVE_UP: Duration = Duration::from_secs(20);

/// Asks about all certificates; `K` names one.
#[derive(Debug)]
pub struct Asker<K> {
    /// What is known, and when the next question is due.
    pub responders: Responders<K>,
    asking: Vec<Asking>,
}

/// A question on its way.
#[derive(Debug)]
struct Asking {
    /// Its number; `None` when nobody waits for the answer any more. Its thread counts all the same.
    number: Option<u64>,
    fetch: Fetch,
    give_up: Instant,
}

impl<K> Default for Asker<K> {
    fn default() -> Self {
        Self {
            responders: Responders::default(),
            asking: Vec::new(),
        }
    }
}

impl<K: Clone + PartialEq> Asker<K> {
    /// Takes what has come, asks what is due, and says what an answer has changed, with the certificate.
    /// `now_s` in seconds since 1970.
    pub fn turn(&mut self, now: Instant, now_s: i64) -> Vec<(K, News)> {
        let mut news = Vec::new();
        let responders = &mut self.responders;
        self.asking.retain_mut(|asking| {
            let polled = asking.fetch.poll();
            let is_late = now >= asking.give_up;
            let is_over = polled.is_ready();
            let answer = match polled {
                Poll::Ready(answer) => answer,
                Poll::Pending if is_late => {
                    Err("took too long: its name may be hard to find".into())
                }
                Poll::Pending => return true,
            };
            if let Some(number) = asking.number.take() {
                news.extend(responders.answered(number, answer, now_s));
            }
            !is_over
        });
        while self.asking.len() < ASKED_MAX {
            let Some(question) = self.responders.question(now_s) else {
                break;
            };
            match Fetch::begin(question.url, question.request, PATIENCE) {
                Ok(fetch) => self.asking.push(Asking {
                    number: Some(question.number),
                    fetch,
                    give_up: now + GIVE_UP,
                }),
                Err(error) => {
                    let why = format!("can't be asked: {error}");
                    news.extend((self.responders).answered(question.number, Err(why), now_s));
                }
            }
        }
        news
    }

    /// When [`Asker::turn`] has something to do without an answer.
    pub fn deadline(&self, now: Instant, now_s: i64) -> Option<Instant> {
        let waited = self.asking.iter().filter(|asking| asking.number.is_some());
        let give_up = waited.map(|asking| asking.give_up).min();
        // With all threads busy the next question waits for one of them.
        let has_room = self.asking.len() < ASKED_MAX;
        let due = self.responders.next_due().filter(|_| has_room);
        let due = due.map(|due| {
            let left = u64::try_from(due.saturating_sub(now_s)).unwrap_or_default();
            now + Duration::from_secs(left)
        });
        [give_up, due].into_iter().flatten().min()
    }

    /// Whether answers are waited for.
    pub fn is_asking(&self) -> bool {
        !self.asking.is_empty()
    }

    /// Readable when an answer has come.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.asking.iter().map(|asking| asking.fetch.as_fd())
    }
}
