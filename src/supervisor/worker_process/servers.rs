//! The servers of upstreams as a worker process sees them: what its master is told of them, and the words
//! of the administrator that come from there.
//!
//! How a server is, is shared by all cores, and read here; what was done with it each core counts for
//! itself. The master remembers words, and gives all of them with each configuration.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Process;
use crate::config::model::ServerState;
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
        let now = Instant::now();
        let roster = self.rosters.find(&word.upstream).cloned();
        let roster = roster.as_ref();
        let set = roster.map(|roster| roster.set_admin(&word.server, word.state.into(), now));
        let found = matches!(set, Some(Ok(_)));
        if found && word.state != ServerState::Up {
            self.tidy();
        }
        let out = roster.map_or_else(String::new, |roster| out(roster, &word.server, now));
        self.say(&FromWorker::ServerSet { id, found, out });
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
        let of_it = of_it.map(|word| (&*word.server, word.state.into()));
        roster.heed(of_it, now);
    }
}

/// Why a server, or one of its addresses, is out; empty where it isn't.
fn out(roster: &Arc<Roster>, name: &str, now: Instant) -> String {
    let of_it = upstream(roster, now).servers.into_iter();
    let mut reasons = of_it
        .filter(|server| server.name == name)
        .map(|it| it.reason);
    reasons
        .find(|reason| !reason.is_empty())
        .unwrap_or_default()
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
        insecure: settings.is_insecure(),
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
    // Nobody asks one that is down, so what was found of it is old.
    let is_known = ill.is_some() && state.admin != Standing::Down;
    let reason = state.reason.filter(|_| is_known);
    let condition = match state.admin {
        Standing::Up => ill.unwrap_or_default(),
        Standing::Drain => Condition::Drain,
        Standing::Down => Condition::Down,
    };
    let until = state
        .ejected_until
        .filter(|_| condition == Condition::Ejected);
    let slow_start = settings.slow_start;
    let since = state.recovered.filter(|_| ill.is_none());
    let passed = since.map(|since| now.saturating_duration_since(since));
    let passed = passed.filter(|passed| *passed < slow_start);
    ServerStatus {
        name: configured.address.to_string(),
        address: member.address.as_ref().map(ToString::to_string),
        state: condition,
        configured: configured.state,
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

fn admin(standing: Standing) -> ServerState {
    match standing {
        Standing::Up => ServerState::Up,
        Standing::Drain => ServerState::Drain,
        Standing::Down => ServerState::Down,
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::config::model::{ServerAddr, Upstream, UpstreamServer};
    use crate::upstream::health::{EjectionLimits, FailureKind, Finder, Reason};
    use crate::upstream::retry::BudgetAccount;
    use crate::upstream::roster::Resolved;

    fn rosters() -> Arc<Rosters> {
        let ip = |last| ServerAddr::Ip(([10, 0, 0, last], 80).into());
        let mut servers = vec![
            UpstreamServer::new(ip(1)),
            UpstreamServer::new(ServerAddr::Unix("/run/app.sock".into())),
            UpstreamServer::new(ServerAddr::Name("app.internal".into(), 81)),
            UpstreamServer::new(ip(4)),
            UpstreamServer::new(ip(5)),
        ];
        servers[0].max_conns = NonZeroU32::new(7);
        servers[3].state = ServerState::Down;
        let mut upstream = Upstream::new("app", servers);
        upstream.slow_start = Duration::from_secs(3600);
        Rosters::new(&[Arc::new(upstream)], Instant::now())
    }

    fn word(server: &str, state: ServerState) -> Word {
        Word {
            upstream: "app".to_owned(),
            server: server.to_owned(),
            state,
        }
    }

    #[test]
    fn a_report_says_how_each_server_is_and_why() {
        let (rosters, now) = (rosters(), Instant::now());
        let roster = rosters.find("app").unwrap();
        let state = |name: &str| {
            let report = report(&rosters);
            let mut servers = report.upstreams[0].servers.iter();
            servers.find(|it| it.name == name).unwrap().clone()
        };
        let unresolved = state("app.internal:81");
        assert_eq!(
            (unresolved.state, &unresolved.address),
            (Condition::Unresolved, &None)
        );
        assert_eq!(unresolved.reason, "its name has no address");
        let address = Resolved {
            address: ([10, 0, 0, 9], 81).into(),
            weight: 1,
            is_backup: false,
        };
        roster.resolved(2, &[address], now);
        assert_eq!(
            state("app.internal:81").address.as_deref(),
            Some("10.0.0.9:81")
        );

        let board = &roster.members().board;
        board.condemn(1, Judge::Probe, FailureKind::Status(503), now);
        let failing = state("unix:/run/app.sock");
        assert_eq!(
            (failing.state, &*failing.reason),
            (Condition::Failing, "probe: status 503")
        );
        let limits = EjectionLimits {
            first: Duration::from_secs(60),
            longest: Duration::from_secs(60),
            percent_max: 100,
        };
        let reason = Reason {
            finder: Finder::InARow,
            kind: FailureKind::Refused,
        };
        board.eject(0, reason, &limits, now);
        let ejected = state("10.0.0.1:80");
        assert_eq!(
            (ejected.state, ejected.max_conns),
            (Condition::Ejected, Some(7))
        );
        assert!((50..=60).contains(&ejected.back_in_s.unwrap()));
        assert!(out(roster, "10.0.0.1:80", now).contains("connection refused"));

        let down = state("10.0.0.4:80");
        assert_eq!(
            (down.state, down.configured),
            (Condition::Down, ServerState::Down)
        );
        heed(
            &rosters,
            &[
                word("10.0.0.4:80", ServerState::Up),
                word("10.0.0.1:80", ServerState::Drain),
            ],
        );
        let up = state("10.0.0.4:80");
        assert_eq!((up.state, up.admin), (Condition::Up, ServerState::Up));
        assert_eq!(up.slow_start_percent, Some(5));
        let drained = state("10.0.0.1:80");
        assert_eq!((drained.state, drained.back_in_s), (Condition::Drain, None));
        assert!(!drained.reason.is_empty(), "it is ill all the same");
        heed(&rosters, &[word("unix:/run/app.sock", ServerState::Down)]);
        let down = state("unix:/run/app.sock");
        assert_eq!((down.state, &*down.reason), (Condition::Down, ""));
        assert_eq!(state("10.0.0.4:80").state, Condition::Down, "as configured");
        assert_eq!(state("10.0.0.5:80").reason, "");
    }

    #[test]
    fn what_cores_have_counted_is_found_by_what_servers_are_called() {
        let (rosters, now) = (rosters(), Instant::now());
        let roster = rosters.find("app").unwrap();
        let address = |last| Resolved {
            address: ([10, 0, 0, last], 81).into(),
            weight: 1,
            is_backup: false,
        };
        roster.resolved(2, &[address(8), address(9)], now);
        let members = roster.members();
        let servers = members.list.iter().enumerate();
        let mut account = Account {
            name: "app".into(),
            servers: servers
                .map(|(at, member)| ServerAccount {
                    label: Arc::clone(&member.label),
                    tries: at as u64 + 1,
                    latency: Some(Duration::from_micros(100 * at as u64)),
                    ..ServerAccount::default()
                })
                .collect(),
            breaker: Some(BreakerAccount::Open(Duration::from_millis(1500))),
            retries: BudgetAccount {
                granted: 1,
                refused: 2,
                left: 3,
            },
        };
        account.servers.push(ServerAccount {
            label: "one that is gone".into(),
            ..ServerAccount::default()
        });
        let mut report = report(&rosters);
        let other = Account {
            breaker: Some(BreakerAccount::HalfOpen),
            ..account.clone()
        };
        add(&mut report.upstreams, &[account]);
        add(&mut report.upstreams, &[other, Account::default()]);
        let told = &report.upstreams[0];
        let tries: Vec<u64> = told.servers.iter().map(|it| it.tries).collect();
        assert_eq!(tries, [2, 4, 6, 8, 10, 12]);
        assert_eq!(told.servers[5].latency_us, Some(500));
        let breaker = told.breaker.unwrap();
        assert_eq!((breaker.cores, breaker.open, breaker.half_open), (2, 1, 1));
        assert_eq!(breaker.tries_in_s, Some(2));
        assert_eq!(
            (told.retries.made, told.retries.refused, told.retries.left),
            (2, 4, 6)
        );
    }
}
