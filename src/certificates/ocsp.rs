//! When an authority is asked what it says of our certificates (OCSP, RFC 6960), and what becomes of the
//! answer.
//!
//! Pure but for [`asker`] and [`fetch`]: the decider takes times and answers. An answer that can't be
//! verified counts as none, and what was known before goes on until it ends. That a certificate is revoked
//! ends it at once: to go on saying that it is good, because somebody once said so, would be a lie.

pub mod asker;
pub mod fetch;

use crate::net::tls::ocsp::{self, OcspError, Statement, Unasked};

/// Shortest time between an answer and the next question on the same certificate, in seconds: also an
/// authority that answers with what ends at once is left alone for so long.
const PAUSE_MIN: i64 = 60;

/// Shortest and longest time after a failure, in seconds. The network of a machine that starts may come up
/// in a moment, and an authority may take one to know a certificate that it has just issued.
const FAILURE_PAUSES: (i64, i64) = (5, 3600);

/// Longest time after a success, in seconds: some authorities say for months what they revoke in hours.
const LIFE_MAX: i64 = 2 * 86_400;

/// A certificate that its authority is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    own: Vec<u8>,
    issuer: Vec<u8>,
    /// Where the authority answers.
    url: String,
    /// What is sent there.
    request: Vec<u8>,
}

impl Asked {
    /// About the first certificate of a chain in DER.
    ///
    /// # Errors
    /// Why its authority can't be asked.
    pub fn of_chain(chain: &[impl AsRef<[u8]>]) -> Result<Self, Unasked> {
        let url = ocsp::responder(chain)?;
        let [own, issuer, ..] = chain else {
            return Err(Unasked::NoIssuer);
        };
        if fetch::Place::read(&url).is_none() {
            return Err(Unasked::NoResponder);
        }
        let (own, issuer) = (own.as_ref(), issuer.as_ref());
        Ok(Self {
            request: ocsp::request(own, issuer).ok_or(Unasked::NoIssuer)?,
            own: own.to_vec(),
            issuer: issuer.to_vec(),
            url,
        })
    }

    /// What a response says of it at `now`.
    fn verify(&self, response: &[u8], now: i64) -> Result<Statement, OcspError> {
        ocsp::verify(response, (&self.own, &self.issuer), now)
    }
}

/// A question that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Its number: no other one has it.
    pub number: u64,
    /// Where it goes to.
    pub url: String,
    /// What is sent there.
    pub request: Vec<u8>,
}

/// What an answer changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Clients get this from now on.
    Staple(Vec<u8>),
    /// The certificate is revoked: clients are not told any more that it is good.
    Withdraw,
    /// Nothing.
    Nothing,
}

/// How it stands with a certificate, times in seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing<'a> {
    /// Who is asked.
    pub url: &'a str,
    /// What was said last that was good, which may have ended, and when that came.
    pub good: Option<(Statement, i64)>,
    /// It is revoked.
    pub is_revoked: bool,
    /// Why the last question has brought nothing; to follow the name of the responder.
    pub trouble: Option<&'a str>,
    /// When the next one is due.
    pub due: i64,
}

/// A statement that clients get.
#[derive(Clone, Debug)]
struct Known {
    statement: Statement,
    response: Vec<u8>,
    /// When it came, in seconds since 1970.
    at: i64,
}

/// What is known of one certificate.
#[derive(Clone, Debug)]
struct State<K> {
    of: K,
    asked: Asked,
    known: Option<Known>,
    /// As of when the authority says that it is revoked, in seconds since 1970.
    revoked: Option<i64>,
    /// Not before this, in seconds since 1970.
    due: i64,
    /// Since the last success.
    failures: u32,
    trouble: Option<String>,
    /// The number of the question that is on its way.
    question: Option<u64>,
}

/// All certificates whose authorities are asked; `K` names one.
#[derive(Clone, Debug)]
pub struct Responders<K> {
    all: Vec<State<K>>,
    /// How many questions there were.
    asked: u64,
}

impl<K> Default for Responders<K> {
    fn default() -> Self {
        Self {
            all: Vec::new(),
            asked: 0,
        }
    }
}

impl<K: Clone + PartialEq> Responders<K> {
    /// Has the authority asked about this certificate from now on: at once, unless `known` holds, a response
    /// and when it came. One that is known goes on; another one of the same name takes its place.
    pub fn watch(&mut self, of: K, asked: Asked, known: Option<(Vec<u8>, i64)>, now: i64) {
        let before = self.all.iter().position(|state| state.of == of);
        if before.is_some_and(|at| self.all[at].asked == asked) {
            return;
        }
        let known = known.and_then(|(response, at)| {
            let statement = asked.verify(&response, now).ok()?;
            Some(Known {
                statement,
                response,
                at,
            })
        });
        let due = known.as_ref().map_or(now, |it| due(it.statement, now));
        let state = State {
            of,
            asked,
            known,
            revoked: None,
            due,
            failures: 0,
            trouble: None,
            question: None,
        };
        match before {
            Some(at) => self.all[at] = state,
            None => self.all.push(state),
        }
    }

    /// Forgets all others.
    pub fn retain(&mut self, mut keep: impl FnMut(&K) -> bool) {
        self.all.retain(|state| keep(&state.of));
    }

    /// When the next question is due, in seconds since 1970; `None` when there never is one.
    pub fn next_due(&self) -> Option<i64> {
        let waiting = self.all.iter().filter(|state| state.question.is_none());
        waiting.map(|state| state.due).min()
    }

    /// The question that has been due for longest at `now`. [`Self::answered`] follows.
    pub fn question(&mut self, now: i64) -> Option<Question> {
        let waiting = (self.all.iter_mut()).filter(|state| state.question.is_none());
        let state = waiting.min_by_key(|state| state.due)?;
        if state.due > now {
            return None;
        }
        self.asked += 1;
        state.question = Some(self.asked);
        Some(Question {
            number: self.asked,
            url: state.asked.url.clone(),
            request: state.asked.request.clone(),
        })
    }

    /// An answer to the question of this number has come, or why there is none, to follow the name of the
    /// responder. Says which certificate it is about and what it changes; `None` where nobody wants to know
    /// any more.
    pub fn answered(
        &mut self,
        number: u64,
        answer: Result<Vec<u8>, String>,
        now: i64,
    ) -> Option<(K, News)> {
        let asked = |state: &&mut State<K>| state.question == Some(number);
        let state = self.all.iter_mut().find(asked)?;
        state.question = None;
        let news = match answer {
            Ok(response) => state.heard(response, now),
            Err(why) => {
                state.failed(why, now);
                News::Nothing
            }
        };
        Some((state.of.clone(), news))
    }

    /// How it stands with a certificate.
    pub fn standing(&self, of: &K) -> Option<Standing<'_>> {
        let state = self.all.iter().find(|state| state.of == *of)?;
        let good = state.known.as_ref();
        Some(Standing {
            url: &state.asked.url,
            good: good.map(|known| (known.statement, known.at)),
            is_revoked: state.revoked.is_some(),
            trouble: state.trouble.as_deref(),
            due: state.due,
        })
    }

    /// What clients get of a certificate, and when it came.
    pub fn known(&self, of: &K) -> Option<(&[u8], i64)> {
        let state = self.all.iter().find(|state| state.of == *of)?;
        let known = state.known.as_ref()?;
        Some((&known.response, known.at))
    }
}

impl<K> State<K> {
    fn heard(&mut self, response: Vec<u8>, now: i64) -> News {
        let statement = match self.asked.verify(&response, now) {
            Ok(statement) => statement,
            Err(OcspError::Revoked(as_of)) => {
                let is_new = self.revoked.is_none();
                self.succeeded(now + FAILURE_PAUSES.1);
                (self.known, self.revoked) = (None, Some(as_of));
                return match is_new {
                    true => News::Withdraw,
                    false => News::Nothing,
                };
            }
            Err(error) => {
                self.failed(error.message().to_owned(), now);
                return News::Nothing;
            }
        };
        // Anybody on the way can repeat what was said before.
        if self
            .revoked
            .is_some_and(|as_of| statement.this_update <= as_of)
        {
            let why = "is older than the statement by which the certificate is revoked";
            self.failed(why.to_owned(), now);
            return News::Nothing;
        }
        self.revoked = None;
        let known = self.known.as_ref().map(|known| known.statement);
        if let Some(known) = known
            && known.next_update > now
            && statement.this_update < known.this_update
        {
            self.succeeded(due(known, now));
            return News::Nothing;
        }
        self.succeeded(due(statement, now));
        let is_same = (self.known.as_ref()).is_some_and(|known| known.response == response);
        self.known = Some(Known {
            statement,
            response: response.clone(),
            at: now,
        });
        match is_same {
            true => News::Nothing,
            false => News::Staple(response),
        }
    }

    fn succeeded(&mut self, due: i64) {
        (self.due, self.failures, self.trouble) = (due, 0, None);
    }

    fn failed(&mut self, why: String, now: i64) {
        let (shortest, longest) = FAILURE_PAUSES;
        let pause = shortest << (2 * self.failures.min(6));
        self.due = now + pause.min(longest);
        self.failures = self.failures.saturating_add(1);
        self.trouble = Some(why);
    }
}

/// When to ask again after this was said: at half of its life from its begin, and where that has passed at
/// half of what is left.
fn due(statement: Statement, now: i64) -> i64 {
    let half = i64::midpoint(statement.this_update, statement.next_update);
    let left = (statement.next_update - now) / 2;
    let pause = if half > now { half - now } else { left };
    now + pause.clamp(PAUSE_MIN, LIFE_MAX)
}

#[cfg(test)]
mod tests;
