//! Keeps the addresses of names in the [`Rosters`] of a worker up to date, off the cores: what asks for
//! names blocks, and nobody can say how long.
//!
//! One thread, `beltway-resolver`, owns the [`Schedule`] and tells the rosters; it never waits for a name
//! itself. Each lookup is a thread of its own, for as long as it takes, of which the schedule lets few be.
//! Where no upstream has a name there is no thread at all. When names can't be resolved the last good
//! answer stays, and the log says so once, and once more when it is over.

pub mod client;
pub mod dns;
pub mod lookup;
pub mod schedule;
pub mod settings;
#[cfg(test)]
mod testing;

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use self::lookup::{Answer, LookupError, look_up};
use self::schedule::{Ended, Query, Schedule, Ticket, Turn};
use super::roster::{Resolved, Roster, Rosters};

#[cfg(test)]
pub(crate) use self::testing::{NameServer, Transport, answer, servers, settings};

/// Messages on the way to the thread; beyond them the sender waits, for no longer than the thread takes
/// to tell a roster.
const MAIL_MAX: usize = 32;

/// Resolves the names of all upstreams of a worker until it is dropped, which ends its thread at once; a
/// lookup that hangs is left to itself, and its answer is heard by nobody.
pub struct Resolver {
    look_up: LookUp,
    thread: OnceLock<Thread>,
}

/// Looks a name up, until about the deadline, and may block for longer.
type LookUp = Arc<dyn Fn(&Query, Instant) -> Result<Answer, LookupError> + Send + Sync>;

/// How long a worker waits for the addresses of its backends before it serves without them.
const FIRST_ANSWERS: Duration = Duration::from_secs(2);

/// Waits for the first answers a little: a worker that serves before has no servers by name.
pub fn wait_for_answers(resolver: &Resolver) {
    if !resolver.first_answers(FIRST_ANSWERS) {
        tracing::warn!("names of backends have no answer yet; their servers are down until then");
    }
}

impl Resolver {
    /// Begins to resolve the names of these upstreams, at once.
    ///
    /// # Errors
    /// When there are names and the thread can't be started.
    pub fn start(rosters: &Arc<Rosters>) -> io::Result<Self> {
        Self::start_with(rosters, Arc::new(look_up))
    }

    fn start_with(rosters: &Arc<Rosters>, look_up: LookUp) -> io::Result<Self> {
        let resolver = Self {
            look_up,
            thread: OnceLock::new(),
        };
        resolver.update(rosters)?;
        Ok(resolver)
    }

    /// Waits until every name was looked up once, well or not, but no longer than this. Says whether they
    /// were.
    pub fn first_answers(&self, within: Duration) -> bool {
        let Some(thread) = self.thread.get() else {
            return true;
        };
        let (sender, settled) = sync_channel(1);
        thread.tell(Told::Await(sender));
        settled.recv_timeout(within).is_ok()
    }

    /// These are the upstreams from now on, after a reload. What was asked for before goes on as it was;
    /// new names are looked up at once; what nobody has any more is forgotten.
    ///
    /// # Errors
    /// When these are the first with names, and the thread can't be started.
    pub fn update(&self, rosters: &Arc<Rosters>) -> io::Result<()> {
        if self.thread.get().is_none() {
            if rosters.list().iter().all(|it| it.names().next().is_none()) {
                return Ok(());
            }
            let thread = Thread::start(Arc::clone(&self.look_up))?;
            // Whoever was quicker has started another one; ours ends.
            let _ = self.thread.set(thread);
        }
        if let Some(thread) = self.thread.get() {
            thread.tell(Told::Names(Arc::clone(rosters)));
        }
        Ok(())
    }
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let runs = self.thread.get().is_some();
        f.debug_struct("Resolver").field("runs", &runs).finish()
    }
}

/// The thread that owns the schedule.
struct Thread {
    mail: SyncSender<Told>,
    handle: Option<JoinHandle<()>>,
}

/// What the thread is told.
enum Told {
    /// The names of these are to be resolved.
    Names(Arc<Rosters>),
    /// Somebody waits until all names were looked up once.
    Await(SyncSender<()>),
    /// A lookup has ended.
    Ended(Ticket, Result<Answer, LookupError>),
    /// The end.
    Stop,
}

impl Thread {
    fn start(look_up: LookUp) -> io::Result<Self> {
        let (mail, told) = sync_channel(MAIL_MAX);
        let work = Work {
            schedule: Schedule::new(RandomState::new().hash_one(0)),
            names: HashMap::new(),
            waiting: Vec::new(),
            mail: mail.clone(),
            look_up,
        };
        let builder = Builder::new().name("beltway-resolver".to_owned());
        let handle = builder.spawn(move || work.run(&told))?;
        Ok(Self {
            mail,
            handle: Some(handle),
        })
    }

    fn tell(&self, told: Told) {
        // It ends by `Stop` alone, unless it has panicked: then the last answers stay for good.
        if self.mail.send(told).is_err() {
            tracing::error!("names of servers are not resolved any more: the resolver has failed");
        }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.tell(Told::Stop);
        if let Some(handle) = self.handle.take() {
            // It has said itself why it panicked.
            let _ = handle.join();
        }
    }
}

/// What the thread works on.
struct Work {
    schedule: Schedule,
    names: HashMap<Arc<Query>, Asking>,
    /// Those that wait for the first answers; the ones that gave up are cleared with the others.
    waiting: Vec<SyncSender<()>>,
    /// For the lookups.
    mail: SyncSender<Told>,
    look_up: LookUp,
}

/// Who asks for a name.
struct Asking {
    /// Each with the place of the server in its settings.
    rosters: Vec<(Arc<Roster>, usize)>,
    /// The last good answer; empty before the first.
    last: Vec<Resolved>,
}

impl Work {
    fn run(mut self, mail: &Receiver<Told>) {
        loop {
            let now = Instant::now();
            while let Some((query, turn)) = self.schedule.overdue(now) {
                let late = LookupError::TooLong(query.resolve.timeout);
                self.failed(&query, turn, &late);
            }
            while let Some((ticket, query)) = self.schedule.start(now) {
                self.look_up(ticket, query, now);
            }
            if self.schedule.is_settled() {
                for who in self.waiting.drain(..) {
                    // Whoever gave up waiting isn't there any more.
                    let _ = who.try_send(());
                }
            }
            let told = match self.schedule.wake() {
                Some(at) => mail.recv_timeout(at.saturating_duration_since(Instant::now())),
                None => mail.recv().map_err(RecvTimeoutError::from),
            };
            match told {
                Ok(Told::Names(rosters)) => self.keep(&rosters),
                Ok(Told::Await(who)) => self.waiting.push(who),
                Ok(Told::Ended(ticket, result)) => self.ended(ticket, result),
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Told::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn keep(&mut self, rosters: &Rosters) {
        let now = Instant::now();
        let mut old = std::mem::take(&mut self.names);
        for roster in rosters.list() {
            for (server, address) in roster.names() {
                let query = Arc::new(Query {
                    address: address.clone(),
                    resolve: roster.settings().resolve,
                });
                let asking = self.names.entry(Arc::clone(&query));
                let asking = asking.or_insert_with(|| Asking {
                    rosters: Vec::new(),
                    last: old.remove(&query).map_or_else(Vec::new, |it| it.last),
                });
                // What another upstream knows already, a new one needn't wait for.
                roster.resolved(server, &asking.last, now);
                asking.rosters.push((Arc::clone(roster), server));
            }
        }
        self.schedule.keep(self.names.keys().cloned(), now);
    }

    fn look_up(&mut self, ticket: Ticket, query: Arc<Query>, now: Instant) {
        let (mail, deadline) = (self.mail.clone(), now + query.resolve.timeout);
        let look_up = Arc::clone(&self.look_up);
        let builder = Builder::new().name("beltway-lookup".to_owned());
        let spawned = builder.spawn(move || {
            let mut report = Report {
                ticket,
                result: Err(LookupError::Ours("the lookup has panicked".to_owned())),
                mail,
            };
            report.result = look_up(&query, deadline);
        });
        if let Err(error) = spawned {
            let what = format!("no thread can be started for it: {error}");
            self.ended(ticket, Err(LookupError::Ours(what)));
        }
    }

    fn ended(&mut self, ticket: Ticket, result: Result<Answer, LookupError>) {
        let ended = match &result {
            Ok(answer) => Ended::Answered(answer.ttl),
            Err(_) => Ended::Failed,
        };
        let now = Instant::now();
        let Some((query, turn)) = self.schedule.ended(ticket, ended, now) else {
            return;
        };
        match result {
            Ok(answer) => self.resolved(&query, turn, answer.addresses, now),
            Err(error) => self.failed(&query, turn, &error),
        }
    }

    fn resolved(&mut self, query: &Query, turn: Turn, addresses: Vec<Resolved>, now: Instant) {
        let (server, count) = (&query.address, addresses.len());
        if turn == Turn::Back {
            tracing::info!(%server, addresses = count, "a name is resolved again");
        }
        let Some(asking) = self.names.get_mut(query) else {
            return;
        };
        let mut changed = false;
        for (roster, place) in &asking.rosters {
            changed |= roster.resolved(*place, &addresses, now);
        }
        if changed {
            tracing::debug!(%server, addresses = count, "a name has other addresses");
        }
        asking.last = addresses;
    }

    fn failed(&self, query: &Query, turn: Turn, error: &LookupError) {
        let server = &query.address;
        let known = self.names.get(query).map_or(0, |it| it.last.len());
        match turn {
            Turn::Failing if known > 0 => tracing::warn!(
                %server, %error, addresses = known,
                "a name can't be resolved; its last addresses stay"
            ),
            Turn::Failing => tracing::warn!(
                %server, %error,
                "a name can't be resolved; it takes no requests until it can"
            ),
            _ => tracing::debug!(%server, %error, "a name still can't be resolved"),
        }
    }
}

/// Tells how a lookup has ended, however it did.
struct Report {
    ticket: Ticket,
    result: Result<Answer, LookupError>,
    mail: SyncSender<Told>,
}

impl Drop for Report {
    fn drop(&mut self) {
        let nothing = Err(LookupError::Ours(String::new()));
        let result = std::mem::replace(&mut self.result, nothing);
        // Nobody is there any more after `Stop`.
        let _ = self.mail.send(Told::Ended(self.ticket, result));
    }
}

#[cfg(test)]
mod tests;
