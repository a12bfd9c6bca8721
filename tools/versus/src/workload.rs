//! What is measured, and what Beltway is to reach.

use std::time::Duration;

/// What a workload's throughput is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Whole responses.
    Requests,
    /// Bytes received: a response is so long that counting whole ones would be coarse.
    Bytes,
}

/// The figures to reach, against the best of nginx's configurations.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Our throughput over nginx's, at least.
    pub throughput: f64,
    /// nginx's processor time per unit over ours, at least.
    pub cpu: f64,
    /// Throughput must be above lighttpd's best as well.
    pub above_lighttpd: bool,
}

/// What kind of run a workload is.
#[derive(Clone, Copy, Debug)]
pub enum Run {
    /// Requests in a closed loop.
    Load {
        /// What counts.
        unit: Unit,
        /// To reach.
        target: Option<Target>,
    },
    /// Connections that idle after one request each.
    Idle {
        /// User memory for each connection, in bytes, at most.
        bytes_max: f64,
    },
}

/// One line of the programme.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// What `--only` calls it.
    pub name: &'static str,
    /// What the table calls it.
    pub title: &'static str,
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
        target: Option<Target>,
    ) -> Self {
        let unit = Unit::Requests;
        Self {
            name,
            title,
            body_len,
            connections,
            depth: 1,
            run: Run::Load { unit, target },
        }
    }

    const fn counted_in_bytes(self, target: Target) -> Self {
        let (unit, target) = (Unit::Bytes, Some(target));
        Self {
            run: Run::Load { unit, target },
            ..self
        }
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

const SMALL: Option<Target> = Some(Target {
    throughput: 1.8,
    cpu: 1.9,
    above_lighttpd: true,
});
const MEDIUM: Option<Target> = Some(Target {
    throughput: 1.6,
    cpu: 1.6,
    above_lighttpd: false,
});
const LARGE: Target = Target {
    throughput: 1.0,
    cpu: 1.0,
    above_lighttpd: false,
};
const PIPELINED: Option<Target> = Some(Target {
    throughput: 4.0,
    cpu: 4.0,
    above_lighttpd: false,
});

/// The whole programme, in order.
pub const WORKLOADS: &[Workload] = &[
    Workload::small("1k-64", "1 KiB, 64 connections", KIB, 64, SMALL),
    Workload::small("1k-1024", "1 KiB, 1024 connections", KIB, 1024, SMALL),
    Workload::small("1k-1", "1 KiB, 1 connection", KIB, 1, None),
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
    Workload::small("256k", "256 KiB, 64 connections", 256 * KIB, 64, None),
    Workload::small("1m", "1 MiB hot, 16 connections", MIB, 16, None).counted_in_bytes(LARGE),
    Workload::small("64m", "64 MiB hot, 16 connections", 64 * MIB, 16, None)
        .counted_in_bytes(LARGE),
    Workload {
        name: "idle",
        title: "10 000 idle connections",
        body_len: KIB,
        connections: 10_000,
        depth: 1,
        run: Run::Idle { bytes_max: 1024.0 },
    },
];

/// The workloads of these names, in the programme's order; all when none is named.
///
/// # Errors
/// A name that there isn't, in words.
pub fn select(names: &[String]) -> Result<Vec<Workload>, String> {
    let known = || WORKLOADS.iter().map(|workload| workload.name);
    if let Some(unknown) = names
        .iter()
        .find(|name| !known().any(|known| known == *name))
    {
        let known: Vec<&str> = known().collect();
        return Err(format!(
            "no workload {unknown:?}; there are {}",
            known.join(", ")
        ));
    }
    let chosen =
        |workload: &&Workload| names.is_empty() || names.iter().any(|name| name == workload.name);
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
        assert!(select(&names(&["2k"])).is_err_and(|error| error.contains("1k-1024")));
    }
}
