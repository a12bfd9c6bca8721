//! `[server]`, `[server.limits]` and `[server.timeouts]`.

use std::num::NonZeroUsize;
use std::time::Duration;

use super::read::Reader;
use crate::config::model::{
    AccessLog, Engine, Limits, LogFormat, LogLevel, LogTarget, Server, Timeouts, Workers,
};
use crate::config::raw::{Table, Value};
use crate::config::schema::Section;

/// Most threads: beyond it a number is a slip.
const WORKERS_MAX: u64 = 1024;
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
            memory_limit: None,
            max_conns: None,
            drain_timeout: Duration::from_secs(30),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            access_log: None,
            log_level: LogLevel::Info,
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
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            header: Duration::from_secs(10),
            idle: Duration::from_secs(75),
            progress: Duration::from_secs(10),
            progress_rate: 500,
        }
    }
}

impl Reader<'_> {
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
            memory_limit: self.size(table, AT, "memory_limit", MEMORY_MIN..=u64::MAX),
            max_conns: self
                .integer(table, AT, "max_conns", 1..=u64::MAX)
                .and_then(count),
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
