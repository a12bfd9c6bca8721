//! The access log of one core: a line per request, in a buffer that only this core writes to.
//!
//! Writing a line takes no lock and no system call. Batches leave the buffer for the
//! [`sink`](super::sink) when [`LogBuffer::should_flush`] says so. The buffer is bounded: while the
//! sink is slow or full, lines beyond the bound are dropped and counted, and the log itself says
//! how many as soon as there is room. Nothing here knows of clocks or files.

use std::io::Write as _;
use std::net::IpAddr;

use smallvec::SmallVec;

use super::escape::{Style, escape};
use crate::http::semantics::date;
use crate::http::types::{Status, Version};

/// Most bytes that wait in one core's buffer.
pub const BUFFER_MAX: usize = 256 * 1024;
/// From this many bytes on a batch is worth writing.
pub const BATCH: usize = 32 * 1024;
/// Longest time in milliseconds that a line waits in the buffer while the sink takes batches.
pub const FLUSH_INTERVAL_MS: u64 = 1000;
/// How long in milliseconds a core leaves a sink alone that has refused a batch.
pub const RETRY_INTERVAL_MS: u64 = 100;
/// Room kept for the line that counts dropped lines.
const REPORT_MAX: usize = 128;

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The Common Log Format of NCSA httpd: `remote - - [time] "request line" status bytes`.
    Common,
    /// Common, followed by `"Referer" "User-Agent"`.
    Combined,
    /// One JSON object per line, with everything in [`Record`].
    Json,
}

/// What is known of a request when its response has ended. What the client chose is raw bytes: it
/// is escaped here.
#[derive(Clone, Copy, Debug)]
pub struct Record<'r> {
    /// The client's address; `None` for a client on a unix socket.
    pub remote: Option<IpAddr>,
    /// When the request came, in seconds since 1970-01-01T00:00:00Z.
    pub time_unix: u64,
    /// The method; empty when the request line couldn't be read.
    pub method: &'r [u8],
    /// The request target as it came.
    pub target: &'r [u8],
    /// The version.
    pub version: Version,
    /// The status of the response.
    pub status: Status,
    /// Bytes of content that were sent, framing not counted.
    pub body_bytes: u64,
    /// Referer.
    pub referer: Option<&'r [u8]>,
    /// User-Agent.
    pub user_agent: Option<&'r [u8]>,
    /// The host that was asked for.
    pub host: Option<&'r [u8]>,
    /// `http`, or `https` under TLS.
    pub scheme: &'static str,
    /// The name in the client's certificate (RFC 4514), where it has shown one.
    pub client_subject: Option<&'r [u8]>,
    /// From the first byte of the request to the last of the response, in µs.
    pub duration_us: u64,
    /// Bytes of the request's content that were taken, framing not counted.
    pub received: u64,
    /// The backend that answered, or was to; `None` where none was asked.
    pub upstream: Option<&'r Upstreamed>,
}

/// What is known of a backend's part in a response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Upstreamed {
    /// The address of the last one that was tried; empty when none could be.
    pub address: String,
    /// How many tries there were.
    pub tries: u32,
    /// How long connecting took, in µs; 0 on a connection that was there already, `None` when there
    /// never was one.
    pub connect_us: Option<u64>,
    /// From the begin of the last try to the whole head of its response, in µs.
    pub head_us: Option<u64>,
    /// From the begin of the first try to the end of the response, in µs.
    pub total_us: Option<u64>,
    /// Bytes of both bodies that were written to a disk.
    pub spilled: u64,
}

/// Lines of one core on their way to the sink.
///
/// Invariants: `buffer` holds whole lines and at most [`BUFFER_MAX`] bytes; `oldest_ms` is set
/// exactly while it isn't empty or lines were dropped that the log doesn't tell of yet.
#[derive(Debug)]
pub struct LogBuffer {
    format: Format,
    buffer: Vec<u8>,
    /// When the oldest line was pushed or dropped, on the core's monotonic clock.
    oldest_ms: Option<u64>,
    /// Not to try the sink before this.
    retry_ms: u64,
    /// Lines dropped that the log doesn't tell of yet.
    dropped: u64,
    /// What the lines pushed since the last batch tell of.
    told: Told,
    stamp: Stamp,
}

/// Dropped lines that the buffer tells of.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    /// How many of its lines do so.
    reports: u64,
    /// How many dropped lines they count.
    dropped: u64,
}

impl LogBuffer {
    /// An empty buffer; it holds no memory until the first line.
    pub fn new(format: Format) -> Self {
        Self {
            format,
            buffer: Vec::new(),
            oldest_ms: None,
            retry_ms: 0,
            dropped: 0,
            told: Told::default(),
            stamp: Stamp {
                second: None,
                text: Vec::new(),
            },
        }
    }

    /// Appends the line of a request at `now_ms` of the core's monotonic clock, or drops and counts
    /// it when the buffer is full.
    pub fn push(&mut self, record: &Record<'_>, now_ms: u64) {
        self.stamp.set(record.time_unix, self.format);
        if self.buffer.capacity() == 0 {
            self.buffer.reserve(BATCH + BATCH / 8);
        }
        let (length, untold, told) = (self.buffer.len(), self.dropped, self.told);
        self.report_dropped();
        let write = match self.format {
            Format::Common => write_common,
            Format::Combined => write_combined,
            Format::Json => write_json,
        };
        // A line is bounded by the limits on a request's head, so one too many does no harm.
        write(&mut self.buffer, record, &self.stamp.text);
        if self.buffer.len() > BUFFER_MAX - REPORT_MAX {
            self.buffer.truncate(length);
            (self.dropped, self.told) = (untold + 1, told);
        }
        self.oldest_ms.get_or_insert(now_ms);
    }

    /// Whether a batch should go to the sink: 32 KiB wait, or a line has waited for a second, and
    /// the sink hasn't refused one just now. At drain the owner flushes without asking.
    pub fn should_flush(&self, now_ms: u64) -> bool {
        self.next_flush_ms()
            .is_some_and(|flush_ms| flush_ms <= now_ms)
    }

    /// When [`should_flush`](Self::should_flush) will be true without another line, for the core's
    /// timer; `None` while the buffer is empty.
    pub fn next_flush_ms(&self) -> Option<u64> {
        let oldest_ms = self.oldest_ms?;
        let due_ms = if self.buffer.len() >= BATCH {
            oldest_ms
        } else {
            oldest_ms + FLUSH_INTERVAL_MS
        };
        Some(due_ms.max(self.retry_ms))
    }

    /// Takes what waits: whole lines. `None` when nothing does.
    pub fn take_batch(&mut self) -> Option<Vec<u8>> {
        self.report_dropped();
        self.told = Told::default();
        if self.dropped == 0 {
            self.oldest_ms = None;
        }
        (!self.buffer.is_empty()).then(|| std::mem::take(&mut self.buffer))
    }

    /// Takes back a batch that the sink refused at `now_ms`. It goes before the lines pushed since,
    /// and the sink is left alone for a moment.
    pub fn give_back(&mut self, batch: Vec<u8>, now_ms: u64) {
        debug_assert!(batch.len() <= BUFFER_MAX && batch.ends_with(b"\n"));
        let newer = std::mem::replace(&mut self.buffer, batch);
        if self.buffer.len() + newer.len() <= BUFFER_MAX - REPORT_MAX {
            self.buffer.extend_from_slice(&newer);
        } else {
            let lines = memchr::memchr_iter(b'\n', &newer).count() as u64;
            let told = std::mem::take(&mut self.told);
            self.dropped += lines - told.reports + told.dropped;
        }
        self.oldest_ms.get_or_insert(now_ms);
        self.retry_ms = now_ms + RETRY_INTERVAL_MS;
    }

    /// Lines dropped that the log doesn't tell of yet.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Puts the number of dropped lines where they would stand, if there is room.
    fn report_dropped(&mut self) {
        if self.dropped == 0 || self.buffer.len() + REPORT_MAX > BUFFER_MAX {
            return;
        }
        let dropped = std::mem::take(&mut self.dropped);
        self.told.reports += 1;
        self.told.dropped += dropped;
        // Writing to a Vec can't fail.
        let _ = match self.format {
            Format::Common | Format::Combined => {
                writeln!(self.buffer, "# {dropped} lines dropped")
            }
            Format::Json => writeln!(
                self.buffer,
                "{{\"message\":\"{dropped} lines dropped\",\"dropped\":{dropped}}}"
            ),
        };
    }
}

/// The text of the last second that was logged: lines of one second share it.
#[derive(Debug)]
struct Stamp {
    second: Option<u64>,
    text: Vec<u8>,
}

impl Stamp {
    fn set(&mut self, second: u64, format: Format) {
        if self.second == Some(second) {
            return;
        }
        self.second = Some(second);
        self.text.clear();
        self.text.extend_from_slice(&stamp(second, format));
    }
}

/// The time as a format writes it.
fn stamp(second: u64, format: Format) -> SmallVec<[u8; 26]> {
    let second = i64::try_from(second).unwrap_or(i64::MAX);
    match format {
        Format::Common | Format::Combined => SmallVec::from_slice(&date::common_log(second)),
        Format::Json => SmallVec::from_slice(&date::rfc3339(second)),
    }
}

/// Appends a line of the Common Log Format.
fn write_common(out: &mut Vec<u8>, record: &Record<'_>, stamp: &[u8]) {
    write_common_fields(out, record, stamp);
    out.push(b'\n');
}

/// Appends a line of the Combined Log Format.
fn write_combined(out: &mut Vec<u8>, record: &Record<'_>, stamp: &[u8]) {
    write_common_fields(out, record, stamp);
    for value in [record.referer, record.user_agent] {
        out.extend_from_slice(b" \"");
        escape(out, value.unwrap_or(b"-"), Style::Text);
        out.push(b'"');
    }
    out.push(b'\n');
}

fn write_common_fields(out: &mut Vec<u8>, record: &Record<'_>, stamp: &[u8]) {
    match record.remote {
        Some(address) => push_display(out, address),
        None => out.push(b'-'),
    }
    out.extend_from_slice(b" - - [");
    out.extend_from_slice(stamp);
    out.extend_from_slice(b"] \"");
    if record.method.is_empty() {
        out.push(b'-');
    } else {
        escape(out, record.method, Style::Text);
        out.push(b' ');
        escape(out, record.target, Style::Text);
        out.push(b' ');
        out.extend_from_slice(version(record.version).as_bytes());
    }
    out.extend_from_slice(b"\" ");
    push_number(out, record.status.0.into());
    out.push(b' ');
    push_number(out, record.body_bytes);
}

/// Appends a JSON object and a newline. What is absent is `null`.
fn write_json(out: &mut Vec<u8>, record: &Record<'_>, stamp: &[u8]) {
    let has_request_line = !record.method.is_empty();
    out.extend_from_slice(b"{\"time\":\"");
    out.extend_from_slice(stamp);
    out.extend_from_slice(b"\",\"remote\":");
    match record.remote {
        Some(address) => {
            out.push(b'"');
            push_display(out, address);
            out.push(b'"');
        }
        None => out.extend_from_slice(b"null"),
    }
    push_json_string(out, "method", has_request_line.then_some(record.method));
    push_json_string(out, "target", has_request_line.then_some(record.target));
    let version = version(record.version).as_bytes();
    push_json_string(out, "version", has_request_line.then_some(version));
    out.extend_from_slice(b",\"status\":");
    push_number(out, record.status.0.into());
    out.extend_from_slice(b",\"bytes\":");
    push_number(out, record.body_bytes);
    push_json_string(out, "referer", record.referer);
    push_json_string(out, "user_agent", record.user_agent);
    push_json_string(out, "host", record.host);
    push_json_string(out, "scheme", Some(record.scheme.as_bytes()));
    if record.client_subject.is_some() {
        push_json_string(out, "client_subject", record.client_subject);
    }
    out.extend_from_slice(b",\"duration_us\":");
    push_number(out, record.duration_us);
    out.extend_from_slice(b",\"received\":");
    push_number(out, record.received);
    if let Some(upstream) = record.upstream {
        push_upstream(out, upstream);
    }
    out.extend_from_slice(b"}\n");
}

/// Appends `,"upstream":{…}`.
fn push_upstream(out: &mut Vec<u8>, upstream: &Upstreamed) {
    out.extend_from_slice(b",\"upstream\":{\"tries\":");
    push_number(out, upstream.tries.into());
    let address = Some(upstream.address.as_bytes());
    push_json_string(
        out,
        "address",
        address.filter(|address| !address.is_empty()),
    );
    for (key, value) in [
        ("connect_us", upstream.connect_us),
        ("head_us", upstream.head_us),
        ("total_us", upstream.total_us),
    ] {
        match value {
            Some(value) => push_display(out, format_args!(",\"{key}\":{value}")),
            None => push_display(out, format_args!(",\"{key}\":null")),
        }
    }
    out.extend_from_slice(b",\"spilled\":");
    push_number(out, upstream.spilled);
    out.push(b'}');
}

/// Appends `,"key":"value"`, or `,"key":null`.
fn push_json_string(out: &mut Vec<u8>, key: &str, value: Option<&[u8]>) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(b"\":");
    let Some(value) = value else {
        out.extend_from_slice(b"null");
        return;
    };
    out.push(b'"');
    escape(out, value, Style::Json);
    out.push(b'"');
}

fn push_number(out: &mut Vec<u8>, number: u64) {
    push_display(out, number);
}

fn push_display(out: &mut Vec<u8>, value: impl std::fmt::Display) {
    // Writing to a Vec can't fail.
    let _ = write!(out, "{value}");
}

fn version(version: Version) -> &'static str {
    match version {
        Version::Http10 => "HTTP/1.0",
        Version::Http11 => "HTTP/1.1",
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    const RECORD: Record<'static> = Record {
        remote: Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7))),
        time_unix: 971_186_136,
        method: b"GET",
        target: b"/a?b=c",
        version: Version::Http11,
        status: Status(200),
        body_bytes: 2326,
        referer: Some(b"http://example.com/"),
        user_agent: Some(b"curl/8"),
        host: Some(b"example.com"),
        scheme: "https",
        client_subject: None,
        duration_us: 1500,
        received: 0,
        upstream: None,
    };

    fn lines(format: Format, records: &[Record<'_>]) -> String {
        let mut buffer = LogBuffer::new(format);
        for record in records {
            buffer.push(record, 0);
        }
        String::from_utf8(buffer.take_batch().unwrap_or_default()).unwrap()
    }

    #[test]
    fn common_and_combined_lines() {
        assert_eq!(
            lines(Format::Common, &[RECORD]),
            "192.0.2.7 - - [10/Oct/2000:13:55:36 +0000] \"GET /a?b=c HTTP/1.1\" 200 2326\n"
        );
        assert_eq!(
            lines(Format::Combined, &[RECORD]),
            "192.0.2.7 - - [10/Oct/2000:13:55:36 +0000] \"GET /a?b=c HTTP/1.1\" 200 2326 \
             \"http://example.com/\" \"curl/8\"\n"
        );
    }

    #[test]
    fn what_is_missing_is_a_dash_or_null() {
        let unread = Record {
            remote: None,
            method: b"",
            status: Status(400),
            body_bytes: 0,
            referer: None,
            user_agent: None,
            host: None,
            ..RECORD
        };
        assert_eq!(
            lines(Format::Combined, &[unread]),
            "- - - [10/Oct/2000:13:55:36 +0000] \"-\" 400 0 \"-\" \"-\"\n"
        );
        let json: serde_json::Value =
            serde_json::from_str(&lines(Format::Json, &[unread])).unwrap();
        for key in [
            "remote",
            "method",
            "target",
            "version",
            "referer",
            "user_agent",
            "host",
        ] {
            assert!(json[key].is_null(), "{key}");
        }
    }

    #[test]
    fn json_has_every_field() {
        let remote = Some(IpAddr::V6(Ipv6Addr::LOCALHOST));
        assert_eq!(
            lines(
                Format::Json,
                &[Record {
                    remote,
                    version: Version::Http10,
                    ..RECORD
                }]
            ),
            "{\"time\":\"2000-10-10T13:55:36Z\",\"remote\":\"::1\",\"method\":\"GET\",\
             \"target\":\"/a?b=c\",\"version\":\"HTTP/1.0\",\"status\":200,\"bytes\":2326,\
             \"referer\":\"http://example.com/\",\"user_agent\":\"curl/8\",\
             \"host\":\"example.com\",\"scheme\":\"https\",\"duration_us\":1500,\"received\":0}\n"
        );
    }

    #[test]
    fn json_tells_of_the_backend_where_there_was_one() {
        let upstream = Upstreamed {
            address: "192.0.2.9:80".to_owned(),
            tries: 2,
            connect_us: Some(120),
            head_us: None,
            total_us: Some(7000),
            spilled: 90,
        };
        let none = Upstreamed::default();
        let record = |upstream| Record {
            received: 12,
            upstream: Some(upstream),
            ..RECORD
        };
        let text = lines(Format::Json, &[record(&upstream), record(&none)]);
        let [of_one, of_none] = [0, 1].map(|line| {
            let line = text.lines().nth(line).unwrap();
            serde_json::from_str::<serde_json::Value>(line).unwrap()
        });
        assert_eq!(of_one["received"], 12);
        let expected = serde_json::json!({
            "tries": 2, "address": "192.0.2.9:80", "connect_us": 120, "head_us": null, "total_us": 7000,
            "spilled": 90
        });
        assert_eq!(of_one["upstream"], expected);
        assert!(of_none["upstream"]["address"].is_null());
        let common = lines(Format::Common, &[record(&upstream)]);
        assert!(!common.contains("192.0.2.9"));
    }

    #[test]
    fn each_line_has_the_time_of_its_own_request() {
        let later = Record {
            time_unix: RECORD.time_unix + 1,
            ..RECORD
        };
        let log = lines(Format::Common, &[RECORD, later, later, RECORD]);
        let seconds: Vec<_> = log.lines().map(|line| &line[33..35]).collect();
        assert_eq!(seconds, ["36", "37", "37", "36"]);
    }

    #[test]
    fn flushes_after_a_second_or_with_a_batch_of_bytes() {
        let mut buffer = LogBuffer::new(Format::Common);
        assert_eq!(buffer.next_flush_ms(), None);
        assert!(!buffer.should_flush(5_000) && buffer.take_batch().is_none());
        buffer.push(&RECORD, 100);
        buffer.push(&RECORD, 900);
        assert_eq!(
            buffer.next_flush_ms(),
            Some(1100),
            "a second after the oldest line"
        );
        assert!(!buffer.should_flush(1099) && buffer.should_flush(1100));
        assert_eq!(
            buffer
                .take_batch()
                .unwrap()
                .iter()
                .filter(|b| **b == b'\n')
                .count(),
            2
        );
        assert!(!buffer.should_flush(9000));
        buffer.push(&RECORD, 1200);
        while buffer.buffer.len() < BATCH {
            assert!(!buffer.should_flush(1200));
            buffer.push(&RECORD, 1200);
        }
        assert!(buffer.should_flush(1200));
    }

    #[test]
    fn a_refused_batch_keeps_its_place_and_is_tried_again_later() {
        let mut buffer = LogBuffer::new(Format::Common);
        buffer.push(&RECORD, 0);
        let batch = buffer.take_batch().unwrap();
        buffer.push(
            &Record {
                status: Status(404),
                ..RECORD
            },
            1000,
        );
        buffer.give_back(batch, 1000);
        assert!(!buffer.should_flush(1000 + RETRY_INTERVAL_MS - 1));
        assert!(buffer.should_flush(2000));
        let log = String::from_utf8(buffer.take_batch().unwrap()).unwrap();
        let statuses: Vec<_> = log
            .lines()
            .map(|line| line.split(' ').nth(8).unwrap())
            .collect();
        assert_eq!(statuses, ["200", "404"]);
    }

    #[test]
    fn lines_beyond_the_bound_are_counted_where_they_would_stand() {
        for format in [Format::Common, Format::Combined, Format::Json] {
            let mut buffer = LogBuffer::new(format);
            let mut pushed = 0;
            while buffer.dropped() < 10 {
                buffer.push(&RECORD, 0);
                pushed += 1;
            }
            // A sink that stays full all the while, and a core that goes on trying.
            for round in 1..2000 {
                let batch = buffer.take_batch().unwrap();
                assert!(batch.len() <= BUFFER_MAX);
                buffer.push(&RECORD, 0);
                pushed += 1;
                buffer.give_back(batch, round * RETRY_INTERVAL_MS);
            }
            let mut log = buffer.take_batch().unwrap();
            buffer.push(&RECORD, 0);
            pushed += 1;
            log.extend(buffer.take_batch().unwrap());
            let log = String::from_utf8(log).unwrap();
            let (reports, requests): (Vec<_>, Vec<_>) =
                log.lines().partition(|line| line.contains("lines dropped"));
            let dropped: u64 = reports
                .iter()
                .map(|line| {
                    line.split(|c: char| !c.is_ascii_digit())
                        .find(|n| !n.is_empty())
                })
                .map(|number| number.unwrap().parse::<u64>().unwrap())
                .sum();
            assert!(dropped >= 10, "{reports:?}");
            assert_eq!(dropped + requests.len() as u64, pushed, "{reports:?}");
            assert!(
                log.lines().last().unwrap().contains("example.com") || format == Format::Common
            );
            if format == Format::Json {
                assert!(
                    log.lines()
                        .all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok())
                );
            }
        }
    }

    #[test]
    fn a_line_longer_than_the_buffer_is_dropped() {
        let mut buffer = LogBuffer::new(Format::Combined);
        let huge = vec![b'\n'; BUFFER_MAX];
        buffer.push(
            &Record {
                user_agent: Some(&huge),
                ..RECORD
            },
            0,
        );
        assert_eq!(buffer.dropped(), 1);
        assert_eq!(buffer.take_batch().unwrap(), b"# 1 lines dropped\n");
    }

    proptest! {
        #[test]
        fn a_request_is_one_line_with_its_fields_whatever_the_client_sends(
            method in prop::collection::vec(any::<u8>(), 1..9),
            target in prop::collection::vec(any::<u8>(), 0..40),
            user_agent in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let record = Record {
                method: &method,
                target: &target,
                user_agent: Some(&user_agent),
                ..RECORD
            };
            let json = lines(Format::Json, &[record]);
            prop_assert_eq!(json.matches('\n').count(), 1);
            let json: serde_json::Value = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(json["user_agent"].as_str().unwrap(), String::from_utf8_lossy(&user_agent));
            prop_assert_eq!(json["status"].as_u64(), Some(200));

            let combined = lines(Format::Combined, &[record]);
            prop_assert_eq!(combined.matches('\n').count(), 1);
            // A quote that isn't escaped opens or closes one of the three quoted fields.
            let quotes = combined.replace("\\\\", "").replace("\\\"", "").matches('"').count();
            prop_assert_eq!(quotes, 6, "{}", combined);
        }
    }
}
