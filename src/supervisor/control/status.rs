//! What `beltway status` tells: one structure that the master fills in, for programs as JSON and for
//! people as text.
//!
//! Durations are in whole seconds, sizes in bytes, their unit last in the name. Fields are only ever
//! added, and each has a default: programs of another version read them.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::certificates::{self, CertificateStatus, ClientsStatus};
use super::direct::DirectStatus;
use super::kernel_tls::KernelTlsStatus;
use super::memory::MemoryStatus;
use super::upstreams::{self, UpstreamStatus};

/// The server as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StatusReport {
    /// Version of the program that the master runs.
    pub version: String,
    /// Process of the master; it stays the same through reloads and upgrades.
    pub pid: u32,
    /// Since the first start; an upgrade doesn't begin it anew.
    pub uptime_s: u64,
    /// The configuration file, absolute.
    pub config_file: String,
    /// The configuration that new requests get: 1 at the start, one more with each reload.
    pub epoch: u64,
    /// Generations of workers, the newest first.
    pub generations: Vec<GenerationStatus>,
    /// What the master listens on, as `listen` takes it, with the ports that it got; those under TLS begin
    /// with `https://`.
    pub listeners: Vec<String>,
    /// The last reload or upgrade.
    pub last_change: Option<ChangeStatus>,
    /// Reloads and upgrades that wait for the one under way.
    pub waiting_changes: usize,
    /// Workers that were started anew after they had died.
    pub restarts: u64,
    /// How the last worker ended that nobody had asked to.
    pub last_exit: Option<ExitStatus>,
    /// How often each limit of clients was reached, in the workers that live.
    pub limits: BTreeMap<String, u64>,
    /// Where requests are passed to, in the order of the configuration; of all workers together.
    pub upstreams: Vec<UpstreamStatus>,
    /// The certificates that are in use.
    pub certificates: Vec<CertificateStatus>,
    /// The clients with certificates that are taken.
    pub client_certificates: Vec<ClientsStatus>,
}

/// A reload or an upgrade that has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ChangeStatus {
    /// `reload` or `upgrade`.
    pub kind: String,
    /// How long ago it ended.
    pub ago_s: u64,
    /// Whether it came into force.
    pub ok: bool,
    /// What came of it, in a line: `in place`, `new generation: workers changed`, or why not.
    pub text: String,
}

/// The end of a worker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExitStatus {
    /// How long ago.
    pub ago_s: u64,
    /// Which one it was, and what ended it: `killed by SIGSEGV`, `exit code 1`.
    pub cause: String,
}

/// What a generation does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GenerationState {
    /// Its workers are not all ready.
    #[default]
    Starting,
    /// It takes new connections.
    Serving,
    /// It serves the connections that it has, and ends with the last one.
    Draining,
}

impl GenerationState {
    fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::Draining => "draining",
        }
    }
}

/// The workers of one life.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GenerationStatus {
    /// Its number, from 1.
    pub id: u64,
    /// What it does.
    pub state: GenerationState,
    /// How long it has been in that state.
    pub since_s: u64,
    /// In how long a start has failed, or a drain ends with force.
    pub deadline_s: Option<u64>,
    /// Its workers.
    pub workers: Vec<WorkerStatus>,
}

/// One worker process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerStatus {
    /// Its process.
    pub pid: u32,
    /// How often this place in the generation was filled anew.
    pub restarts: u64,
    /// `io_uring` or `epoll`.
    pub engine: String,
    /// Why this engine.
    pub engine_reason: String,
    /// Where the numbers that depend on the machine come from: the file of `beltway tune`, or
    /// `defaults`.
    pub tuning: String,
    /// Which records the kernel makes (kTLS), or why none: `on: …` or `off: …`.
    pub kernel_tls: String,
    /// What it is kept from.
    pub sandbox: SandboxStatus,
    /// Its threads.
    pub cores: Vec<CoreStatus>,
    /// The configurations that something in it still uses, the newest first.
    pub epochs: Vec<EpochStatus>,
    /// Its listeners, also those that were removed and still have connections.
    pub listeners: Vec<ListenerStatus>,
    /// Resident memory of the process.
    pub rss_bytes: u64,
    /// Its memory by category, against its limit.
    pub memory: MemoryStatus,
    /// What a draining worker still waits for; empty for others.
    pub kept_by: String,
}

/// What is enforced on a worker, each in words: `enforced: …`, `missing: …` or `off`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SandboxStatus {
    /// Who it runs as: `beltway (990:990)`.
    pub user: String,
    /// Files (Landlock).
    pub files: String,
    /// What its rings may do.
    pub rings: String,
    /// System calls (seccomp).
    pub calls: String,
    /// How many calls were refused.
    pub refused: u64,
    /// What the kernel lacks, each in a line.
    pub missing: Vec<String>,
}

/// One core of a worker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CoreStatus {
    /// Its number in the worker, from 0.
    pub core: usize,
    /// `io_uring` or `epoll`: a core whose ring can't be made falls back alone.
    pub engine: String,
    /// Open connections.
    pub connections: u64,
    /// Requests whose head was answered, since the worker's start.
    pub requests: u64,
    /// Answers of 500 and above, since the worker's start.
    pub errors: u64,
    /// TLS handshakes that came to their end, since the worker's start.
    pub handshakes: u64,
    /// Those of them that went on with a session that was made before.
    pub handshakes_resumed: u64,
    /// Buffers, tasks and tables.
    pub memory_bytes: u64,
    /// Tasks.
    pub tasks: u64,
    /// Ops that the engine works on, each with its slot.
    pub slots: u64,
    /// Turns that took longer than 2 ms, since the worker's start: all of its connections waited for each.
    pub stalls: u64,
    /// Those of them that took longer than 15 ms.
    pub stalls_long: u64,
    /// Those of which is known that the core used its processor for most of the time, as far as a
    /// hypervisor tells that it didn't.
    pub stalls_worked: u64,
    /// Those of which is known that a system call waited: for a disk, a lock or memory.
    pub stalls_waited: u64,
    /// Those of which is known that others had the processor.
    pub stalls_preempted: u64,
    /// Its longest turn in microseconds.
    pub longest_turn_us: u64,
    /// Whether it answered this question in time.
    pub responding: bool,
    /// Cold files that it read past the page cache, since the worker's start.
    pub direct: DirectStatus,
    /// Connections whose records the kernel makes.
    pub kernel_tls: KernelTlsStatus,
}

/// A configuration that is in use in a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EpochStatus {
    /// Its number.
    pub epoch: u64,
    /// Requests that are answered by it now.
    pub requests: u64,
}

/// A listener of a worker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ListenerStatus {
    /// As `listen` takes it.
    pub address: String,
    /// Open connections that came by it.
    pub connections: u64,
    /// It was removed by a reload and serves the connections that it has.
    pub draining: bool,
}

impl StatusReport {
    /// For people: what the master is, then the upstreams, then each generation with its workers and
    /// cores.
    pub fn text(&self) -> String {
        let mut text = format!(
            "beltway {}, process {}, up {}\n",
            self.version,
            self.pid,
            duration(self.uptime_s)
        );
        let mut fact = |name: &str, value: &str| {
            let _ = writeln!(text, "  {name:<15}{value}");
        };
        let file = match self.config_file.as_str() {
            "" => "from the command line",
            file => file,
        };
        fact("configuration", &format!("{file}, epoch {}", self.epoch));
        fact("listening on", &or_none(&self.listeners.join(", ")));
        if let Some(ChangeStatus {
            kind,
            ago_s,
            ok,
            text,
        }) = &self.last_change
        {
            let outcome = if *ok { "done" } else { "FAILED" };
            let ago = duration(*ago_s);
            fact(
                "last change",
                &format!("{kind} {outcome} {ago} ago: {text}"),
            );
        }
        if self.waiting_changes > 0 {
            fact("waiting", &count(self.waiting_changes as u64, "change"));
        }
        if let Some(ExitStatus { ago_s, cause }) = &self.last_exit {
            let ago = duration(*ago_s);
            let restarts = count(self.restarts, "respawn");
            fact(
                "last death",
                &format!("{cause}, {ago} ago; {restarts} in all"),
            );
        }
        let limits = self.limits.iter();
        let limits: Vec<String> = limits
            .map(|(name, times)| format!("{name} ×{times}"))
            .collect();
        if !limits.is_empty() {
            fact("limits reached", &limits.join(", "));
        }
        text.push_str(&certificates::text(&self.certificates));
        text.push_str(&certificates::clients_text(&self.client_certificates));
        text.push_str(&upstreams::text(&self.upstreams));
        for generation in &self.generations {
            generation.text(&mut text);
        }
        if self.generations.is_empty() {
            text.push_str("\nno worker runs\n");
        }
        text
    }

    /// For programs.
    pub fn to_json(&self) -> serde_json::Value {
        // Numbers, texts and lists of them can always be JSON.
        serde_json::to_value(self).unwrap_or_default()
    }
}

impl GenerationStatus {
    fn text(&self, text: &mut String) {
        let Self { id, state, .. } = self;
        let _ = write!(
            text,
            "\ngeneration {id}: {} for {}",
            state.name(),
            duration(self.since_s)
        );
        let _ = match (self.deadline_s, state) {
            (Some(left), GenerationState::Draining) => {
                writeln!(text, ", ended with force in {}", duration(left))
            }
            (Some(left), GenerationState::Starting) => {
                writeln!(text, ", given up in {}", duration(left))
            }
            _ => writeln!(text),
        };
        for worker in &self.workers {
            worker.text(*state, text);
        }
    }
}

impl WorkerStatus {
    fn text(&self, state: GenerationState, text: &mut String) {
        let _ = write!(
            text,
            "  worker {}: {} ({}), {}",
            self.pid,
            self.engine,
            self.engine_reason,
            bytes(self.rss_bytes)
        );
        if self.restarts > 0 {
            let _ = write!(text, ", {}", count(self.restarts, "respawn"));
        }
        text.push('\n');
        if state == GenerationState::Draining {
            let _ = writeln!(text, "    kept by   {}", self.why_it_stays());
        }
        if !self.tuning.is_empty() {
            let _ = writeln!(text, "    tuning    {}", self.tuning);
        }
        self.sandbox.text(text);
        self.memory.text(text);
        self.table_of_cores(text);
        let sum = |of: fn(&CoreStatus) -> u64| self.cores.iter().map(of).sum::<u64>();
        let handshakes = sum(|core| core.handshakes);
        if handshakes > 0 {
            let resumed = sum(|core| core.handshakes_resumed);
            let handshakes = count(handshakes, "handshake");
            let _ = writeln!(
                text,
                "    TLS       {handshakes}, {resumed} of them resumed"
            );
        }
        DirectStatus::sum(self.cores.iter().map(|core| &core.direct)).text(text);
        KernelTlsStatus::sum(self.cores.iter().map(|core| &core.kernel_tls))
            .text(&self.kernel_tls, text);
        for ListenerStatus {
            address,
            connections,
            draining,
        } in &self.listeners
        {
            let removed = if *draining {
                ", removed and draining"
            } else {
                ""
            };
            let connections = count(*connections, "connection");
            let _ = writeln!(text, "    listener  {address}: {connections}{removed}");
        }
        // The one epoch that everything uses is the usual case, and told above.
        for EpochStatus { epoch, requests } in self.epochs.iter().skip(1) {
            let keeper = match requests {
                0 => "connections of a removed listener".to_owned(),
                requests => count(*requests, "request"),
            };
            let _ = writeln!(text, "    epoch {epoch}: old, kept by {keeper}");
        }
    }

    /// What keeps a draining worker: its own words, else what it counts.
    fn why_it_stays(&self) -> String {
        if !self.kept_by.is_empty() {
            return self.kept_by.clone();
        }
        let connections = self.cores.iter().map(|core| core.connections).sum();
        let requests = self.epochs.iter().map(|epoch| epoch.requests).sum();
        format!(
            "{}, {}",
            count(connections, "connection"),
            count(requests, "request")
        )
    }

    fn table_of_cores(&self, text: &mut String) {
        if self.cores.is_empty() {
            return;
        }
        let head = [
            "core",
            "engine",
            "connections",
            "requests",
            "errors",
            "memory",
            "tasks",
        ];
        let mut rows = vec![head.map(str::to_owned)];
        rows.extend(self.cores.iter().map(|core| {
            [
                core.core.to_string(),
                core.engine.clone(),
                core.connections.to_string(),
                core.requests.to_string(),
                core.errors.to_string(),
                bytes(core.memory_bytes),
                core.tasks.to_string(),
            ]
        }));
        let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
        let widths: [usize; 7] = std::array::from_fn(width);
        for (index, row) in rows.iter().enumerate() {
            text.push_str("   ");
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                // The engine is a word, all others are numbers.
                let _ = match column {
                    1 => write!(text, "  {cell:<width$}"),
                    _ => write!(text, " {cell:>width$}"),
                };
            }
            let silent = index > 0 && !self.cores[index - 1].responding;
            text.push_str(if silent { "  DOES NOT RESPOND\n" } else { "\n" });
        }
        for core in self.cores.iter().filter(|core| core.stalls > 0) {
            let of = |number: u64, what: &str| match number {
                0 => String::new(),
                number => format!("{what}{number}"),
            };
            let _ = writeln!(
                text,
                "    stalls    core {}: {} above 2 ms{}, the longest {:.1} ms{}{}{}",
                core.core,
                count(core.stalls, "turn"),
                of(core.stalls_long, ", above 15 ms "),
                core.longest_turn_us as f64 / 1000.0,
                of(core.stalls_waited, ", waiting calls ×"),
                of(core.stalls_worked, ", work ×"),
                of(core.stalls_preempted, ", no processor ×"),
            );
        }
    }
}

impl SandboxStatus {
    fn text(&self, text: &mut String) {
        for (name, value) in [
            ("user", &self.user),
            ("files", &self.files),
            ("rings", &self.rings),
            ("calls", &self.calls),
        ] {
            if !value.is_empty() {
                let _ = writeln!(text, "    {name:<10}{value}");
            }
        }
        if self.refused > 0 {
            let _ = writeln!(text, "    refused   {}", count(self.refused, "call"));
        }
        for missing in &self.missing {
            let _ = writeln!(text, "    missing   {missing}");
        }
    }
}

fn or_none(text: &str) -> String {
    if text.is_empty() { "nothing" } else { text }.to_owned()
}

pub(super) fn count(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Two units, the largest first: `3d 4h`, `2m 5s`, `0s`.
pub(super) fn duration(seconds: u64) -> String {
    let units = [(86_400, "d"), (3600, "h"), (60, "m"), (1, "s")];
    let first = units
        .iter()
        .position(|(unit, _)| seconds >= *unit)
        .unwrap_or(3);
    let mut left = seconds;
    let mut parts = Vec::new();
    for (unit, name) in units.iter().skip(first).take(2) {
        let many = left / unit;
        left %= unit;
        if many > 0 || parts.is_empty() {
            parts.push(format!("{many}{name}"));
        }
    }
    parts.join(" ")
}

/// In the largest unit that gives at least 1: `12.5 MiB`.
pub(super) fn bytes(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => {
            let tenths = u128::from(bytes) * 10 / *unit as u128;
            format!("{}.{} {name}", tenths / 10, tenths % 10)
        }
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(pid: u32) -> WorkerStatus {
        WorkerStatus {
            pid,
            engine: "io_uring".into(),
            engine_reason: "all setup flags work".into(),
            sandbox: SandboxStatus {
                user: "beltway (990:990)".into(),
                files: "enforced: Landlock 7".into(),
                ..SandboxStatus::default()
            },
            cores: vec![
                CoreStatus {
                    core: 0,
                    engine: "io_uring".into(),
                    connections: 12,
                    requests: 123_456,
                    errors: 0,
                    memory_bytes: 3 << 20,
                    tasks: 15,
                    slots: 18,
                    responding: true,
                    ..CoreStatus::default()
                },
                CoreStatus {
                    core: 1,
                    engine: "epoll".into(),
                    ..CoreStatus::default()
                },
            ],
            epochs: vec![
                EpochStatus {
                    epoch: 3,
                    requests: 2,
                },
                EpochStatus {
                    epoch: 2,
                    requests: 1,
                },
            ],
            listeners: vec![ListenerStatus {
                address: "0.0.0.0:80".into(),
                connections: 12,
                draining: false,
            }],
            rss_bytes: 20_500_000,
            ..WorkerStatus::default()
        }
    }

    fn report() -> StatusReport {
        StatusReport {
            version: "0.1.0".into(),
            pid: 100,
            uptime_s: 90_061,
            config_file: "/etc/beltway/beltway.toml".into(),
            epoch: 3,
            generations: vec![
                GenerationStatus {
                    id: 2,
                    state: GenerationState::Serving,
                    since_s: 65,
                    deadline_s: None,
                    workers: vec![worker(102)],
                },
                GenerationStatus {
                    id: 1,
                    state: GenerationState::Draining,
                    since_s: 65,
                    deadline_s: Some(25),
                    workers: vec![WorkerStatus {
                        cores: vec![CoreStatus {
                            connections: 1,
                            responding: true,
                            ..CoreStatus::default()
                        }],
                        epochs: vec![EpochStatus {
                            epoch: 2,
                            requests: 1,
                        }],
                        listeners: vec![],
                        ..worker(101)
                    }],
                },
            ],
            listeners: vec!["0.0.0.0:80".into(), "[::]:80".into()],
            last_change: Some(ChangeStatus {
                kind: "reload".into(),
                ago_s: 65,
                ok: true,
                text: "new generation: workers changed".into(),
            }),
            restarts: 1,
            last_exit: Some(ExitStatus {
                ago_s: 3600,
                cause: "worker 3 (generation 2): process 99, killed by SIGSEGV".into(),
            }),
            ..StatusReport::default()
        }
    }

    #[test]
    fn people_see_what_serves_and_what_keeps_the_rest() {
        insta::assert_snapshot!(report().text(), @r#"
        beltway 0.1.0, process 100, up 1d 1h
          configuration  /etc/beltway/beltway.toml, epoch 3
          listening on   0.0.0.0:80, [::]:80
          last change    reload done 1m 5s ago: new generation: workers changed
          last death     worker 3 (generation 2): process 99, killed by SIGSEGV, 1h ago; 1 respawn in all

        generation 2: serving for 1m 5s
          worker 102: io_uring (all setup flags work), 19.5 MiB
            user      beltway (990:990)
            files     enforced: Landlock 7
            core  engine   connections requests errors  memory tasks
               0  io_uring          12   123456      0 3.0 MiB    15
               1  epoll              0        0      0     0 B     0  DOES NOT RESPOND
            listener  0.0.0.0:80: 12 connections
            epoch 2: old, kept by 1 request

        generation 1: draining for 1m 5s, ended with force in 25s
          worker 101: io_uring (all setup flags work), 19.5 MiB
            kept by   1 connection, 1 request
            user      beltway (990:990)
            files     enforced: Landlock 7
            core  engine connections requests errors memory tasks
               0                   1        0      0    0 B     0
        "#);
    }

    #[test]
    fn what_was_refused_and_what_waits_is_told() {
        let report = StatusReport {
            waiting_changes: 2,
            limits: [("keep-alive idle".to_owned(), 3)].into(),
            ..StatusReport::default()
        };
        let text = report.text();
        for part in [
            "2 changes",
            "keep-alive idle ×3",
            "nothing",
            "no worker runs",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn a_core_that_stalls_is_told_and_no_other() {
        let mut report = report();
        assert!(!report.text().contains("stalls"));
        let core = &mut report.generations[0].workers[0].cores[0];
        (core.stalls, core.longest_turn_us) = (2, 15_250);
        let text = report.text();
        let told = "stalls    core 0: 2 turns above 2 ms, the longest 15.2 ms\n";
        assert!(text.contains(told), "{text}");
        let core = &mut report.generations[0].workers[0].cores[0];
        (core.stalls_long, core.stalls_waited, core.stalls_preempted) = (1, 1, 1);
        let text = report.text();
        let told = "2 turns above 2 ms, above 15 ms 1, the longest 15.2 ms, waiting calls ×1, no processor ×1\n";
        assert!(text.contains(told), "{text}");
    }

    #[test]
    fn programs_read_what_was_written_and_what_another_version_wrote() {
        let report = report();
        let json = report.to_json();
        assert_eq!(json["generations"][1]["state"], "draining");
        assert_eq!(
            serde_json::from_value::<StatusReport>(json).unwrap(),
            report
        );
        let other = serde_json::json!({"pid": 7, "moon": "full"});
        assert_eq!(
            serde_json::from_value::<StatusReport>(other).unwrap().pid,
            7
        );
    }

    #[test]
    fn times_and_sizes_are_short() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (125, "2m 5s"),
            (3600, "1h"),
            (90_061, "1d 1h"),
            (86_400, "1d"),
        ] {
            assert_eq!(duration(seconds), text);
        }
        for (size, text) in [
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (20_500_000, "19.5 MiB"),
            (u64::MAX, "17179869183.9 GiB"),
        ] {
            assert_eq!(bytes(size), text);
        }
    }
}
