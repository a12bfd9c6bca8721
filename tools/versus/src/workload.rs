//! What is measured, and what Beltway is to reach.

use std::time::Duration;

use crate::backend::GREETING_LEN;
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

impl Via {
    /// What `--only` calls all such workloads.
    pub fn group(self) -> &'static str {
        match self {
            Via::Files => "files",
            Via::Proxy { .. } => "proxy",
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
    const NONE: Self = Self {
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
    const fn beside_lighttpd(self, throughput: f64) -> Self {
        let beside = Beside {
            family: Family::Lighttpd,
            throughput: Some(throughput),
            cpu: None,
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
    /// Keep-alive connections.
    pub connections: u32,
    /// Requests on their way on each.
    pub depth: u32,
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
            depth: 1,
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

    /// The same load of a backend's responses.
    const fn proxied(self, keepalive: Option<u32>) -> Self {
        Self {
            via: Via::Proxy { keepalive },
            ..self
        }
    }

    /// Whether `--only` means this workload by `name`: by its own name or its group's.
    fn is_called(&self, name: &str) -> bool {
        name == self.name || name == self.via.group()
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
        crate::generate::OPEN_LIMIT + Duration::from_secs(10)
    }
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

const SMALL: Target = Target::both(1.8, 1.9).beside_lighttpd(1.0);
const MEDIUM: Target = Target::both(1.6, 1.6);
const LARGE: Target = Target::both(1.0, 1.0);
const PIPELINED: Target = Target::both(4.0, 4.0);
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
    Workload {
        depth: 16,
        ..Workload::small(
            "1k-pipelined",
            "1 KiB pipelined ×16, 64 connections",
            KIB,
            64,
            PIPELINED,
        )
    },
    Workload::small("16k", "16 KiB, 64 connections", 16 * KIB, 64, MEDIUM),
    Workload::small("64k", "64 KiB, 64 connections", 64 * KIB, 64, MEDIUM),
    Workload::small(
        "256k",
        "256 KiB, 64 connections",
        256 * KIB,
        64,
        Target::NONE,
    ),
    Workload::small("1m", "1 MiB hot, 16 connections", MIB, 16, LARGE).counted_in_bytes(LARGE),
    Workload::small("64m", "64 MiB hot, 16 connections", 64 * MIB, 16, LARGE)
        .counted_in_bytes(LARGE),
    Workload {
        name: "idle",
        title: "10 000 idle connections",
        via: Via::Files,
        body_len: KIB,
        connections: 10_000,
        depth: 1,
        run: Run::Idle {
            bytes_max: 1024.0,
            upgrade: false,
        },
    },
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
    Workload {
        name: "proxy-ws",
        title: "proxy, 8 000 idle WebSockets",
        via: Via::Proxy { keepalive: None },
        body_len: GREETING_LEN,
        connections: 8_000,
        depth: 1,
        run: Run::Idle {
            bytes_max: 2560.0,
            upgrade: true,
        },
    },
];

/// The workloads of these names and groups, in the programme's order; all when none is named.
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
            "no workload {unknown:?}; there are {}, and the groups files and proxy",
            known.join(", ")
        ));
    }
    let chosen = |workload: &&Workload| {
        names.is_empty() || names.iter().any(|name| workload.is_called(name))
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
        assert_eq!(select(&[]).map(|all| all.len()), Ok(WORKLOADS.len()));
        let group = select(&names(&["proxy"])).expect("a group");
        assert!(group.iter().all(|one| one.name.starts_with("proxy-")) && group.len() > 5);
        assert!(select(&names(&["2k"])).is_err_and(|error| error.contains("1k-1024")));
    }
}
