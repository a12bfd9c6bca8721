//! `[server]`, `[server.limits]` and `[server.timeouts]`.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::read::Reader;
use crate::config::diagnostics::Diagnostic;
use crate::config::model::{
    AccessLog, Engine, KernelTls, Limits, LogFormat, LogLevel, LogTarget, Sandbox, Server,
    Timeouts, Workers, ZeroCopy,
};
use crate::config::raw::{Entry, Item, Table, Value};
use crate::config::schema::Section;

/// Most threads: beyond it a number is a slip.
const WORKERS_MAX: u64 = 1024;
/// Most worker processes: each has all the threads, and its own memory.
const PROCESSES_MAX: u64 = 64;
/// In less time than this no worker gets ready.
const START_TIMEOUT_MIN: Duration = Duration::from_millis(100);
/// Longest name of a user or a group in bytes (`LOGIN_NAME_MAX` of Linux).
const ACCOUNT_NAME_MAX: usize = 256;
/// Range of the request line and of the header section, in bytes. Below, no browser gets through;
/// above, a connection's buffer would be a weapon.
const HEAD_BYTES: std::ops::RangeInclusive<u64> = 256..=1 << 20;
/// Least memory that connections can work in.
const MEMORY_MIN: u64 = 1 << 20;
/// A time of less than this would end every connection before it began.
const TIMEOUT_MIN: Duration = Duration::from_millis(10);

impl Default for Server {
    fn default() -> Self {
        Self {
            workers: Workers::Auto,
            pin: None,
            engine: Engine::Auto,
            splice: true,
            zerocopy: ZeroCopy::Auto,
            ktls: KernelTls::Auto,
            sqpoll: false,
            reuseport: false,
            memory_limit: None,
            max_conns: None,
            processes: NonZeroUsize::MIN,
            user: None,
            group: None,
            sandbox: Sandbox::Auto,
            sandbox_read: Vec::new(),
            start_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(30),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            access_log: None,
            log_level: LogLevel::Info,
            trusted_proxies: Arc::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_line: 8 << 10,
            header_section: 32 << 10,
            header_fields: 100,
            requests_per_connection: 100_000,
            body_drain: 64 << 10,
            spill: 16 << 30,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            header: Duration::from_secs(10),
            handshake: Duration::from_secs(10),
            idle: Duration::from_secs(75),
            progress: Duration::from_secs(10),
            progress_rate: 500,
        }
    }
}

impl Reader<'_> {
    /// `zerocopy`, which needs io_uring: under epoll a send without a copy tells its end by the socket's
    /// error queue, which looks like an error of the connection to all who wait for it.
    fn zerocopy(&mut self, table: &Table) -> Option<ZeroCopy> {
        let words = [
            ("auto", ZeroCopy::Auto),
            ("on", ZeroCopy::On),
            ("off", ZeroCopy::Off),
        ];
        let wanted = self.word(table, Section::Server, "zerocopy", &words)?;
        let is = |entry: &Entry, word: &str| matches!(&entry.item.value, Value::String(it) if it == word);
        if wanted == ZeroCopy::On
            && let Some(engine) = table.get("engine").filter(|it| is(it, "epoll"))
            && let Some(entry) = table.get("zerocopy")
        {
            self.diagnostics.push(
                Diagnostic::new(
                    entry.item.at,
                    "sends without a copy need io_uring",
                    "can't be on",
                )
                .with(engine.key_at, "this asks for epoll")
                .help("write zerocopy = \"auto\", or take the engine away"),
            );
        }
        Some(wanted)
    }

    /// The table `[server]`. What is wrong in it is reported and has its default.
    pub(super) fn server(&mut self, table: &Table) -> Server {
        const AT: Section = Section::Server;
        self.unknown_keys(table, AT);
        let default = Server::default();
        let engines = [
            ("auto", Engine::Auto),
            ("uring", Engine::Uring),
            ("epoll", Engine::Epoll),
        ];
        let kernel_tls = [
            ("auto", KernelTls::Auto),
            ("on", KernelTls::On),
            ("off", KernelTls::Off),
        ];
        let levels = [
            ("error", LogLevel::Error),
            ("warn", LogLevel::Warn),
            ("info", LogLevel::Info),
            ("debug", LogLevel::Debug),
        ];
        Server {
            workers: self.workers(table).unwrap_or(default.workers),
            pin: self.pin(table),
            engine: self
                .word(table, AT, "engine", &engines)
                .unwrap_or(default.engine),
            splice: self.boolean(table, AT, "splice").unwrap_or(default.splice),
            zerocopy: self.zerocopy(table).unwrap_or(default.zerocopy),
            ktls: self
                .word(table, AT, "ktls", &kernel_tls)
                .unwrap_or(default.ktls),
            sqpoll: self.sqpoll(table).unwrap_or(default.sqpoll),
            reuseport: self
                .boolean(table, AT, "reuseport")
                .unwrap_or(default.reuseport),
            memory_limit: self.size(table, AT, "memory_limit", MEMORY_MIN..=u64::MAX),
            max_conns: self
                .integer(table, AT, "max_conns", 1..=u64::MAX)
                .and_then(count),
            processes: self
                .integer(table, AT, "processes", 1..=PROCESSES_MAX)
                .and_then(count)
                .unwrap_or(default.processes),
            user: self.account(table, "user"),
            group: self.account(table, "group"),
            sandbox: self.sandbox(table).unwrap_or(default.sandbox),
            sandbox_read: self.sandbox_read(table),
            start_timeout: self
                .duration(table, AT, "start_timeout", START_TIMEOUT_MIN)
                .unwrap_or(default.start_timeout),
            drain_timeout: self
                .duration(table, AT, "drain_timeout", Duration::ZERO)
                .unwrap_or(default.drain_timeout),
            limits: match self.table(table, AT, "limits") {
                Some(limits) => self.limits(limits),
                None => default.limits,
            },
            timeouts: match self.table(table, AT, "timeouts") {
                Some(timeouts) => self.timeouts(timeouts),
                None => default.timeouts,
            },
            access_log: self.access_log(table),
            log_level: self
                .word(table, AT, "log_level", &levels)
                .unwrap_or(default.log_level),
            trusted_proxies: self
                .peers(table, AT, "trusted_proxies")
                .map_or(default.trusted_proxies, Arc::new),
        }
    }

    fn workers(&mut self, table: &Table) -> Option<Workers> {
        match &table.get("workers")?.item.value {
            Value::String(text) if text == "auto" => Some(Workers::Auto),
            _ => self
                .integer(table, Section::Server, "workers", 1..=WORKERS_MAX)
                .and_then(count)
                .map(Workers::Count),
        }
    }

    fn pin(&mut self, table: &Table) -> Option<bool> {
        match &table.get("pin")?.item.value {
            Value::String(text) if text == "auto" => None,
            _ => self.boolean(table, Section::Server, "pin"),
        }
    }

    /// Whether rings are polled, and nothing forbids it. Whether there are CPUs for it is asked where
    /// the worker is started: the configuration may be checked on another machine.
    fn sqpoll(&mut self, table: &Table) -> Option<bool> {
        let on = self.boolean(table, Section::Server, "sqpoll")?;
        if !on {
            return Some(false);
        }
        let at = table.get("sqpoll")?.item.at;
        type Forbids = fn(&Value) -> bool;
        let others: [(&str, Forbids, &str, &str); 3] = [
            (
                "engine",
                |value| matches!(value, Value::String(text) if text == "epoll"),
                "`sqpoll` is a way to use io_uring, and `engine` is \"epoll\"",
                "remove `sqpoll`, or set `engine` to \"auto\" or \"uring\"",
            ),
            (
                "pin",
                |value| matches!(value, Value::Boolean(false)),
                "`sqpoll` keeps threads on certain CPUs, and `pin` is false",
                "remove one of the two: unpinned, threads and pollers would share CPUs",
            ),
            (
                "processes",
                |value| matches!(value, Value::Integer(count) if *count > 1),
                "`sqpoll` gives CPUs to one process, and `processes` is more than 1",
                "remove one of the two, or raise `workers` instead of `processes`",
            ),
        ];
        for (name, forbids, what, help) in others {
            let Some(other) = table.get(name).filter(|it| forbids(&it.item.value)) else {
                continue;
            };
            self.diagnostics.push(
                Diagnostic::new(other.item.at, what, "contradicts `sqpoll`")
                    .with(at, "asked for here")
                    .help(help),
            );
        }
        Some(true)
    }

    /// A user or a group. Whether it exists is asked where the worker is started: the
    /// configuration may be checked on another machine.
    fn account(&mut self, table: &Table, name: &str) -> Option<String> {
        const AT: Section = Section::Server;
        let entry = table.get(name)?;
        let text = match &entry.item.value {
            // A flag or a variable has no quotes, and a number needs none in a file.
            Value::Integer(number) => number.to_string(),
            _ => self.string_of(AT, entry, &entry.item)?,
        };
        let digits = text.strip_prefix('-').unwrap_or(&text);
        if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
            // The highest means "leave it as it is" to setresuid(2).
            return match text.parse::<u32>() {
                Ok(number) if number != u32::MAX => Some(text),
                _ => {
                    self.diagnostics.push(
                        Diagnostic::new(
                            entry.item.at,
                            format!("`{name}` is out of range"),
                            "out of range",
                        )
                        .help(format!("it has to be from 0 to {}", u32::MAX - 1)),
                    );
                    None
                }
            };
        }
        // What separates the fields of passwd(5), and what no program takes in a name.
        let odd = |c: char| c.is_control() || matches!(c, ':' | '/');
        if text.is_empty() || text.len() > ACCOUNT_NAME_MAX || text.contains(odd) {
            self.wrong(AT, entry, &entry.item);
            return None;
        }
        Some(text)
    }

    fn sandbox(&mut self, table: &Table) -> Option<Sandbox> {
        let words = [("auto", Sandbox::Auto), ("strict", Sandbox::Strict)];
        let entry = table.get("sandbox")?;
        match &entry.item.value {
            Value::Boolean(false) => Some(Sandbox::Off),
            Value::Boolean(true) => Some(Sandbox::Auto),
            Value::String(_) => self.word(table, Section::Server, "sandbox", &words),
            _ => {
                self.wrong(Section::Server, entry, &entry.item);
                None
            }
        }
    }

    fn sandbox_read(&mut self, table: &Table) -> Vec<PathBuf> {
        const AT: Section = Section::Server;
        let Some(entry) = table.get("sandbox_read") else {
            return Vec::new();
        };
        let items: &[Item] = match &entry.item.value {
            Value::Array(items) => items,
            _ => std::slice::from_ref(&entry.item),
        };
        let mut paths = Vec::with_capacity(items.len());
        for item in items {
            let Some(text) = self.string_of(AT, entry, item) else {
                continue;
            };
            if text.is_empty() {
                self.wrong(AT, entry, item);
                continue;
            }
            let path = self.path(item.at, &text);
            self.check_exists(item, &path);
            paths.push(path);
        }
        paths
    }

    fn access_log(&mut self, table: &Table) -> Option<AccessLog> {
        const AT: Section = Section::Server;
        let formats = [
            ("common", LogFormat::Common),
            ("combined", LogFormat::Combined),
            ("json", LogFormat::Json),
        ];
        let format = self
            .word(table, AT, "log_format", &formats)
            .unwrap_or(LogFormat::Combined);
        let entry = table.get("access_log")?;
        let target = match &entry.item.value {
            Value::Boolean(false) => return None,
            Value::Boolean(true) => LogTarget::Stdout,
            _ => match self.string_of(AT, entry, &entry.item)?.as_str() {
                "-" => LogTarget::Stdout,
                "" => {
                    self.wrong(AT, entry, &entry.item);
                    return None;
                }
                name => {
                    let path = self.path(entry.item.at, name);
                    if let Some(parent) = path.parent() {
                        self.check_directory(&entry.item, "directory", parent);
                    }
                    LogTarget::File(path)
                }
            },
        };
        Some(AccessLog { target, format })
    }

    fn limits(&mut self, table: &Table) -> Limits {
        const AT: Section = Section::Limits;
        self.unknown_keys(table, AT);
        let default = Limits::default();
        let bytes = |value: u64| usize::try_from(value).ok();
        Limits {
            request_line: self
                .size(table, AT, "request_line", HEAD_BYTES)
                .and_then(bytes)
                .unwrap_or(default.request_line),
            header_section: self
                .size(table, AT, "header_section", HEAD_BYTES)
                .and_then(bytes)
                .unwrap_or(default.header_section),
            header_fields: self
                .integer(table, AT, "header_fields", 1..=10_000)
                .and_then(bytes)
                .unwrap_or(default.header_fields),
            requests_per_connection: self
                .integer(table, AT, "requests_per_connection", 1..=u64::MAX)
                .unwrap_or(default.requests_per_connection),
            body_drain: self
                .size(table, AT, "body_drain", 0..=u64::MAX)
                .unwrap_or(default.body_drain),
            spill: self
                .size(table, AT, "spill", 1 << 20..=u64::MAX)
                .unwrap_or(default.spill),
        }
    }

    fn timeouts(&mut self, table: &Table) -> Timeouts {
        const AT: Section = Section::Timeouts;
        self.unknown_keys(table, AT);
        let default = Timeouts::default();
        Timeouts {
            header: self
                .duration(table, AT, "header", TIMEOUT_MIN)
                .unwrap_or(default.header),
            handshake: self
                .duration(table, AT, "handshake", TIMEOUT_MIN)
                .unwrap_or(default.handshake),
            idle: self
                .duration(table, AT, "idle", TIMEOUT_MIN)
                .unwrap_or(default.idle),
            progress: self
                .duration(table, AT, "progress", TIMEOUT_MIN)
                .unwrap_or(default.progress),
            progress_rate: self
                .size(table, AT, "progress_rate", 0..=u64::MAX)
                .unwrap_or(default.progress_rate),
        }
    }
}

fn count(value: u64) -> Option<NonZeroUsize> {
    NonZeroUsize::new(usize::try_from(value).ok()?)
}
