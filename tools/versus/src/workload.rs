//! What is measured, and what Beltway is to reach.

use std::time::Duration;

use crate::backend::GREETING_LEN;
use crate::generate::{COLD_LIMIT, Group, Latency, OPEN_LIMIT};
use crate::peers::Family;
use crate::peers::proxies::KEEPALIVE;

/// What a workload's throughput is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Whole responses.
    Requests,
    /// Bytes received: a response is so long that counting whole ones would be coarse.
    Bytes,
}

/// Where what is asked for comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// The server's own files.
    Files,
    /// A backend behind the server.
    Proxy {
        /// Connections that Beltway is told to keep to it; without a number, as many as by default.
        keepalive: Option<u32>,
    },
}

/// What connections are under, where that is TLS: version 1.3 with AES-256-GCM, whoever serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The key exchange.
    pub group: Group,
    /// Each connection but the first ones resumes a session.
    pub resume: bool,
}

/// The cores that a server has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cores {
    /// One of its own, with one worker.
    One,
    /// All, with a worker on each; the generator has one of them as well.
    All,
    /// All, with one worker, which chooses one of them.
    Any,
}

/// What of Beltway is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variants {
    /// Each engine.
    Engines,
    /// Each engine, with and without the page cache, asked for its stalls.
    Cold,
    /// Each engine with each way to take connections and to submit; nobody else takes part.
    Toggles,
}

/// When the next request follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// At the response, with so many on their way on each connection.
    Closed {
        /// At least 1.
        depth: u32,
    },
    /// At the response, on a new connection.
    Reconnect,
    /// So many in a second, whatever becomes of them.
    Rate(u32),
    /// Never: one file, which isn't in memory.
    Cold,
}

/// A small client beside the load, which takes a file at a fixed rate.
#[derive(Clone, Copy, Debug)]
pub struct Bystander {
    /// Length of its file.
    pub body_len: u64,
    /// The latency that counts.
    pub quantile: Quantile,
    /// That latency over the least of nginx's, at most.
    pub ratio_max: f64,
}

/// One of the latencies that are reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantile {
    /// 99 of 100 requests took at most this long.
    P99,
    /// 999 of 1000 took at most this long.
    P999,
}

impl Quantile {
    /// That one of these latencies.
    pub fn of(self, latency: &Latency) -> f64 {
        match self {
            Quantile::P99 => latency.p99,
            Quantile::P999 => latency.p999,
        }
    }

    /// As the table writes it.
    pub fn name(self) -> &'static str {
        match self {
            Quantile::P99 => "p99",
            Quantile::P999 => "p999",
        }
    }
}

/// The figures to reach, against the best of nginx's configurations.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Our throughput over nginx's, at least.
    pub throughput: Option<f64>,
    /// nginx's processor time per unit over ours, at least.
    pub cpu: Option<f64>,
    /// The median latency must be below nginx's.
    pub latency: bool,
    /// What is to be reached against the best of another family as well.
    pub beside: Option<Beside>,
}

/// The figures to reach against a second family.
#[derive(Clone, Copy, Debug)]
pub struct Beside {
    /// Whose.
    pub family: Family,
    /// Our throughput over theirs, at least.
    pub throughput: Option<f64>,
    /// Their processor time per unit over ours, at least.
    pub cpu: Option<f64>,
}

impl Target {
    /// Nothing is to be reached.
    pub const NONE: Self = Self {
        throughput: None,
        cpu: None,
        latency: false,
        beside: None,
    };

    const fn both(throughput: f64, cpu: f64) -> Self {
        Self {
            throughput: Some(throughput),
            cpu: Some(cpu),
            ..Self::NONE
        }
    }

    const fn cpu(cpu: f64) -> Self {
        Self {
            cpu: Some(cpu),
            ..Self::NONE
        }
    }

    /// As well as against nginx.
    const fn beside_haproxy(self, cpu: f64) -> Self {
        let beside = Beside {
            family: Family::Haproxy,
            throughput: None,
            cpu: Some(cpu),
        };
        Self {
            beside: Some(beside),
            ..self
        }
    }

    /// As well as against nginx.
    const fn beside_lighttpd(self, cpu: f64) -> Self {
        let beside = Beside {
            family: Family::Lighttpd,
            throughput: None,
            cpu: Some(cpu),
        };
        Self {
            beside: Some(beside),
            ..self
        }
    }
}

/// What kind of run a workload is.
#[derive(Clone, Copy, Debug)]
pub enum Run {
    /// Requests in a closed loop.
    Load {
        /// What counts.
        unit: Unit,
        /// To reach.
        target: Target,
    },
    /// Connections that idle after one request each, or tunnels after their first bytes.
    Idle {
        /// User memory for each connection, in bytes, at most.
        bytes_max: f64,
        /// WebSocket tunnels.
        upgrade: bool,
    },
}

/// One line of the programme.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// What `--only` calls it.
    pub name: &'static str,
    /// What the table calls it.
    pub title: &'static str,
    /// Where what is asked for comes from.
    pub via: Via,
    /// Length of the file.
    pub body_len: u64,
    /// Connections at a time.
    pub connections: u32,
    /// The cores of the server.
    pub cores: Cores,
    /// What of Beltway is measured.
    pub variants: Variants,
    /// When the next request follows.
    pub pace: Pace,
    /// What connections are under.
    pub tls: Option<Tls>,
    /// A small client beside it.
    pub bystander: Option<Bystander>,
    /// Its kind.
    pub run: Run,
}

impl Workload {
    /// A load of whole responses, one at a time on each connection.
    const fn small(
        name: &'static str,
        title: &'static str,
        body_len: u64,
        connections: u32,
        target: Target,
    ) -> Self {
        let unit = Unit::Requests;
        Self {
            name,
            title,
            via: Via::Files,
            body_len,
            connections,
            cores: Cores::One,
            variants: Variants::Engines,
            pace: Pace::Closed { depth: 1 },
            tls: None,
            bystander: None,
            run: Run::Load { unit, target },
        }
    }

    const fn counted_in_bytes(self, target: Target) -> Self {
        let unit = Unit::Bytes;
        Self {
            run: Run::Load { unit, target },
            ..self
        }
    }

    const fn paced(self, pace: Pace) -> Self {
        Self { pace, ..self }
    }

    /// One file that isn't in memory.
    const fn cold(self) -> Self {
        Self {
            variants: Variants::Cold,
            ..self.paced(Pace::Cold)
        }
    }

    const fn with_toggles(self, cores: Cores) -> Self {
        Self {
            variants: Variants::Toggles,
            cores,
            ..self
        }
    }

    const fn beside(self, quantile: Quantile, ratio_max: f64) -> Self {
        let bystander = Some(Bystander {
            body_len: KIB,
            quantile,
            ratio_max,
        });
        Self { bystander, ..self }
    }

    const fn on_all_cores(self) -> Self {
        Self {
            cores: Cores::All,
            ..self
        }
    }

    const fn idle(
        name: &'static str,
        title: &'static str,
        body_len: u64,
        connections: u32,
        (bytes_max, upgrade): (f64, bool),
    ) -> Self {
        Self {
            run: Run::Idle { bytes_max, upgrade },
            ..Self::small(name, title, body_len, connections, Target::NONE)
        }
    }

    /// The same load of a backend's responses.
    const fn proxied(self, keepalive: Option<u32>) -> Self {
        Self {
            via: Via::Proxy { keepalive },
            ..self
        }
    }

    /// The same load under TLS.
    const fn under_tls(self) -> Self {
        self.under(Group::X25519, false)
    }

    const fn under(self, group: Group, resume: bool) -> Self {
        let tls = Some(Tls { group, resume });
        Self { tls, ..self }
    }

    /// What `--only` calls all such workloads. The servers of a group are set up in the same way.
    pub fn group(&self) -> &'static str {
        match (self.via, self.tls, self.variants) {
            (_, _, Variants::Toggles) => "toggles",
            (_, _, Variants::Cold) => "cold",
            (Via::Files, None, _) => "files",
            (Via::Proxy { .. }, None, _) => "proxy",
            (_, Some(_), _) => "tls",
        }
    }

    /// Whether `--only` means this workload by `name`: by its own name or its group's.
    fn is_called(&self, name: &str) -> bool {
        let cold_file = self.variants == Variants::Cold && name == "files";
        name == self.name || name == self.group() || cold_file
    }

    /// What `throughput` and `cpu_per_unit` are of.
    pub fn unit_name(&self) -> &'static str {
        match self.run {
            Run::Load {
                unit: Unit::Requests,
                ..
            } => "request",
            Run::Load {
                unit: Unit::Bytes, ..
            } => "byte",
            Run::Idle { .. } => "connection",
        }
    }

    /// Most time that a measurement of it may take beyond warm-up and measurement.
    pub fn slack(&self) -> Duration {
        let cold = match self.pace {
            Pace::Cold => COLD_LIMIT,
            _ => Duration::ZERO,
        };
        OPEN_LIMIT + cold + Duration::from_secs(10)
    }

    /// Lengths of the files that it asks for.
    pub fn lengths(&self) -> impl Iterator<Item = u64> {
        let beside = self.bystander.map(|bystander| bystander.body_len);
        [Some(self.body_len), beside].into_iter().flatten()
    }
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Processor time per request on all cores over that on one, at most.
pub const SCALING_MAX: f64 = 1.1;
/// Stalls of a core for each GiB that isn't in memory, at most.
pub const STALLS_MAX: f64 = 3.0;
/// The workload that [`Cores::All`] is compared with.
pub const ON_ONE_CORE: &str = "1k-64";

const SMALL: Target = Target::both(2.0, 2.1).beside_lighttpd(1.35);
const QUICK_TO_ANSWER: Target = Target {
    latency: true,
    ..Target::NONE
};
/// As many connections to the backend as nginx is told to keep, where there are more than Beltway keeps
/// by default.
const MANY: Option<u32> = Some(KEEPALIVE);

/// The whole programme, in order.
pub const WORKLOADS: &[Workload] = &[
    Workload::small("1k-64", "1 KiB, 64 connections", KIB, 64, SMALL),
    Workload::small("1k-1024", "1 KiB, 1024 connections", KIB, 1024, SMALL),
    Workload::small("1k-1", "1 KiB, 1 connection", KIB, 1, Target::NONE),
    Workload::small(
        "1k-pipelined",
        "1 KiB pipelined ×16, 64 connections",
        KIB,
        64,
        Target::both(6.0, 6.0),
    )
    .paced(Pace::Closed { depth: 16 }),
    Workload::small(
        "1k-reconnect",
        "1 KiB, a connection per request, 64 at a time",
        KIB,
        64,
        Target::cpu(1.2),
    )
    .paced(Pace::Reconnect),
    Workload::small(
        "16k",
        "16 KiB, 64 connections",
        16 * KIB,
        64,
        Target::both(1.7, 1.7),
    ),
    Workload::small(
        "64k",
        "64 KiB, 64 connections",
        64 * KIB,
        64,
        Target::both(1.6, 1.6),
    ),
    Workload::small(
        "256k",
        "256 KiB, 64 connections",
        256 * KIB,
        64,
        Target::both(1.15, 1.15),
    ),
    Workload::small("1m", "1 MiB hot, 16 connections", MIB, 16, Target::NONE)
        .counted_in_bytes(Target::both(1.03, 1.03)),
    Workload::small(
        "64m",
        "64 MiB hot, 16 connections",
        64 * MIB,
        16,
        Target::NONE,
    )
    .counted_in_bytes(Target::both(1.05, 1.05)),
    Workload::small("1g", "1 GiB hot, 16 connections", GIB, 16, Target::NONE)
        .counted_in_bytes(Target::both(1.05, 1.05)),
    Workload::small(
        "1g-cold",
        "1 GiB cold, 1 connection, beside a client of 1 KiB",
        GIB,
        1,
        Target::NONE,
    )
    .counted_in_bytes(Target {
        throughput: Some(0.9),
        ..Target::NONE
    })
    .cold()
    .beside(Quantile::P999, 0.1),
    Workload::small(
        "16m-beside",
        "16 MiB hot, 64 connections, beside a client of 1 KiB",
        16 * MIB,
        64,
        Target::NONE,
    )
    .counted_in_bytes(Target::NONE)
    .beside(Quantile::P99, 0.5),
    Workload::small(
        "1k-10k",
        "1 KiB, 10 000 requests a second, 64 connections",
        KIB,
        64,
        Target::NONE,
    )
    .paced(Pace::Rate(10_000)),
    Workload::small(
        "1k-30k",
        "1 KiB, 30 000 requests a second, 64 connections",
        KIB,
        64,
        Target::NONE,
    )
    .paced(Pace::Rate(30_000)),
    Workload::small(
        "1k-cores",
        "1 KiB, 64 connections, all cores",
        KIB,
        64,
        Target::NONE,
    )
    .on_all_cores(),
    Workload::idle(
        "idle",
        "10 000 idle connections",
        KIB,
        10_000,
        (512.0, false),
    ),
    Workload::small(
        "proxy-1k-1",
        "proxy, 1 KiB, 1 connection",
        KIB,
        1,
        QUICK_TO_ANSWER,
    )
    .proxied(None),
    Workload::small(
        "proxy-1k-64",
        "proxy, 1 KiB, 64 connections",
        KIB,
        64,
        Target::both(1.7, 1.9).beside_haproxy(1.2),
    )
    .proxied(MANY),
    Workload::small(
        "proxy-1k-256",
        "proxy, 1 KiB, 256 connections",
        KIB,
        256,
        Target::both(2.0, 2.2).beside_haproxy(1.2),
    )
    .proxied(MANY),
    Workload::small(
        "proxy-64k",
        "proxy, 64 KiB, 64 connections",
        64 * KIB,
        64,
        Target::cpu(1.3),
    )
    .proxied(MANY),
    Workload::small(
        "proxy-256k",
        "proxy, 256 KiB, 64 connections",
        256 * KIB,
        64,
        Target::cpu(2.0).beside_haproxy(1.0),
    )
    .proxied(MANY),
    Workload::small(
        "proxy-1m",
        "proxy, 1 MiB, 16 connections",
        MIB,
        16,
        Target::cpu(2.0).beside_haproxy(1.0),
    )
    .proxied(None),
    Workload::idle(
        "proxy-ws",
        "proxy, 8 000 idle WebSockets",
        GREETING_LEN,
        8_000,
        (2560.0, true),
    )
    .proxied(None),
    Workload::small(
        "tls-full",
        "TLS, full handshake and 1 KiB, 64 at a time",
        KIB,
        64,
        Target::both(1.0, 1.0),
    )
    .paced(Pace::Reconnect)
    .under_tls(),
    Workload::small(
        "tls-full-hybrid",
        "TLS, full handshake (X25519MLKEM768) and 1 KiB, 64 at a time",
        KIB,
        64,
        Target::both(1.0, 1.0),
    )
    .paced(Pace::Reconnect)
    .under(Group::Hybrid, false),
    Workload::small(
        "tls-resumed",
        "TLS, resumed handshake and 1 KiB, 64 at a time",
        KIB,
        64,
        Target::both(1.2, 1.2),
    )
    .paced(Pace::Reconnect)
    .under(Group::X25519, true),
    Workload::small(
        "tls-1k-64",
        "TLS, 1 KiB, 64 connections",
        KIB,
        64,
        Target::both(1.7, 1.8),
    )
    .under_tls(),
    Workload::small(
        "tls-1m",
        "TLS, 1 MiB hot, 16 connections",
        MIB,
        16,
        Target::NONE,
    )
    .counted_in_bytes(Target::cpu(1.0))
    .under_tls(),
    Workload::idle(
        "tls-idle",
        "TLS, 4 000 idle connections",
        KIB,
        4_000,
        (6144.0, false),
    )
    .under_tls(),
    Workload::small(
        "tls-proxy-1k-64",
        "TLS, proxy, 1 KiB, 64 connections",
        KIB,
        64,
        Target::NONE,
    )
    .proxied(MANY)
    .under_tls(),
    Workload::small(
        "toggles-64",
        "toggles: 1 KiB, 64 connections, 1 worker",
        KIB,
        64,
        Target::NONE,
    )
    .with_toggles(Cores::Any),
    Workload::small(
        "toggles-1024",
        "toggles: 1 KiB, 1024 connections, 1 worker",
        KIB,
        1024,
        Target::NONE,
    )
    .with_toggles(Cores::Any),
    Workload::small(
        "toggles-64-all",
        "toggles: 1 KiB, 64 connections, a worker on each core",
        KIB,
        64,
        Target::NONE,
    )
    .with_toggles(Cores::All),
    Workload::small(
        "toggles-1024-all",
        "toggles: 1 KiB, 1024 connections, a worker on each core",
        KIB,
        1024,
        Target::NONE,
    )
    .with_toggles(Cores::All),
];

/// The workloads of these names and groups, in the programme's order; when none is named, all but those
/// that compare Beltway with itself.
///
/// # Errors
/// A name that there isn't, in words.
pub fn select(names: &[String]) -> Result<Vec<Workload>, String> {
    if let Some(unknown) = names
        .iter()
        .find(|name| !WORKLOADS.iter().any(|workload| workload.is_called(name)))
    {
        let known: Vec<&str> = WORKLOADS.iter().map(|workload| workload.name).collect();
        return Err(format!(
            "no workload {unknown:?}; there are {}, and the groups files, cold, proxy, tls and toggles",
            known.join(", ")
        ));
    }
    let chosen = |workload: &&Workload| {
        names.is_empty() && workload.variants != Variants::Toggles
            || names.iter().any(|name| workload.is_called(name))
    };
    Ok(WORKLOADS.iter().filter(chosen).copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selects_by_name_in_order_and_says_what_there_is() {
        let names = |names: &[&str]| {
            names
                .iter()
                .map(|&name| name.to_owned())
                .collect::<Vec<_>>()
        };
        let chosen = select(&names(&["idle", "16k"])).expect("known names");
        assert_eq!(
            chosen.iter().map(|one| one.name).collect::<Vec<_>>(),
            ["16k", "idle"]
        );
        let all = select(&[]).expect("no name is unknown");
        let toggles = select(&names(&["toggles"])).expect("a group");
        assert_eq!(
            (all.len() + toggles.len(), toggles.len()),
            (WORKLOADS.len(), 4)
        );
        let files = select(&names(&["files"])).expect("a group");
        assert!(files.iter().any(|one| one.name == "1g-cold"));
        let group = select(&names(&["proxy"])).expect("a group");
        assert!(group.iter().all(|one| one.name.starts_with("proxy-")) && group.len() > 5);
        assert!(select(&names(&["2k"])).is_err_and(|error| error.contains("1k-1024")));
    }
}
