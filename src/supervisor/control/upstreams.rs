//! What `beltway status` and `beltway server list` tell of upstreams and their servers.
//!
//! A worker makes it of what its cores share and of what each of them counts; the master joins what
//! several workers tell. Both are done here, with plain data. As in [`status`](super::status), units
//! are last in a name, and fields are only ever added.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::status::{count, duration};
use crate::config::model::ServerState;

/// An upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UpstreamStatus {
    /// The name of its table; for servers that a route names itself, their addresses.
    pub name: String,
    /// Its servers, in the order of the configuration; a name is as many as it has addresses.
    pub servers: Vec<ServerStatus>,
    /// Requests that wait in line, because all servers have as many as they may.
    pub waiting: u64,
    /// How many may wait, in each worker.
    pub waiting_max: u64,
    /// The circuit breaker, where there is one.
    pub breaker: Option<BreakerStatus>,
    /// Requests that were tried again.
    pub retries: RetriesStatus,
    /// Whether its servers are talked to under TLS and not verified (`insecure`).
    pub insecure: bool,
}

/// The circuit breakers of an upstream: each core has its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BreakerStatus {
    /// Cores that have told.
    pub cores: u64,
    /// Cores that let nobody pass.
    pub open: u64,
    /// Cores that let a few pass, to see how they fare.
    pub half_open: u64,
    /// In how long the last open one lets somebody pass.
    pub tries_in_s: Option<u64>,
}

/// The retry budget of an upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RetriesStatus {
    /// Tries that were made again.
    pub made: u64,
    /// Tries that were not, because the budget was spent.
    pub refused: u64,
    /// Tries that could be made at once.
    pub left: u64,
}

/// A server of an upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerStatus {
    /// What it is called in the configuration: what `beltway server` takes.
    pub name: String,
    /// Where it is; `None` for a name without an address.
    pub address: Option<String>,
    /// What becomes of requests to it.
    pub state: Condition,
    /// What the configuration says of it.
    pub configured: ServerState,
    /// What holds: the configuration's word, or that of `beltway server`.
    pub admin: ServerState,
    /// Why health keeps it out, in words; empty where it doesn't.
    pub reason: String,
    /// In how long an ejected one comes back.
    pub back_in_s: Option<u64>,
    /// How often it was ejected lately.
    pub ejections: u64,
    /// How much of its share it has while it starts slowly, in percent.
    pub slow_start_percent: Option<u64>,
    /// Its share.
    pub weight: u64,
    /// Whether it is used only while no other server is.
    pub backup: bool,
    /// Most requests in flight to it, in each worker.
    pub max_conns: Option<u64>,
    /// Requests in flight to it, and tunnels.
    pub in_flight: u64,
    /// Connections in use, or being made.
    pub connections: u64,
    /// Connections that wait for the next request.
    pub idle: u64,
    /// Requests that were sent to it since the workers' start, repetitions included.
    pub tries: u64,
    /// Those of them that failed.
    pub failures: u64,
    /// How long it takes to the head of a response: a moving average over the last answers, of the core
    /// that waits longest.
    pub latency_us: Option<u64>,
    /// Workers that have it and serve; 0 when only draining ones have it.
    pub workers: u64,
    /// Those of them whose health keeps it out.
    pub workers_out: u64,
}

/// What becomes of requests to a server, from the best to the worst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// It takes them.
    #[default]
    Up,
    /// It takes them for a time not, because too many failed.
    Ejected,
    /// Its probe fails.
    Failing,
    /// Its name has no address.
    Unresolved,
    /// It takes those of clients that a cookie binds to it; the administrator says so.
    Drain,
    /// It takes none; the administrator says so.
    Down,
}

impl Condition {
    fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Ejected => "ejected",
            Self::Failing => "failing",
            Self::Unresolved => "unresolved",
            Self::Drain => "drain",
            Self::Down => "down",
        }
    }
}

impl UpstreamStatus {
    /// Adds what another worker tells of the same upstream. Of a worker that doesn't serve only what it
    /// has in flight and has counted matters: how its servers are is of no more use to anybody.
    fn join(&mut self, other: &Self, serves: bool) {
        self.waiting += other.waiting;
        let (sum, more) = (&mut self.retries, other.retries);
        sum.made += more.made;
        sum.refused += more.refused;
        if serves {
            sum.left += more.left;
            match (&mut self.breaker, other.breaker) {
                (Some(sum), Some(more)) => sum.join(more),
                (none, some) => *none = none.or(some),
            }
        }
        for server in &other.servers {
            let is_it = |known: &&mut ServerStatus| {
                known.name == server.name && known.address == server.address
            };
            match self.servers.iter_mut().find(is_it) {
                Some(known) => known.join(server, serves),
                None if serves || server.connections > 0 || server.in_flight > 0 => {
                    self.servers.push(server.standing_by(serves));
                }
                None => {}
            }
        }
    }

    fn text(&self, text: &mut String) {
        let up = self.servers.iter().filter(|it| it.takes_requests()).count();
        let _ = write!(
            text,
            "\nupstream {}: {up} of {} up",
            self.name,
            count(self.servers.len() as u64, "server")
        );
        if self.insecure {
            text.push_str(", NOT VERIFIED (insecure = true)");
        }
        if self.waiting > 0 {
            let waiting = count(self.waiting, "request");
            let _ = write!(text, ", {waiting} in line (of {})", self.waiting_max);
        }
        text.push('\n');
        if let Some(breaker) = &self.breaker {
            let _ = writeln!(text, "  breaker   {}", breaker.text());
        }
        let RetriesStatus {
            made,
            refused,
            left,
        } = self.retries;
        if made + refused > 0 {
            let _ = write!(text, "  retries   {made} made, {left} left in the budget");
            let _ = match refused {
                0 => writeln!(text),
                _ => writeln!(text, ", {refused} refused by it"),
            };
        }
        table(&self.servers, text);
    }
}

impl BreakerStatus {
    fn join(&mut self, other: Self) {
        self.cores += other.cores;
        self.open += other.open;
        self.half_open += other.half_open;
        self.tries_in_s = self.tries_in_s.max(other.tries_in_s);
    }

    fn text(&self) -> String {
        let of = count(self.cores, "core");
        match (self.open, self.half_open) {
            (0, 0) => "closed".to_owned(),
            (0, half) => format!("half open on {half} of {of}"),
            (open, _) => {
                let left = duration(self.tries_in_s.unwrap_or_default());
                format!("OPEN on {open} of {of}, tries again in {left}")
            }
        }
    }
}

impl ServerStatus {
    /// What it is called for people: its address behind its name, if that is another thing.
    pub fn label(&self) -> String {
        match &self.address {
            Some(address) if *address != self.name => format!("{} ({address})", self.name),
            _ => self.name.clone(),
        }
    }

    fn takes_requests(&self) -> bool {
        self.state == Condition::Up && self.workers > 0
    }

    /// As the first worker tells it.
    fn standing_by(&self, serves: bool) -> Self {
        Self {
            workers: u64::from(serves),
            workers_out: u64::from(serves && !self.reason.is_empty()),
            ..self.clone()
        }
    }

    fn join(&mut self, other: &Self, serves: bool) {
        self.in_flight += other.in_flight;
        self.connections += other.connections;
        self.idle += other.idle;
        self.tries += other.tries;
        self.failures += other.failures;
        if !serves {
            return;
        }
        self.workers += 1;
        self.workers_out += u64::from(!other.reason.is_empty());
        self.latency_us = self.latency_us.max(other.latency_us);
        self.ejections = self.ejections.max(other.ejections);
        // The worse one of them is what somebody wants to know.
        if other.state > self.state || self.reason.is_empty() {
            self.state = self.state.max(other.state);
            self.reason.clone_from(&other.reason);
            self.back_in_s = other.back_in_s;
        }
        self.slow_start_percent = match (self.slow_start_percent, other.slow_start_percent) {
            (Some(one), Some(another)) => Some(one.min(another)),
            (one, another) => one.or(another),
        };
    }

    /// What stands behind its line.
    fn note(&self) -> String {
        let mut notes = Vec::new();
        if self.backup {
            notes.push("backup".to_owned());
        }
        if self.workers == 0 {
            notes.push("in draining workers alone".to_owned());
        }
        if self.admin != self.configured && self.workers > 0 {
            let configured = self.configured.name();
            notes.push(format!("by `beltway server`, configured {configured}"));
        }
        if !self.reason.is_empty() {
            notes.push(self.reason.clone());
        }
        if let Some(seconds) = self.back_in_s {
            notes.push(format!("back in {}", duration(seconds)));
        }
        if self.workers_out > 0 && self.workers_out < self.workers {
            let (out, of) = (self.workers_out, count(self.workers, "worker"));
            notes.push(format!("in {out} of {of}"));
        }
        if let (Some(percent), Condition::Up) = (self.slow_start_percent, self.state) {
            notes.push(format!("slow start: {percent} % of its share"));
        }
        if let Some(max) = self.max_conns {
            notes.push(format!("at most {max} in flight"));
        }
        notes.join("; ")
    }
}

/// Joins what a worker tells to what others have told. `serves`: it takes new requests; such workers
/// come before those that drain.
pub fn join(all: &mut Vec<UpstreamStatus>, told: &[UpstreamStatus], serves: bool) {
    for upstream in told {
        let place = all.iter().position(|known| known.name == upstream.name);
        let place = place.unwrap_or_else(|| {
            all.push(UpstreamStatus {
                name: upstream.name.clone(),
                waiting_max: upstream.waiting_max,
                insecure: upstream.insecure,
                ..UpstreamStatus::default()
            });
            all.len() - 1
        });
        all[place].join(upstream, serves);
    }
    // One that only drains and has nothing in flight is of no use to anybody.
    all.retain(|upstream| !upstream.servers.is_empty());
}

/// For people.
pub fn text(upstreams: &[UpstreamStatus]) -> String {
    let mut text = String::new();
    for upstream in upstreams {
        upstream.text(&mut text);
    }
    text
}

const HEAD: [&str; 9] = [
    "server",
    "state",
    "weight",
    "in flight",
    "connections",
    "idle",
    "tries",
    "failures",
    "latency",
];

fn table(servers: &[ServerStatus], text: &mut String) {
    let mut rows = vec![HEAD.map(str::to_owned)];
    rows.extend(servers.iter().map(|server| {
        [
            server.label(),
            server.state.name().to_owned(),
            server.weight.to_string(),
            server.in_flight.to_string(),
            server.connections.to_string(),
            server.idle.to_string(),
            server.tries.to_string(),
            server.failures.to_string(),
            server.latency_us.map_or_else(|| "-".to_owned(), latency),
        ]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: [usize; HEAD.len()] = std::array::from_fn(|column| width(column).unwrap_or(0));
    for (index, row) in rows.iter().enumerate() {
        text.push_str("  ");
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            // The first two are words, all others are numbers.
            let _ = match column {
                0 | 1 => write!(text, "  {cell:<width$}"),
                _ => write!(text, "  {cell:>width$}"),
            };
        }
        let note = match index {
            0 => String::new(),
            index => servers[index - 1].note(),
        };
        if !note.is_empty() {
            let _ = write!(text, "  {note}");
        }
        text.push('\n');
    }
}

/// `0.35 ms`, `12.5 ms`, `2.4 s`.
fn latency(us: u64) -> String {
    let ms = us as f64 / 1e3;
    match us {
        ..1_000 => format!("{ms:.2} ms"),
        1_000..1_000_000 => format!("{ms:.1} ms"),
        _ => format!("{:.1} s", ms / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(name: &str) -> ServerStatus {
        ServerStatus {
            name: name.to_owned(),
            address: Some(name.to_owned()),
            weight: 1,
            in_flight: 1,
            connections: 2,
            idle: 3,
            tries: 40,
            failures: 5,
            latency_us: Some(350),
            ..ServerStatus::default()
        }
    }

    fn upstream() -> UpstreamStatus {
        UpstreamStatus {
            insecure: false,
            name: "app".to_owned(),
            servers: vec![
                server("10.0.0.1:80"),
                ServerStatus {
                    address: Some("10.0.0.9:80".to_owned()),
                    backup: true,
                    slow_start_percent: Some(40),
                    max_conns: Some(10),
                    ..server("app.internal:80")
                },
            ],
            waiting: 2,
            waiting_max: 100,
            breaker: Some(BreakerStatus {
                cores: 2,
                ..BreakerStatus::default()
            }),
            retries: RetriesStatus {
                made: 3,
                refused: 1,
                left: 10,
            },
        }
    }

    #[test]
    fn people_see_who_takes_requests_and_why_others_do_not() {
        let mut told = upstream();
        told.servers.push(ServerStatus {
            state: Condition::Ejected,
            reason: "failures in a row, the last one: connection refused".to_owned(),
            back_in_s: Some(12),
            latency_us: Some(2_400_000),
            ..server("10.0.0.3:80")
        });
        told.servers.push(ServerStatus {
            state: Condition::Drain,
            admin: ServerState::Drain,
            latency_us: None,
            ..server("10.0.0.4:80")
        });
        if let Some(breaker) = &mut told.breaker {
            (breaker.open, breaker.tries_in_s) = (1, Some(5));
        }
        let mut all = Vec::new();
        join(&mut all, &[told], true);
        insta::assert_snapshot!(text(&all), @r"
        upstream app: 2 of 4 servers up, 2 requests in line (of 100)
          breaker   OPEN on 1 of 2 cores, tries again in 5s
          retries   3 made, 10 left in the budget, 1 refused by it
            server                         state    weight  in flight  connections  idle  tries  failures  latency
            10.0.0.1:80                    up            1          1            2     3     40         5  0.35 ms
            app.internal:80 (10.0.0.9:80)  up            1          1            2     3     40         5  0.35 ms  backup; slow start: 40 % of its share; at most 10 in flight
            10.0.0.3:80                    ejected       1          1            2     3     40         5    2.4 s  failures in a row, the last one: connection refused; back in 12s
            10.0.0.4:80                    drain         1          1            2     3     40         5        -  by `beltway server`, configured up
        ");
    }

    #[test]
    fn workers_are_summed_and_the_worse_health_is_told() {
        let mut all = Vec::new();
        join(&mut all, &[upstream()], true);
        let mut ill = upstream();
        ill.servers[0].state = Condition::Failing;
        ill.servers[0].reason = "probe: status 503".to_owned();
        join(&mut all, &[ill], true);
        let [of_all] = &all[..] else {
            panic!("{all:?}")
        };
        let first = &of_all.servers[0];
        assert_eq!((first.tries, first.failures, first.idle), (80, 10, 6));
        assert_eq!((first.state, first.workers), (Condition::Failing, 2));
        assert!(first.note().ends_with("status 503; in 1 of 2 workers"));
        assert_eq!((of_all.waiting, of_all.retries.left), (4, 20));
        assert_eq!(of_all.breaker.unwrap().cores, 4);
    }

    #[test]
    fn what_drains_counts_and_says_nothing_of_health() {
        let mut all = Vec::new();
        join(&mut all, &[upstream()], true);
        let mut old = upstream();
        old.servers[0].state = Condition::Failing;
        old.servers[0].reason = "probe: status 503".to_owned();
        old.servers.push(server("10.0.0.7:80"));
        old.servers.push(ServerStatus {
            in_flight: 0,
            connections: 0,
            ..server("10.0.0.8:80")
        });
        let gone = UpstreamStatus {
            name: "gone".to_owned(),
            servers: Vec::new(),
            ..upstream()
        };
        join(&mut all, &[old, gone], false);
        let [of_all] = &all[..] else {
            panic!("{all:?}")
        };
        let names: Vec<&str> = of_all.servers.iter().map(|it| &*it.name).collect();
        assert_eq!(names, ["10.0.0.1:80", "app.internal:80", "10.0.0.7:80"]);
        assert_eq!(of_all.servers[0].state, Condition::Up);
        assert_eq!((of_all.servers[0].in_flight, of_all.retries.left), (2, 10));
        assert_eq!(of_all.servers[2].note(), "in draining workers alone");
        assert!(text(&all).contains("2 of 3 servers up"));
    }

    #[test]
    fn programs_read_what_another_version_wrote() {
        let told = upstream();
        let json = serde_json::to_value(&told).unwrap();
        assert_eq!(json["servers"][0]["state"], "up");
        assert_eq!(
            serde_json::from_value::<UpstreamStatus>(json).unwrap(),
            told
        );
        let other = serde_json::json!({"name": "a", "moon": "full"});
        assert_eq!(
            serde_json::from_value::<UpstreamStatus>(other)
                .unwrap()
                .name,
            "a"
        );
    }
}
