//! When an authority is asked what it says of our certificates (OCSP, RFC 6960), and what becomes of the
//! answer.
//!
//! Pure but for [`fetch`]: the decider takes times and answers, and whoever has it asks on a thread of its
//! own, one certificate at a time. An answer that can't be verified counts as none, and what was known before
//! goes on until it ends.

pub mod fetch;

use crate::net::tls::ocsp::{self, Statement};
use crate::util::x509;

/// Shortest time between two questions on one certificate, in seconds: also an authority that answers with
/// what ends at once is left alone for so long.
const PAUSE_MIN: i64 = 60;

/// Longest time after a failure, in seconds.
const PAUSE_MAX: i64 = 3600;

/// Longest time after a success, in seconds: some authorities say for months what they revoke in hours.
const LIFE_MAX: i64 = 2 * 86_400;

/// A certificate that its authority is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    own: Vec<u8>,
    issuer: Vec<u8>,
    /// Where the authority answers.
    url: String,
}

/// Why an authority can't be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unasked {
    /// The certificate's issuer is not in its file.
    NoIssuer,
    /// The certificate names no responder that answers by HTTP.
    NoResponder,
}

impl Unasked {
    /// Why, and what to do.
    pub fn message(self) -> &'static str {
        match self {
            Self::NoIssuer => {
                "the certificate of its issuer is not known: put it behind the server's own in the file"
            }
            Self::NoResponder => {
                "it names no OCSP responder, as authorities that have given OCSP up leave it out: there is \
                 nothing to be stapled"
            }
        }
    }
}

impl Asked {
    /// About the first certificate of a chain in DER.
    ///
    /// # Errors
    /// Why its authority can't be asked.
    pub fn of_chain(chain: &[impl AsRef<[u8]>]) -> Result<Self, Unasked> {
        let [own, issuer, ..] = chain else {
            return Err(Unasked::NoIssuer);
        };
        let (own, issuer) = (own.as_ref(), issuer.as_ref());
        let url = x509::parts(own).and_then(|parts| parts.ocsp_responder().map(str::to_owned));
        let url = url.filter(|url| fetch::Place::read(url).is_some());
        Ok(Self {
            own: own.to_vec(),
            issuer: issuer.to_vec(),
            url: url.ok_or(Unasked::NoResponder)?,
        })
    }

    /// The certificate, in DER.
    pub fn own(&self) -> &[u8] {
        &self.own
    }
}

/// A question that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Which certificate, by its place among those of [`Responders::new`].
    pub index: usize,
    /// Where it goes to.
    pub url: String,
    /// What is sent there.
    pub request: Vec<u8>,
}

/// What is known of one certificate.
#[derive(Clone, Debug)]
struct State {
    asked: Asked,
    statement: Option<Statement>,
    /// Not before this, in seconds since 1970.
    due: i64,
    failures: u32,
}

/// All certificates whose authorities are asked.
#[derive(Clone, Debug, Default)]
pub struct Responders(Vec<State>);

impl Responders {
    /// These; all are due at once. What is known of the same ones in `before` stays.
    pub fn new(all: Vec<Asked>, before: Self) -> Self {
        let mut before = before.0;
        let state = |asked: Asked| match before.iter().position(|state| state.asked == asked) {
            Some(at) => before.swap_remove(at),
            None => State {
                asked,
                statement: None,
                due: i64::MIN,
                failures: 0,
            },
        };
        Self(all.into_iter().map(state).collect())
    }

    /// When the next question is due, in seconds since 1970; `None` when there never is one.
    pub fn next_due(&self) -> Option<i64> {
        self.0.iter().map(|state| state.due).min()
    }

    /// The question that has been due for longest at `now`. [`Self::answered`] follows; until then no other
    /// one is asked for.
    pub fn question(&self, now: i64) -> Option<Question> {
        let states = self.0.iter().enumerate();
        let (index, state) = states.min_by_key(|(_, state)| state.due)?;
        if state.due > now {
            return None;
        }
        Some(Question {
            index,
            url: state.asked.url.clone(),
            request: ocsp::request(&state.asked.own, &state.asked.issuer)?,
        })
    }

    /// An answer has come, or none has. Gives what it says, and until when nothing else is asked.
    ///
    /// # Errors
    /// Why it is worth nothing, to follow the name of the responder.
    pub fn answered(
        &mut self,
        index: usize,
        answer: Result<&[u8], String>,
        now: i64,
    ) -> Result<Statement, String> {
        let Some(state) = self.0.get_mut(index) else {
            return Err("was not asked".to_owned());
        };
        let chain = (&*state.asked.own, &*state.asked.issuer);
        let verified = answer.and_then(|response| {
            ocsp::verify(response, chain, now).map_err(|error| error.message().to_owned())
        });
        match &verified {
            Ok(statement) => {
                state.failures = 0;
                state.statement = Some(*statement);
                // Half of its life from its begin; of what is left where that has passed.
                let half = statement.this_update / 2 + statement.next_update / 2;
                let left = (statement.next_update - now) / 2;
                let pause = if half > now { half - now } else { left };
                state.due = now + pause.clamp(PAUSE_MIN, LIFE_MAX);
            }
            Err(_) => {
                let pause = PAUSE_MIN << state.failures.min(6);
                state.due = now + pause.min(PAUSE_MAX);
                state.failures += 1;
            }
        }
        verified
    }

    /// The certificates without a statement that holds at `now`, each with the number of failures since the
    /// last success.
    pub fn unstated(&self, now: i64) -> impl Iterator<Item = (&Asked, u32)> {
        let holds = move |state: &State| {
            (state.statement).is_some_and(|statement| statement.next_update > now)
        };
        let without = self.0.iter().filter(move |state| !holds(state));
        without.map(|state| (&state.asked, state.failures))
    }
}

#[cfg(test)]
mod tests;
