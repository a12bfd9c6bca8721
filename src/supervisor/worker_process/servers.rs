//! The servers of upstreams as a worker process sees them: what its master is told of them, and the words
//! of the administrator that come from there.
//!
//! How a server is, is shared by all cores, and read here; what was done with it each core counts for
//! itself. The master remembers words, and gives all of them with each configuration.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Process;
use crate::supervisor::control::protocol::AdminState;
use crate::supervisor::control::upstreams::{
    BreakerStatus, Condition, ServerStatus, UpstreamStatus,
};
use crate::supervisor::core_thread::Message;
use crate::supervisor::messages::{FromWorker, Word, WorkerReport};
use crate::upstream::balance::Standing;
use crate::upstream::group::{Account, BreakerAccount, ServerAccount};
use crate::upstream::roster::{Member, Members, Roster, Rosters};
use crate::upstream::shared::Judge;

/// Cores that close idle connections. They are told once at a time, so that words, however many, take no
/// room in a mailbox from messages that must come through.
#[derive(Default)]
pub(super) struct Tidying {
    waiting: Vec<usize>,
    /// A word has come since they were told.
    again: bool,
}

impl Process {
    /// Lets every request from now on go by a word.
    pub(super) fn hear_word(&mut self, id: u64, word: &Word) {
        let roster = self.rosters.find(&word.upstream);
        let set = roster
            .map(|roster| roster.set_admin(&word.server, standing(word.state), Instant::now()));
        let found = matches!(set, Some(Ok(_)));
        if found && word.state != AdminState::Up {
            self.tidy();
        }
        self.say(&FromWorker::ServerSet { id, found });
    }

    fn tidy(&mut self) {
        if self.tidying.waiting.is_empty() {
            self.tidying = Tidying {
                waiting: self.worker.tell(&Message::Tidy),
                again: false,
            };
        } else {
            self.tidying.again = true;
        }
    }

    /// A core has closed what is to be closed, or is gone.
    pub(super) fn tidied(&mut self, core: usize) {
        self.tidying.waiting.retain(|waiting| *waiting != core);
        if self.tidying.again {
            self.tidy();
        }
    }
}

/// Lets the upstreams of a configuration go by these words, and by no other.
pub(super) fn heed(rosters: &Rosters, words: &[Word]) {
    let now = Instant::now();
    for roster in rosters.list() {
        let name = &*roster.settings().name;
        let of_it = words.iter().filter(|word| word.upstream == name);
        let of_it = of_it.map(|word| (&*word.server, standing(word.state)));
        roster.heed(of_it, now);
    }
}

/// What the cores share of their upstreams; what each has counted is to be added.
pub(super) fn report(rosters: &Rosters) -> WorkerReport {
    let now = Instant::now();
    let upstreams = rosters.list().iter();
    WorkerReport {
        upstreams: upstreams.map(|roster| upstream(roster, now)).collect(),
        ..WorkerReport::default()
    }
}

/// Adds what a core has counted. Servers that have come or gone since are left out.
pub(super) fn add(upstreams: &mut [UpstreamStatus], accounts: &[Account]) {
    for account in accounts {
        let upstream = upstreams.iter_mut().find(|it| *it.name == *account.name);
        let Some(upstream) = upstream else { continue };
        upstream.retries.made += account.retries.granted;
        upstream.retries.refused += account.retries.refused;
        upstream.retries.left += account.retries.left;
        if let Some(breaker) = account.breaker {
            add_breaker(upstream.breaker.get_or_insert_default(), breaker);
        }
        for counted in &account.servers {
            let mut servers = upstream.servers.iter_mut();
            if let Some(server) = servers.find(|server| server.label() == *counted.label) {
                add_server(server, counted);
            }
        }
    }
}

fn add_breaker(sum: &mut BreakerStatus, breaker: BreakerAccount) {
    sum.cores += 1;
    match breaker {
        BreakerAccount::Closed => {}
        BreakerAccount::HalfOpen => sum.half_open += 1,
        BreakerAccount::Open(left) => {
            sum.open += 1;
            sum.tries_in_s = sum.tries_in_s.max(Some(whole_seconds(left)));
        }
    }
}

fn add_server(sum: &mut ServerStatus, counted: &ServerAccount) {
    sum.in_flight += u64::from(counted.in_flight);
    sum.connections += counted.busy as u64;
    sum.idle += counted.idle as u64;
    sum.tries += counted.tries;
    sum.failures += counted.failures;
    let latency = counted.latency.map(|latency| latency.as_micros());
    let latency = latency.map(|us| u64::try_from(us).unwrap_or(u64::MAX));
    sum.latency_us = sum.latency_us.max(latency);
}

fn upstream(roster: &Arc<Roster>, now: Instant) -> UpstreamStatus {
    let settings = roster.settings();
    let members = roster.members();
    let servers = members.list.iter().enumerate();
    UpstreamStatus {
        name: settings.name.to_string(),
        servers: servers
            .map(|(at, member)| server(roster, &members, (at, member), now))
            .collect(),
        waiting: roster.line().waiting() as u64,
        waiting_max: settings.queue.size as u64,
        ..UpstreamStatus::default()
    }
}

fn server(
    roster: &Roster,
    members: &Members,
    (at, member): (usize, &Member),
    now: Instant,
) -> ServerStatus {
    let settings = roster.settings();
    let configured = &settings.servers[member.server];
    let state = members.board.state(at, now);
    let condemned = |judge| members.board.is_condemned(at, judge);
    let ill = if condemned(Judge::Resolver) {
        Some(Condition::Unresolved)
    } else if condemned(Judge::Probe) {
        Some(Condition::Failing)
    } else {
        state.ejected_until.map(|_| Condition::Ejected)
    };
    let reason = state.reason.filter(|_| ill.is_some());
    let until = state
        .ejected_until
        .filter(|_| ill == Some(Condition::Ejected));
    let slow_start = settings.slow_start;
    let since = state.recovered.filter(|_| ill.is_none());
    let passed = since.map(|since| now.saturating_duration_since(since));
    let passed = passed.filter(|passed| *passed < slow_start);
    ServerStatus {
        name: configured.address.to_string(),
        address: member.address.as_ref().map(ToString::to_string),
        state: match state.admin {
            Standing::Up => ill.unwrap_or_default(),
            Standing::Drain => Condition::Drain,
            Standing::Down => Condition::Down,
        },
        configured: configured.state.into(),
        admin: admin(state.admin),
        reason: reason.map_or_else(String::new, |reason| reason.to_string()),
        back_in_s: until.map(|until| whole_seconds(until.saturating_duration_since(now))),
        ejections: u64::from(state.ejections),
        slow_start_percent: passed.map(|passed| percent(passed, slow_start)),
        weight: u64::from(member.weight),
        backup: member.is_backup,
        max_conns: member
            .limit
            .as_ref()
            .map(|limit| u64::from(limit.max.get())),
        ..ServerStatus::default()
    }
}

/// A slow start begins with a twentieth (see the pickers).
fn percent(passed: Duration, whole: Duration) -> u64 {
    // At most 100, for `passed` is less.
    ((passed.as_secs_f64() / whole.as_secs_f64() * 100.0) as u64).max(5)
}

/// Begun seconds count: what isn't over isn't over in 0 s.
fn whole_seconds(left: Duration) -> u64 {
    left.as_secs() + u64::from(left.subsec_nanos() > 0)
}

fn standing(state: AdminState) -> Standing {
    match state {
        AdminState::Up => Standing::Up,
        AdminState::Drain => Standing::Drain,
        AdminState::Down => Standing::Down,
    }
}

fn admin(standing: Standing) -> AdminState {
    match standing {
        Standing::Up => AdminState::Up,
        Standing::Drain => AdminState::Drain,
        Standing::Down => AdminState::Down,
    }
}
